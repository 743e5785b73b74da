"""What a box says about a mask. Letters: K proposals, h w rows and columns of a mask grid."""

from __future__ import annotations

import torch
from torch import Tensor


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
