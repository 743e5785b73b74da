"""The region proposal network (Faster R-CNN, section 3.1) on torchvision's head, anchors and box coder, for partly
labelled images.

Letters: B images, A anchors of all pyramid levels, K proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RPNHead, concat_box_prediction_layers
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from leanmask.distributed import global_mean
from leanmask.models.matching import Thresholds, assign, of_object, sample
from leanmask.records import Target

SMOOTH_L1_BETA = 1 / 9
SMALLEST_SIDE_PX = 1e-3


@dataclass(frozen=True)
class RpnSettings:
    """anchor_sizes: side in pixels, one per level. top_n: proposals per level before NMS and per image after it, each
    as (training, inference). samples: anchors per image in the loss. convs: of the head.
    """

    anchor_sizes: tuple[int, ...]
    before_nms: tuple[int, int]
    after_nms: tuple[int, int]
    samples: int
    nms: float
    convs: int = 1


@dataclass(frozen=True, eq=False)
class RpnOutput:
    """objectness: (B, A) logits. deltas: (B, A, 4) coded boxes. anchors: (A, 4) xyxy, network frame. per_level: anchors
    of each pyramid level.
    """

    objectness: Tensor
    deltas: Tensor
    anchors: Tensor
    per_level: list[int]


class RegionProposals(nn.Module):
    """Objectness and boxes for anchors at five strides; parameter names are those of torchvision's `rpn`."""

    def __init__(self, channels: int, settings: RpnSettings) -> None:
        super().__init__()
        ratios = ((0.5, 1.0, 2.0),) * len(settings.anchor_sizes)
        self.anchor_generator = AnchorGenerator(tuple((size,) for size in settings.anchor_sizes), ratios)
        self.head = RPNHead(channels, self.anchor_generator.num_anchors_per_location()[0], settings.convs)
        self.settings = settings
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.thresholds = Thresholds(positive=0.7, background=0.3, keep_best=True)
        self.sampler = BalancedPositiveNegativeSampler(settings.samples, positive_fraction=0.5)

    def forward(self, features: Sequence[Tensor], canvas: tuple[int, int]) -> RpnOutput:
        """features: (B, C, H, W) of each level. canvas: (height, width) of the network's input, pixels."""
        logits, deltas = self.head(list(features))
        per_level = [level[0].numel() for level in logits]
        objectness, coded = concat_box_prediction_layers(logits, deltas)
        images = len(features[0])
        anchors = self.anchors(features, canvas)
        return RpnOutput(
            objectness.float().reshape(images, -1), coded.float().reshape(images, -1, 4), anchors, per_level
        )

    def anchors(self, features: Sequence[Tensor], canvas: tuple[int, int]) -> Tensor:
        """(A, 4) float32 xyxy anchors, level by level, as torchvision orders them."""
        device = features[0].device
        sizes = [[feature.shape[-2], feature.shape[-1]] for feature in features]
        strides = [[torch.tensor(canvas[i] // size[i], device=device) for i in (0, 1)] for size in sizes]
        self.anchor_generator.set_cell_anchors(torch.float32, device)
        return torch.cat(self.anchor_generator.grid_anchors(sizes, strides))

    @torch.no_grad()
    def propose(self, output: RpnOutput, canvas: tuple[int, int], training: bool) -> list[Tensor]:
        """The best proposals of each image, (K, 4) xyxy clipped to the canvas, best first; no gradient."""
        before, after = (top[0 if training else 1] for top in (self.settings.before_nms, self.settings.after_nms))
        chosen, levels, start = [], [], 0
        for level, count in enumerate(output.per_level):
            top = output.objectness[:, start : start + count].topk(min(before, count), dim=1).indices
            chosen.append(top + start)
            levels.append(torch.full((top.shape[1],), level, device=top.device))
            start += count
        index, level_of = torch.cat(chosen, dim=1), torch.cat(levels)
        scores = output.objectness.gather(1, index).sigmoid()
        deltas = output.deltas.gather(1, index[..., None].expand(-1, -1, 4))
        boxes = self.coder.decode_single(deltas.reshape(-1, 4), output.anchors[index].reshape(-1, 4))
        boxes = clip_boxes_to_image(boxes, canvas).view(*index.shape, 4)
        return [self._suppress(b, s, level_of, after) for b, s in zip(boxes, scores, strict=True)]

    def _suppress(self, boxes: Tensor, scores: Tensor, levels: Tensor, after: int) -> Tensor:
        large = remove_small_boxes(boxes, SMALLEST_SIDE_PX)
        kept = batched_nms(boxes[large], scores[large], levels[large], self.settings.nms)
        return boxes[large][kept[:after]]

    def losses(self, output: RpnOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Binary cross-entropy of sampled anchors and smooth L1 of the positive ones, both per sampled anchor."""
        assigned = [assign(output.anchors, target, self.thresholds) for target in targets]
        sampled = sample(assigned, self.sampler)
        image = torch.arange(len(targets), device=output.anchors.device).repeat_interleave(
            torch.tensor([len(rows) for rows in sampled], device=output.anchors.device)
        )
        anchor = torch.cat(sampled)
        matched = torch.stack(assigned)[image, anchor]
        positive = matched >= 0
        owner = (image[positive], matched[positive])
        weights = torch.ones_like(matched, dtype=torch.float32)
        weights[positive] = of_object([target.instances.weights for target in targets], *owner)
        boxes = of_object([target.instances.boxes for target in targets], *owner)
        wanted = self.coder.encode_single(boxes, output.anchors[anchor[positive]])
        logits, coded = output.objectness[image, anchor], output.deltas[image, anchor][positive]
        objectness = F.binary_cross_entropy_with_logits(logits, positive.float(), weights, reduction="sum")
        distance = F.smooth_l1_loss(coded, wanted, beta=SMOOTH_L1_BETA, reduction="none").sum(1)
        return {
            "loss_objectness": global_mean(objectness, len(anchor)),
            "loss_rpn_box": global_mean((distance * weights[positive]).sum(), len(anchor)),
        }
