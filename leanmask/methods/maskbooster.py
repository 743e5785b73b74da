"""MaskBooster: a few masks among many boxes (AAAI 2023, Eq. 1-13), a wrapper around any model with class-aware masks.

    weak view   -> teacher --(the student's own positive proposals: T-S matching)--> mask logits
                                              |-> sliced, thresholded, cut at the given box: binary pseudo-masks
                                              |-> softmax over classes: soft pseudo-masks
    strong view -> student -> losses of boxes and given masks  +  r(t) * (lambda_h * binary loss + lambda_s * soft loss)
    teacher <- EMA of the student

Every part is a setting, which makes the ablation table: `binary_weight=0`, `soft_weight=0`, `box_prior=false`,
`augment.strong=false`, `ema_keep=0`.

Where the paper is silent. Strong view: photometric only, since proposals must align. Temperature 1, with Hinton's
factor T^2. The divergence is summed over classes and averaged over cells and proposals; with that mean lambda_s is 1
(on `tune` of digits at 0.4 %, from scratch, one seed: 1, 0.25 and 0 gave 28.8, 28.4 and 29.8 AP, closer together than
two seeds). The ramp begins after a tenth of the training (`start_fraction`): a teacher that has hardly seen a mask
teaches noise, and the paper's own short ramps collapse where masks are rarest. But masks teach the backbone shapes,
which boxes profit from too, so waiting costs: from a tenth to a quarter of the training instead of from a fifth to a
half gave 35.6 instead of 34.3 AP there at 10 % (every image pasted into).

Beyond the paper, both for classes with so few masks that their own channel is unreliable, and both switched off by a
setting. `box_agreement`: a pseudo-mask counts as much as its tight box agrees with the given one, so a mask that
shrinks to nothing does not confirm itself. `borrow`: where the mean of all channels fits the given box better than the
class's own channel does, it is the pseudo-mask; channels of other classes respond to much of the same object (Eq. 8,
figure 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from leanmask.distributed import global_mean
from leanmask.labels.boxes import box_agreement, box_prior, boxes_without_mask
from leanmask.labels.masks import binary_masks, class_divergence, mask_certainty
from leanmask.labels.weigh import cosine_ramp
from leanmask.masks import Grids
from leanmask.methods.base import EmaConfig, Method, StepLosses
from leanmask.models.base import Model
from leanmask.records import Batch, Instances, MaskPredictions, Target, Views


class MaskBoosterConfig(EmaConfig):
    """Pseudo-masks for objects that have only a box."""

    name: Literal["maskbooster"] = "maskbooster"
    binary_weight: float = Field(
        1.0, ge=0, description="lambda_h; the paper takes 0.2 where masks are rarest (COCO 0.1 %)"
    )
    soft_weight: float = Field(
        1.0, ge=0, description="lambda_s; the paper takes 10, with a mean over cells that it leaves open"
    )
    temperature: float = Field(1.0, gt=0, description="T of the soft pseudo-masks; not given in the paper")
    box_prior: bool = Field(True, description="cut binary pseudo-masks at the given box")
    box_agreement: bool = Field(
        True, description="trust pseudo-masks by the IoU of their tight box with the given box; not in the paper"
    )
    borrow: bool = Field(
        True,
        description="where it fits the given box better, the mean of all classes' channels is the pseudo-mask; ours",
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="probability above which a cell of a pseudo-mask is object")
    start_fraction: float = Field(0.1, ge=0, lt=1, description="share of the training before the ramp begins")
    ramp_fraction: float = Field(0.15, ge=0, le=1, description="length of the ramp r(t), as a share of the training")


class MaskBooster(Method):
    """Online self-training of the mask branch with an EMA teacher."""

    Config = MaskBoosterConfig
    config: MaskBoosterConfig

    def losses(self, student: Model, teacher: Model, batch: Batch, step: int) -> StepLosses:
        views = batch.labelled
        losses, said = student(views.strong, views.targets)
        lacking = said[lacks_mask(said, views.targets)]
        ramp = self.ramp(step)
        counts: dict[str, Tensor | float] = {"ramp": ramp, "pseudo_objects": len(lacking) / len(views)}
        if ramp > 0 and (self.config.binary_weight > 0 or self.config.soft_weight > 0):
            with torch.no_grad():
                taught = teacher.predict_masks(views.weak, lacking.proposals())
                counts["teacher_score"] = mean_certainty(taught)
            losses = losses | self.pseudo_losses(student, lacking, taught, views.targets, ramp)
        return StepLosses(losses, counts)

    def ramp(self, step: int) -> float:
        """r(t) of Eq. 4, with t counted from `start_fraction` on."""
        started = step - self.config.start_fraction * self.facts.total_steps
        return (
            0.0 if started < 0 else cosine_ramp(int(started), round(self.config.ramp_fraction * self.facts.total_steps))
        )

    def pseudo_losses(
        self, student: Model, said: MaskPredictions, taught: MaskPredictions, targets: Sequence[Target], ramp: float
    ) -> dict[str, Tensor]:
        """Binary and soft pseudo-mask losses of K proposals whose objects have no mask (Eq. 11 and 12)."""
        config, losses = self.config, {}
        boxes = object_boxes(said, targets)
        masks = self.cut_masks(self.best_logits(taught, boxes), said.boxes, boxes)
        trust = torch.ones(len(said), device=masks.device)
        if config.box_agreement:
            trust = box_agreement(masks, said.boxes, boxes)
        if config.binary_weight > 0:
            losses["loss_pseudo_binary"] = ramp * config.binary_weight * student.mask_loss(said, masks, trust)
        if config.soft_weight > 0:
            divergence = class_divergence(said.logits, taught.logits, config.temperature).mean((1, 2))
            losses["loss_pseudo_soft"] = ramp * config.soft_weight * global_mean((trust * divergence).sum(), len(said))
        return losses

    def best_logits(self, taught: MaskPredictions, boxes: Tensor) -> Tensor:
        """(K, h, w) the teacher's logits for each object: its class's channel or, where that fits the given box better,
        the mean of the channels that had true masks to learn from.
        """
        own = taught.of_category()
        if not self.config.borrow or taught.logits.shape[1] == 1:
            return own
        known = torch.tensor([count > 0 for count in self.facts.masks_per_class], device=own.device)
        shared = (taught.logits[:, known] if known.any() else taught.logits).mean(1)
        fits = [
            box_agreement(self.cut_masks(logits, taught.boxes, boxes), taught.boxes, boxes) for logits in (own, shared)
        ]
        return torch.where((fits[1] > fits[0])[:, None, None], shared, own)

    def cut_masks(self, logits: Tensor, grid_boxes: Tensor, boxes: Tensor) -> Tensor:
        """(K, h, w) binary pseudo-masks, cut at the given boxes (Eq. 6 and 7)."""
        masks = binary_masks(logits, self.config.threshold)
        if not self.config.box_prior:
            return masks
        return masks * box_prior(grid_boxes, boxes, (masks.shape[1], masks.shape[2]))

    def pseudo_labels(self, teacher: Model, views: Views) -> list[Instances]:
        """The teacher's masks for the boxes of the objects that have none."""
        proposals, lacking = boxes_without_mask(views.targets, points=teacher.takes_points)
        taught = teacher.predict_masks(views.weak, proposals)
        values = self.best_logits(taught, proposals.boxes).float().sigmoid()
        counts = [len(instances) for instances in lacking]
        return [
            instances.replace(masks=Grids(grids, boxes), scores=mask_certainty(grids))
            for instances, grids, boxes in zip(lacking, values.split(counts), taught.boxes.split(counts), strict=True)
        ]


def lacks_mask(predictions: MaskPredictions, targets: Sequence[Target]) -> Tensor:
    """(K,) bool: the proposal's object has a box but no mask, and counts (weight above 0)."""
    wanted = [~target.instances.has_mask & (target.instances.weights > 0) for target in targets]
    return _of_object(predictions, wanted)


def object_boxes(predictions: MaskPredictions, targets: Sequence[Target]) -> Tensor:
    """(K, 4) xyxy given box of each proposal's object, pixels of the network frame."""
    return _of_object(predictions, [target.instances.boxes for target in targets])


def mean_certainty(predictions: MaskPredictions) -> Tensor:
    """Mean probability inside the predicted masks, the watchdog's measure of the teacher; 0 when there is none."""
    scores = mask_certainty(predictions.of_category().float().sigmoid())
    return scores.mean() if len(scores) else scores.new_zeros(())


def _of_object(predictions: MaskPredictions, fields: Sequence[Tensor]) -> Tensor:
    sizes = [len(field) for field in fields]
    starts = torch.tensor([0, *sizes[:-1]], device=predictions.boxes.device).cumsum(0)
    return torch.cat(list(fields))[starts[predictions.image_index] + predictions.object_index]
