"""Pseudo-masks for points: of every object that a person gave a point and a class, the mask that a network has for it.

One mask per point, of the person's class, however unsure the network is (PointWSSIS; see `labels.points` for the
published rule that merges some). Streams, resumes and is shared as `leanmask pseudo` is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from leanmask.data.files import read_json, write_json
from leanmask.data.layout import SplitFiles, locate_images
from leanmask.data.weak import read_weak
from leanmask.engine.distributed import start_processes
from leanmask.errors import ConfigError, RunError
from leanmask.inference.predict import Loaded, load, weights_path
from leanmask.inference.pseudo_masks import OnProgress, PseudoJob, Rows, make_pseudo_masks, plain_rle, read_rows
from leanmask.inference.refine import RefineOptions, find_refiner, load_refiner, refine
from leanmask.inference.shares import file_state, remove_parts, require_same_work
from leanmask.labels.points import holds_point, published_choice, twins
from leanmask.masks import encode_crop
from leanmask.options import check_fields, require_options
from leanmask.paths import as_path, settle_fields
from leanmask.supervision import PointAt

Row = dict[str, Any]
WEAK_FILE, ROUGH_FILE = "weak.json", "masks.json"  # in the folders of unfinished work


@dataclass(frozen=True)
class PointOptions:
    """rule: "one" mask per point, or "published" (NMS). complete: every object of these images has a point, so that
    with masks for all of them nothing else is there. images: their folder, None = found. refined: improve the masks by
    the refiner of the run, or by `refiner`, another run. point_at: where points are, None = as the network was told.
    Raises ConfigError for a rule or place that is none.
    """

    rule: Literal["one", "published"] = "one"
    complete: bool = True
    images: Path | None = None
    refined: bool = False
    refiner: Path | None = None
    point_at: PointAt | None = None

    def __post_init__(self) -> None:
        settle_fields(self, paths=("images", "refiner"))
        check_fields(self)


@dataclass(frozen=True)
class PointSummary:
    """What was written. masks: objects that got one. missed: masks that do not hold their point. twins: masks that are
    the same as another object's. merged: points without a mask of their own by the published rule.
    """

    out: Path
    images: int
    objects: int
    masks: int
    missed: int
    twins: int
    merged: int

    def to_json(self) -> Row:
        return {**dataclasses.asdict(self), "out": str(self.out)}

    def to_text(self) -> str:
        notes = [(self.missed, "masks do not hold their point"), (self.twins, "are the same as another object's")]
        notes += [(self.merged, "points were merged"), (self.objects - self.masks, "objects have no mask")]
        told = "; ".join(f"{count} {what}" for count, what in notes if count)
        return f"masks for {self.masks} points on {self.images} images: {self.out}" + (f" ({told})" if told else "")


def pseudo_points(
    run: str | Path,
    points: str | Path,
    out: str | Path,
    options: PointOptions = PointOptions(),
    *,
    on_progress: OnProgress | None = None,
) -> PointSummary:
    """Masks of the network `run` for the objects of the weak file `points` (any form that `data.weak` reads), as the
    COCO file `out`: the same images and objects, ids kept, each with segmentation, score, point and provenance, and
    `misses_point` or `same_as` (an annotation id) where that is so.

    Killed and called again with the same arguments, it goes on. Raises DataError for a file or class that cannot be
    used, ConfigError for a network that takes no points, RunError when `out` exists or unfinished work differs.
    """
    require_options(options, PointOptions)
    run, points, out = as_path(run), as_path(points), as_path(out)
    if out.exists():
        raise RunError(f"{out} exists already and is never overwritten; choose another name")
    if options.refiner is None and not options.refined:
        return _masks_for_points(Path(run), Path(points), out, options, on_progress)
    refiner = options.refiner or find_refiner(Path(run))
    read_weak(Path(points), load_refiner(refiner).classes)  # better said before the rough masks are made
    folder, state = out.with_name(f".{out.name}.rough"), start_processes()
    if state.is_main_process:
        require_same_work(folder, {**_told(Path(run), Path(points), options), "complete": options.complete})
    state.wait_for_everyone()
    rough = folder / ROUGH_FILE
    if not rough.exists():
        _masks_for_points(Path(run), Path(points), rough, options, on_progress)
    images = locate_images(points, options.images).images
    refine(rough, refiner, out, RefineOptions(images=images), on_progress=on_progress)
    if state.is_main_process:
        remove_parts(folder)
    state.wait_for_everyone()
    return _summary(out, read_json(out))


def _told(run: Path, points: Path, options: PointOptions) -> Row:
    """What masks for points depend on."""
    return {
        "weights": file_state(weights_path(run)),
        "points": file_state(points),
        "rule": options.rule,
        "point_at": options.point_at,
    }


def parts_folder(out: Path) -> Path:
    """Where the unfinished work for the file `out` is kept."""
    return out.with_name(f".{out.name}.parts")


def _masks_for_points(
    run: Path, points: Path, out: Path, options: PointOptions, on_progress: OnProgress | None
) -> PointSummary:
    state = start_processes()
    loaded = load(run, device=str(state.device))
    require_points(loaded, run)
    if options.point_at is not None:
        loaded.model.point_at = options.point_at
    files = locate_images(points, options.images)
    content = read_weak(points, loaded.classes)
    folder = parts_folder(out)
    if state.is_main_process:
        require_same_work(folder, _told(run, points, options))
        write_json(folder / WEAK_FILE, content, overwrite=True)
    state.wait_for_everyone()
    weak = {"weak": SplitFiles(folder / WEAK_FILE, files.images, None)}
    job = PseudoJob(weak, "weak", f"leanmask {run.resolve().name}", state.process_index, state.num_processes)
    try:
        make_pseudo_masks(loaded, job, folder, on_progress)
    except KeyboardInterrupt:
        raise RunError(f"stopped; {folder} keeps what is done, and the same command goes on from there") from None
    state.wait_for_everyone()
    if state.is_main_process:
        found = with_masks(content, read_rows(job.shares(folder)), options, job.provenance)
        write_json(out, found)
        remove_parts(folder)
    state.wait_for_everyone()
    return _summary(out, read_json(out))


def require_points(loaded: Loaded, run: Path) -> None:
    """Raise ConfigError when the network cannot be asked at points."""
    if not loaded.model.takes_points:
        raise ConfigError(
            f"{run} is a {loaded.config.model.name}, which finds masks for boxes, not for points; "  # type: ignore[attr-defined]
            "train a model that takes points (solov2)"
        )


def with_masks(content: Row, rows: Rows, options: PointOptions, provenance: str) -> Row:
    """The weak file with masks. Images whose objects all have one are exhaustive where `options.complete` says so; an
    object that gets none keeps its point, and its image is not exhaustive.
    """
    per_image: dict[Any, list[Row]] = {}
    for row in content["annotations"]:
        per_image.setdefault(row["image_id"], []).append(row)
    images, annotations = [], []
    for image in content["images"]:
        done = _image_rows(per_image.get(image["id"], []), rows, options.rule, provenance)
        whole = options.complete and all(row.get("segmentation") or row.get("iscrowd") for row in done)
        images.append({**image, "exhaustive": bool(done) and whole})
        annotations += done
    description = {"description": "masks for points", "provenance": provenance}
    return {**content, "info": description, "images": images, "annotations": annotations}


def _image_rows(objects: list[Row], rows: Rows, rule: str, provenance: str) -> list[Row]:
    found = [_with_mask(row, rows.get(row["id"]), provenance) for row in objects]
    masked = [place for place, row in enumerate(found) if row.get("segmentation")]
    masks = [found[place]["segmentation"] for place in masked]
    categories = [found[place]["category_id"] for place in masked]
    if rule == "published":
        scores = np.array([found[place]["score"] for place in masked])
        for place, kept in zip(masked, published_choice(masks, categories, scores), strict=True):
            if not kept:
                found[place] = {**objects[place], "merged": True}
        return found
    for place, twin in zip(masked, twins(masks, categories), strict=True):
        if twin is not None:
            found[place] = {**found[place], "same_as": found[masked[twin]]["id"]}
    return found


def _with_mask(row: Row, fields: Row | None, provenance: str) -> Row:
    if fields is None:
        return row
    if not (area := int(coco_mask.area(fields["segmentation"]))):
        fields, area = {**fields, "segmentation": _one_pixel(row["point"], fields["segmentation"]["size"])}, 1
    own = {"bbox": row.get("bbox") or coco_mask.toBbox(fields["segmentation"]).tolist(), "area": area, "iscrowd": 0}
    missed = {} if holds_point(fields["segmentation"], row["point"]) else {"misses_point": True}
    return {**row, **fields, **own, **missed, "weight": 1.0, "provenance": provenance}


def _one_pixel(point_xy: list[float], size: list[int]) -> Row:
    """A mask that is smaller than a pixel is the pixel of its point."""
    region = (int(point_xy[0]), int(point_xy[1]), 1, 1)
    return plain_rle(encode_crop(np.ones((1, 1), dtype=np.uint8), region, (size[0], size[1])))


def _summary(out: Path, content: Row) -> PointSummary:
    rows = [row for row in content["annotations"] if not row.get("iscrowd")]

    def count(field: str, among: Iterable[Row] = rows) -> int:
        return sum(bool(row.get(field)) for row in among)

    return PointSummary(
        out=out,
        images=len(content["images"]),
        objects=len(rows),
        masks=count("segmentation"),
        missed=count("misses_point"),
        twins=sum(row.get("same_as") is not None for row in rows),
        merged=count("merged"),
    )
