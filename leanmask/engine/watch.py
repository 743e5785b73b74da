"""The collapse watchdog: compares a window of pseudo-labelling with the level before it.

Self-training fails in three ways that a loss curve hides: the teacher stops finding objects, it finds objects
everywhere, or it loses confidence. All three show as a jump against the run's own earlier level, so no absolute number
is needed and a steady rise from nothing at the start of training is no alarm.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PSEUDO_OBJECTS = "pseudo_objects"  # count of a method's step: pseudo objects per image
TEACHER_SCORE = "teacher_score"  # count of a method's step: mean confidence of the teacher, in [0, 1]
_HISTORY_WINDOWS = 10


@dataclass(frozen=True)
class WatchRules:
    """When the watchdog speaks. `level` is the median of up to ten earlier windows that were not alarming.

    window_steps: updates that are averaged. min_windows: windows seen before it judges. fall: alarm below this share of
    the level of pseudo objects. rise: alarm above this multiple of it. score_fall: alarm below this share of the level
    of the teacher's score. ap_fall: alarm when the teacher's AP falls below this share of its best. stop_windows:
    alarming windows in a row that end the training; 0 = warn only. The defaults are chosen wide, so that noise between
    windows and the growth of a ramp are no alarm; no published system gives such numbers.
    """

    window_steps: int = 50
    min_windows: int = 3
    fall: float = 0.25
    rise: float = 4.0
    score_fall: float = 0.5
    ap_fall: float = 0.5
    stop_windows: int = 0


class Watchdog:
    """Takes every step's counts and says a sentence when something collapsed. Counts it does not know are ignored."""

    def __init__(self, rules: WatchRules = WatchRules()) -> None:
        self._rules = rules
        self._window: dict[str, list[float]] = {PSEUDO_OBJECTS: [], TEACHER_SCORE: []}
        self._history: dict[str, list[float]] = {PSEUDO_OBJECTS: [], TEACHER_SCORE: []}
        self._alarms: dict[str, int] = {PSEUDO_OBJECTS: 0, TEACHER_SCORE: 0}  # alarming windows in a row
        self._best_ap = 0.0

    @property
    def must_stop(self) -> bool:
        """Enough windows in a row were alarming to end the training."""
        return 0 < self._rules.stop_windows <= max(self._alarms.values())

    def forgive(self) -> None:
        """Count alarming windows from zero again, so that a resumed run gets another chance."""
        self._alarms = dict.fromkeys(self._alarms, 0)

    def observe(self, counts: Mapping[str, float]) -> list[str]:
        """Take one step's counts; sentences for what went wrong with a window that is now full, once per collapse."""
        sentences = []
        for name, values in self._window.items():
            if name in counts:
                values.append(counts[name])
            if len(values) >= self._rules.window_steps:
                mean = statistics.fmean(values)
                values.clear()
                sentences += self._judge(name, mean)
        return sentences

    def observe_ap(self, ap: float) -> list[str]:
        """Take an evaluation of the teacher; a sentence when it lost most of what it could do."""
        best, self._best_ap = self._best_ap, max(self._best_ap, ap)
        if not ap < self._rules.ap_fall * best:
            return []
        # Where no pseudo-label was ever counted, the method makes none while it trains.
        advice = f": {_ADVICE}" if any(self._window.values()) or any(self._history.values()) else ""
        return [f"the teacher's AP fell to {ap:.3f} from {best:.3f}{advice}"]

    def _judge(self, name: str, mean: float) -> list[str]:
        history = self._history[name]
        problem = None
        if len(history) >= self._rules.min_windows:
            problem = self._problem(name, mean, statistics.median(history))
        if problem is None:
            self._history[name] = [*history, mean][-_HISTORY_WINDOWS:]
            self._alarms[name] = 0
            return []
        self._alarms[name] += 1
        return [problem] if self._alarms[name] == 1 else []

    def _problem(self, name: str, mean: float, level: float) -> str | None:
        rules, span = self._rules, f"{mean:.3g} over the last {self._rules.window_steps} steps, {level:.3g} before"
        if name == TEACHER_SCORE:
            return (
                f"the teacher lost confidence: mean score {span}; {_ADVICE}"
                if mean < rules.score_fall * level
                else None
            )
        if mean < rules.fall * level:
            return f"pseudo-labels vanish: objects per image {span}; {_ADVICE}"
        if mean > rules.rise * level > 0:
            return f"pseudo-labels multiply: objects per image {span}; {_ADVICE}"
        return None

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"window": self._window, "history": self._history, "alarms": self._alarms, "best_ap": self._best_ap}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._window = {name: list(values) for name, values in state["window"].items()}
        self._history = {name: list(values) for name, values in state["history"].items()}
        self._alarms = dict(state["alarms"])
        self._best_ap = float(state["best_ap"])


_ADVICE = "lower the weight of pseudo-labels, raise their threshold, or let the teacher follow more slowly"
