"""Which objects, or images, look alike: small descriptions of pixels, put into groups. No network is needed.

A description is the picture of the box, 8 x 8 pixels of each colour, and the box's size and shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from sklearn.cluster import MiniBatchKMeans

from leanmask.data.coco import ImageRecord
from leanmask.data.views.canvas import Exif, UnreadableImage, read_canvas
from leanmask.geometry import FloatArray, Frame

SIDE, SHAPE_WEIGHT = 8, 0.5
MOST_GROUPS, OBJECTS_PER_GROUP = 200, 20

OnProgress = Callable[[int, int], None]


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
) -> list[npt.NDArray[np.int64]]:
    """For every image the group, from 0, of each of its boxes; -1 where the image cannot be read. The same input gives
    the same groups.
    """
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
    groups = _grouped(whole)
    found, start = [], 0
    for own, good in zip(boxes, readable, strict=True):
        count = len(own) if good else 0
        found.append(groups[start : start + count] if good else np.full(len(own), -1, dtype=np.int64))
        start += count
    return found


def _grouped(described: FloatArray) -> npt.NDArray[np.int64]:
    count = min(max(len(described) // OBJECTS_PER_GROUP, 1), MOST_GROUPS)
    if len(described) <= count:
        return np.arange(len(described), dtype=np.int64)
    means = MiniBatchKMeans(count, random_state=0, n_init=1, batch_size=1024)
    return np.asarray(means.fit_predict(described), dtype=np.int64)
