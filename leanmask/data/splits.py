"""Makes a partly labelled data set from a fully labelled one, by any protocol of the benchmark, and a validation
split of one that has none; what is taken away is kept apart as truth, to measure pseudo-labels against.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from leanmask.data.annotation import Row, is_object
from leanmask.data.files import write_json
from leanmask.data.formats import read_instances
from leanmask.data.grouping import Totals, categories_of, group_images
from leanmask.data.hold_out import HeldOut, hold_out
from leanmask.data.layout import SplitFiles, locate
from leanmask.data.new_folder import new_folder, require_new
from leanmask.data.withholding.protocols import FORMS, Parts, Protocol, Source, SplitOptions, parse_protocol
from leanmask.data.withholding.withhold import row_seconds, withhold
from leanmask.errors import ConfigError, DataError
from leanmask.options import require_options
from leanmask.paths import as_path

__all__ = ["FORMS", "SplitOptions", "SplitSummary", "parse_protocol", "split"]

TRAIN_FILE = "annotations/instances_train.json"
VAL_FILE = "annotations/instances_val.json"
TRUTH_FILE = "truth/instances_train.json"
UNLABELLED_FILE = "annotations/instances_unlabelled.json"
UNLABELLED_TRUTH_FILE = "truth/instances_unlabelled.json"
AS_LABELLED = Protocol("as labelled", "labelled")  # nothing is taken away


@dataclass(frozen=True)
class SplitSummary:
    """What a split holds. masks, boxes: objects with a mask, and with a box but no mask; points: classified points and
    single points; seconds: annotation time by Pointly-Supervised's prices; mask_classes: of `partial`, the classes
    with masks. Crowds are counted nowhere. val_images: those put aside to measure on. notes: what is unusual about
    them.
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
    val_images: int = 0
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        lists = {"mask_classes": list(self.mask_classes), "notes": list(self.notes)}
        return {**dataclasses.asdict(self), "out": str(self.out), **lists}

    def to_text(self) -> str:
        unlabelled = f" and {self.unlabelled_images} unlabelled ones" if self.unlabelled_images else ""
        wrong = f" ({self.noisy_points} wrong)" if self.noisy_points else ""
        kinds = f"{self.masks} masks, {self.boxes} boxes without mask, {self.points} points{wrong}"
        val = f" and {self.val_images} to measure on (val)" if self.val_images else ""
        text = (
            f"{self.protocol}, seed {self.seed}, in {self.out}: {self.images} images{unlabelled}{val}, "
            f"{self.objects} objects with {kinds}; {self.seconds:.0f} annotation seconds"
        )
        if self.protocol == AS_LABELLED.name:
            text = f"{self.images} images to train on, with {self.objects} objects ({kinds}){val}: {self.out}"
        return "\n".join([text, *self.notes])


def split(
    data: str | Path,
    out: Path,
    protocol: str | None = None,
    *,
    val: float | None = None,
    seed: int = 0,
    options: SplitOptions | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> SplitSummary:
    """Write the split to the new folder `out`; images are referred to, not copied.

    data: a data set with a split "train", fully labelled where a protocol takes labels away; its other splits are named
    in the new data.yaml as they are. protocol: full, sparse-R, points-N, boxes, semi-P, weak-semi-P, partial or mixed-T
    (docs/benchmark.md). val: the share (0-1) of the labelled images that becomes the split "val", see `hold_out`; the
    protocol takes from the rest. One of the two is needed. on_progress: called with images compared and in all.

    Writes annotations/instances_train.json, truth/instances_train.json (complete; with a protocol), for semi-P and
    mixed-T the same two for "unlabelled", for `val` annotations/instances_val.json, files under the published names for
    points-N and weak-semi-P, data.yaml and split.json. Raises ConfigError for a share that cannot be, DataError for an
    unknown protocol, missing labels or a "val" that is there, RunError when `out` is not new.
    """
    if options is not None:
        require_options(options, SplitOptions)
    if protocol is None and val is None:
        raise ConfigError("say what to make: a protocol, or val, the share of the images to measure on")
    if protocol is None and options not in (None, SplitOptions()):
        raise ConfigError("options say how labels are taken away, and without a protocol none are; name one")
    parsed = AS_LABELLED if protocol is None else parse_protocol(protocol)
    options = options or SplitOptions()
    out = as_path(out)
    require_new(out)
    splits = locate(data)
    if "train" not in splits or splits["train"].annotations is None:
        raise DataError(f"{data} has no split 'train' with annotations; found: {', '.join(splits) or 'nothing'}")
    if val is not None and "val" in splits:
        raise DataError(
            f"{data} has a split 'val' already ({splits['val'].annotations or splits['val'].images}); to make another, "
            f"name its training file alone: leanmask split {splits['train'].annotations} OUT --val SHARE"
        )
    content = read_instances(splits["train"].annotations)
    held: HeldOut | None = None
    if val is not None:
        checked = _source(content, splits["train"].annotations, parsed, (seed, options))
        whole = {**content, "images": list(checked.images)}
        held = hold_out(whole, splits["train"].images, val, seed, on_progress)
        content = {**content, "images": held.train_images, "annotations": held.train}
    source = _source(content, splits["train"].annotations, parsed, (seed, options))
    parts = Parts(source.images, tuple(content["annotations"])) if parsed is AS_LABELLED else withhold(source)
    summary = _summary(source, parts, Path(out), held)
    with new_folder(Path(out)) as folder:
        for name, found in _files(source, parts, content).items():
            write_json(folder / name, found)
        if held is not None:
            write_json(folder / VAL_FILE, {**content, "images": held.val_images, "annotations": held.val})
        write_json(folder / "split.json", _record(source, summary))
        named = _data_splits(splits, parts, Path(out), source.protocol)
        if held is not None:
            named["val"] = {"annotations": VAL_FILE, "images": named["train"]["images"]}
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

    files = {TRAIN_FILE: file(parts.images, parts.rows)}
    if source.protocol is AS_LABELLED:
        return files
    files[TRUTH_FILE] = truth(parts.images)
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


def _summary(source: Source, parts: Parts, out: Path, held: HeldOut | None) -> SplitSummary:
    rows = [row for row in parts.rows if is_object(row)]
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
        val_images=len(held.val_images) if held else 0,
        notes=held.notes if held else (),
    )


def _record(source: Source, summary: SplitSummary) -> dict[str, Any]:
    options = {**dataclasses.asdict(source.options), "mix": dict(source.options.mix)}
    counts = {key: value for key, value in summary.to_json().items() if key != "out"}
    return {**counts, "source": source.path, "options": options}


def _data_splits(
    splits: Mapping[str, SplitFiles], parts: Parts, out: Path, protocol: Protocol
) -> dict[str, dict[str, str]]:
    """The splits of data.yaml, paths relative to the new folder."""
    here = out.absolute().parent.resolve() / out.absolute().name

    def relative(path: Path) -> str:
        return Path(os.path.relpath(Path(path).resolve(), here)).as_posix()

    images = relative(splits["train"].images)
    named = {"train": {"annotations": TRAIN_FILE, "images": images, "truth": TRUTH_FILE}}
    if protocol is AS_LABELLED:
        named["train"] = {"annotations": TRAIN_FILE, "images": images}
        if (known := splits["train"].truth) is not None:
            named["train"]["truth"] = relative(known)
    if parts.strong_ids is not None:
        for name, path in zip(("strong", "weak"), weak_semi_files(f"{protocol.amount:g}"), strict=True):
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
