"""How fast people answer and how far they agree, from the answers alone."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from leanmask.annotate.store import Answer

PAUSE_SECONDS = 60.0  # an answer that took longer was interrupted and says nothing about speed


@dataclass(frozen=True)
class Speed:
    """One annotator's answers of one kind: how many, of them unsure, median and mean seconds without pauses."""

    annotator: str
    kind: str
    answers: int
    unsure: int
    median_seconds: float | None
    mean_seconds: float | None


@dataclass(frozen=True)
class Agreement:
    """Two or more people about the same questions. pairs: of answers that were compared. share: of pairs that say the
    same. kappa: the same corrected for chance, with the answers of all pairs put together so that it does not matter
    who is first (Scott's pi, which is Fleiss' kappa of two people); None where only one answer was ever given. Unsure
    and skipped are not compared.
    """

    kind: str
    pairs: int
    share: float | None
    kappa: float | None


@dataclass(frozen=True)
class Measured:
    """Everything that is known about speed and agreement."""

    speed: tuple[Speed, ...]
    agreement: tuple[Agreement, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """A line per annotator and kind, and one per kind for the agreement."""
        lines = [
            f"{item.annotator}: {item.answers} answers about {item.kind}"
            + ("" if item.median_seconds is None else f", {item.median_seconds:.2f} s each (median)")
            + (f", {item.unsure} unsure" if item.unsure else "")
            for item in self.speed
        ]
        for item in self.agreement:
            kappa = "" if item.kappa is None else f", kappa {item.kappa:.2f}"
            lines.append(f"agreement about {item.kind}: {100 * (item.share or 0):.1f} % of {item.pairs} pairs{kappa}")
        return "\n".join(lines) or "nobody has answered anything yet"


def measure(answers: Iterable[Answer]) -> Measured:
    """Speed and agreement of answers that stand."""
    by_person: defaultdict[tuple[str, str], list[Answer]] = defaultdict(list)
    by_question: defaultdict[tuple[str, int, int], list[str]] = defaultdict(list)
    for answer in answers:
        by_person[answer.annotator, answer.kind].append(answer)
        if answer.kind != "boxes" and answer.position >= 0 and answer.value != "unsure":
            by_question[answer.kind, answer.target, answer.position].append(answer.value)
    speed = tuple(_speed(who, kind, given) for (who, kind), given in sorted(by_person.items()))
    kinds = sorted({kind for kind, _, _ in by_question})
    found = [_agreement(kind, [given for key, given in by_question.items() if key[0] == kind]) for kind in kinds]
    return Measured(speed, tuple(item for item in found if item.pairs))


def _speed(annotator: str, kind: str, answers: Sequence[Answer]) -> Speed:
    seconds = [answer.seconds for answer in answers if answer.seconds <= PAUSE_SECONDS]
    middle = statistics.median(seconds) if seconds else None
    mean = statistics.fmean(seconds) if seconds else None
    return Speed(annotator, kind, len(answers), sum(answer.value == "unsure" for answer in answers), middle, mean)


def _agreement(kind: str, questions: Sequence[Sequence[str]]) -> Agreement:
    pairs: Counter[tuple[str, str]] = Counter()
    for given in questions:
        for one, other in combinations(given, 2):
            pairs[one, other] += 1
            pairs[other, one] += 1
    total = sum(pairs.values())
    if not total:
        return Agreement(kind, 0, None, None)
    share = sum(count for (one, other), count in pairs.items() if one == other) / total
    marginal: Counter[str] = Counter()
    for (one, _), count in pairs.items():
        marginal[one] += count
    chance = sum((count / total) ** 2 for count in marginal.values())
    return Agreement(kind, total // 2, share, None if chance == 1 else (share - chance) / (1 - chance))
