"""Mask R-CNN (He et al. 2017) on torchvision's parts, trained from masks, boxes, points and nothing.

With a ResNet backbone the parameters have the names and sizes of torchvision's `maskrcnn_resnet50_fpn`, its weights
load, and predictions and losses are torchvision's. Letters: B images, K proposals, N objects, C categories (contiguous,
without background; inside, class 0 is background and category c is c + 1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import batched_nms

from leanmask.config import Frozen
from leanmask.distributed import global_mean
from leanmask.masks import Grids
from leanmask.models.backbone import BackboneName, BackboneSpec, NormName, build_backbone, normalise
from leanmask.models.base import Model, finite_zero
from leanmask.models.mask_losses import MaskGrid, mask_loss
from leanmask.models.matching import Thresholds, assign, has_box, of_object, sample
from leanmask.models.pooling import RoIPool
from leanmask.models.rpn import SMOOTH_L1_BETA, RegionProposals, RpnSettings
from leanmask.models.weights import load_pretrained
from leanmask.records import Instances, MaskPredictions, Proposals, Supervision, Target

BOX_CELLS, MASK_CELLS = 7, 14
BOX_CODE_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SMALLEST_DETECTION_PX = 1e-2
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Content = Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Preset:
    """The numbers that `MaskRCNNConfig` leaves to the backbone; the defaults are torchvision's, for ResNets."""

    fpn_channels: int = 256
    box_channels: int = 1024
    mask_channels: int = 256
    mask_convs: int = 4
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    rpn_before_nms: tuple[int, int] = (2000, 1000)
    rpn_after_nms: tuple[int, int] = (2000, 1000)
    rpn_samples: int = 256
    proposals_per_image: int = 512
    detections_per_image: int = 100
    pool_samples: int = 2
    aligned: bool = False


TINY = Preset(
    fpn_channels=64,
    box_channels=512,
    mask_channels=64,
    mask_convs=2,
    anchor_sizes=(16, 32, 64, 128, 256),
    rpn_before_nms=(256, 256),
    rpn_after_nms=(256, 128),
    rpn_samples=128,
    proposals_per_image=64,
    aligned=True,
)


class MaskRCNNConfig(Frozen):
    """Mask R-CNN. A setting that is null takes the backbone's own value: torchvision's numbers for ResNets, smaller
    ones for `tiny`.
    """

    name: Literal["mask_rcnn"] = "mask_rcnn"
    backbone: BackboneName = Field("tiny", description="tiny: 5 M parameters, learns from scratch, fast on a CPU")
    weights: str | None = Field(
        None,
        description="torchvision weights (DEFAULT, IMAGENET1K_V1, ...; COCO_V1 for the whole resnet50 detector) or a "
        "local .pth, .pt or .safetensors file; null = from scratch",
    )
    trainable_layers: int | None = Field(
        None, ge=0, le=5, description="backbone stages that learn, from the top; null = 3 with weights, else 5"
    )
    norm: NormName | None = Field(None, description="null = frozen_batch with weights, else group")
    class_agnostic: bool = Field(False, description="one mask per proposal instead of one per class")
    fpn_channels: int | None = Field(None, ge=16, description="null = 256, tiny 64")
    box_channels: int | None = Field(None, ge=1, description="null = 1024, tiny 512")
    mask_channels: int | None = Field(None, ge=1, description="null = 256, tiny 64")
    mask_convs: int | None = Field(None, ge=1, description="convolutions of the mask head; null = 4, tiny 2")
    anchor_sizes: tuple[int, int, int, int, int] | None = Field(
        None, description="anchor side at strides 4 to 64, pixels; null = 32 to 512, tiny 16 to 256"
    )
    rpn_before_nms: tuple[int, int] | None = Field(
        None, description="proposals per level before NMS, training and inference; null = 2000, 1000, tiny 256, 256"
    )
    rpn_after_nms: tuple[int, int] | None = Field(
        None, description="proposals per image after NMS, training and inference; null = 2000, 1000, tiny 256, 128"
    )
    rpn_samples: int | None = Field(None, ge=2, description="anchors per image in the loss; null = 256, tiny 128")
    rpn_nms: float = Field(0.7, gt=0, le=1, description="IoU above which a worse proposal is dropped")
    proposals_per_image: int | None = Field(None, ge=2, description="in the box loss; null = 512, tiny 64")
    positive_fraction: float = Field(0.25, gt=0, le=1, description="largest share of positives among them")
    pool_samples: int | None = Field(None, ge=1, description="RoIAlign's samples per bin and axis; null = 2")
    aligned: bool | None = Field(
        None, description="pixel centres at + 0.5; null = false for ResNets, as torchvision's weights want, tiny true"
    )
    score_floor: float = Field(0.01, ge=0, le=1, description="detections at or below are dropped")
    nms: float = Field(0.5, gt=0, le=1, description="IoU above which a worse detection of the same class is dropped")
    detections_per_image: int | None = Field(None, ge=1, description="null = 100")

    def preset(self) -> Preset:
        """The backbone's numbers with this configuration's own on top."""
        base = TINY if self.backbone == "tiny" else Preset()
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(Preset)}
        return dataclasses.replace(base, **{name: value for name, value in own.items() if value is not None})

    def backbone_spec(self) -> BackboneSpec:
        norm: NormName = self.norm or ("frozen_batch" if self.weights and self.backbone != "tiny" else "group")
        layers = self.trainable_layers
        if layers is None:
            layers = 3 if self.weights and self.backbone != "tiny" else 5
        return BackboneSpec(self.backbone, norm, self.preset().fpn_channels, layers)


@dataclass(frozen=True, eq=False)
class Samples:
    """K proposals that the box head learns from: boxes (K, 4) xyxy, image_index (K,), object_index (K,) with -1 for
    background, categories (K,) of the object (0 where background).
    """

    boxes: Tensor
    image_index: Tensor
    object_index: Tensor
    categories: Tensor


class RoIHeads(nn.Module):
    """Box and mask branch; parameter names are those of torchvision's `roi_heads`."""

    def __init__(self, preset: Preset, num_classes: int, class_agnostic: bool) -> None:
        super().__init__()
        self.box_pool = RoIPool(BOX_CELLS, preset.pool_samples, preset.aligned)
        self.mask_pool = RoIPool(MASK_CELLS, preset.pool_samples, preset.aligned)
        self.box_head = TwoMLPHead(preset.fpn_channels * BOX_CELLS**2, preset.box_channels)
        self.box_predictor = FastRCNNPredictor(preset.box_channels, num_classes + 1)
        layers = (preset.mask_channels,) * preset.mask_convs
        self.mask_head = MaskRCNNHeads(preset.fpn_channels, layers, 1)
        channels = 1 if class_agnostic else num_classes + 1
        self.mask_predictor = MaskRCNNPredictor(preset.mask_channels, preset.mask_channels, channels)
        self.class_agnostic = class_agnostic

    def classify(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (K, C + 1), background first, and coded boxes (K, C + 1, 4) for boxes (K, 4)."""
        logits, coded = self.box_predictor(self.box_head(self.box_pool(features, boxes, image_index)))
        return logits.float(), coded.float().reshape(len(boxes), logits.shape[1], 4)

    def masks(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Mask logits (K, C, 28, 28) for boxes (K, 4); C = 1 for a class-agnostic branch."""
        if len(boxes) == 0:
            channels = 1 if self.class_agnostic else self.mask_predictor.mask_fcn_logits.out_channels - 1
            nothing = finite_zero(self.mask_head) + finite_zero(self.mask_predictor)
            return features[0].new_zeros(0, channels, 2 * MASK_CELLS, 2 * MASK_CELLS).float() + nothing
        logits = upsampled_logits(self.mask_predictor, self._cells(features, boxes, image_index))
        return logits.float() if self.class_agnostic else logits[:, 1:].float()

    def own_masks(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor, categories: Tensor) -> Tensor:
        """(K, 28, 28) mask logits of each box's own class (K,), without computing the others."""
        if len(boxes) == 0:
            return features[0].new_zeros(0, 2 * MASK_CELLS, 2 * MASK_CELLS, dtype=torch.float32)
        channels = torch.zeros_like(categories) if self.class_agnostic else categories + 1
        cells = self._cells(features, boxes, image_index)
        return upsampled_logits(self.mask_predictor, cells, channels)[:, 0].float()

    def _cells(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        cells: Tensor = self.mask_head(self.mask_pool(features, boxes, image_index))
        return cells


class MaskRCNN(Model):
    """Two-stage detector with a mask branch; see the module's text."""

    Config: ClassVar[type[MaskRCNNConfig]] = MaskRCNNConfig
    mean: Tensor
    std: Tensor

    def __init__(self, config: MaskRCNNConfig, num_classes: int, pretrained: bool = True) -> None:
        """num_classes: foreground categories. pretrained: False skips `config.weights`, for a checkpoint that follows.

        `weights_note` says what was loaded and what was left out. Raises CheckpointError.
        """
        super().__init__()
        self.config, self.num_classes = config, num_classes
        preset = self.preset = config.preset()
        self.backbone = build_backbone(config.backbone_spec())
        self.rpn = RegionProposals(
            preset.fpn_channels,
            RpnSettings(
                anchor_sizes=preset.anchor_sizes,
                before_nms=preset.rpn_before_nms,
                after_nms=preset.rpn_after_nms,
                samples=preset.rpn_samples,
                nms=config.rpn_nms,
            ),
        )
        self.roi_heads = RoIHeads(preset, num_classes, config.class_agnostic)
        self.coder = BoxCoder(BOX_CODE_WEIGHTS)
        self.thresholds = Thresholds(positive=0.5, background=0.5)
        self.sampler = BalancedPositiveNegativeSampler(preset.proposals_per_image, config.positive_fraction)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)
        wanted = config.weights if pretrained else None
        self.weights_note = load_pretrained(self, config.backbone, wanted) if wanted else "initialised from scratch"

    def backbone_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.backbone.body.parameters() if parameter.requires_grad]

    def features(self, images: Tensor) -> list[Tensor]:
        """The pyramid's maps (B, channels, H, W) at strides 4, 8, 16, 32, 64; the RoI branches use the first four."""
        return list(self.backbone(normalise(images, self.mean, self.std)).values())

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[dict[str, Tensor], MaskPredictions]:
        """Losses "loss_objectness", "loss_rpn_box", "loss_classifier", "loss_box", "loss_mask", and mask logits for all
        positive proposals, also those whose object has no mask. See `Model.forward`.
        """
        canvas = canvas_of(images)
        features = self.features(images)
        output = self.rpn(features, canvas)
        losses = self.rpn.losses(output, targets)
        samples = self.choose(self.rpn.propose(output, canvas, training=True), targets)
        losses |= self.box_losses(features[:4], samples, targets)
        predictions = self._masks_of_positives(features[:4], samples)
        losses["loss_mask"] = mask_loss(predictions, targets, self.mask_grid(canvas))
        return losses, predictions

    def mask_grid(self, canvas: tuple[int, int]) -> MaskGrid:
        return MaskGrid(2 * MASK_CELLS, canvas, self.preset.aligned)

    @torch.no_grad()
    def choose(self, proposals: Sequence[Tensor], targets: Sequence[Target]) -> Samples:
        """Proposals and the objects' own boxes, matched and sampled for the box head."""
        candidates, assigned = [], []
        for boxes, target in zip(proposals, targets, strict=True):
            own = target.instances.boxes[has_box(target) & (target.instances.weights > 0)]
            candidates.append(torch.cat([boxes, own]))
            assigned.append(assign(candidates[-1], target, self.thresholds))
        chosen = sample(assigned, self.sampler)
        boxes = torch.cat([boxes[rows] for boxes, rows in zip(candidates, chosen, strict=True)])
        objects = torch.cat([index[rows] for index, rows in zip(assigned, chosen, strict=True)])
        counts = torch.tensor([len(rows) for rows in chosen], device=boxes.device)
        images = torch.arange(len(chosen), device=boxes.device).repeat_interleave(counts)
        categories = torch.zeros_like(objects)
        positive = objects >= 0
        known = [target.instances.categories for target in targets]
        categories[positive] = of_object(known, images[positive], objects[positive])
        return Samples(boxes, images, objects, categories)

    def box_losses(self, features: Sequence[Tensor], samples: Samples, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Cross-entropy over classes and smooth L1 of the positives' own class, both per sampled proposal."""
        logits, coded = self.roi_heads.classify(features, samples.boxes, samples.image_index)
        positive = samples.object_index >= 0
        owner = (samples.image_index[positive], samples.object_index[positive])
        weights = torch.ones_like(samples.boxes[:, 0])
        weights[positive] = of_object([target.instances.weights for target in targets], *owner)
        boxes = of_object([target.instances.boxes for target in targets], *owner)
        wanted = self.coder.encode_single(boxes, samples.boxes[positive])
        own = coded[positive, samples.categories[positive] + 1]
        distance = F.smooth_l1_loss(own, wanted, beta=SMOOTH_L1_BETA, reduction="none").sum(1)
        classes = class_targets(samples, targets, self.num_classes)
        surprise = F.cross_entropy(logits, classes, reduction="none")
        return {
            "loss_classifier": global_mean((surprise * weights).sum(), len(weights)),
            "loss_box": global_mean((distance * weights[positive]).sum(), len(weights)),
        }

    def _masks_of_positives(self, features: Sequence[Tensor], samples: Samples) -> MaskPredictions:
        positive = samples.object_index >= 0
        boxes, images = samples.boxes[positive], samples.image_index[positive]
        return MaskPredictions(
            image_index=images,
            boxes=boxes,
            object_index=samples.object_index[positive],
            categories=samples.categories[positive],
            logits=self.roi_heads.masks(features, boxes, images),
        )

    def predict_masks(self, images: Tensor, proposals: Proposals) -> MaskPredictions:
        """Backbone and mask branch only. See `Model.predict_masks`."""
        features = self.features(images)[:4] if len(proposals.boxes) else [images]
        return MaskPredictions(
            image_index=proposals.image_index,
            boxes=proposals.boxes,
            object_index=proposals.object_index,
            categories=proposals.categories,
            logits=self.roi_heads.masks(features, proposals.boxes, proposals.image_index),
        )

    @torch.no_grad()
    def predict(self, images: Tensor, content: Content | None = None) -> list[Instances]:
        """Detections with 28 x 28 mask grids over their boxes; `class_probabilities` (N, C) leave out background, so
        that a row's sum is the probability of any object. See `Model.predict`.
        """
        canvas = canvas_of(images)
        features = self.features(images)
        proposals = self.rpn.propose(self.rpn(features, canvas), canvas, training=False)
        counts = torch.tensor([len(boxes) for boxes in proposals], device=images.device)
        image_index = torch.arange(len(images), device=images.device).repeat_interleave(counts)
        boxes = torch.cat(proposals)
        logits, coded = self.roi_heads.classify(features[:4], boxes, image_index)
        found = self._detect(logits.softmax(1)[:, 1:], coded[:, 1:], boxes, image_index, _limits(images, content))
        return self._with_masks(features[:4], found)

    def _detect(
        self, probabilities: Tensor, coded: Tensor, proposals: Tensor, image_index: Tensor, limits: Tensor
    ) -> list[Instances]:
        row, category = torch.nonzero(probabilities > self.config.score_floor, as_tuple=True)
        boxes = self.coder.decode_single(coded[row, category], proposals[row])
        image, scores = image_index[row], probabilities[row, category]
        boxes = torch.minimum(torch.maximum(boxes, limits[image, :2].repeat(1, 2)), limits[image, 2:].repeat(1, 2))
        large = ((boxes[:, 2:] - boxes[:, :2]) >= SMALLEST_DETECTION_PX).all(1)
        found = []
        for i in range(len(limits)):
            own = torch.nonzero(large & (image == i))[:, 0]
            kept = batched_nms(boxes[own], scores[own], category[own], self.config.nms)
            best = own[kept[: self.preset.detections_per_image]]
            found.append(
                Instances(
                    boxes=boxes[best],
                    categories=category[best],
                    supervision=torch.full_like(best, int(Supervision.NONE)),
                    weights=torch.ones_like(scores[best]),
                    scores=scores[best],
                    class_probabilities=probabilities[row[best]],
                )
            )
        return found

    def _with_masks(self, features: Sequence[Tensor], found: list[Instances]) -> list[Instances]:
        counts = [len(instances) for instances in found]
        boxes = torch.cat([instances.boxes for instances in found])
        categories = torch.cat([instances.categories for instances in found])
        images = torch.arange(len(found), device=boxes.device).repeat_interleave(
            torch.tensor(counts, device=boxes.device)
        )
        values = self.roi_heads.own_masks(features, boxes, images, categories).sigmoid()
        return [
            instances.replace(masks=Grids(part, instances.boxes))
            for instances, part in zip(found, values.split(counts), strict=True)
        ]


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
    hidden = F.linear(cells, weight, deconv.bias.repeat(4)).relu_().view(count, -1, deconv.out_channels)
    if channels is None:
        logits = F.linear(hidden, last.weight.flatten(1), last.bias)
    else:
        logits = hidden @ last.weight.flatten(1)[channels, :, None] + last.bias[channels, None, None]
    grid = logits.view(count, rows, columns, 2, 2, -1).permute(0, 5, 1, 3, 2, 4)
    return grid.reshape(count, -1, 2 * rows, 2 * columns)


def class_targets(samples: Samples, targets: Sequence[Target], num_classes: int) -> Tensor:
    """What the class logits are to be: (K,) int64 with 0 for background, or (K, C + 1) probabilities where some objects
    carry soft classes (rows are scaled to sum to 1; an object in doubt is not background).
    """
    positive = samples.object_index >= 0
    classes = torch.where(positive, samples.categories + 1, 0)
    if all(target.instances.class_probabilities is None for target in targets):
        return classes
    soft = F.one_hot(classes, num_classes + 1).float()
    given = [_soft_classes(target, num_classes) for target in targets]
    soft[positive, 1:] = of_object(given, samples.image_index[positive], samples.object_index[positive])
    return soft


def _soft_classes(target: Target, num_classes: int) -> Tensor:
    instances = target.instances
    if instances.class_probabilities is None:
        return F.one_hot(instances.categories, num_classes).float()
    given = instances.class_probabilities.float()
    return given / given.sum(1, keepdim=True).clamp(min=1e-6)


def canvas_of(images: Tensor) -> tuple[int, int]:
    """(height, width) of the network's input, pixels."""
    return int(images.shape[-2]), int(images.shape[-1])


def _limits(images: Tensor, content: Content | None) -> Tensor:
    height, width = canvas_of(images)
    boxes = [(0.0, 0.0, float(width), float(height))] * len(images) if content is None else list(content)
    return torch.tensor(boxes, dtype=torch.float32, device=images.device).reshape(-1, 4)
