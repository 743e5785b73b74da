"""Means of the numbers of several steps between two lines of the journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class Meter:
    """Sums up losses, counts and times until `take`. Its state is part of a checkpoint, so that resuming in the middle
    of a window gives the same line.
    """

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, list[float]]] = {}
        self._skipped: list[str] = []

    def add(self, kind: str, numbers: Mapping[str, float]) -> None:
        """Add one step's numbers of a kind: losses, counts, seconds."""
        kept = self._sums.setdefault(kind, {})
        for name, value in numbers.items():
            total, count = kept.get(name, (0.0, 0))
            kept[name] = [total + value, count + 1]

    def add_skipped(self, files: Iterable[str]) -> None:
        """Remember files that could not be read."""
        self._skipped += [file for file in files if file not in self._skipped]

    def take(self) -> tuple[dict[str, dict[str, float]], list[str]]:
        """Means by kind and name, and the skipped files, since the last call."""
        means = {kind: {n: total / count for n, (total, count) in kept.items()} for kind, kept in self._sums.items()}
        skipped = self._skipped
        self._sums, self._skipped = {}, []
        return means, skipped

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"sums": self._sums, "skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._sums = {kind: {n: list(pair) for n, pair in kept.items()} for kind, kept in state["sums"].items()}
        self._skipped = list(state["skipped"])
