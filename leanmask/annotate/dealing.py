"""Who gets which unit next. Pure bookkeeping in memory; the desk keeps it in step with the store.

A unit is lent to one tab of one annotator for a while. It comes back when the lease runs out, and goes to as many
different people as it needs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from leanmask.annotate.store import Given, Lease
from leanmask.annotate.tasks import Unit

LOOKED_AT = 500  # units that came back and are tried for an annotator before a fresh one is taken


class Dealer:
    """Deals units in their order. Not for several threads at once. Times are seconds since 1970."""

    def __init__(self, units: Sequence[Unit], lease_seconds: float) -> None:
        self.units = units
        self.lease_seconds = lease_seconds
        self.index = {(unit.kind, unit.target): number for number, unit in enumerate(units)}
        self._next = 0  # the first unit that nobody has touched
        self._touched: set[int] = set()
        self._dropped: set[int] = set()
        self._again: dict[int, None] = {}  # touched, not finished by enough people, in the order in which they came
        self._answers: defaultdict[tuple[int, str], int] = defaultdict(int)
        self._finished: defaultdict[int, set[str]] = defaultdict(set)
        self._begun: defaultdict[str, dict[int, None]] = defaultdict(dict)  # by annotator: answered in part
        self._leases: defaultdict[int, dict[str, Lease]] = defaultdict(dict)  # by unit and annotator
        self.answers_left = sum(max(unit.count, 1) * unit.needed for unit in units)
        self.units_done = 0

    def restore(self, given: Iterable[Given], leases: Iterable[Lease]) -> None:
        """Go on where an earlier server stopped."""
        for item in given:
            number = self.index.get(item.unit)
            if number is not None:
                self.note(number, item.annotator, item.answers, item.whole)
        for lease in leases:
            number = self.index.get((lease.kind, lease.target))
            if number is not None and lease.annotator not in self._finished[number]:
                self._leases[number][lease.annotator] = lease
                self._touch(number)

    def claim(self, annotator: str, tab: str, count: int, now: float) -> list[int]:
        """Positions of up to `count` units for one tab: those that it holds first, then units that others left, then
        fresh ones. All of them are lent anew.
        """
        self._expire(now)
        held = [n for n, leases in self._leases.items() if annotator in leases and leases[annotator].tab == tab]
        chosen = sorted(held)[:count]
        for number in self._candidates(annotator):
            if len(chosen) >= count:
                break
            if self._is_free(number, annotator):
                chosen.append(number)
                self._lend(number, annotator, tab, now)
        for number in chosen:
            self._lend(number, annotator, tab, now)
        return chosen

    def _candidates(self, annotator: str) -> Iterator[int]:
        yield from list(self._begun[annotator])
        yield from list(islice(self._again, LOOKED_AT))
        while self._next < len(self.units):
            if self._next not in self._touched:
                yield self._next
            self._next += 1  # not before it was taken: the caller may stop here

    def _is_free(self, number: int, annotator: str) -> bool:
        if number in self._dropped:
            return False
        busy = self._finished[number] | self._leases.get(number, {}).keys()
        return annotator not in busy and len(busy) < self.units[number].needed

    def _lend(self, number: int, annotator: str, tab: str, now: float) -> None:
        unit = self.units[number]
        self._leases[number][annotator] = Lease(unit.kind, unit.target, annotator, tab, now + self.lease_seconds)
        self._touch(number)

    def lease(self, number: int, annotator: str) -> Lease | None:
        """The lease that an annotator has on a unit."""
        return self._leases.get(number, {}).get(annotator)

    def prolong(self, number: int, annotator: str, now: float) -> Lease | None:
        """The renewed lease when less than half of it is left, else None."""
        lease = self.lease(number, annotator)
        if lease is None or lease.expires_at - now > self.lease_seconds / 2:
            return None
        self._lend(number, annotator, lease.tab, now)
        return self.lease(number, annotator)

    def _expire(self, now: float) -> None:
        for number, leases in list(self._leases.items()):
            for annotator, lease in list(leases.items()):
                if lease.expires_at <= now:
                    self._give_back(number, annotator)
                    self._touch(number)

    def _give_back(self, number: int, annotator: str) -> None:
        leases = self._leases.get(number, {})
        leases.pop(annotator, None)
        if not leases:
            self._leases.pop(number, None)

    def _touch(self, number: int) -> None:
        self._touched.add(number)
        if len(self._finished[number]) < self.units[number].needed:
            self._again[number] = None
        else:
            self._again.pop(number, None)

    def note(self, number: int, annotator: str, answers: int = 1, whole: bool = False) -> None:
        """An annotator gave `answers` answers (negative when taken back), or finished the unit as a whole."""
        unit, key = self.units[number], (number, annotator)
        before = self._progress(number, annotator)
        self._answers[key] += answers
        finished = whole or (unit.count > 0 and self._answers[key] >= unit.count)
        if finished and annotator not in self._finished[number]:
            self._finished[number].add(annotator)
            self._give_back(number, annotator)
            self.units_done += len(self._finished[number]) == unit.needed
        self.answers_left -= self._progress(number, annotator) - before
        self._remember(number, annotator)
        self._touch(number)

    def reopen(self, number: int, annotator: str, tab: str, now: float, answers: int = 1) -> None:
        """An annotator took an answer back: the unit is theirs again, until it is finished once more."""
        before = self._progress(number, annotator)
        self._answers[number, annotator] = max(self._answers[number, annotator] - answers, 0)
        if annotator in self._finished[number]:
            self.units_done -= len(self._finished[number]) == self.units[number].needed
            self._finished[number].discard(annotator)
        self._lend(number, annotator, tab, now)
        self._remember(number, annotator)
        self.answers_left -= self._progress(number, annotator) - before

    def _remember(self, number: int, annotator: str) -> None:
        if self._answers[number, annotator] and annotator not in self._finished[number]:
            self._begun[annotator][number] = None
        else:
            self._begun[annotator].pop(number, None)

    def drop(self, number: int) -> None:
        """Deal a unit no more: it cannot be shown."""
        if number not in self._dropped:
            self._dropped.add(number)
            unit = self.units[number]
            given = sum(min(self._answers[number, who], unit.count) for who in self._leases.get(number, {}))
            self.answers_left -= max(max(unit.count, 1) * (unit.needed - len(self._finished[number])) - given, 0)
        self._leases.pop(number, None)
        self._again.pop(number, None)
        for begun in self._begun.values():
            begun.pop(number, None)

    def _progress(self, number: int, annotator: str) -> int:
        """How many of the unit's answers an annotator's work stands for; extra people do not count."""
        unit, done = self.units[number], self._finished[number]
        if annotator in done:
            return max(unit.count, 1) if len(done) <= unit.needed else 0
        return min(self._answers[number, annotator], unit.count) if len(done) < unit.needed else 0
