"""The EMA teacher: one file, one stated rule for parameters and buffers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from leanmask.models.base import Model


class Teacher:
    """An exponential moving average of a student, in eval mode and without gradient.

    Rule: float parameters and float buffers (BatchNorm's running statistics) are averaged in float32; integer and
    boolean ones (BatchNorm's batch counter), and float constants that hold infinities, are copied.
    """

    def __init__(self, student: Model) -> None:
        self.model = copy.deepcopy(student).float().requires_grad_(False).eval()
        state = _state(self.model)
        self._averaged = [n for n, value in state.items() if value.is_floating_point() and not value.isinf().any()]
        self._copied = [name for name in state if name not in set(self._averaged)]

    @torch.no_grad()
    def follow(self, student: Model, momentum: float) -> None:
        """Keep the share `momentum` of the teacher and take the rest from the student; 0 makes an exact copy.

        `student` is the unwrapped model, with the same parameters and buffers as the one that the teacher was made of.
        """
        mine, theirs = _state(self.model), _state(student)
        assert mine.keys() == theirs.keys(), "the teacher follows another model"
        own, sources = [mine[n] for n in self._averaged], [theirs[n].detach().float() for n in self._averaged]
        if momentum == 0:
            torch._foreach_copy_(own, sources)
        else:
            torch._foreach_lerp_(own, sources, 1.0 - momentum)
        for name in self._copied:
            mine[name].copy_(theirs[name])


def _state(model: Model) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())
