"""Cascade Mask R-CNN (Cai and Vasconcelos 2019): three box stages, each trained at a stricter IoU on the boxes of the
one before, with the mask branch of Mask R-CNN.

As in ViTDet's and EVA-02's detectors: box regression knows no classes, every stage has its own box weights, scores of
the stages are averaged, and the gradient of a stage's features is divided by the number of stages. Letters: K
proposals, C categories.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.ops import clip_boxes_to_image

from leanmask.models.base import ClassAxes, class_positions, output_axes
from leanmask.models.mask_rcnn import MaskHeads, MaskPreset, MaskRCNN, MaskRCNNConfig
from leanmask.models.matching import IGNORED, Thresholds, assign, of_object
from leanmask.models.two_stage import BOX_CELLS, SMALL, BoxesOf, TwoStageConfig, start_unlikely
from leanmask.records import Proposals, Target

STAGE_IOUS = (0.5, 0.6, 0.7)
STAGE_CODE_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))


@dataclass(frozen=True)
class CascadePreset(MaskPreset):
    """The numbers that `CascadeMaskRCNNConfig` leaves to the backbone."""

    box_convs: int = 4
    rpn_convs: int = 2


_SMALL = {**vars(SMALL), "box_channels": 256}


class CascadeMaskRCNNConfig(MaskRCNNConfig):
    """Cascade Mask R-CNN. A setting that is null takes the backbone's own value: the published numbers, smaller ones
    for small backbones, whose `box_channels` is 256 here.
    """

    PUBLISHED: ClassVar[CascadePreset] = CascadePreset()
    SMALL: ClassVar[CascadePreset] = CascadePreset(**_SMALL, mask_channels=64, mask_convs=2, box_convs=0)

    name: Literal["cascade_mask_rcnn"] = "cascade_mask_rcnn"  # type: ignore[assignment]
    box_convs: int | None = Field(
        None, ge=0, description="convolutions of a stage's box head before its layer; 0 = two layers; null = 4, small 0"
    )


class ClassAgnosticPredictor(nn.Module):
    """Class logits (K, C + 1), background first, and one coded box (K, 4)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(channels, num_classes + 1)
        self.bbox_pred = nn.Linear(channels, 4)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(features).float(), self.bbox_pred(features).float()


class CascadeHeads(MaskHeads):
    """Mask R-CNN's mask branch beside three box stages."""

    def build_box_branch(self, config: TwoStageConfig, num_classes: int) -> None:
        preset = config.preset()
        assert isinstance(preset, CascadePreset)
        stages = range(len(STAGE_IOUS))
        self.box_heads = nn.ModuleList(_box_head(preset) for _ in stages)
        self.box_predictors = nn.ModuleList(ClassAgnosticPredictor(preset.box_channels, num_classes) for _ in stages)
        if config.class_loss == "sigmoid":
            for predictor in self.box_predictors:
                assert isinstance(predictor, ClassAgnosticPredictor)
                start_unlikely(predictor.cls_score)

    def box_class_axes(self) -> dict[str, ClassAxes]:
        """See `RoIHeads.box_class_axes`; boxes are of no class."""
        found: dict[str, ClassAxes] = {}
        for number, predictor in enumerate(self.box_predictors):
            assert isinstance(predictor, ClassAgnosticPredictor)
            count = predictor.cls_score.out_features - 1
            found |= output_axes(f"box_predictors.{number}.cls_score", class_positions(count, before=1))
        return found

    def describe(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """(K, D) what the last stage makes of boxes (K, 4)."""
        described: Tensor = self.box_heads[-1](self.box_pool(features, boxes, image_index))
        return described

    def stage(
        self, number: int, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Class logits (K, C + 1) and coded boxes (K, 4) of one stage for boxes (K, 4)."""
        pooled = scale_gradient(self.box_pool(features, boxes, image_index), 1 / len(STAGE_IOUS))
        said: tuple[Tensor, Tensor] = self.box_predictors[number](self.box_heads[number](pooled))
        return said


class CascadeMaskRCNN(MaskRCNN):
    """Three box stages and a mask branch; see the module's text."""

    Config = CascadeMaskRCNNConfig
    Heads = CascadeHeads
    roi_heads: CascadeHeads

    def __init__(self, config: CascadeMaskRCNNConfig, num_classes: int, pretrained: bool = True) -> None:
        super().__init__(config, num_classes, pretrained)
        self.coders = [BoxCoder(weights) for weights in STAGE_CODE_WEIGHTS]

    def box_losses(
        self, features: Sequence[Tensor], samples: Proposals, targets: Sequence[Target], canvas: tuple[int, int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """ "loss_classifier_1", "loss_box_1", ... of every stage; and the boxes that the last one predicts for what was
        positive in the first. See `TwoStage.box_losses`.
        """
        losses: dict[str, Tensor] = {}
        first, present = samples, samples
        for number, coder in enumerate(self.coders):
            if number:
                present = self.match_again(present, targets, STAGE_IOUS[number])
            logits, coded = self.roi_heads.stage(number, features, present.boxes, present.image_index)
            learned = present.object_index != IGNORED
            seen, positive = present[learned], present.object_index >= 0
            found = self.stage_losses((logits[learned], coded[positive]), seen, targets, coder)
            losses |= {f"{name}_{number + 1}": loss for name, loss in found.items()}
            refined = clip_boxes_to_image(coder.decode_single(coded.detach(), present.boxes), canvas)
            present = dataclasses.replace(present, boxes=refined)
        return losses, present.boxes[first.object_index >= 0]

    @torch.no_grad()
    def match_again(self, samples: Proposals, targets: Sequence[Target], iou: float) -> Proposals:
        """The same proposals, with the refined boxes that they have now, matched at another IoU; object_index may be
        IGNORED. No new ones are drawn.
        """
        objects = torch.full_like(samples.object_index, IGNORED)
        for image, target in enumerate(targets):
            own = samples.image_index == image
            objects[own] = assign(samples.boxes[own], target, Thresholds(positive=iou, background=iou))
        categories = torch.zeros_like(samples.categories)
        positive = objects >= 0
        known = [target.instances.categories for target in targets]
        categories[positive] = of_object(known, samples.image_index[positive], objects[positive])
        return dataclasses.replace(samples, object_index=objects, categories=categories)

    def score(
        self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor, canvas: tuple[int, int]
    ) -> tuple[Tensor, BoxesOf]:
        """The mean of the stages' probabilities and the last stage's boxes. See `TwoStage.score`."""
        total = torch.zeros(len(boxes), self.num_classes, device=boxes.device)
        for number, coder in enumerate(self.coders):
            logits, coded = self.roi_heads.stage(number, features, boxes, image_index)
            total = total + self.probabilities(logits)
            boxes = coder.decode_single(coded, boxes)
            if number + 1 < len(self.coders):
                boxes = clip_boxes_to_image(boxes, canvas)
        last = boxes
        return total / len(self.coders), lambda row, category: last[row]


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """The same values, with a gradient that is `factor` times as large."""
    fixed = values.detach()
    return fixed + (values - fixed) * factor


def _box_head(preset: CascadePreset) -> nn.Module:
    width, cells = preset.fpn_channels, BOX_CELLS
    if preset.box_convs == 0:
        return TwoMLPHead(width * cells**2, preset.box_channels)
    norm = partial(LayerNorm2d, eps=1e-6)
    return FastRCNNConvFCHead((width, cells, cells), [width] * preset.box_convs, [preset.box_channels], norm)
