"""Points instead of grids: reading maps and masks at any place, and choosing the places that are worth it (PointRend,
Kirillov et al. 2020, sections 3 and 4.1; Implicit PointRend in Cheng et al. 2022, section 5).

Letters: K proposals, P points, B images, C channels, H W rows and columns of a map, S cells along one side of a grid.
Coordinates are (x, y) relative to a proposal's box, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PointTargets:
    """What K proposals should say at P points each. coords: (K, P, 2). labels: (K, P) in [0, 1]. weights: (K, P)."""

    coords: Tensor
    labels: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Importance:
    """How training points are drawn: `points` of them, a share `uncertain` of which are the least certain of
    `oversample` times as many uniform ones; the rest are uniform.
    """

    points: int
    oversample: float = 3.0
    uncertain: float = 0.75


@dataclass(frozen=True)
class Subdivision:
    """How a fine mask grows from a coarse one: doubled `steps` times, `points` of the least certain cells computed
    anew each time.
    """

    steps: int
    points: int


def point_losses(logits: Tensor, targets: PointTargets) -> Tensor:
    """(K,) binary cross-entropy of logits (K, P), weighted mean over the points."""
    per_point = F.binary_cross_entropy_with_logits(logits.float(), targets.labels, reduction="none")
    return (per_point * targets.weights).mean(1)


def regular_points(cells: int, like: Tensor) -> Tensor:
    """(1, S * S, 2) centres of the cells of a regular grid, row by row."""
    centres = (torch.arange(cells, device=like.device, dtype=torch.float32) + 0.5) / cells
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], dim=-1).view(1, -1, 2)


def sample_grids(grids: Tensor, coords: Tensor) -> Tensor:
    """(K, P, C) bilinear values of grids (K, C, S, S) at coords (K, P, 2); beyond the outer cells' centres they fade
    to 0, as in PointRend's code.
    """
    count, channels, rows, columns = grids.shape
    owner = torch.arange(count, device=grids.device)
    return _bilinear(grids, owner, coords * coords.new_tensor([columns, rows])).view(*coords.shape[:2], channels)


def sample_map(feature: Tensor, boxes: Tensor, image_index: Tensor, coords: Tensor, stride: int) -> Tensor:
    """(K, P, C) bilinear values of a map (B, C, H, W) at `stride` pixels per cell, for boxes (K, 4) xyxy in pixels of
    the images image_index (K,), at coords (K, P, 2).
    """
    boxes = boxes[:, None]
    points = (boxes[..., :2] + coords * (boxes[..., 2:] - boxes[..., :2])) / stride
    return _bilinear(feature, image_index, points).view(*coords.shape[:2], feature.shape[1])


def _bilinear(maps: Tensor, owner: Tensor, points: Tensor) -> Tensor:
    """(K * P, C) values of maps (B, C, H, W) at points (K, P, 2) in cells, centres at + 0.5, of the maps owner (K,).

    `F.grid_sample` with zeros outside, as a weighted sum of four rows, deterministic on CPUs.
    """
    channels, height, width = maps.shape[1:]
    position = points.float() - 0.5
    low = position.floor()
    share = position - low
    cells, parts = [], []
    for down in (0, 1):
        for right in (0, 1):
            x, y = low[..., 0] + right, low[..., 1] + down
            part = (share[..., 0] if right else 1 - share[..., 0]) * (share[..., 1] if down else 1 - share[..., 1])
            known = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            cell = (owner[:, None] * height + y.clamp(0, height - 1).long()) * width + x.clamp(0, width - 1).long()
            cells.append(cell.reshape(-1))
            parts.append((part * known).reshape(-1))
    rows = maps.permute(0, 2, 3, 1).reshape(-1, channels).float()
    if len(cells[0]) == 0:
        return rows[:0]
    with torch.autocast(maps.device.type, enabled=False):
        return F.embedding_bag(torch.stack(cells, 1), rows, per_sample_weights=torch.stack(parts, 1), mode="sum")


@torch.no_grad()
def important_points(logits: Tensor, how: Importance) -> Tensor:
    """(K, P, 2) random training points for coarse logits (K, S, S) of each proposal's own class; uncertainty is
    -|logit|, interpolated (not interpolated uncertainty; PointRend, section 3.1).
    """
    count, many = len(logits), round(how.points * how.oversample)
    uncertain = round(how.points * how.uncertain)
    candidates = torch.rand(count, many, 2, device=logits.device)
    doubt = -sample_grids(logits[:, None], candidates)[..., 0].abs()
    best = doubt.topk(uncertain, dim=1).indices
    chosen = candidates.gather(1, best[..., None].expand(-1, -1, 2))
    return torch.cat([chosen, uniform_points(count, how.points - uncertain, logits)], dim=1)


def uniform_points(count: int, points: int, like: Tensor) -> Tensor:
    """(count, P, 2) uniform random points."""
    return torch.rand(count, points, 2, device=like.device)


def subdivide(logits: Tensor, compute: Callable[[Tensor], Tensor], how: Subdivision) -> Tensor:
    """(K, S', S') fine logits from (K, S, S): doubled `how.steps` times, the least certain cells computed anew by
    `compute`, which maps coords (K, P, 2) to logits (K, P) (PointRend, section 3.1, inference).
    """
    for _ in range(how.steps):
        logits = F.interpolate(logits[:, None], scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
        cells = logits.shape[-1]
        flat = logits.flatten(1)
        doubtful = (-flat.abs()).topk(min(how.points, cells * cells), dim=1).indices
        coords = (torch.stack([doubtful % cells, doubtful // cells], dim=-1) + 0.5) / cells
        logits = flat.scatter(1, doubtful, compute(coords).to(flat)).view_as(logits)
    return logits
