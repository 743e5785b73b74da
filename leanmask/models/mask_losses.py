"""The mask loss that every box-based model shares: ragged mask crops sampled on each proposal's grid, and classified
points read off the grid.

Letters: K proposals, N objects of one image, P points, S cells along one side of the grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from leanmask.distributed import global_mean
from leanmask.masks import Crops, Masks
from leanmask.models.base import grid_losses
from leanmask.models.matching import of_object
from leanmask.models.points import PointTargets, point_losses, sample_grids
from leanmask.models.pooling import Axis, Window, axis_weights
from leanmask.records import MaskPredictions, Supervision, Target

PointMean = Literal["all", "inside"]
MaskMean = Literal["taught", "positives"]


class Matched(Protocol):
    """K boxes (K, 4) xyxy, and which image (K,) and object of it (K,) each belongs to."""

    @property
    def boxes(self) -> Tensor: ...

    @property
    def image_index(self) -> Tensor: ...

    @property
    def object_index(self) -> Tensor: ...


@dataclass(frozen=True)
class MaskGrid:
    """How masks are sampled: an S x S grid over each box of a canvas (height, width) in pixels; `aligned` as in
    pooling.Axis. point_mean: what the loss of classified points is a mean over, see `annotated_points`. mask_mean: what
    the mask loss is a mean over, see `mask_loss`. point_weight: of a proposal whose object has points, over one whose
    object has a mask.
    """

    size: int
    canvas: tuple[int, int]
    aligned: bool = False
    point_mean: PointMean = "all"
    mask_mean: MaskMean = "taught"
    point_weight: float = 1.0


def sample_masks(crops: Crops, object_index: Tensor, boxes: Tensor, grid: MaskGrid) -> Tensor:
    """(K, S, S) float32: mask `object_index[k]` (K,) averaged over the cells of box k (K, 4) xyxy, in network frame.

    The numbers of `torchvision.ops.roi_align(masks, ..., sampling_ratio=-1)` on dense masks, without making them dense:
    two matrix products per object and no loop over proposals. A mask that does not exist is 0 everywhere.
    """
    result = torch.zeros(len(boxes), grid.size, grid.size, device=boxes.device)
    regions = crops.regions[object_index]
    x0, y0, x1, y1 = boxes.float().unbind(1)
    if len(boxes) == 0 or crops.data.numel() == 0:
        return result
    height, width = grid.canvas
    down = Window(regions[:, 1], int(regions[:, 3].max()))
    across = Window(regions[:, 0], int(regions[:, 2].max()))
    rows = axis_weights(y0, y1, Axis(grid.size, height, aligned=grid.aligned), down)
    columns = axis_weights(x0, x1, Axis(grid.size, width, aligned=grid.aligned), across)
    order = object_index.argsort(stable=True)
    counts = torch.bincount(object_index, minlength=len(crops)).tolist()
    for crop, chosen in zip(crops, order.split(counts), strict=True):
        h, w = crop.shape
        if len(chosen) and h * w:
            with torch.autocast(boxes.device.type, enabled=False):
                strips = rows[chosen, :, :h].flatten(0, 1) @ crop.to(rows)
                result[chosen] = strips.view(-1, grid.size, w) @ columns[chosen, :, :w].transpose(1, 2)
    return result


def mask_targets(predictions: MaskPredictions, targets: Sequence[Target], grid: MaskGrid) -> tuple[Tensor, Tensor]:
    """Targets (K, S, S) and weights (K, S, S) for predictions whose objects all have a mask.

    The weight is the object's, times the per-pixel weight averaged over the cell where there is one; outside the
    crop of per-pixel weights a pixel counts fully.
    """
    count = [len(target.instances) for target in targets]
    first = torch.tensor([0, *count[:-1]]).cumsum(0).to(predictions.image_index.device)
    index = first[predictions.image_index] + predictions.object_index
    masks = _joined([target.instances.masks for target in targets], targets)
    weights = torch.cat([target.instances.weights for target in targets])[index][:, None, None]
    if any(target.pixel_weights is not None for target in targets):
        # What is missing to weight 1 is sampled, because a crop is 0 where it ends and the weight there is 1.
        trust = _joined([target.pixel_weights for target in targets], targets)
        doubt = Crops(1 - trust.data.float(), trust.regions)
        weights = weights * (1 - sample_masks(doubt, index, predictions.boxes, grid))
    return sample_masks(masks, index, predictions.boxes, grid), weights.expand(-1, grid.size, grid.size)


def _joined(crops: Sequence[Masks | None], targets: Sequence[Target]) -> Crops:
    """The crops of all images' objects, one after the other; of an image that has none, masks that do not exist."""
    parts = [
        each if isinstance(each, Crops) else Crops.none(len(target.instances)).to(target.instances.boxes.device)
        for each, target in zip(crops, targets, strict=True)
    ]
    return Crops.concatenate(parts)


def mask_loss(predictions: MaskPredictions, targets: Sequence[Target], grid: MaskGrid) -> Tensor:
    """Binary cross-entropy of the proposals whose objects have a mask (mean over cells) or classified points (mean over
    points, logits interpolated), weighted. Mean over these proposals on all processes ("taught"), 0 when there are
    none, or over all predictions ("positives").

    Class-specific logits use the object's class channel (Mask R-CNN, section 3; Pointly-Supervised, section 4).
    """
    masked = supervised_by(predictions, [has_mask(target) for target in targets])
    pointed = supervised_by(predictions, [has_points(target) for target in targets])
    total = grid_losses(masked, *mask_targets(masked, targets, grid)).sum()
    if len(pointed):
        points = annotated_points(pointed, targets, grid.point_mean)
        said = sample_grids(pointed.of_category()[:, None], points.coords)[..., 0]
        total = total + grid.point_weight * point_losses(said, points).sum()
    return global_mean(total, len(predictions) if grid.mask_mean == "positives" else len(masked) + len(pointed))


def supervised_by(predictions: MaskPredictions, wanted: Sequence[Tensor]) -> MaskPredictions:
    """The predictions whose object is marked in its image's (N,) bool."""
    return predictions[of_object(wanted, predictions.image_index, predictions.object_index)]


def has_mask(target: Target) -> Tensor:
    """(N,) bool: labelled with a mask of which something lies on the canvas, and trusted (weight above 0)."""
    instances = target.instances
    if not isinstance(instances.masks, Crops):
        return torch.zeros_like(instances.has_mask)
    return instances.has_mask & (instances.weights > 0) & (instances.masks.regions[:, 2:] > 0).all(1)


def has_points(target: Target) -> Tensor:
    """(N,) bool: labelled with a box and classified points of which one lies on the canvas, and trusted."""
    instances = target.instances
    if instances.point_labels is None:
        return torch.zeros_like(instances.has_mask)
    known = (instances.point_labels >= 0).any(1)
    return (instances.supervision == Supervision.POINTS) & (instances.weights > 0) & known


def annotated_points(matched: Matched, targets: Sequence[Target], point_mean: PointMean = "all") -> PointTargets:
    """The classified points of K boxes whose objects all have some, relative to the boxes.

    Points outside the box say nothing. point_mean "all": the mean over points still counts them, as in
    PointSup's code; "inside": it does not. Points off the canvas, or hidden, never count.
    """
    owner = (matched.image_index, matched.object_index)
    most = max((0 if t.instances.points is None else t.instances.points.shape[1] for t in targets), default=0)
    padded = [_padded_points(target, most) for target in targets]
    points = of_object([xy for xy, _ in padded], *owner)
    labels = of_object([known for _, known in padded], *owner)
    corner, far = matched.boxes[:, None, :2], matched.boxes[:, None, 2:]
    coords = (points - corner) / (far - corner).clamp(min=1e-6)
    inside = (labels >= 0) & ((coords >= 0) & (coords <= 1)).all(2)
    counted = labels >= 0 if point_mean == "all" else inside
    trust = of_object([target.instances.weights for target in targets], *owner)
    # The mean over the padded row becomes one over the points that count.
    weights = inside * (trust * most / counted.sum(1).clamp(min=1))[:, None]
    return PointTargets(coords.clamp(0, 1), labels.clamp(min=0).float(), weights)


def keep_points(targets: Sequence[Target], share: float) -> Sequence[Target]:
    """Targets of which every object keeps a random `share` of its classified points, at least one (Pointly-Supervised's
    point sub-sampling, 5 of 10); the others get label -1.
    """
    return targets if share >= 1 else [_thinned(target, share) for target in targets]


def _thinned(target: Target, share: float) -> Target:
    labels = target.instances.point_labels
    if labels is None or labels.numel() == 0:
        return target
    known = labels >= 0
    luck = torch.rand(labels.shape, device=labels.device).masked_fill(~known, 2.0)
    kept = (known.sum(1, keepdim=True) * share).round().clamp(min=1)
    chosen = luck.argsort(1).argsort(1) < kept
    return dataclasses.replace(target, instances=target.instances.replace(point_labels=torch.where(chosen, labels, -1)))


def _padded_points(target: Target, most: int) -> tuple[Tensor, Tensor]:
    instances = target.instances
    points = instances.boxes.new_zeros(len(instances), most, 2)
    labels = torch.full((len(instances), most), -1, device=points.device)
    if instances.points is not None and instances.point_labels is not None:
        count = instances.points.shape[1]
        points[:, :count], labels[:, :count] = instances.points, instances.point_labels
    return points, labels


def mask_values_at(matched: Matched, targets: Sequence[Target], coords: Tensor) -> PointTargets:
    """What the masks of K boxes' objects say at coords (K, P, 2), relative to the boxes: bilinear
    between pixel centres, so soft at the border; with the weight of the object, and of the pixel where there is one.
    """
    labels = coords.new_zeros(coords.shape[:2])
    weights = torch.ones_like(labels)
    for image, target in enumerate(targets):
        rows = torch.nonzero(matched.image_index == image)[:, 0]
        if len(rows) == 0:
            continue
        index, boxes = matched.object_index[rows], matched.boxes[rows, None]
        points = boxes[..., :2] + coords[rows] * (boxes[..., 2:] - boxes[..., :2])
        assert isinstance(target.instances.masks, Crops), "targets carry their masks as crops"
        labels[rows] = read_masks(target.instances.masks, index, points)
        weight = target.instances.weights[index][:, None]
        if target.pixel_weights is not None:
            doubt = Crops(1 - target.pixel_weights.data.float(), target.pixel_weights.regions)
            weight = weight * (1 - read_masks(doubt, index, points))
        weights[rows] = weight.expand(-1, coords.shape[1])
    return PointTargets(coords, labels, weights)


def read_masks(crops: Crops, object_index: Tensor, points: Tensor) -> Tensor:
    """(K, P) mask `object_index[k]` (K,) at points (K, P, 2) xy of the canvas, bilinear between pixel centres (at
    + 0.5); 0 outside the crop and for a mask that does not exist.
    """
    values = points.new_zeros(points.shape[:2])
    if crops.data.numel() == 0:
        return values
    sizes = crops.regions[:, 2:].prod(1)
    start = (sizes.cumsum(0) - sizes)[object_index, None]
    x0, y0, width, height = (edge[:, None] for edge in crops.regions[object_index].unbind(1))
    position = points - 0.5
    low = position.floor()
    share = position - low
    for down in (0, 1):
        for right in (0, 1):
            x, y = low[..., 0].long() + right - x0, low[..., 1].long() + down - y0
            known = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            pixel = crops.data[torch.where(known, start + y * width + x, 0)] * known
            across = share[..., 0] if right else 1 - share[..., 0]
            values += pixel * across * (share[..., 1] if down else 1 - share[..., 1])
    return values
