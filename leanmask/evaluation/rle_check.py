"""Checks many COCO masks at once before they reach compiled code, which trusts its input and reads beyond memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from leanmask.errors import DataError
from leanmask.rle import Rle

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
_DIGITS = 7  # of 5 bits: no image has as many pixels as more could say
_CHUNK_ROWS = 20_000  # masks checked together: enough to be fast, little enough to stay small


def checked_rles(
    segmentations: Sequence[Any], sizes: Sequence[tuple[int, int]], name: Callable[[int], str]
) -> tuple[list[Rle], IntArray]:
    """Compressed RLEs of polygons or RLEs in images of `sizes` (height, width), and their areas in pixels.

    name: says in messages which mask position `i` is. Raises DataError for the first mask that is broken.
    """
    rles = []
    for place, (segmentation, size) in enumerate(zip(segmentations, sizes, strict=True)):
        try:
            rles.append(_to_rle(segmentation, *size))
        except (ValueError, TypeError, OverflowError) as error:
            raise DataError(f"{name(place)} has a mask that cannot be used: {error}") from None
    areas = np.zeros(len(rles), dtype=np.int64)
    for start in range(0, len(rles), _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        areas[chunk], broken = rle_areas(rles[chunk])
        if broken.any():
            place = start + int(np.flatnonzero(broken)[0])
            raise DataError(f"{name(place)} has broken RLE counts: they do not describe {sizes[place]} pixels")
    return rles, areas


def rle_areas(rles: Sequence[Rle]) -> tuple[IntArray, BoolArray]:
    """Pixels set in each compressed RLE, and which RLEs are broken (decoding those could read beyond the image).

    All counts are decoded at once; the areas of broken ones mean nothing. Format: COCO's maskApi, rleFrString.
    """
    texts = [_as_bytes(rle["counts"]) for rle in rles]
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    raw = np.frombuffer(b"".join(texts), dtype=np.uint8) - np.uint8(48)  # what lies below wraps to above 63
    ends = np.flatnonzero((raw & 0x20) == 0)
    last = np.cumsum(lengths) - 1
    broken = lengths == 0
    broken[~broken] |= (raw[last[~broken]] & 0x20) != 0
    width = np.diff(ends, prepend=-1)
    unreadable = np.concatenate([np.flatnonzero(raw > 63), ends[width > _DIGITS]])
    broken[np.searchsorted(last, unreadable)] = True
    if broken.any() or not texts:
        return np.zeros(len(rles), dtype=np.int64), broken
    values = _stored_numbers(raw, ends, width)
    begin = np.concatenate([[0], np.searchsorted(ends, last[:-1]) + 1])
    pixels = np.array([rle["size"][0] * rle["size"][1] for rle in rles], dtype=np.int64)
    return _sum_runs(values, begin, pixels)


def _stored_numbers(raw: npt.NDArray[np.uint8], ends: IntArray, width: IntArray) -> IntArray:
    """Numbers of 5 bits a character, the lowest first; the last character's fifth bit is the sign."""
    starts = ends - width + 1
    values = (raw[starts] & 0x1F).astype(np.int64)
    for digit in range(1, int(width.max())):
        longer = np.flatnonzero(width > digit)
        values[longer] |= (raw[starts[longer] + digit] & 0x1F).astype(np.int64) << (5 * digit)
    negative = np.flatnonzero(raw[ends] & 0x10)
    values[negative] -= np.int64(1) << (5 * width[negative])
    return values


def _sum_runs(values: IntArray, begin: IntArray, pixels: IntArray) -> tuple[IntArray, BoolArray]:
    """Areas from stored numbers, each row's from `begin` on: from a row's fourth number on, each is the difference to
    the one two places before it.
    """
    sums = np.empty_like(values)  # running sums with step 2 over all rows at once; a row's base is taken off again
    sums[0::2], sums[1::2] = np.cumsum(values[0::2]), np.cumsum(values[1::2])
    alike, other = sums[begin], np.concatenate([[0], sums[begin[1:] - 1]])  # bases of even and of odd places in a row
    odd_begin = begin % 2 == 1
    places = np.append(begin, len(values))
    runs = sums
    for parity in (0, 1):
        base = np.where(odd_begin == bool(parity), alike, other)
        runs[parity::2] -= np.repeat(base, np.diff((places + 1 - parity) // 2))
    runs[begin] = values[begin]
    totals = np.add.reduceat(runs, begin)
    broken = totals != pixels
    if (runs < 0).any():
        broken |= np.minimum.reduceat(runs, begin) < 0
    runs[1::2] *= -1
    balance = np.add.reduceat(runs, begin)  # even minus odd places of the whole array
    return (totals - np.where(odd_begin, -balance, balance)) // 2, broken


def _to_rle(segmentation: Any, height: int, width: int) -> Rle:
    """One mask as compressed RLE; its counts are not looked into. Raises ValueError or TypeError with the reason."""
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if size is None or list(size) != [height, width]:
            raise ValueError(f"its size is {size}, the image has (height, width) {(height, width)}")
        if isinstance(counts, str | bytes):
            return segmentation
        runs = np.asarray(counts)
        if runs.ndim != 1 or runs.dtype.kind not in "iu" or runs.min(initial=0) < 0 or runs.sum() != height * width:
            raise ValueError("its counts are not whole numbers that add up to the image's pixels")
        return dict(coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width))
    parts = [np.asarray(part, dtype=np.float64) for part in segmentation]
    polygons = [part.reshape(-1).tolist() for part in parts if part.size >= 6 and part.size % 2 == 0]
    if not polygons:
        raise ValueError("no polygon has three points or more")
    if not all(np.isfinite(part).all() for part in parts):
        raise ValueError("a polygon has coordinates that are not finite")
    return dict(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))


def _as_bytes(counts: str | bytes) -> bytes:
    return counts.encode("ascii", "replace") if isinstance(counts, str) else counts
