"""LVIS average precision (Gupta et al. 2019): as COCO's, with at most 300 detections per image over all classes, and
every class measured only where somebody looked for it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from leanmask.errors import ConfigError, DataError
from leanmask.evaluation.coco_ap import Curves, Evaluation, Protocol, curves_of
from leanmask.evaluation.coco_files import CocoTruth, Identifier, Row, read_results
from leanmask.evaluation.coco_rows import (
    Kind,
    Selection,
    category_rows,
    image_rows,
    result_rows,
    select,
    truth_rows,
)

MOST_DETECTIONS = 300  # per image, over all classes
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
NEGATIVE, NOT_EXHAUSTIVE = "neg_category_ids", "not_exhaustive_category_ids"
# Key, "P"recision or "R"ecall, IoU threshold (None = mean over 0.50:0.95), index of the area.
_NUMBERS = (
    ("AP", "P", None, 0),
    ("AP50", "P", 0.5, 0),
    ("AP75", "P", 0.75, 0),
    ("APs", "P", None, 1),
    ("APm", "P", None, 2),
    ("APl", "P", None, 3),
    ("AR300", "R", None, 0),
    ("ARs", "R", None, 1),
    ("ARm", "R", None, 2),
    ("ARl", "R", None, 3),
)


def evaluate_lvis(
    truth: Path | Row | CocoTruth,
    results: Path | list[Row],
    *,
    max_detections: int | None = None,
    kinds: Sequence[Kind] = ("segm", "bbox"),
) -> Evaluation:
    """LVIS AP of results (rows in the image frame, the user's ids): AP, AP50, ..., and APr, APc, APf of the rare,
    common and frequent classes by the truth's `frequency`.

    Equal to the `lvis` package to 1e-6. A result is dropped where its class is neither annotated in the image nor among
    its `neg_category_ids`; unmatched ones of `not_exhaustive_category_ids` are ignored. Masks are sorted by their own
    area. max_detections: per image over all classes, None = 300. Raises DataError for a truth without LVIS's fields and
    as `evaluate_results` does.
    """
    most = MOST_DETECTIONS if max_detections is None else max_detections
    if most < 1:
        raise ConfigError(f"max_detections is {most}; it must be at least 1")
    truth = CocoTruth.open(truth)
    require_lvis(truth)
    rows, name = read_results(results, truth, "segmentation" if "segm" in kinds else "bbox")
    kept = _federated(_best(rows, most), truth)
    selection = select(truth, kept, name)
    protocol = Protocol(_image_rows(selection), _category_rows(selection), [most], lvis=True)
    curves = curves_of(protocol, (truth_rows(selection, kinds), result_rows(selection, kinds)), kinds)
    metrics = {
        ("" if kind == "segm" else "box_") + key: value
        for kind in kinds
        for key, value in _numbers(curves[kind], selection, most).items()
    }
    first = curves[kinds[0]]
    return Evaluation(
        metrics=metrics,
        per_class=_per_class(selection, first, most),
        max_detections=most,
        notes=_notes(len(rows), len(kept), most),
        summary=_summary(metrics, kinds),
        evaluator=f"faster-coco-eval {version('faster-coco-eval')}, LVIS",
        outcomes={},
        iou="mask" if kinds[0] == "segm" else "box",
    )


def require_lvis(truth: CocoTruth) -> None:
    """Raise DataError, naming the first image or category, when the truth does not have LVIS's fields."""
    for key, image in truth.images.items():
        if not isinstance(image.get(NEGATIVE), list) or not isinstance(image.get(NOT_EXHAUSTIVE), list):
            raise DataError(
                f"image {key!r} of {truth.name} has no {NEGATIVE} or no {NOT_EXHAUSTIVE}, so LVIS's protocol cannot be "
                "followed; use --protocol coco"
            )
    for key, name in truth.categories.items():
        if truth.frequencies.get(key) not in FREQUENCIES:
            raise DataError(
                f"class '{name}' of {truth.name} has the frequency {truth.frequencies.get(key)!r}; LVIS has r, c and f"
            )


def _best(rows: Sequence[Row], most: int) -> list[Row]:
    """At most so many rows of each image, by score; rows of one image stand together, in the order of the images."""
    by_image: dict[Identifier, list[Row]] = defaultdict(list)
    for row in rows:
        by_image[row["image_id"]].append(row)
    chosen = [
        found if len(found) <= most else sorted(found, key=lambda row: -row["score"])[:most]
        for found in by_image.values()
    ]
    return [row for found in chosen for row in found]


def _federated(rows: Sequence[Row], truth: CocoTruth) -> list[Row]:
    """The rows whose class was looked for in their image."""
    looked_for = {key: set(image[NEGATIVE]) for key, image in truth.images.items()}
    for row in truth.annotations:
        looked_for[row["image_id"]].add(row["category_id"])
    return [row for row in rows if row["category_id"] in looked_for[row["image_id"]]]


def _image_rows(selection: Selection) -> list[Row]:
    ranks = selection.class_rank
    return [
        {**row, **{key: [ranks[i] for i in selection.truth.images[own][key] if i in ranks] for key in _FIELDS}}
        for row, own in zip(image_rows(selection), selection.image_rank, strict=True)
    ]


_FIELDS = (NEGATIVE, NOT_EXHAUSTIVE)


def _category_rows(selection: Selection) -> list[Row]:
    frequencies = [selection.truth.frequencies[key] for key in selection.class_rank]
    return [{**row, "frequency": each} for row, each in zip(category_rows(selection), frequencies, strict=True)]


def _numbers(curves: Curves, selection: Selection, most: int) -> dict[str, float]:
    numbers = {key: curves.mean(what, iou, area, most) for key, what, iou, area in _NUMBERS}
    letters = np.array([selection.truth.frequencies[key] for key in selection.class_rank])
    for letter in FREQUENCIES:
        values = curves.precision[:, :, letters == letter, 0, curves.limits.index(most)]
        defined = values[values > -1]
        numbers[f"AP{letter}"] = float(defined.mean()) if defined.size else math.nan
    return numbers


def _per_class(selection: Selection, curves: Curves, most: int) -> list[dict[str, Any]]:
    counts = dict.fromkeys(selection.class_rank, 0)
    for row in selection.objects:
        counts[row["category_id"]] += 1
    table = [
        {
            "name": selection.truth.categories[key],
            "id": key,
            "frequency": selection.truth.frequencies[key],
            "AP": curves.mean("P", None, 0, most, rank - 1),
            "AP50": curves.mean("P", 0.5, 0, most, rank - 1),
            "count": counts[key],
        }
        for key, rank in selection.class_rank.items()
    ]
    return sorted(table, key=lambda row: (math.isnan(row["AP"]), row["AP"]))


def _notes(given: int, kept: int, most: int) -> list[str]:
    if given == kept:
        return []
    return [
        f"{given - kept} of {given} results do not count: beyond the best {most} of their image, or of a class that "
        "nobody looked for there"
    ]


def _summary(metrics: dict[str, float], kinds: Sequence[Kind]) -> str:
    lines = []
    for kind in kinds:
        prefix, title = ("", "masks") if kind == "segm" else ("box_", "boxes")
        found = {key: metrics[prefix + key] for key in ("AP", "AP50", "AP75", "APr", "APc", "APf", "AR300")}
        numbers = "  ".join(f"{key} {'-' if math.isnan(value) else f'{value:.3f}'}" for key, value in found.items())
        lines.append(f"{title:<6} {numbers}")
    return "\n".join(lines)
