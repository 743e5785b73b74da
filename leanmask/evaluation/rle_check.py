"""Checks many COCO masks at once before they reach compiled code, which trusts its input and reads beyond memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from leanmask.errors import DataError
from leanmask.masks import Rle

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
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
    raw = np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.int64) - 48
    last = np.cumsum(lengths) - 1
    owner = np.repeat(np.arange(len(rles)), lengths)
    broken = lengths == 0
    broken[owner[(raw < 0) | (raw > 63)]] = True
    broken[~broken] |= (raw[last[~broken]] & 0x20) != 0
    if broken.any():
        return np.zeros(len(rles), dtype=np.int64), broken
    ends = np.flatnonzero((raw & 0x20) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    width = ends - starts + 1
    owner = owner[ends]
    if (width > 7).any():  # more than 35 bits: no image has as many pixels, and shifts would overflow
        broken[owner[width > 7]] = True
        return np.zeros(len(rles), dtype=np.int64), broken
    digit = np.arange(raw.size) - np.repeat(starts, width)
    values = np.add.reduceat((raw & 0x1F) << (5 * digit), starts) if raw.size else raw
    values -= np.where(raw[ends] & 0x10, np.int64(1) << (5 * width), 0)
    return _sum_runs(values, owner, np.array([size[0] * size[1] for size in (rle["size"] for rle in rles)]))


def _sum_runs(values: IntArray, owner: IntArray, pixels: IntArray) -> tuple[IntArray, BoolArray]:
    """Areas from stored numbers: from the fourth on, each is the difference to the one two places before it."""
    numbers = np.bincount(owner, minlength=len(pixels))
    begin = np.cumsum(numbers) - numbers
    position = np.arange(len(values)) - begin[owner]
    pairs = numbers // 2  # the first number stands alone; the others are (object, background) pairs
    pair_begin = np.cumsum(pairs) - pairs
    table = np.zeros((int(pairs.sum()) + 1, 2), dtype=np.int64)  # row 0 stays zero
    later = position > 0
    place = pair_begin[owner[later]] + (position[later] - 1) // 2 + 1, (position[later] - 1) % 2
    table[place] = values[later]
    sums = np.cumsum(table, axis=0)
    runs = np.zeros_like(table)
    runs[place] = (sums - sums[np.repeat(np.append(0, pair_begin), np.append(1, pairs))])[place]
    totals = np.cumsum(runs, axis=0)
    row_totals = totals[pair_begin + pairs] - totals[pair_begin]
    first = values[begin] if len(values) else values
    broken = (first < 0) | (first + row_totals.sum(axis=1) != pixels)
    broken[owner[later][runs[place] < 0]] = True
    return row_totals[:, 0], broken


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
