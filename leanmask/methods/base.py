"""What a method promises: one function from (student, teacher, batch, step) to named losses, written like its paper's
figure.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from leanmask.config import Frozen
from leanmask.models.base import Model
from leanmask.records import Batch, Instances, Views


@dataclass(frozen=True)
class StepLosses:
    """One step's outcome. losses: named scalars that the trainer adds up. counts: detached numbers for the journal
    (pseudo objects per image, teacher score, ramp, ...)."""

    losses: dict[str, Tensor]
    counts: dict[str, Tensor | float] = field(default_factory=dict)


class Method(ABC):
    """A label-efficient way of training. Has no parameters of its own unless it says so; never looks inside a model."""

    Config: ClassVar[type[Frozen]]
    uses_unlabelled: ClassVar[bool] = False

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps

    @abstractmethod
    def losses(self, student: Model, teacher: Model, batch: Batch, step: int) -> StepLosses:
        """The losses of student update number `step` (from 0). The teacher is in eval mode and takes no gradient."""

    @abstractmethod
    def momentum(self, step: int) -> float:
        """Share of the teacher that is kept after update `step`; 0 makes it a copy of the student."""

    def pseudo_labels(self, teacher: Model, views: Views) -> list[Instances] | None:
        """What the teacher would tell the student about these images now, to be measured against hidden truth.

        One Instances per image with masks and scores, `ids` naming the labelled objects they belong to where there are
        such. None when the method makes no pseudo-labels.
        """
        return None
