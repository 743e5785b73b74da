"""What the trainer is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from leanmask.config import OptimConfig, TrainConfig
from leanmask.engine.teacher import Teacher
from leanmask.engine.watch import WatchRules
from leanmask.errors import RunInterrupted, Stopped, TrainingStopped
from leanmask.methods.base import Method
from leanmask.models.base import Model
from leanmask.records import Batch

Evaluated = Mapping[str, Mapping[str, Any]]
"""Metrics by who was measured: {"student": {"AP": 0.31, ...}, "teacher": {...}}. "AP" chooses the best weights, or
"box_AP" where there is no "AP"; a list
under "per_class" goes into the journal as it is; "pictures", (H, W, 3) uint8 arrays by name, go to TensorBoard. The
entry "pseudo", if any, is the quality of the pseudo-labels."""


class Wish(IntEnum):
    """What should happen after the present step, and why; processes agree on the largest."""

    GO_ON = 0
    INTERRUPT = 1
    COLLAPSE = 2
    NOT_FINITE = 3


class Best(TypedDict):
    """Which weights `best.safetensors` holds. AP is None when nothing was ever evaluated. iou: "box" where AP is of
    boxes; without it, of masks.
    """

    who: str
    step: int
    AP: float | None
    iou: NotRequired[str]


@dataclass(frozen=True)
class Job:
    """One training.

    batches: from a start step to an endless iterator of this process's batches. evaluate: called by every process after
    the given number of updates; the first one's answer counts, None = nothing was measured. describe: metadata for the
    weights file (class map, preprocessing, version, licence, configuration). on_progress: called on the first process
    after every update with (finished updates, all updates, losses). on_log: called on the first process with every line
    of losses in the journal, (finished updates, mean losses, mean seconds per update) since the line before. on_best:
    called on the first process when `best.safetensors` holds another network, that of the evaluation just done. watch:
    None = the usual rules, with the setting `train.collapse_stop_windows`.
    """

    student: Model
    teacher: Teacher
    method: Method
    batches: Callable[[int], Iterator[Batch]]
    evaluate: Callable[[int], Evaluated | None]
    folder: Path
    train: TrainConfig
    optim: OptimConfig
    describe: Mapping[str, Any] = field(default_factory=dict)
    on_progress: Callable[[int, int, Mapping[str, float]], None] | None = None
    on_log: Callable[[int, Mapping[str, float], float], None] | None = None
    on_best: Callable[[Best], None] | None = None
    watch: WatchRules | None = None


@dataclass(frozen=True)
class TrainResult:
    """steps: finished updates. seconds: wall time over all sittings. skipped_steps: updates left out as not finite.
    unreadable: files whose place another image took. stopped_early: why the training ended before its last update, None
    when it did not.
    """

    steps: int
    seconds: float
    best: Best | None
    skipped_steps: int
    unreadable: tuple[str, ...] = ()
    stopped_early: str | None = None


def farewell(reason: Wish, step: int, job: Job, not_finite: str) -> Stopped:
    """The error that ends a training early: why, and how to go on. not_finite: the sentence for that reason."""
    again = f"leanmask train --resume {job.folder}"
    if reason == Wish.INTERRUPT:
        return RunInterrupted(f"stopped at step {step} of {job.train.steps}; everything is saved", again)
    why = not_finite if reason == Wish.NOT_FINITE else "the pseudo-labels collapsed (see the journal's events)"
    return TrainingStopped(f"training stopped at step {step} of {job.train.steps}: {why}; everything is saved", again)
