"""Makes a partly labelled data set from a fully labelled one, by any protocol of the benchmark; what is taken away is
kept apart as truth, to measure pseudo-labels against.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from leanmask.data.annotation import Row
from leanmask.data.files import read_json, write_json
from leanmask.data.grouping import Totals, categories_of, group_images
from leanmask.data.layout import SplitFiles, locate
from leanmask.data.new_folder import new_folder
from leanmask.data.withholding.protocols import FORMS, Parts, Protocol, Source, SplitOptions, parse_protocol
from leanmask.data.withholding.withhold import row_seconds, withhold
from leanmask.errors import DataError

__all__ = ["FORMS", "SplitOptions", "SplitSummary", "parse_protocol", "split"]

TRAIN_FILE = "annotations/instances_train.json"
TRUTH_FILE = "truth/instances_train.json"
UNLABELLED_FILE = "annotations/instances_unlabelled.json"
UNLABELLED_TRUTH_FILE = "truth/instances_unlabelled.json"


@dataclass(frozen=True)
class SplitSummary:
    """What a split holds. masks, boxes: objects with a mask, and with a box but no mask; points: classified points and
    single points; seconds: annotation time by Pointly-Supervised's prices; mask_classes: of `partial`, the classes
    with masks. Crowds are counted nowhere.
    """

    protocol: str
    seed: int
    out: Path
    images: int
    unlabelled_images: int
    objects: int
    masks: int
    boxes: int
    points: int
    noisy_points: int
    seconds: float
    mask_classes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "out": str(self.out), "mask_classes": list(self.mask_classes)}

    def to_text(self) -> str:
        unlabelled = f" and {self.unlabelled_images} unlabelled ones" if self.unlabelled_images else ""
        wrong = f" ({self.noisy_points} wrong)" if self.noisy_points else ""
        return (
            f"{self.protocol}, seed {self.seed}, in {self.out}: {self.images} images{unlabelled}, "
            f"{self.objects} objects with {self.masks} masks, {self.boxes} boxes without mask, "
            f"{self.points} points{wrong}; {self.seconds:.0f} annotation seconds"
        )


def split(
    data: str | Path, out: Path, protocol: str, *, seed: int = 0, options: SplitOptions | None = None
) -> SplitSummary:
    """Write the split to the new folder `out`; images are referred to, not copied.

    data: a fully labelled data set with a split "train"; its other splits are named in the new data.yaml as they are.
    protocol: full, sparse-R, points-N, boxes, semi-P, weak-semi-P, partial or mixed-T (docs/benchmark.md). Writes
    annotations/instances_train.json, truth/instances_train.json (complete), for semi-P and mixed-T the same two for
    "unlabelled", files under the published names for points-N and weak-semi-P, data.yaml and split.json. Raises
    DataError for an unknown protocol or missing labels, RunError when `out` is not new.
    """
    parsed = parse_protocol(protocol)
    options = options or SplitOptions()
    splits = locate(data)
    if "train" not in splits or splits["train"].annotations is None:
        raise DataError(f"{data} has no split 'train' with annotations; found: {', '.join(splits) or 'nothing'}")
    content = read_json(splits["train"].annotations)
    source = _source(content, splits["train"].annotations, parsed, (seed, options))
    parts = withhold(source)
    summary = _summary(source, parts, Path(out))
    with new_folder(Path(out)) as folder:
        for name, found in _files(source, parts, content).items():
            write_json(folder / name, found)
        write_json(folder / "split.json", _record(source, summary))
        named = _data_splits(splits, parts, Path(out), f"{source.protocol.amount:g}")
        text = yaml.safe_dump({"splits": named}, sort_keys=False, allow_unicode=True)
        (folder / "data.yaml").write_text(text, encoding="utf-8")
    return summary


def _source(content: Mapping[str, Any], path: Path, protocol: Protocol, chance: tuple[int, SplitOptions]) -> Source:
    pieces = list(group_images(dict(content), path, Totals()))
    seed, options = chance
    return Source(
        path=str(path),
        images=tuple(piece.content["image"] for piece in pieces),
        annotations={piece.content["image"]["id"]: tuple(piece.content["annotations"]) for piece in pieces},
        classes=dict(categories_of(dict(content), path)),
        seed=seed,
        protocol=protocol,
        options=options,
    )


def _files(source: Source, parts: Parts, content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every annotation file of the split by its name in the new folder."""

    def file(images: Iterable[Row], rows: Iterable[Row]) -> dict[str, Any]:
        return {**content, "images": list(images), "annotations": list(rows)}

    def truth(images: Iterable[Row]) -> dict[str, Any]:
        ids = {image["id"] for image in images}
        kept = [image for image in source.images if image["id"] in ids]
        return file(kept, [row for image in kept for row in source.annotations[image["id"]]])

    files = {TRAIN_FILE: file(parts.images, parts.rows), TRUTH_FILE: truth(parts.images)}
    if parts.unlabelled:
        files[UNLABELLED_FILE] = file(parts.unlabelled, [])
        files[UNLABELLED_TRUTH_FILE] = truth(parts.unlabelled)
    amount = f"{source.protocol.amount:g}"
    if source.protocol.kind == "points":  # detectron2's PointSup; v1 is its first version, here seed 0
        files[f"annotations/instances_train_n{amount}_v{source.seed + 1}_without_masks.json"] = files[TRAIN_FILE]
    if parts.strong_ids is not None:  # PointWSSIS
        for path, strong in zip(weak_semi_files(amount), (True, False), strict=True):
            images = [image for image in parts.images if (image["id"] in parts.strong_ids) == strong]
            rows = [row for row in parts.rows if (row["image_id"] in parts.strong_ids) == strong]
            files[path] = file(images, rows)
    return files


def weak_semi_files(amount: str) -> tuple[str, str]:
    """Strong and weak images apart, under PointWSSIS's names."""
    return f"annotations/instances_train_{amount}p_s.json", f"annotations/instances_train_{amount}p_w.json"


def _summary(source: Source, parts: Parts, out: Path) -> SplitSummary:
    rows = [row for row in parts.rows if not row.get("iscrowd")]
    masks = sum(bool(row.get("segmentation")) for row in rows)
    partial = [row for row in rows if not row.get("segmentation")]
    return SplitSummary(
        protocol=source.protocol.name,
        seed=source.seed,
        out=out,
        images=len(parts.images),
        unlabelled_images=len(parts.unlabelled or ()),
        objects=len(rows),
        masks=masks,
        boxes=sum(bool(row.get("bbox")) for row in partial),
        points=sum(len(row.get("point_coords", ())) + bool(row.get("point")) for row in partial),
        noisy_points=parts.noisy_points,
        seconds=round(sum(map(row_seconds, rows)), 1),
        mask_classes=parts.mask_classes,
    )


def _record(source: Source, summary: SplitSummary) -> dict[str, Any]:
    options = {**dataclasses.asdict(source.options), "mix": dict(source.options.mix)}
    counts = {key: value for key, value in summary.to_json().items() if key != "out"}
    return {**counts, "source": source.path, "options": options}


def _data_splits(splits: Mapping[str, SplitFiles], parts: Parts, out: Path, amount: str) -> dict[str, dict[str, str]]:
    """The splits of data.yaml, paths relative to the new folder."""
    here = out.absolute().parent.resolve() / out.absolute().name

    def relative(path: Path) -> str:
        return Path(os.path.relpath(Path(path).resolve(), here)).as_posix()

    images = relative(splits["train"].images)
    named = {"train": {"annotations": TRAIN_FILE, "images": images, "truth": TRUTH_FILE}}
    if parts.strong_ids is not None:
        for name, path in zip(("strong", "weak"), weak_semi_files(amount), strict=True):
            named[name] = {"annotations": path, "images": images, "truth": TRUTH_FILE}
    if parts.unlabelled:
        named["unlabelled"] = {"annotations": UNLABELLED_FILE, "images": images, "truth": UNLABELLED_TRUTH_FILE}
    for name, files in splits.items():
        if name == "train":
            continue
        found = {"annotations": files.annotations, "images": files.images, "truth": files.truth}
        # A semi-supervised split has unlabelled images of its own; the source's stay available beside them.
        place = f"{name}_extra" if name in named else name
        named[place] = {key: relative(path) for key, path in found.items() if path is not None}
    return named
