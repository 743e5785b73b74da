"""COCO truth and results for measuring: read, checked, and indexed, so that no broken row reaches a matching routine.

Image, annotation and category ids of the user's file may be anything; matching uses ranks (from 1) in their place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from leanmask.errors import DataError
from leanmask.evaluation.rle_check import IntArray, checked_rles
from leanmask.rle import Rle

Row = dict[str, Any]
Identifier = int | str


@dataclass(frozen=True, eq=False)
class CocoTruth:
    """A COCO annotation file, complete with masks, that predictions are measured against. Ids are the user's.
    supercategories, frequencies ("r", "c" or "f", LVIS): of the categories that have one.
    """

    name: str
    images: dict[Identifier, Row]
    categories: dict[Identifier, str]
    annotations: tuple[Row, ...]
    supercategories: dict[Identifier, str]
    frequencies: dict[Identifier, str] = field(default_factory=dict)

    @staticmethod
    def open(truth: Path | str | Row | CocoTruth) -> CocoTruth:
        """Read a path or take a dict. Raises DataError when it is not COCO or refers to unknown images or classes."""
        if isinstance(truth, CocoTruth):
            return truth
        content, name = (truth, "the truth") if isinstance(truth, dict) else (read_json(truth), str(truth))
        if not isinstance(content, dict):
            raise DataError(f"{name} must be a COCO file (a JSON object), found {_kind(content)}")
        for key in ("images", "annotations", "categories"):
            if not isinstance(content.get(key), list):
                raise DataError(f"{name} is not a COCO annotation file: it has no list '{key}'")
        images = _by_id(content["images"], "image", name, ("width", "height"))
        categories = _by_id(content["categories"], "category", name, ())
        names = {key: str(row.get("name", key)) for key, row in categories.items()}
        for place, row in enumerate(content["annotations"]):
            _check_annotation(row, place, name, images, names)
        above = {key: str(row["supercategory"]) for key, row in categories.items() if row.get("supercategory")}
        frequencies = {key: str(row["frequency"]) for key, row in categories.items() if row.get("frequency")}
        return CocoTruth(name, images, names, tuple(content["annotations"]), above, frequencies)

    @cached_property
    def exhaustive_images(self) -> frozenset[Identifier]:
        """Ids of the images in which everything is annotated; only there is an unmatched prediction wrong."""
        return frozenset(key for key, image in self.images.items() if image.get("exhaustive", True))

    @cached_property
    def by_image(self) -> dict[Identifier, list[Row]]:
        """Annotations of each image that has any, crowds included."""
        groups: dict[Identifier, list[Row]] = {}
        for row in self.annotations:
            groups.setdefault(row["image_id"], []).append(row)
        return groups

    def size(self, image_id: Identifier) -> tuple[int, int]:
        """(height, width) of an image, pixels."""
        return int(self.images[image_id]["height"]), int(self.images[image_id]["width"])

    def rles(self, annotations: Sequence[Row]) -> tuple[list[Rle], IntArray]:
        """Masks of annotations as compressed RLE in the image frame, and their areas in pixels.

        A crowd without a mask covers its box. Raises DataError with the annotation id when an object has no mask or a
        broken one.
        """

        def name(place: int) -> str:
            row = annotations[place]
            return f"annotation {row.get('id')!r} (image {row['image_id']!r}) of {self.name}"

        shapes = [_shape_of(row, self.name) for row in annotations]
        return checked_rles(shapes, [self.size(row["image_id"]) for row in annotations], name)

    def boxes(self, annotations: Sequence[Row]) -> list[list[float]]:
        """COCO boxes x, y, width, height of annotations (image frame, pixels); that of the mask where none is given.

        Raises DataError with the annotation id when an object has neither, or a box that is not four finite numbers.
        """
        boxes: list[list[float] | None] = [_box_of(row, self.name) for row in annotations]
        boxless = [place for place, box in enumerate(boxes) if box is None]
        rles, _ = self.rles([annotations[place] for place in boxless])
        for place, rle in zip(boxless, rles, strict=True):
            boxes[place] = coco_mask.toBbox(rle).tolist()
        return [box for box in boxes if box is not None]

    def areas(self, annotations: Sequence[Row]) -> list[float | None]:
        """The file's own `area` of annotations (pixels), None where it has none. Raises DataError for a broken one."""
        for row in annotations:
            if row.get("area") is not None and not _is_finite(row["area"], ()):
                raise DataError(f"annotation {row.get('id')!r} of {self.name} has the area {row['area']!r}")
        return [None if row.get("area") is None else float(row["area"]) for row in annotations]


def read_json(path: Path | str) -> Any:
    """Content of a JSON file. Raises DataError when it cannot be read or is not JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None


def read_results(results: Path | str | list[Row], truth: CocoTruth, needs: str) -> tuple[list[Row], str]:
    """Rows of a COCO results file, checked against the truth, and the name to use in messages.

    needs: "segmentation" or "bbox", what every row must have (a mask also gives a box). Raises DataError with the
    position of the first row that is not a result, has a score or box that is no number, or belongs to an image or
    class that the truth does not have.
    """
    rows, name = (results, "the results") if isinstance(results, list) else (read_json(results), str(results))
    if not isinstance(rows, list):
        raise DataError(f"{name} must be a list of COCO results, found {_kind(rows)}")
    for place, row in enumerate(rows):
        missing = _missing(row, needs)
        if missing:
            raise DataError(f"result {place} of {name} {missing}")
    _require_known([row["image_id"] for row in rows], truth.images, "image", name, truth.name)
    _require_known([row["category_id"] for row in rows], truth.categories, "category", name, truth.name)
    _require_finite(rows, (), "score", name)
    _require_finite(rows, (4,), "bbox", name)
    return rows, name


def _shape_of(row: Row, file: str) -> Any:
    if row.get("segmentation"):
        return row["segmentation"]
    box = _box_of(row, file) if row.get("iscrowd") else None
    if box is not None:
        x, y, w, h = box
        return [[x, y, x, y + h, x + w, y + h, x + w, y]]
    raise DataError(
        f"annotation {row.get('id')!r} (image {row['image_id']!r}) of {file} has no mask, so it cannot be scored; "
        'give complete annotations, measure boxes (--iou box), or mark the image with "exhaustive": false to leave '
        "it out"
    )


def _box_of(row: Row, file: str) -> list[float] | None:
    if "bbox" not in row:
        return None
    if not _is_finite(row["bbox"], (4,)):
        raise DataError(
            f"annotation {row.get('id')!r} (image {row['image_id']!r}) of {file} has the box {row['bbox']!r}"
        )
    return [float(number) for number in row["bbox"]]


def _check_annotation(
    row: Any, place: int, name: str, images: dict[Identifier, Row], categories: dict[Identifier, str]
) -> None:
    if not isinstance(row, dict):
        raise DataError(f"annotation number {place} of {name} is not a JSON object")
    for key, known in (("image_id", images), ("category_id", categories)):
        if not _is_id(row.get(key)) or row[key] not in known:
            raise DataError(f"annotation {row.get('id')!r} of {name} has the unknown {key} {row.get(key)!r}")


def _by_id(rows: list[Any], what: str, name: str, numbers: tuple[str, ...]) -> dict[Identifier, Row]:
    found: dict[Identifier, Row] = {}
    for place, row in enumerate(rows):
        if not isinstance(row, dict) or not _is_id(row.get("id")):
            raise DataError(f"{what} number {place} of {name} has no usable id")
        if row["id"] in found:
            raise DataError(f"{what} id {row['id']!r} stands twice in {name}")
        for key in numbers:
            if not isinstance(row.get(key), int | float) or row[key] < 1 or row[key] % 1:
                raise DataError(f"{what} {row['id']!r} of {name} has the {key} {row.get(key)!r}; whole pixels expected")
        found[row["id"]] = row
    return dict(sorted(found.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _missing(row: Any, needs: str) -> str | None:
    if not isinstance(row, dict):
        return f"is not a JSON object but {_kind(row)}"
    for key in ("image_id", "category_id", "score"):
        if key not in row:
            return f"has no '{key}'"
    if not row.get("segmentation") and (needs == "segmentation" or "bbox" not in row):
        return f"(image {row['image_id']!r}) has no '{needs}'"
    return None


def _require_known(
    found: list[Any], known: Iterable[Identifier], what: str, results_name: str, truth_name: str
) -> None:
    allowed = set(known)
    unusable = next((place for place, value in enumerate(found) if not _is_id(value)), None)
    if unusable is not None:
        raise DataError(f"result {unusable} of {results_name} has the {what} id {found[unusable]!r}")
    unknown = [place for place, value in enumerate(found) if value not in allowed]
    if unknown:
        ids = list(dict.fromkeys(found[place] for place in unknown))
        shown = ", ".join(repr(value) for value in ids[:5]) + (", ..." if len(ids) > 5 else "")
        raise DataError(
            f"{len(unknown)} of {len(found)} results of {results_name} have {what} ids that {truth_name} does not "
            f"have (first at position {unknown[0]}): {shown}"
        )


def _require_finite(rows: list[Row], shape: tuple[int, ...], key: str, name: str) -> None:
    """Where a row has `key`, it is of `shape`, finite, and a box has no negative size."""
    found = [row[key] for row in rows if key in row]
    if not found or _is_finite(found, (len(found), *shape)):
        return
    for place, row in enumerate(rows):
        if key in row and not _is_finite(row[key], shape):
            raise DataError(f"result {place} of {name} has the {key} {row[key]!r}; finite numbers are expected")


def _is_finite(value: Any, shape: tuple[int, ...]) -> bool:
    try:
        array = np.array(value)
    except (TypeError, ValueError):
        return False
    if array.dtype.kind not in "iuf" or array.shape != shape or not np.isfinite(array).all():
        return False
    return shape[-1:] != (4,) or bool((array[..., 2:] >= 0).all())


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
