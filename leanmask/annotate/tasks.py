"""The units of work, and what the page needs to show one: an object and its points, an image without boxes, or one
pseudo-label. Pixels of the image frame; boxes are x, y, width, height, a `view` is x, y, width, height in whole pixels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from leanmask.annotate.source import Source, Thing
from leanmask.annotate.store import FINISHED, Answer
from leanmask.data.annotation import is_number
from leanmask.data.withholding.chance import shuffled, stable_number
from leanmask.data.withholding.clicks import random_pixels
from leanmask.errors import ConfigError, DataError

Kind = Literal["points", "boxes", "review"]
Box = tuple[float, float, float, float]

MARGIN = 0.35  # of the object's longer side, shown around it
LEAST_MARGIN_PX = 12
MOST_BOXES = 10_000  # per image that people draw on; gives every drawn box an id that never changes
MOST_POINTS = 1_000
WHOLE = -1  # the position of an answer about a unit as a whole

VALUES: dict[str, tuple[str, ...]] = {
    "points": ("object", "background", "unsure", "skip"),
    "boxes": ("box", "done", "skip"),
    "review": ("accept", "reject", "wrong_class", "cuts_off", "unsure", "skip"),
}


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing to be labelled by one person at a time. kind: see `Kind`. target: id of the object, or position of the
    picture. count: answers that finish it, 0 where only an answer about the whole does. needed: how many people are to
    label it.
    """

    kind: str
    target: int
    count: int = 0
    needed: int = 1


@dataclass(frozen=True)
class Job:
    """What a labelling session asks. points: classified points per object. round: 2 asks for the next `points` points
    of every object, and so on. overlap: share (0-1) of the objects that two people label, to see whether they agree.
    """

    kind: Kind = "points"
    points: int = 10
    round: int = 1
    seed: int = 0
    overlap: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.points * self.round <= MOST_POINTS:
            raise ConfigError(f"{self.points} points in round {self.round}; allowed: 1 to {MOST_POINTS} in all")
        if not 0 <= self.overlap <= 1:
            raise ConfigError(f"overlap is {self.overlap}; allowed: 0 to 1")

    @property
    def asked(self) -> int:
        """Points per object up to this round."""
        return self.points * self.round


def drawn_things(source: Source, answers: Iterable[Answer]) -> list[Thing]:
    """The boxes that people drew, as objects. Where two people drew on one picture, those of the one who was finished
    first count.
    """
    drawn: dict[tuple[int, str], list[Answer]] = {}
    first: dict[int, tuple[float, str]] = {}
    for answer in answers:
        if answer.kind != "boxes":
            continue
        if answer.value == FINISHED:
            first[answer.target] = min(first.get(answer.target, (math.inf, "")), (answer.answered_at, answer.annotator))
        elif answer.value == "box":
            drawn.setdefault((answer.target, answer.annotator), []).append(answer)
    return [
        _drawn(source.free_id, answer)
        for picture, (_, annotator) in sorted(first.items())
        for answer in sorted(drawn.get((picture, annotator), ()), key=lambda answer: answer.position)
    ]


def _drawn(start: int, answer: Answer) -> Thing:
    detail = answer.detail or {}
    box: Box = tuple(detail["box"])
    number = start + answer.target * MOST_BOXES + answer.position
    return Thing(number, answer.target, detail["category_id"], box, {"box_provenance": answer.provenance()})


def units_of(source: Source, job: Job, drawn: Sequence[Thing] = ()) -> list[Unit]:
    """What there is to do, in order: images at random, with their objects together; pseudo-labels by their doubt."""
    left_out = source.left_out.get(job.kind, frozenset())
    if job.kind == "review":
        things = [thing for thing in source.things if not thing.row.get("iscrowd")]
        # A training file with pseudo-masks has people's masks too, which are not to be judged. In a file that tells
        # nothing about where its labels are from, all may be a network's.
        things = [thing for thing in things if is_predicted(thing.row)] or things
        return [Unit("review", number, 1) for _, number in sorted((certainty(thing.row), thing.id) for thing in things)]
    if job.kind == "boxes":
        # What somebody has looked at, and found nothing on, needs no boxes.
        declared = [row.get("exhaustive") for row in source.content.get("images", ())] or [None] * len(source.pictures)
        bare = [n for n in range(len(source.pictures)) if n not in source.annotated and declared[n] is not True]
        bare = [n for n in bare if n not in left_out]
        return [Unit("boxes", picture) for picture in shuffled(bare, job.seed, "images")]
    rank = {picture: place for place, picture in enumerate(shuffled(range(len(source.pictures)), job.seed, "images"))}
    wanted = [thing for thing in (*source.things, *drawn) if wants_points(thing) and thing.picture not in left_out]
    found = sorted(wanted, key=lambda thing: rank[thing.picture])
    return [point_unit(thing.id, job) for thing in found]


def wants_points(thing: Thing) -> bool:
    """Whether an object has a box and nothing better, so that points would say more."""
    row = thing.row
    better = row.get("segmentation") or row.get("point_coords") or row.get("iscrowd")
    return thing.box_xywh is not None and not better


def point_unit(target: int, job: Job, count: int | None = None) -> Unit:
    """The unit of one object, labelled twice when chance, by seed and object, chooses it for the overlap. count: of
    points, None = the job's.
    """
    chance = stable_number(job.seed, "overlap", target) / 2**64 if job.overlap else 1.0
    return Unit("points", target, job.asked if count is None else count, 2 if chance < job.overlap else 1)


def is_predicted(row: Mapping[str, Any]) -> bool:
    """Whether a row says that a network made it: by its provenance or, where it has none, by a score."""
    return row["provenance"] != "human" if row.get("provenance") else is_number(row.get("score"))


def certainty(row: Mapping[str, Any]) -> float:
    """How sure a network was of a pseudo-label: class quality times mask quality, else its score, else 1."""
    told = [row[name] for name in ("class_quality", "mask_quality") if is_number(row.get(name))]
    if len(told) == 2:
        return float(told[0] * told[1])
    return float(row["score"]) if is_number(row.get("score")) else 1.0


def pixels_of(thing: Thing, size: tuple[int, int], seed: int, count: int) -> list[list[int]]:
    """The `count` pixels of an object with a box that a person is asked about, [x, y] each: those that `leanmask split
    --points` would draw, without what the file has of them already. They depend on seed, object, box and the file's
    points alone, and later rounds ask for later ones. Raises DataError for a box that lies off the image.
    """
    assert thing.box_xywh is not None, "points are asked for in a box"
    known = Counter(map(tuple, thing.row.get("point_coords") or ()))
    drawn = random_pixels(list(thing.box_xywh), size, count + known.total(), seed, thing.id).tolist()
    found = []
    for pixel in drawn:
        if known[tuple(pixel)] > 0:
            known[tuple(pixel)] -= 1
        else:
            found.append(pixel)
    return found[:count]


def view_of(box: Box, size: tuple[int, int]) -> list[int]:
    """The part of an image that shows an object with a margin."""
    height, width = size
    x, y, w, h = box
    margin = max(MARGIN * max(w, h), LEAST_MARGIN_PX)
    left, top = max(math.floor(x - margin), 0), max(math.floor(y - margin), 0)
    right, bottom = min(math.ceil(x + w + margin), width), min(math.ceil(y + h + margin), height)
    if right <= left or bottom <= top:
        raise DataError(f"bbox {list(box)} lies outside the image of {width} x {height} pixels")
    return [left, top, right - left, bottom - top]


def describe(source: Source, job: Job, unit: Unit, thing: Thing | None) -> dict[str, Any]:
    """A unit as the page gets it. Raises DataError when the image cannot be read or the box lies outside of it."""
    picture = unit.target if thing is None else thing.picture
    height, width = size = source.size_of(picture)
    about: dict[str, Any] = {
        "kind": unit.kind,
        "target": unit.target,
        "picture": picture,
        "width": width,
        "height": height,
    }
    about |= {"name": source.pictures[picture].path.name, "count": unit.count}
    if thing is None:
        return {**about, "view": [0, 0, width, height]}
    assert thing.box_xywh is not None, "only objects with a box become units"
    about |= {"category_id": thing.category_id, "category": source.categories[thing.category_id]}
    about |= {"box": list(thing.box_xywh), "view": view_of(thing.box_xywh, size)}
    if unit.kind == "points":
        return {**about, "points": pixels_of(thing, size, job.seed, unit.count)}
    return {**about, "certainty": round(certainty(thing.row), 4), "mask": bool(thing.row.get("segmentation"))}
