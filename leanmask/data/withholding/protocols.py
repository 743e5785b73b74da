"""The words of labelling protocols: their names, options, and what goes in (`Source`) and comes out (`Parts`)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from leanmask.data.annotation import Row, Size, is_object
from leanmask.errors import ConfigError, DataError, suggest
from leanmask.options import check_fields
from leanmask.paths import settle_fields
from leanmask.supervision import PointAt

VOC_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "boat", "bird", "cat", "dog", "horse"),
    *("sheep", "cow", "bottle", "chair", "couch", "potted plant", "dining table", "tv"),
)  # COCO's names of PASCAL VOC's classes (reference: ShapeProp's and OPMask's partial-COCO split)
FORMS = {
    "full": "full",
    "sparse": "sparse-R",
    "points": "points-N",
    "boxes": "boxes",
    "semi": "semi-P",
    "weak-semi": "weak-semi-P",
    "partial": "partial",
    "mixed": "mixed-T",
}
_PER_CENT = "a percentage above 0 and up to 100"
_LETTERS = {
    "full": "no number",
    "sparse": f"R = {_PER_CENT}",
    "points": "N = a whole number of points",
    "boxes": "no number",
    "semi": f"P = {_PER_CENT}",
    "weak-semi": f"P = {_PER_CENT}",
    "partial": "no number",
    "mixed": "T = annotation seconds above 0",
}
KINDS = ("mask", "points", "box", "point")


def _even_mix() -> Mapping[str, float]:
    return {"mask": 1.0, "points": 1.0, "box": 1.0}


@dataclass(frozen=True)
class SplitOptions:
    """What the protocol's name does not say.

    point_noise: share (0-1) of all points of points-N whose label is wrong; noise_where: any of them ("random") or
    those nearest to a mask boundary ("boundary"). point_bias: probability (0-1) with which each point of points-N is
    drawn near the mask's boundary instead of anywhere in the box: uniformly among the box's pixels that are no farther
    than 10 % of the box's shorter side, and at least 1 px, from a pixel on the other side of the boundary. 0 is
    PointSup's published scheme; Pointly-Supervised (appendix C) measures "mild" and "heavy" bias without defining them.
    point_at: the point of weak-semi-P and of kind "point" is the mask's mass centre ("centre", as published) or a
    random pixel inside ("random"). point_displaced: share (0-1) of the weak objects of weak-semi-P whose point lies
    beside them, on a random pixel around the mask. mask_classes: classes that have masks in `partial`, or ("voc",) or
    ("nonvoc",) for COCO; empty = the first half by category id. mix: for mixed-T, how the seconds are shared among the
    kinds "mask", "points" (box and points), "box" and "point"; mix_points: points per object of kind "points". Raises
    ConfigError for values that cannot be.
    """

    point_noise: float = 0.0
    noise_where: Literal["random", "boundary"] = "random"
    point_bias: float = 0.0
    point_at: PointAt = "centre"
    point_displaced: float = 0.0
    mask_classes: tuple[str, ...] = ()
    mix: Mapping[str, float] = field(default_factory=_even_mix)
    mix_points: int = 10

    def __post_init__(self) -> None:
        settle_fields(self, texts=("mask_classes",))
        check_fields(self)
        for name in ("point_noise", "point_bias", "point_displaced"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: 0 to 1")
        for kind, share in self.mix.items():
            if kind not in KINDS:
                raise ConfigError(f"mix has the kind '{kind}'{suggest(kind, KINDS)}")
            if not 0 <= share < math.inf:
                raise ConfigError(f"mix gives '{kind}' the share {share}; allowed: 0 or more")
        if not sum(self.mix.values()) or self.mix_points < 1:
            raise ConfigError("mix needs a share above 0, and mix_points must be 1 or more")


@dataclass(frozen=True)
class Protocol:
    """A parsed protocol name: kind as in `FORMS`, and its number (R and P in per cent, N points, T seconds)."""

    name: str
    kind: str
    amount: float = 0.0


@dataclass(frozen=True)
class Source:
    """A fully labelled COCO file in memory, every row checked. annotations: rows of each image id, in file order."""

    path: str
    images: tuple[Row, ...]
    annotations: Mapping[Any, tuple[Row, ...]]
    classes: Mapping[int, str]
    seed: int
    protocol: Protocol
    options: SplitOptions

    def size(self, image: Row) -> Size:
        return image["height"], image["width"]

    def objects(self) -> Iterator[tuple[Row, Row]]:
        """(image, annotation) of everything that is no crowd and not rejected (weight 0)."""
        for image in self.images:
            for row in self.annotations.get(image["id"], ()):
                if is_object(row):
                    yield image, row

    def where(self, row: Row) -> str:
        return f"{self.path}, image {row['image_id']}, annotation {row['id']}"


@dataclass(frozen=True)
class Parts:
    """What is left: labelled images with their rows, and images that keep nothing."""

    images: tuple[Row, ...]
    rows: tuple[Row, ...]
    unlabelled: tuple[Row, ...] = ()
    strong_ids: frozenset[Any] | None = None  # weak-semi: the images that keep everything
    mask_classes: tuple[str, ...] = ()
    noisy_points: int = 0


def parse_protocol(name: str) -> Protocol:
    """Read a protocol's name, such as "sparse-0.4". Raises DataError with the list of protocols and the nearest one."""
    if name == "longtail":
        raise DataError("'longtail' is a way to make data, not to split it; write it with `leanmask digits --longtail`")
    found = re.fullmatch(r"(.+?)(?:-([0-9]*\.?[0-9]+))?", name)
    kind, number = found.groups() if found else (name, None)
    if kind not in FORMS:
        near = suggest(name, FORMS.values())
        listed = "" if near.startswith("; allowed") else f" (protocols: {', '.join(FORMS.values())})"
        raise DataError(f"unknown protocol '{name}'{near}{listed}")
    if ("-" in FORMS[kind].removeprefix(kind)) != (number is not None):
        raise DataError(f"unknown protocol '{name}'; write {FORMS[kind]} with {_LETTERS[kind]}")
    amount = float(number or 0)
    limit = 100.0 if kind in ("sparse", "semi", "weak-semi") else 1e12
    whole = kind == "points" and amount != int(amount)
    if number is not None and (not 0 < amount <= limit or whole):
        raise DataError(f"protocol '{name}': write {FORMS[kind]} with {_LETTERS[kind]}")
    return Protocol(name, kind, amount)
