"""What is to be labelled: the images, objects and classes of one split, or of a file of pseudo-labels. Read only.

Boxes are x, y, width, height in pixels of the image frame.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from leanmask.data.annotation import Row, first_fault
from leanmask.data.files import image_files, read_json
from leanmask.data.grouping import categories_of, rows_of
from leanmask.data.layout import SplitFiles, locate, locate_unlabelled
from leanmask.data.views.canvas import Exif, image_size
from leanmask.errors import ConfigError, DataError, suggest
from leanmask.paths import image_path
from leanmask.rle import Region


@dataclass(frozen=True, slots=True)
class Picture:
    """One image. size: (height, width) as the file of annotations says, None for images of a plain folder."""

    id: int | str
    path: Path
    size: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Thing:
    """One object that is annotated already. picture: position among the source's pictures. row: the user's own."""

    id: int
    picture: int
    category_id: int
    box_xywh: tuple[float, float, float, float] | None
    row: Row


@dataclass(frozen=True)
class Source:
    """A split as a person labels it. origin: the annotation file, or the folder of images. content: the file's other
    fields, kept for the export. exif: as `DataConfig.exif`. plain: a folder of images without annotations. gone:
    positions of the pictures that are not there any more. left_out: for a kind of work, the positions of the pictures
    that it is not about.
    """

    origin: Path
    images: Path
    categories: dict[int, str]
    pictures: tuple[Picture, ...]
    things: tuple[Thing, ...]
    content: dict[str, Any]
    exif: Exif
    plain: bool = False
    gone: frozenset[int] = frozenset()
    left_out: Mapping[str, frozenset[int]] = field(default_factory=dict)

    @cached_property
    def thing_index(self) -> dict[int, int]:
        """Position of every object by its id."""
        return {thing.id: index for index, thing in enumerate(self.things)}

    @cached_property
    def free_id(self) -> int:
        """The first annotation id above all that are used."""
        return max((thing.id for thing in self.things), default=0) + 1

    @cached_property
    def annotated(self) -> frozenset[int]:
        """Positions of the pictures that have any annotation, crowds included."""
        return frozenset(thing.picture for thing in self.things)

    def size_of(self, picture: int) -> tuple[int, int]:
        """(height, width) of a picture. Raises UnreadableImage where only the file could tell and it cannot."""
        known = self.pictures[picture]
        return known.size or image_size(known.path, self.exif)

    def holds(self, picture: int, region: Region) -> bool:
        """Whether a region, x, y, width, height in pixels, lies on a picture."""
        height, width = self.size_of(picture)
        x, y, w, h = region
        return x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= width and y + h <= height

    def fingerprint(self) -> dict[str, str]:
        """Digests of images, objects and classes: two sources with the same ones have the same questions."""
        whole = np.array([(thing.id, thing.picture, thing.category_id) for thing in self.things], dtype=np.int64)
        none = (math.nan,) * 4
        boxes = np.array([thing.box_xywh or none for thing in self.things], dtype=np.float64)
        return {
            "images": digest_of_pictures(self.pictures),
            "objects": _digest(whole.tobytes() + boxes.tobytes()),
            "classes": digest_of_classes(self.categories),
        }


def digest_of_pictures(pictures: Sequence[Picture]) -> str:
    """Of their ids, names and sizes."""
    told = [f"{picture.id!r} {picture.path.name} {picture.size}" for picture in pictures]
    return _digest("\n".join(told).encode())


def digest_of_classes(categories: Mapping[int, str]) -> str:
    """Of ids and names."""
    return _digest(repr(sorted(categories.items())).encode())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=12).hexdigest()


@dataclass(frozen=True)
class SourceOptions:
    """split: which one of the data set. classes: names, for images that have no annotation file yet. exif: None =
    "apply" for a plain folder, whose photographs are labelled as they are shown, else "error", as in training.
    """

    split: str = "train"
    classes: tuple[str, ...] = ()
    exif: Exif | None = None


def open_source(data: str | Path, options: SourceOptions = SourceOptions()) -> Source:
    """The split of a data set, or a plain folder of images whose classes are named. Raises DataError or ConfigError."""
    files = _files(Path(data), options.split)
    if files.annotations is None:
        return _folder(files.images, options, _classes(Path(data), options))
    if options.classes:
        raise ConfigError(f"{files.annotations} has its classes already; --classes is for a folder of images alone")
    return _coco(files.annotations, files.images, options.exif or "error")


def open_pseudo(path: Path, images: Path, exif: Exif | None) -> Source:
    """A file of pseudo-labels. images: the folder to use where the one that the file remembers is not there."""
    content = read_json(path)
    # `leanmask pseudo` labels pictures as they are shown.
    return _coco(path, folder_of_pseudo(content, images), exif or "apply", content)


def folder_of_pseudo(content: Mapping[str, Any], images: Path) -> Path:
    """The folder of images that a file of pseudo-labels remembers, or `images` where that is not there."""
    info = content.get("info")
    remembered = Path(str(info.get("image_folder", ""))) if isinstance(info, dict) else Path()
    return remembered if remembered.name and remembered.is_dir() else images


def _files(data: Path, split: str) -> SplitFiles:
    try:
        splits = locate(data)
    except DataError as unknown:
        try:
            return locate_unlabelled(data)
        except DataError:
            raise unknown from None
    if split not in splits:
        raise DataError(f"{data} has no split '{split}'{suggest(split, splits)}")
    return splits[split]


def _classes(data: Path, options: SourceOptions) -> dict[int, str]:
    """The classes that were named, else those of the data set's training split."""
    if options.classes:
        return dict(enumerate(dict.fromkeys(options.classes), start=1))
    try:
        train = locate(data)["train"].annotations
    except (DataError, KeyError):
        return {}
    return {} if train is None else dict(categories_of(read_json(train), train))


def _folder(folder: Path, options: SourceOptions, categories: dict[int, str]) -> Source:
    if not categories:
        raise ConfigError(f"{folder} is a folder of images without annotations: name the classes, --classes cat,dog")
    pictures = tuple(Picture(number, path, None) for number, path in enumerate(image_files(folder), start=1))
    return Source(folder, folder, categories, pictures, (), {}, options.exif or "apply", plain=True)


def _coco(path: Path, images: Path, exif: Exif, content: dict[str, Any] | None = None) -> Source:
    content = read_json(path) if content is None else content
    pictures, position = _pictures(rows_of(content, "images", path), images, path)
    categories = dict(categories_of(content, path))
    rows = rows_of(content, "annotations", path)
    _require_rows(rows, position, categories, path)
    things = tuple(
        Thing(
            row["id"],
            position[row["image_id"]],
            row["category_id"],
            tuple(row.get("bbox") or ()) or None,
            row,
        )
        for row in rows
    )
    if len({thing.id for thing in things}) < len(things):
        raise DataError(f"{path} uses an annotation id twice; `leanmask check` says where, and --fix repairs it")
    rest = {key: value for key, value in content.items() if key not in ("images", "annotations", "categories")}
    return Source(path, images, categories, pictures, things, {**rest, "images": content["images"]}, exif)


def _pictures(rows: Sequence[Row], images: Path, path: Path) -> tuple[tuple[Picture, ...], dict[Any, int]]:
    found: list[Picture] = []
    position: dict[Any, int] = {}
    for row in rows:
        number, name = row.get("id"), row.get("file_name")
        if not isinstance(number, int | str) or not isinstance(name, str):
            raise DataError(f"{path}: every image needs an `id` and a `file_name`, found {str(row)[:80]}")
        if number in position:
            raise DataError(f"{path}: image id {number!r} is used twice (file {name})")
        sides = row.get("height"), row.get("width")
        if not all(type(side) is int and side > 0 for side in sides):
            raise DataError(
                f"{path}: image {number!r} needs width and height in whole pixels; `leanmask check DATA --fix NEW` "
                "reads them from the images"
            )
        position[number] = len(found)
        found.append(Picture(number, image_path(images, name), (int(row["height"]), int(row["width"]))))
    return tuple(found), position


def _require_rows(rows: Sequence[Row], position: dict[Any, int], categories: dict[int, str], path: Path) -> None:
    """Whether rows can be labelled and written again; masks are looked at by `leanmask check`, not here."""
    for row in rows:
        if row.get("image_id") not in position:
            raise DataError(
                f"{path}: annotation {row.get('id')!r} belongs to image {row.get('image_id')!r}, which the file does "
                "not have"
            )
        if row.get("category_id") not in categories:
            raise DataError(
                f"{path}: annotation {row.get('id')!r}: category id {row.get('category_id')!r} is not among the file's "
                "categories"
            )
    boxed = [row for row in rows if row.get("bbox")]
    try:
        boxes = np.asarray([row["bbox"] for row in boxed], dtype=np.float64).reshape(-1, 4)
        sound = bool(np.isfinite(boxes).all() and (boxes[:, 2:] > 0).all()) and len(boxes) == len(boxed)
        sound = sound and all(type(row["id"]) is int for row in rows)
    except (TypeError, ValueError, KeyError):
        sound = False
    if not sound:
        for row in rows:
            first_fault({**row, "segmentation": None}, None, partial("{}: annotation {!r}".format, path, row.get("id")))


def text_of(value: Any) -> str:
    """JSON in one form only, for ids and settings that are compared."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
