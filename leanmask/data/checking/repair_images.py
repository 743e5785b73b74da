"""Repairs of image records, and the copy that all repairs of a split work on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from leanmask.data.annotation import Row, Size, faults, finite_faults, segmentation_of
from leanmask.data.checking.images import Probe
from leanmask.data.checking.rows import SLACK_PX, image_size
from leanmask.data.checking.splits import Loaded, hashable
from leanmask.geometry import xywh_to_xyxy
from leanmask.rle import segmentation_bounds


@dataclass(frozen=True)
class Repair:
    """One change of the repaired copy, or what could not be changed."""

    code: str
    message: str
    split: str
    image_id: int | str | None = None
    annotation_id: int | str | None = None

    def describe(self) -> str:
        place = [self.split]
        place += [] if self.image_id is None else [f"image {self.image_id}"]
        place += [] if self.annotation_id is None else [f"annotation {self.annotation_id}"]
        return f"[{self.code}] {', '.join(place)}: {self.message}"


@dataclass
class Copy:
    """The rows of one split while they are being repaired; rows are replaced, never changed."""

    split: Loaded
    probes: dict[Path, Probe]
    exif: str
    images: list[Row] = field(default_factory=list)
    annotations: list[Row] = field(default_factory=list)
    categories: list[Row] = field(default_factory=list)
    repairs: list[Repair] = field(default_factory=list)
    positions: dict[Path, int] = field(default_factory=dict)  # of a file in `images`
    aliases: dict[Any, Any] = field(default_factory=dict)  # ids of merged images -> the id that is kept
    partial: set[Any] = field(default_factory=set)  # ids of images that lost an object
    outcomes: list[tuple[Row, Row | None]] = field(default_factory=list)  # every annotation before, and after or None

    def note(self, code: str, message: str, image_id: Any = None, annotation_id: Any = None) -> None:
        self.repairs.append(Repair(code, message, self.split.name, image_id, annotation_id))


def without_nan(copy: Copy, row: Row, image_id: Any = None) -> Row:
    bad = [fault.field for fault in finite_faults(row) if fault.field not in ("width", "height")]
    for name in bad:
        copy.note("not-finite", f"{name} removed: it held NaN or infinity", image_id)
    return {key: value for key, value in row.items() if key not in bad}


def repair_images(copy: Copy) -> None:
    """Fills `images`: records that cannot be used are left out, those of the same file become one."""
    rows: dict[Any, list[Row]] = {}
    for row in copy.split.annotations:
        rows.setdefault(hashable(row.get("image_id")), []).append(row)
    for same_id in _by_id(copy):
        paths = {copy.split.path_of(image) for image in same_id}
        number = same_id[0]["id"]
        if len(paths) > 1:
            copy.note("duplicate-image-id", "left out: the id stands for several files", number)
            continue
        if len(same_id) > 1:
            copy.note("duplicate-image-id", f"{len(same_id) - 1} repeated records removed", number)
        image = _repair_image(copy, same_id[0], rows.get(number, []))
        if image is not None:
            _keep(copy, image)


def _keep(copy: Copy, image: Row) -> None:
    path = copy.split.path_of(image)
    assert path is not None
    position = copy.positions.setdefault(path, len(copy.images))
    if position == len(copy.images):
        copy.images.append(image)
        return
    other = copy.images[position]
    copy.aliases[image["id"]] = other["id"]
    copy.note("duplicate-file", f"merged into image {other['id']}, which is the same file", image["id"])
    if image.get("exhaustive") is False:
        copy.images[position] = {**other, "exhaustive": False}


def _by_id(copy: Copy) -> Iterator[list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for image in copy.split.images:
        if copy.split.path_of(image) is None or not isinstance(image.get("id"), int | str):
            copy.note("malformed", "image record removed: it has no usable id and file name", hashable(image.get("id")))
        else:
            groups.setdefault(image["id"], []).append(image)
    yield from groups.values()


def _repair_image(copy: Copy, image: Row, rows: list[Row]) -> Row | None:
    path, number = copy.split.path_of(image), image["id"]
    assert path is not None
    found = copy.probes[path]
    if found.fault is not None:
        copy.note(found.fault.code, f"left out with its {len(rows)} annotations: {found.fault.message}", number)
        return None
    image = without_nan(copy, image, number)
    if image.get("exhaustive") not in (None, True, False):
        copy.note("malformed", f"exhaustive set to false, it was {image['exhaustive']!r}", number)
        image["exhaustive"] = False
    if found.orientation != 1 and copy.exif == "error":
        copy.note("exif-rotation", "left as it is: choose data.exif=apply or ignore", number)
    stated, allowed = image_size(image), found.allowed_sizes(copy.exif)
    if stated in allowed:
        return image
    if stated is not None and not _belong_to(allowed[0], stated, rows):
        copy.note("size-mismatch", "left out: whether the annotations follow the image's size cannot be told", number)
        return None
    image["height"], image["width"] = allowed[0]
    copy.note("size-mismatch", f"size set to the image's {image['width']} x {image['height']}", number)
    return image


def _belong_to(size: Size, stated: Size, rows: list[Row]) -> bool:
    """Whether annotations can only have been made on an image of `size`: they fit it, and do not fit `stated`."""
    fits = [(_fits(row, size), _fits(row, stated)) for row in rows]
    return not rows or (all(real for real, _ in fits) and not all(claimed for _, claimed in fits))


def _fits(row: Row, size: Size) -> bool:
    if any(fault.field in ("bbox", "segmentation") for fault in faults(row, size)):
        return False
    boxes = [xywh_to_xyxy(np.asarray([row["bbox"]]))[0]] if row.get("bbox") else []
    segmentation = segmentation_of(row)
    if segmentation is not None and (bounds := segmentation_bounds(segmentation)) is not None:
        boxes.append(np.asarray(bounds))
    return all(box[2] <= size[1] + SLACK_PX and box[3] <= size[0] + SLACK_PX for box in boxes)
