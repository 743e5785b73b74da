"""`leanmask bench suggest-S`: labels for S seconds of work, chosen at random or by `leanmask suggest`, and what a model
learns from them.

Every arm starts from the same data set, boxes for all objects and masks for 1 % of them, spends S seconds by the
published prices, and trains the same supervised Mask R-CNN on what it has then. What is bought is taken from the hidden
truth: points as `split --points` draws them, masks as they are.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from leanmask.benchmark.arms import USUAL_MODEL, Arm
from leanmask.benchmark.names import folder_name
from leanmask.benchmark.table import (
    BenchOptions,
    BenchTable,
    OnProgress,
    Row,
    Task,
    add_row,
    is_row,
    prepare_data,
    read_rows,
    results_path,
    run_task,
    unusual,
)
from leanmask.costs import LabelCosts
from leanmask.data.annotation import Row as Annotation
from leanmask.data.files import read_json, write_json
from leanmask.data.layout import locate
from leanmask.data.withholding.chance import shuffled, stable_number
from leanmask.data.withholding.clicks import labels_at, random_pixels, rle_of
from leanmask.errors import ConfigError
from leanmask.errors import suggest as nearest
from leanmask.reports.tables import benchmark_table
from leanmask.suggestions import SuggestOptions, suggest

START = "sparse-1"
POINTS = 10
# Few masks among many points and boxes: see `model.mask_mean` (benchmarks/results/from-scratch/tune-sparse-1.json).
ARM = Arm({"method": {"name": "supervised"}, "model": {"mask_mean": "positives"}})
Purchase = tuple[int, str]  # annotation id, and "points" or "mask"


@dataclass(frozen=True)
class Trial:
    """One arm's purchase. start: the data set that all arms share. seconds: to spend."""

    start: Path
    seconds: float
    seed: int
    options: BenchOptions


def seconds_of(protocol: str) -> float | None:
    """S of "suggest-S", None for another protocol. Raises ConfigError for one that is no number above 0."""
    if not protocol.startswith("suggest"):
        return None
    found = re.fullmatch(r"suggest-(\d+(?:\.\d+)?)", protocol)
    if not found or float(found.group(1)) <= 0:
        raise ConfigError(f"'{protocol}' says no seconds of work; write suggest-S, such as suggest-3600")
    return float(found.group(1))


def bench_suggest(
    protocol: str, options: BenchOptions = BenchOptions(), *, on_progress: OnProgress | None = None
) -> BenchTable:
    """Build the table of "suggest-S"; finished rows are kept, interrupted runs continue. Raises ConfigError for an
    unknown arm.
    """
    seconds = seconds_of(protocol)
    assert seconds is not None, "the caller looked at the protocol"
    require_suggest_arms(protocol, options.arms)
    options = dataclasses.replace(options, model=options.model or USUAL_MODEL)
    path = results_path(protocol, options)
    wanted = [(name, seed) for seed in range(options.seeds) for name in options.arms or ARMS]
    for number, (name, seed) in enumerate(wanted):
        if any(is_row(row, name, seed, options) for row in read_rows(path)):
            continue

        def tell(step: int, total: int, note: str, number: int = number, name: str = name, seed: int = seed) -> None:
            if on_progress:
                on_progress(number + step / total, len(wanted), f"{name} seed {seed}: step {step}, {note}")

        add_row(path, _row(protocol, name, Trial(_start(seed, options), seconds, seed, options), tell))
    rows = [row for row in read_rows(path) if any(is_row(row, name, seed, options) for name, seed in wanted)]
    return BenchTable(rows, benchmark_table(rows))


def require_suggest_arms(protocol: str, names: Sequence[str] | None) -> None:
    """Raise ConfigError for a name that is no arm."""
    for name in names or ():
        if name not in ARMS:
            raise ConfigError(f"unknown arm '{name}' of {protocol}{nearest(name, ARMS)}")


def _start(seed: int, options: BenchOptions) -> Path:
    return prepare_data(Task(START, "start", ARM, seed, options, options.work))


def _row(protocol: str, name: str, trial: Trial, tell: Callable[[int, int, str], None]) -> Row:
    data = trial.options.data.name if trial.options.data else "digits"
    # Arms that train on the same purchase share neither folder nor run.
    own = f"{protocol}-{name}"
    folder = trial.options.work / "data" / f"{data}-{own}-seed{trial.seed}"
    if not (folder / "data.yaml").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        _write(folder, trial, ARMS[name](trial, tell))
    bought = read_json(folder / "purchase.json")
    run = trial.options.work / "runs" / _key(folder.name, trial.options)
    row = run_task(Task(own, name, ARM, trial.seed, trial.options, run), None, tell)
    return {**row, "protocol": protocol, "bought": bought}


def _key(name: str, options: BenchOptions) -> str:
    return folder_name([name, *unusual(options), *options.overrides])


def _price(kind: str) -> float:
    costs = LabelCosts()
    return costs.mask_seconds if kind == "mask" else POINTS * costs.point_seconds


def _maskless(trial: Trial) -> list[int]:
    """Ids of the objects that have a box and no mask, shuffled."""
    annotations = locate(trial.start)["train"].annotations
    assert annotations is not None
    rows = read_json(annotations)["annotations"]
    return shuffled([row["id"] for row in rows if not row.get("segmentation")], trial.seed, "random labels")


def _bought(trial: Trial, kinds: Callable[[int], str]) -> Iterator[Purchase]:
    """Random objects until the seconds are spent. kinds: what an object gets."""
    left = trial.seconds
    for number in _maskless(trial):
        kind = kinds(number)
        if _price(kind) <= left:
            left -= _price(kind)
            yield number, kind


def _random(trial: Trial, _: Any) -> list[Purchase]:
    def coin(number: int) -> str:
        return ("points", "mask")[stable_number(trial.seed, "kind", number) % 2]

    return list(_bought(trial, coin))


def _random_points(trial: Trial, _: Any) -> list[Purchase]:
    return list(_bought(trial, lambda number: "points"))


def _random_masks(trial: Trial, _: Any) -> list[Purchase]:
    return list(_bought(trial, lambda number: "mask"))


def _suggested(trial: Trial, run: Path | None) -> list[Purchase]:
    found = suggest(trial.start, SuggestOptions(trial.seconds / 3600, run, points=POINTS))
    return [(item.annotation_id, item.kind) for item in found.items if item.annotation_id is not None]


def _without_run(trial: Trial, _: Any) -> list[Purchase]:
    return _suggested(trial, None)


def _with_run(trial: Trial, tell: Callable[[int, int, str], None]) -> list[Purchase]:
    """The doubts are those of a run on the data set that all arms start from, the same whatever split is reported."""
    options = dataclasses.replace(trial.options, split=BenchOptions.split)
    run = options.work / "runs" / _key(f"{trial.start.name}-start", options)
    run_task(Task(START, "start", ARM, trial.seed, options, run), None, tell)
    return _suggested(trial, run)


ARMS: dict[str, Callable[[Trial, Callable[[int, int, str], None]], list[Purchase]]] = {
    "random": _random,
    "random_points": _random_points,
    "random_masks": _random_masks,
    "suggest": _without_run,
    "suggest_run": _with_run,
}


def _write(folder: Path, trial: Trial, purchases: list[Purchase]) -> None:
    """The data set after a purchase: data.yaml last, so that a folder that has it is complete."""
    files = locate(trial.start)["train"]
    assert files.annotations is not None
    assert files.truth is not None
    content, truth = read_json(files.annotations), read_json(files.truth)
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    hidden = {row["id"]: row for row in truth["annotations"]}
    kinds = dict(purchases)
    content["annotations"] = [
        _labelled(row, hidden[row["id"]], kinds.get(row["id"]), sizes[row["image_id"]], trial.seed)
        for row in content["annotations"]
    ]
    annotations = folder / "annotations" / "instances_train.json"
    write_json(annotations, content)
    counts = Counter(kind for _, kind in purchases)
    spent = sum(_price(kind) for _, kind in purchases)
    write_json(folder / "purchase.json", {**counts, "seconds": round(spent, 1), "of_seconds": trial.seconds})
    splits = {
        name: {key: str(path.resolve()) for key, path in dataclasses.asdict(found).items() if path is not None}
        for name, found in locate(trial.start).items()
    }
    splits["train"]["annotations"] = str(annotations.resolve())
    (folder / "data.yaml").write_text(yaml.safe_dump({"splits": splits}), encoding="utf-8")


def _labelled(row: Annotation, hidden: Annotation, kind: str | None, size: tuple[int, int], seed: int) -> Annotation:
    if kind is None:
        return row
    if kind == "mask":
        return {**row, "segmentation": hidden["segmentation"]}
    pixels = random_pixels(hidden["bbox"], size, POINTS, seed, row["id"])
    labels = labels_at(rle_of(hidden, size), pixels)
    return {**row, "point_coords": pixels.tolist(), "point_labels": labels.tolist()}
