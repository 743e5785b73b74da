"""Supervised training whose labels are smoothed towards similar and rare classes (Porcher et al. 2024, "Better
(pseudo-)labels", section 3.1): the teacher of `better_labels`.

    objects --teacher's backbone--> embeddings --mean per class--> prototypes --cosine, class counts--> soft labels

The paper has a pretrained backbone and takes the prototypes from it before training. A backbone that starts from
scratch knows no similarities yet, so prototypes are gathered while training, and labels are smoothed uniformly until
`uniform_fraction` of it; 0 with pretrained weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from leanmask.distributed import global_count
from leanmask.labels.smooth import Prototypes, Smoothing, smooth, smoothing_table, uniform_table, without_prototype
from leanmask.methods.base import EmaConfig, Method, StepLosses, TrainingFacts
from leanmask.models.base import Model
from leanmask.records import Batch, Proposals, Target, Views

REFRESH_STEPS = 50  # how often the prototypes change the labels


class SmoothedConfig(EmaConfig):
    """Labels that also say what a class looks like."""

    name: Literal["smoothed"] = "smoothed"
    smoothing: Literal["similarity", "uniform", "none"] = Field(
        "similarity", description="towards similar classes, towards all alike, or not at all"
    )
    epsilon: float = Field(0.1, ge=0, le=1, description="share of a label that is spread (published)")
    gamma: float = Field(1.5, ge=0, description="how strongly rare classes are preferred (published); 0 = not at all")
    reading: Literal["row", "column"] = Field(
        "row", description="of the published product: labels that sum to 1, or the formula at its word"
    )
    uniform_fraction: float = Field(
        0.25, ge=0, lt=1, description="share of the training in which the backbone learns before prototypes count; ours"
    )


class Smoothed(Method):
    """The losses of the labels, smoothed."""

    Config = SmoothedConfig
    config: SmoothedConfig

    def __init__(self, config: SmoothedConfig, facts: TrainingFacts) -> None:
        super().__init__(config, facts)
        self.classes = max(len(facts.class_names), len(facts.objects_per_class))
        self.prototypes = Prototypes(self.classes)
        self.start = round(config.uniform_fraction * facts.total_steps)
        self.counts = torch.tensor(facts.objects_per_class, dtype=torch.float64)
        self.table = uniform_table(self.classes, 0.0 if config.smoothing == "none" else config.epsilon)
        self.notice = without_prototype(self.counts, facts.class_names) if config.smoothing == "similarity" else None

    def losses(self, student: Model, teacher: Model, batch: Batch, step: int) -> StepLosses:
        views = batch.labelled
        if self.config.smoothing == "similarity" and step >= self.start:
            self.gather(teacher, views)
            if (step - self.start) % REFRESH_STEPS == 0:
                how = Smoothing(self.config.epsilon, self.config.gamma, self.config.reading)
                self.table = smoothing_table(self.prototypes.means(), self.counts, how)
        losses, _ = student(views.strong, smoothed_targets(views.targets, self.table))
        seen = float((self.prototypes.counts > 0).sum())
        return StepLosses(losses, {"classes_with_prototype": seen})

    @torch.no_grad()
    def gather(self, teacher: Model, views: Views) -> None:
        """Add the teacher's embeddings of the labelled objects, of all processes, to the prototypes."""
        own = Prototypes(self.classes)
        proposals = labelled_boxes(views.targets)
        own.add(teacher.embed(views.weak, proposals), proposals.categories)
        assert own.sums is not None, "even no object has embeddings of some length"
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        shared = global_count(torch.cat([own.sums, own.counts[:, None]], dim=1).to(views.weak.device)).cpu() * world
        self.prototypes.add_sums(shared[:, :-1], shared[:, -1])

    def state_dict(self) -> dict[str, Any]:
        """The prototypes and the labels that they make."""
        return {"prototypes": self.prototypes.state_dict(), "table": self.table}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.prototypes.load_state_dict(state["prototypes"])
        self.table = state["table"]


def labelled_boxes(targets: Sequence[Target]) -> Proposals:
    """The boxes of all trusted objects whose box is known."""
    images, boxes, objects, categories = [], [], [], []
    for image, target in enumerate(targets):
        found = target.instances
        known = torch.nonzero(found.boxes.isfinite().all(1) & (found.weights > 0))[:, 0]
        images.append(torch.full_like(known, image))
        boxes.append(found.boxes[known])
        objects.append(known)
        categories.append(found.categories[known])
    return Proposals(
        image_index=torch.cat(images),
        boxes=torch.cat(boxes),
        object_index=torch.cat(objects),
        categories=torch.cat(categories),
    )


def smoothed_targets(targets: Sequence[Target], table: Tensor) -> list[Target]:
    """The targets with soft classes: row c of the table (C, C) for an object of class c."""
    return [
        dataclasses.replace(
            target, instances=target.instances.replace(class_probabilities=smooth(target.instances.categories, table))
        )
        for target in targets
    ]
