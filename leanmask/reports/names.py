"""What runs are called on a page: short enough for a table's first column, and never twice the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile

from leanmask.reports.collect import RunSummary

MOST_CHARACTERS = 40
KEPT_AHEAD, KEPT_BEHIND = 24, 12  # of a name that is longer all the same


def distinct_names(runs: Iterable[RunSummary]) -> list[str]:
    """The runs' names, with as many parent folders in front as it takes to tell them apart. Where one is too long for
    a column, all of them without what they have in common at both ends, or with an ellipsis in the middle.
    """
    names = _of_folders([run.folder.resolve().parts for run in runs])
    if all(len(name) <= MOST_CHARACTERS for name in names):
        return names
    shorter = [_clipped(name) for name in _without_shared_ends(names)]
    return shorter if len(set(shorter)) == len(names) else names


def _of_folders(folders: Sequence[Sequence[str]]) -> list[str]:
    for depth in range(1, max((len(parts) for parts in folders), default=0) + 1):
        names = ["/".join(parts[-depth:]) for parts in folders]
        if len(set(names)) == len(names):
            return names
    return ["/".join(parts[-1:]) + f" ({index})" for index, parts in enumerate(folders, start=1)]


def _without_shared_ends(names: Sequence[str]) -> list[str]:
    """Names are compared by their pieces between hyphens; every one keeps at least one piece."""
    if len(names) < 2:
        return list(names)
    pieces = [name.split("-") for name in names]
    spare = min(len(parts) for parts in pieces) - 1
    ahead = min(_shared(pieces), spare)
    behind = min(_shared([parts[::-1] for parts in pieces]), spare - ahead)
    return ["-".join(parts[ahead : len(parts) - behind]) for parts in pieces]


def _shared(pieces: Sequence[Sequence[str]]) -> int:
    """How many first pieces all names have in common."""
    return len(list(takewhile(lambda column: len(set(column)) == 1, zip(*pieces, strict=False))))


def _clipped(name: str) -> str:
    return name if len(name) <= MOST_CHARACTERS else f"{name[:KEPT_AHEAD]}…{name[-KEPT_BEHIND:]}"
