"""How far a labelling budget reaches: what a data set costs under each scheme, and what hours of work buy.

Pure functions on counts. Seconds are a person's, days have 24 hours as in the published totals.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from leanmask.costs import LabelCosts
from leanmask.errors import ConfigError
from leanmask.options import require_kind

_MOST = 10**12  # objects or images


@dataclass(frozen=True)
class Counts:
    """The size of a data set; crowds are no objects. Raises ConfigError for numbers that cannot be."""

    objects: int
    images: int

    def __post_init__(self) -> None:
        for name, number in (("objects", self.objects), ("images", self.images)):
            if not 0 <= number <= _MOST:
                raise ConfigError(f"the number of {name} is {number}; allowed: 0 to {_MOST:,}")


@dataclass(frozen=True)
class Scheme:
    """How every object is labelled: a share (0-1) with a mask, the others with a box and points, or either alone.

    Names are those of `leanmask split`'s protocols, where there is one.
    """

    name: str
    mask_fraction: float = 0.0
    box: bool = False
    points: int = 0

    def masks(self, objects: int) -> int:
        """How many of `objects` get a mask: rounded half up, at least one when any is wanted, as `split` has it."""
        if self.mask_fraction <= 0 or objects == 0:
            return 0
        return min(max(math.floor(self.mask_fraction * objects + 0.5), 1), objects)

    def object_seconds(self, costs: LabelCosts) -> float:
        """What an object costs on average."""
        other = costs.object_seconds(box=self.box, points=self.points)
        return self.mask_fraction * costs.object_seconds(mask=True) + (1 - self.mask_fraction) * other

    def seconds(self, objects: int, costs: LabelCosts) -> float:
        """What labelling `objects` costs; never less for more objects."""
        masks = self.masks(objects)
        other = costs.object_seconds(box=self.box, points=self.points)
        return masks * costs.object_seconds(mask=True) + (objects - masks) * other


SCHEMES = (
    Scheme("full", mask_fraction=1.0),
    Scheme("sparse-10", mask_fraction=0.1, box=True),
    Scheme("sparse-1", mask_fraction=0.01, box=True),
    Scheme("sparse-0.4", mask_fraction=0.004, box=True),
    Scheme("points-20", box=True, points=20),
    Scheme("points-10", box=True, points=10),
    Scheme("points-5", box=True, points=5),
    Scheme("points-1", box=True, points=1),
    Scheme("boxes", box=True),
    Scheme("point", points=1),
)


@dataclass(frozen=True)
class Price:
    """What a whole data set costs under one scheme. boxes: drawn by hand, without those that follow from masks. units:
    MaskBooster's, None for schemes with points, which it does not price.
    """

    scheme: str
    masks: int
    boxes: int
    points: int
    seconds: float
    units: float | None

    @property
    def hours(self) -> float:
        return self.seconds / 3600

    @property
    def days(self) -> float:
        """Of 24 hours."""
        return self.hours / 24

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "hours": self.hours, "days": self.days}


@dataclass(frozen=True)
class Purchase:
    """What a number of hours buys under one scheme: `objects` labelled as the scheme says, `share` (0-1) of the data
    set; `masks` of them have a mask. images: fully labelled, if each holds as many objects as the average. seconds:
    spent, never more than there were.
    """

    scheme: str
    objects: int
    share: float
    images: int
    masks: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def price(scheme: Scheme, counts: Counts, costs: LabelCosts) -> Price:
    """What labelling the data set from nothing costs under a scheme."""
    masks = scheme.masks(counts.objects)
    rest = counts.objects - masks
    return Price(
        scheme=scheme.name,
        masks=masks,
        boxes=rest * scheme.box,
        points=rest * scheme.points,
        seconds=scheme.seconds(counts.objects, costs),
        units=None if scheme.points else budget_units(masks, counts.objects),
    )


def budget_units(masks: int, boxes: int) -> float:
    """MaskBooster's budget: 10,000 masks are 1 and 10,000 boxes 1/11. boxes: of all objects, also of those with a mask.

    For COCO's 860,000 objects (crowds counted) this is its 86 rho + 86 / 11.
    """
    return masks / 10_000 + boxes / 110_000


def buy(scheme: Scheme, counts: Counts, costs: LabelCosts, hours: float) -> Purchase:
    """How many objects `hours` of work label from nothing, at the scheme's own share of masks. Raises ConfigError for
    hours that cannot be.
    """
    objects = _most(counts.objects, lambda number: scheme.seconds(number, costs), seconds_of(hours))
    return _purchase(scheme.name, counts, objects, (scheme.masks(objects), scheme.seconds(objects, costs)))


def buy_boxes_then_masks(counts: Counts, costs: LabelCosts, hours: float) -> Purchase:
    """Sparse supervision to the last second: a box for every object first, masks with what is left.

    Which objects get a mask is known before the boxes are drawn, so nobody draws the box of an object that gets a mask:
    a mask in place of a box costs the difference. `objects` are all that have a box, drawn or from a mask. Raises
    ConfigError for hours that cannot be.
    """
    boxed, masked = costs.object_seconds(box=True), costs.object_seconds(mask=True)
    seconds = seconds_of(hours)
    objects = _most(counts.objects, lambda number: number * boxed, seconds)

    def with_masks(masks: int) -> float:
        return (objects - masks) * boxed + masks * masked

    masks = _most(objects, with_masks, seconds) if objects == counts.objects else 0
    return _purchase("sparse", counts, objects, (masks, with_masks(masks)))


def _most(limit: int, cost: Callable[[int], float], seconds: float) -> int:
    """The largest number up to `limit` that costs at most `seconds`. cost: rises with the number, affordable at 0."""
    return bisect_right(range(limit + 1), seconds, key=cost) - 1


def seconds_of(hours: float) -> float:
    """Working time in seconds. Raises ConfigError for hours that cannot be."""
    require_kind("hours", hours, float)
    if not 0 <= hours < math.inf:
        raise ConfigError(f"hours is {hours}; allowed: 0 or more")
    return hours * 3600


def _purchase(name: str, counts: Counts, objects: int, bought: tuple[int, float]) -> Purchase:
    # Of a data set without objects everything is labelled.
    share = objects / counts.objects if counts.objects else 1.0
    images = counts.images * objects // counts.objects if counts.objects else counts.images
    masks, seconds = bought
    return Purchase(name, objects, share, images, masks, seconds)
