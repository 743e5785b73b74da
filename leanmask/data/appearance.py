"""Which objects, or images, look alike: small descriptions of pixels, put into groups. No network is needed.

A description is the picture of the box, 8 x 8 pixels of each colour, and the box's size and shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.cluster import MiniBatchKMeans

from leanmask.data.coco import ImageRecord
from leanmask.data.views.canvas import Exif, UnreadableImage, read_canvas
from leanmask.geometry import FloatArray, Frame

SIDE, SHAPE_WEIGHT = 8, 0.5
MOST_GROUPS, OBJECTS_PER_GROUP = 200, 20

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Looks:
    """Of N boxes of an image. group: (N,) from 0, -1 where the image cannot be read. typical: (N,) how much each stands
    for others: 1 in the middle of the largest group, half of it at the mean distance from the middle; it grows with the
    square root of the group's size.
    """

    group: npt.NDArray[np.int64]
    typical: FloatArray


def describe(record: ImageRecord, boxes_xyxy: FloatArray, exif: Exif) -> FloatArray:
    """(N, D) descriptions of the parts of an image in (N, 4) boxes, pixels of the image frame. Raises UnreadableImage
    or DataError as reading an image does.
    """
    found = []
    for x0, y0, x1, y1 in boxes_xyxy:
        width, height = max(x1 - x0, 1.0), max(y1 - y0, 1.0)
        scale = (SIDE / width, SIDE / height)
        frame = Frame((record.height, record.width), (SIDE, SIDE), scale, (-x0 * scale[0], -y0 * scale[1]))
        pixels = read_canvas(record.path, frame, exif).reshape(-1) / 255.0
        shape = [np.log(width * height) / 10, np.log(width / height)]
        found.append(np.concatenate([pixels - pixels.mean(), [pixels.mean()], np.asarray(shape) * SHAPE_WEIGHT]))
    return np.asarray(found, dtype=np.float64).reshape(len(boxes_xyxy), -1 if len(found) else 3 * SIDE * SIDE + 3)


def looks(
    records: Sequence[ImageRecord], boxes: Sequence[FloatArray], exif: Exif, on_progress: OnProgress | None = None
) -> list[Looks]:
    """Of every image the groups of its boxes. The same input gives the same groups."""
    described: list[FloatArray] = []
    readable: list[bool] = []
    for number, (record, own) in enumerate(zip(records, boxes, strict=True), start=1):
        try:
            described.append(describe(record, own, exif))
            readable.append(True)
        except UnreadableImage:
            described.append(np.zeros((0, 3 * SIDE * SIDE + 3)))
            readable.append(False)
        if on_progress:
            on_progress(number, len(records))
    whole = np.concatenate(described) if described else np.zeros((0, 1))
    groups, typical = _grouped(whole)
    found, start = [], 0
    for own, good in zip(boxes, readable, strict=True):
        part = slice(start, start + len(own))
        unread = Looks(np.full(len(own), -1, dtype=np.int64), np.zeros(len(own)))
        found.append(Looks(groups[part], typical[part]) if good else unread)
        start += len(own) if good else 0
    return found


def _grouped(described: FloatArray) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """The group of each description, and how typical it is of the group."""
    count = min(max(len(described) // OBJECTS_PER_GROUP, 1), MOST_GROUPS)
    if len(described) <= count:
        return np.arange(len(described), dtype=np.int64), np.ones(len(described))  # too few to tell
    means = MiniBatchKMeans(count, random_state=0, n_init=1, batch_size=1024)
    groups = np.asarray(means.fit_predict(described), dtype=np.int64)
    squared = np.square(described - means.cluster_centers_[groups]).sum(1)
    members = np.bincount(groups, minlength=count)
    mean = np.bincount(groups, weights=squared, minlength=count) / np.maximum(members, 1)
    scale = np.where(squared > 0, mean[groups] + squared, 1.0)
    near = np.where(squared > 0, mean[groups] / scale, 1.0)  # equal pictures are all in the middle
    return groups, near * np.sqrt(members / members.max())[groups]
