"""PL-DC: a few labelled images and many unlabelled ones (Lin et al. 2025; sections 3.2 to 3.4), around any model.

    weak view of unlabelled images -> teacher -> class quality and mask quality, each with its own threshold   (DDTF)
                                              -> category, fused with what an outside judge says               (DICC)
                                              -> mask, every pixel weighted by the teacher's certainty         (PMUA)
    strong views -> student -> losses of the labels + unlabelled_weight * losses of the pseudo-labels
    burn-in on labels alone, then teacher := student, then EMA

Every part is a setting, which makes the ablation table: `filter=coupled`, `judge=null`, `pixel_weight=none`,
`unlabelled_weight=0`. A batch without a single pseudo-object teaches nothing, as in the published code: it would only
say background.

Views unlike the published ones. Published: the student sees the weak *and* the strong copy of the labelled images,
three random erasings are part of the strong view, and the scale is drawn from 0.1 to 2. Here: the strong copy alone; no
erasing (`augment.erase=true`); 0.8 to 1.25 (`augment.scale_jitter`).

Beyond the paper. `doubtful`: what the teacher half believes in is neither object nor background; published, everything
below the thresholds is background (`doubtful=1`). `most_pseudo`: more pseudo-objects per image than so many times the
labelled rate lower their weight in proportion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from leanmask.labels.correct import CategoryJudge, corrected, fuse
from leanmask.labels.judges import USUAL_LOOK, JudgeOptions, load_judge
from leanmask.labels.pseudo import binary, to_crops
from leanmask.labels.rates import ClassRates, NothingKept
from leanmask.labels.select import (
    AdaptiveThresholds,
    Qualities,
    ThresholdRange,
    Thresholds,
    class_quality,
    coupled,
    decoupled,
    measure,
    surest,
)
from leanmask.labels.weigh import boundary_weights, certainty_weights, correction_weight
from leanmask.masks import Crops, Grids
from leanmask.methods.base import EmaConfig, Method, StepLosses, TrainingFacts
from leanmask.models.base import Model
from leanmask.records import Batch, Instances, Supervision, Target, Views


class PLDCConfig(EmaConfig):
    """Pseudo-labels for unlabelled images: class and mask are trusted apart, categories corrected, pixels doubted."""

    name: Literal["pldc"] = "pldc"
    ema_keep: float = Field(0.9996, ge=0, lt=1, description="share of the teacher kept at each update (0.9996: PL-DC)")
    burn_in_fraction: float = Field(
        0.2, ge=0, lt=1, description="share of the training on labels alone; published 0.05 of a very long one"
    )
    frozen_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the training before which the teacher does not follow; see guided_distillation",
    )
    unlabelled_weight: float = Field(1.0, ge=0, description="weight of the losses of pseudo-labels")
    filter: Literal["decoupled", "coupled", "adaptive"] = Field(
        "decoupled",
        description="a threshold each for class and mask; one for their product; one per class that follows",
    )
    class_quality: float = Field(0.85, ge=0, le=1, description="least class probability of a pseudo-object")
    mask_quality: float = Field(0.9, ge=0, le=1, description="least mean probability inside its mask")
    coupled_quality: float | None = Field(
        None, ge=0, le=1, description="filter=coupled: least product of the two; null = class_quality * mask_quality"
    )
    area_px: int = Field(5, ge=0, description="a pseudo-mask is larger than this, pixels of the network's input")
    doubtful: float = Field(
        0.3, ge=0, le=1, description="from this class probability on, what is not kept is no background either; ours"
    )
    pixel_weight: Literal["uncertainty", "boundary", "none"] = Field(
        "uncertainty", description="of the pseudo-masks' pixels: the teacher's certainty, or Noisy Boundaries' map"
    )
    judge: str | None = Field(
        None, description="who corrects categories: clip:MODEL, open_clip:MODEL/WEIGHTS, or python:module:function"
    )
    judge_descriptions: str | None = Field(
        None, description="YAML or JSON file {class name: [sentences]} for CLIP; null = the class names"
    )
    judge_look: Literal["boxes", "masks"] | None = Field(
        None,
        description="where CLIP looks: at a cut-out of each box, or once at the image and inside each mask; null = "
        "boxes for clip:, masks for open_clip:",
    )
    judge_share: float = Field(0.5, ge=0, le=1, description="the judge's share right after burn-in; falls to 0")
    most_pseudo: float = Field(
        3.0, gt=0, description="pseudo-objects per image, in labelled rates, above which their weight falls; ours"
    )

    @model_validator(mode="before")
    @classmethod
    def _resolved(cls, given: Any) -> Any:
        """Only `filter=coupled` and a judge that looks have these two settings; there null gets its value."""
        if not isinstance(given, dict):
            return given
        settings = {key: field.default for key, field in cls.model_fields.items()} | given
        two = [settings[key] for key in ("class_quality", "mask_quality")]
        numbers = all(isinstance(each, int | float) for each in two)  # else the fields say what is wrong
        if settings["filter"] == "coupled" and settings["coupled_quality"] is None and numbers:
            settings["coupled_quality"] = two[0] * two[1]
        kind = str(settings["judge"] or "").partition(":")[0]
        if settings["judge_look"] is None and kind in USUAL_LOOK:
            settings["judge_look"] = USUAL_LOOK[kind]
        return settings


class PLDC(Method):
    """Semi-supervised training with an EMA teacher whose pseudo-labels are filtered, corrected and doubted apart."""

    Config = PLDCConfig
    config: PLDCConfig
    uses_unlabelled = True

    def __init__(self, config: PLDCConfig, facts: TrainingFacts) -> None:
        super().__init__(config, facts)
        self.burn_in = round(config.burn_in_fraction * facts.total_steps)
        self.frozen = round(config.frozen_fraction * facts.total_steps)
        self.judge: CategoryJudge | None = None
        if config.judge:
            options = JudgeOptions(config.judge_descriptions, config.judge_look)
            self.judge = load_judge(config.judge, facts.class_names, options)
        self.fixed = Thresholds(config.class_quality, config.mask_quality, config.area_px)
        self.rates = ClassRates(facts.objects_per_class, facts.labelled_images, facts.class_names)
        self.nothing = NothingKept()
        self.adaptive: AdaptiveThresholds | None = None
        if config.filter == "adaptive":
            limits = ThresholdRange(
                (0.8 * config.class_quality, config.class_quality), (0.8 * config.mask_quality, config.mask_quality)
            )
            self.adaptive = AdaptiveThresholds(facts.objects_per_class, config.ema_keep, limits)

    def losses(self, student: Model, teacher: Model, batch: Batch, step: int) -> StepLosses:
        views, unlabelled = batch.labelled, batch.unlabelled
        losses, _ = student(views.strong, views.targets)
        if step < self.burn_in or unlabelled is None or self.config.unlabelled_weight == 0:
            return StepLosses(losses, {"pseudo_objects": 0.0})
        targets, counts = self.pseudo_targets(teacher, unlabelled, step)
        events = [*self.nothing.news(self.thresholds), *self.rates.update(_trusted(targets), len(targets))]
        weight = self.config.unlabelled_weight * self.restraint(float(counts["pseudo_objects"]))
        learned, _ = student(unlabelled.strong, targets)
        losses |= {name.replace("loss_", "loss_unlabelled_"): weight * loss for name, loss in learned.items()}
        return StepLosses(losses, counts, tuple(events))

    def momentum(self, step: int) -> float:
        """Frozen, then a copy of the student at the end of burn-in, then the EMA."""
        start = max(self.burn_in, self.frozen)
        if step + 1 < self.frozen:
            return 1.0
        return 0.0 if step + 1 == start else super().momentum(step)

    @property
    def thresholds(self) -> str:
        """The settings that decide what is kept, for a sentence."""
        return (
            "method.coupled_quality"
            if self.config.filter == "coupled"
            else "method.class_quality or method.mask_quality"
        )

    @torch.no_grad()
    def pseudo_targets(self, teacher: Model, views: Views, step: int) -> tuple[list[Target], dict[str, Tensor | float]]:
        """What the teacher says of the weak views, as targets of the strong ones, and numbers for the journal."""
        found = self.predictions(teacher, views)
        qualities = [measure(instances) for instances in found]
        self.follow(found, qualities)
        kept = [self.keeps(instances, quality) for instances, quality in zip(found, qualities, strict=True)]
        self.nothing.see(qualities, kept)
        found = self.correct(views.weak, found, kept, step)
        canvas = (int(views.weak.shape[-2]), int(views.weak.shape[-1]))
        targets = [
            self.target(instances, keep, quality, canvas)
            for instances, keep, quality in zip(found, kept, qualities, strict=True)
        ]
        scores = torch.cat([quality.class_quality[keep] for quality, keep in zip(qualities, kept, strict=True)])
        counts: dict[str, Tensor | float] = {"pseudo_objects": len(scores) / len(views)}
        if len(scores):
            counts["teacher_score"] = scores.mean()
        return targets, counts

    def predictions(self, teacher: Model, views: Views) -> list[Instances]:
        """What the teacher finds in the weak views: all of it for adaptive thresholds, which follow it."""
        worth = None if self.adaptive is not None else self.likely
        return teacher.predict(views.weak, [frame.content_box for frame in views.frames], worth)

    def likely(self, instances: Instances) -> Tensor:
        """(N,) bool: its class is sure enough to be kept or doubted, whatever its mask; and the surest, to be told of
        where nothing is.
        """
        found = class_quality(instances)
        product = self.config.coupled_quality  # a number where filter=coupled
        least = float(self.fixed.class_quality) if self.config.filter != "coupled" or product is None else product
        return (found >= min(self.config.doubtful, least)) | surest(found)

    def soft_classes(self, instances: Instances) -> Tensor | None:
        """(N, C) soft targets of pseudo-objects; None: their category alone is the target, as published."""
        return None

    def keeps(self, instances: Instances, quality: Qualities) -> Tensor:
        """(N,) bool: trusted enough to be an object (DDTF)."""
        if self.config.filter == "coupled":
            assert self.config.coupled_quality is not None, "the configuration is resolved"
            return coupled(quality, self.config.coupled_quality, self.config.area_px)
        thresholds = self.fixed
        if self.adaptive is not None:
            thresholds = self.adaptive.thresholds(instances.categories, self.config.area_px)
        return decoupled(quality, thresholds)

    def follow(self, found: Sequence[Instances], qualities: Sequence[Qualities]) -> None:
        """Let adaptive thresholds follow what the teacher predicts of all images."""
        if self.adaptive is not None:
            joined = [
                torch.cat([getattr(each, name) for each in qualities])
                for name in ("class_quality", "mask_quality", "area_px")
            ]
            self.adaptive.update(Qualities(*joined), torch.cat([instances.categories for instances in found]))

    def correct(self, images: Tensor, found: list[Instances], kept: list[Tensor], step: int) -> list[Instances]:
        """Categories of what is kept, fused with the judge's opinion, whose share falls to 0 (DICC)."""
        share = 2 * self.config.judge_share * correction_weight(step, self.burn_in, self.facts.total_steps)
        if self.judge is None or share == 0 or not any(bool(keep.any()) for keep in kept):
            return found
        chosen = [instances[keep] for instances, keep in zip(found, kept, strict=True)]
        opinions = self.judge(images, chosen)
        result = []
        for instances, keep, opinion in zip(found, kept, opinions, strict=True):
            assert instances.class_probabilities is not None
            categories = instances.categories.clone()
            fused = fuse(instances.class_probabilities[keep], opinion.to(images.device), share)
            categories[keep] = corrected(instances[keep], fused).categories
            result.append(instances.replace(categories=categories))
        return result

    def target(self, instances: Instances, keep: Tensor, quality: Qualities, canvas: tuple[int, int]) -> Target:
        """Kept objects with mask and pixel weights; doubtful ones with weight 0, which makes them no background."""
        chosen = keep | (quality.class_quality >= self.config.doubtful)
        some, trusted = instances[chosen], keep[chosen]
        assert isinstance(some.masks, Grids | Crops), "predictions have soft masks"
        crops = to_crops(some.masks, canvas)
        pseudo = Instances(
            boxes=some.boxes,
            categories=some.categories,
            supervision=torch.where(trusted, int(Supervision.MASK), int(Supervision.NONE)),
            weights=trusted.float(),
            class_probabilities=self.soft_classes(some),
            masks=binary(crops),
        )
        weights = None
        if self.config.pixel_weight != "none":
            weights = certainty_weights(crops) if self.config.pixel_weight == "uncertainty" else boundary_weights(crops)
        return Target(instances=pseudo, ignore=some.boxes[:0], pixel_weights=weights)

    def restraint(self, pseudo_objects: float) -> float:
        """Factor of the unlabelled loss for so many pseudo-objects per image: 0 for none, below 1 when they explode."""
        if pseudo_objects == 0:
            return 0.0
        labelled = sum(self.facts.objects_per_class) / max(self.facts.labelled_images, 1)
        return min(1.0, self.config.most_pseudo * labelled / pseudo_objects) if labelled else 1.0

    def pseudo_labels(self, teacher: Model, views: Views) -> list[Instances]:
        """What the teacher would keep of these images, with its own categories."""
        found = self.predictions(teacher, views)
        return [instances[self.keeps(instances, measure(instances))] for instances in found]

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values: the adaptive thresholds, and how often each class was found."""
        adaptive = self.adaptive.state_dict() if self.adaptive else None
        return {"adaptive": adaptive, "rates": self.rates.state_dict(), "nothing": self.nothing.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rates.load_state_dict(state["rates"])
        if "nothing" in state:  # checkpoints of before did not count them
            self.nothing.load_state_dict(state["nothing"])
        if self.adaptive is not None and state["adaptive"] is not None:
            self.adaptive.load_state_dict(state["adaptive"])


def _trusted(targets: Sequence[Target]) -> Tensor:
    """(N,) categories of the pseudo-objects that teach."""
    return torch.cat([target.instances.categories[target.instances.weights > 0] for target in targets])
