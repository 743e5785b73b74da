"""Mask R-CNN (He et al. 2017): a 28 x 28 mask per class from pooled features.

With a ResNet backbone the parameters have the names and sizes of torchvision's `maskrcnn_resnet50_fpn`, its weights
load, and predictions and losses are torchvision's. Letters: K proposals, C categories, S cells along one side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from leanmask.models.base import ClassAxes, class_positions, finite_zero, output_axes
from leanmask.models.crops import convolve_crops
from leanmask.models.mask_losses import has_mask, mask_loss
from leanmask.models.matching import of_object
from leanmask.models.pooling import RoIPool
from leanmask.models.two_stage import SMALL, Preset, RoIHeads, TwoStage, TwoStageConfig
from leanmask.records import MaskPredictions, Proposals, Target

MASK_CELLS = 14


@dataclass(frozen=True)
class MaskPreset(Preset):
    """The numbers that `MaskRCNNConfig` leaves to the backbone."""

    mask_channels: int = 256
    mask_convs: int = 4


class MaskRCNNConfig(TwoStageConfig):
    """Mask R-CNN. A setting that is null takes the backbone's own value: torchvision's numbers for ResNets, smaller
    ones for small backbones (`tiny`, `lite0` to `lite2`).
    """

    PUBLISHED: ClassVar[MaskPreset] = MaskPreset()
    SMALL: ClassVar[MaskPreset] = MaskPreset(**vars(SMALL), mask_channels=64, mask_convs=2)

    name: Literal["mask_rcnn"] = "mask_rcnn"
    mask_channels: int | None = Field(None, ge=1, description="null = 256, small 64")
    mask_convs: int | None = Field(None, ge=1, description="convolutions of the mask head; null = 4, small 2")


class MaskHeads(RoIHeads):
    """Mask R-CNN's branch: convolutions on 14 x 14 cells, doubled, one logit per class."""

    def __init__(self, config: TwoStageConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        preset = config.preset()
        assert isinstance(preset, MaskPreset)
        self.mask_pool = RoIPool(MASK_CELLS, preset.pool_samples, preset.aligned)
        self.grid_shift_px = 0.0 if preset.aligned else 0.5
        self.mask_head = MaskRCNNHeads(preset.fpn_channels, (preset.mask_channels,) * preset.mask_convs, 1)
        channels = 1 if config.class_agnostic else num_classes + 1
        self.mask_predictor = MaskRCNNPredictor(preset.mask_channels, preset.mask_channels, channels)
        self.class_agnostic = config.class_agnostic
        self.config = config

    def class_axes(self) -> dict[str, ClassAxes]:
        """See `Model.class_axes`; a mask of the background comes first and is never used."""
        found = super().class_axes()
        if self.class_agnostic:
            return found
        count = self.mask_predictor.mask_fcn_logits.out_channels - 1
        return found | output_axes("mask_predictor.mask_fcn_logits", class_positions(count, before=1))

    def mask_losses(
        self, features: Sequence[Tensor], positives: Proposals, targets: Sequence[Target], canvas: tuple[int, int]
    ) -> tuple[dict[str, Tensor], MaskPredictions]:
        """ "loss_mask", and the logits of every class for the positives whose object has no mask. Those that have one
        learn on their own class alone, so the others are not computed; of 80 classes they took a tenth of a step.
        """
        grid = self.config.mask_grid(2 * MASK_CELLS, canvas)
        if len(positives) == 0 or self.class_agnostic:
            predictions = positives.predictions(self.teaching_masks(features, positives.boxes, positives.image_index))
            return {"loss_mask": mask_loss(predictions, targets, grid)}, predictions
        cells = self._cells(features, positives.boxes, positives.image_index)
        masked = of_object([has_mask(target) for target in targets], positives.image_index, positives.object_index)
        if bool(masked.all()):  # no rows to pick, which are copies
            own = upsampled_logits(self.mask_predictor, cells, positives.categories + 1)[:, 0].float()
            nothing = features[0].new_zeros(0, self.mask_predictor.mask_fcn_logits.out_channels - 1, *own.shape[1:])
            predictions = positives[~masked].predictions(nothing.float())
        else:
            known, unknown = torch.nonzero(masked)[:, 0], torch.nonzero(~masked)[:, 0]
            learning = upsampled_logits(self.mask_predictor, cells[known], positives.categories[known] + 1).float()
            every = upsampled_logits(self.mask_predictor, cells[unknown])[:, 1:].float()
            predictions = positives[unknown].predictions(every)
            own = torch.cat([learning[:, 0], predictions.of_category()])[torch.cat([known, unknown]).argsort()]
        return {"loss_mask": mask_loss(positives.predictions(own[:, None]), targets, grid)}, predictions

    def teaching_masks(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """(K, C, 28, 28) mask logits. See `RoIHeads.teaching_masks`."""
        if len(boxes) == 0:
            channels = 1 if self.class_agnostic else self.mask_predictor.mask_fcn_logits.out_channels - 1
            nothing = finite_zero(self.mask_head) + finite_zero(self.mask_predictor)
            return features[0].new_zeros(0, channels, 2 * MASK_CELLS, 2 * MASK_CELLS).float() + nothing
        logits = upsampled_logits(self.mask_predictor, self._cells(features, boxes, image_index))
        return logits.float() if self.class_agnostic else logits[:, 1:].float()

    def own_masks(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor, categories: Tensor) -> Tensor:
        """(K, 28, 28) mask logits of each box's own class (K,), without computing the others. See `RoIHeads`."""
        if len(boxes) == 0:
            return features[0].new_zeros(0, 2 * MASK_CELLS, 2 * MASK_CELLS, dtype=torch.float32)
        channels = torch.zeros_like(categories) if self.class_agnostic else categories + 1
        cells = self._cells(features, boxes, image_index)
        return upsampled_logits(self.mask_predictor, cells, channels)[:, 0].float()

    def _cells(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        return convolve_crops(self.mask_head, self.mask_pool(features, boxes, image_index))


class MaskRCNN(TwoStage):
    """Two-stage detector with Mask R-CNN's branch; see the module's text."""

    Config = MaskRCNNConfig
    Heads = MaskHeads


def upsampled_logits(predictor: MaskRCNNPredictor, features: Tensor, channels: Tensor | None = None) -> Tensor:
    """`predictor(features)`, (K, channels, 2S, 2S) from (K, c, S, S), with matrix products; (K, 1, 2S, 2S) where
    `channels` (K,) names the only one wanted of each.

    A transposed convolution of stride 2 and size 2 is one linear map from a cell to its four new ones, followed here by
    another to the logits; only the logits are put in place. On CPUs the transposed convolution's own backward pass took
    a seventh of a training step.
    """
    deconv, last = predictor.conv5_mask, predictor.mask_fcn_logits
    count, width, rows, columns = features.shape
    cells = features.permute(0, 2, 3, 1).reshape(-1, width)
    weight = deconv.weight.permute(2, 3, 1, 0).reshape(-1, width)
    hidden = F.linear(cells, weight, deconv.bias.repeat(4)).relu_().view(count, 4 * rows * columns, deconv.out_channels)
    if channels is None:
        logits = F.linear(hidden, last.weight.flatten(1), last.bias)
    else:
        logits = hidden @ last.weight.flatten(1)[channels, :, None] + last.bias[channels, None, None]
    grid = logits.view(count, rows, columns, 2, 2, logits.shape[-1]).permute(0, 5, 1, 3, 2, 4)
    return grid.reshape(count, logits.shape[-1], 2 * rows, 2 * columns)
