"""COCO's masks without tensors: polygons and run lengths of the image frame, cut out, resampled and encoded.

Letters: h w rows and columns of one crop, H W rows and columns of an image. A `region` is (x0, y0, width, height) in
whole pixels. RLE is COCO's: column-major runs, `{"size": [H, W], "counts": bytes}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

from leanmask.errors import DataError
from leanmask.geometry import FloatArray, transform_boxes, transform_points

Rle = dict[str, Any]  # {"size": [H, W], "counts": bytes}
Segmentation = list[FloatArray] | Rle  # polygons, each (vertices, 2) xy in pixels, or an RLE
Region = tuple[int, int, int, int]  # x0, y0, width, height
ByteArray = npt.NDArray[np.uint8]


def decode_counts(counts: bytes | str | Sequence[int]) -> npt.NDArray[np.int64]:
    """Run lengths of an RLE, compressed (COCO's 6-bit text) or already a list; zeros first. Raises DataError when they
    are broken.
    """
    if not isinstance(counts, bytes | str):
        return np.asarray(counts, dtype=np.int64)
    return _decode_text(counts.encode() if isinstance(counts, str) else bytes(counts))


@lru_cache(maxsize=4)  # bounds and crop of one mask are asked for in a row
def _decode_text(text: bytes) -> npt.NDArray[np.int64]:
    raw = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if raw.size == 0:
        return raw
    if raw.min() < 0 or raw.max() > 63 or raw[-1] & 0x20:
        raise DataError("RLE counts hold characters that COCO's encoding does not have, or end inside a number")
    ends = np.flatnonzero((raw & 0x20) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    position = np.arange(raw.size) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((raw & 0x1F) << (5 * position), starts)
    negative = (raw[ends] & 0x10) != 0
    numbers[negative] -= 1 << (5 * (position[ends][negative] + 1))
    # From the fourth number on, each is the difference to the one two places before it.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    numbers.flags.writeable = False
    return numbers


def rle_crop(rle: Rle, region: Region) -> ByteArray:
    """The (h, w) part of an RLE mask inside `region`, without decoding the whole image; outside the image it is 0."""
    height, width = rle["size"]
    x0, y0, w, h = region
    out = np.zeros((h, w), dtype=np.uint8)
    left, right, top, bottom = _overlap(region, height, width)
    first, last = left * height, right * height
    edges = np.clip(np.cumsum(decode_counts(rle["counts"])), first, last)
    lengths = np.diff(edges, prepend=first)
    filled = np.repeat(np.arange(len(lengths)) % 2, lengths)
    strip = np.zeros(last - first, dtype=np.uint8)
    strip[: filled.size] = filled
    columns = strip.reshape(right - left, height).T
    out[top - y0 : bottom - y0, left - x0 : right - x0] = columns[top:bottom]
    return out


def _overlap(region: Region, height: int, width: int) -> tuple[int, int, int, int]:
    """Part of a region inside an image, as left, right, top, bottom; both ends are the same where there is none."""
    x0, y0, w, h = region
    left, top = max(x0, 0), max(y0, 0)
    return left, max(min(x0 + w, width), left), top, max(min(y0 + h, height), top)


def polygon_crop(polygons: Sequence[FloatArray], region: Region) -> ByteArray:
    """Rasterise polygons (each (V, 2) xy pixels), COCO's way, inside `region` only; parts are united."""
    x0, y0, w, h = region
    if w <= 0 or h <= 0:
        return np.zeros((max(h, 0), max(w, 0)), dtype=np.uint8)
    shifted = [(np.asarray(polygon) - (x0, y0)).reshape(-1).tolist() for polygon in polygons]
    return np.asarray(coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(shifted, h, w))), dtype=np.uint8)


def segmentation_bounds(segmentation: Segmentation) -> tuple[float, float, float, float] | None:
    """Tight xyxy bounds of a mask in the image frame, pixels; None when it is empty."""
    if isinstance(segmentation, dict):
        return _rle_bounds(segmentation)
    if not segmentation:
        return None
    points = np.concatenate(segmentation)
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def _rle_bounds(rle: Rle) -> tuple[float, float, float, float] | None:
    height = int(rle["size"][0])
    edges = np.cumsum(decode_counts(rle["counts"]))
    starts, ends = edges[: len(edges) // 2 * 2 : 2], edges[1::2]
    kept = ends > starts
    if not kept.any():
        return None
    starts, ends = starts[kept], ends[kept] - 1
    first, last = starts // height, ends // height
    wraps = bool((first != last).any())  # a run over a column's end covers its last and the next one's first row
    top = 0 if wraps else int((starts % height).min())
    bottom = height if wraps else int((ends % height).max()) + 1
    return float(first.min()), float(top), float(last.max() + 1), float(bottom)


def network_crop(
    segmentation: Segmentation, matrix: FloatArray, canvas_size: tuple[int, int]
) -> tuple[ByteArray, Region]:
    """Rasterise a mask of the image frame on the network's canvas, as a crop around its bounds.

    matrix: (2, 3) axis-aligned, image to network frame. canvas_size: (H, W) pixels. Returns the (h, w) crop of 0/1 and
    its region; (0, 0) in size when nothing of the mask lies on the canvas. Polygons are mapped exactly; RLE is
    resampled (antialiased, at 0.5).
    """
    nothing = np.zeros((0, 0), dtype=np.uint8), (0, 0, 0, 0)
    bounds = segmentation_bounds(segmentation)
    region = None if bounds is None else _region_around(transform_boxes(np.array([bounds]), matrix)[0], canvas_size)
    if bounds is None or region is None:
        return nothing
    if isinstance(segmentation, dict):
        crop = _resample_rle(segmentation, bounds, matrix, region)
    else:
        crop = polygon_crop([transform_points(polygon, matrix) for polygon in segmentation], region)
    return (crop, region) if crop.any() else nothing


def _region_around(box: FloatArray, canvas_size: tuple[int, int]) -> Region | None:
    height, width = canvas_size
    x0, y0 = max(int(np.floor(box[0])), 0), max(int(np.floor(box[1])), 0)
    x1, y1 = min(int(np.ceil(box[2])), width), min(int(np.ceil(box[3])), height)
    return (x0, y0, x1 - x0, y1 - y0) if x1 > x0 and y1 > y0 else None


def _resample_rle(rle: Rle, bounds: tuple[float, float, float, float], matrix: FloatArray, region: Region) -> ByteArray:
    pad = 2 + int(np.ceil(1 / min(abs(matrix[0, 0]), abs(matrix[1, 1]))))  # what antialiasing may look at
    x0, y0 = int(bounds[0]) - pad, int(bounds[1]) - pad
    w, h = int(bounds[2]) + pad - x0, int(bounds[3]) + pad - y0
    source = rle_crop(rle, (x0, y0, w, h))
    rx, ry, rw, rh = region
    (sx, _, tx), (_, sy, ty) = matrix
    left, right = sorted(float(edge - tx) / sx - x0 for edge in (rx, rx + rw))
    top, bottom = sorted(float(edge - ty) / sy - y0 for edge in (ry, ry + rh))
    box = (max(left, 0.0), max(top, 0.0), min(right, float(w)), min(bottom, float(h)))
    picture = Image.fromarray(source * np.uint8(255))
    crop = np.asarray(picture.resize((rw, rh), Image.Resampling.BILINEAR, box=box)) >= 128
    return np.ascontiguousarray(crop[:, ::-1] if matrix[0, 0] < 0 else crop).astype(np.uint8)


def encode_crop(crop: ByteArray, region: Region, size: tuple[int, int]) -> Rle:
    """Compressed RLE of an image of `size` (H, W) that is 0 but for the (h, w) crop at `region`; parts outside the
    image are cut off.
    """
    height, width = size
    x0, y0 = region[:2]
    left, right, top, bottom = _overlap(region, height, width)
    line = np.zeros((right - left) * height + 2, dtype=np.bool_)  # a 0 at both ends, so that every run has two edges
    strip = line[1:-1].reshape(right - left, height)  # column-major: one row here is one column there
    strip[:, top:bottom] = crop[top - y0 : bottom - y0, left - x0 : right - x0].T != 0
    edges = np.flatnonzero(line[1:] != line[:-1]) + left * height
    counts = np.diff(np.concatenate([[0], edges[edges < height * width], [height * width]])).tolist()
    return dict(coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width))
