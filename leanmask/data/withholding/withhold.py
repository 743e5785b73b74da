"""Takes labels away: what each protocol of the benchmark keeps of a fully labelled COCO file. Pure functions, no files.

Chance comes from (seed, id) alone, so protocols nest: the masks of 1 % are among those of 10 %, the points of points-5
are the first of points-10, and semi-P, weak-semi-P and mixed-T put the images in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from leanmask.costs import LabelCosts
from leanmask.data.annotation import Row, box_of, is_object, is_rejected, segmentation_of
from leanmask.data.withholding.chance import count_of, shuffled
from leanmask.data.withholding.clicks import (
    biased_pixels,
    labels_at,
    mass_centre,
    pixels_near_boundary,
    random_inside,
    random_pixels,
    rle_of,
)
from leanmask.data.withholding.mistakes import with_displaced_points, with_wrong_labels
from leanmask.data.withholding.protocols import FORMS, VOC_CLASSES, Parts, Source
from leanmask.errors import ConfigError, DataError, suggest
from leanmask.geometry import xyxy_to_xywh

POINTS_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")  # of detectron2's PointSup files
KEPT_KEYS = (
    "id",
    "image_id",
    "category_id",
    "iscrowd",
)  # of an object without mask; anything else might tell its shape


def withhold(source: Source) -> Parts:
    """What `source.protocol` leaves of the source. Raises DataError, naming file, image and annotation, where a label
    that the protocol starts from is missing, and ConfigError for options that the protocol does not have.
    """
    options, kind = source.options, source.protocol.kind
    for name, form in (("point_noise", "points"), ("point_bias", "points"), ("point_displaced", "weak-semi")):
        if getattr(options, name) and kind != form:
            raise ConfigError(f"{name} is for {FORMS[form]}; protocol '{source.protocol.name}' has no use for it")
    if options.mask_classes and kind != "partial":
        raise ConfigError(f"mask_classes is for partial; protocol '{source.protocol.name}' does not choose by class")
    if kind != "boxes":
        _require_masks(source)
    return _PROTOCOLS[kind](source)


def row_seconds(row: Row, costs: LabelCosts = LabelCosts()) -> float:
    """Annotation seconds of one row, as `LabelCosts.object_seconds` prices what it holds."""
    return costs.object_seconds(
        mask=bool(row.get("segmentation")),
        box=bool(row.get("bbox")),
        points=len(row.get("point_coords") or ()) + bool(row.get("point")),
        crowd=bool(row.get("iscrowd")),
    )


def _require_masks(source: Source) -> None:
    for _, row in source.objects():
        if not row.get("segmentation"):
            name = source.protocol.name
            raise DataError(f"{source.where(row)} has no mask; protocol '{name}' starts from a mask of every object")


# Rows: what is kept of one annotation.


def _bbox(source: Source, row: Row) -> list[float]:
    if row.get("bbox"):
        return list(row["bbox"])
    box = box_of(row, segmentation_of(row))
    if np.isnan(box).any():
        raise DataError(
            f"{source.where(row)} has no box; protocol '{source.protocol.name}' keeps the box of every object"
        )
    return [float(number) for number in xyxy_to_xywh(box[None])[0]]


def _box_row(source: Source, row: Row) -> Row:
    bbox = _bbox(source, row)
    kept = {key: row[key] for key in KEPT_KEYS if key in row}
    if is_rejected(row):
        kept["weight"] = 0.0  # no object with a box either
    return {**kept, "bbox": bbox, "area": bbox[2] * bbox[3]}  # the box's area: the mask's would tell something


def _points_row(source: Source, image: Row, row: Row, count: int) -> Row:
    bbox = _bbox(source, row)
    size = source.size(image)
    try:
        pixels = random_pixels(bbox, size, count, source.seed, row["id"])
    except DataError as error:
        raise DataError(f"{source.where(row)}: {error}") from None
    rle, bias = rle_of(row, size), source.options.point_bias
    if bias:
        pixels = biased_pixels(pixels, pixels_near_boundary(rle, bbox), bias, source.seed, row["id"])
    labels = labels_at(rle, pixels)
    kept = {**{key: row[key] for key in POINTS_KEYS if key in row}, "bbox": bbox}
    return {**kept, "point_coords": pixels.tolist(), "point_labels": labels.tolist()}


def _point_row(source: Source, image: Row, row: Row) -> Row:
    rle = rle_of(row, source.size(image))
    at_centre = source.options.point_at == "centre"
    point = mass_centre(rle) if at_centre else random_inside(rle, source.seed, row["id"])
    if point is None:
        raise DataError(f"{source.where(row)} has a mask without a pixel, so nobody can click on it")
    return {**{key: row[key] for key in KEPT_KEYS if key in row}, "point": point.tolist()}


def _kept(source: Source, image: Row, kind: str) -> tuple[Row, list[Row]]:
    """An image and its rows when all its objects are labelled in one way; crowds and
    rejected rows keep their box unless all is kept.
    """
    rows = source.annotations.get(image["id"], ())
    if kind == "mask":
        return image, list(rows)

    def keep(row: Row) -> Row:
        if kind == "box" or not is_object(row):
            return _box_row(source, row)
        if kind == "points":
            return _points_row(source, image, row, source.options.mix_points)
        return _point_row(source, image, row)

    # Objects with a point alone have no extent: nothing around the point may count as background.
    return {**image, "exhaustive": False} if kind == "point" and rows else image, [keep(row) for row in rows]


def _by_image(source: Source, kinds: dict[Any, str]) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    pairs = [_kept(source, image, kinds[image["id"]]) for image in source.images if image["id"] in kinds]
    return tuple(image for image, _ in pairs), tuple(row for _, rows in pairs for row in rows)


def _bare(images: Iterable[Row]) -> tuple[Row, ...]:
    keys = ("id", "file_name", "width", "height")
    return tuple({**{key: image[key] for key in keys}, "exhaustive": False} for image in images)


# Protocols.


def _full(source: Source) -> Parts:
    return Parts(*_by_image(source, {image["id"]: "mask" for image in source.images}))


def _boxes(source: Source) -> Parts:
    return Parts(*_by_image(source, {image["id"]: "box" for image in source.images}))


def _masks_of(source: Source, chosen: Callable[[Row], bool]) -> tuple[Row, ...]:
    """All rows in file order, those without `chosen`, all crowds and what is rejected as boxes."""
    rows = (row for image in source.images for row in source.annotations.get(image["id"], ()))
    return tuple(row if is_object(row) and chosen(row) else _box_row(source, row) for row in rows)


def _sparse(source: Source) -> Parts:
    ids = [row["id"] for _, row in source.objects()]
    count = count_of(source.protocol.amount / 100, len(ids))
    chosen = set(shuffled(ids, source.seed, "object")[:count])
    return Parts(source.images, _masks_of(source, lambda row: row["id"] in chosen))


def _partial(source: Source) -> Parts:
    names = list(source.classes.values())
    wanted = source.options.mask_classes or tuple(names[: math.ceil(len(names) / 2)])
    if wanted in (("voc",), ("nonvoc",)) and wanted[0] not in names:
        wanted = tuple(name for name in names if (name in VOC_CLASSES) == (wanted == ("voc",)))
    for name in wanted:
        if name not in names:
            raise DataError(f"{source.path} has no class '{name}' to keep masks of{suggest(name, names)}")
    if not 0 < len(set(wanted)) < len(names):
        raise DataError(
            f"{source.path}: partial needs classes with and without masks, found {len(wanted)} of {len(names)}"
        )
    chosen = {category_id for category_id, name in source.classes.items() if name in wanted}
    rows = _masks_of(source, lambda row: row["category_id"] in chosen)
    return Parts(source.images, rows, mask_classes=wanted)


def _points(source: Source) -> Parts:
    count = int(source.protocol.amount)
    rows: list[Row] = []
    for image in source.images:
        for row in source.annotations.get(image["id"], ()):
            rows.append(_points_row(source, image, row, count) if is_object(row) else _box_row(source, row))
    rows, wrong = with_wrong_labels(source, rows)
    return Parts(source.images, tuple(rows), noisy_points=wrong)


def _first_images(source: Source) -> list[Any]:
    order = shuffled([image["id"] for image in source.images], source.seed, "image")
    return order[: count_of(source.protocol.amount / 100, len(order))]


def _semi(source: Source) -> Parts:
    kinds = dict.fromkeys(_first_images(source), "mask")
    rest = _bare(image for image in source.images if image["id"] not in kinds)
    return Parts(*_by_image(source, kinds), unlabelled=rest)


def _weak_semi(source: Source) -> Parts:
    strong = frozenset(_first_images(source))
    kinds = {image["id"]: "mask" if image["id"] in strong else "point" for image in source.images}
    images, kept = _by_image(source, kinds)
    rows, displaced = with_displaced_points(source, list(kept))
    return Parts(images, tuple(rows), strong_ids=strong, noisy_points=displaced)


def _mixed(source: Source) -> Parts:
    """Images in the protocol's order; each goes to the kind that has least of its share spent, until money is short.
    When every image is labelled, the cheaper ones become masks in the same order.
    """
    budget, total = source.protocol.amount, sum(source.options.mix.values())
    shares = {kind: share / total for kind, share in source.options.mix.items() if share}
    prices = _prices(source)
    spent = dict.fromkeys(shares, 0.0)
    kinds: dict[Any, str] = {}
    order = shuffled([image["id"] for image in source.images], source.seed, "image")
    for image_id in order:
        kind = min(shares, key=lambda kind: spent[kind] / shares[kind])
        price = prices[kind] * _object_count(source, image_id)
        if sum(spent.values()) + price > budget:
            break
        kinds[image_id] = kind
        spent[kind] += price
    if not any(spent.values()):
        raise DataError(f"{source.path}: {budget:g} annotation seconds do not buy the first image; give more")
    if len(kinds) == len(order):
        _upgrade(source, kinds, budget - sum(spent.values()))
    rest = _bare(image for image in source.images if image["id"] not in kinds)
    return Parts(*_by_image(source, kinds), unlabelled=rest)


def _upgrade(source: Source, kinds: dict[Any, str], money: float) -> None:
    prices = _prices(source)
    for image_id, kind in list(kinds.items()):
        money -= (prices["mask"] - prices[kind]) * _object_count(source, image_id)
        if money < 0:
            return
        kinds[image_id] = "mask"


def _prices(source: Source) -> dict[str, float]:
    costs, points = LabelCosts(), source.options.mix_points
    return {
        "mask": costs.object_seconds(mask=True),
        "points": costs.object_seconds(box=True, points=points),
        "box": costs.object_seconds(box=True),
        "point": costs.object_seconds(points=1),
    }


def _object_count(source: Source, image_id: Any) -> int:
    return sum(is_object(row) for row in source.annotations.get(image_id, ()))


_PROTOCOLS: dict[str, Callable[[Source], Parts]] = {
    "full": _full,
    "sparse": _sparse,
    "points": _points,
    "boxes": _boxes,
    "semi": _semi,
    "weak-semi": _weak_semi,
    "partial": _partial,
    "mixed": _mixed,
}
