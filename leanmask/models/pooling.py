"""RoIAlign as two matrix products: exact, deterministic, and several times faster than the scatter kernel on CPUs.

RoIAlign averages bilinear samples on a regular grid. Bilinear weights are products of one weight along y and one along
x, so pooling box k from map F is A_y(k) F A_x(k)^T, and its backward pass is a matrix product as well. Letters: K
boxes, C channels, H W rows and columns of a map, S cells along one side of the pooled grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

# Above this many cells of a feature map the products touch too much that is outside the box, and the kernel wins; for
# the forward pass alone, which the kernel does well, that comes earlier.
LARGEST_MAP_CELLS, LARGEST_MAP_CELLS_FORWARD = 96 * 96, 32 * 32
CANONICAL_SIZE_PX, CANONICAL_LEVEL = 224, 4  # FPN paper, Eq. 1


@dataclass(frozen=True)
class Axis:
    """One axis of a pooling grid over something `length` pixels long.

    cells: bins of the grid. samples: per bin, 0 = as many as the bin has pixels. aligned: coordinates are continuous
    with pixel centres at + 0.5 (detectron2's ROIAlignV2); False is torchvision's default, half a pixel off.
    """

    cells: int
    length: int
    samples: int = 0
    aligned: bool = False


@dataclass(frozen=True)
class Window:
    """Per box, the `size` pixels from `offset` (K,) on that are there; the rest of the axis holds zeros."""

    offset: Tensor
    size: int


def axis_weights(start: Tensor, end: Tensor, axis: Axis, window: Window | None = None) -> Tensor:
    """(K, cells, length) share of each pixel in each bin's average, for intervals `start` to `end` (K,), in pixels.

    With a window, (K, cells, window.size) for the pixels of the window alone. Border handling is RoIAlign's: samples up
    to one pixel outside read the border's pixel, those further out read 0.
    """
    if axis.aligned:
        start, size = start - 0.5, end - start
    else:
        size = (end - start).clamp(min=1.0)
    columns = axis.length if window is None else window.size
    weights = start.new_zeros(len(start), axis.cells, columns + 1)  # the last column takes what lies outside
    if len(start) == 0:
        return weights[..., :columns]
    bins = size / axis.cells
    samples = torch.full_like(bins, axis.samples) if axis.samples else bins.ceil().clamp(min=1.0)
    step = torch.arange(int(samples.max()), device=start.device) + 0.5
    cell = torch.arange(axis.cells, device=start.device)[:, None]
    # In RoIAlign's order of operations, so that rounding is the same.
    position = start[:, None, None] + cell * bins[:, None, None] + (step * bins[:, None] / samples[:, None])[:, None]
    share = (step < samples[:, None])[:, None] & (position >= -1) & (position <= axis.length)
    portion = share / samples[:, None, None]
    position = position.clamp(0, axis.length - 1)
    low = position.floor()
    offset = 0 if window is None else window.offset[:, None, None]
    for pixel, part in ((low, 1 - (position - low)), (low + 1, position - low)):
        column = pixel.long() - offset
        column = torch.where((column < 0) | (column >= columns), columns, column)
        weights.scatter_add_(2, column, part * portion)
    return weights[..., :columns]


class RoIPool(nn.Module):
    """Pools boxes from the levels of a feature pyramid, each from the level that fits its size (FPN paper, Eq. 1).

    The same numbers as torchvision's MultiScaleRoIAlign over levels 2 to 5, to rounding.
    """

    def __init__(self, cells: int, samples: int = 2, aligned: bool = False) -> None:
        super().__init__()
        self.cells, self.samples, self.aligned = cells, samples, aligned

    def forward(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """(K, C, S, S) from maps (B, C, H, W) at strides 4, 8, 16, ... for boxes (K, 4) xyxy in pixels of the images
        image_index (K,). Under autocast the result is in its lower precision.
        """
        levels = box_levels(boxes, len(features))
        parts, rows = [], []
        for level, feature in enumerate(features):
            chosen = torch.nonzero(levels == level)[:, 0]
            if len(chosen):
                chosen = chosen[image_index[chosen].argsort(stable=True)]
                parts.append(self._pool(feature, 0.5 ** (level + 2), boxes[chosen], image_index[chosen]))
                rows.append(chosen)
        if not parts:
            return features[0].new_zeros(0, features[0].shape[1], self.cells, self.cells)
        if len(parts) == 1 and torch.equal(rows[0], torch.arange(len(boxes), device=boxes.device)):
            return parts[0]
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _pool(self, feature: Tensor, scale: float, boxes: Tensor, image_index: Tensor) -> Tensor:
        if _kernel_wins(feature):
            rois = torch.cat([image_index[:, None].to(boxes), boxes], dim=1)
            size = (self.cells, self.cells)
            pooled = roi_align(feature.float().contiguous(), rois, size, scale, self.samples, self.aligned)
            return pooled.to(feature.dtype)
        return self._products(feature, boxes * scale, image_index)

    def _products(self, feature: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        _, channels, height, width = feature.shape
        x0, y0, x1, y1 = boxes.unbind(1)
        rows = axis_weights(y0, y1, Axis(self.cells, height, self.samples, self.aligned)).to(feature.dtype)
        columns = axis_weights(x0, x1, Axis(self.cells, width, self.samples, self.aligned)).to(feature.dtype)
        flat = feature.permute(0, 2, 3, 1).reshape(-1, height, width * channels)
        per_image = torch.bincount(image_index, minlength=len(flat)).tolist()
        pooled = []
        for down, across, image in zip(rows.split(per_image), columns.split(per_image), flat.unbind(), strict=True):
            if len(down):
                # (k * S, H) @ (H, W * C), then (S, W) @ (W, C) for each box and each of its S rows.
                strips = (down.flatten(0, 1) @ image).view(-1, self.cells, width, channels)
                pooled.append(across[:, None] @ strips)
        return torch.cat(pooled).permute(0, 3, 1, 2)


def _kernel_wins(feature: Tensor) -> bool:
    """Whether torchvision's kernel is the better way. On GPUs it is, but where results must repeat torchvision takes
    another one there, which it compiles for minutes; the products repeat as they are.
    """
    if feature.is_cuda:
        return not torch.are_deterministic_algorithms_enabled()
    largest = LARGEST_MAP_CELLS if torch.is_grad_enabled() else LARGEST_MAP_CELLS_FORWARD
    return feature.shape[-2] * feature.shape[-1] > largest


def box_levels(boxes: Tensor, count: int) -> Tensor:
    """(K,) index of the pyramid level, 0 to count - 1 for strides 4, 8, ..., that a box (K, 4) is pooled from (FPN
    paper, Eq. 1).
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = torch.floor(CANONICAL_LEVEL + torch.log2(side / CANONICAL_SIZE_PX) + 1e-6) - 2
    return level.clamp(0, count - 1).long()
