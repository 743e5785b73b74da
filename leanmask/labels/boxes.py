"""What a box says about a mask. Letters: K proposals, h w rows and columns of a mask grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leanmask.records import Instances, Proposals, Target


def boxes_without_mask(targets: Sequence[Target], points: bool = False) -> tuple[Proposals, list[Instances]]:
    """The boxes of all objects that have one but no mask, to ask a network for their masks; and these objects, image by
    image, in the same order. points: also the objects that have a point but no box, for a network that takes points.
    """
    lacking = []
    for target in targets:
        instances = target.instances
        known = ~instances.boxes.isnan().any(1)
        if points:
            known = known | instances.object_points.isfinite().all(1)
        lacking.append(instances[~instances.has_mask & known])
    return as_proposals(lacking), lacking


def as_proposals(lacking: Sequence[Instances]) -> Proposals:
    """All objects of all images, to ask a network for their masks."""
    boxes = torch.cat([instances.boxes for instances in lacking])
    sizes = torch.tensor([len(instances) for instances in lacking], device=boxes.device)
    return Proposals(
        image_index=torch.arange(len(lacking), device=boxes.device).repeat_interleave(sizes),
        boxes=boxes,
        object_index=torch.cat([torch.arange(len(instances), device=boxes.device) for instances in lacking]),
        categories=torch.cat([instances.categories for instances in lacking]),
        points=torch.cat([instances.named_points for instances in lacking]),
    )


def box_prior(grid_boxes: Tensor, object_boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(K, h, w) float: 1 where a cell's centre lies inside the object's box, 0 elsewhere (MaskBooster, Eq. 6).

    grid_boxes: (K, 4) xyxy, what each h x w grid covers. object_boxes: (K, 4) xyxy, same frame, pixels. A box that is
    unknown (NaN) says nothing: its grid is 1 everywhere.
    """
    rows, columns = size
    x0, y0, x1, y1 = grid_boxes.unbind(1)
    x = x0[:, None] + (x1 - x0)[:, None] * _cell_centres(columns, grid_boxes)
    y = y0[:, None] + (y1 - y0)[:, None] * _cell_centres(rows, grid_boxes)
    left, top, right, bottom = object_boxes.unbind(1)
    # Written as "not outside", so that comparisons with NaN keep the cell.
    in_x = ~((x < left[:, None]) | (x > right[:, None]))
    in_y = ~((y < top[:, None]) | (y > bottom[:, None]))
    return (in_y[:, :, None] & in_x[:, None, :]).to(grid_boxes.dtype)


def _cell_centres(count: int, like: Tensor) -> Tensor:
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count


def box_agreement(masks: Tensor, grid_boxes: Tensor, object_boxes: Tensor) -> Tensor:
    """(K,) IoU in [0, 1] between the tight box of each mask and the object's box, as far as the grid shows it.

    A box that a person drew touches its object on all four sides, so a pseudo-mask that does not reach them is
    doubtful, and an empty one says nothing. masks: (K, h, w) 0/1 on the grids of grid_boxes (K, 4) xyxy. object_boxes:
    (K, 4) xyxy, same frame, pixels. An unknown box (NaN) agrees with everything.
    """
    x0, x1 = _extent(masks.amax(1) > 0, grid_boxes[:, 0], grid_boxes[:, 2])
    y0, y1 = _extent(masks.amax(2) > 0, grid_boxes[:, 1], grid_boxes[:, 3])
    seen = torch.cat(
        [object_boxes[:, :2].maximum(grid_boxes[:, :2]), object_boxes[:, 2:].minimum(grid_boxes[:, 2:])], 1
    )
    left, top, right, bottom = seen.unbind(1)
    common = (x1.minimum(right) - x0.maximum(left)).clamp(min=0) * (y1.minimum(bottom) - y0.maximum(top)).clamp(min=0)
    united = (x1 - x0) * (y1 - y0) + (right - left).clamp(min=0) * (bottom - top).clamp(min=0) - common
    return (common / united.clamp(min=1e-6)).nan_to_num(nan=1.0)


def _extent(touched: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """First and last touched cell of (K, n) as coordinates between start and end; both are start where none is."""
    count = touched.shape[1]
    cells = torch.arange(count, device=touched.device)
    first = torch.where(touched, cells, count).amin(1)
    last = torch.where(touched, cells + 1, 0).amax(1)
    first = torch.where(touched.any(1), first, 0)
    step = (end - start) / count
    return start + first * step, start + last * step
