"""What a further label is worth, and which ones to buy first: expected gain per second of a person's time.

Pure functions on numbers. A gain has no unit; only the order counts.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from leanmask.costs import LabelCosts
from leanmask.errors import ConfigError

Kind = Literal["boxes", "points", "mask"]
Level = Literal["box", "mask"]

# Mask AP on COCO as a share of that of full masks, by classified points per box (Mask R-CNN R50: 36.1 and 36.4 of 37.2;
# boxes alone: BoxInst's 31.8). Pointly-Supervised, Table 2, Figure 3 and appendix. Between them it is interpolated.
_POINTS, _SHARES = (0, 10, 20), (31.8 / 37.2, 36.1 / 37.2, 36.4 / 37.2)


def share_of_mask(points: int) -> float:
    """What a box with so many classified points is worth, as a share of a full mask."""
    return float(np.interp(points, _POINTS, _SHARES))


@dataclass(frozen=True)
class Doubt:
    """How unsure a network is, each from 0 (sure) to 1. category: of the class. mask: of the pixels. disagreement:
    between the masks of student and teacher (1 - IoU). Without a network all of it is in doubt.
    """

    category: float = 1.0
    mask: float = 1.0
    disagreement: float | None = None

    @property
    def total(self) -> float:
        """Any of the three may be wrong: 1 minus the chance that none is, were they independent. Never quite 0, because
        networks are surer than they should be.
        """
        sure = (1 - self.category) * (1 - self.mask) * (1 - (self.disagreement or 0.0))
        return max(1 - sure, 0.02)


@dataclass(frozen=True)
class Candidate:
    """An object, or an image whose objects have no boxes yet, that could be labelled.

    kind: an image gets boxes, an object points or a mask. objects: class (None = unknown) and doubt (None = no network
    was asked) of every object that would be labelled; of an image, those that are expected there. look: a group of
    objects that look alike. has: the share of a mask that its label is worth now. typical: how much it stands for
    others, see `appearance.Looks`. points: classified ones that it has; None = more would not be learned from, because
    a pseudo-mask is.
    """

    target: Hashable
    kind: Literal["image", "object"]
    objects: tuple[tuple[int | None, Doubt | None], ...]
    look: int
    has: float
    typical: float = 1.0
    points: int | None = 0


@dataclass(frozen=True)
class Choice:
    """A label to buy. points: so many more. seconds: its price. gain: expected, per second it decides the order.
    rarity: weight of its class and look when it was chosen, 1 for what nobody has labelled. share: what of a mask's
    worth it adds.
    """

    candidate: Candidate
    kind: Kind
    points: int
    seconds: float
    gain: float
    rarity: float
    share: float


@dataclass(frozen=True)
class Shopping:
    """How choices are made. points: per object. masks: whether masks are for sale."""

    seconds: float
    points: int = 10
    masks: bool = True
    costs: LabelCosts = field(default_factory=LabelCosts)

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise ConfigError(f"{self.seconds} seconds of labelling; allowed: above 0")
        if self.points < 1:
            raise ConfigError(f"{self.points} points per object; allowed: 1 or more")


@dataclass
class Shelf:
    """How much of every class and every look is labelled; it grows as labels are chosen. Counted twice: "box" counts
    objects with a box or more, "mask" what they say about their masks, in masks' worth. commonest: the largest count of
    a class, kept because it is asked for at every object of an image that nobody has looked at.
    """

    counts: defaultdict[tuple[str, str, int | None], float] = field(default_factory=lambda: defaultdict(float))
    commonest: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def rarity(self, level: Level, category: int | None, look: int) -> float:
        """1 for what nobody has labelled, falling as the square root of what there is: of class and look alike. What
        nobody knows the class of is taken for one of the commonest.
        """
        of_class, of_look = self.counts[level, "class", category], self.counts[level, "look", look]
        if category is None:
            of_class = max(
                (n for (at, what, _), n in self.counts.items() if (at, what) == (level, "class")), default=0.0
            )
        return 1 / math.sqrt((1 + of_class) * (1 + of_look))

    def add(self, level: Level, candidate: Candidate, amount: float) -> None:
        """Something was labelled."""
        for category, _ in candidate.objects:
            self.counts[level, "class", category] += amount
            self.commonest[level] = max(self.commonest[level], self.counts[level, "class", category])
            self.counts[level, "look", candidate.look] += amount


def offers(candidate: Candidate, shopping: Shopping) -> list[tuple[Kind, int, float, float]]:
    """What could be bought for a candidate: kind, points, seconds, and the share of a mask's worth that it adds."""
    costs, count = shopping.costs, len(candidate.objects)
    if candidate.kind == "image":
        return [("boxes", 0, max(count, 1) * costs.object_seconds(box=True), share_of_mask(0))]
    found: list[tuple[Kind, int, float, float]] = []
    pointed, more = share_of_mask(shopping.points), shopping.points - (candidate.points or 0)
    if candidate.points is not None and more > 0 and pointed > candidate.has:
        found.append(("points", more, costs.point_seconds * more, pointed - candidate.has))
    if shopping.masks:
        found.append(("mask", 0, costs.mask_seconds, 1 - candidate.has))
    return [offer for offer in found if offer[3] > 0]


def doubted_together(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The same, where an object is as much in doubt as objects like it: the mean over its class, and over its look, of
    what is unsure about their masks, and the geometric mean of the two. Its class is known: nothing of that is bought.

    What is learned from a label carries over to objects like it, so their doubt is what it can take away. The objects
    that a network doubts most one by one are hidden or blurred ones that say little about any other.
    """
    found = list(candidates)
    by_class: defaultdict[int | None, list[Doubt]] = defaultdict(list)
    by_look: defaultdict[int, list[Doubt]] = defaultdict(list)
    for candidate in found:
        for category, doubt in candidate.objects if candidate.kind == "object" else ():
            if doubt is not None:
                by_class[category].append(doubt)
                by_look[candidate.look].append(doubt)
    of_class = {category: _mean_doubt(doubts) for category, doubts in by_class.items()}
    of_look = {look: _mean_doubt(doubts) for look, doubts in by_look.items()}
    everything = (1.0, None)

    def shared(category: int | None, look: int) -> Doubt:
        (mask, apart), (mask_too, apart_too) = of_class.get(category, everything), of_look.get(look, everything)
        both = None if apart is None or apart_too is None else math.sqrt(apart * apart_too)
        return Doubt(0.0, math.sqrt(mask * mask_too), both)

    return [
        replace(each, objects=tuple((category, shared(category, each.look)) for category, _ in each.objects))
        if each.kind == "object"
        else each
        for each in found
    ]


def _mean_doubt(doubts: Sequence[Doubt]) -> tuple[float, float | None]:
    """Means of mask and disagreement; None where no two networks were asked."""
    apart = [doubt.disagreement for doubt in doubts if doubt.disagreement is not None]
    return sum(doubt.mask for doubt in doubts) / len(doubts), sum(apart) / len(apart) if apart else None


def choose(candidates: Iterable[Candidate], shopping: Shopping, shelf: Shelf) -> list[Choice]:
    """The labels that bring most for the seconds, best first: greedily by gain per second, where what is chosen makes
    more of its kind worth less. At most one label per candidate; `shelf` is what is labelled already, and grows. The
    doubts of objects are pooled first, see `doubted_together`.
    """
    candidates, left, chosen = doubted_together(candidates), shopping.seconds, []
    waiting: list[tuple[float, int, Candidate]] = []
    for number, candidate in enumerate(candidates):
        choice = best_offer(candidate, shopping, shelf, left)
        if choice is not None:
            waiting.append((-_rate(choice), number, candidate))
    heapq.heapify(waiting)
    while waiting:
        _, number, candidate = heapq.heappop(waiting)
        choice = best_offer(candidate, shopping, shelf, left)
        if choice is None:
            continue  # what is left of the time is not enough for it
        if waiting and -_rate(choice) > waiting[0][0]:
            # Rates only fall as the shelf fills, so this one goes back to where it belongs now.
            heapq.heappush(waiting, (-_rate(choice), number, candidate))
            continue
        chosen.append(choice)
        left -= choice.seconds
        if candidate.kind == "image":
            shelf.add("box", candidate, 1.0)
        else:
            counted = candidate.has if candidate.points else 0.0  # a box alone says nothing about the mask
            shelf.add("mask", candidate, candidate.has + choice.share - counted)
    return chosen


def best_offer(candidate: Candidate, shopping: Shopping, shelf: Shelf, seconds: float) -> Choice | None:
    """What brings most per second for a candidate among what `seconds` can pay; None when that is nothing."""
    found = [
        Choice(candidate, kind, points, price, gain=share * weight, rarity=weight / max(doubt, 1e-9), share=share)
        for kind, points, price, share in offers(candidate, shopping)
        for weight, doubt in [_weight(candidate, shelf)]
        if price <= seconds
    ]
    return max(found, key=_rate, default=None)


def _weight(candidate: Candidate, shelf: Shelf) -> tuple[float, float]:
    """Doubt weighted by rarity, and doubt alone, both summed over the objects."""
    level: Level = "box" if candidate.kind == "image" else "mask"
    doubts = [
        ((doubt or Doubt()).total, shelf.rarity(level, category, candidate.look))
        for category, doubt in candidate.objects
    ]
    weight = sum(doubt * rarity for doubt, rarity in doubts) * candidate.typical
    return weight, sum(doubt for doubt, _ in doubts) * candidate.typical


def _rate(choice: Choice) -> float:
    """Gain per second; what costs nothing comes first."""
    return choice.gain / choice.seconds if choice.seconds else math.inf
