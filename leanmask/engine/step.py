"""One forward pass of training: student and method in one module for data-parallel wrapping, and the finite check."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from leanmask.errors import ConfigError
from leanmask.methods.base import Method, StepLosses
from leanmask.models.base import Model, finite_zero
from leanmask.records import Batch, Views


class TrainStep(nn.Module):
    """The student and the method as one module, so that a data-parallel wrapper sees a single forward pass.

    However often the method calls the student, gradients are averaged once, in the one backward pass of the summed
    losses. With several processes the sum also gets a zero that depends on every trainable parameter: a process whose
    images have no object at all then still takes part in averaging every gradient, and nobody waits for ever.
    """

    def __init__(self, student: Model, method: Method) -> None:
        super().__init__()
        self.student = student
        self.method = method

    def forward(self, batch: Batch, teacher: Model, step: int) -> StepLosses:
        """Losses in float32 of update number `step` (from 0)."""
        outcome = self.method.losses(self.student, teacher, batch, step)
        assert outcome.losses, f"{type(self.method).__name__} returned no loss"
        losses = {name: loss.float() for name, loss in outcome.losses.items()}
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            first = next(iter(losses))
            losses[first] = losses[first] + finite_zero(self)
        return StepLosses(losses, outcome.counts, outcome.events)


class NonFinite(ArithmeticError):
    """A loss or gradient that is NaN or infinite; the message names it and the image files. The trainer catches it."""


def read_numbers(outcome: StepLosses) -> tuple[dict[str, float], dict[str, float]]:
    """Losses and counts as Python numbers, with a single transfer from the device."""
    named = {("loss", n): v for n, v in outcome.losses.items()} | {("count", n): v for n, v in outcome.counts.items()}
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    device = next(iter(outcome.losses.values())).device
    flat = torch.stack([value.detach().to(device, torch.float32).reshape(()) for value in tensors.values()]).tolist()
    numbers = {key: float(value) for key, value in named.items() if not isinstance(value, Tensor)}
    numbers |= dict(zip(tensors, flat, strict=True))
    kinds = {kind: {n: numbers[k, n] for k, n in named if k == kind} for kind in ("loss", "count")}
    return kinds["loss"], kinds["count"]


def require_finite(losses: Mapping[str, float], files: Sequence[str]) -> None:
    """Raise NonFinite that names losses and image files unless all losses are finite; called before backward."""
    bad = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
    if bad:
        raise NonFinite(f"{', '.join(bad)}; images: {', '.join(files)}")


def files_of(batch: Batch) -> tuple[str, ...]:
    """The image files of a batch, labelled ones first."""
    return batch.labelled.files + (batch.unlabelled.files if batch.unlabelled else ())


def skipped_files(batch: Batch) -> tuple[str, ...]:
    """Files that the loader could not read and replaced."""
    return batch.labelled.skipped + (batch.unlabelled.skipped if batch.unlabelled else ())


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """`parts` micro-batches of equal size, for gradient accumulation.

    Losses are normalised by the objects of their own micro-batch, so the average of the micro-batches' losses equals
    the loss of the whole batch exactly when the objects are spread evenly, and on average otherwise. Raises ConfigError
    when `parts` does not divide the images.
    """
    if parts == 1:
        return [batch]
    labelled = _split(batch.labelled, parts, "labelled")
    unlabelled = [None] * parts if batch.unlabelled is None else _split(batch.unlabelled, parts, "unlabelled")
    return [Batch(labelled=l, unlabelled=u) for l, u in zip(labelled, unlabelled, strict=True)]  # noqa: E741


def _split(views: Views, parts: int, what: str) -> list[Views]:
    if len(views) % parts:
        raise ConfigError(
            f"train.accumulate={parts} does not divide the {len(views)} {what} images that a process has per update"
        )
    size = len(views) // parts
    return [_slice(views, start, start + size) for start in range(0, len(views), size)]


def _slice(views: Views, start: int, end: int) -> Views:
    weak = views.weak[start:end]
    return dataclasses.replace(
        views,
        weak=weak,
        strong=weak if views.strong is views.weak else views.strong[start:end],
        targets=views.targets[start:end],
        frames=views.frames[start:end],
        image_ids=views.image_ids[start:end],
        files=views.files[start:end],
        skipped=views.skipped if start == 0 else (),
    )


def to_device(batch: Batch, device: torch.device, channels_last: bool) -> Batch:
    """The batch on the device, images in the memory format that convolutions are fastest with."""
    moved = batch.to(device, non_blocking=True)
    if not channels_last:
        return moved
    unlabelled = None if moved.unlabelled is None else _channels_last(moved.unlabelled)
    return Batch(labelled=_channels_last(moved.labelled), unlabelled=unlabelled)


def _channels_last(views: Views) -> Views:
    weak = views.weak.contiguous(memory_format=torch.channels_last)
    same = views.strong is views.weak
    strong = weak if same else views.strong.contiguous(memory_format=torch.channels_last)
    return dataclasses.replace(views, weak=weak, strong=strong)
