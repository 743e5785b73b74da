"""What the formats of drawing tools share: what was left out, classes by name, masks as arrays and back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from leanmask.data.annotation import Row, segmentation_of
from leanmask.data.withholding.clicks import rle_of
from leanmask.errors import DataError
from leanmask.geometry import FloatArray
from leanmask.rle import ByteArray, Rle, encode_crop, rle_crop, segmentation_bounds

Left = Counter[str]  # what could not be said in the other format, and how often
HUMAN = "human"
BACKGROUND = "background"  # the label of a point that is not on its object


def names_of(content: Mapping[str, Any]) -> dict[int, str]:
    """Class names by id. Raises DataError where a class is called like the label of background points."""
    names = {row["id"]: row["name"] for row in content["categories"]}
    if BACKGROUND in names.values():
        raise DataError(
            f"a class is called '{BACKGROUND}', the label of points beside an object in other tools; rename it"
        )
    return names


def rows_by_image(content: Mapping[str, Any]) -> dict[Any, list[Row]]:
    """The annotations of every image, in the file's order."""
    found: dict[Any, list[Row]] = {image["id"]: [] for image in content["images"]}
    for row in content["annotations"]:
        found[row["image_id"]].append(row)
    return found


def is_pseudo(row: Row) -> bool:
    """Whether a network made an annotation, by what it says of itself."""
    return str(row.get("provenance", HUMAN)) != HUMAN


def mask_of(row: Row, size: tuple[int, int]) -> tuple[ByteArray, tuple[int, int]]:
    """The mask of a row as the (h, w) crop of its bounds, and x, y of the crop's corner; size (H, W) of the image."""
    rle = rle_of(row, size)
    bounds = segmentation_bounds(rle)
    if bounds is None:
        return np.zeros((0, 0), dtype=np.uint8), (0, 0)
    x0, y0, x1, y1 = (int(edge) for edge in bounds)
    return rle_crop(rle, (x0, y0, x1 - x0, y1 - y0)), (x0, y0)


def segmentation_from(mask: ByteArray, corner: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """COCO's RLE, counts as text, of an (h, w) crop at a corner (x, y) of an image of `size` (H, W)."""
    height, width = mask.shape
    rle: Rle = encode_crop(mask, (*corner, width, height), size)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def single_polygon(row: Row) -> FloatArray | None:
    """The (V, 2) polygon of a mask of one part, None for any other mask: several parts are one object here alone."""
    found = segmentation_of(row)
    return found[0] if isinstance(found, list) and len(found) == 1 else None


def rotated(box: tuple[float, float, float, float], degrees: float, pivot: tuple[float, float]) -> list[list[float]]:
    """The corners of a box x, y, width, height turned clockwise, as the screen shows it, about a pivot; pixels."""
    x, y, w, h = box
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    px, py = pivot
    corners = ((x - px, y - py), (x + w - px, y - py), (x + w - px, y + h - py), (x - px, y + h - py))
    return [[px + u * cos - v * sin, py + u * sin + v * cos] for u, v in corners]


def with_region(row: Row, size: tuple[int, int]) -> Row:
    """A row with the box and area that follow from its segmentation; size (H, W) of the image."""
    segmentation = segmentation_of(row)
    bounds = None if segmentation is None else segmentation_bounds(segmentation)
    if bounds is None:
        return row
    x0, y0, x1, y1 = bounds
    return {**row, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": float(coco_mask.area(rle_of(row, size)))}


def row_runs(mask: ByteArray) -> list[int]:
    """Run lengths of an (h, w) mask row by row, zeros first."""
    flat = np.concatenate([[0], mask.reshape(-1) != 0, [2]]).astype(np.int8)
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(length) for length in np.diff(np.concatenate([[0], edges]))]


def mask_from_runs(runs: Sequence[int], shape: tuple[int, int], where: str) -> ByteArray:
    """The (h, w) mask of run lengths, row by row, zeros first. Raises DataError when they do not fill it."""
    lengths = np.asarray(runs, dtype=np.int64)
    if (lengths < 0).any() or lengths.sum() != shape[0] * shape[1]:
        raise DataError(f"{where}: the runs of a mask add up to {lengths.sum()} of its {shape[0] * shape[1]} pixels")
    values: npt.NDArray[np.uint8] = np.repeat((np.arange(len(lengths)) % 2).astype(np.uint8), lengths)
    return values.reshape(shape)


class Ids:
    """Gives annotations the ids that they had, and new ones to the others."""

    def __init__(self, wanted: Iterable[int]) -> None:
        self._next = max(wanted, default=0)
        self._used: set[int] = set()

    def take(self, wanted: int | None) -> int:
        """`wanted` if it is free, else a number above all."""
        if wanted is None or wanted in self._used:
            self._next += 1
            wanted = self._next
        self._used.add(wanted)
        return wanted


def categories_from(names: Iterable[str], known: Mapping[str, int] | None) -> dict[str, int]:
    """Class ids by name: those of a known data set, or numbers from 1 in the order of the names. Raises DataError for a
    class that the known data set does not have.
    """
    found = sorted(set(names))
    if known is None:
        return {name: number for number, name in enumerate(found, start=1)}
    unknown = [name for name in found if name not in known]
    if unknown:
        raise DataError(f"class '{unknown[0]}' is not among the known classes: {', '.join(known)}")
    return dict(known)
