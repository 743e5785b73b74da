"""What a training says while it runs, and what it was when it is finished."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Called with (finished steps, all steps, a note): first, at step 0, with the census of what is labelled how. Most notes
# only stand beside a progress bar; the two kinds below are for those who have none, or want to look back.
OnStep = Callable[[int, int, str], None]


class Line(str):
    """A note that deserves a line of its own wherever it is shown: what is trained on, what an evaluation found."""


class LogLine(str):
    """A note that is a line where there is no progress bar, in a file or a pipe: how far training is."""


@dataclass(frozen=True)
class TrainSummary:
    """What a finished run was. metrics: by network, as evaluated last. best: which network `best.safetensors` holds.
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
        told = {"run": str(self.folder), "steps": self.steps, "seconds": self.seconds, "metrics": known, "best": best}
        more = {"unreadable": list(self.unreadable), "left": list(self.left), "stopped_early": self.stopped_early}
        return told | more

    def to_text(self) -> str:
        lines = [f"trained {self.steps} steps in {self.seconds:.0f} s: {self.folder}"]
        if self.stopped_early:
            lines.append(f"  {self.stopped_early}")
        last = f"{self.stages[-1].folder.name}, " if self.stages else ""
        lines += [f"  {last}{who}: mask AP {100 * found['AP']:.1f}" for who, found in self.metrics.items()]
        if self.left:
            lines.append(f"  left to do: {', '.join(self.left)}; go on with: leanmask train --resume {self.folder}")
        elif self.best:
            lines.append(f"  best.safetensors is the {self.best['who']} of step {self.best['step']}")
        if self.unreadable:
            count, first = len(self.unreadable), ", ".join(self.unreadable[:5])
            lines.append(f"{count} image files could not be read: {first}{' and more' if count > 5 else ''}")
        return "\n".join(lines)
