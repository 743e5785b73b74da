"""CopyPaste: objects with true masks, cut out of one canvas and pasted onto another (Ghiasi et al., CVPR 2021; rules of
mmdetection, as MaskBooster uses it for its rarest setting).

Both canvases have the same size and their own random geometry; both views share the result. Letters: H W rows and
columns of the canvas. Coordinates are in the network frame, pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leanmask.data.coco import ObjectRecord
from leanmask.data.views.targets import (
    HUMAN,
    SMALLEST_SIDE_PX,
    Lost,
    PlacedObject,
    Placement,
    mask_box,
    smallest_side,
    tighten,
)
from leanmask.geometry import FloatArray, Frame
from leanmask.rle import ByteArray, Region
from leanmask.supervision import Supervision

MOST_PASTED = 100
# mmdetection's thresholds hold at its usual 800 px; lengths shrink with the canvas, areas with its square.
_REFERENCE_SIDE_PX = 800.0
_BOX_MOVED_PX = 10.0
_MASK_LEFT_PX = 300.0
_COVERED_FRACTION = 0.5


@dataclass(frozen=True, eq=False)
class Scene:
    """One image on its canvas: (H, W, 3) uint8 pixels, how it lies there, and what is known about it."""

    pixels: ByteArray
    frame: Frame
    placement: Placement


def can_be_pasted(source: ObjectRecord) -> bool:
    """Whether a person has drawn the object's mask, and nobody has rejected it."""
    return source.weight > 0 and source.supervision == Supervision.MASK and source.provenance == HUMAN


def paste(onto: Scene, donor: Scene, rng: np.random.Generator, box_covered: float = _COVERED_FRACTION) -> Scene:
    """Paste a random non-empty subset (at most 100) of the donor's objects with true masks, cut to where `onto` has
    content.

    What comes along: donor objects with a true mask that lies for the better half under a chosen one (a window with its
    wall) are pasted too; other donor objects so covered become ignore regions. What gets covered: masks lose their
    hidden pixels, and go when their box moves by more than 10 px and no more than 300 mask pixels are left (at 800 px;
    scaled); a box without a mask goes when `box_covered` of it is hidden, since nobody knows where what is left of its
    object ends; points become -1. What goes becomes an ignore region where it may still be seen. Returns `onto` itself
    when there is nothing to paste.
    """
    chosen, carried = _choose(donor, rng)
    pasted = [item for item in (_within(item, onto.frame) for item in chosen) if item is not None]
    if not pasted:
        return onto
    cover = _cover(pasted, onto.frame.canvas_size)
    pixels = onto.pixels.copy()
    np.copyto(pixels, donor.pixels, where=cover[..., None].view(bool))
    left = [_uncovered(item, cover, box_covered) for item in onto.placement.objects]
    lost = [item for item in left if isinstance(item, Lost)]
    remains = [item.remains for item in lost if item.remains is not None]
    placement = Placement(
        objects=(*(item for item in left if isinstance(item, PlacedObject)), *pasted),
        ignore=(*onto.placement.ignore, *remains, *carried),
        exhaustive=onto.placement.exhaustive and not any(item.unknown for item in lost),
        known_categories=onto.placement.known_categories,
    )
    return Scene(pixels, onto.frame, placement)


def _choose(donor: Scene, rng: np.random.Generator) -> tuple[list[PlacedObject], list[FloatArray]]:
    """Objects to paste, and the boxes of what is carried along without a mask."""
    objects = donor.placement.objects
    able = [i for i, item in enumerate(objects) if item.crop.size and can_be_pasted(item.source)]
    if not able:
        return [], []
    count = int(rng.integers(1, min(len(able), MOST_PASTED) + 1))
    chosen = set(rng.choice(able, size=count, replace=False).tolist())
    cover = _cover([objects[i] for i in chosen], donor.frame.canvas_size)
    carried = list(donor.placement.ignore)
    for i, item in enumerate(objects):
        if i in able and i not in chosen and _mask_share(item, cover) > _COVERED_FRACTION:
            chosen.add(i)
        elif i not in able:
            carried.append(item.box)
    return [objects[i] for i in sorted(chosen)], [box for box in carried if box_share(box, cover) >= _COVERED_FRACTION]


def _within(item: PlacedObject, frame: Frame) -> PlacedObject | None:
    """The part of a donor's object that lies on the content of `frame`; its points elsewhere become -1."""
    x0, y0, x1, y1 = (round(edge) for edge in frame.content_box)
    x, y, w, h = item.region
    left, top, right, bottom = max(x, x0), max(y, y0), min(x + w, x1), min(y + h, y1)
    if left >= right or top >= bottom:
        return None
    part = item.crop[top - y : bottom - y, left - x : right - x]
    shown = ((item.points >= (x0, y0)) & (item.points < (x1, y1))).all(axis=1)
    item = dataclasses.replace(item, labels=np.where(shown, item.labels, -1))
    return _with_crop(item, part, (left, top, right - left, bottom - top), frame.canvas_size)


def _with_crop(
    item: PlacedObject, crop: ByteArray, region: Region, canvas_size: tuple[int, int]
) -> PlacedObject | None:
    crop, region = tighten(crop, region)
    if crop.size == 0:
        return None
    box = mask_box(region, item.box, canvas_size)
    if smallest_side(box) < SMALLEST_SIDE_PX:
        return None
    return dataclasses.replace(item, crop=crop, region=region, box=box)


def _cover(items: Sequence[PlacedObject], canvas_size: tuple[int, int]) -> ByteArray:
    """(H, W) 0/1, all masks united."""
    cover = np.zeros(canvas_size, dtype=np.uint8)
    for item in items:
        x, y, w, h = item.region
        cover[y : y + h, x : x + w] |= item.crop
    return cover


def _mask_share(item: PlacedObject, cover: ByteArray) -> float:
    x, y, w, h = item.region
    return float((item.crop & cover[y : y + h, x : x + w]).sum() / item.crop.sum())


def box_share(box: FloatArray, cover: ByteArray) -> float:
    """Share of a (4,) xyxy box that an (H, W) 0/1 cover hides, in whole pixels; 0 for a box that is not known."""
    if not np.isfinite(box).all():
        return 0.0
    x0, y0, x1, y1 = (round(float(edge)) for edge in box)
    part = cover[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
    return float(part.mean()) if part.size else 0.0


def _uncovered(item: PlacedObject, cover: ByteArray, box_covered: float) -> PlacedObject | Lost:
    """What a paste leaves of an object below it."""
    item = dataclasses.replace(item, labels=_visible_labels(item, cover))
    if item.crop.size:
        return _uncovered_mask(item, cover)
    if not np.isfinite(item.box).all():
        return item if (item.labels == 1).any() else Lost(unknown=True)
    return item if box_share(item.box, cover) < box_covered else Lost(remains=item.box)


def _uncovered_mask(item: PlacedObject, cover: ByteArray) -> PlacedObject | Lost:
    x, y, w, h = item.region
    crop = item.crop & (1 - cover[y : y + h, x : x + w])
    pixels = int(crop.sum())
    if pixels == int(item.crop.sum()):
        return item
    left = _with_crop(item, crop, item.region, cover.shape)
    scale = min(max(cover.shape) / _REFERENCE_SIDE_PX, 1.0)
    if left is None:
        return Lost(remains=_region_box(tighten(crop, item.region)[1]) if pixels else None)
    moved = float(np.abs(left.box - item.box).max())
    if moved <= _BOX_MOVED_PX * scale or pixels > _MASK_LEFT_PX * scale**2:
        return left
    return Lost(remains=left.box)


def _region_box(region: Region) -> FloatArray:
    x, y, w, h = region
    return np.array([x, y, x + w, y + h], dtype=np.float64)


def _visible_labels(item: PlacedObject, cover: ByteArray) -> np.ndarray:
    labels = item.labels.copy()
    on_canvas = np.flatnonzero(labels >= 0)
    columns, rows = np.floor(item.points[on_canvas]).astype(np.int64).T
    labels[on_canvas[cover[rows, columns] != 0]] = -1
    return labels
