"""The mask loss that every box-based model shares: ragged mask crops sampled on each proposal's grid.

Letters: K proposals, N objects of one image, S cells along one side of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leanmask.masks import Crops
from leanmask.models.base import grid_loss
from leanmask.models.matching import of_object
from leanmask.models.pooling import Axis, Window, axis_weights
from leanmask.records import MaskPredictions, Target


@dataclass(frozen=True)
class MaskGrid:
    """How masks are sampled: an S x S grid over each box of a canvas (height, width) in pixels; `aligned` as in
    pooling.Axis.
    """

    size: int
    canvas: tuple[int, int]
    aligned: bool = False


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
    masks = predictions.boxes.new_zeros(len(predictions), grid.size, grid.size)
    weights = torch.ones_like(masks)
    for image, target in enumerate(targets):
        rows = torch.nonzero(predictions.image_index == image)[:, 0]
        if len(rows) == 0:
            continue
        index, boxes = predictions.object_index[rows], predictions.boxes[rows]
        assert isinstance(target.instances.masks, Crops), "targets carry their masks as crops"
        masks[rows] = sample_masks(target.instances.masks, index, boxes, grid)
        weight = target.instances.weights[index][:, None, None]
        if target.pixel_weights is not None:
            # What is missing to weight 1 is sampled, because a crop is 0 where it ends and the weight there is 1.
            doubt = Crops(1 - target.pixel_weights.data.float(), target.pixel_weights.regions)
            weight = weight * (1 - sample_masks(doubt, index, boxes, grid))
        weights[rows] = weight.expand(-1, grid.size, grid.size)
    return masks, weights


def mask_loss(predictions: MaskPredictions, targets: Sequence[Target], grid: MaskGrid) -> Tensor:
    """Binary cross-entropy of the proposals whose objects have a mask, weighted; mean over them on all processes, 0
    when there are none. Class-specific logits use the object's class channel (Mask R-CNN, section 3).
    """
    wanted = of_object([has_mask(target) for target in targets], predictions.image_index, predictions.object_index)
    learning = predictions[wanted]
    masks, weights = mask_targets(learning, targets, grid)
    return grid_loss(learning, masks, weights)


def has_mask(target: Target) -> Tensor:
    """(N,) bool: labelled with a mask of which something lies on the canvas, and trusted (weight above 0)."""
    instances = target.instances
    if not isinstance(instances.masks, Crops):
        return torch.zeros_like(instances.has_mask)
    return instances.has_mask & (instances.weights > 0) & (instances.masks.regions[:, 2:] > 0).all(1)
