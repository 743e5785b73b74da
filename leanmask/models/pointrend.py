"""PointRend (Kirillov et al. 2020): a coarse 7 x 7 mask, made fine where it is in doubt by a small network on points.

    pyramid's finest map --14 x 14 points--> coarse head --> 7 x 7 logits per class
                         --any point--> features + coarse logits there --> point head --> logits per class

Training reads both at importance-sampled points of true masks, or at the points that a person classified. Inference
doubles the coarse mask and computes only the least certain points anew. Letters: K proposals, C classes, P points, S
cells along one side of a grid.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from leanmask.distributed import global_mean
from leanmask.models.base import ClassAxes, class_positions, finite_zero, output_axes
from leanmask.models.mask_losses import (
    annotated_points,
    has_mask,
    has_points,
    mask_loss,
    mask_values_at,
)
from leanmask.models.matching import of_object
from leanmask.models.points import (
    Importance,
    Subdivision,
    important_points,
    point_losses,
    regular_points,
    sample_grids,
    sample_map,
    subdivide,
)
from leanmask.models.two_stage import SMALL, Preset, RoIHeads, TwoStage, TwoStageConfig
from leanmask.records import MaskPredictions, Proposals, Target

FINEST_STRIDE_PX = 4
COARSE_INPUT_CELLS, COARSE_CELLS = 14, 7
MOST_ROWS_AT_ONCE = 64  # proposals whose points inference computes together; bounds its memory


@dataclass(frozen=True)
class PointPreset(Preset):
    """The numbers that the point-based configurations leave to the backbone; those of PointRend's code."""

    coarse_channels: int = 256
    coarse_width: int = 1024
    point_channels: int = 256
    train_points: int = 196
    teaching_cells: int = 28
    subdivision_points: int = 784
    subdivision_steps: int = 3


SMALL_POINTS = PointPreset(
    **vars(SMALL),
    coarse_channels=64,
    coarse_width=256,
    point_channels=64,
    train_points=98,
    teaching_cells=14,
    subdivision_points=196,
    subdivision_steps=2,
)


class PointHeadConfig(TwoStageConfig):
    """What PointRend and Implicit PointRend have in common."""

    PUBLISHED: ClassVar[PointPreset] = PointPreset()
    SMALL: ClassVar[PointPreset] = SMALL_POINTS

    coarse_channels: int | None = Field(None, ge=1, description="convolution of the coarse head; null = 256, small 64")
    coarse_width: int | None = Field(None, ge=1, description="its two linear layers; null = 1024, small 256")
    point_channels: int | None = Field(None, ge=1, description="width of the point network; null = 256, small 64")
    train_points: int | None = Field(
        None, ge=1, description="points per proposal with a mask in the loss; null = 196, small 98"
    )
    teaching_cells: int | None = Field(
        None, ge=1, description="side of the grid on which pseudo-masks are taught; null = 28, small 14"
    )
    subdivision_points: int | None = Field(
        None, ge=1, description="points computed at each doubling; null = 784, small 196; their root is the first side"
    )
    subdivision_steps: int | None = Field(
        None, ge=0, description="doublings at inference; null = 3 (28 to 224), small 2 (14 to 56)"
    )

    def preset(self) -> PointPreset:
        found = super().preset()
        assert isinstance(found, PointPreset)
        return found


class PointRendConfig(PointHeadConfig):
    """PointRend. A setting that is null takes the backbone's own value: the published numbers for ResNets, smaller ones
    for small backbones.
    """

    name: Literal["pointrend"] = "pointrend"
    train_on_predicted_boxes: bool = Field(
        True, description="as published: the masks of the predicted boxes are learned"
    )
    point_layers: int = Field(3, ge=1, description="hidden layers of the point network")
    oversample: float = Field(3.0, ge=1, description="k: so many uniform candidates for each training point")
    uncertain: float = Field(0.75, ge=0, le=1, description="beta: share of the training points that are uncertain ones")


def _initialise(hidden: Sequence[nn.Conv2d | nn.Linear], last: nn.Linear) -> None:
    """As in PointRend's code: He's for layers before a ReLU, nearly 0 for the last; without biases."""
    for layer in hidden:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(last.weight, std=0.001)
    for layer in (*hidden, last):
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)


class CoarseHead(nn.Module):
    """The finest map at 14 x 14 points of a box, one strided convolution and linear layers: (K, outputs) numbers."""

    def __init__(self, channels: int, preset: PointPreset, outputs: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, preset.coarse_channels, kernel_size=2, stride=2)
        self.fc1 = nn.Linear(preset.coarse_channels * COARSE_CELLS**2, preset.coarse_width)
        self.fc2 = nn.Linear(preset.coarse_width, preset.coarse_width)
        self.last = nn.Linear(preset.coarse_width, outputs)
        _initialise([self.reduce], self.last)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, finest: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        coords = regular_points(COARSE_INPUT_CELLS, boxes).expand(len(boxes), -1, -1)
        cells = sample_map(finest, boxes, image_index, coords, FINEST_STRIDE_PX)
        grid = cells.transpose(1, 2).unflatten(2, (COARSE_INPUT_CELLS, COARSE_INPUT_CELLS))
        hidden = F.relu(self.reduce(grid)).flatten(1)
        outputs: Tensor = self.last(F.relu(self.fc2(F.relu(self.fc1(hidden)))))
        return outputs


class PointHead(nn.Module):
    """Linear layers on single points; the coarse logits enter before every one (PointRend, section 3.3)."""

    def __init__(self, channels: int, config: PointRendConfig, classes: int) -> None:
        super().__init__()
        width = config.preset().point_channels
        sizes = [channels, *[width] * config.point_layers]
        layers = [nn.Linear(size + classes, width) for size in sizes[:-1]]
        self.layers = nn.ModuleList(layers)
        self.last = nn.Linear(width + classes, classes)
        _initialise(layers, self.last)

    def forward(self, features: Tensor, coarse: Tensor) -> Tensor:
        """Logits (K, P, C) from features (K, P, channels) and coarse logits (K, P, C)."""
        hidden = features
        for layer in self.layers:
            hidden = F.relu(layer(torch.cat([hidden, coarse.to(hidden)], dim=-1)))
        logits: Tensor = self.last(torch.cat([hidden, coarse.to(hidden)], dim=-1))
        return logits


class PointHeads(RoIHeads):
    """A mask branch that can be asked for any point: what PointRend and Implicit PointRend have in common.

    A subclass tells what it knows of K boxes (`knowledge`, a tensor with one row per box) and what follows from it at
    given points (`logits_at`).
    """

    def __init__(self, config: PointHeadConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.config, self.preset = config, config.preset()
        self.classes = 1 if config.class_agnostic else num_classes

    @abstractmethod
    def knowledge(self, finest: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        """(K, ...) what is computed once per box (K, 4) from the finest map, for any number of points."""

    @abstractmethod
    def logits_at(self, known: Tensor, features: Tensor, coords: Tensor) -> Tensor:
        """Logits (K, P, C) at coords (K, P, 2) from `knowledge` and the finest map's features (K, P, channels)."""

    def coarse_masks(self, known: Tensor, categories: Tensor, cells: int) -> Tensor | None:
        """(K, cells, cells) own-class logits where subdivision starts; None: they are computed as at any points."""
        return None

    def at(self, finest: Tensor, boxes: Tensor, image_index: Tensor, known: Tensor, coords: Tensor) -> Tensor:
        """Logits (K, P, C) at coords (K, P, 2) of boxes (K, 4)."""
        features = sample_map(finest, boxes, image_index, coords, FINEST_STRIDE_PX)
        return self.logits_at(known, features, coords)

    def teaching_masks(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """(K, C, S, S) logits at the centres of a regular grid. See `RoIHeads.teaching_masks`."""
        cells = self.preset.teaching_cells
        if len(boxes) == 0:
            return features[0].new_zeros(0, self.classes, cells, cells).float()
        known = self.knowledge(features[0], boxes, image_index)
        return self._grid(features[0], boxes, image_index, known)

    def _grid(self, finest: Tensor, boxes: Tensor, image_index: Tensor, known: Tensor) -> Tensor:
        cells = self.preset.teaching_cells
        coords = regular_points(cells, boxes).expand(len(boxes), -1, -1)
        logits = self.at(finest, boxes, image_index, known, coords)
        return logits.transpose(1, 2).reshape(len(boxes), self.classes, cells, cells).float()

    def own_masks(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor, categories: Tensor) -> Tensor:
        """(K, S, S) logits of each box's own class, by subdivision. See `RoIHeads.own_masks`."""
        cells = int(self.preset.subdivision_points**0.5)
        side = cells * 2**self.preset.subdivision_steps
        masks = features[0].new_zeros(len(boxes), side, side, dtype=torch.float32)
        if len(boxes) == 0:
            return masks
        how = Subdivision(self.preset.subdivision_steps, self.preset.subdivision_points)
        for rows in torch.arange(len(boxes), device=boxes.device).split(MOST_ROWS_AT_ONCE):
            where = (features[0], boxes[rows], image_index[rows])
            known, classes = self.knowledge(*where), categories[rows]
            compute = partial(self._own_at, where, known, classes)
            coarse = self.coarse_masks(known, classes, cells)
            if coarse is None:
                coarse = compute(regular_points(cells, known).expand(len(known), -1, -1)).view(-1, cells, cells)
            masks[rows] = subdivide(coarse.float(), compute, how)
        return masks

    def _own_at(
        self, where: tuple[Tensor, Tensor, Tensor], known: Tensor, categories: Tensor, coords: Tensor
    ) -> Tensor:
        return own_class(self.at(*where, known, coords), categories)

    def mask_losses(
        self, features: Sequence[Tensor], positives: Proposals, targets: Sequence[Target], canvas: tuple[int, int]
    ) -> tuple[dict[str, Tensor], MaskPredictions]:
        """ "loss_mask" at the points of proposals whose objects have a mask or points, further losses of the subclass,
        and the teaching grids of the proposals whose objects have no mask. See `RoIHeads.mask_losses`.
        """
        finest = features[0].float()
        known = self.knowledge(finest, positives.boxes, positives.image_index)
        masked = taught_by(positives, [has_mask(target) for target in targets])
        pointed = taught_by(positives, [has_points(target) for target in targets])
        total = finest.new_zeros(()) if bool((masked | pointed).any()) else finite_zero(self)
        for weight, rows, points in (
            (
                1.0,
                masked,
                mask_values_at(positives[masked], targets, self.training_points(known[masked], positives[masked])),
            ),
            (self.config.point_weight, pointed, annotated_points(positives[pointed], targets, self.config.point_mean)),
        ):
            chosen = positives[rows]
            logits = self.at(finest, chosen.boxes, chosen.image_index, known[rows], points.coords)
            total = total + weight * point_losses(own_class(logits, chosen.categories), points).sum()
        taught = len(positives) if self.config.mask_mean == "positives" else int(masked.sum() + pointed.sum())
        losses = {"loss_mask": global_mean(total, taught)}
        losses |= self.further_losses(known, positives, targets, canvas)
        lacking = ~taught_by(positives, [target.instances.has_mask for target in targets])
        without = positives[lacking]
        return losses, without.predictions(self._grid(finest, without.boxes, without.image_index, known[lacking]))

    @abstractmethod
    def training_points(self, known: Tensor, positives: Proposals) -> Tensor:
        """(K, P, 2) random coords at which the masks of these proposals' objects are learned."""

    @abstractmethod
    def further_losses(
        self, known: Tensor, positives: Proposals, targets: Sequence[Target], canvas: tuple[int, int]
    ) -> dict[str, Tensor]:
        """What else is learned from `knowledge` of the positive proposals."""


class PointRendHeads(PointHeads):
    """Coarse logits, and a point head that refines them. What is known of a box is its coarse mask (K, C, 7, 7)."""

    config: PointRendConfig

    def __init__(self, config: PointRendConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        channels = self.preset.fpn_channels
        self.coarse_head = CoarseHead(channels, self.preset, self.classes * COARSE_CELLS**2)
        self.point_head = PointHead(channels, config, self.classes)

    def fresh(self) -> tuple[str, ...]:
        return "coarse_head.", "point_head."

    def class_axes(self) -> dict[str, ClassAxes]:
        """See `Model.class_axes`; the coarse logits of all classes are inputs of every layer of the point head."""
        found = super().class_axes()
        if self.config.class_agnostic:
            return found
        found |= output_axes("coarse_head.last", class_positions(self.classes, each=COARSE_CELLS**2))
        found |= output_axes("point_head.last", class_positions(self.classes))
        for name, layer in self.point_head.named_modules():
            if isinstance(layer, nn.Linear):
                inputs = class_positions(self.classes, before=layer.in_features - self.classes)
                found.setdefault(f"point_head.{name}.weight", {})[1] = inputs
        return found

    def knowledge(self, finest: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        coarse = self.coarse_head(finest, boxes, image_index)
        return coarse.view(-1, self.classes, COARSE_CELLS, COARSE_CELLS).float()

    def logits_at(self, known: Tensor, features: Tensor, coords: Tensor) -> Tensor:
        logits: Tensor = self.point_head(features, sample_grids(known, coords))
        return logits

    def coarse_masks(self, known: Tensor, categories: Tensor, cells: int) -> Tensor:
        """The coarse mask, doubled without computing a point for as long as all of them would be."""
        coarse = own_class(known.flatten(2).transpose(1, 2), categories).view(-1, 1, COARSE_CELLS, COARSE_CELLS)
        while coarse.shape[-1] < cells:
            coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        return coarse[:, 0]

    def training_points(self, known: Tensor, positives: Proposals) -> Tensor:
        own = own_class(known.flatten(2).transpose(1, 2), positives.categories)
        how = Importance(self.preset.train_points, self.config.oversample, self.config.uncertain)
        return important_points(own.view(-1, COARSE_CELLS, COARSE_CELLS).detach(), how)

    def further_losses(
        self, known: Tensor, positives: Proposals, targets: Sequence[Target], canvas: tuple[int, int]
    ) -> dict[str, Tensor]:
        """ "loss_coarse_mask": the coarse logits are an ordinary mask."""
        grid = self.config.mask_grid(COARSE_CELLS, canvas)
        return {"loss_coarse_mask": mask_loss(positives.predictions(known), targets, grid)}


class PointRend(TwoStage):
    """Two-stage detector with PointRend's branch; see the module's text."""

    Config = PointRendConfig
    Heads = PointRendHeads


def taught_by(positives: Proposals, wanted: Sequence[Tensor]) -> Tensor:
    """(K,) bool: the proposal's object is marked in its image's (N,) bool."""
    return of_object(wanted, positives.image_index, positives.object_index)


def own_class(logits: Tensor, categories: Tensor) -> Tensor:
    """(K, P) logits of each proposal's class (K,) from (K, P, C), or of the only channel where C is 1."""
    if logits.shape[2] == 1:
        return logits[..., 0]
    return logits.gather(2, categories[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]
