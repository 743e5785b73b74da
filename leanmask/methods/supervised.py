"""Supervised training on whatever is labelled: the baseline of every method, and its limit at pseudo-label weight 0.

The student sees the strong view (the weak one with `augment.strong=false`); objects without a mask teach the box branch
only. The EMA of the weights is kept and evaluated beside the student, because every method is compared with it.
"""

from __future__ import annotations

from typing import Literal

from leanmask.methods.base import EmaConfig, Method, StepLosses
from leanmask.models.base import Model
from leanmask.records import Batch


class SupervisedConfig(EmaConfig):
    """Nothing but the labels."""

    name: Literal["supervised"] = "supervised"


class Supervised(Method):
    """Losses of the labelled objects, nothing else."""

    Config = SupervisedConfig

    def losses(self, student: Model, teacher: Model, batch: Batch, step: int) -> StepLosses:
        losses, _ = student(batch.labelled.strong, batch.labelled.targets)
        return StepLosses(losses)
