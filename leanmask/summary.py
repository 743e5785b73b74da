"""What a training says while it runs, and what it was when it is finished."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEST_FOLDER = "best"  # in evaluation/ of a run: what was measured of the network that best.safetensors holds

# Called with (finished steps, all steps, a note): first, at step 0, with the census of what is labelled how. Most notes
# only stand beside a progress bar; the two kinds below are for those who have none, or want to look back.
OnStep = Callable[[int, int, str], None]


def score_of(metrics: Mapping[str, Any]) -> tuple[str, float]:
    """The number that networks are compared by, and its name: mask AP, or box AP where only boxes were measured. A
    fraction; NaN where there was nothing to measure.
    """
    name, key = ("mask AP", "AP") if "AP" in metrics or "box_AP" not in metrics else ("box AP", "box_AP")
    value = metrics.get(key)
    return name, math.nan if value is None else float(value)


class Line(str):
    """A note that deserves a line of its own wherever it is shown: what is trained on, what an evaluation found."""


class LogLine(str):
    """A note that is a line where there is no progress bar, in a file or a pipe: how far training is."""


@dataclass(frozen=True)
class TrainSummary:
    """What a finished run was. best: which network `best.safetensors` holds: who, step, AP, and "metrics", all that was
    measured of it, where that is known. metrics: by network, as evaluated last, which may be another step.
    stages: the trainings of a run of several, in order, in whose steps and seconds all of them are counted.
    unreadable: image files that could not be read, and whose place another one took. left: stages still to do.
    stopped_early: why the training ended before its last step (`train.patience`), None when it did not.
    """

    folder: Path
    steps: int
    seconds: float
    metrics: dict[str, dict[str, float]]
    best: Mapping[str, Any] | None
    stages: tuple[TrainSummary, ...] = ()
    unreadable: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    stopped_early: str | None = None

    @classmethod
    def of_stages(cls, folder: Path, stages: Sequence[TrainSummary], left: Sequence[str] = ()) -> TrainSummary:
        """A run of several trainings: the last one's result for the work of all."""
        if not stages:
            return cls(folder, steps=0, seconds=0.0, metrics={}, best=None, left=tuple(left))
        steps, seconds = sum(each.steps for each in stages), sum(each.seconds for each in stages)
        unreadable = tuple(dict.fromkeys(file for each in stages for file in each.unreadable))
        early = "; ".join(f"{each.folder.name}: {each.stopped_early}" for each in stages if each.stopped_early) or None
        last = dataclasses.replace(stages[-1], steps=steps, seconds=seconds, unreadable=unreadable, stopped_early=early)
        return dataclasses.replace(last, folder=folder, stages=tuple(stages), left=tuple(left))

    def to_json(self) -> dict[str, Any]:
        known = {who: {k: v for k, v in found.items() if v == v} for who, found in self.metrics.items()}
        best = dict(self.best) if self.best else None
        if best and "metrics" in best:
            best["metrics"] = {key: value for key, value in best["metrics"].items() if value == value}
        told = {"run": str(self.folder), "steps": self.steps, "seconds": self.seconds, "metrics": known, "best": best}
        more = {"unreadable": list(self.unreadable), "left": list(self.left), "stopped_early": self.stopped_early}
        return told | more

    def to_text(self) -> str:
        lines = [f"trained {self.steps} steps in {self.seconds:.0f} s: {self.folder}"]
        if self.stopped_early:
            lines.append(f"  {self.stopped_early}")
        last = self.stages[-1] if self.stages else self
        if self.best:
            ap = (
                ""
                if self.best.get("AP") is None
                else f": {self.best.get('iou', 'mask')} AP {100 * self.best['AP']:.1f}"
            )
            where = f"{last.folder.name}/" if self.left else ""
            lines.append(f"  {where}best.safetensors is the {self.best['who']} of step {self.best['step']}{ap}")
        if self.metrics:
            scores = [f"{who} {name} {_points(ap)}" for who, (name, ap) in _scores(self.metrics)]
            lines.append(f"  the last evaluation, at step {last.steps}: {', '.join(scores)}")
        if self.left:
            lines.append(f"  left to do: {', '.join(self.left)}; go on with: leanmask train --resume {self.folder}")
        if self.unreadable:
            count, first = len(self.unreadable), ", ".join(self.unreadable[:5])
            lines.append(f"{count} image files could not be read: {first}{' and more' if count > 5 else ''}")
        return "\n".join(lines)


def _scores(metrics: Mapping[str, Mapping[str, float]]) -> list[tuple[str, tuple[str, float]]]:
    return [(who, score_of(found)) for who, found in metrics.items()]


def _points(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{100 * value:.1f}"
