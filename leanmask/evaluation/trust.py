"""How far the qualities of pseudo-labels can be trusted: class quality, mask quality and their product against the true
IoU and the true class (PL-DC, figure 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy.stats import spearmanr

from leanmask.errors import DataError
from leanmask.evaluation.coco_files import CocoTruth, Identifier, Row
from leanmask.evaluation.pseudo_quality import PseudoQuality, Tally, match_free, total_quality
from leanmask.geometry import FloatArray
from leanmask.masks import Rle
from leanmask.paths import as_path, image_path

QUALITIES = ("class_quality", "mask_quality", "product")
BINS = 10


@dataclass(frozen=True)
class Bin:
    """Pseudo-objects whose quality lies in [low, high) (the last bin has its end too). mask_iou: mean IoU with the
    object that each overlaps most, whatever its class. right_class: share that have that object's class.
    """

    low: float
    high: float
    count: int
    mask_iou: float
    right_class: float


@dataclass(frozen=True)
class Trust:
    """overall: precision, recall and IoU. bins: of each of `QUALITIES`, from 0 to 1, those that are not empty.
    iou_correlation, class_correlation: Spearman's rank correlation of each quality with the true IoU, and with having
    the right class; NaN where one of them does not vary. left_out: pseudo-objects in other images than
    those with exhaustive truth.
    """

    overall: PseudoQuality
    bins: dict[str, list[Bin]]
    iou_correlation: dict[str, float]
    class_correlation: dict[str, float]
    left_out: int

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON; undefined numbers are null."""

        def known(value: float) -> float | None:
            return None if math.isnan(value) else round(value, 5)

        return {
            "overall": self.overall.to_json(),
            "bins": {name: [asdict(found) for found in bins] for name, bins in self.bins.items()},
            "iou_correlation": {name: known(value) for name, value in self.iou_correlation.items()},
            "class_correlation": {name: known(value) for name, value in self.class_correlation.items()},
            "left_out": self.left_out,
        }


@dataclass(frozen=True, eq=False)
class _Measured:
    """One image: qualities (N, 3), IoU with the object that overlaps most and whether its class is right (N,)."""

    qualities: FloatArray
    ious: FloatArray
    right: FloatArray
    tally: Tally


def quality(pseudo: str | Path, truth: str | Path) -> Trust:
    """Measure a file that `leanmask pseudo` wrote against complete annotations of the same images.

    Images are found by file name and classes by name, since ids may differ; images that the truth does not have, or
    marks as not exhaustive, are left out. Raises DataError for a file without qualities, when no image is left, for a
    name that two images share, and for classes that the truth does not have.
    """
    found, known = CocoTruth.open(as_path(pseudo)), CocoTruth.open(as_path(truth))
    images = _same_images(found, known)
    classes = _same_classes(found, known)
    usable = [key for key, other in images.items() if other in known.exhaustive_images]
    if not usable:
        raise DataError(
            f"none of the {len(found.images)} images of {found.name} is exhaustively annotated in {known.name}, which "
            f"knows {len(images)} of them by name"
        )
    measured = [_measure(found, key, known, images[key], classes) for key in usable]
    qualities, ious, right = (
        np.concatenate([getattr(image, name) for image in measured]) for name in ("qualities", "ious", "right")
    )
    columns = dict(zip(QUALITIES, qualities.T, strict=True))
    return Trust(
        overall=total_quality([image.tally for image in measured]),
        bins={name: _bins(values, ious, right) for name, values in columns.items()},
        iou_correlation={name: _correlation(values, ious) for name, values in columns.items()},
        class_correlation={name: _correlation(values, right) for name, values in columns.items()},
        left_out=len(found.annotations) - len(ious),
    )


def _measure(
    found: CocoTruth, image: Identifier, known: CocoTruth, other: Identifier, classes: dict[Identifier, Identifier]
) -> _Measured:
    rows = found.by_image.get(image, [])
    if found.size(image) != known.size(other):
        raise DataError(
            f"image {image!r} of {found.name} is (height, width) {found.size(image)}, {known.name} says "
            f"{known.size(other)}"
        )
    qualities = np.array([_qualities(row, found.name) for row in rows]).reshape(-1, len(QUALITIES))
    masks, objects = found.rles(rows)[0], known.by_image.get(other, [])
    crowds = [row for row in objects if row.get("iscrowd")]
    objects = [row for row in objects if not row.get("iscrowd")]
    told = [classes[row["category_id"]] for row in rows]
    shapes = known.rles(objects)[0]
    tally = match_free(
        (masks, told, qualities[:, 2]), list(zip(objects, shapes, strict=True)), (crowds, known.rles(crowds)[0])
    )
    ious, right = _closest(masks, told, shapes, [row["category_id"] for row in objects])
    return _Measured(qualities, ious, right, tally)


def _closest(
    masks: Sequence[Rle], told: Sequence[Identifier], shapes: Sequence[Rle], classes: Sequence[Identifier]
) -> tuple[FloatArray, FloatArray]:
    """IoU of each mask with the object that it overlaps most, and 1 where it has that object's class."""
    if not masks or not shapes:
        return np.zeros(len(masks)), np.zeros(len(masks))
    overlaps = np.asarray(coco_mask.iou(list(masks), list(shapes), [0] * len(shapes)))
    best, ious = overlaps.argmax(1), overlaps.max(1)
    same = np.array([own == classes[at] for own, at in zip(told, best, strict=True)])
    return ious, (same & (ious > 0)).astype(float)


def _bins(values: FloatArray, ious: FloatArray, right: FloatArray) -> list[Bin]:
    index = np.minimum((values * BINS).astype(int), BINS - 1)
    return [
        Bin(at / BINS, (at + 1) / BINS, int(own.sum()), float(ious[own].mean()), float(right[own].mean()))
        for at in range(BINS)
        if (own := index == at).any()
    ]


def _correlation(values: FloatArray, outcome: FloatArray) -> float:
    if len(values) < 2 or np.ptp(values) == 0 or np.ptp(outcome) == 0:
        return math.nan
    return float(spearmanr(values, outcome).statistic)


def _qualities(row: Row, name: str) -> tuple[float, float, float]:
    """Class quality, mask quality and their product."""
    for key in QUALITIES[:2]:
        value = row.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise DataError(
                f"annotation {row.get('id')!r} of {name} has the {key} {value!r}; 0 to 1 is expected, as `leanmask "
                "pseudo` writes it"
            )
    own_class, own_mask = (float(row[key]) for key in QUALITIES[:2])
    return own_class, own_mask, own_class * own_mask


def _same_images(found: CocoTruth, known: CocoTruth) -> dict[Identifier, Identifier]:
    """Of each image of `found` that `known` has, the id there. Folders in front of a name may differ."""
    by_name: dict[str, list[Identifier]] = {}
    for key, image in known.images.items():
        by_name.setdefault(image_path(Path(), str(image.get("file_name"))).name, []).append(key)
    images = {}
    for key, image in found.images.items():
        name = str(image_path(Path(), str(image.get("file_name"))))
        same = by_name.get(Path(name).name, [])
        if len(same) > 1:
            same = [other for other in same if _ends_alike(name, str(known.images[other].get("file_name")))]
        if len(same) > 1:
            raise DataError(
                f"image {key!r} of {found.name} is {name}; {known.name} has {len(same)} images of that name"
            )
        if same:
            images[key] = same[0]
    return images


def _ends_alike(one: str, other: str) -> bool:
    short, long = sorted((Path(one).parts, Path(other).parts), key=len)
    return long[len(long) - len(short) :] == short


def _same_classes(found: CocoTruth, known: CocoTruth) -> dict[Identifier, Identifier]:
    by_name = {name: key for key, name in known.categories.items()}
    used = {row["category_id"] for row in found.annotations}
    unknown = sorted(found.categories[key] for key in used if found.categories[key] not in by_name)
    if unknown:
        raise DataError(f"{known.name} does not have the classes {', '.join(unknown)} of {found.name}")
    return {key: by_name[found.categories[key]] for key in used}
