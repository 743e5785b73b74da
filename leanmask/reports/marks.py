"""Classified points on pictures: a green disc on the object, a red cross beside it, told apart by shape as well."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw

from leanmask.errors import DataError

OBJECT_RGB = (0, 200, 83)
BACKGROUND_RGB = (229, 28, 35)
_LIGHT, _DARK = (255, 255, 255), (17, 17, 17)
_FINER = 8  # marks are drawn this much larger and then reduced, for smooth edges


@dataclass(frozen=True)
class Mark:
    """One point. x, y: pixels of the picture, continuous. on_object: whether it was labelled as object."""

    x: float
    y: float
    on_object: bool

    def scaled(self, across: float, down: float) -> Mark:
        return Mark(self.x * across, self.y * down, self.on_object)


def marks_of(row: Mapping[str, Any]) -> tuple[Mark, ...]:
    """The points of a COCO row in the frame of its image: `point_coords` (pixel indices, so 0.5 is added) with their
    `point_labels`, or the single `point` (continuous). Raises DataError where they are broken.
    """
    try:
        if row.get("point_coords"):
            pairs = zip(row["point_coords"], row["point_labels"], strict=True)
            marks = [Mark(float(x) + 0.5, float(y) + 0.5, int(label) == 1) for (x, y), label in pairs]
        elif row.get("point"):
            x, y = row["point"]
            marks = [Mark(float(x), float(y), True)]
        else:
            return ()
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"broken points ({type(error).__name__}: {error})") from None
    if not all(math.isfinite(mark.x) and math.isfinite(mark.y) for mark in marks):
        raise DataError("broken points: a coordinate is NaN or infinite")
    return tuple(marks)


def draw_marks(picture: Image.Image, marks: Iterable[Mark], radius_px: int) -> None:
    """Draw points on an RGB picture, in place; they are seen on any ground. What lies outside is cut off."""
    for mark in marks:
        stamp = _stamp(mark.on_object, radius_px)
        left, top = round(mark.x - stamp.width / 2), round(mark.y - stamp.height / 2)
        if -stamp.width < left < picture.width and -stamp.height < top < picture.height:
            picture.paste(stamp, (left, top), stamp)


@lru_cache(maxsize=16)
def _stamp(on_object: bool, radius_px: int) -> Image.Image:
    """A mark in a thin light and a thin dark line, on transparent ground."""
    reach = _FINER * radius_px
    line = max(_FINER, reach // 5)
    middle = reach + 2 * line
    stamp = Image.new("RGBA", (2 * middle, 2 * middle))
    pen = ImageDraw.Draw(stamp)
    colour = OBJECT_RGB if on_object else BACKGROUND_RGB
    for grown, ink in ((2 * line, _DARK), (line, _LIGHT), (0, colour)):
        if on_object:
            pen.circle((middle, middle), 0.85 * reach + grown, fill=(*ink, 255))
        else:
            _cross(pen, middle, reach, grown, (*ink, 255))
    side = math.ceil(2 * middle / _FINER)
    return stamp.resize((side, side), Image.Resampling.LANCZOS)


def _cross(pen: ImageDraw.ImageDraw, middle: int, reach: int, grown: int, ink: tuple[int, ...]) -> None:
    arm, half = 0.8 * reach, 0.36 * reach + grown
    end = arm + grown * math.sqrt(0.5)  # the line grows by as much at its ends as at its sides
    for rise in (end, -end):
        pen.line((middle - end, middle - rise, middle + end, middle + rise), fill=ink, width=round(2 * half))
