"""From a teacher's soft masks to what a student's target carries: crops on the network's canvas.

Letters: N masks, S cells along one side of a grid, H W rows and columns of the canvas, h w those of one crop. Per-pixel
weights at the same regions come from `labels.weigh`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leanmask.masks import Crops, Grids


@dataclass(frozen=True, eq=False)
class _Lines:
    """Where N grids lie along one axis: `low` (N,) side of the box and pixels `per_cell` (N,) as the box has them; the
    whole pixels `first` to `last` (N,) that some kept cell reaches.
    """

    low: Tensor
    per_cell: Tensor
    first: Tensor
    last: Tensor


def to_crops(masks: Grids | Crops, canvas: tuple[int, int], floor: float = 0.01) -> Crops:
    """Soft masks as float32 probability crops of a canvas (H, W), never more than box size each.

    Grids are laid where what they show is (bilinear at the pixels' centres, 0 beyond the outermost cells) and cut at
    the canvas; margins in which no cell reaches `floor` are left out. A mask that has no such cell, lies off the canvas
    or whose box is unknown (NaN) does not exist (region of size 0). Crops stay as they are: the model that cut them
    decides how much of a mask's doubtful rim is in them.

    Unlike `masks.to_rles`, which does as torchvision does: boxes rounded outwards to whole pixels make masks about a
    pixel wider, and half a pixel is lost where RoIAlign has no half-pixel correction. As labels such masks teach a
    student to draw wider or beside the object, and its teacher follows: of small objects, after hundreds of steps,
    wrong masks in right boxes.
    """
    if isinstance(masks, Crops):
        return Crops(masks.data.float(), masks.regions)
    values = masks.values.float()
    rows, columns = values.shape[1:]
    reached = values >= floor
    reached = reached & masks.boxes.isfinite().all(1)[:, None, None]
    x0, y0, x1, y1 = (masks.boxes.float().nan_to_num() + masks.shift_px).unbind(1)
    down = _lines((y0, y1), reached.any(2), canvas[0])
    across = _lines((x0, x1), reached.any(1), canvas[1])
    sizes = torch.stack([across.first, down.first, across.last - across.first, down.last - down.first], 1)
    regions = torch.where((sizes[:, 2:] > 0).all(1, keepdim=True), sizes, 0)
    left, top, widths, heights = regions.unbind(1)
    vertical = _hats(down, top, heights, rows).split(heights.tolist())
    horizontal = _hats(across, left, widths, columns).split(widths.tolist())
    with torch.autocast(values.device.type, enabled=False):
        pasted = [v @ value @ h.T for v, value, h in zip(vertical, values, horizontal, strict=True)]
    crops = Crops.join(pasted, regions, like=values.reshape(-1))
    return Crops(crops.data.clamp(max=1.0), regions)


def binary(crops: Crops, threshold: float = 0.5) -> Crops:
    """The masks themselves: uint8, 1 where the probability is above `threshold`, at the same regions."""
    return Crops((crops.data > threshold).to(torch.uint8), crops.regions)


def _lines(edges: tuple[Tensor, Tensor], reached: Tensor, limit: int) -> _Lines:
    """edges: (N,) low and high side of each box. reached: (N, S) bool cells to keep. limit: the canvas ends there."""
    low, high = edges
    cells = reached.shape[1]
    per_cell = ((high - low) / cells).clamp(min=1e-6)
    number = torch.arange(cells, device=low.device)
    # Interpolated, a cell reaches half a cell beyond its own sides.
    begin = torch.where(reached, number, cells).amin(1) - 0.5
    end = torch.where(reached, number, -1).amax(1) + 1.5
    first = (low + begin * per_cell).floor().clamp(0, limit).long()
    last = (low + end * per_cell).ceil().clamp(0, limit).long()
    return _Lines(low, per_cell, first, torch.where(reached.any(1), last, first))


def _hats(lines: _Lines, first: Tensor, lengths: Tensor, cells: int) -> Tensor:
    """(sum of `lengths`, S) bilinear weights of the cells for the pixels `first` (N,) to `first + lengths` of all N
    masks, one mask after the other. At once: on a GPU every operation costs its launch.
    """
    mask = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    offset = lengths.cumsum(0) - lengths - first  # of a mask's rows here from its pixels on the canvas
    pixel = torch.arange(len(mask), device=mask.device) - offset[mask]
    position = (pixel + 0.5 - lines.low[mask]) / lines.per_cell[mask] - 0.5
    cell = torch.arange(cells, device=mask.device)
    return (1 - (position[:, None] - cell).abs()).clamp(min=0)
