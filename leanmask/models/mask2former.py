"""Mask2Former (Cheng et al. 2022): queries that each say a class and a mask of the whole canvas.

    backbone --strides 4 to 32--> pixel decoder --stride 4--------------------------------> pixel embeddings
                                                --strides 32, 16, 8--> transformer decoder --> queries' embeddings
    class: a linear layer on each query; mask: product of its embedding with every pixel's

The network is transformers', so its checkpoints load (see mask2former_network.py); how it learns from masks, points and
boxes is ours (see query_losses.py). Letters: B images, Q queries, C categories (no-object is one more, the last), K
proposals, S cells along one side of a grid, h w rows and columns of a query's mask (stride 4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from leanmask.distributed import global_mean
from leanmask.models.backbone import normalise
from leanmask.models.backbone_config import BackboneConfig
from leanmask.models.base import (
    ClassAxes,
    Content,
    Model,
    Worth,
    class_positions,
    finite_zero,
    grid_losses,
    only_worth,
    output_axes,
)
from leanmask.models.canvas_masks import over_boxes, soft_crops
from leanmask.models.mask2former_network import (
    LARGE_QUERIES,
    SWIN,
    Encoder,
    NetworkSize,
    build_network,
    load_weights,
    published_name,
)
from leanmask.models.mask_losses import keep_points
from leanmask.models.matching import has_box
from leanmask.models.points import Importance
from leanmask.models.query_losses import QueryLoss, QueryLossSettings, QueryOutputs, box_fit, dice_losses, matched_pairs
from leanmask.models.spec import BackboneSpec
from leanmask.models.two_stage import canvas_of
from leanmask.records import Instances, MaskPredictions, Proposals, Supervision, Target

MASK_STRIDE_PX = 4
FINE_FACTOR = 4  # cells of a fine grid per cell of a teaching grid, along one side


@dataclass(frozen=True)
class QueryPreset(NetworkSize):
    """The numbers that `Mask2FormerConfig` leaves to the backbone; the defaults are the published ones."""

    train_points: int = 12_544
    teaching_cells: int = 28


SMALL = QueryPreset(
    channels=64,
    heads=4,
    queries=40,
    encoder_layers=2,
    encoder_feedforward=128,
    decoder_layers=3,
    feedforward=256,
    train_points=256,
    teaching_cells=14,
)


class Mask2FormerConfig(BackboneConfig):
    """Mask2Former. A setting that is null takes the backbone's own value: the published numbers, smaller ones for small
    backbones (`tiny`, `lite0` to `lite2`). Published training: AdamW, lr 1e-4, backbone_lr_factor 0.1, weight_decay
    0.05, clip_norm 0.01.

    Further backbones are `swin_tiny`, `swin_small`, `swin_base` and `swin_large`, whose `weights` are of the whole
    model: a hub name or a folder in transformers' format; auto is the published one of COCO instances.
    """

    PUBLISHED: ClassVar[QueryPreset] = QueryPreset()
    SMALL: ClassVar[QueryPreset] = SMALL
    FURTHER: ClassVar[tuple[str, ...]] = tuple(SWIN)

    name: Literal["mask2former"] = "mask2former"
    channels: int | None = Field(
        None, ge=32, multiple_of=32, description="width of both decoders; null = 256, small 64"
    )
    heads: int | None = Field(None, ge=1, description="attention heads; null = 8, small 4")
    queries: int | None = Field(None, ge=1, description="most objects per image; null = 100, small 40, swin_large 200")
    encoder_layers: int | None = Field(None, ge=1, description="of the pixel decoder; null = 6, small 2")
    encoder_feedforward: int | None = Field(None, ge=1, description="hidden width there; null = 1024, small 128")
    decoder_layers: int | None = Field(None, ge=1, description="of the transformer decoder; null = 9, small 3")
    feedforward: int | None = Field(None, ge=1, description="hidden width there; null = 2048, small 256")
    train_points: int | None = Field(None, ge=1, description="per mask in matching and loss; null = 12544, small 256")
    oversample: float = Field(3.0, ge=1, description="k: so many uniform candidates for each point of the loss")
    uncertain: float = Field(0.75, ge=0, le=1, description="beta: share of the points that are uncertain ones")
    class_weight: float = Field(2.0, ge=0, description="of the class in loss and matching")
    mask_weight: float = Field(5.0, ge=0, description="of the masks' cross-entropy in loss and matching")
    dice_weight: float = Field(5.0, ge=0, description="of the masks' dice loss in loss and matching")
    no_object_weight: float = Field(0.1, gt=0, description="of queries without an object in the class loss")
    points_kept: float = Field(
        1.0, gt=0, le=1, description="share of an object's classified points that each step draws to learn from"
    )
    teaching_cells: int | None = Field(
        None, ge=1, description="side of the grid over a box on which pseudo-masks are taught; null = 28, small 14"
    )
    score_floor: float = Field(0.01, ge=0, le=1, description="detections at or below are dropped")
    detections_per_image: int = Field(100, ge=1, description="pairs of query and class, best first")

    @classmethod
    def own_weights(cls, name: str) -> str | None:
        return published_name(name) if name in SWIN else super().own_weights(name)

    @classmethod
    def open_values(cls, settings: dict[str, Any]) -> dict[str, Any]:
        swin = {"norm": "own"} if settings["backbone"] in SWIN else {}
        queries = {"queries": LARGE_QUERIES} if settings["backbone"] == "swin_large" else {}
        return super().open_values(settings) | swin | queries

    def preset(self) -> QueryPreset:
        """The numbers of the network, as configured."""
        found = self.sizes()
        assert isinstance(found, QueryPreset)
        return found

    def backbone_spec(self) -> BackboneSpec:
        """What to build of these settings."""
        return self.spec_of(self.preset().channels)

    def loss_settings(self) -> QueryLossSettings:
        return QueryLossSettings(
            class_weight=self.class_weight,
            mask_weight=self.mask_weight,
            dice_weight=self.dice_weight,
            no_object_weight=self.no_object_weight,
            importance=Importance(self.preset().train_points, self.oversample, self.uncertain),
        )


class Mask2Former(Model):
    """Queries that each say a class and a mask; see the module's text."""

    Config = Mask2FormerConfig
    mean: Tensor
    std: Tensor

    def __init__(self, config: Mask2FormerConfig, num_classes: int, pretrained: bool = True) -> None:
        """num_classes: foreground categories. pretrained: False skips `config.weights`, for a checkpoint that follows.

        `weights_note` says what was loaded and what was left out. Raises CheckpointError.
        """
        super().__init__()
        self.config, self.num_classes, self.preset = config, num_classes, config.preset()
        self.network = build_network(config.backbone_spec(), self.preset, num_classes)
        self.loss = QueryLoss(config.loss_settings(), num_classes)
        self.register_buffer("mean", torch.tensor(config.image_mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.image_std)[:, None, None], persistent=False)
        if pretrained:
            spec, wanted = config.backbone_spec(), config.weights
            self.weights_note = config.start_note(load_weights(self.network, spec, wanted) if wanted else None)

    def class_axes(self) -> dict[str, ClassAxes]:
        """See `Model.class_axes`; behind the classes is the logit of none."""
        return output_axes("network.class_predictor", class_positions(self.num_classes))

    def backbone_parameters(self) -> list[nn.Parameter]:
        encoder = self.network.get_submodule("model.pixel_level_module.encoder")
        body = encoder.body if isinstance(encoder, Encoder) else encoder  # Swin is the whole of it
        return [parameter for parameter in body.parameters() if parameter.requires_grad]

    def outputs(self, images: Tensor, last_only: bool = False) -> QueryOutputs:
        """What the queries say of images (B, 3, H, W), H and W multiples of 32: before the first decoder layer and
        after every one, or after the last alone.
        """
        said = self.network(pixel_values=normalise(images, self.mean, self.std))
        earlier = [] if last_only else said.auxiliary_logits
        classes = [*(layer["class_queries_logits"] for layer in earlier), said.class_queries_logits]
        masks = [*(layer["masks_queries_logits"] for layer in earlier), said.masks_queries_logits]
        return QueryOutputs(torch.stack(classes).float(), torch.stack(masks).float())

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[dict[str, Tensor], MaskPredictions]:
        """Losses "loss_class", "loss_mask", "loss_dice", each the sum over the decoder's outputs; and, for every
        trusted object with a box but without a mask, its query's mask over the box (see `predict_masks`). See
        `Model.forward`.
        """
        canvas = canvas_of(images)
        outputs = self.outputs(images)
        losses, assigned = self.loss(outputs, keep_points(targets, self.config.points_kept), canvas)
        losses["loss_class"] = losses["loss_class"] + finite_zero(self)
        return losses, self._lacking(outputs.masks[-1], assigned, targets)

    def _lacking(self, masks: Tensor, assigned: Tensor, targets: Sequence[Target]) -> MaskPredictions:
        found = []
        for image, target in enumerate(targets):
            instances = target.instances
            wanted = has_box(target) & ~instances.has_mask & (instances.weights > 0)
            pairs = matched_pairs(assigned[image][None], (1, 1))
            pairs = pairs[wanted[pairs.object_index]]
            own = masks[image, pairs.query_index]
            boxes = instances.boxes[pairs.object_index].float()
            found.append(
                MaskPredictions(
                    image_index=pairs.image_index + image,
                    boxes=boxes,
                    object_index=pairs.object_index,
                    categories=instances.categories[pairs.object_index],
                    logits=over_boxes(own, boxes, self.preset.teaching_cells, MASK_STRIDE_PX),
                )
            )
        fields = [f.name for f in dataclasses.fields(MaskPredictions) if getattr(found[0], f.name) is not None]
        return MaskPredictions(**{name: torch.cat([getattr(part, name) for part in found]) for name in fields})

    def predict_masks(self, images: Tensor, proposals: Proposals, fine: bool = False) -> MaskPredictions:
        """For each box (K, 4) the mask of the query that fits it best: probability of the proposal's class times
        agreement of the mask's extent with the box. Logits (K, 1, S, S) over the given box, S four times as large with
        `fine`. See `Model.predict_masks`.
        """
        cells = self.preset.teaching_cells * (FINE_FACTOR if fine else 1)
        logits = images.new_zeros(len(proposals.boxes), 1, cells, cells, dtype=torch.float32)
        if len(logits):
            outputs = self.outputs(images, last_only=True)
            boxes = proposals.boxes.float()
            query = best_queries(outputs.classes[-1], outputs.masks[-1], proposals)
            logits = over_boxes(outputs.masks[-1][proposals.image_index, query], boxes, cells, MASK_STRIDE_PX)
        return MaskPredictions(
            image_index=proposals.image_index,
            boxes=proposals.boxes,
            object_index=proposals.object_index,
            categories=proposals.categories,
            logits=logits,
        )

    def mask_loss(self, predictions: MaskPredictions, masks: Tensor, weights: Tensor) -> Tensor:
        """Cross-entropy and dice with the model's own weights; weights of cells multiply only the former. See
        `Model.mask_loss`.
        """
        surprise = grid_losses(predictions, masks, weights)
        said, wanted = predictions.of_category().flatten(1), masks.float().flatten(1)
        trust = weights if weights.dim() == 1 else weights.flatten(1).mean(1)
        dice = dice_losses(said, wanted, torch.ones_like(wanted)) * trust
        both = self.config.mask_weight * surprise + self.config.dice_weight * dice
        return global_mean(both.sum(), len(predictions))

    @torch.no_grad()
    def predict(self, images: Tensor, content: Content | None = None, worth: Worth | None = None) -> list[Instances]:
        """Pairs of query and class, at most `detections_per_image`, scored by class probability times mean probability
        inside the mask; so one query's mask may come with several classes.

        Masks are crops of probabilities at the network's input size, down to 0.01, so that their doubtful rim is in
        them; boxes are tight around what is above 0.5. `class_probabilities` (N, C) leave out no-object, so that a
        row's sum is the probability of any object. See `Model.predict`.
        """
        outputs = self.outputs(images, last_only=True)
        height, width = canvas_of(images)
        whole = (0.0, 0.0, float(width), float(height))
        limits = [whole] * len(images) if content is None else list(content)
        found = [
            self._detections(classes.softmax(-1)[:, :-1], masks, limit)
            for classes, masks, limit in zip(outputs.classes[-1], outputs.masks[-1], limits, strict=True)
        ]
        return only_worth(found, worth)

    def _detections(self, probabilities: Tensor, masks: Tensor, limit: tuple[float, float, float, float]) -> Instances:
        flat = probabilities.flatten()
        best = flat.topk(min(self.config.detections_per_image, len(flat)))
        chosen = best.indices[best.values > self.config.score_floor]
        queries, own = (chosen // self.num_classes).unique(return_inverse=True)
        crops, tight, certainty = soft_crops(masks[queries], limit, MASK_STRIDE_PX)
        scores = flat[chosen] * certainty[own]
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] > self.config.score_floor]
        x, y, w, h = tight[own[order]].float().unbind(1)
        edges = torch.tensor(limit, device=masks.device)
        boxes = torch.stack([x, y, x + w, y + h], dim=1)
        boxes = torch.minimum(torch.maximum(boxes, edges[:2].repeat(2)), edges[2:].repeat(2))
        return Instances(
            boxes=boxes,
            categories=(chosen % self.num_classes)[order],
            supervision=torch.full_like(order, int(Supervision.NONE)),
            weights=torch.ones_like(scores[order]),
            scores=scores[order],
            class_probabilities=probabilities[chosen // self.num_classes][order],
            masks=crops[own[order]],
        )


@torch.no_grad()
def best_queries(classes: Tensor, masks: Tensor, proposals: Proposals) -> Tensor:
    """(K,) int64 the query that fits each proposal best, from classes (B, Q, C + 1) and masks (B, Q, h, w)."""
    height, width = masks.shape[-2:]
    size = proposals.boxes.new_tensor([width, height, width, height]).float() * MASK_STRIDE_PX
    query = torch.zeros_like(proposals.image_index)
    for image in range(len(masks)):
        rows = torch.nonzero(proposals.image_index == image)[:, 0]
        if len(rows) == 0:
            continue
        fit = box_fit(masks[image], proposals.boxes[rows].float() / size)
        likely = classes[image].softmax(-1)[:, proposals.categories[rows]]
        query[rows] = (fit * likely).nan_to_num(nan=-1.0).argmax(0)
    return query
