"""How good the masks of known objects are: mean IoU with their true masks, overall and by the objects' size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from leanmask.errors import DataError
from leanmask.evaluation.coco_files import CocoTruth, Row

SIZES = ("small", "medium", "large")  # thirds of the objects, by the area of the true mask
RIGHT_IOU = 0.5


@dataclass(frozen=True)
class MaskQuality:
    """mask_iou: mean over the objects, one without a mask counts 0. precision: share of the masks with IoU of at least
    0.5; recall: the same of all objects. missed_point: share of the masks that are marked to miss their point. by_size:
    mean IoU of each third of the objects by true area, with the least and largest area, pixels. count: masks. NaN where
    there is nothing to take the mean of.
    """

    mask_iou: float
    precision: float
    recall: float
    missed_point: float
    by_size: dict[str, dict[str, float]]
    count: int

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON; undefined numbers are null."""
        shares = {name: getattr(self, name) for name in ("mask_iou", "precision", "recall", "missed_point")}
        known = {name: None if math.isnan(value) else value for name, value in shares.items()}
        return {**known, "by_size": self.by_size, "count": self.count}


def mask_quality(rows: Iterable[Row], truth: Path | Row | CocoTruth) -> MaskQuality:
    """Quality of annotations (image frame) whose ids are those of the truth's. Raises DataError for an id that it does
    not have.
    """
    truth = CocoTruth.open(truth)
    per_image: dict[Any, list[Row]] = {}
    for row in rows:
        per_image.setdefault(row["image_id"], []).append(row)
    ious, areas, masks, missed = [], [], 0, 0
    for image_id, own in per_image.items():
        known = {row["id"]: row for row in truth.by_image.get(image_id, [])}
        for row in own:
            if row["id"] not in known:
                raise DataError(f"{truth.name} has no object with annotation id {row['id']} in image {image_id!r}")
        true = truth.rles([known[row["id"]] for row in own])[0]
        for row, mask in zip(own, true, strict=True):
            found = row.get("segmentation")
            areas.append(int(coco_mask.area(mask)))
            ious.append(float(coco_mask.iou([found], [mask], [0])[0, 0]) if found else 0.0)
            masks, missed = masks + bool(found), missed + bool(row.get("misses_point"))
    right = sum(iou >= RIGHT_IOU for iou in ious)
    return MaskQuality(
        mask_iou=float(np.mean(ious)) if ious else math.nan,
        precision=right / masks if masks else math.nan,
        recall=right / len(ious) if ious else math.nan,
        missed_point=missed / masks if masks else math.nan,
        by_size=_by_size(ious, areas),
        count=masks,
    )


def _by_size(ious: Sequence[float], areas: Sequence[int]) -> dict[str, dict[str, float]]:
    order = np.argsort(areas, kind="stable")
    found = {}
    for name, part in zip(SIZES, np.array_split(order, len(SIZES)), strict=True):
        if len(part):
            own = [areas[i] for i in part]
            mean = float(np.mean([ious[i] for i in part]))
            found[name] = {"mask_iou": mean, "least_area_px": float(min(own)), "largest_area_px": float(max(own))}
    return found
