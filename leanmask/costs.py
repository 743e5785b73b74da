"""What labels cost in a person's time: the published prices, in seconds per object."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from leanmask.errors import ConfigError
from leanmask.options import check_fields

COCO_SPOTTING_SECONDS = 43.2  # finding an object and naming its class, of Pointly-Supervised's totals for COCO
_MOST_SECONDS = 1e6  # per object, eleven days: beyond it a value is a slip, and sums stay finite


@dataclass(frozen=True)
class LabelCosts:
    """Seconds that a person needs per object, by default as in Pointly-Supervised, section 3.2.

    mask_seconds: a polygon mask. box_seconds: a box by extreme clicks. point_seconds: one classified point.
    spotting_seconds: finding the object and naming its class, which comes on top of every kind of label and is the
    same for all; 0 leaves it out, `COCO_SPOTTING_SECONDS` is COCO's. Raises ConfigError for values that cannot be.
    """

    mask_seconds: float = 79.2
    box_seconds: float = 7.0
    point_seconds: float = 0.9
    spotting_seconds: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name, seconds in dataclasses.asdict(self).items():
            if not 0 <= seconds <= _MOST_SECONDS:
                raise ConfigError(f"{name} is {seconds}; allowed: 0 to {_MOST_SECONDS:,.0f} seconds")
        if self.mask_seconds < self.box_seconds:
            raise ConfigError(
                f"mask_seconds is {self.mask_seconds} and box_seconds {self.box_seconds}, but a mask's box follows "
                "from it, so a box costs at most as much as a mask"
            )

    def object_seconds(self, *, mask: bool = False, box: bool = False, points: int = 0, crowd: bool = False) -> float:
        """One labelled object: its mask (the box follows from it), or else its box and points, together or alone; with
        none of them somebody has named the object only. Crowds are free: the prices are of single objects.
        """
        if crowd:
            return 0.0
        drawn = self.mask_seconds if mask else self.box_seconds * box + self.point_seconds * points
        return self.spotting_seconds + drawn
