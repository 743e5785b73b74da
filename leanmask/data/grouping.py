"""A whole COCO file, or a folder of images, as a pack of one piece per image: the checks that need the whole file, and
the counts for the census.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from leanmask.data.annotation import Row, first_fault, is_object, is_rejected, supervision_of
from leanmask.data.federated import FEDERATED, NEGATIVE, require_federated
from leanmask.data.files import image_files, read_json
from leanmask.data.formats import read_instances
from leanmask.data.pack import Pack, Piece, cache_key, find_pack, return_memory, text_key, write_pack
from leanmask.errors import DataError
from leanmask.supervision import Supervision

ANNOTATED, EXHAUSTIVE, PARTIAL = 1, 2, 4  # bits of an image's flag; the last two are what its `exhaustive` field says


@dataclass
class Totals:
    """What is counted on the way through a file: kinds by category id, images by category id, crowds, objects whose
    points are all of one label, and rows of weight 0, which are no objects.
    """

    objects: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    images: Counter[int] = field(default_factory=Counter)
    crowds: int = 0
    one_label_points: int = 0
    rejected: int = 0

    def add(self, row: Row) -> None:
        """Count one annotation."""
        if row.get("iscrowd"):
            self.crowds += 1
            return
        if is_rejected(row):
            self.rejected += 1
            return
        kind = supervision_of(row)
        self.objects[row["category_id"]][kind.name.lower()] += 1
        self.one_label_points += kind == Supervision.POINTS and len(set(row["point_labels"])) == 1

    def to_json(self) -> dict[str, Any]:
        objects = {str(key): dict(value) for key, value in self.objects.items()}
        images = {str(key): count for key, count in self.images.items()}
        counts = {"crowds": self.crowds, "one_label_points": self.one_label_points, "rejected": self.rejected}
        return {"objects": objects, "images": images, **counts}


def rows_of(content: dict[str, Any], key: str, path: Path) -> list[Row]:
    """The list of objects under `key`. Raises DataError when it is something else."""
    rows = content.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} is no COCO instance file: '{key}' must be a list of objects")
    return rows


def categories_of(content: dict[str, Any], path: Path) -> list[tuple[int, str]]:
    """(id, name) of every class, sorted by id. Raises DataError for duplicates and missing fields."""
    found: dict[int, str] = {}
    for row in rows_of(content, "categories", path):
        category_id, name = row.get("id"), row.get("name")
        if not isinstance(category_id, int) or not isinstance(name, str):
            raise DataError(f"{path}: a category needs a whole number `id` and a `name`, found {row!r}")
        if category_id in found:
            raise DataError(f"{path}: category id {category_id} stands for both '{found[category_id]}' and '{name}'")
        if name in found.values():
            raise DataError(f"{path}: class '{name}' is listed twice, the second time with id {category_id}")
        found[category_id] = name
    return sorted(found.items())


def image_flag(image: Row, annotated: bool) -> int:
    """The bits of one image."""
    declared = {True: EXHAUSTIVE, False: PARTIAL}.get(image.get("exhaustive"), 0)  # type: ignore[arg-type]
    if not declared and NEGATIVE in image:
        declared = EXHAUSTIVE  # somebody looked, and says for what
    return declared | (ANNOTATED if annotated else 0)


def group_images(content: dict[str, Any], path: Path, totals: Totals) -> Iterator[Piece]:
    """One piece {"image": ..., "annotations": [...]} per image, in the file's order; counts go into `totals`.

    Raises DataError, with image and annotation id, at the first row that cannot be used.
    """
    images = rows_of(content, "images", path)
    known = {category_id for category_id, _ in categories_of(content, path)}
    by_image = _by_image(images, rows_of(content, "annotations", path), path)
    for image in images:
        rows = by_image[image["id"]]
        for row in rows:
            _require_usable(row, image, known, path)
            _shrink(row)
            totals.add(row)
        totals.images.update({row["category_id"] for row in rows if is_object(row)})
        require_federated(image, rows, known, path)
        yield Piece({"image": image, "annotations": rows}, image_flag(image, bool(rows)))


def _by_image(images: list[Row], annotations: list[Row], path: Path) -> dict[Any, list[Row]]:
    by_image: dict[Any, list[Row]] = {}
    for image in images:
        _require_image(image, path)
        if image["id"] in by_image:
            raise DataError(f"{path}: image id {image['id']!r} is used twice (file {image['file_name']})")
        by_image[image["id"]] = []
    seen: set[Any] = set()
    for row in annotations:
        number, image_id = row.get("id"), row.get("image_id")
        if not isinstance(image_id, int | str) or image_id not in by_image:
            raise DataError(
                f"{path}: annotation {number!r} belongs to image {image_id!r}, which the file does not have"
            )
        if isinstance(number, int) and number in seen:
            raise DataError(f"{path}: annotation id {number} is used twice (image {image_id!r})")
        seen.add(number if isinstance(number, int) else None)
        by_image[image_id].append(row)
    return by_image


def _require_image(image: Row, path: Path) -> None:
    if not isinstance(image.get("id"), int | str) or not isinstance(image.get("file_name"), str):
        raise DataError(f"{path}: every image needs an `id` and a `file_name`, found {str(image)[:80]}")
    for key in ("width", "height"):
        if type(image.get(key)) is not int or image[key] <= 0:
            raise DataError(
                f"{path}: image {image['id']!r} needs a {key} in whole pixels, found {image.get(key)!r}; "
                "`leanmask check DATA --fix NEW` reads the sizes from the images"
            )
    if image.get("exhaustive") not in (None, True, False):
        raise DataError(
            f"{path}: image {image['id']!r}: exhaustive is {image['exhaustive']!r}; allowed: true and false"
        )


def _require_usable(row: Row, image: Row, known: set[int], path: Path) -> None:
    def describe() -> str:
        return f"{path}: image {image['id']!r}, annotation {row.get('id')!r}"

    first_fault(row, (image["height"], image["width"]), describe)
    if row["category_id"] not in known:
        raise DataError(f"{describe()}: category id {row['category_id']} is not among the file's categories")


def _shrink(row: Row) -> None:
    # Uncompressed RLE is many times the size of compressed RLE and slower to read again and again.
    found = row.get("segmentation")
    if isinstance(found, dict) and isinstance(found.get("counts"), list):
        height, width = found["size"]
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": found["counts"]}, height, width)
        row["segmentation"] = {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def image_pieces(content: dict[str, Any], path: Path) -> Iterator[Piece]:
    """One piece per image with nothing of the annotations: unlabelled data, whatever the file holds."""
    images = rows_of(content, "images", path)
    _by_image(images, [], path)
    for image in images:
        bare = {key: value for key, value in image.items() if key not in FEDERATED}  # they are labels too
        yield Piece({"image": bare, "annotations": []}, PARTIAL)


def file_pack(path: Path, only_images: bool) -> Pack:
    """The pack of a COCO file, written at the first opening of its present content. Raises DataError."""
    key = cache_key(path, "images" if only_images else "instances")
    pack = find_pack(key)
    if pack is None:
        pack = _pack_file(path, key, only_images)
        return_memory()
    return pack


def _pack_file(path: Path, key: str, only_images: bool) -> Pack:
    totals = Totals()
    if only_images:
        content = read_json(path)
        return write_pack(key, image_pieces(content, path), lambda: _meta([], totals))
    content = read_instances(path)
    categories = categories_of(content, path)
    return write_pack(key, group_images(content, path, totals), lambda: _meta(categories, totals))


def folder_pack(folder: Path) -> Pack:
    """The pack of a plain folder: its images, also those in folders below it, in the order of their names, numbered
    from 1. Raises DataError.
    """
    names = [path.relative_to(folder).as_posix() for path in image_files(folder, recursive=True)]
    key = text_key(json.dumps(names), "folder")
    pieces = (
        Piece({"image": {"id": number, "file_name": name}, "annotations": []}, PARTIAL)
        for number, name in enumerate(names, start=1)
    )
    return find_pack(key) or write_pack(key, pieces, lambda: _meta([], Totals()))


def _meta(categories: list[tuple[int, str]], totals: Totals) -> dict[str, Any]:
    classes = {"names": [name for _, name in categories], "ids": [i for i, _ in categories]}
    return {"classes": classes, **totals.to_json()}
