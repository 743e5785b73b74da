"""Which anchors or proposals learn from which object, when not everything is labelled.

Letters: A anchors or proposals of one image, N labelled objects, R ignore regions. An assignment is (A,) int64: the
object's index, BACKGROUND, or IGNORED.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.ops import box_iou

from leanmask.records import Target

BACKGROUND, IGNORED = -1, -2
OVERLAP_FRACTION = 0.5  # share of its own area with which a box counts as lying inside a region


@dataclass(frozen=True)
class Thresholds:
    """IoU from which a box is positive, below which it is background, and whether every object gets its best box."""

    positive: float
    background: float
    keep_best: bool = False


def assign(boxes: Tensor, target: Target, thresholds: Thresholds) -> Tensor:
    """Assign (A, 4) xyxy boxes of one image to its objects; returns (A,) indices into `target.instances`.

    Trusted objects (weight above 0, box known) are matched by IoU, as in Faster R-CNN. What would then be background
    is left out (IGNORED) where it may hold an object: more than half inside an ignore region or the box of an object of
    weight 0, around the point of an object without a box, and, where the image is not exhaustively labelled,
    everywhere but (more than half) inside the box of a trusted object, where other labels would have been seen.
    """
    instances = target.instances
    usable = has_box(target)
    trusted = torch.nonzero(usable & (instances.weights > 0))[:, 0]
    doubtful = instances.boxes[usable & (instances.weights <= 0)]
    assigned = _match(boxes, instances.boxes[trusted], thresholds)
    background = assigned == BACKGROUND
    left_out = inside(boxes, target.ignore)
    left_out |= inside(boxes, doubtful) | _close(boxes, doubtful, thresholds.background)
    left_out |= _around_points(boxes, target, ~usable)
    if not target.exhaustive or may_be_anywhere(target, ~usable):
        left_out |= ~inside(boxes, instances.boxes[trusted])
    assigned = torch.where(background & left_out, IGNORED, assigned)
    if len(trusted) == 0:
        return assigned
    return torch.where(assigned >= 0, trusted[assigned.clamp(min=0)], assigned)


def has_box(target: Target) -> Tensor:
    """(N,) bool: the object's box is known and has an area."""
    boxes = target.instances.boxes
    return boxes.isfinite().all(1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def inside(boxes: Tensor, regions: Tensor) -> Tensor:
    """(A,) bool: more than half of the box's own area lies in one of the (R, 4) regions."""
    if len(regions) == 0:
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    corner = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    size = (torch.minimum(boxes[:, None, 2:], regions[None, :, 2:]) - corner).clamp(min=0)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return (size.prod(2) > OVERLAP_FRACTION * area[:, None]).any(1)


def sample(assignments: Sequence[Tensor], sampler: BalancedPositiveNegativeSampler) -> list[Tensor]:
    """Per image, the sorted indices of a random, balanced choice of positives and background boxes."""
    labels = [(assigned + 1).clamp(min=-1).clamp(max=1) for assigned in assignments]
    positive, negative = sampler(labels)
    return [torch.nonzero(p | n)[:, 0] for p, n in zip(positive, negative, strict=True)]


def of_object(fields: Sequence[Tensor], image_index: Tensor, object_index: Tensor) -> Tensor:
    """Look up one field of the objects of all images, (N_i, ...) each, for K pairs of indices; returns (K, ...)."""
    sizes = torch.tensor([0, *(len(field) for field in fields)], device=object_index.device)
    return torch.cat(list(fields))[sizes.cumsum(0)[image_index] + object_index]


def _match(boxes: Tensor, objects: Tensor, thresholds: Thresholds) -> Tensor:
    if len(objects) == 0:
        return torch.full((len(boxes),), BACKGROUND, dtype=torch.int64, device=boxes.device)
    overlap = box_iou(objects, boxes)
    best, index = overlap.max(dim=0)
    matched = torch.where(
        best < thresholds.background, BACKGROUND, torch.where(best < thresholds.positive, IGNORED, index)
    )
    if thresholds.keep_best:
        highest = overlap.max(dim=1, keepdim=True).values
        wanted = ((overlap == highest) & (highest > 0)).any(0)
        matched = torch.where(wanted, index, matched)
    return matched


def _close(boxes: Tensor, objects: Tensor, threshold: float) -> Tensor:
    if len(objects) == 0:
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    return (box_iou(objects, boxes) >= threshold).any(0)


def _around_points(boxes: Tensor, target: Target, without_box: Tensor) -> Tensor:
    instances = target.instances
    if instances.points is None or instances.point_labels is None or not bool(without_box.any()):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    points = instances.points[without_box][instances.point_labels[without_box] == 1]
    x, y = points[:, 0], points[:, 1]
    contains = (boxes[:, 0:1] <= x) & (x <= boxes[:, 2:3]) & (boxes[:, 1:2] <= y) & (y <= boxes[:, 3:4])
    return contains.any(1)


def may_be_anywhere(target: Target, without_box: Tensor) -> bool:
    """Whether some object of `without_box` (N,) has neither box nor point, so that no place is surely background."""
    instances = target.instances
    if instances.points is None or instances.point_labels is None:
        return bool(without_box.any())
    return bool((without_box & ~(instances.point_labels == 1).any(1)).any())
