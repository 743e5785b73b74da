"""Every mistake a user can make, as an exception whose message is the whole answer: what was found, where, what is
allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LeanmaskError(Exception):
    """A user's mistake or a broken input. The command line prints the message alone and exits with 2."""


class ConfigError(LeanmaskError):
    """An unknown key, a wrong value, or settings that contradict each other."""


class DataError(LeanmaskError):
    """An annotation file, image or data set that cannot be used as it is."""


class CheckpointError(LeanmaskError):
    """A checkpoint that is missing, truncated, of another version, or does not fit the model."""


class RunError(LeanmaskError):
    """A run folder that exists already, cannot be written, or cannot be resumed."""


class Stopped(RunError):
    """A run that ended before its end and can go on. what: where, why and what is saved, as a sentence. again: the
    command that goes on with it.
    """

    def __init__(self, what: str, again: str) -> None:
        super().__init__(what, again)
        self.what, self.again = what, again

    def __str__(self) -> str:
        return f"{self.what}; go on with: {self.again}"


class RunInterrupted(Stopped):
    """Somebody asked the run to stop."""


class TrainingStopped(Stopped):
    """Training ended itself: non-finite losses, collapse."""


def suggest(found: str, allowed: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest allowed name, or `"; allowed: a, b, c"` when none is near."""
    names = sorted(allowed)
    near = difflib.get_close_matches(found, names, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else f"; allowed: {', '.join(names)}"


def counted(number: float, one: str) -> str:
    """A number of things in words: "1 object", "2 objects", "0.5 hours". one: the noun of one of them."""
    written = f"{number:,}" if isinstance(number, int) else f"{number:,g}"
    return f"{written} {one}{'s' * (number != 1)}"
