"""How good pseudo-labels are: measured against complete annotations that training never sees."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from leanmask.errors import DataError
from leanmask.evaluation.coco_files import CocoTruth, Identifier, Row
from leanmask.geometry import FloatArray, Frame, transform_boxes
from leanmask.masks import to_rles
from leanmask.records import Instances
from leanmask.rle import Rle, encode_crop

MATCH_IOU = 0.5


@dataclass(frozen=True, eq=False)
class PseudoImage:
    """Pseudo-labels of one image.

    instances: with masks (network frame); `ids` name the labelled objects they belong to, None = they are free.
    frame: how the image lies on the canvas. maskless_ids: the image's labelled objects that have no mask, which a
    pseudo-mask was asked for; None = all objects of the truth.
    """

    image_id: Identifier
    instances: Instances
    frame: Frame
    maskless_ids: frozenset[int] | None = None


@dataclass(frozen=True)
class PseudoQuality:
    """precision: share of pseudo-labels that are right. recall: share of the objects asked for that got a right one.
    mask_iou: mean mask IoU, of all pseudo-masks where they belong to labelled objects, of the matched ones where they
    are free. count: pseudo-labels measured. Fractions; NaN where there is nothing to take the mean of.
    """

    precision: float
    recall: float
    mask_iou: float
    count: int

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON; undefined numbers are null."""
        shares = {"precision": self.precision, "recall": self.recall, "mask_iou": self.mask_iou}
        return {key: None if math.isnan(value) else value for key, value in shares.items()} | {"count": self.count}


@dataclass(frozen=True)
class Tally:
    """One image: IoU that enters the mean, pseudo-labels, right ones, objects asked for, objects found."""

    ious: tuple[float, ...]
    pseudo: int
    right: int
    asked: int
    found: int


def pseudo_quality(
    pseudo: Iterable[PseudoImage], truth: Path | Row | CocoTruth, class_ids: Sequence[int]
) -> PseudoQuality:
    """Precision, recall and mask IoU of pseudo-labels in the images given, in the image frame.

    A pseudo-mask with an id is right when its IoU with that object's true mask is at least 0.5 (MaskBooster's case).
    Free pseudo-objects are matched greedily, best score first, to objects of their class at mask IoU 0.5; one that
    lies in a crowd region and matches nothing is not counted, nor are images that the truth marks `exhaustive: false`.
    Of a true mask only the part that lies on the network's canvas counts, since the teacher sees no more. class_ids:
    the user's category id of each class index. truth: complete annotations. Raises DataError for images or ids that
    the truth does not have and for objects without masks.
    """
    truth = CocoTruth.open(truth)
    return total_quality([_measure(image, truth, class_ids) for image in pseudo])


def total_quality(tallies: Sequence[Tally]) -> PseudoQuality:
    """The quality that the tallies of all images amount to."""
    ious = [iou for tally in tallies for iou in tally.ious]
    count, asked = sum(tally.pseudo for tally in tallies), sum(tally.asked for tally in tallies)
    return PseudoQuality(
        precision=share(sum(tally.right for tally in tallies), count),
        recall=share(sum(tally.found for tally in tallies), asked),
        mask_iou=share(math.fsum(ious), len(ious)),
        count=count,
    )


def _measure(image: PseudoImage, truth: CocoTruth, class_ids: Sequence[int]) -> Tally:
    if image.image_id not in truth.images:
        raise DataError(f"pseudo-labels of image {image.image_id!r}: {truth.name} does not have this image")
    if image.frame.image_size != truth.size(image.image_id):
        raise DataError(
            f"image {image.image_id!r} is (height, width) {image.frame.image_size}, "
            f"{truth.name} says {truth.size(image.image_id)}"
        )
    owned = image.instances.ids is not None
    if not owned and image.image_id not in truth.exhaustive_images:
        return Tally((), pseudo=0, right=0, asked=0, found=0)
    objects = [row for row in truth.by_image.get(image.image_id, []) if not row.get("iscrowd")]
    masks = _seen(truth.rles(objects)[0], image.frame)
    if owned:
        return _measure_owned(image, {row["id"]: mask for row, mask in zip(objects, masks, strict=True)}, truth.name)
    visible = [(row, mask) for row, mask in zip(objects, masks, strict=True) if coco_mask.area(mask) > 0]
    crowds = [row for row in truth.by_image.get(image.image_id, []) if row.get("iscrowd")]
    return _measure_free(image, visible, (crowds, _seen(truth.rles(crowds)[0], image.frame)), class_ids)


def _measure_owned(image: PseudoImage, masks: dict[int, Rle], truth_name: str) -> Tally:
    assert image.instances.ids is not None
    assert image.instances.masks is not None, "pseudo-labels have masks"
    ids = image.instances.ids.tolist()
    wanted = set(masks) if image.maskless_ids is None else set(image.maskless_ids)
    unknown = sorted((wanted | set(ids)) - set(masks))
    if unknown:
        raise DataError(
            f"{truth_name} has no object with annotation id {unknown[0]} in image {image.image_id!r} "
            f"({len(unknown)} unknown ids)"
        )
    asked = {key for key in wanted if coco_mask.area(masks[key]) > 0}
    best = dict.fromkeys(asked, 0.0)
    ious = []
    for key, mask in zip(ids, to_rles(image.instances.masks, image.frame), strict=True):
        if key in asked:
            ious.append(float(coco_mask.iou([mask], [masks[key]], [0])[0, 0]))
            best[key] = max(best[key], ious[-1])
    right = sum(iou >= MATCH_IOU for iou in ious)
    found = sum(iou >= MATCH_IOU for iou in best.values())
    return Tally(tuple(ious), pseudo=len(ious), right=right, asked=len(asked), found=found)


def _measure_free(
    image: PseudoImage, objects: list[tuple[Row, Rle]], crowds: tuple[list[Row], list[Rle]], class_ids: Sequence[int]
) -> Tally:
    instances = image.instances
    assert instances.masks is not None, "pseudo-objects have masks"
    masks = list(to_rles(instances.masks, image.frame))
    classes = [class_ids[index] for index in instances.categories.tolist()]
    scores = np.zeros(len(masks)) if instances.scores is None else instances.scores.double().cpu().numpy()
    return match_free((masks, classes, scores), objects, crowds)


def match_free(
    pseudo: tuple[list[Rle], list[Any], FloatArray],
    objects: list[tuple[Row, Rle]],
    crowds: tuple[list[Row], list[Rle]],
) -> Tally:
    """Match free pseudo-objects (masks, the user's category ids, scores) of one image greedily to its objects."""
    masks, classes, scores = pseudo
    overlaps = _overlaps(masks, classes, [row for row, _ in objects], [mask for _, mask in objects])
    in_crowd = np.any(_overlaps(masks, classes, *crowds) >= MATCH_IOU, axis=1).tolist()
    free = np.ones(len(objects), dtype=bool)
    ious, counted = [], 0
    for place in np.argsort(-scores, kind="stable"):
        candidates = np.where(free, overlaps[place], -1.0)
        best = int(candidates.argmax()) if candidates.size else -1
        matched = best >= 0 and candidates[best] >= MATCH_IOU
        if matched:
            free[best] = False
            ious.append(float(candidates[best]))
        counted += bool(matched or not in_crowd[place])
    return Tally(tuple(ious), pseudo=counted, right=len(ious), asked=len(objects), found=len(ious))


def _overlaps(masks: list[Rle], classes: list[Any], rows: list[Row], others: list[Rle]) -> FloatArray:
    """(pseudo, truth) mask IoU, -1 between different classes; for a crowd, the share of the pseudo-mask in it."""
    if not masks or not others:
        return np.zeros((len(masks), len(others)))
    ious = np.asarray(coco_mask.iou(masks, others, [int(bool(row.get("iscrowd"))) for row in rows]))
    same = np.array([[key == row["category_id"] for row in rows] for key in classes])
    return np.where(same, ious, -1.0)


def _seen(masks: Sequence[Rle], frame: Frame) -> list[Rle]:
    """Masks (image frame) cut to the part of the image that lies on the canvas."""
    height, width = frame.image_size
    canvas = np.array([[0.0, 0.0, frame.canvas_size[1], frame.canvas_size[0]]])
    x0, y0, x1, y1 = (round(edge) for edge in transform_boxes(canvas, frame.inverse)[0].tolist())
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if (x0, y0, x1, y1) == (0, 0, width, height):
        return list(masks)
    w, h = max(x1 - x0, 0), max(y1 - y0, 0)
    window = encode_crop(np.ones((h, w), dtype=np.uint8), (x0, y0, w, h), frame.image_size)
    return [coco_mask.merge([mask, window], intersect=True) for mask in masks]


def share(part: float, whole: int) -> float:
    return part / whole if whole else math.nan
