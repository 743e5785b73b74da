"""Reading a run folder into one plain summary, also when the run is still going on, was killed, or lost some files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from leanmask.errors import RunError
from leanmask.summary import BEST_FOLDER, score_of

NETWORKS = ("teacher", "student")
KINDS = ("train", "eval", "pseudo", "event")
RESULTS_NAME = "coco_instances_results.json"


@dataclass(frozen=True)
class FinalMetrics:
    """What one network reached. metrics: fractions in [0, 1], keys as in the brief of COCO evaluation (AP, AP50, ...,
    box_AP), those of masks only where masks were measured. per_class: {name, id, AP, AP50, count}. from_journal: no
    evaluation file was found, this is the journal's evaluation instead. outcomes: predictions that are right, and that
    get something wrong. calibration: bins and errors of confidence, empty where not measured.
    """

    who: str
    metrics: dict[str, Any]
    per_class: list[dict[str, Any]]
    notes: list[str]
    step: int | None
    from_journal: bool = False
    outcomes: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ap(self) -> float | None:
        """Mask AP, or box AP where only boxes were measured."""
        return fraction(score_of(self.metrics)[1])

    @property
    def iou(self) -> str:
        """What `ap` is of, "mask" or "box"."""
        return score_of(self.metrics)[0].removesuffix(" AP")


@dataclass(frozen=True)
class AnnotatedImages:
    """A COCO file and the folder of its images."""

    annotations: Path
    images: Path


@dataclass(frozen=True)
class Journal:
    """The journal's rows by kind, by step; of rows written twice (before and after a resume) the later one."""

    train: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    pseudo: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class RunSummary:
    """One run. census: split -> census. classes: the user's category id -> name. final: by network, as evaluated last.
    best: metadata of best.safetensors. kept: what that file's network reached, or the better one of `final` where there
    is no such file; None before the first evaluation. kept_files: folder of its results and pictures, None where those
    of another network have taken their place. fingerprint: of the validation split's content, where the run recorded
    it. results: network -> COCO results file, of the last evaluation. training, validation: what the run learnt from
    and is measured on. problems: sentences about what is missing or broken in the folder.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    census: dict[str, dict[str, Any]]
    classes: dict[int, str]
    journal: Journal
    final: dict[str, FinalMetrics]
    kept: FinalMetrics | None
    kept_files: Path | None
    fingerprint: str | None
    best: dict[str, str]
    results: dict[str, Path]
    training: AnnotatedImages | None
    validation: AnnotatedImages | None
    problems: tuple[str, ...]

    @property
    def method(self) -> str:
        return _named(self.config.get("method"))

    @property
    def model(self) -> str:
        return _named(self.config.get("model"))

    @property
    def planned_steps(self) -> int | None:
        steps = section(self.config, "train").get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def stopped_early(self) -> bool:
        """Whether the run is finished before its last step, as its score did not rise any more."""
        return any(event.get("stopped_early") is True for event in self.journal.events)

    @property
    def last_step(self) -> int:
        """The highest step that anything in the journal or the evaluation speaks of."""
        rows = (*self.journal.train, *self.journal.evaluations, *self.journal.pseudo)
        steps = [row["step"] for row in rows] + [final.step for final in self.final.values() if final.step is not None]
        return max(steps, default=0)

    def same_measure(self, other: RunSummary) -> bool:
        """Whether scores of both can be compared: measured on the same content, of masks or boxes, by one protocol.
        Runs of before contents were recorded are told apart by their classes and the counts of their labels.
        """
        if self.kept is not None and other.kept is not None and self.kept.iou != other.kept.iou:
            return False
        if _protocol(self) != _protocol(other):
            return False
        if self.fingerprint is not None and other.fingerprint is not None:
            return self.fingerprint == other.fingerprint
        mine, theirs = self.census.get(_split(self)), other.census.get(_split(other))
        if mine is None or theirs is None:
            return self.validation == other.validation
        return (mine, self.classes) == (theirs, other.classes)

    @property
    def train_seconds(self) -> float | None:
        """Seconds spent in steps: every journal row speaks for the steps since the row before it."""
        total, before = 0.0, 0
        for row in self.journal.train:
            seconds = number(row.get("seconds_step"))
            if seconds is not None:
                total += seconds * max(row["step"] - before, 1)
            before = row["step"]
        return total if total > 0 else None


def read_run(folder: Path | str) -> RunSummary:
    """Read a run folder. Missing or broken parts become sentences in `problems`; RunError when it is no run folder."""
    folder = Path(folder)
    if not (folder / "config.yaml").is_file() and not (folder / "journal.jsonl").is_file():
        what = "has neither config.yaml nor journal.jsonl" if folder.is_dir() else "does not exist"
        raise RunError(f"{folder} is no run folder: it {what}")
    problems: list[str] = []
    config = _read_mapping(folder / "config.yaml", problems)
    data = _read_mapping(folder / "data.json", problems)
    journal = _read_journal(folder / "journal.jsonl", problems)
    final = {who: found for who in NETWORKS if (found := _final(folder, who, journal, problems)) is not None}
    best = _best_metadata(folder / "best.safetensors", problems)
    kept, kept_files = _kept(folder, best, journal, final, problems)
    split = section(config, "data").get("val_split") or "val"
    if not final:
        problems.append("the run has no evaluation yet")
    return RunSummary(
        name=folder.resolve().name,
        folder=folder,
        config=config,
        environment=_read_mapping(folder / "env.json", problems),
        census={name: census for name, census in section(data, "census").items() if isinstance(census, dict)},
        classes=_classes(section(data, "classes")),
        journal=journal,
        final=final,
        kept=kept,
        kept_files=kept_files,
        fingerprint=section(data, "fingerprints").get(split),
        best=best,
        results={who: path for who in NETWORKS if (path := folder / "evaluation" / who / RESULTS_NAME).is_file()},
        training=_files(folder, data, section(config, "data").get("train_split") or "train"),
        validation=_files(folder, data, split),
        problems=tuple(problems),
    )


def comparable(runs: Sequence[RunSummary]) -> list[list[int]]:
    """Positions of the runs whose scores can be compared with each other, in the order given."""
    groups: list[list[int]] = []
    for at, run in enumerate(runs):
        found = next((group for group in groups if runs[group[0]].same_measure(run)), None)
        if found is None:
            groups.append([at])
        else:
            found.append(at)
    return groups


def number(value: Any) -> float | None:
    """A finite float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def fraction(value: Any) -> float | None:
    """A number that is not negative: COCO writes -1 where there is nothing to measure."""
    found = number(value)
    return found if found is not None and found >= 0 else None


def section(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The mapping under `key`, empty when there is none."""
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}


def _named(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("name")
    return str(value) if value else "?"


def _read_mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{path.name} cannot be read: {' '.join(str(error).split())}")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} holds {type(content).__name__} where a mapping is expected")
        return {}
    return content


def _read_journal(path: Path, problems: list[str]) -> Journal:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        problems.append(f"journal.jsonl cannot be read: {error.strerror}")
        return Journal()
    rows: dict[str, dict[Any, dict[str, Any]]] = {kind: {} for kind in KINDS}
    broken = []
    for index, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _journal_row(line)
        if row is None:
            broken.append(index)
        else:
            key = (row["step"], row.get("who"), row.get("message"))
            rows[row["kind"]][key] = row
    if broken and broken != [len(lines)]:
        problems.append(f"journal.jsonl: {len(broken)} unreadable lines left out, the first is line {broken[0]}")
    elif broken:
        problems.append("journal.jsonl: the last line is cut off; the run is going on or was killed while writing it")
    by_step = {kind: sorted(kept.values(), key=lambda row: row["step"]) for kind, kept in rows.items()}
    return Journal(by_step["train"], by_step["eval"], by_step["pseudo"], by_step["event"])


def _journal_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or row.get("kind") not in KINDS:
        return None
    return row if isinstance(row.setdefault("step", 0), int) else None


def _final(folder: Path, who: str, journal: Journal, problems: list[str]) -> FinalMetrics | None:
    path = folder / "evaluation" / who / "metrics.json"
    rows = [row for row in journal.evaluations if row.get("who") == who and section(row, "metrics")]
    if path.exists():
        content = _read_mapping(path, problems)
        if section(content, "metrics"):
            # A run evaluates into the same file again and again: what it holds is the journal's last evaluation.
            return _of_file(who, content, content.get("step", rows[-1]["step"] if rows else None))
    return _of_journal(who, rows[-1]) if rows else None


def _of_file(who: str, content: Mapping[str, Any], step: Any) -> FinalMetrics:
    return FinalMetrics(
        who=who,
        metrics=section(content, "metrics"),
        per_class=_dicts(content.get("per_class")),
        notes=[str(note) for note in content.get("notes") or []],
        step=step if isinstance(step, int) else None,
        outcomes=section(content, "outcomes"),
        calibration=section(content, "calibration"),
    )


def _of_journal(who: str, row: Mapping[str, Any]) -> FinalMetrics:
    return FinalMetrics(who, section(row, "metrics"), _dicts(row.get("per_class")), [], row["step"], True)


def _kept(
    folder: Path,
    best: Mapping[str, str],
    journal: Journal,
    final: Mapping[str, FinalMetrics],
    problems: list[str],
) -> tuple[FinalMetrics | None, Path | None]:
    """What the network in best.safetensors reached, and the folder of its results; see `RunSummary`."""
    who, step = best.get("who", ""), best.get("step", "")
    if who not in NETWORKS or not step.isdigit():
        known = [name for name in NETWORKS if name in final]
        if not known:
            return None, None
        better = max(known, key=lambda name: final[name].ap or 0.0)
        return final[better], folder / "evaluation" / better
    own = folder / "evaluation" / BEST_FOLDER
    if (own / "metrics.json").is_file():
        content = _read_mapping(own / "metrics.json", problems)
        # A run that is killed while it writes its best network may leave the numbers of the one before.
        if (content.get("who"), content.get("step")) == (who, int(step)) and section(content, "metrics"):
            return _of_file(who, content, int(step)), own
    if who in final and final[who].step == int(step):
        return final[who], folder / "evaluation" / who
    of_step = [row for row in journal.evaluations if (row.get("who"), row["step"]) == (who, int(step))]
    if of_step and section(of_step[-1], "metrics"):
        return _of_journal(who, of_step[-1]), None
    ap = number(_as_json(best.get("AP")))
    metrics = {} if ap is None else {"box_AP" if best.get("iou") == "box" else "AP": ap}
    return FinalMetrics(who, metrics, [], [], int(step), True), None


def _as_json(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except ValueError:
        return None


def _split(run: RunSummary) -> str:
    return str(section(run.config, "data").get("val_split") or "val")


def _protocol(run: RunSummary) -> str:
    return str(section(run.config, "evaluation").get("protocol") or "coco")


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _classes(content: Mapping[str, Any]) -> dict[int, str]:
    names, ids = content.get("names"), content.get("ids")
    if not isinstance(names, list) or not isinstance(ids, list):
        return {}
    return {number_: str(name) for number_, name in zip(ids, names, strict=False) if isinstance(number_, int)}


def _best_metadata(path: Path, problems: list[str]) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="np") as weights:
            return dict(weights.metadata() or {})
    except (SafetensorError, OSError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}


def _files(folder: Path, data: Mapping[str, Any], split: str) -> AnnotatedImages | None:
    files = section(section(data, "splits"), split)
    annotations, images = files.get("annotations"), files.get("images")
    if not isinstance(annotations, str) or not isinstance(images, str):
        return None
    return AnnotatedImages(_first_existing(annotations, folder), _first_existing(images, folder))


def _first_existing(name: str, folder: Path) -> Path:
    """The path as it stands, or seen from the run folder when only that exists."""
    beside = folder / name
    return beside if not Path(name).exists() and beside.exists() else Path(name)
