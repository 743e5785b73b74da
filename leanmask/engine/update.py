"""One update of the student: micro-batches, agreement of processes, clipping; nothing changes unless all is finite."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from torch.optim import Optimizer

from leanmask.engine.distributed import agree, everyones, mean_numbers, share_from_first
from leanmask.engine.job import Job
from leanmask.engine.optim import set_lr
from leanmask.engine.step import NonFinite, TrainStep, files_of, read_numbers, require_finite, split_batch, to_device
from leanmask.methods.base import StepLosses
from leanmask.records import Batch

Numbers = dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """losses, counts: of this process, means over micro-batches; empty when the update was skipped. problem: why it was
    skipped, the same text on every process. wish: the strongest wish to stop of any process. events: what the method
    told.
    """

    losses: Numbers
    counts: Numbers
    lr: float
    problem: str | None = None
    wish: int = 0
    events: tuple[str, ...] = ()


class Updater:
    """Holds the (data-parallel) step module and the optimiser of a job."""

    def __init__(self, job: Job, accelerator: Accelerator, optimiser: Optimizer) -> None:
        assert "auto" not in (job.train.precision, job.train.channels_last), "settings are settled before a training"
        self._job = job
        self._accelerator = accelerator
        self._optimiser = optimiser
        self._module = accelerator.prepare_model(TrainStep(job.student, job.method))
        self._buffers = list(job.student.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]

    def __call__(self, batch: Batch, step: int, wish: int) -> Outcome:
        """Update number `step` (from 0). All processes do it or none does."""
        train, device = self._job.train, self._accelerator.device
        self._keep_buffers()
        rate = set_lr(self._optimiser, step, train.steps, self._job.optim)
        parts: list[tuple[Numbers, Numbers]] = []
        events: tuple[str, ...] = ()
        for index, micro in enumerate(split_batch(batch, train.accumulate), start=1):
            last = index == train.accumulate
            with nullcontext() if last else self._accelerator.no_sync(self._module):
                outcome = self._forward(to_device(micro, device, train.channels_last is True), step)
                losses, counts = read_numbers(outcome)
                problem = _problem(losses, micro)
                bad, wish = agree([int(problem is not None), wish], device)
                if bad:
                    return self._skip(everyones(problem), rate, wish)
                loss = torch.stack(list(outcome.losses.values())).sum()
                self._accelerator.backward(loss / train.accumulate)
            parts.append((losses, counts))
            events += outcome.events
        norm = self._clip()
        if not math.isfinite(norm):
            files = ", ".join(files_of(batch))
            problem = f"the gradient is {norm} though the losses are finite; images: {files}"
            return self._skip(everyones(problem), rate, wish)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        share_from_first(self._buffers)
        counts = mean_numbers([part[1] for part in parts]) | {"gradient_norm": norm}
        return Outcome(mean_numbers([part[0] for part in parts]), counts, rate, wish=wish, events=events)

    def _forward(self, micro: Batch, step: int) -> StepLosses:
        bf16 = self._job.train.precision == "bf16"
        with torch.autocast(self._accelerator.device.type, torch.bfloat16, enabled=bf16):
            return cast(StepLosses, self._module(micro, self._job.teacher.model, step))

    def _clip(self) -> float:
        """Clip the gradient and return its norm before; without a limit only the norm is taken."""
        limit = self._job.optim.clip_norm
        parameters = [parameter for group in self._optimiser.param_groups for parameter in group["params"]]
        return float(torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit))

    def _keep_buffers(self) -> None:
        """A forward pass over a broken batch spoils running statistics before its loss is seen."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    def _skip(self, problems: list[str | None], rate: float, wish: int) -> Outcome:
        self._optimiser.zero_grad(set_to_none=True)
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)
        named = dict.fromkeys(problem for problem in problems if problem is not None)
        return Outcome({}, {}, rate, problem="; ".join(named), wish=wish)


def _problem(losses: Numbers, batch: Batch) -> str | None:
    try:
        require_finite(losses, files_of(batch))
    except NonFinite as problem:
        return str(problem)
    return None
