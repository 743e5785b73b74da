"""The desk that hands out work and takes answers: source, store and dealing behind one lock. What the server calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from leanmask.annotate.dealing import Dealer
from leanmask.annotate.source import Source, Thing
from leanmask.annotate.statistics import Measured, measure
from leanmask.annotate.store import FINISHED, SKIPPED, Answer, Store
from leanmask.annotate.tasks import (
    MOST_BOXES,
    MOST_POINTS,
    VALUES,
    WHOLE,
    Job,
    Unit,
    describe,
    drawn_things,
    units_of,
)
from leanmask.errors import DataError

LEASE_SECONDS = 300.0


class Desk:
    """One labelling session; for several threads at once. annotators: who may answer."""

    def __init__(
        self,
        source: Source,
        store: Store,
        job: Job,
        annotators: Sequence[str],
        units: Sequence[Unit] | None = None,
    ) -> None:
        """units: what there is to do, in order; None = all that the job asks for."""
        self.source, self.store, self.job, self.annotators = source, store, job, tuple(annotators)
        # What cannot be shown, and why: ("image", position) or ("object", id).
        self.problems: dict[tuple[str, int], str] = {}
        self._lock = threading.Lock()
        self._drawn = {thing.id: thing for thing in drawn_things(source, store.answers())}
        wanted = units_of(source, job, tuple(self._drawn.values())) if units is None else units
        self.dealer = Dealer(wanted, LEASE_SECONDS)
        self.dealer.restore(store.given(), store.leases(time.time()))

    def progress(self) -> dict[str, int]:
        """How far everybody is together. problems: images and objects that turned out not to be fit to be shown."""
        dealer = self.dealer
        return {
            "units": len(dealer.units),
            "units_done": dealer.units_done,
            "answers_left": dealer.answers_left,
            "problems": len(self.problems),
        }

    def claim(self, annotator: str, tab: str, count: int) -> list[dict[str, Any]]:
        """Up to `count` units for a tab, each with what this annotator has said about it already (`given`). Units that
        cannot be shown are left out, see `problems`.
        """
        with self._lock:
            while True:
                chosen = self.dealer.claim(annotator, tab, count, time.time())
                found = [(number, self._described(self.dealer.units[number])) for number in chosen]
                broken = [number for number, about in found if about is None]
                for number in broken:
                    self.dealer.drop(number)
                if not broken:
                    break
            self.store.lend([lease for number in chosen if (lease := self.dealer.lease(number, annotator))])
            return [{**about, "given": self._given(about, annotator)} for _, about in found if about is not None]

    def _given(self, about: dict[str, Any], annotator: str) -> list[dict[str, Any]]:
        told = self.store.about_unit(about["kind"], about["target"], annotator)
        names = ("id", "kind", "target", "position", "value", "detail")
        return [{name: getattr(answer, name) for name in names} for answer in told]

    def _described(self, unit: Unit) -> dict[str, Any] | None:
        thing = None if unit.kind == "boxes" else self._thing(unit.target)
        picture = unit.target if thing is None else thing.picture
        if ("image", picture) in self.problems or (thing is not None and ("object", thing.id) in self.problems):
            return None
        try:
            if not self.source.pictures[picture].path.is_file():
                raise DataError(f"image {self.source.pictures[picture].path} does not exist")
            self.source.size_of(picture)
        except DataError as error:
            self.problems["image", picture] = str(error)
            return None
        try:
            return describe(self.source, self.job, unit, thing)
        except DataError as error:  # of this object alone: the others of its image can be shown
            self.problems["object", unit.target] = f"annotation {unit.target}: {error}"
            return None

    def set_aside(self, picture: int, reason: str) -> None:
        """Show a picture no more: its file is damaged, or not what its annotations say."""
        with self._lock:
            self.problems["image", picture] = reason

    def set_object_aside(self, target: int, reason: str) -> None:
        """Show the object with this id no more: its mask cannot be read."""
        with self._lock:
            self.problems["object", target] = reason

    def _thing(self, target: int) -> Thing | None:
        index = self.source.thing_index.get(target)
        return self._drawn.get(target) if index is None else self.source.things[index]

    def take(self, answer: Answer, tab: str) -> tuple[str, str]:
        """Save an answer: its status, and why where it is "refused". "saved", "known" and "conflict" are the store's.

        What is asked about must exist; who holds the unit does not matter, so that an answer which a slow network or a
        restart delayed is never lost.
        """
        try:
            reason = self._fault(answer)
        except DataError as error:  # an image that is gone by now: one answer's fault, not that of all sent with it
            reason = str(error)
        if reason:
            return "refused", reason
        with self._lock:
            answer = replace(answer, answered_at=time.time())
            status = self.store.save(answer)
            number = self.dealer.index.get((answer.kind, answer.target))
            if status == "saved" and number is not None:
                self.dealer.note(number, answer.annotator, int(answer.position != WHOLE), answer.position == WHOLE)
                lease = self.dealer.prolong(number, answer.annotator, answer.answered_at)
                self.store.lend([lease] if lease else [])
        return status, ""

    def _fault(self, answer: Answer) -> str:
        if answer.value not in VALUES[answer.kind]:
            return f"'{answer.value}' is no answer about {answer.kind}; allowed: {', '.join(VALUES[answer.kind])}"
        if (answer.value in (SKIPPED, FINISHED)) != (answer.position == WHOLE):
            return f"'{answer.value}' at position {answer.position}; only skip and done are about the whole"
        category = (answer.detail or {}).get("category_id")
        if category is not None and category not in self.source.categories:
            return f"category id {category} is unknown; known: {', '.join(map(str, self.source.categories))}"
        if answer.kind == "boxes":
            return self._box_fault(answer)
        if self._thing(answer.target) is None:
            return f"there is no object {answer.target}"
        most = self._asked(answer.target) if answer.kind == "points" else 1
        return "" if answer.position < most else f"position {answer.position}; allowed: up to {most - 1}"

    def _asked(self, target: int) -> int:
        """How many points of an object anybody has been shown, at most."""
        number = self.dealer.index.get(("points", target))
        if number is not None:
            return self.dealer.units[number].count
        # A session of another kind takes points that an earlier one asked for and a slow network brings only now.
        return self.job.asked if self.job.kind == "points" else MOST_POINTS

    def _box_fault(self, answer: Answer) -> str:
        if not 0 <= answer.target < len(self.source.pictures):
            return f"there is no image {answer.target}"
        if answer.position >= MOST_BOXES:
            return f"an image has at most {MOST_BOXES} boxes"
        if answer.value != "box":
            return ""
        detail = answer.detail or {}
        if detail.get("box") is None or detail.get("category_id") is None:
            return "a box needs `box` and `category_id`"
        height, width = self.source.size_of(answer.target)
        x, y, w, h = detail["box"]
        if w <= 0 or h <= 0 or x < 0 or y < 0 or x + w > width + 1e-6 or y + h > height + 1e-6:
            return f"the box {list(detail['box'])} does not lie on the image of {width} x {height} pixels"
        return ""

    def undo(self, answer_id: str, annotator: str, tab: str) -> str:
        """Take back an answer of one's own: "undone", also when it was already, or "unknown"."""
        with self._lock:
            stood = self.store.stands(answer_id)
            answer = self.store.undo(answer_id, annotator)
            if answer is None:
                return "unknown"
            number = self.dealer.index.get((answer.kind, answer.target))
            if stood and number is not None:
                self.dealer.reopen(number, annotator, tab, time.time(), int(answer.position != WHOLE))
                lease = self.dealer.lease(number, annotator)
                self.store.lend([lease] if lease else [])
        return "undone"

    def measured(self) -> Measured:
        """Speed and agreement of everything answered so far."""
        with self._lock:
            answers = list(self.store.answers())
        return measure(answers)

    def standing(self) -> Sequence[Answer]:
        """All answers that stand."""
        with self._lock:
            return list(self.store.answers())
