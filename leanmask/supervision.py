"""The kinds of labels, in a file without tensors so that what only reads annotations stays light."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

PointAt = Literal["centre", "random"]  # where an object's single point is: at the mask's mass centre, anywhere on it


class Supervision(IntEnum):
    """What a person said about an object, from nothing to everything. The order is that of labelling effort."""

    NONE = 0  # a pseudo-object: nobody labelled it
    POINT = 1  # one point and a class
    BOX = 2  # box and class
    POINTS = 3  # box, class and classified points
    MASK = 4  # box, class and full mask
