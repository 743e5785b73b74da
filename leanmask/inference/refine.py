"""Better masks from rough ones, whoever made them: every mask of a COCO file, refined around its point or its mass
centre. Streams, resumes and is shared as `leanmask pseudo` is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from leanmask.data.coco import AnnotationStore, ImageRecord
from leanmask.data.dataset import EvalDataset
from leanmask.data.files import read_json, write_json
from leanmask.data.layout import locate_images
from leanmask.data.loader import evaluation_batches
from leanmask.data.weak import read_published_predictions
from leanmask.data.withholding.clicks import rle_of
from leanmask.engine.distributed import start_processes
from leanmask.errors import ConfigError, DataError, RunError
from leanmask.evaluation.predictions import predict_views
from leanmask.inference.predict import Loaded, load, weights_path
from leanmask.inference.pseudo_masks import OnProgress, Rows, plain_rle, read_rows
from leanmask.inference.shares import Shares, file_state, remove_parts, require_same_work
from leanmask.labels.points import holds_point
from leanmask.masks import to_rles
from leanmask.options import FROM_ONE, check_fields, require_options
from leanmask.paths import as_path, settle_fields
from leanmask.records import Views
from leanmask.reports.folders import STAGES_FILE

Row = dict[str, Any]
HUMAN = "human"


@dataclass(frozen=True)
class RefineOptions:
    """images: the folder of the images, None = found. predicted_only: leave masks alone that a person drew (those whose
    provenance is missing or "human"). only: annotation ids of the masks that may be refined, None = any. like: a COCO
    file with the images and categories, for masks in the published predictions' format (.pth).
    """

    images: Path | None = None
    predicted_only: bool = False
    only: frozenset[int] | None = None
    like: Path | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        settle_fields(self, paths=("images", "like"))
        check_fields(self, batch_size=FROM_ONE)


@dataclass(frozen=True)
class RefineSummary:
    """What was written. objects: masks that were refined. iou_with_rough: mean IoU of refined with rough masks."""

    out: Path
    images: int
    objects: int
    iou_with_rough: float

    def to_json(self) -> Row:
        return {**dataclasses.asdict(self), "out": str(self.out)}

    def to_text(self) -> str:
        return (
            f"refined {self.objects} masks on {self.images} images (mean IoU with the rough ones "
            f"{self.iou_with_rough:.2f}): {self.out}"
        )


@dataclass(frozen=True)
class RoughSource:
    """Images of a store that have masks to refine, with these as rough masks and no other objects."""

    store: AnnotationStore
    indices: tuple[int, ...]
    chosen: frozenset[int]

    @staticmethod
    def of(store: AnnotationStore, chosen: frozenset[int]) -> RoughSource:
        """chosen: annotation ids."""
        indices = [i for i in range(len(store)) if any(item.id in chosen for item in store[i].objects)]
        return RoughSource(store, tuple(indices), chosen)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> ImageRecord:
        record = self.store[self.indices[index]]
        objects = [
            dataclasses.replace(item, rough=(item.segmentation,))
            for item in record.objects
            if item.id in self.chosen and item.segmentation is not None
        ]
        return dataclasses.replace(record, objects=tuple(objects))


def find_refiner(run: Path) -> Path:
    """The refiner among a run's stages. Raises RunError when it has none."""
    path = run / STAGES_FILE
    stages = json.loads(path.read_text(encoding="utf-8"))["stages"] if path.is_file() else []
    found = [run / stage["folder"] for stage in stages if stage["name"] == "refiner"]
    if not found or not (found[0] / "best.safetensors").is_file():
        raise RunError(
            f"{run} has no trained refiner; name one with --refiner, or train with --method pointwssis and "
            "method.refine=true"
        )
    return found[0]


def refine(
    masks: str | Path,
    refiner: str | Path,
    out: str | Path,
    options: RefineOptions = RefineOptions(),
    *,
    on_progress: OnProgress | None = None,
) -> RefineSummary:
    """Refine the masks of the COCO file `masks` (or of a published prediction file, .pth) by a trained mask_refine
    network, or by the refiner of a PointWSSIS run; writes the COCO file `out`.

    Rows keep everything they have but segmentation, area, box and score; provenance says who refined, `misses_point`
    whether the refined mask does not hold its point. A rough mask that holds its point stays where the refined one ends
    short of it. Killed and called again it goes on. Raises DataError for files or classes that cannot be used,
    ConfigError for a run of another model, RunError when `out` exists.
    """
    require_options(options, RefineOptions)
    masks, out, refiner, state = as_path(masks), as_path(out), as_path(refiner), start_processes()
    if out.exists():
        raise RunError(f"{out} exists already and is never overwritten; choose another name")
    loaded = load_refiner(refiner)
    folder = out.with_name(f".{out.name}.parts")
    if state.is_main_process:
        told = {"weights": file_state(weights_path(_refiner_run(refiner))), "masks": file_state(Path(masks))}
        only = None if options.only is None else sorted(options.only)
        require_same_work(folder, {**told, "predicted_only": options.predicted_only, "choice of masks": only})
    state.wait_for_everyone()
    source = _as_coco(Path(masks), options, folder)
    content = read_json(source)
    chosen = frozenset(row["id"] for row in content["annotations"] if _wanted(row, options))
    if not chosen:
        raise DataError(f"{masks} has no mask to refine")
    shares = Shares(folder, state.process_index, state.num_processes)
    images = locate_images(Path(options.like or masks), options.images).images
    store = AnnotationStore.open(source, images, unannotated="unlabelled", classes=loaded.classes)
    try:
        _refine_share(loaded, RoughSource.of(store, chosen), shares, options, on_progress)
    except KeyboardInterrupt:
        raise RunError(f"stopped; {folder} keeps what is done, and the same command goes on from there") from None
    state.wait_for_everyone()
    rows = read_rows(shares)
    if state.is_main_process:
        write_json(out, with_refined(content, rows, f"refined by leanmask {refiner.resolve().name}"))
    state.wait_for_everyone()
    if state.is_main_process:
        remove_parts(folder)
    return _summary(out, content, rows)


def load_refiner(refiner: Path) -> Loaded:
    """The network of a training of mask_refine, or of a PointWSSIS run's refiner. Raises ConfigError where it is none,
    RunError where the run has none.
    """
    loaded = load(_refiner_run(refiner), device=str(start_processes().device))
    if not loaded.model.needs_rough:
        raise ConfigError(f"{refiner} refines no masks; name a training of mask_refine, or of --method pointwssis")
    return loaded


def _refiner_run(run: Path) -> Path:
    return find_refiner(run) if (run / STAGES_FILE).is_file() else run


def _as_coco(masks: Path, options: RefineOptions, folder: Path) -> Path:
    if masks.suffix != ".pth":
        return masks
    if options.like is None:
        raise ConfigError(f"{masks} does not say images and classes; name a COCO file that does (--like FILE)")
    path = folder / "masks.json"
    if start_processes().is_main_process:
        write_json(path, read_published_predictions(masks, options.like), overwrite=True)
    start_processes().wait_for_everyone()
    return path


def _wanted(row: Row, options: RefineOptions) -> bool:
    if not row.get("segmentation") or row.get("iscrowd"):
        return False
    predicted = row.get("provenance", HUMAN) != HUMAN
    return (predicted or not options.predicted_only) and (options.only is None or row["id"] in options.only)


def _refine_share(
    loaded: Loaded, source: RoughSource, shares: Shares, options: RefineOptions, on_progress: OnProgress | None
) -> None:
    dataset, done = EvalDataset(source, loaded.config.data), shares.done()
    workers = loaded.config.data.workers
    batches = evaluation_batches(dataset, options.batch_size, shares.rank, shares.world, workers, skip=done)
    for count in shares.append(_refined(loaded, views) for views in batches):
        done += count
        if on_progress:
            on_progress(min(done * shares.world, len(dataset)), len(dataset))


def _refined(loaded: Loaded, views: Views) -> Iterator[Rows]:
    """For every image, what its objects get: `segmentation` (RLE, image frame) and `score`."""
    found = predict_views(loaded.model, views, loaded.device, loaded.precision)
    for frame, instances in zip(views.frames, found, strict=True):
        ids, masks, scores = instances.ids, instances.masks, instances.scores
        assert ids is not None, "objects of a file have ids"
        assert masks is not None, "refined objects have masks"
        assert scores is not None, "refined objects have scores"
        parts = zip(ids.tolist(), to_rles(masks, frame), scores.tolist(), strict=True)
        yield {key: {"segmentation": plain_rle(rle), "score": round(score, 4)} for key, rle, score in parts}


def with_refined(content: Row, rows: Rows, note: str) -> Row:
    """The file with refined masks; an object keeps its own where the refined one has no pixel, or ends short of a point
    that its own holds.
    """
    return {**content, "annotations": [_with_refined(row, rows.get(row["id"]), note) for row in content["annotations"]]}


def _with_refined(row: Row, fields: Row | None, note: str) -> Row:
    if fields is None or not (area := int(coco_mask.area(fields["segmentation"]))):
        return row
    if "point" in row and _left_behind(row, fields["segmentation"]):
        return row
    kept = {key: value for key, value in row.items() if key not in ("misses_point", "same_as")}
    box = coco_mask.toBbox(fields["segmentation"]).tolist()
    provenance = f"{row.get('provenance', HUMAN)}, {note}"
    told = {**fields, "area": area, "bbox": box, "provenance": provenance, "weight": row.get("weight", 1.0)}
    missed = "point" in row and not holds_point(fields["segmentation"], row["point"])
    return {**kept, **told, **({"misses_point": True} if missed else {})}


def _left_behind(row: Row, refined: Row) -> bool:
    """Whether the point of an object, which its rough mask holds, lies beyond the refined mask's box. A point in the
    box that the mask does not hold is none: the mass centre of a ring lies in its hole.
    """
    x, y, width, height = coco_mask.toBbox(refined).tolist()
    near = x <= row["point"][0] <= x + width and y <= row["point"][1] <= y + height
    return not near and holds_point(rle_of(row, tuple(refined["size"])), row["point"])


def _summary(out: Path, content: Row, rows: Rows) -> RefineSummary:
    ious, images = [], set()
    for row in content["annotations"]:
        if row["id"] in rows:
            images.add(row["image_id"])
            refined = rows[row["id"]]["segmentation"]
            ious.append(float(coco_mask.iou([refined], [rle_of(row, tuple(refined["size"]))], [0])[0, 0]))
    return RefineSummary(out, len(images), len(rows), round(float(np.mean(ious)), 4) if ious else 0.0)
