"""One annotation row of a COCO file: what it says about its object, and whether it can be used at all.

The row is the user's JSON object as it stands. Everything here is in the image frame, pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from leanmask.errors import DataError
from leanmask.geometry import FloatArray, xywh_to_xyxy
from leanmask.rle import Segmentation, decode_counts, segmentation_bounds
from leanmask.supervision import Supervision

Row = dict[str, Any]
Size = tuple[int, int]  # (height, width), pixels

MOST_IDS = 2**53  # ids of annotations are below it
ROUGH = "rough_segmentations"  # masks that are to be improved, beside the true one
_NUMBERS = {int, float}


@dataclass(frozen=True)
class Fault:
    """Something wrong with one field of a row: a code (the table in docs/data-format.md) and what was found."""

    code: str
    field: str
    message: str


def is_number(value: Any) -> bool:
    """A JSON number; true and false are none."""
    return type(value) in _NUMBERS


def weight_of(row: Row) -> float:
    """Trust in a row from 0 to 1: its `weight`, else its `score`, else 1."""
    weight = row.get("weight", row.get("score"))
    return 1.0 if weight is None else float(weight)


def is_rejected(row: Row) -> bool:
    """Whether a row has weight 0: it is neither object nor background, and no label. The row may have faults."""
    weight = row.get("weight", row.get("score"))
    return is_number(weight) and weight == 0


def is_object(row: Row) -> bool:
    """Whether a row is one object: no crowd, and not rejected (weight 0)."""
    return not row.get("iscrowd") and not is_rejected(row)


def supervision_of(row: Row) -> Supervision:
    """What was labelled: a mask; or classified points; or a box; or one point; or nothing."""
    if row.get("segmentation"):
        return Supervision.MASK
    if row.get("point_coords"):
        return Supervision.POINTS if row.get("bbox") else Supervision.POINT
    if row.get("bbox"):
        return Supervision.BOX
    return Supervision.POINT if row.get("point") else Supervision.NONE


def segmentation_of(row: Row) -> Segmentation | None:
    """Polygons as (V, 2) arrays, or compressed RLE with bytes; None where nothing was drawn. The row has no faults."""
    found = row.get("segmentation")
    if not found:
        return None
    if isinstance(found, list):
        return [np.asarray(part, dtype=np.float64).reshape(-1, 2) for part in found]
    height, width = found["size"]
    if isinstance(found["counts"], list):
        return dict(coco_mask.frPyObjects({"size": [height, width], "counts": found["counts"]}, height, width))
    return {"size": [height, width], "counts": found["counts"].encode("ascii")}


def rough_of(row: Row) -> tuple[Segmentation, ...]:
    """The masks that are to be improved, empty ones left out."""
    found = (segmentation_of({"segmentation": mask}) for mask in row.get(ROUGH) or ())
    return tuple(mask for mask in found if mask is not None)


def points_of(row: Row) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """(P, 2) continuous xy and (P,) labels, 1 object, 0 background.

    `point_coords` are pixel indices as in detectron2's PointSup, so 0.5 is added; `point` is continuous already.
    """
    if row.get("point_coords"):
        points = np.asarray(row["point_coords"], dtype=np.float64).reshape(-1, 2) + 0.5
        return points, np.asarray(row["point_labels"], dtype=np.int64)
    if row.get("point"):
        return np.asarray([row["point"]], dtype=np.float64), np.ones(1, dtype=np.int64)
    return np.zeros((0, 2)), np.zeros(0, dtype=np.int64)


def box_of(row: Row, segmentation: Segmentation | None) -> FloatArray:
    """(4,) xyxy: the row's own box, else the bounds of its mask, else NaN."""
    if row.get("bbox"):
        return xywh_to_xyxy(np.asarray([row["bbox"]], dtype=np.float64))[0]
    bounds = None if segmentation is None else segmentation_bounds(segmentation)
    return np.full(4, np.nan) if bounds is None else np.asarray(bounds)


def faults(row: Row, size: Size | None) -> Iterator[Fault]:
    """Whatever makes the row unusable: wrong types and lengths, numbers that are none, broken RLE, sizes below zero.

    size: (height, width) of the row's image, None when unknown.
    """
    yield from _id_faults(row)
    yield from finite_faults(row)
    yield from _box_faults(row.get("bbox"))
    yield from _segmentation_faults(row.get("segmentation"), size)
    yield from _rough_faults(row.get(ROUGH), size)
    yield from _point_faults(row)
    yield from _weight_faults(row)
    if row.get("iscrowd") not in (None, 0, 1):
        yield Fault("malformed", "iscrowd", f"iscrowd is {row['iscrowd']!r}; allowed: 0 and 1")
    elif row.get("iscrowd") and not row.get("bbox") and not row.get("segmentation"):
        yield Fault("malformed", "iscrowd", "a crowd needs a bbox or a segmentation")


def usable_id(value: Any) -> TypeGuard[int]:
    """Whether an annotation can be called so wherever it goes: browsers and JSON readers keep whole numbers exactly up
    to 2^53, stores of answers from 0 on.
    """
    return type(value) is int and 0 <= value < MOST_IDS


def _id_faults(row: Row) -> Iterator[Fault]:
    if not usable_id(row.get("id")):
        yield Fault("malformed", "id", f"id must be a whole number from 0 to below 2^53, found {row.get('id')!r}")
    if type(row.get("category_id")) is not int:
        yield Fault("malformed", "category_id", f"category_id must be a whole number, found {row.get('category_id')!r}")


def finite_faults(row: Row) -> Iterator[Fault]:
    """Fields of any row that hold NaN, infinity or numbers that no array takes, however deep."""
    for key, value in row.items():
        if not _finite(value):
            yield Fault("not-finite", key, f"{key} holds NaN, infinity or a number beyond all measure")


def _finite(value: Any) -> bool:
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return _finite_sum(value) if _numbers(value) else all(map(_finite, value))
    return not isinstance(value, dict) or all(map(_finite, value.values()))


def _finite_sum(numbers: list[float]) -> bool:
    # One NaN or infinity makes the sum one too; finite numbers of a picture do not overflow.
    try:
        return math.isfinite(sum(numbers))
    except OverflowError:
        return False


def _numbers(value: Any, count: int | None = None) -> bool:
    return isinstance(value, list) and (count is None or len(value) == count) and set(map(type, value)) <= _NUMBERS


def _box_faults(box: Any) -> Iterator[Fault]:
    if box is None or box == []:
        return
    if not _numbers(box, 4):
        yield Fault("malformed", "bbox", f"bbox must be four numbers x, y, width, height, found {_short(box)}")
    elif box[2] <= 0 or box[3] <= 0:
        yield Fault("box-size", "bbox", f"bbox {_short(box)} has no area; width and height must be above 0")


def _segmentation_faults(found: Any, size: Size | None) -> Iterator[Fault]:
    if not found:
        return
    if isinstance(found, dict):
        yield from _rle_faults(found, size)
    elif not isinstance(found, list) or not all(_numbers(part) for part in found):
        yield Fault(
            "malformed", "segmentation", "segmentation must be a list of polygons [[x, y, x, y, ...], ...] or an RLE"
        )
    else:
        for number, part in enumerate(found, start=1):
            if len(part) % 2:
                yield Fault(
                    "polygon-odd",
                    "segmentation",
                    f"polygon {number} has {len(part)} numbers; x and y must come in pairs",
                )
            elif len(part) < 6:
                yield Fault(
                    "polygon-degenerate",
                    "segmentation",
                    f"polygon {number} has {len(part) // 2} points; at least 3 are needed",
                )


def _rough_faults(found: Any, size: Size | None) -> Iterator[Fault]:
    if found is not None and not isinstance(found, list):
        yield Fault("malformed", ROUGH, f"{ROUGH} must be a list of masks, each a list of polygons or an RLE")
        return
    for number, mask in enumerate(found or (), start=1):
        for fault in _segmentation_faults(mask, size):
            yield Fault(fault.code, ROUGH, f"rough mask {number}: {fault.message}")


def _rle_faults(rle: Row, size: Size | None) -> Iterator[Fault]:
    rle_size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(rle_size, list) or len(rle_size) != 2 or not all(isinstance(n, int) and n > 0 for n in rle_size):
        yield Fault("rle-size", "segmentation", f"RLE size must be [height, width], found {_short(rle_size)}")
        return
    if size is not None and tuple(rle_size) != size:
        yield Fault(
            "rle-size", "segmentation", f"RLE size (height, width) is {rle_size} but the image's is {list(size)}"
        )
        return
    if not isinstance(counts, str) and not (isinstance(counts, list) and all(type(n) is int for n in counts)):
        yield Fault("rle-broken", "segmentation", "RLE counts must be a string or a list of whole numbers")
        return
    try:
        runs = decode_counts(counts)
    except (DataError, ValueError, OverflowError):
        yield Fault(
            "rle-broken", "segmentation", "RLE counts hold characters or numbers that COCO's encoding does not have"
        )
        return
    pixels = rle_size[0] * rle_size[1]
    if (runs < 0).any() or runs.sum() != pixels:
        yield Fault(
            "rle-broken",
            "segmentation",
            f"RLE counts must be 0 or more and sum to {pixels} pixels, they sum to {runs.sum()}",
        )


def _point_faults(row: Row) -> Iterator[Fault]:
    coords, labels, point = row.get("point_coords") or [], row.get("point_labels"), row.get("point")
    if point is not None and point != [] and not _numbers(point, 2):
        yield Fault("malformed", "point", f"point must be [x, y], found {_short(point)}")
    if not coords and not labels:
        return
    if not isinstance(coords, list) or not all(_numbers(pair, 2) for pair in coords):
        yield Fault("malformed", "point_coords", "point_coords must be a list of [x, y]")
        return
    if not isinstance(labels, list) or len(labels) != len(coords):
        found = len(labels) if isinstance(labels, list) else "no"
        yield Fault("point-lengths", "point_coords", f"{len(coords)} point_coords but {found} point_labels")
        return
    if any(label not in (0, 1) for label in labels):
        yield Fault(
            "point-label", "point_coords", f"point_labels are {_short(labels)}; allowed: 1 (object) and 0 (background)"
        )
    elif not row.get("bbox") and not row.get("segmentation") and labels != [1]:
        yield Fault(
            "points-without-box",
            "point_coords",
            "several point_coords need a bbox; without one, give a single object point",
        )


def _weight_faults(row: Row) -> Iterator[Fault]:
    for key in ("weight", "score"):
        value = row.get(key)
        if value is not None and not (is_number(value) and 0 <= value <= 1):
            yield Fault("weight-range", key, f"{key} is {_short(value)}; allowed: 0 to 1")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def first_fault(row: Any, size: Size | None, describe: Callable[[], str]) -> None:
    """Raise DataError with the first fault of a row; `describe` names file, image and annotation."""
    fault = next(faults(row, size), None)
    if fault is not None:
        raise DataError(f"{describe()}: {fault.message}; `leanmask check DATA --fix NEW` writes a repaired copy")
