"""What can be wrong with an annotation that is readable: its geometry against its own image, box, mask and points."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from leanmask.data.annotation import Fault, Row, Size, faults, is_number, segmentation_of
from leanmask.geometry import FloatArray, xywh_to_xyxy
from leanmask.rle import segmentation_bounds

SLACK_PX = 1.0  # tools disagree on half pixels and on inclusive edges
MIN_BOX_MASK_IOU = 0.5
WARNINGS = frozenset({"mask-outside", "point-fraction", "point-count", "box-pseudo-mask"})  # of the codes here


def row_faults(row: Row, size: Size | None) -> list[Fault]:
    """All faults of one annotation; size: (height, width) of its image, None when unknown. A field that cannot be read
    takes no part in the geometric checks.
    """
    found = list(faults(row, size))
    not_finite = {fault.field for fault in found if fault.code == "not-finite"}
    found = [fault for fault in found if fault.code == "not-finite" or fault.field not in not_finite]
    broken = {fault.field for fault in found}
    if broken:
        row = {key: value for key, value in row.items() if key not in broken}
    return [*found, *_geometry_faults(row, size)]


def _geometry_faults(row: Row, size: Size | None) -> Iterator[Fault]:
    box = xywh_to_xyxy(np.asarray(row["bbox"]))[0] if row.get("bbox") else None
    if box is not None and size is not None and _outside(box, size):
        height, width = size
        yield Fault("box-outside", "bbox", f"bbox {row['bbox']} reaches out of the image of {width} x {height} pixels")
    yield from _mask_faults(row, box, size)
    yield from _point_faults(row, box, size)


def _mask_faults(row: Row, box: FloatArray | None, size: Size | None) -> Iterator[Fault]:
    found = row.get("segmentation")
    if not found:
        return
    segmentation = segmentation_of(row)
    assert segmentation is not None
    if isinstance(segmentation, list):
        for number, polygon in enumerate(segmentation, start=1):
            if polygon_area(polygon) == 0:
                yield Fault("polygon-degenerate", "segmentation", f"polygon {number} has no area")
                return
    bounds = segmentation_bounds(segmentation)
    if bounds is None:
        yield Fault("mask-empty", "segmentation", "the mask covers no pixel")
        return
    mask_box = np.asarray(bounds)
    if size is not None and _outside(mask_box, size):
        yield Fault("mask-outside", "segmentation", "the mask reaches out of the image; that part is cut off")
    if box is not None and (iou := _grown_iou(box, mask_box)) < MIN_BOX_MASK_IOU:
        shown = [round(float(edge), 1) for edge in (*mask_box[:2], *(mask_box[2:] - mask_box[:2]))]
        # A person's box and mask must agree; where a network's mask does not fit, that says how good the network is.
        # An accepted pseudo-mask is a person's from then on, but it is as exact as the network that drew it.
        drawn = row.get("provenance", "human") == "human" and not row.get("review")
        code = "box-mask" if drawn else "box-pseudo-mask"
        yield Fault(code, "bbox", f"bbox {row['bbox']} disagrees with the mask's bounds {shown} (IoU {iou:.2f})")


def _point_faults(row: Row, box: FloatArray | None, size: Size | None) -> Iterator[Fault]:
    if row.get("point") and size is not None:
        x, y = row["point"]
        if not (0 <= x <= size[1] and 0 <= y <= size[0]):
            yield Fault("point-outside", "point", f"point {row['point']} lies outside the image")
    if not row.get("point_coords"):
        return
    points = np.asarray(row["point_coords"], dtype=np.float64)
    bad = ~points_inside(points, box, size)
    if bad.any():
        first = points[bad][0].tolist()
        yield Fault(
            "point-outside",
            "point_coords",
            f"{bad.sum()} points lie outside the box or the image, the first is {first}",
        )
    if (points != np.floor(points)).any():
        yield Fault(
            "point-fraction", "point_coords", "point_coords are pixel indices (whole numbers); 0.5 is added to them"
        )
    if box is not None and len(points) > (pixels := _pixel_count(box, size)):
        yield Fault(
            "point-count", "point_coords", f"{len(points)} points in a box of {pixels} pixels: some say nothing new"
        )


def points_inside(points: FloatArray, box: FloatArray | None, size: Size | None) -> np.ndarray:
    """(P,) bool for (P, 2) pixel indices: inside the image, and inside the box (xyxy) but for `SLACK_PX`."""
    inside = np.ones(len(points), dtype=bool)
    if size is not None:
        inside &= ((points >= 0) & (points < (size[1], size[0]))).all(axis=1)
    if box is not None:
        centres = points + 0.5
        inside &= ((centres >= box[:2] - SLACK_PX) & (centres <= box[2:] + SLACK_PX)).all(axis=1)
    return inside


def _pixel_count(box: FloatArray, size: Size | None) -> int:
    """The pixels of the image that a box (xyxy) touches."""
    if size is not None:
        box = np.clip(box, 0, [size[1], size[0], size[1], size[0]])
    return int((np.ceil(box[2:]) - np.floor(box[:2])).prod())


def polygon_area(polygon: FloatArray) -> float:
    """Area of one (V, 2) polygon, square pixels; below a millionth it counts as none."""
    x, y = polygon[:, 0] - polygon[0, 0], polygon[:, 1] - polygon[0, 1]
    area = abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
    return area if area > 1e-6 else 0.0


def _outside(box: FloatArray, size: Size) -> bool:
    height, width = size
    x0, y0, x1, y1 = box
    return bool(min(x0, y0) < -SLACK_PX or x1 > width + SLACK_PX or y1 > height + SLACK_PX)


def _grown_iou(first: FloatArray, second: FloatArray) -> float:
    # Both grown by the slack on every side, so that half a pixel does not condemn small objects.
    a, b = first + SLACK_PX * np.array([-1, -1, 1, 1]), second + SLACK_PX * np.array([-1, -1, 1, 1])
    shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


def image_size(image: Row) -> Size | None:
    """(height, width) as the file states it; None when it is no pair of whole numbers above 0."""
    height, width = image.get("height"), image.get("width")
    return (height, width) if all(type(n) is int and n > 0 for n in (height, width)) else None  # type: ignore[return-value]


def category_of(row: Row) -> int | None:
    """The row's category id where it is a number."""
    found = row.get("category_id")
    return found if is_number(found) and isinstance(found, int) else None
