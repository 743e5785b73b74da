"""The file that `leanmask suggest` writes and `leanmask annotate --queue` follows: what to label next, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from leanmask.annotate.source import Source, Thing
from leanmask.annotate.tasks import MOST_POINTS, Job, Unit, point_unit
from leanmask.data.files import read_json
from leanmask.errors import DataError

FORMAT = 1


def read_queue(
    path: Path,
    source: Source,
    job: Job = Job(),
    drawn: Sequence[Thing] = (),
    answered: Mapping[int, int] = MappingProxyType({}),
) -> tuple[list[Unit], int]:
    """The units of a queue file, and how many masks it asks for, which are drawn in another tool. job: says which
    objects two people label. drawn: objects that people have drawn. answered: how many points of an object they have
    been asked about.

    Raises DataError for a file that is no queue, or asks about what the source does not have.
    """
    content = read_json(path)
    items = content.get("items")
    if content.get("leanmask_queue") != FORMAT or not isinstance(items, list):
        raise DataError(f"{path} is no queue; `leanmask suggest DATA --hours N --out QUEUE` writes one")
    positions = {picture.id: place for place, picture in enumerate(source.pictures)}
    things = {thing.id: thing for thing in (*source.things, *drawn)}
    units: dict[tuple[str, int], Unit] = {}
    masks = 0
    for number, item in enumerate(items, start=1):
        unit = _unit(item, (source, job, things, answered), positions, f"{path}: item {number}")
        masks += unit is None
        if unit is not None:
            units.setdefault((unit.kind, unit.target), unit)
    return list(units.values()), masks


def _unit(
    item: Any,
    about: tuple[Source, Job, Mapping[int, Thing], Mapping[int, int]],
    positions: dict[Any, int],
    where: str,
) -> Unit | None:
    source, job, things, answered = about
    kind = item.get("kind") if isinstance(item, dict) else None
    if kind == "boxes":
        if item.get("image_id") not in positions:
            raise DataError(f"{where} is about image {item.get('image_id')!r}, which {source.origin} does not have")
        return Unit("boxes", positions[item["image_id"]])
    if kind not in ("points", "mask"):
        raise DataError(f"{where} is of kind {kind!r}; allowed: points, boxes and mask")
    target = item.get("annotation_id")
    thing = things.get(target)
    # Of an object that a review brought into the labels, which the source does not have, only a mask is asked for.
    if (thing is None and not (source.plain and kind == "mask")) or (thing is not None and thing.box_xywh is None):
        raise DataError(f"{where} is about object {target!r}, which {source.origin} does not have, or not with a box")
    count, had = item.get("points", 10), item.get("points_before", 0)
    if kind == "points" and not (type(count) is int and 1 <= count <= MOST_POINTS and type(had) is int):
        raise DataError(f"{where} asks for {count!r} points; allowed: 1 to {MOST_POINTS}")
    if kind == "mask" or thing is None:
        return None
    if had > len(thing.row.get("point_coords") or ()):  # ranked with the answers so far: so many more
        count = min(count + answered.get(target, 0), MOST_POINTS)
    return point_unit(target, job, count)
