"""The training loop: forward, check, backward, update, let the teacher follow, write down, save; until the last step or
until the validation score has not risen for `train.patience` evaluations.

A step counts as finished after its update, also when the update was skipped because a loss was not finite; in journal,
checkpoints and evaluations `step` is the number of finished steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch

from leanmask.engine import distributed
from leanmask.engine.checkpoint import (
    CHECKPOINTS,
    Live,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from leanmask.engine.interrupts import Interrupts
from leanmask.engine.job import Best, Evaluated, Job, TrainResult, Wish, farewell
from leanmask.engine.journal import Journal
from leanmask.engine.meter import Meter
from leanmask.engine.optim import build_optimiser
from leanmask.engine.rng import RngState, capture_rng, restore_rng, untouched_rng
from leanmask.engine.step import skipped_files
from leanmask.engine.update import Outcome, Updater
from leanmask.engine.watch import Watchdog, WatchRules
from leanmask.errors import DataError, RunError
from leanmask.records import Batch
from leanmask.summary import score_of

KEPT_FOLDER = "weights"

__all__ = ["Best", "Evaluated", "Job", "TrainResult", "train"]


def train(job: Job, resume: bool = False) -> TrainResult:
    """Train until `job.train.steps` updates are done. The caller has seeded the generators and built the networks.

    resume: go on from the checkpoint in `job.folder`; where a run was killed before its first one, from the beginning.
    Raises RunInterrupted after Ctrl-C, TrainingStopped after non-finite losses or collapse (all three with everything
    saved), CheckpointError or RunError when files cannot be read or written, ConfigError when settings contradict.
    """
    return _Training(job).run(resume)


class _Training:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.accelerator = distributed.make_accelerator(job.folder, job.train.trackers)
        self.main = bool(self.accelerator.is_main_process)
        layout = torch.channels_last if job.train.channels_last else torch.contiguous_format
        for model in (job.student, job.teacher.model):
            model.to(self.accelerator.device, memory_format=layout)  # type: ignore[call-overload]
        self.optimiser = build_optimiser(job.student, job.optim)
        self.update = Updater(job, self.accelerator, self.optimiser)
        distributed.share_module(job.teacher.model)
        self.live = Live(job.student, job.teacher.model, self.optimiser, job.method)
        self.checkpoints = job.folder / CHECKPOINTS
        usual = WatchRules(stop_windows=job.train.collapse_stop_windows)
        self.watchdog, self.meter = Watchdog(job.watch or usual), Meter()
        self.step = self.bad_in_a_row = self.skipped_steps = 0
        self.unreadable: dict[str, None] = {}  # files, of all processes
        self.owes_evaluation = False  # a run that was stopped at a step with an evaluation makes up for it
        self.best: Best | None = None
        self.evaluations_since_best = 0
        self.seconds_before, self.started = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def stopped_early(self) -> bool:
        """Whether the validation score has not risen for so long that no further step is made."""
        return 0 < self.job.train.patience <= self.evaluations_since_best and self.step < self.job.train.steps

    def run(self, resume: bool) -> TrainResult:
        rng, news = self.restore() if resume else (capture_rng(), [])
        with Journal(self.job.folder, self.step, self.main) as journal, Interrupts() as interrupts:
            for sentence in news:
                journal.event(self.step, sentence)
            self.job.student.train()
            with untouched_rng():
                batches = self.job.batches(self.step)
            restore_rng(rng)
            try:
                if self.owes_evaluation:
                    self.evaluate(journal, interrupts)
                while self.step < self.job.train.steps and not self.stopped_early:
                    self.one_step(batches, journal, interrupts)
            except DataError:  # such as a folder of images that is gone: what was learned is kept
                if self.step and distributed.world_size() == 1:
                    self.save(journal)
                raise
        distributed.finish_trackers(self.accelerator)
        early, unreadable = self.early_stop_message() if self.stopped_early else None, tuple(self.unreadable)
        return TrainResult(self.step, self.seconds, self.best, self.skipped_steps, unreadable, early)

    def one_step(self, batches: Iterator[Batch], journal: Journal, interrupts: Interrupts) -> None:
        job, begin = self.job, time.perf_counter()
        batch = _next(batches, interrupts)
        waited = time.perf_counter() - begin
        if batch is None:
            self.stop(Wish.INTERRUPT, "", journal)
        outcome = self.update(batch, self.step, self.wish(interrupts))
        if outcome.problem is None:
            job.teacher.follow(job.student, job.method.momentum(self.step))
        self.step += 1
        self.note(outcome, batch, journal)
        self.meter.add("seconds", {"step": time.perf_counter() - begin, "data": waited})
        self.write_down(outcome, journal)
        wish = self.wish(interrupts) if distributed.world_size() == 1 else Wish(outcome.wish)
        self.finish(wish, outcome.problem or "", journal, interrupts)

    def wish(self, interrupts: Interrupts) -> Wish:
        """Why this process wants to stop after the present step; the processes agree on the strongest wish."""
        return Wish.COLLAPSE if self.watchdog.must_stop else Wish.INTERRUPT if interrupts.wanted else Wish.GO_ON

    def note(self, outcome: Outcome, batch: Batch, journal: Journal) -> None:
        """Count, sum up, and tell of what went wrong in the step that was just finished."""
        self.meter.add_skipped(skipped_files(batch))
        if outcome.problem is not None:
            self.bad_in_a_row, self.skipped_steps = self.bad_in_a_row + 1, self.skipped_steps + 1
            journal.event(self.step, f"step {self.step} was skipped, nothing was updated: {outcome.problem}")
            return
        self.bad_in_a_row = 0
        self.meter.add("losses", outcome.losses)
        self.meter.add("counts", outcome.counts)
        for sentence in (*outcome.events, *self.watchdog.observe(outcome.counts)) if self.main else ():
            journal.event(self.step, sentence)

    def write_down(self, outcome: Outcome, journal: Journal) -> None:
        """The progress bar after every step, a line in the journal after every `log_every_steps`."""
        total = self.job.train.steps
        if self.main and self.job.on_progress:
            self.job.on_progress(self.step, total, outcome.losses)
        if self.step % self.job.train.log_every_steps and self.step < total:
            return
        means, skipped = zip(*distributed.everyones(self.meter.take()), strict=True)
        for file in dict.fromkeys(file for files in skipped for file in files):
            self.unreadable[file] = None
            journal.event(self.step, f"cannot read {file}; the next image took its place")
        kinds = {
            kind: distributed.mean_numbers([part.get(kind, {}) for part in means])
            for kind in ("losses", "counts", "seconds")
        }
        seconds = kinds.pop("seconds")
        if kinds["losses"]:
            times = {"seconds_step": seconds["step"], "seconds_data": seconds["data"]}
            journal.write("train", self.step, {**kinds, "lr": outcome.lr, **times})
            numbers = {f"{kind}/{name}": value for kind, part in kinds.items() for name, value in part.items()}
            self.track({**numbers, "lr": outcome.lr, **times})
            if self.main and self.job.on_log:
                self.job.on_log(self.step, kinds["losses"], seconds["step"])

    def finish(self, wish: Wish, problem: str, journal: Journal, interrupts: Interrupts) -> None:
        """Evaluate, save and stop, as far as it is time for it."""
        config = self.job.train
        last = self.step == config.steps
        if self.step in kept_steps(config.keep_weights_fractions, config.steps):
            self.keep_weights()
        self.owes_evaluation = last or (config.eval_every_steps > 0 and self.step % config.eval_every_steps == 0)
        if self.bad_in_a_row >= config.max_bad_steps:
            self.stop(Wish.NOT_FINITE, problem, journal)
        if wish != Wish.GO_ON and not last:
            self.stop(wish, problem, journal)
        if self.owes_evaluation:
            self.evaluate(journal, interrupts)
        elif self.step % config.checkpoint_every_steps == 0:
            self.save(journal)

    def evaluate(self, journal: Journal, interrupts: Interrupts) -> None:
        """Measure, write down, keep the better network and save; leaves modes and random streams as they were."""
        config = self.job.train
        try:
            with untouched_rng():
                evaluated = self.job.evaluate(self.step)
        except RuntimeError:  # SIGTERM, sent to all processes of the training, ends the loader's
            if not interrupts.wanted or distributed.world_size() > 1:
                raise
            self.stop(Wish.INTERRUPT, "", journal)
        self.owes_evaluation = False
        self.job.student.train()
        self.job.teacher.model.eval()
        best_before = self.best
        for who, metrics in (evaluated or {}).items() if self.main else ():
            numbers = {name: value for name, value in metrics.items() if name not in ("per_class", "pictures")}
            self.track({f"{who}/{name}": value for name, value in numbers.items() if isinstance(value, float)})
            if who == "pseudo":
                journal.write("pseudo", self.step, numbers)
                continue
            journal.write(
                "eval", self.step, {"who": who, "metrics": numbers, "per_class": metrics.get("per_class", [])}
            )
            journal.pictures(who, self.step, metrics.get("pictures", {}))
            self.compare(who, metrics, journal)
        self.best = distributed.everyones(self.best)[0]
        if self.best is not None and self.best["AP"]:  # patience counts from the first AP above 0
            self.evaluations_since_best = self.evaluations_since_best + 1 if self.best == best_before else 0
        if self.step == config.steps and (self.best is None or self.best["AP"] is None):  # nothing was ever measured
            self.keep_best(Best(who="teacher", step=self.step, AP=None))
        if self.stopped_early:
            journal.event(self.step, self.early_stop_message(), stopped_early=True)
            if any(step > self.step for step in kept_steps(config.keep_weights_fractions, config.steps)):
                self.keep_weights()  # in place of those of the steps that will not be made
        self.save(journal)

    def compare(self, who: str, metrics: Mapping[str, Any], journal: Journal) -> None:
        """Keep these weights when they are the best so far. An AP of NaN (no truth) never is."""
        name, ap = score_of(metrics)
        best = None if self.best is None else self.best["AP"]
        if ap == ap and (best is None or ap > best):
            found = Best(who=who, step=self.step, AP=ap)
            if name == "box AP":
                found["iou"] = "box"
            self.keep_best(found)
            if self.main and self.job.on_best:
                self.job.on_best(found)
        for sentence in self.watchdog.observe_ap(ap) if who == "teacher" else ():
            journal.event(self.step, sentence)

    def early_stop_message(self) -> str:
        """What happened, why, and which weights are the result."""
        count, best = self.evaluations_since_best, self.best
        assert best is not None
        assert best["AP"] is not None
        return (
            f"stopped early at step {self.step} of {self.job.train.steps}: in {count} evaluation{'s' * (count > 1)} in "
            f"a row (train.patience) no {best.get('iou', 'mask')} AP was above {100 * best['AP']:.1f}, that of the "
            f"{best['who']} at step "
            f"{best['step']}; the training is finished"
        )

    def keep_weights(self) -> None:
        """Save the teacher as it is now beside the best one."""
        if self.main:
            path = self.job.folder / KEPT_FOLDER / kept_name(self.step)
            save_weights(path, self.job.teacher.model, {**self.job.describe, "who": "teacher", "step": self.step})

    def keep_best(self, best: Best) -> None:
        self.best = best
        model = self.job.teacher.model if best["who"] == "teacher" else self.job.student
        if self.main:
            save_weights(self.job.folder / "best.safetensors", model, {**self.job.describe, **best})

    def save(self, journal: Journal) -> None:
        """Write a checkpoint of this moment; the other processes wait for it."""
        rng = distributed.everyones(capture_rng())
        if self.main:
            journal.sync()
            save_checkpoint(self.checkpoints, self.live, self.progress(), rng)
        self.accelerator.wait_for_everyone()

    def progress(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "steps": self.job.train.steps,
            "bad_in_a_row": self.bad_in_a_row,
            "skipped_steps": self.skipped_steps,
            "unreadable": list(self.unreadable),
            "owes_evaluation": self.owes_evaluation,
            "best": self.best,
            "evaluations_since_best": self.evaluations_since_best,
            "seconds": self.seconds,
            "meter": self.meter.state_dict(),
            "watch": self.watchdog.state_dict(),
        }

    def restore(self) -> tuple[RngState, list[str]]:
        """Go back to the last checkpoint. Returns this process's random state and what a person should know."""
        if not has_checkpoint(self.checkpoints):
            return capture_rng(), ["resumed before the first checkpoint: training starts from the beginning"]
        saved, rng = load_checkpoint(self.checkpoints, self.live)
        if saved["step"] > self.job.train.steps:
            raise RunError(f"{self.checkpoints} is at step {saved['step']}, train.steps is only {self.job.train.steps}")
        self.step, self.best, self.seconds_before = saved["step"], saved["best"], saved["seconds"]
        self.bad_in_a_row, self.skipped_steps = saved["bad_in_a_row"], saved["skipped_steps"]
        self.owes_evaluation = saved["owes_evaluation"]
        self.unreadable = dict.fromkeys(saved.get("unreadable", ()))  # checkpoints of before did not count them
        self.evaluations_since_best = saved.get("evaluations_since_best", 0)  # nor these
        news = self.changed_length(saved.get("steps", self.job.train.steps))
        self.meter.load_state_dict(saved["meter"])
        self.watchdog.load_state_dict(saved["watch"])
        if len(rng) == distributed.world_size():
            return rng[self.accelerator.process_index], [f"resumed at step {self.step}", *news]
        change = f"by {distributed.world_size()} processes instead of {len(rng)}: random streams start afresh"
        return capture_rng(), [f"resumed at step {self.step} {change}", *news]

    def changed_length(self, before: int) -> list[str]:
        """What a person should know of a run that was begun with another number of steps. An end that `train.patience`
        had brought is not one any more: who asks for more steps wants them.
        """
        steps = self.job.train.steps
        if before == steps:
            return []
        self.evaluations_since_best = 0
        return [f"goes on to step {steps} instead of {before}; the learning rate is that of a run of {steps} steps"]

    def stop(self, reason: Wish, problem: str, journal: Journal) -> NoReturn:
        """Save and raise the error that says why and how to go on."""
        bad, self.bad_in_a_row = self.bad_in_a_row, 0
        self.watchdog.forgive()
        error = farewell(reason, self.step, self.job, f"{bad} steps in a row were not finite, the last: {problem}")
        journal.event(self.step, str(error))
        self.save(journal)
        raise error

    def track(self, numbers: Mapping[str, float]) -> None:
        if self.job.train.trackers:
            self.accelerator.log(dict(numbers), step=self.step)


def kept_steps(fractions: Sequence[float], steps: int) -> tuple[int, ...]:
    """After which updates the weights are kept, in order: at least the first, at most the last."""
    return tuple(sorted({min(max(round(fraction * steps), 1), steps) for fraction in fractions}))


def kept_name(step: int) -> str:
    """File of the weights kept after an update, in `KEPT_FOLDER` of the run."""
    return f"step-{step:07}.safetensors"


def _next(batches: Iterator[Batch], interrupts: Interrupts) -> Batch | None:
    """The next batch; None when Ctrl-C has ended the loader's processes. Loading moves no random stream of training."""
    try:
        with untouched_rng():
            return next(batches)
    except RuntimeError:
        if not interrupts.wanted or distributed.world_size() > 1:
            raise
        return None
