"""SOLOv2 (Wang et al. 2020): every cell of several grids says a class and a kernel; the kernel, convolved with one map
of mask features, is the mask of the object whose centre is there.

    backbone --five levels--> S x S cells --> class logits, kernels   (coordinates to the kernels' tower)
             --strides 4 to 32--> mask features                       (coordinates to the coarsest level)
    mask of a cell = sigmoid(kernel . features); matrix NMS

There are no boxes: what a point asks for is what its cell says, so this is the model of PointWSSIS (Kim et al. 2023).
Letters: B images, C categories, T cells of all levels, L levels, E numbers of a kernel, K proposals, h w rows and
columns of a mask, which covers the whole canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from leanmask.distributed import global_mean
from leanmask.models.backbone import build_backbone, normalise
from leanmask.models.backbone_config import BackboneConfig
from leanmask.models.base import ClassAxes, Content, Model, Worth, class_positions, finite_zero, only_worth, output_axes
from leanmask.models.canvas_masks import Limit, cell_extents, mean_inside, over_boxes, tight_crops
from leanmask.models.mask_losses import keep_points
from leanmask.models.matching import of_object
from leanmask.models.matrix_nms import matrix_nms, point_nms
from leanmask.models.solov2_cells import CellLayout, assign_cells, of_point_alone
from leanmask.models.solov2_losses import Positives, class_loss, dice_loss, dice_losses, points_loss
from leanmask.models.solov2_network import LEVELS, CellBranch, HeadSize, MaskBranch
from leanmask.models.spec import SMALL_BACKBONES, BackboneSpec
from leanmask.models.two_stage import canvas_of
from leanmask.models.weights import load_backbone
from leanmask.records import Instances, MaskPredictions, Proposals, Supervision, Target
from leanmask.supervision import PointAt

FINE_FACTOR = 4  # cells of a fine grid per cell of a teaching grid, along one side
ASKED_AT_ONCE = 128  # proposals whose candidate masks are in memory at the same time
REGION_GROWTH = 0.25  # of a mask's extent on either side, for objects without a box
Ranges = tuple[tuple[float, float], ...]

STOCK = CellLayout((40, 36, 24, 16, 12), ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048)))
POINTWSSIS = CellLayout((80, 64, 32, 24, 12), ((1, 72), (72, 144), (144, 288), (288, 584), (584, 2048)))
SMALL_LAYOUT = CellLayout((32, 20, 14, 8, 4), ((1, 28), (22, 44), (36, 72), (60, 120), (100, 2048)))
LAYOUTS = {"stock": STOCK, "pointwssis": POINTWSSIS, "small": SMALL_LAYOUT}


@dataclass(frozen=True)
class SOLOv2Preset(HeadSize):
    """The numbers that `SOLOv2Config` leaves to the backbone; the defaults are the published ones."""

    teaching_cells: int = 28
    class_weight: float = 1.0
    class_floor: float = 0.1
    score_floor: float = 0.05


SMALL = SOLOv2Preset(
    fpn_channels=64,
    tower_channels=96,
    tower_convs=3,
    kernel_channels=64,
    mask_channels=64,
    norm_groups=8,
    mask_upsample=2,
    class_weight=3.0,
    level_maps=(0, 0, 1, 2, 3),
    teaching_cells=14,
    class_floor=0.02,
    score_floor=0.01,
)


class SOLOv2Config(BackboneConfig):
    """SOLOv2. A setting that is null takes the backbone's own value: the published numbers, smaller ones for small
    backbones (`tiny`, `lite0` to `lite2`). Published training: SGD, lr 0.01 (PointWSSIS's teacher 0.05), batch 16, 1000
    steps of warm-up from 0.01.
    """

    PUBLISHED: ClassVar[SOLOv2Preset] = SOLOv2Preset()
    SMALL: ClassVar[SOLOv2Preset] = SMALL
    PUBLISHED_LAYERS: ClassVar[int] = 3

    name: Literal["solov2"] = "solov2"
    layout: Literal["stock", "pointwssis", "small"] | None = Field(
        None,
        description="grids and scale ranges: published ones, SOLOv2's (stock, 3,872 cells) or those of PointWSSIS's "
        "teacher (12,240 cells, ranges that do not overlap), or smaller ones for images of 128 px (small); null = "
        "stock, small for small backbones",
    )
    grids: tuple[int, int, int, int, int] | None = Field(
        None, description="cells along one side of each level's grid; null = the layout's"
    )
    ranges: Ranges | None = Field(
        None,
        min_length=5,
        max_length=5,
        description="per level, least and largest square root of a box's area, pixels; null = the layout's",
    )
    fpn_channels: int | None = Field(None, ge=16, description="null = 256, small 64")
    tower_channels: int | None = Field(None, ge=8, description="of the cells' branch; null = 512, small 96")
    tower_convs: int | None = Field(None, ge=1, description="null = 4, small 3")
    kernel_channels: int | None = Field(None, ge=1, description="E, also of the mask features; null = 256, small 64")
    mask_channels: int | None = Field(None, ge=8, description="of the mask branch; null = 128, small 64")
    norm_groups: int | None = Field(None, ge=1, description="of the group norms of both branches; null = 32, small 8")
    level_maps: tuple[int, ...] | None = Field(
        None,
        description="the map of the pyramid (0 to 4) that each level's grid is read from, five of them; () = the "
        "published way: strides 8 (of the finest, halved), 8, 16, 32 and 32 (of the coarsest, doubled); null = (), "
        "small (0, 0, 1, 2, 3)",
    )
    mask_upsample: int | None = Field(
        None, ge=1, le=4, description="mask features at stride 4 over this; null = 1 as published, small 2"
    )
    class_weight: float | None = Field(
        None, ge=0, description="of the cells' focal loss; null = 1 (published), small 3, which learns classes sooner"
    )
    dice_weight: float = Field(3.0, ge=0, description="of the masks' dice loss (published)")
    point_weight: float = Field(1.0, ge=0, description="of the loss at the points of objects without a mask")
    points_kept: float = Field(
        1.0, gt=0, le=1, description="share of an object's classified points that each step draws to learn from"
    )
    point_at: PointAt = Field(
        "centre",
        description="where an object's point is: at its mass centre, whose cells are asked for its mask (published), "
        "or anywhere on it, so that likely cells elsewhere are asked too and take it if their mask holds the point",
    )
    teaching_cells: int | None = Field(
        None, ge=1, description="side of the grid over an object on which pseudo-masks are taught; null = 28, small 14"
    )
    class_floor: float | None = Field(
        None, ge=0, le=1, description="cells at or below are not looked at; null = 0.1, small 0.02"
    )
    score_floor: float | None = Field(
        None, ge=0, le=1, description="detections at or below, after NMS, are dropped; null = 0.05, small 0.01"
    )
    candidates: int = Field(500, ge=1, description="masks per image before NMS")
    nms_sigma: float = Field(2.0, gt=0, description="of matrix NMS's gaussian decay")
    detections_per_image: int = Field(100, ge=1)

    @field_validator("level_maps")
    @classmethod
    def _five_maps(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value and (len(value) != LEVELS or not set(value) <= set(range(LEVELS))):
            raise ValueError("five numbers from 0 to 4, or none")
        return value

    @classmethod
    def open_values(cls, settings: dict[str, Any]) -> dict[str, Any]:
        found = super().open_values(settings)
        found["layout"] = "small" if settings["backbone"] in SMALL_BACKBONES else "stock"
        layout = LAYOUTS.get(str(settings.get("layout") or found["layout"]), STOCK)
        return found | {"grids": layout.grids, "ranges": layout.ranges}

    def preset(self) -> SOLOv2Preset:
        """The numbers of the network, as configured."""
        found = self.sizes()
        assert isinstance(found, SOLOv2Preset)
        return found

    def cells(self) -> CellLayout:
        """Grids and ranges as configured."""
        assert self.grids is not None
        assert self.ranges is not None
        return CellLayout(self.grids, self.ranges)

    def backbone_spec(self) -> BackboneSpec:
        """What to build of these settings."""
        return self.spec_of(self.preset().fpn_channels)


@dataclass(frozen=True, eq=False)
class Said:
    """What the network says of B images. classes: (B, T, C) logits. kernels: (T, E) of each image. features: (E, h, w)
    of each. stride: pixels of the canvas per cell of the features.

    Kernels and features are taken apart once: an index per use would give each use a gradient as large as the batch's,
    mostly zeros, and all of them to add up.
    """

    classes: Tensor
    kernels: tuple[Tensor, ...]
    features: tuple[Tensor, ...]
    stride: int

    def masks(self, image: int, cells: Tensor) -> Tensor:
        """(n, h, w) float32 mask logits of the cells (n,) of one image."""
        features = self.features[image]
        logits = self.kernels[image][cells].to(features.dtype) @ features.flatten(1)
        return logits.view(-1, *features.shape[1:]).float()


class SOLOv2(Model):
    """Masks by location; see the module's text."""

    Config = SOLOv2Config
    takes_points = True
    mean: Tensor
    std: Tensor

    def __init__(self, config: SOLOv2Config, num_classes: int, pretrained: bool = True) -> None:
        """num_classes: foreground categories. pretrained: False skips `config.weights`, for a checkpoint that follows.

        `weights_note` says what was loaded. Raises CheckpointError.
        """
        super().__init__()
        self.config, self.num_classes, self.preset = config, num_classes, config.preset()
        self.layout, self.point_at = config.cells(), config.point_at
        self.backbone = build_backbone(config.backbone_spec())
        self.cells = CellBranch(self.preset, self.layout.grids, num_classes)
        self.mask_branch = MaskBranch(self.preset)
        self.register_buffer("mean", torch.tensor(config.image_mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.image_std)[:, None, None], persistent=False)
        if pretrained:
            spec, wanted = config.backbone_spec(), config.weights
            self.weights_note = config.start_note(load_backbone(self.backbone, spec, wanted) if wanted else None)

    def class_axes(self) -> dict[str, ClassAxes]:
        """See `Model.class_axes`."""
        return output_axes("cells.classes", class_positions(self.num_classes))

    def backbone_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.backbone.body.parameters() if parameter.requires_grad]

    def say(self, images: Tensor) -> Said:
        """What the network says of images (B, 3, H, W), H and W multiples of 32."""
        features = list(self.backbone(normalise(images, self.mean, self.std)).values())
        classes, kernels = self.cells(features)
        masks = self.mask_branch(features)
        return Said(classes, kernels.unbind(), masks.unbind(), canvas_of(images)[0] // masks.shape[-2])

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[dict[str, Tensor], MaskPredictions]:
        """Losses "loss_class", "loss_mask" (dice) and "loss_points"; and the masks of all positive cells whose object
        has none, over the object's box or, for one that is known by a point alone, over where the mask lies.

        Such an object is learned at the level that `best_cells` finds for its point. See `Model.forward`.
        """
        canvas, said = canvas_of(images), self.say(images)
        targets = keep_points(targets, self.config.points_kept)
        chosen = self._cells_of_points(said, targets, canvas)
        assigned = [
            assign_cells(target, self.layout, canvas, cells) for target, cells in zip(targets, chosen, strict=True)
        ]
        count = [len(each.cells) for each in assigned]
        positives = Positives(
            boxes=images.new_tensor([0, 0, canvas[1], canvas[0]]).expand(sum(count), 4),
            image_index=torch.arange(len(targets), device=images.device).repeat_interleave(
                torch.tensor(count, device=images.device)
            ),
            object_index=torch.cat([each.objects for each in assigned]),
            logits=torch.cat([said.masks(image, each.cells) for image, each in enumerate(assigned)]),
        )
        losses = {
            "loss_class": self.preset.class_weight * class_loss(said.classes, assigned, targets) + finite_zero(self),
            "loss_mask": self.config.dice_weight * dice_loss(positives, targets, canvas),
            "loss_points": self.config.point_weight * points_loss(positives, targets),
        }
        return losses, self._lacking(positives, targets, said.stride)

    def _cells_of_points(self, said: Said, targets: Sequence[Target], canvas: tuple[int, int]) -> list[Tensor]:
        """Per image (N,) the cell of each object that is known by a point alone; 0 for the others."""
        alone = [of_point_alone(target) for target in targets]
        found = [torch.zeros_like(target.instances.categories) for target in targets]
        count = [int(each.sum()) for each in alone]
        if any(count):
            named = [target.instances for target in targets]
            points = torch.cat([each.object_points[rows] for each, rows in zip(named, alone, strict=True)])
            categories = torch.cat([each.categories[rows] for each, rows in zip(named, alone, strict=True)])
            image = torch.arange(len(targets)).repeat_interleave(torch.tensor(count)).to(points.device)
            best = self.best_cells(said, _points_as_proposals(image, points, categories), canvas)[0]
            for cells, rows, part in zip(found, alone, best.split(count), strict=True):
                cells[rows] = part
        return found

    def _lacking(self, positives: Positives, targets: Sequence[Target], stride: int) -> MaskPredictions:
        found = positives.of([~target.instances.has_mask for target in targets])
        owner = (found.image_index, found.object_index)
        points = of_object([target.instances.named_points for target in targets], *owner)
        boxes = of_object([target.instances.boxes for target in targets], *owner).float()
        known = boxes.isfinite().all(1)
        regions = torch.where(known[:, None], boxes, mask_regions(found.logits, points, stride))
        return MaskPredictions(
            image_index=found.image_index,
            boxes=regions,
            object_index=found.object_index,
            categories=of_object([target.instances.categories for target in targets], *owner),
            logits=over_boxes(found.logits, regions, self.preset.teaching_cells, stride),
            points=points,
            box_known=known,
        )

    def predict_masks(self, images: Tensor, proposals: Proposals, fine: bool = False) -> MaskPredictions:
        """For each proposal the mask of the best of L cells, one per level (see `best_cells`), over the given box or,
        where there is none but a point, over where the mask lies. Logits (K, 1, S, S), S four times as large with
        `fine`. See `Model.predict_masks`.
        """
        cells = self.preset.teaching_cells * (FINE_FACTOR if fine else 1)
        boxes, logits = proposals.boxes.float(), images.new_zeros(len(proposals.boxes), 1, cells, cells).float()
        if len(boxes):
            said = self.say(images)
            masks = self.best_cells(said, proposals, canvas_of(images))[1]
            points = proposals.points if proposals.points is not None else torch.full_like(boxes[:, :2], torch.nan)
            found = mask_regions(masks, points, said.stride)
            boxes = torch.where(boxes.isfinite().all(1, keepdim=True), boxes, found)
            logits = over_boxes(masks, boxes, cells, said.stride)
        return MaskPredictions(
            image_index=proposals.image_index,
            boxes=boxes,
            object_index=proposals.object_index,
            categories=proposals.categories,
            logits=logits,
            points=proposals.points,
            box_known=proposals.box_known,
        )

    @torch.no_grad()
    def best_cells(self, said: Said, proposals: Proposals, canvas: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(K,) the best of the L cells that hold each proposal's point or, where that is not given, the middle of its
        box; and their mask logits (K, h, w).

        The best has the highest maskness (mean probability inside the mask) times probability of the proposal's class,
        whatever the cell's other classes (PointWSSIS, adaptive pyramid-level selection); with a known box, also times
        the IoU of the mask's extent with it. A box that nobody drew takes no part: where a student saw the object must
        not decide what its teacher sees. No score is too low. Points that may be anywhere (`point_at`): see
        `_ask_elsewhere`.
        """
        height, width = said.features[0].shape[-2:]
        boxes = proposals.known_boxes
        places = (boxes[:, :2] + boxes[:, 2:]) / 2
        if proposals.points is not None:
            places = torch.where(proposals.points.isfinite(), proposals.points, places)
        cells = self.layout.cells_at(places.nan_to_num(), canvas)
        best = torch.zeros_like(proposals.image_index)
        worth = said.classes.new_zeros(len(best), dtype=torch.float32)
        masks = worth.new_zeros(len(best), height, width)
        for image in proposals.image_index.unique().tolist():
            for rows in (proposals.image_index == image).nonzero()[:, 0].split(ASKED_AT_ONCE):
                candidates = said.masks(image, cells[rows].flatten()).unflatten(0, cells[rows].shape)
                likely = said.classes[image, cells[rows], proposals.categories[rows, None]].sigmoid()
                score = (
                    likely
                    * (mean_inside(candidates.sigmoid()) + 1e-6)
                    * _extent_iou(candidates, boxes[rows], said.stride)
                )
                worth[rows], level = score.max(1)
                best[rows] = cells[rows, level]
                masks[rows] = candidates[torch.arange(len(rows), device=rows.device), level]
            if self.point_at == "random":
                alone = (proposals.image_index == image) & boxes.isnan().any(1) & places.isfinite().all(1)
                rows = alone.nonzero()[:, 0]
                if not len(rows):
                    continue
                found = self._ask_elsewhere(said, image, places[rows], proposals.categories[rows])
                better = found[2] > worth[rows]
                best[rows[better]], masks[rows[better]] = found[0][better], found[1][better]
        return best, masks

    def _ask_elsewhere(
        self, said: Said, image: int, points: Tensor, categories: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For points (n, 2) anywhere on objects of `categories` (n,): of the image's `candidates` cells that are
        likeliest to be of these classes the best (n,), its mask logits (n, h, w) and its score (n,).

        Cells learn masks around objects' centres alone, so it is the centre's cell that knows the mask of an object
        with a click on its rim. Which one that is, its mask tells: it holds the point (above 0.5), or the score is 0.
        """
        likely = said.classes[image].sigmoid().float()
        count = min(len(likely), self.config.candidates)
        pool = likely[:, categories.unique()].amax(1, keepdim=True).topk(count, dim=0).indices[:, 0]
        logits = said.masks(image, pool)
        masks = logits.sigmoid()
        x, y = (points / said.stride).long().unbind(1)
        holds = masks[:, y.clamp(0, masks.shape[1] - 1), x.clamp(0, masks.shape[2] - 1)] > 0.5
        score, index = (likely[pool][:, categories] * mean_inside(masks)[:, None] * holds).max(0)
        return pool[index], logits[index], score

    def mask_loss(self, predictions: MaskPredictions, masks: Tensor, weights: Tensor) -> Tensor:
        """Dice loss with the model's own weight. See `Model.mask_loss`."""
        trust = torch.ones_like(masks) * (weights[:, None, None] if weights.dim() == 1 else 1)
        cells = weights if weights.dim() == 3 else None
        losses = dice_losses(predictions.of_category(), masks.float(), cells) * trust.flatten(1).mean(1)
        return self.config.dice_weight * global_mean(losses.sum(), len(predictions))

    @torch.no_grad()
    def predict(self, images: Tensor, content: Content | None = None, worth: Worth | None = None) -> list[Instances]:
        """Pairs of cell and class after point NMS, scored by class probability times maskness and decayed by matrix
        NMS, at most `detections_per_image`.

        Masks are crops of probabilities at the network's input size, tight around what is above 0.5; boxes are theirs.
        `class_probabilities` (N, C) are the cell's, scaled down where they sum to more than 1. See `Model.predict`.
        """
        said = self.say(images)
        height, width = canvas_of(images)
        limits = [(0.0, 0.0, float(width), float(height))] * len(images) if content is None else list(content)
        peaks = self._peaks(said.classes.sigmoid())
        found = [self._detections(said, image, peaks[image], limit) for image, limit in enumerate(limits)]
        return only_worth(found, worth)

    def _peaks(self, probabilities: Tensor) -> Tensor:
        """(B, T, C) probabilities, 0 but for the cells that point NMS leaves."""
        levels = probabilities.transpose(1, 2).split([grid * grid for grid in self.layout.grids], dim=2)
        maps = [level.unflatten(2, (grid, grid)) for level, grid in zip(levels, self.layout.grids, strict=True)]
        return torch.cat([point_nms(each).flatten(2) for each in maps], dim=2).transpose(1, 2)

    def _detections(self, said: Said, image: int, peaks: Tensor, limit: Limit) -> Instances:
        config = self.config
        cells, categories = (peaks > self.preset.class_floor).nonzero(as_tuple=True)
        scores, order = peaks[cells, categories].topk(min(len(cells), 2 * config.candidates))
        cells, categories = cells[order], categories[order]
        logits = said.masks(image, cells)
        large = (logits > 0).sum((1, 2)) > self._least_area(cells)
        scores = scores * mean_inside(logits.sigmoid()) * large
        scores, order = scores.topk(min(int(large.sum()), config.candidates))
        cells, categories, logits = cells[order], categories[order], logits[order]
        scores = matrix_nms(logits > 0, categories, scores, config.nms_sigma)
        scores, order = scores.topk(min(len(scores), config.detections_per_image))
        order = order[scores > self.preset.score_floor]
        crops, _ = tight_crops(logits[order], limit, said.stride)
        x, y, w, h = crops.regions.float().unbind(1)
        likely = said.classes[image, cells[order]].sigmoid()
        return Instances(
            boxes=torch.stack([x, y, x + w, y + h], dim=1),
            categories=categories[order],
            supervision=torch.full_like(order, int(Supervision.NONE)),
            weights=torch.ones_like(scores[: len(order)]),
            scores=scores[: len(order)],
            class_probabilities=likely / likely.sum(1, keepdim=True).clamp(min=1),
            masks=crops,
        )

    def _least_area(self, cells: Tensor) -> Tensor:
        """(n,) cells of the mask features that a mask must exceed: the stride of the level it is from (published)."""
        starts = torch.tensor(self.layout.starts, device=cells.device)
        strides = torch.tensor([8, 8, 16, 32, 32], device=cells.device)
        return strides[torch.bucketize(cells, starts, right=True) - 1]


def _points_as_proposals(image_index: Tensor, points: Tensor, categories: Tensor) -> Proposals:
    return Proposals(
        image_index=image_index,
        boxes=points.new_full((len(points), 4), torch.nan),
        object_index=torch.full_like(categories, -1),
        categories=categories,
        points=points,
    )


def extents(logits: Tensor, stride: int) -> Tensor:
    """(..., 4) xyxy pixels of what is above 0.5 in masks (..., h, w); NaN for an empty one."""
    cells = cell_extents(logits > 0)
    return torch.where(cells[..., 2:3] > 0, cells.float() * stride, torch.nan)


def mask_regions(logits: Tensor, points: Tensor, stride: int) -> Tensor:
    """(K, 4) xyxy pixels around the masks (K, h, w), with a quarter of their size on every side, and around the points
    (K, 2), where these are known; cut at the canvas.
    """
    boxes = extents(logits, stride)
    margin = (boxes[:, 2:] - boxes[:, :2]) * REGION_GROWTH
    boxes = torch.cat([boxes[:, :2] - margin, boxes[:, 2:] + margin], dim=1)
    near = torch.cat([points - 2 * stride, points + 2 * stride], dim=1)
    low = torch.fmin(boxes[:, :2], near[:, :2])
    high = torch.fmax(boxes[:, 2:], near[:, 2:])
    height, width = logits.shape[-2:]
    limit = boxes.new_tensor([width, height]) * stride
    low, high = (torch.minimum(each.nan_to_num(missing).clamp(min=0), limit) for each, missing in ((low, 0), (high, 0)))
    return torch.cat([low, torch.maximum(high, (low + stride).minimum(limit))], dim=1)


def _extent_iou(logits: Tensor, boxes: Tensor, stride: int) -> Tensor:
    """(K, L) IoU of the extents of masks (K, L, h, w) with boxes (K, 4); 1 where the box is unknown."""
    said, given = extents(logits, stride), boxes[:, None]
    common = (torch.minimum(said[..., 2:], given[..., 2:]) - torch.maximum(said[..., :2], given[..., :2])).clamp(min=0)
    areas = (said[..., 2:] - said[..., :2]).prod(-1) + (given[..., 2:] - given[..., :2]).prod(-1)
    iou = common.prod(-1) / (areas - common.prod(-1)).clamp(min=1e-6)
    return torch.where(given.isnan().any(-1), 1.0, iou.nan_to_num(0) + 1e-6)
