"""Masks that cover the whole canvas, as queries and dynamic convolutions say them: read over boxes, and cut out.

Letters: K proposals, M masks, h w rows and columns of a mask (`stride` pixels of the canvas per cell), S cells along
one side of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from leanmask.masks import Crops
from leanmask.models.points import regular_points, sample_grids

Limit = tuple[float, float, float, float]  # xyxy pixels
# Pixels this surely outside may be left out of a crop, whose readers then take them for 0 without any doubt.
FLOOR = 0.01


def over_boxes(masks: Tensor, boxes: Tensor, cells: int, stride: int) -> Tensor:
    """(K, 1, S, S) logits of masks (K, h, w), which cover the whole canvas at `stride` pixels per cell, at the cells'
    centres of a grid over boxes (K, 4) xyxy pixels; constant beyond the outermost centres.
    """
    height, width = masks.shape[-2:]
    size = boxes.new_tensor([width, height])
    corner, far = (boxes[:, None, :2] / stride, boxes[:, None, 2:] / stride)
    places = corner + regular_points(cells, boxes) * (far - corner)
    places = torch.minimum(places.clamp(min=0.5), size - 0.5) / size
    return sample_grids(masks[:, None], places)[..., 0].view(-1, 1, cells, cells)


def cell_extents(inside: Tensor) -> Tensor:
    """(..., 4) int64 first column, first row, and the ones after the last, of what is True in (..., h, w); all 0 where
    nothing is.
    """
    sides = []
    for axis in (-2, -1):
        touched = inside.any(axis)
        cell = torch.arange(touched.shape[-1], device=inside.device)
        last = torch.where(touched, cell + 1, 0).amax(-1)
        sides.append((torch.where(touched, cell, touched.shape[-1]).amin(-1).minimum(last), last))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=-1)


def mean_inside(values: Tensor) -> Tensor:
    """(...) mean of probabilities (..., h, w) inside each mask (above 0.5); 0 for an empty one."""
    inside = (values > 0.5).float()
    return (values * inside).sum((-2, -1)) / inside.sum((-2, -1)).clamp(min=1)


def soft_crops(masks: Tensor, limit: Limit, stride: int, floor: float = FLOOR) -> tuple[Crops, Tensor, Tensor]:
    """Probabilities at `stride` times the size of mask logits (M, h, w), around what is above `floor` inside `limit`
    (xyxy pixels), so that the doubtful rim of a mask is kept; (M, 4) int64 x0, y0, width, height of what is above 0.5;
    and (M,) the mean of the latter. A mask of which nothing is above 0.5 does not exist: all 0.

    One mask at a time is enlarged, and of it no more than can matter.
    """
    crops, places, certainty = [], [], [masks.new_zeros(0)]
    bound = math.log(floor / (1 - floor))
    for window, x, y in _windows(masks, limit, stride, bound):
        inside = window > 0
        edges = cell_extents(torch.stack([inside, window > bound])).tolist() if window.numel() else [[0] * 4] * 2
        if not any(edges[0]):
            crops.append(window[:0, :0])
            places.append([[0] * 4] * 2)
            certainty.append(masks.new_zeros(1))
            continue
        left, top, right, bottom = edges[1]
        values = window[top:bottom, left:right].sigmoid()
        part = inside[top:bottom, left:right]
        crops.append(values)
        places.append([[x + x0, y + y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in edges])
        certainty.append(((values * part).sum() / (part.sum() + 1e-6))[None])
    where = torch.tensor(places, dtype=torch.int64, device=masks.device).view(-1, 2, 4)
    return Crops.join(crops, where[:, 1], like=masks.new_zeros(0)), where[:, 0], torch.cat(certainty)


def tight_crops(masks: Tensor, limit: Limit, stride: int) -> tuple[Crops, Tensor]:
    """`soft_crops` without the rim: of what is above 0.5 alone, and its mean."""
    crops, _, certainty = soft_crops(masks, limit, stride, floor=0.5)
    return crops, certainty


def _windows(masks: Tensor, limit: Limit, scale: int, bound: float) -> Iterator[tuple[Tensor, int, int]]:
    """Of every mask (h, w) that is positive anywhere the enlarged part inside `limit` that holds every logit above
    `bound` (at most 0), and its x and y, pixels.
    """
    height, width = masks.shape[-2:]
    x0, y0, x1, y1 = int(limit[0]), int(limit[1]), -int(-limit[2] // 1), -int(-limit[3] // 1)
    above = (masks > bound) & (masks > 0).any(2, keepdim=True).any(1, keepdim=True)
    for mask, rows, columns in zip(masks, above.any(2).cpu(), above.any(1).cpu(), strict=True):
        if not bool(rows.any()):
            yield mask[:0, :0], 0, 0
            continue
        # Between a cell above the bound and its neighbour values may be above; beyond the neighbour's centre not.
        filled, wide = rows.nonzero()[:, 0], columns.nonzero()[:, 0]
        top, bottom = max(int(filled[0]) - 1, 0), min(int(filled[-1]) + 2, height)
        left, right = max(int(wide[0]) - 1, 0), min(int(wide[-1]) + 2, width)
        size = ((bottom - top) * scale, (right - left) * scale)
        part = mask[None, None, top:bottom, left:right]
        large = F.interpolate(part, size=size, mode="bilinear", align_corners=False)[0, 0]
        first_x, first_y = max(x0, left * scale), max(y0, top * scale)
        kept_rows = slice(first_y - top * scale, max(y1 - top * scale, 0))
        kept_columns = slice(first_x - left * scale, max(x1 - left * scale, 0))
        yield large[kept_rows, kept_columns], first_x, first_y
