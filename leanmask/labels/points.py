"""What a point says of a mask, and which masks of points are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from leanmask.geometry import FloatArray
from leanmask.masks import Crops
from leanmask.records import Instances, Supervision, Target
from leanmask.rle import Rle, rle_crop

MERGE_IOU = 0.5


def points_alone(targets: Sequence[Target]) -> tuple[Target, ...]:
    """The same objects as if each were known by its point alone: no masks, no boxes."""
    return tuple(dataclasses.replace(target, instances=_bare(target)) for target in targets)


def _bare(target: Target) -> Instances:
    instances = target.instances
    return instances.replace(
        supervision=torch.full_like(instances.supervision, int(Supervision.POINT)),
        boxes=torch.full_like(instances.boxes, torch.nan),
        masks=Crops.none(len(instances)).to(instances.boxes.device),
    )


def never_empty(values: Tensor) -> Tensor:
    """Probabilities (K, h, w) of masks for points: where no cell is above 0.5, scaled so that those above half of the
    highest one are, because there is an object at every point, however faintly it is seen.
    """
    highest = values.amax((1, 2), keepdim=True)
    return torch.where(highest > 0.5, values, values / highest.clamp(min=1e-12) * (1 - 1e-6))


def holds_point(rle: Rle, point_xy: Sequence[float]) -> bool:
    """Whether a mask of the image frame covers the pixel that a point, continuous xy, lies on."""
    height, width = rle["size"]
    x, y = min(int(point_xy[0]), width - 1), min(int(point_xy[1]), height - 1)
    return bool(rle_crop(rle, (x, y, 1, 1))[0, 0])


def published_choice(masks: Sequence[Rle], categories: Sequence[int], scores: FloatArray) -> list[bool]:
    """Which masks of one image are left after PointWSSIS's mask NMS: best score first, a mask goes when its IoU with a
    better one of its class is above 0.5. So two points whose masks meet have one mask together.
    """
    kept = [False] * len(masks)
    if not masks:
        return kept
    overlap = np.asarray(coco_mask.iou(list(masks), list(masks), [0] * len(masks)))
    for place in np.argsort(-scores, kind="stable").tolist():
        rivals = [other for other in range(len(masks)) if kept[other] and categories[other] == categories[place]]
        kept[place] = all(overlap[place, other] <= MERGE_IOU for other in rivals)
    return kept


def twins(masks: Sequence[Rle], categories: Sequence[int]) -> list[int | None]:
    """For each mask of one image the first one of its class that is the same pixel by pixel, None for the first itself:
    points of one class in one cell get one mask twice.
    """
    seen: dict[tuple[int, bytes | str], int] = {}
    found: list[int | None] = []
    for place, (mask, category) in enumerate(zip(masks, categories, strict=True)):
        first = seen.setdefault((category, mask["counts"]), place)
        found.append(None if first == place else first)
    return found
