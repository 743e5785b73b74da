"""What takes part in an evaluation, as the rows that matching routines want: checked, with ranks in place of ids."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pycocotools import mask as coco_mask

from leanmask.errors import ConfigError, DataError
from leanmask.evaluation.coco_files import CocoTruth, Identifier, Row
from leanmask.evaluation.rle_check import checked_rles
from leanmask.rle import Rle

Kind = Literal["segm", "bbox"]


@dataclass(frozen=True, eq=False)
class Selection:
    """Truth and results of the exhaustive images and of the chosen classes. Ranks run from 1 in the order of the ids
    (an annotation id 0 would read as "unmatched" in COCO's matching; equal scores are told apart by the images' order).
    """

    truth: CocoTruth
    image_rank: dict[Identifier, int]
    class_rank: dict[Identifier, int]
    objects: list[Row]
    results: list[Row]
    positions: list[int]  # of the results in the user's list
    results_name: str


@dataclass(frozen=True, eq=False)
class Shapes:
    """Rows with masks and boxes as far as the kinds asked for need them, and each row's area by kind, square pixels."""

    rows: list[Row]
    areas: dict[Kind, list[float]]

    def use(self, kind: Kind) -> None:
        """Give every row the area of `kind`."""
        for row, area in zip(self.rows, self.areas[kind], strict=True):
            row["area"] = area


def select(
    truth: CocoTruth, rows: list[Row], results_name: str, class_ids: Collection[Identifier] | None = None
) -> Selection:
    """Raises DataError when no image is exhaustively annotated, ConfigError for classes that the truth lacks."""
    unknown = [key for key in class_ids or () if key not in truth.categories]
    if unknown or (class_ids is not None and not class_ids):
        raise ConfigError(f"class ids {unknown} are not in {truth.name}; it has {list(truth.categories)[:20]}")
    if not truth.exhaustive_images:
        raise DataError(
            f"{truth.name} has no exhaustively annotated image ({len(truth.images)} in all), so AP cannot be measured"
        )
    images = [key for key in truth.images if key in truth.exhaustive_images]
    classes = [key for key in truth.categories if class_ids is None or key in class_ids]
    image_rank = {key: rank for rank, key in enumerate(images, 1)}
    class_rank = {key: rank for rank, key in enumerate(classes, 1)}

    def counts(row: Row) -> bool:
        return row["image_id"] in image_rank and row["category_id"] in class_rank

    positions = [place for place, row in enumerate(rows) if counts(row)]
    objects = [row for row in truth.annotations if counts(row)]
    results = [rows[place] for place in positions]
    return Selection(truth, image_rank, class_rank, objects, results, positions, results_name)


def are_similar(selection: Selection, class_rank: int, other_rank: int) -> bool:
    """Whether two classes, given by their ranks, are of one supercategory; never where the truth has fewer than two."""
    above, ids = selection.truth.supercategories, list(selection.class_rank)
    own = above.get(ids[class_rank - 1])
    return own is not None and own == above.get(ids[other_rank - 1]) and len(set(above.values())) > 1


def is_crowd(row: Row) -> bool:
    """Whether a truth annotation is a crowd region, neither object nor background."""
    return bool(row.get("iscrowd"))


def image_rows(selection: Selection) -> list[Row]:
    """COCO images with ranks for ids."""
    rows = []
    for key, rank in selection.image_rank.items():
        height, width = selection.truth.size(key)
        rows.append({"id": rank, "height": height, "width": width})
    return rows


def category_rows(selection: Selection) -> list[Row]:
    """COCO categories with ranks for ids."""
    return [{"id": rank, "name": selection.truth.categories[key]} for key, rank in selection.class_rank.items()]


def truth_rows(selection: Selection, kinds: Sequence[Kind]) -> Shapes:
    """Annotations; `area` is the file's, or that of the mask or box where it has none."""
    objects, truth = selection.objects, selection.truth
    rows = _rows(selection, objects)
    given = truth.areas(objects)
    areas: dict[Kind, list[float]] = {}
    for kind in kinds:
        if kind == "segm":
            rles, pixels = truth.rles(objects)
            areas[kind] = _place(rows, "rle", rles, pixels.tolist())
        else:
            areas[kind] = _place_boxes(rows, truth.boxes(objects))
        areas[kind] = [size if area is None else area for area, size in zip(given, areas[kind], strict=True)]
    for row, source in zip(rows, objects, strict=True):
        row["iscrowd"] = int(is_crowd(source))
    return Shapes(rows, areas)


def result_rows(selection: Selection, kinds: Sequence[Kind]) -> Shapes:
    """Results. The area of a mask is its pixels, whatever box stands beside it."""
    results = selection.results
    rows = _rows(selection, results)
    areas: dict[Kind, list[float]] = {}
    for kind in kinds:
        if kind == "segm":
            areas[kind] = _place(rows, "rle", *_result_rles(selection, range(len(results))))
        else:
            areas[kind] = _place_boxes(rows, _result_boxes(selection))
    for row, source in zip(rows, results, strict=True):
        row["iscrowd"] = 0
        row["score"] = float(source["score"])
    return Shapes(rows, areas)


def _rows(selection: Selection, sources: list[Row]) -> list[Row]:
    images, classes = selection.image_rank, selection.class_rank
    return [
        {"id": number, "image_id": images[source["image_id"]], "category_id": classes[source["category_id"]]}
        for number, source in enumerate(sources, 1)
    ]


def _place(rows: list[Row], key: str, shapes: Sequence[Any], areas: list[float]) -> list[float]:
    # faster-coco-eval matches masks by "rle"; from "segmentation" it would decode and encode every mask once more.
    for row, shape in zip(rows, shapes, strict=True):
        row[key] = shape
    return areas


def _place_boxes(rows: list[Row], boxes_xywh: list[list[float]]) -> list[float]:
    return _place(rows, "bbox", boxes_xywh, [box[2] * box[3] for box in boxes_xywh])


def _result_rles(selection: Selection, chosen: Sequence[int]) -> tuple[list[Rle], list[float]]:
    rows = [selection.results[place] for place in chosen]

    def name(place: int) -> str:
        position = selection.positions[chosen[place]]
        return f"result {position} (image {rows[place]['image_id']!r}) of {selection.results_name}"

    sizes = [selection.truth.size(row["image_id"]) for row in rows]
    rles, areas = checked_rles([row["segmentation"] for row in rows], sizes, name)
    return rles, areas.tolist()


def _result_boxes(selection: Selection) -> list[list[float]]:
    boxless = [place for place, row in enumerate(selection.results) if "bbox" not in row]
    of_masks = iter(_result_rles(selection, boxless)[0])
    return [row["bbox"] if "bbox" in row else coco_mask.toBbox(next(of_masks)).tolist() for row in selection.results]
