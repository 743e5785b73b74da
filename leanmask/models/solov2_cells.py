"""Which cells of SOLOv2's grids learn from which object, when not everything is labelled (Wang et al. 2020, section
3.2; numbers as in AdelaiDet).

An object belongs to the levels whose range holds the square root of its box's area, and there to the cells around its
centre: the mass centre of its mask, else the middle of its box. Letters: N objects of one image, L levels, S cells
along one side of a level's grid, T cells of all levels, K positive pairs of cell and object.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from leanmask.masks import Crops
from leanmask.models.mask_losses import has_mask
from leanmask.models.matching import BACKGROUND, IGNORED, has_box, may_be_anywhere
from leanmask.records import Supervision, Target

REACH_CELLS = 1  # positive cells are at most so far from the one that holds the centre


@dataclass(frozen=True)
class CellLayout:
    """grids: cells along one side, per level. ranges: least and largest square root of the box's area, pixels of the
    canvas, per level. centre_fraction: positive cells touch a box of this size relative to the object's.
    """

    grids: tuple[int, ...]
    ranges: tuple[tuple[float, float], ...]
    centre_fraction: float = 0.2

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Number of the first cell of each level."""
        return tuple(accumulate([grid * grid for grid in self.grids[:-1]], initial=0))

    @property
    def count(self) -> int:
        """T."""
        return sum(grid * grid for grid in self.grids)

    def cells_at(self, points: Tensor, canvas: tuple[int, int]) -> Tensor:
        """(N, L) number of the cell that holds each point (N, 2) xy at each level; points outside count as the edge."""
        found = []
        for grid, start in zip(self.grids, self.starts, strict=True):
            column, row = (cell.clamp(0, grid - 1) for cell in self._place(points, grid, canvas).unbind(-1))
            found.append(start + row * grid + column)
        return torch.stack(found, dim=1)

    def centres(self, canvas: tuple[int, int], like: Tensor) -> Tensor:
        """(T, 2) xy middle of every cell, pixels."""
        height, width = canvas
        found = []
        for grid in self.grids:
            at = (torch.arange(grid, device=like.device) + 0.5) / grid
            y, x = torch.meshgrid(at * height, at * width, indexing="ij")
            found.append(torch.stack([x, y], dim=-1).view(-1, 2))
        return torch.cat(found)

    def around(self, centres: Tensor, reach: Tensor, levels: Tensor, canvas: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Pairs (cell, object), (K,) each: the cells of `levels` (N, L) bool that a box of half size `reach` (N, 2)
        about `centres` (N, 2) touches, no farther than `REACH_CELLS` from the centre's own; by level, then object.
        """
        step = torch.arange(-REACH_CELLS, REACH_CELLS + 1, device=centres.device)
        cells, objects = [], []
        for level, (grid, start) in enumerate(zip(self.grids, self.starts, strict=True)):
            chosen = levels[:, level].nonzero()[:, 0]
            middle = self._place(centres[chosen], grid, canvas).clamp(0, grid - 1)
            first = self._place(centres[chosen] - reach[chosen], grid, canvas).clamp(min=0)
            last = self._place(centres[chosen] + reach[chosen], grid, canvas).clamp(max=grid - 1)
            at = middle[:, None] + step[None, :, None]  # (n, 3, 2)
            touched = (at >= first[:, None]) & (at <= last[:, None])
            both = touched[:, :, None, 1] & touched[:, None, :, 0]
            number = start + at[:, :, None, 1] * grid + at[:, None, :, 0]
            cells.append(number[both])
            objects.append(chosen[:, None, None].expand_as(both)[both])
        return torch.cat(cells), torch.cat(objects)

    @staticmethod
    def _place(points: Tensor, grid: int, canvas: tuple[int, int]) -> Tensor:
        height, width = canvas
        return (points / points.new_tensor([width, height]) * grid).floor().long()


@dataclass(frozen=True, eq=False)
class CellTargets:
    """What one image's cells learn. owner: (T,) int64 object, BACKGROUND or IGNORED. cells, objects: (K,) int64 the
    pairs whose mask is learned; a cell that two objects share learns the class of the later and both masks.
    """

    owner: Tensor
    cells: Tensor
    objects: Tensor


def assign_cells(target: Target, layout: CellLayout, canvas: tuple[int, int], chosen: Tensor) -> CellTargets:
    """Assign the cells of one image.

    chosen: (N,) the cell of each object that is known by a point alone (see `of_point_alone`), what it says for others
    is not looked at. Objects of weight 0, unknown places and ignore regions are neither object nor background, as in
    `matching.assign`: the rules there are for boxes, here for the middles of cells.
    """
    instances = target.instances
    boxed, alone = has_box(target), of_point_alone(target)
    trusted = instances.weights > 0
    size = (instances.boxes[:, 2:] - instances.boxes[:, :2]).nan_to_num()
    side = size.prod(1).sqrt().clamp(layout.ranges[0][0], layout.ranges[-1][1])
    inside = [(side >= low) & (side <= high) for low, high in layout.ranges]
    levels = torch.stack(inside, dim=1) & (boxed & trusted)[:, None]
    reach = size * (layout.centre_fraction / 2)
    cells, objects = layout.around(object_centres(target).nan_to_num(), reach, levels, canvas)
    single = (alone & trusted).nonzero()[:, 0]
    cells, objects = torch.cat([cells, chosen[single]]), torch.cat([objects, single])
    owner = torch.full((layout.count,), BACKGROUND, dtype=torch.int64, device=cells.device)
    owner = owner.scatter_reduce(0, cells, objects, "amax")
    unknown = _unknown(target, layout, canvas, boxed)
    return CellTargets(torch.where((owner == BACKGROUND) & unknown, IGNORED, owner), cells, objects)


def of_point_alone(target: Target) -> Tensor:
    """(N,) bool: known by one visible point, no box."""
    instances = target.instances
    if instances.point_labels is None:
        return torch.zeros_like(instances.has_mask)
    return ~has_box(target) & (instances.supervision == Supervision.POINT) & (instances.point_labels == 1).any(1)


def object_centres(target: Target) -> Tensor:
    """(N, 2) xy: the mass centre of the mask, else the middle of the box (NaN where that is unknown)."""
    boxes = target.instances.boxes
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    masked = has_mask(target)
    if not bool(masked.any()):
        return middle
    assert isinstance(target.instances.masks, Crops), "targets carry their masks as crops"
    return torch.where(masked[:, None], mass_centres(target.instances.masks), middle)


def mass_centres(crops: Crops) -> Tensor:
    """(N, 2) xy mean of the pixels' centres, weighted by the masks' values; NaN for a mask without any."""
    x0, y0, width, height = crops.regions.unbind(1)
    sizes = width * height
    owner = torch.arange(len(crops), device=sizes.device).repeat_interleave(sizes)
    place = torch.arange(len(owner), device=sizes.device) - (sizes.cumsum(0) - sizes)[owner]
    values = crops.data.double()
    x, y = place % width[owner] + x0[owner] + 0.5, place // width[owner] + y0[owner] + 0.5
    sums = torch.zeros(len(crops), 3, dtype=torch.float64, device=sizes.device)
    sums.index_add_(0, owner, torch.stack([values * x, values * y, values], dim=1))
    return (sums[:, :2] / sums[:, 2:]).float()


def _unknown(target: Target, layout: CellLayout, canvas: tuple[int, int], boxed: Tensor) -> Tensor:
    """(T,) bool: where a cell without an object says nothing."""
    instances = target.instances
    middles = layout.centres(canvas, instances.boxes)
    trusted = instances.weights > 0
    left_out = _within(middles, target.ignore) | _within(middles, instances.boxes[boxed & ~trusted])
    pointed = instances.object_points[~boxed]
    pointed = pointed[pointed.isfinite().all(1)]
    if len(pointed):
        cell = max(canvas) / min(layout.grids)  # touches every neighbour, also on the coarsest level
        everywhere = torch.ones(len(pointed), len(layout.grids), dtype=torch.bool, device=middles.device)
        near, _ = layout.around(pointed, torch.full_like(pointed, cell), everywhere, canvas)
        left_out[near] = True
    if not target.exhaustive or may_be_anywhere(target, ~boxed):
        left_out |= ~_within(middles, instances.boxes[boxed & trusted])
    return left_out


def _within(points: Tensor, boxes: Tensor) -> Tensor:
    """(P,) bool: inside one of the (R, 4) boxes."""
    x, y = points[:, :1], points[:, 1:]
    return ((x >= boxes[:, 0]) & (y >= boxes[:, 1]) & (x < boxes[:, 2]) & (y < boxes[:, 3])).any(1)
