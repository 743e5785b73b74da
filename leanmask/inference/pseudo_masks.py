"""Pseudo-masks for a person's boxes: a copy of a training set in which every object that has a box but no mask gets the
network's mask. What it writes is an ordinary COCO data set that a person can open and correct.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pycocotools import mask as coco_mask

from leanmask.data.coco import AnnotationStore
from leanmask.data.dataset import EvalDataset
from leanmask.data.files import read_json, write_atomically, write_json
from leanmask.data.layout import SplitFiles
from leanmask.data.loader import evaluation_batches
from leanmask.data.views.augment import fitted_frame
from leanmask.evaluation.pseudo_quality import PseudoImage, pseudo_quality
from leanmask.inference.predict import Loaded
from leanmask.inference.shares import Shares
from leanmask.labels.boxes import boxes_without_mask
from leanmask.labels.masks import mask_certainty
from leanmask.labels.points import never_empty, points_alone
from leanmask.masks import Grids, Rles, to_rles
from leanmask.records import Instances, Views

OnProgress = Callable[[int, int], None]
Rows = dict[int, dict[str, Any]]  # annotation id -> the fields that an object gets

DATA_FILE, QUALITY_FILE = "data.yaml", "quality.json"


@dataclass(frozen=True)
class PseudoJob:
    """What is to be labelled, and by whom. splits: the user's, by name; `train` is the one that gets masks. provenance:
    what every pseudo-mask says of its origin. rank, world: this process and how many share the work. by_point: ask for
    all objects, also those that have a mask, as if each were known by its point alone.
    """

    splits: dict[str, SplitFiles]
    train: str
    provenance: str
    rank: int = 0
    world: int = 1
    by_point: bool = False

    def shares(self, out: Path) -> Shares:
        return Shares(out, self.rank, self.world)


def make_pseudo_masks(loaded: Loaded, job: PseudoJob, out: Path, on_progress: OnProgress | None = None) -> None:
    """Predict this process's share of the masks into `out`, image by image; goes on where it was killed."""
    dataset = EvalDataset(_store(loaded, job), loaded.config.data)
    shares = job.shares(out)
    done = shares.done()
    batches = evaluation_batches(
        dataset, loaded.config.evaluation.batch_size, job.rank, job.world, loaded.config.data.workers, skip=done
    )
    if job.by_point:
        batches = (dataclasses.replace(views, targets=points_alone(views.targets)) for views in batches)
    for count in shares.append(predict_masks(loaded, views) for views in batches):
        done += count
        if on_progress:
            on_progress(min(done * job.world, len(dataset)), len(dataset))


def predict_masks(loaded: Loaded, views: Views) -> Iterator[Rows]:
    """For every image, what the objects without a mask get: `segmentation` (RLE, image frame) and `score` (mean
    probability inside the mask). Objects without a box get one when the network takes points and they have one.
    """
    moved = views.to(loaded.device)
    proposals, lacking = boxes_without_mask(moved.targets, points=loaded.model.takes_points)
    lower = loaded.precision == "bf16"
    with torch.inference_mode(), torch.autocast(loaded.device.type, torch.bfloat16, enabled=lower):
        predicted = loaded.model.predict_masks(moved.weak, proposals, fine=True)
    values = predicted.of_category().float().sigmoid()
    counts = [len(instances) for instances in lacking]
    parts = zip(views.frames, lacking, values.split(counts), predicted.boxes.split(counts), strict=True)
    for frame, instances, grids, boxes in parts:
        assert instances.ids is not None, "objects of a file have ids"
        shown = torch.where(instances.boxes.isnan().any(1)[:, None, None], never_empty(grids), grids)
        masks = to_rles(Grids(shown, boxes), frame)
        scores = mask_certainty(grids).tolist()
        yield {
            key: {"segmentation": plain_rle(rle), "score": round(score, 4)}
            for key, rle, score in zip(instances.ids.tolist(), masks, scores, strict=True)
        }


def finish_pseudo_masks(loaded: Loaded, job: PseudoJob, out: Path) -> dict[str, Any] | None:
    """Join all shares into a data set in `out`, measure it against the hidden truth where there is one, and return the
    quality. The file data.yaml is written last: a folder that has it is complete.
    """
    rows = read_rows(job.shares(out))
    files = job.splits[job.train]
    assert files.annotations is not None
    content = read_json(files.annotations)
    own = {"weight": 1.0, "provenance": job.provenance}  # the box is a person's, so the object counts fully
    seen = {key for key, fields in rows.items() if coco_mask.area(fields["segmentation"]) > 0}
    content["annotations"] = [
        {**row, **rows[row["id"]], **own} if row["id"] in seen else row for row in content["annotations"]
    ]
    named = SplitFiles(out / f"instances_{job.train}.json", files.images, files.truth)
    write_json(out / f"instances_{job.train}.json", content, overwrite=True)
    quality = None
    if files.truth is not None:
        images = _pseudo_images(content, rows, loaded.config.data.image_size)
        quality = pseudo_quality(images, files.truth, loaded.classes.ids).to_json()
        write_json(out / QUALITY_FILE, quality, overwrite=True)
    write_data({**job.splits, job.train: named}, out)
    job.shares(out).remove()
    return quality


def read_rows(shares: Shares) -> Rows:
    """What all processes have predicted."""
    rows: Rows = {}
    for image in shares.read():
        rows |= {int(key): fields for key, fields in image.items()}
    return rows


def _store(loaded: Loaded, job: PseudoJob) -> AnnotationStore:
    files = job.splits[job.train]
    unannotated = loaded.config.data.unannotated
    return AnnotationStore.open(files.annotations, files.images, unannotated=unannotated, classes=loaded.classes)


def plain_rle(rle: dict[str, Any]) -> dict[str, Any]:
    """An RLE as JSON has it."""
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def _pseudo_images(content: dict[str, Any], rows: Rows, side_px: int) -> Iterator[PseudoImage]:
    per_image: dict[Any, list[int]] = {}
    for row in content["annotations"]:
        if row["id"] in rows:
            per_image.setdefault(row["image_id"], []).append(row["id"])
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for image_id, ids in per_image.items():
        count = len(ids)
        instances = Instances(
            boxes=torch.full((count, 4), float("nan")),
            categories=torch.zeros(count, dtype=torch.int64),
            supervision=torch.zeros(count, dtype=torch.int64),
            weights=torch.ones(count),
            masks=Rles(tuple(rows[key]["segmentation"] for key in ids)),
            ids=torch.tensor(ids),
        )
        yield PseudoImage(image_id, instances, fitted_frame(sizes[image_id], side_px), frozenset(ids))


def write_data(splits: Mapping[str, SplitFiles], out: Path) -> None:
    """The data.yaml of a data set in `out`, paths relative to it; written last, it says that the folder is complete."""
    named = {}
    for name, files in splits.items():
        found = {"annotations": files.annotations, "images": files.images, "truth": files.truth}
        named[name] = {
            key: Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
            for key, path in found.items()
            if path is not None
        }
    text = yaml.safe_dump({"splits": named}, sort_keys=False, allow_unicode=True)
    write_atomically(out / DATA_FILE, text.encode(), overwrite=True)
