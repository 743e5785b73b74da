"""SOLOv2's two branches (Wang et al. 2020, section 3): what each cell of several grids says, and the features that its
dynamic kernel is convolved with.

Letters: B images, C categories, E numbers of a kernel, S cells along one side of a level's grid, T cells of all levels,
h w rows and columns of the mask features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASS_PRIOR = 0.01  # probability of every class in every cell at the start, as focal loss wants it
LEVELS = 5
MASK_LEVELS = 4  # the mask features are made of the pyramid's strides 4 to 32


@dataclass(frozen=True)
class HeadSize:
    """Widths and depths of both branches; the defaults are the published ones. mask_upsample: 2 = the mask features
    are made at stride 2 (depth to space) instead of 4. level_maps: which map of the pyramid each level's grid is read
    from, as it is; empty = the published way: strides 8 (of the finest, halved), 8, 16, 32 and 32 (of the coarsest,
    doubled).
    """

    fpn_channels: int = 256
    tower_channels: int = 512
    tower_convs: int = 4
    kernel_channels: int = 256
    mask_channels: int = 128
    norm_groups: int = 32
    mask_upsample: int = 1
    level_maps: tuple[int, ...] = ()


def with_coordinates(features: Tensor) -> Tensor:
    """(B, F + 2, H, W): two more channels, x then y, from -1 at the first cell to 1 at the last."""
    height, width = features.shape[-2:]
    x = torch.linspace(-1, 1, width, device=features.device, dtype=features.dtype)
    y = torch.linspace(-1, 1, height, device=features.device, dtype=features.dtype)
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    both = torch.stack([columns, rows]).expand(len(features), -1, -1, -1)
    return torch.cat([features, both], dim=1)


def _block(inputs: int, outputs: int, groups: int, kernel: int = 3) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    # AdelaiDet starts with a deviation of 0.01. Group norm makes that the same function, but under Adam, whose steps do
    # not shrink with the weights, so small ones turn around at every step and hardly learn.
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.GroupNorm(groups, outputs), nn.ReLU(inplace=True)]


def _resized(features: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


class CellBranch(nn.Module):
    """For every cell the logits of its classes and a kernel; the same weights on all levels."""

    def __init__(self, size: HeadSize, grids: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.grids, self.level_maps = tuple(grids), size.level_maps
        width, groups = size.tower_channels, size.norm_groups

        def tower(inputs: int) -> nn.Sequential:
            widths = [inputs, *[width] * size.tower_convs]
            return nn.Sequential(*[layer for pair in pairwise(widths) for layer in _block(*pair, groups)])

        self.class_tower, self.kernel_tower = tower(size.fpn_channels), tower(size.fpn_channels + 2)
        self.classes = nn.Conv2d(width, num_classes, 3, padding=1)
        self.kernels = nn.Conv2d(width, size.kernel_channels, 3, padding=1)
        for last in (self.classes, self.kernels):
            nn.init.normal_(last.weight, std=0.01)
            assert last.bias is not None
            nn.init.zeros_(last.bias)
        nn.init.constant_(self.classes.bias, math.log(CLASS_PRIOR / (1 - CLASS_PRIOR)))  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """features: (B, F, H, W) at strides 4 to 64. Returns class logits (B, T, C) and kernels (B, T, E), float32."""
        levels = self._levels(features)
        classes, kernels = [], []
        for grid, feature in zip(self.grids, levels, strict=True):
            cells = _resized(with_coordinates(feature), (grid, grid))
            classes.append(self.classes(self.class_tower(cells[:, :-2])))
            kernels.append(self.kernels(self.kernel_tower(cells)))
        return _in_a_row(classes), _in_a_row(kernels)

    def _levels(self, features: Sequence[Tensor]) -> list[Tensor]:
        if self.level_maps:
            return [features[number] for number in self.level_maps]
        finest, *middle, coarsest = features
        height, width = finest.shape[-2:]
        below = (middle[-1].shape[-2], middle[-1].shape[-1])
        return [_resized(finest, (height // 2, width // 2)), *middle, _resized(coarsest, below)]


class MaskBranch(nn.Module):
    """One map of mask features for the whole image."""

    def __init__(self, size: HeadSize) -> None:
        super().__init__()
        groups, width = size.norm_groups, size.mask_channels
        self.levels = nn.ModuleList()
        for level in range(MASK_LEVELS):
            inputs = size.fpn_channels + (2 if level == MASK_LEVELS - 1 else 0)
            layers = _block(inputs, width, groups) if level == 0 else []
            for number in range(level):
                layers += _block(inputs if number == 0 else width, width, groups)
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.levels.append(nn.Sequential(*layers))
        outputs = size.kernel_channels * size.mask_upsample**2
        layers = [nn.PixelShuffle(size.mask_upsample)] if size.mask_upsample > 1 else []
        self.last = nn.Sequential(*_block(width, outputs, groups, kernel=1), *layers)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """features: (B, F, H, W) at strides 4 to 32. Returns (B, E, h, w); coordinates go into the coarsest alone."""
        *fine, coarsest = features[:MASK_LEVELS]
        total = self.levels[0](fine[0])
        for level, feature in zip(list(self.levels)[1:], [*fine[1:], with_coordinates(coarsest)], strict=True):
            total = total + level(feature)
        said: Tensor = self.last(total)
        return said


def _in_a_row(maps: Sequence[Tensor]) -> Tensor:
    """(B, T, n) of maps (B, n, S, S): levels one after another, each row by row."""
    return torch.cat([each.flatten(2) for each in maps], dim=2).transpose(1, 2).float()
