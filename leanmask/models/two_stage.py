"""The two-stage detector that Mask R-CNN, PointRend and Implicit PointRend share: backbone, RPN and box branch on
torchvision's parts, trained from masks, boxes, points and nothing. A model adds its mask branch, a `RoIHeads`.

With a ResNet backbone the parameters have torchvision's names and sizes, and boxes and losses are torchvision's.
Letters: B images, K proposals, N objects, C categories (contiguous, without background; inside, class 0 is background
and category c is c + 1), P points, S cells along one side of a grid.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import batched_nms, clip_boxes_to_image, roi_align

from leanmask.distributed import global_mean
from leanmask.masks import Grids
from leanmask.models.backbone import build_backbone, normalise
from leanmask.models.backbone_config import BackboneConfig
from leanmask.models.base import ClassAxes, Content, Model, Worth, class_positions, only_worth, output_axes
from leanmask.models.class_losses import class_targets, draw_classes, looked_for, sigmoid_loss, softmax_loss
from leanmask.models.mask_losses import MaskGrid, MaskMean, PointMean, keep_points
from leanmask.models.matching import Thresholds, assign, has_box, of_object, sample
from leanmask.models.pooling import RoIPool
from leanmask.models.rpn import SMOOTH_L1_BETA, RegionProposals, RpnSettings
from leanmask.models.spec import BackboneSpec
from leanmask.models.weights import load_pretrained
from leanmask.records import Instances, MaskPredictions, Proposals, Supervision, Target

BOX_CELLS = 7
BOX_CODE_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SMALLEST_DETECTION_PX = 1e-2
PRIOR = 0.01  # first probability of every class where classes are sigmoids (RetinaNet)
BoxesOf = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Preset:
    """The numbers that `TwoStageConfig` leaves to the backbone; the defaults are torchvision's, for ResNets."""

    fpn_channels: int = 256
    box_channels: int = 1024
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    rpn_before_nms: tuple[int, int] = (2000, 1000)
    rpn_after_nms: tuple[int, int] = (2000, 1000)
    rpn_samples: int = 256
    proposals_per_image: int = 512
    detections_per_image: int = 100
    pool_samples: int = 2
    aligned: bool = False
    rpn_convs: int = 1


SMALL = Preset(
    fpn_channels=64,
    box_channels=512,
    anchor_sizes=(16, 32, 64, 128, 256),
    rpn_before_nms=(256, 256),
    rpn_after_nms=(256, 128),
    rpn_samples=128,
    proposals_per_image=64,
    aligned=True,
)


class TwoStageConfig(BackboneConfig):
    """Settings of the backbone and the boxes. One that is null takes the backbone's own value: torchvision's numbers
    for ResNets, smaller ones for small backbones (`tiny`, `lite0` to `lite2`).
    """

    PUBLISHED: ClassVar[Preset] = Preset()
    SMALL: ClassVar[Preset] = SMALL
    PUBLISHED_LAYERS: ClassVar[int] = 3

    name: str
    class_agnostic: bool = Field(False, description="one mask per proposal instead of one per class")
    fpn_channels: int | None = Field(None, ge=16, description="null = 256, small 64")
    box_channels: int | None = Field(None, ge=1, description="null = 1024, small 512")
    anchor_sizes: tuple[int, int, int, int, int] | None = Field(
        None, description="anchor side at strides 4 to 64, pixels; null = 32 to 512, small 16 to 256"
    )
    rpn_before_nms: tuple[int, int] | None = Field(
        None, description="proposals per level before NMS, training and inference; null = 2000, 1000, small 256, 256"
    )
    rpn_after_nms: tuple[int, int] | None = Field(
        None, description="proposals per image after NMS, training and inference; null = 2000, 1000, small 256, 128"
    )
    rpn_samples: int | None = Field(None, ge=2, description="anchors per image in the loss; null = 256, small 128")
    rpn_convs: int | None = Field(
        None, ge=1, description="convolutions of the proposal head; null = 1 (cascade_mask_rcnn: 2, small 1)"
    )
    rpn_nms: float = Field(0.7, gt=0, le=1, description="IoU above which a worse proposal is dropped")
    proposals_per_image: int | None = Field(None, ge=2, description="in the box loss; null = 512, small 64")
    positive_fraction: float = Field(0.25, gt=0, le=1, description="largest share of positives among them")
    pool_samples: int | None = Field(None, ge=1, description="RoIAlign's samples per bin and axis; null = 2")
    aligned: bool | None = Field(
        None, description="pixel centres at + 0.5; null = false for ResNets, as torchvision's weights want, small true"
    )
    score_floor: float = Field(0.01, ge=0, le=1, description="detections at or below are dropped")
    nms: float = Field(0.5, gt=0, le=1, description="IoU above which a worse detection of the same class is dropped")
    detections_per_image: int | None = Field(None, ge=1, description="null = 100")
    class_loss: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="one class or background; or a yes or no for every class, as LVIS detectors have it"
    )
    federated_classes: int | None = Field(
        50,
        ge=1,
        description="class_loss=sigmoid: classes that learn in a step, those of its objects and others drawn by the "
        "square root of their images; null = all",
    )
    train_on_predicted_boxes: bool = Field(
        False, description="the mask branch learns from the boxes that the box branch predicts, not from proposals"
    )
    points_kept: float = Field(
        1.0, gt=0, le=1, description="share of an object's classified points that each step draws to learn from"
    )
    point_mean: PointMean = Field(
        "all",
        description="what the loss of classified points is a mean over: all of an object's points, those "
        "outside the proposal counting as 0 (all, as published), or those inside the proposal",
    )
    point_weight: float = Field(
        1.0, ge=0, description="of the mask loss of an object with classified points, over that of one with a mask"
    )
    mask_mean: MaskMean = Field(
        "taught",
        description="what the mask loss is a mean over: the positive proposals whose object has a mask or points "
        "(taught, as published), or all of them (positives), so that the few masks of a step weigh no more than among "
        "many",
    )

    def preset(self) -> Preset:
        """The numbers of the network, as configured."""
        found = self.sizes()
        assert isinstance(found, Preset)
        return found

    def mask_grid(self, cells: int, canvas: tuple[int, int]) -> MaskGrid:
        """How masks are sampled and weighed on a grid of so many cells over each box."""
        return MaskGrid(cells, canvas, self.preset().aligned, self.point_mean, self.mask_mean, self.point_weight)

    def backbone_spec(self) -> BackboneSpec:
        """What to build of these settings."""
        return self.spec_of(self.preset().fpn_channels)


class RoIHeads(nn.Module, ABC):
    """Box branch, and the promises of a mask branch; parameter names are those of torchvision's `roi_heads`."""

    grid_shift_px: float = 0.0  # of the grids that own_masks makes, see masks.Grids

    def __init__(self, config: TwoStageConfig, num_classes: int) -> None:
        super().__init__()
        preset = config.preset()
        self.box_pool = RoIPool(BOX_CELLS, preset.pool_samples, preset.aligned)
        self.build_box_branch(config, num_classes)

    def build_box_branch(self, config: TwoStageConfig, num_classes: int) -> None:
        """Make the modules that `TwoStage.box_losses` and `TwoStage.score` need."""
        preset = config.preset()
        self.box_head = TwoMLPHead(preset.fpn_channels * BOX_CELLS**2, preset.box_channels)
        self.box_predictor = FastRCNNPredictor(preset.box_channels, num_classes + 1)
        if config.class_loss == "sigmoid":
            start_unlikely(self.box_predictor.cls_score)

    def describe(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """(K, D) what the box branch makes of boxes (K, 4), from which it tells their classes."""
        described: Tensor = self.box_head(self.box_pool(features, boxes, image_index))
        return described

    def classify(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (K, C + 1), background first, and coded boxes (K, C + 1, 4) for boxes (K, 4)."""
        logits, coded = self.box_predictor(self.describe(features, boxes, image_index))
        return logits.float(), coded.float().reshape(len(boxes), logits.shape[1], 4)

    @abstractmethod
    def mask_losses(
        self, features: Sequence[Tensor], positives: Proposals, targets: Sequence[Target], canvas: tuple[int, int]
    ) -> tuple[dict[str, Tensor], MaskPredictions]:
        """Losses of K positive proposals whose objects have a mask or points, and the teaching grids (see
        `teaching_masks`) of at least those whose objects have no mask. canvas: (height, width), pixels.
        """

    @abstractmethod
    def teaching_masks(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Mask logits (K, C, S, S) over boxes (K, 4), of every class, on the grid on which a teacher's masks become a
        student's targets; C = 1 for a class-agnostic branch.
        """

    @abstractmethod
    def own_masks(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor, categories: Tensor) -> Tensor:
        """(K, S, S) mask logits of each box's own class (K,), as fine as inference makes them."""

    def class_axes(self) -> dict[str, ClassAxes]:
        """See `Model.class_axes`. Branches with masks of each class add theirs."""
        return self.box_class_axes()

    def box_class_axes(self) -> dict[str, ClassAxes]:
        """The same of the box branch alone; class logits and boxes have a background first."""
        count = self.box_predictor.cls_score.out_features - 1
        return {
            **output_axes("box_predictor.cls_score", class_positions(count, before=1)),
            **output_axes("box_predictor.bbox_pred", class_positions(count, each=4, before=4)),
        }

    def fresh(self) -> tuple[str, ...]:
        """Prefixes of parameters, such as "mask_head.", that the weights of a Mask R-CNN do not hold."""
        return ()


class TwoStage(Model):
    """A detector with a mask branch; see the module's text."""

    Config: ClassVar[type[TwoStageConfig]]
    Heads: ClassVar[type[RoIHeads]]
    mean: Tensor
    std: Tensor

    def __init__(self, config: TwoStageConfig, num_classes: int, pretrained: bool = True) -> None:
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
                convs=preset.rpn_convs,
            ),
        )
        self.roi_heads = self.Heads(config, num_classes)
        self.coder = BoxCoder(BOX_CODE_WEIGHTS)
        self.thresholds = Thresholds(positive=0.5, background=0.5)
        self.sampler = BalancedPositiveNegativeSampler(preset.proposals_per_image, config.positive_fraction)
        self.image_counts = torch.ones(num_classes)
        self.register_buffer("mean", torch.tensor(config.image_mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.image_std)[:, None, None], persistent=False)
        if pretrained:
            fresh = tuple(f"roi_heads.{prefix}" for prefix in self.roi_heads.fresh())
            spec, wanted = config.backbone_spec(), config.weights
            self.weights_note = config.start_note(load_pretrained(self, spec, wanted, fresh) if wanted else None)

    def tell_image_counts(self, counts: Sequence[int]) -> None:
        """See `Model.tell_image_counts`."""
        self.image_counts = torch.tensor(counts, dtype=torch.float32)

    def class_axes(self) -> dict[str, ClassAxes]:
        """See `Model.class_axes`."""
        return {f"roi_heads.{name}": axes for name, axes in self.roi_heads.class_axes().items()}

    def backbone_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.backbone.body.parameters() if parameter.requires_grad]

    def features(self, images: Tensor) -> list[Tensor]:
        """The pyramid's maps (B, channels, H, W) at strides 4, 8, 16, 32, 64; the RoI branches use the first four."""
        return list(self.backbone(normalise(images, self.mean, self.std)).values())

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[dict[str, Tensor], MaskPredictions]:
        """Losses "loss_objectness", "loss_rpn_box", "loss_classifier", "loss_box" and those of the mask branch. See
        `Model.forward`.
        """
        canvas = canvas_of(images)
        features = self.features(images)
        output = self.rpn(features, canvas)
        losses = self.rpn.losses(output, targets)
        samples = self.choose(self.rpn.propose(output, canvas, training=True), targets)
        box_losses, refined = self.box_losses(features[:4], samples, targets, canvas)
        positives = samples[samples.object_index >= 0]
        if self.config.train_on_predicted_boxes:
            positives = dataclasses.replace(positives, boxes=clip_boxes_to_image(refined, canvas))
        taught = keep_points(targets, self.config.points_kept)
        mask_losses, predictions = self.roi_heads.mask_losses(features[:4], positives, taught, canvas)
        return losses | box_losses | mask_losses, predictions

    @torch.no_grad()
    def choose(self, proposals: Sequence[Tensor], targets: Sequence[Target]) -> Proposals:
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
        return Proposals(boxes=boxes, image_index=images, object_index=objects, categories=categories)

    def box_losses(
        self, features: Sequence[Tensor], samples: Proposals, targets: Sequence[Target], canvas: tuple[int, int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Classification loss and smooth L1 of the positives' own class, both per sampled proposal; and the boxes
        (K', 4) that the positives' own class predicts, without gradient. canvas: (height, width), pixels.
        """
        logits, coded = self.roi_heads.classify(features, samples.boxes, samples.image_index)
        positive = samples.object_index >= 0
        own = coded[positive, samples.categories[positive] + 1]
        losses = self.stage_losses((logits, own), samples, targets, self.coder)
        return losses, self.coder.decode_single(own.detach(), samples.boxes[positive])

    def stage_losses(
        self, said: tuple[Tensor, Tensor], samples: Proposals, targets: Sequence[Target], coder: BoxCoder
    ) -> dict[str, Tensor]:
        """ "loss_classifier" and "loss_box" of what a box branch said: class logits (K, C + 1) of all samples, coded
        boxes (K', 4) of the positive ones.
        """
        logits, coded = said
        positive = samples.object_index >= 0
        owner = (samples.image_index[positive], samples.object_index[positive])
        weights = torch.ones_like(samples.boxes[:, 0])
        weights[positive] = of_object([target.instances.weights for target in targets], *owner)
        boxes = of_object([target.instances.boxes for target in targets], *owner)
        wanted = coder.encode_single(boxes, samples.boxes[positive])
        distance = F.smooth_l1_loss(coded, wanted, beta=SMOOTH_L1_BETA, reduction="none").sum(1)
        surprise = self.class_losses(logits, samples, targets)
        return {
            "loss_classifier": global_mean((surprise * weights).sum(), len(weights)),
            "loss_box": global_mean((distance * weights[positive]).sum(), len(weights)),
        }

    def class_losses(self, logits: Tensor, samples: Proposals, targets: Sequence[Target]) -> Tensor:
        """(K,) classification loss of each sample, by `class_loss`."""
        owners = torch.where(samples.object_index >= 0, samples.categories, -1)
        allowed = looked_for(targets, samples.image_index, owners, self.num_classes)
        if self.config.class_loss == "softmax":
            return softmax_loss(logits, class_targets(samples, targets, self.num_classes), allowed)
        if self.config.federated_classes is not None and self.config.federated_classes < self.num_classes:
            present = torch.zeros(self.num_classes, dtype=torch.bool, device=logits.device)
            present[torch.cat([target.instances.categories for target in targets])] = True
            drawn = draw_classes(present, self.image_counts, self.config.federated_classes)
            allowed = drawn.expand(len(logits), -1) if allowed is None else allowed & drawn
        wanted = class_targets(samples, targets, self.num_classes, normalised=False)
        return sigmoid_loss(logits, wanted, allowed)

    def probabilities(self, logits: Tensor) -> Tensor:
        """(K, C) probability of every class from logits (K, C + 1)."""
        return logits[:, 1:].sigmoid() if self.config.class_loss == "sigmoid" else logits.softmax(1)[:, 1:]

    def score(
        self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor, canvas: tuple[int, int]
    ) -> tuple[Tensor, BoxesOf]:
        """Class probabilities (K, C) of proposals (K, 4), and what gives the boxes (M, 4) of M pairs of a proposal and
        a category.
        """
        logits, coded = self.roi_heads.classify(features, boxes, image_index)

        def boxes_of(row: Tensor, category: Tensor) -> Tensor:
            return self.coder.decode_single(coded[row, category + 1], boxes[row])

        return self.probabilities(logits), boxes_of

    @torch.no_grad()
    def embed(self, images: Tensor, proposals: Proposals) -> Tensor:
        """(K, D) mean of the backbone's last map over each box. See `Model.embed`."""
        maps = list(self.backbone.body(normalise(images, self.mean, self.std)).values())
        rows = torch.cat([proposals.image_index[:, None].to(proposals.boxes), proposals.boxes], dim=1)
        scale = maps[-1].shape[-1] / images.shape[-1]
        cells = roi_align(maps[-1].float(), rows, BOX_CELLS, scale, sampling_ratio=2, aligned=True)
        return cells.mean((2, 3))

    @torch.no_grad()
    def describe(self, images: Tensor, proposals: Proposals) -> Tensor:
        """(K, D) of the (last) box branch. See `Model.describe`."""
        return self.roi_heads.describe(self.features(images)[:4], proposals.boxes, proposals.image_index).float()

    def predict_masks(self, images: Tensor, proposals: Proposals, fine: bool = False) -> MaskPredictions:
        """Backbone and mask branch only. See `Model.predict_masks`."""
        features = self.features(images)[:4] if len(proposals.boxes) else [images]
        where = (features, proposals.boxes, proposals.image_index)
        heads = self.roi_heads
        logits = heads.own_masks(*where, proposals.categories)[:, None] if fine else heads.teaching_masks(*where)
        return MaskPredictions(
            image_index=proposals.image_index,
            boxes=proposals.boxes,
            object_index=proposals.object_index,
            categories=proposals.categories,
            logits=logits,
        )

    @torch.no_grad()
    def predict(self, images: Tensor, content: Content | None = None, worth: Worth | None = None) -> list[Instances]:
        """Detections with mask grids over their boxes; `class_probabilities` (N, C) leave out background, so that a
        row's sum is the probability of any object. See `Model.predict`.
        """
        canvas = canvas_of(images)
        features = self.features(images)
        proposals = self.rpn.propose(self.rpn(features, canvas), canvas, training=False)
        counts = torch.tensor([len(boxes) for boxes in proposals], device=images.device)
        image_index = torch.arange(len(images), device=images.device).repeat_interleave(counts)
        boxes = torch.cat(proposals)
        probabilities, boxes_of = self.score(features[:4], boxes, image_index, canvas)
        found = self._detect(probabilities, boxes_of, image_index, _limits(images, content))
        return self._with_masks(features[:4], only_worth(found, worth))

    def _detect(self, probabilities: Tensor, boxes_of: BoxesOf, image_index: Tensor, limits: Tensor) -> list[Instances]:
        row, category = torch.nonzero(probabilities > self.config.score_floor, as_tuple=True)
        boxes = boxes_of(row, category)
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
            instances.replace(masks=Grids(part, instances.boxes, self.roi_heads.grid_shift_px))
            for instances, part in zip(found, values.split(counts), strict=True)
        ]


def start_unlikely(classifier: nn.Linear) -> None:
    """Let every class begin at the same small probability, so that many sigmoids do not swamp the first steps."""
    nn.init.constant_(classifier.bias, -math.log((1 - PRIOR) / PRIOR))


def canvas_of(images: Tensor) -> tuple[int, int]:
    """(height, width) of the network's input, pixels."""
    return int(images.shape[-2]), int(images.shape[-1])


def _limits(images: Tensor, content: Content | None) -> Tensor:
    height, width = canvas_of(images)
    boxes = [(0.0, 0.0, float(width), float(height))] * len(images) if content is None else list(content)
    return torch.tensor(boxes, dtype=torch.float32, device=images.device).reshape(-1, 4)
