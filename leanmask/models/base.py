"""What a model promises. Methods use these three verbs and never look inside a model; a model never knows a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanmask.config import Frozen
from leanmask.distributed import global_mean
from leanmask.errors import ConfigError
from leanmask.records import Instances, MaskPredictions, Proposals, Target
from leanmask.supervision import PointAt

# Where the classes are in a parameter: by dimension, (C, n) positions along it, n for each class.
ClassAxes = dict[int, Tensor]
Content = Sequence[tuple[float, float, float, float]]  # of each canvas: xyxy part that the image covers
Worth = Callable[[Instances], Tensor]  # (N,) bool of the detections of one image: which of them are wanted


class Model(nn.Module, ABC):
    """An instance-segmentation network, made as Model(config, num_classes, pretrained) from a `Config`. Images are
    (B, 3, H, W) float32 RGB in [0, 1]; normalisation is the model's own work.
    """

    Config: ClassVar[type[Frozen]]
    takes_points: ClassVar[bool] = False  # whether `predict_masks` finds objects by `Proposals.points`
    point_at: PointAt = "centre"  # where on their objects these are; nothing to models that take none
    needs_rough: ClassVar[bool] = False  # whether it improves rough masks, which its data must have then
    num_classes: int
    weights_note: str = "initialised from scratch"  # what was loaded and what was left out, for the user

    @abstractmethod
    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[dict[str, Tensor], MaskPredictions]:
        """Named scalar losses that honour partial targets, and what the mask branch said for the matched proposals, at
        least for those whose object has no mask.

        Objects without a mask give no mask loss; an object's weight scales all its losses; weight 0, ignore regions and
        unlabelled places of images that are not exhaustive give none and are never background. Every parameter takes
        part in some loss (with factor 0 when there is nothing to learn), so that data-parallel training does not hang.
        Losses are normalised by counts over all processes.
        """

    @abstractmethod
    def predict(
        self,
        images: Tensor,
        content: Content | None = None,
        worth: Worth | None = None,
    ) -> list[Instances]:
        """Everything above the fixed low floor, best first, in the network frame, class probabilities kept.

        content: xyxy part of each canvas that the image covers (`Frame.content_box`); boxes are clipped to it. worth:
        which detections are wanted; where a model makes masks last, the others cost none.
        """

    def predict_for(
        self,
        images: Tensor,
        targets: Sequence[Target],
        content: Content | None = None,
        worth: Worth | None = None,
    ) -> list[Instances]:
        """What is measured: `predict`, which sees the images alone. A model that improves given masks, instead of
        finding objects, also looks at the targets' rough masks and points, and never at the true masks.
        """
        return self.predict(images, content, worth)

    @abstractmethod
    def predict_masks(self, images: Tensor, proposals: Proposals, fine: bool = False) -> MaskPredictions:
        """Masks for given boxes (or locations, or points): teacher-student matching, self-training from human boxes,
        point prompts.

        Returns one mask per proposal, in the order of the proposals: of every class and on the grid that `forward`
        uses, so that they can be a student's targets; with `fine`, of the proposal's own class alone (one channel), as
        fine as `predict` makes them.
        """

    def mask_loss(self, predictions: MaskPredictions, masks: Tensor, weights: Tensor) -> Tensor:
        """The model's own mask loss for K predictions against given target grids, such as pseudo-masks.

        masks: (K, h, w) target probabilities on the predictions' grids. weights: (K,) or (K, h, w) trust. Weighted mean
        over proposals (and cells), over all processes.
        """
        return grid_loss(predictions, masks, weights)

    def tell_image_counts(self, counts: Sequence[int]) -> None:
        """How many training images have each class, for losses that draw classes by it; told before training."""
        return

    def embed(self, images: Tensor, proposals: Proposals) -> Tensor:
        """(K, D) float features of the backbone for K boxes, without gradient: what objects look like, for class
        prototypes. Raises ConfigError where a model has none.
        """
        raise self._no_features()

    def describe(self, images: Tensor, proposals: Proposals) -> Tensor:
        """(K, D) float features that the classes of K boxes are read from, without gradient: what tells objects apart,
        for finding similar ones. Raises ConfigError where a model has none.
        """
        raise self._no_features()

    def _no_features(self) -> ConfigError:
        return ConfigError(f"model {type(self).__name__} gives no features of objects; mask_rcnn and its relatives do")

    def class_axes(self) -> dict[str, ClassAxes]:
        """Where the classes are in each parameter, by its name, that belongs to them in part: what one network may take
        of another that knows other classes (transfer.py). Parameters of all classes together are not named.
        """
        return {}

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The parameters that `optim.backbone_lr_factor` applies to."""
        return []


def class_positions(classes: int, each: int = 1, before: int = 0) -> Tensor:
    """(C, each) positions of classes that lie one after another, `each` positions a class, behind `before` others."""
    return before + torch.arange(classes * each).view(classes, each)


def output_axes(layer: str, positions: Tensor) -> dict[str, ClassAxes]:
    """`Model.class_axes` of a layer with weight and bias whose outputs belong to classes. positions: (C, n)."""
    return {f"{layer}.weight": {0: positions}, f"{layer}.bias": {0: positions}}


def only_worth(found: list[Instances], worth: Worth | None) -> list[Instances]:
    """The detections of each image that are wanted."""
    return found if worth is None else [instances[worth(instances)] for instances in found]


def finite_zero(module: nn.Module) -> Tensor:
    """A zero that depends on every trainable parameter: no gradient, but data-parallel training sees them all used."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return torch.stack([p.sum() for p in parameters]).sum() * 0.0 if parameters else torch.zeros(())


def grid_losses(predictions: MaskPredictions, masks: Tensor, weights: Tensor) -> Tensor:
    """(K,) binary cross-entropy of each proposal's own class channel, weighted mean over its cells. masks: (K, h, w).
    weights: (K,) or (K, h, w).
    """
    per_cell = F.binary_cross_entropy_with_logits(predictions.of_category().float(), masks.float(), reduction="none")
    if weights.dim() == 1:
        weights = weights[:, None, None]
    return (per_cell * weights).mean(dim=(1, 2))


def grid_loss(predictions: MaskPredictions, masks: Tensor, weights: Tensor) -> Tensor:
    """`grid_losses`, mean over the proposals of all processes."""
    return global_mean(grid_losses(predictions, masks, weights).sum(), len(predictions))
