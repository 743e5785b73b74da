"""What was labelled: a few training images with their labels as they were given, nothing added and nothing guessed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from leanmask.errors import DataError, LeanmaskError
from leanmask.paths import image_path
from leanmask.reports.collect import AnnotatedImages
from leanmask.reports.overlays import open_upright
from leanmask.reports.pictures import Choice, Picture, Rows, Truth, draw_picture, read_truth

# Base64 characters of all galleries of a page.
MOST_CHARACTERS = 1_000_000
# Larger files than this are not read for a handful of pictures; COCO's own training file has 450 million bytes.
MOST_BYTES = 600_000_000
KINDS = {"mask": "mask", "points": "box with points", "box": "box", "point": "one point", "none": "class alone"}


@dataclass(frozen=True)
class Gallery:
    """Pictures of one training file. trained: names of the runs that learnt from it. points: whether any are shown."""

    trained: tuple[str, ...]
    pictures: list[Picture]
    points: bool


@dataclass(frozen=True)
class Labelled:
    """The galleries of a page, and sentences about what could not be shown."""

    galleries: list[Gallery] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def draw_labelled(files: Mapping[str, AnnotatedImages | None], choice: Choice = Choice()) -> Labelled:
    """Draw `choice.training` training images per data set: one for every kind of label that occurs, others by chance.

    files: run name -> what it was trained on, None where that is not known; runs with the same files share a gallery.
    The same files and choice give the same pictures. What cannot be shown becomes a note.
    """
    groups: dict[AnnotatedImages, list[str]] = {}
    for name, found in files.items():
        if found is not None:
            groups.setdefault(found, []).append(name)
    shown = Labelled()
    room = MOST_CHARACTERS
    for place, names in groups.items():
        who = " / ".join(names)
        if room <= 0:
            shown.notes.append(f"no training images of {who}: the page would get too large")
            continue
        try:
            gallery = _gallery(place, tuple(names), choice, shown.notes)
        except DataError as error:
            shown.notes.append(f"no training images of {who}: {error}")
            continue
        room -= sum(len(picture.uri) for picture in gallery.pictures)
        if gallery.pictures:
            shown.galleries.append(gallery)
    return shown


def _gallery(place: AnnotatedImages, names: tuple[str, ...], choice: Choice, notes: list[str]) -> Gallery:
    _require_moderate(place)
    content = read_truth(place.annotations)
    pictures: list[Picture] = []
    drawn: list[Mapping[str, Any]] = []
    for image_id in _choose(content, choice):
        record, rows = content.images[image_id], content.objects[image_id]
        try:
            image = open_upright(image_path(place.images, record["file_name"]), (record["width"], record["height"]))
            pictures.append(draw_picture(f"{record['file_name']} ({_kinds_text(rows)})", image, rows, content.names))
        except (LeanmaskError, KeyError) as error:
            notes.append(f"training image {image_id} left out: {error}")
        else:
            drawn += rows
    return Gallery(names, pictures, any(row.get("point_coords") or row.get("point") for row in drawn))


def _require_moderate(place: AnnotatedImages) -> None:
    try:
        size = place.annotations.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {place.annotations}: {error.strerror}") from None
    if size > MOST_BYTES:
        raise DataError(f"{place.annotations} has {size / 1e6:.0f} MB, which is much to read for a few pictures")


def _choose(content: Truth, choice: Choice) -> list[Any]:
    """Ids of the images to show: first one for each kind of label, so that the few masks among many boxes are seen."""
    order = sorted((key for key in content.images if content.objects.get(key)), key=str)
    random.Random(choice.seed).shuffle(order)
    kinds = {key: {_kind(row) for row in content.objects[key]} for key in order}
    chosen: list[Any] = []
    for kind in KINDS:
        if not any(kind in kinds[key] for key in chosen):
            chosen += [key for key in order if kind in kinds[key]][:1]
    rest = [key for key in order if key not in set(chosen)]
    return (chosen + rest)[: choice.training]


def _kind(row: Mapping[str, Any]) -> str:
    """What was labelled, by the rules of docs/data-format.md."""
    if row.get("segmentation"):
        return "mask"
    if row.get("bbox"):
        return "points" if row.get("point_coords") else "box"
    return "point" if row.get("point_coords") or row.get("point") else "none"


def _kinds_text(rows: Sequence[Mapping[str, Any]] | Rows) -> str:
    counts = Counter(_kind(row) for row in rows)
    return ", ".join(f"{counts[kind]} x {text}" for kind, text in KINDS.items() if counts[kind])
