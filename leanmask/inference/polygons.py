"""Masks as polygons, for tools that do not read run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from skimage.measure import find_contours

from leanmask.rle import rle_crop


def to_polygons(rle: dict[str, Any]) -> list[list[float]]:
    """COCO polygons [x, y, x, y, ...] around the parts of an RLE mask, pixels of the image; holes are filled.

    Vertices lie half-way between pixels in and out, to a tenth of a pixel. A mask always has at least one polygon.
    """
    counts = rle["counts"]
    compressed = {"size": rle["size"], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    x, y, width, height = (int(number) for number in coco_mask.toBbox(compressed))
    crop = np.pad(rle_crop(compressed, (x, y, width, height)), 1)
    found = []
    for contour in find_contours(crop.astype(np.float64), 0.5):
        rows, columns = contour[:-1].T
        # Around a part the vertices run one way, around a hole the other.
        area = float(np.dot(columns, np.roll(rows, -1)) - np.dot(rows, np.roll(columns, -1))) / 2
        if area > 0:
            corners = np.stack([columns + x - 0.5, rows + y - 0.5], axis=1)
            found.append(corners.round(1).ravel().tolist())
    return found
