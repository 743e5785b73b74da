"""Simulates the person who clicks: classified points in a box, a point for an object, and mistakes near the boundary.

Everything is in the image frame. Letters: P points, H W rows and columns of the image. Pixel (x, y) is column x, row y.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from leanmask.data.annotation import Size, segmentation_of
from leanmask.data.withholding.chance import stable_number
from leanmask.errors import DataError
from leanmask.geometry import FloatArray
from leanmask.rle import Rle, decode_counts, rle_crop

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
NEAR_BOUNDARY = 0.1  # of a box's shorter side: how far from the boundary a biased point may lie


def rle_of(row: dict[str, Any], size: Size) -> Rle:
    """The mask of a COCO annotation as RLE of the whole image of `size` (H, W); polygons are rasterised COCO's way."""
    segmentation = segmentation_of(row)
    assert segmentation is not None, "the caller made sure that there is a mask"
    if isinstance(segmentation, dict):
        return segmentation
    height, width = size
    parts = [polygon.reshape(-1).tolist() for polygon in segmentation]
    return dict(coco_mask.merge(coco_mask.frPyObjects(parts, height, width)))


def labels_at(rle: Rle, pixels_xy: IntArray) -> IntArray:
    """(P,) 1 where the pixel belongs to the mask, else 0, for (P, 2) pixel indices inside the image."""
    position = pixels_xy[:, 0] * rle["size"][0] + pixels_xy[:, 1]
    edges = np.cumsum(decode_counts(rle["counts"]))
    return np.searchsorted(edges, position, side="right") % 2


def random_pixels(bbox_xywh: list[float], size: Size, count: int, seed: int, annotation_id: int) -> IntArray:
    """(count, 2) pixel indices, uniform in the box and rounded down, as detectron2's PointSup tool makes them;
    duplicates are possible.

    They depend on seed, annotation id and box alone, and fewer points are the first of more. Raises DataError when the
    box lies outside the image.
    """
    low, high = _corners(bbox_xywh, size)
    if (low >= high).any():
        raise DataError(f"bbox {bbox_xywh} lies outside the image of {size[1]} x {size[0]} pixels")
    rng = np.random.default_rng(stable_number(seed, "points", annotation_id))
    pixels = np.floor(low + rng.random((count, 2)) * (high - low)).astype(np.int64)
    return np.minimum(pixels, [size[1] - 1, size[0] - 1])


def _corners(bbox_xywh: list[float], size: Size) -> tuple[FloatArray, FloatArray]:
    """(2,) and (2,) xy of a box's first and last corner, cut at the image's edge."""
    x, y, width, height = (float(number) for number in bbox_xywh)
    return np.maximum([x, y], 0.0), np.minimum([x + width, y + height], [float(size[1]), float(size[0])])


def biased_pixels(pixels_xy: IntArray, near_xy: IntArray, bias: float, seed: int, annotation_id: int) -> IntArray:
    """(P, 2) pixel indices of which each is replaced, with probability `bias`, by one of the (M, 2) `near_xy`.

    Which ones, and by what, depends on seed, annotation id and `near_xy` alone: fewer points are the first of more, and
    a larger bias replaces those of a smaller one in the same way and then others. Without `near_xy` nothing changes.
    """
    if not len(near_xy):
        return pixels_xy
    rng = np.random.default_rng(stable_number(seed, "bias", annotation_id))
    chance, choice = rng.random((len(pixels_xy), 2)).T
    return np.where((chance < bias)[:, None], near_xy[(choice * len(near_xy)).astype(np.int64)], pixels_xy)


def pixels_near_boundary(rle: Rle, bbox_xywh: list[float]) -> IntArray:
    """(M, 2) indices of the box's pixels that are no farther than `NEAR_BOUNDARY` of the box's shorter side, and at
    least 1 px, from the nearest pixel on the other side of the mask's boundary; none where the box has no boundary.
    """
    size = (int(rle["size"][0]), int(rle["size"][1]))
    low, high = _corners(bbox_xywh, size)
    reach = max(NEAR_BOUNDARY * float((high - low).min()), 1.0)
    # Pixels beyond the box can be what a pixel within is near to.
    first = np.maximum(np.floor(low) - np.floor(reach), 0).astype(np.int64)
    last = np.minimum(np.ceil(high) + np.floor(reach), [size[1], size[0]]).astype(np.int64)
    inside = rle_crop(rle, (int(first[0]), int(first[1]), *(last - first).tolist())).astype(bool)
    near = np.where(inside, _within(~inside, reach), _within(inside, reach))
    rows, columns = np.nonzero(near)
    pixels = np.stack([columns, rows], axis=1) + first
    return pixels[((pixels >= np.floor(low)) & (pixels < np.ceil(high))).all(axis=1)]


def _within(mask: BoolArray, reach: float) -> BoolArray:
    """(h, w) whether a pixel of the mask lies within `reach` pixels. Distances along the rows first, then down."""
    height, width = mask.shape
    columns = np.arange(width)
    before = np.maximum.accumulate(np.where(mask, columns, -np.inf), axis=1)
    after = np.minimum.accumulate(np.where(mask, columns, np.inf)[:, ::-1], axis=1)[:, ::-1]
    across = np.minimum(columns - before, after - columns)
    near = np.zeros((height, width), dtype=np.bool_)
    for down in range(min(int(reach), height - 1) + 1):
        close = across <= math.sqrt(reach**2 - down**2)
        near[: height - down] |= close[down:]
        near[down:] |= close[: height - down]
    return near


def mass_centre(rle: Rle) -> FloatArray | None:
    """(2,) continuous xy of the mean of the mask's pixel centres, PointWSSIS's point; it may lie outside a concave
    object. None when the mask is empty.
    """
    pixels = _mask_pixels(rle)
    return pixels.mean(axis=0) + 0.5 if len(pixels) else None


def innermost_pixel(rle: Rle) -> IntArray | None:
    """(2,) index of the pixel of a mask that is farthest from every pixel outside, to a pixel (the first of several);
    None when the mask is empty. What lies beyond the image counts as outside.
    """
    x, y, width, height = (int(number) for number in coco_mask.toBbox(rle))
    if not width:
        return None
    inside = np.pad(rle_crop(rle, (x, y, width, height)), 1).astype(bool)
    deepest, reach, too_far = inside, 0, min(width, height)
    while too_far - reach > 1:
        middle = (reach + too_far) // 2
        deep = inside & ~_within(~inside, middle)
        if deep.any():
            deepest, reach = deep, middle
        else:
            too_far = middle
    row, column = np.argwhere(deepest)[0].tolist()
    return np.array([x + column - 1, y + row - 1], dtype=np.int64)


def random_inside(rle: Rle, seed: int, annotation_id: int) -> FloatArray | None:
    """(2,) continuous xy of the centre of a random pixel of the mask; None when the mask is empty."""
    pixels = _mask_pixels(rle)
    if not len(pixels):
        return None
    rng = np.random.default_rng(stable_number(seed, "point", annotation_id))
    return pixels[rng.integers(len(pixels))] + 0.5


def random_beside(rle: Rle, seed: int, annotation_id: int) -> FloatArray | None:
    """(2,) continuous xy of the centre of a random pixel that is not of the mask but in its box, grown by
    `NEAR_BOUNDARY` of its shorter side, and at least 1 px, on every side: a click that missed. None when there is none,
    or no mask.
    """
    x, y, width, height = (int(number) for number in coco_mask.toBbox(rle))
    if not width:
        return None
    margin = max(math.floor(NEAR_BOUNDARY * min(width, height)), 1)
    low = np.maximum([x - margin, y - margin], 0)
    high = np.minimum([x + width + margin, y + height + margin], [rle["size"][1], rle["size"][0]])
    rows, columns = np.nonzero(rle_crop(rle, (int(low[0]), int(low[1]), *(high - low).tolist())) == 0)
    if not len(rows):
        return None
    choice = np.random.default_rng(stable_number(seed, "beside", annotation_id)).integers(len(rows))
    return np.array([columns[choice], rows[choice]]) + low + 0.5


def _mask_pixels(rle: Rle) -> IntArray:
    edges = np.cumsum(decode_counts(rle["counts"]))
    starts, ends = edges[0::2], edges[1::2]
    starts = starts[: len(ends)]
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    position = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
    return np.stack([position // rle["size"][0], position % rle["size"][0]], axis=1)


def boundary_distances(rle: Rle, pixels_xy: IntArray) -> FloatArray:
    """(P,) distance in pixels from each pixel to the nearest one on the other side of the boundary; infinite
    when there is none inside the mask's bounds, the points' and one pixel around them.
    """
    x, y, width, height = (int(n) for n in coco_mask.toBbox(rle))
    bounds = np.array([[x, y], [x + width - 1, y + height - 1]]) if width else pixels_xy
    spots = np.concatenate([bounds, pixels_xy])
    low = np.maximum(spots.min(axis=0) - 1, 0)
    high = np.minimum(spots.max(axis=0) + 2, [rle["size"][1], rle["size"][0]])
    crop = rle_crop(rle, (int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1]))).astype(bool)
    edge_xy, edge_inside = _edge_pixels(crop)
    local = pixels_xy - low
    inside = crop[local[:, 1], local[:, 0]]
    squared = ((local[:, None] - edge_xy[None]) ** 2).sum(axis=2).astype(np.float64)
    squared[inside[:, None] == edge_inside[None]] = np.inf
    return np.sqrt(squared.min(axis=1, initial=np.inf))


def _edge_pixels(crop: npt.NDArray[np.bool_]) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    # The nearest pixel of the other label always has a direct neighbour of one's own label, so these are enough.
    edge = np.zeros_like(crop)
    across, down = crop[:, 1:] != crop[:, :-1], crop[1:] != crop[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    rows, columns = np.nonzero(edge)
    return np.stack([columns, rows], axis=1), crop[rows, columns]
