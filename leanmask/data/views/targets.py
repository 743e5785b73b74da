"""From what the annotation file says about an image to what the network may learn from its canvas.

An object that the crop leaves too little of is not learned, and it does not become background either: where it can
still be seen is an ignore region. Letters: N objects, P points, R ignore regions, H W rows and columns of the canvas.
Unless said otherwise coordinates are in the network frame, pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from leanmask.data.coco import ImageRecord, ObjectRecord
from leanmask.geometry import FloatArray, Frame, transform_boxes, transform_points
from leanmask.masks import Crops
from leanmask.records import Instances, Target
from leanmask.rle import ByteArray, Region, network_crop, segmentation_bounds

SMALLEST_SIDE_PX = 1.0  # boxes that are smaller on the canvas cannot be learned
SMALLEST_VISIBLE_FRACTION = 0.05  # of the area of a box without a mask, whose visible part is not known any better
HUMAN = "human"  # provenance of what a person drew
NO_CROP: tuple[ByteArray, Region] = (np.zeros((0, 0), dtype=np.uint8), (0, 0, 0, 0))

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PlacedObject:
    """An annotated object on the canvas. box: (4,) xyxy, NaN where unknown. crop: (h, w) 0/1 at `region`, tight; empty
    without a mask. points: (P, 2), labels: (P,) 1 object, 0 background, -1 not on the canvas or hidden. rough: crop and
    region of the mask that is to be improved.
    """

    source: ObjectRecord
    box: FloatArray
    crop: ByteArray
    region: Region
    points: FloatArray
    labels: IntArray
    rough: tuple[ByteArray, Region] = NO_CROP


@dataclass(frozen=True, eq=False)
class Lost:
    """An object that cannot be learned from this canvas. remains: xyxy where it may still be seen. unknown: it may be
    seen, but nobody knows where."""

    remains: FloatArray | None = None
    unknown: bool = False


@dataclass(frozen=True, eq=False)
class Placement:
    """All that is known about one canvas. ignore: xyxy boxes, (4,) each. known_categories: see `Target`."""

    objects: tuple[PlacedObject, ...]
    ignore: tuple[FloatArray, ...]
    exhaustive: bool
    known_categories: tuple[int, ...] | None = None


def place(record: ImageRecord, frame: Frame) -> Placement:
    """Map an image's annotations onto the canvas.

    Masks are rasterised as tight crops. Boxes: that of the mask that a person drew, else the given one, clipped. Not
    learned, but ignored, are boxes under 1 px of side, boxes without a mask of which less than 5 % are left, and masks
    that vanish in scaling. Masks that are cropped to nothing go without a trace. An object known by one point alone
    whose point is cropped may still be visible, so the image is no longer exhaustive.
    """
    placed = [_place_object(item, frame) for item in record.objects]
    lost = [item for item in placed if isinstance(item, Lost)]
    crowds = transform_boxes(np.asarray(record.crowd_boxes_xyxy, dtype=np.float64).reshape(-1, 4), frame.matrix)
    remains = [clip_box(box, frame.canvas_size) for box in crowds] + [item.remains for item in lost]
    objects = (item for item in placed if isinstance(item, PlacedObject))
    return Placement(
        objects=tuple(_with_rough(item, frame) for item in objects),
        ignore=tuple(box for box in remains if box is not None),
        exhaustive=record.exhaustive and not any(item.unknown for item in lost),
        known_categories=record.known_categories,
    )


def _place_object(source: ObjectRecord, frame: Frame) -> PlacedObject | Lost:
    points, labels = _place_points(source, frame)
    if source.segmentation is not None and source.provenance == HUMAN:
        return _place_mask(source, frame, points, labels)
    full = transform_boxes(source.box_xyxy[None], frame.matrix)[0]
    if not np.isfinite(full).all():
        known = bool((labels == 1).any())
        return PlacedObject(source, full, *NO_CROP, points, labels) if known else Lost(unknown=True)
    box = clip_box(full, frame.canvas_size)
    if box is None:
        return Lost()
    if smallest_side(box) < SMALLEST_SIDE_PX or _area(box) < SMALLEST_VISIBLE_FRACTION * _area(full):
        return Lost(remains=box)
    # A predicted mask does not move the box that it was predicted for.
    drawn = NO_CROP
    if source.segmentation is not None:
        drawn = tighten(*network_crop(source.segmentation, frame.matrix, frame.canvas_size))
    return PlacedObject(source, box, *drawn, points, labels)


def _with_rough(placed: PlacedObject, frame: Frame) -> PlacedObject:
    if not placed.source.rough:
        return placed
    crop = network_crop(placed.source.rough[-1], frame.matrix, frame.canvas_size)
    return dataclasses.replace(placed, rough=tighten(*crop))


def _place_mask(source: ObjectRecord, frame: Frame, points: FloatArray, labels: IntArray) -> PlacedObject | Lost:
    segmentation = source.segmentation
    bounds = None if segmentation is None else segmentation_bounds(segmentation)
    if segmentation is None or bounds is None:
        return Lost()
    full = transform_boxes(np.array([bounds]), frame.matrix)[0]
    crop, region = tighten(*network_crop(segmentation, frame.matrix, frame.canvas_size))
    if crop.size == 0:
        inside = clip_box(full, frame.canvas_size)
        return Lost(remains=inside if inside is not None and np.array_equal(inside, full) else None)
    box = mask_box(region, full, frame.canvas_size)
    if smallest_side(box) < SMALLEST_SIDE_PX:
        return Lost(remains=box)
    return PlacedObject(source, box, crop, region, points, labels)


def _place_points(source: ObjectRecord, frame: Frame) -> tuple[FloatArray, IntArray]:
    points = transform_points(source.points_xy.reshape(-1, 2), frame.matrix)
    height, width = frame.canvas_size
    inside = ((points >= 0) & (points < (width, height))).all(axis=1)
    return points, np.where(inside, source.point_labels, -1)


def mask_box(region: Region, known: FloatArray, canvas_size: tuple[int, int]) -> FloatArray:
    """(4,) box of a mask whose tight crop lies at `region`: exact where the object's `known` box, (4,), says so.

    A side of `known` that agrees with the pixels to within one is more precise than they are; any other was cut off or
    covered.
    """
    x, y, w, h = region
    tight = np.array([x, y, x + w, y + h], dtype=np.float64)
    height, width = canvas_size
    return np.where(np.abs(known - tight) < 1, np.clip(known, 0, (width, height, width, height)), tight)


def tighten(crop: ByteArray, region: Region) -> tuple[ByteArray, Region]:
    """Cut the empty rim off an (h, w) crop; (0, 0) in size when all of it is empty."""
    rows, columns = np.flatnonzero(crop.any(axis=1)), np.flatnonzero(crop.any(axis=0))
    if len(rows) == 0:
        return NO_CROP
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return crop[top:bottom, left:right], (region[0] + left, region[1] + top, right - left, bottom - top)


def clip_box(box: FloatArray, canvas_size: tuple[int, int]) -> FloatArray | None:
    """(4,) xyxy box within the canvas; None when nothing of it is left."""
    height, width = canvas_size
    clipped = np.clip(box, 0, (width, height, width, height))
    return clipped if smallest_side(clipped) > 0 else None


def smallest_side(box: FloatArray) -> float:
    """The shorter side of a (4,) xyxy box, pixels."""
    return float(min(box[2] - box[0], box[3] - box[1]))


def _area(box: FloatArray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def to_target(placement: Placement) -> Target:
    """The record that models learn from. Points are padded to a common P with label -1; None where nobody has any."""
    objects = placement.objects
    points, labels = _stack_points(objects)
    sources = [item.source for item in objects]
    instances = Instances(
        boxes=_boxes([item.box for item in objects]),
        categories=torch.tensor([source.category for source in sources], dtype=torch.int64),
        supervision=torch.tensor([int(source.supervision) for source in sources], dtype=torch.int64),
        weights=torch.tensor([source.weight for source in sources], dtype=torch.float32),
        masks=_crops([(item.crop, item.region) for item in objects]),
        rough=_rough_crops(objects),
        points=points,
        point_labels=labels,
        ids=torch.tensor([source.id for source in sources], dtype=torch.int64),
        provenance=tuple(source.provenance for source in sources),
    )
    known = placement.known_categories
    return Target(
        instances=instances,
        exhaustive=placement.exhaustive,
        ignore=_boxes(placement.ignore),
        known_categories=None if known is None else torch.tensor(known, dtype=torch.int64),
    )


def _boxes(boxes: Sequence[FloatArray]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(boxes, dtype=np.float32).reshape(-1, 4))


def _rough_crops(objects: Sequence[PlacedObject]) -> Crops | None:
    """None where nobody has one, which is the rule."""
    if all(item.rough is NO_CROP for item in objects):
        return None
    return _crops([item.rough for item in objects])


def _crops(placed: Sequence[tuple[ByteArray, Region]]) -> Crops:
    data = np.concatenate([np.zeros(0, dtype=np.uint8), *(crop.reshape(-1) for crop, _ in placed)])
    regions = torch.tensor([region for _, region in placed], dtype=torch.int64).reshape(-1, 4)
    return Crops(torch.from_numpy(data), regions)


def _stack_points(objects: Sequence[PlacedObject]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    most = max((len(item.labels) for item in objects), default=0)
    if most == 0:
        return None, None
    points = np.zeros((len(objects), most, 2), dtype=np.float32)
    labels = np.full((len(objects), most), -1, dtype=np.int64)
    for row, item in enumerate(objects):
        points[row, : len(item.labels)] = item.points
        labels[row, : len(item.labels)] = item.labels
    return torch.from_numpy(points), torch.from_numpy(labels)
