"""How fast a training goes, and how long the rest of it will take."""

from __future__ import annotations

import statistics
from collections import deque

from leanmask.reports.layout import duration

UNUSUAL_STEPS = 2  # the first ones of a process: memory is asked for, kernels are chosen, loaders start
MEASURED_STEPS = 5  # after so many there is an estimate of the whole
RECENT_STEPS = 100


class Pace:
    """Seconds per step and per evaluation of one sitting, as measured, and the estimate that follows from them.

    total: steps of the training. every: steps between evaluations, 0 = only one, at the end. evaluation_steps: how many
    steps an evaluation is reckoned to take as long as, until one was measured.
    """

    def __init__(self, total: int, every: int, evaluation_steps: float = 0.0) -> None:
        self.total, self.every, self.evaluation_steps = total, every, evaluation_steps
        self._steps: deque[float] = deque(maxlen=RECENT_STEPS)
        self._evaluations: list[float] = []
        self._seen = 0

    def add_step(self, seconds: float) -> None:
        """Take the time of one step, loading and saving included."""
        self._seen += 1
        if self._seen > UNUSUAL_STEPS:
            self._steps.append(seconds)

    def add_evaluation(self, seconds: float) -> None:
        """Take the time of one evaluation, of all networks that are measured."""
        self._evaluations.append(seconds)

    def evaluations_after(self, step: int) -> int:
        """How many evaluations are to come after `step` finished steps and the evaluation, if any, of that one."""
        if step >= self.total:
            return 0
        return 1 + ((self.total - 1) // self.every - step // self.every if self.every else 0)

    def seconds_left(self, step: int) -> float | None:
        """Estimate of what the rest takes, evaluations included; None before a step was measured."""
        if not self._steps:
            return None
        mean = statistics.fmean(self._steps)
        evaluation = statistics.fmean(self._evaluations) if self._evaluations else mean * self.evaluation_steps
        return mean * (self.total - step) + evaluation * self.evaluations_after(step)

    def log_line(self, step: int, loss: float, seconds_step: float) -> str:
        """What a log says between evaluations. loss: of all parts. seconds_step: mean since the line before."""
        left = self.seconds_left(step)
        rest = "" if left is None or step >= self.total else f", {duration(left)} left"
        return f"step {step} of {self.total}: loss {loss:.3f}, {seconds_step:.2f} s a step{rest}"

    def estimate(self, step: int) -> str | None:
        """After the first steps of the sitting, once: how long the rest will take. None at every other step, and when
        there is little left.
        """
        if self._seen != MEASURED_STEPS or self.total - step < MEASURED_STEPS:
            return None
        left = self.seconds_left(step)
        count = self.evaluations_after(step)
        what = f" with {count} evaluation{'s' * (count > 1)}" if self.evaluation_steps or self._evaluations else ""
        mean = statistics.fmean(self._steps)
        return f"the {self.total - step} steps to come will take about {duration(left)}{what} ({mean:.2f} s a step)"
