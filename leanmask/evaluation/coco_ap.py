"""COCO average precision of results against complete annotations, by faster-coco-eval's matching."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster

from leanmask.errors import ConfigError
from leanmask.evaluation.coco_files import CocoTruth, Identifier, Row, read_results
from leanmask.evaluation.coco_rows import (
    Kind,
    Selection,
    Shapes,
    are_similar,
    category_rows,
    image_rows,
    is_crowd,
    result_rows,
    select,
    truth_rows,
)
from leanmask.evaluation.outcomes import outcomes_of

_STANDARD_LIMIT = 100  # detections per image and class that COCO counts
_AREAS = ("all", "small", "medium", "large")
# Key, "P"recision or "R"ecall, IoU threshold (None = mean over 0.50:0.95), index of the area, position of the limit.
_STANDARD = (
    ("AP", "P", None, 0, 2),
    ("AP50", "P", 0.5, 0, 2),
    ("AP75", "P", 0.75, 0, 2),
    ("APs", "P", None, 1, 2),
    ("APm", "P", None, 2, 2),
    ("APl", "P", None, 3, 2),
    ("AR1", "R", None, 0, 0),
    ("AR10", "R", None, 0, 1),
    ("AR100", "R", None, 0, 2),
    ("ARs", "R", None, 1, 2),
    ("ARm", "R", None, 2, 2),
    ("ARl", "R", None, 3, 2),
)


@dataclass(frozen=True)
class Evaluation:
    """What COCO's protocol says about a set of results.

    metrics: the twelve standard numbers of masks by name ("AP" ... "ARl"), those of boxes with "box_" before; fractions
    in [0, 1], NaN where the truth has nothing to measure on. "AR100" is the third of COCO's limits and counts
    `max_detections`; where that is above 100, "AP_100dets" and "AR_100dets" count the standard 100. per_class: name,
    id (the user's), AP, AP50, count (objects), worst first, of the first kind asked for. notes: sentences about what
    was left out or raised. summary: the standard text of the first kind. outcomes: how many of the best-scored masks
    are right, and what the others get wrong (outcomes.py); empty where masks were not asked for. calibration:
    reliability and calibration errors (calibration.py), where it was asked for. iou: of what per_class and summary are,
    "mask" or "box".
    """

    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    max_detections: int
    notes: list[str]
    summary: str
    evaluator: str
    outcomes: dict[str, int]
    calibration: dict[str, Any] | None = None
    iou: str = "mask"

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON; undefined numbers are null."""
        return {key: _without_nan(value) for key, value in asdict(self).items()}


@dataclass(frozen=True, eq=False)
class Curves:
    """Precision (thresholds, recalls, classes, areas, limits) and recall (thresholds, classes, areas, limits); -1 is
    undefined."""

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    thresholds: npt.NDArray[np.float64]
    limits: list[int] = field(default_factory=list)

    def mean(self, what: str, iou: float | None, area: int, limit: int, class_index: int | None = None) -> float:
        """Mean over all that is defined; NaN when nothing is."""
        values = (self.precision if what == "P" else self.recall)[..., area, self.limits.index(limit)]
        if iou is not None:
            values = values[np.isclose(self.thresholds, iou)]
        if class_index is not None:
            values = values[..., class_index]
        defined = values[values > -1]
        return float(defined.mean()) if defined.size else math.nan


def evaluate_results(
    truth: Path | Row | CocoTruth,
    results: Path | list[Row],
    *,
    max_detections: int | None = None,
    kinds: Sequence[Kind] = ("segm", "bbox"),
    class_ids: Collection[Identifier] | None = None,
) -> Evaluation:
    """COCO AP and AR of results (rows in the image frame, the user's ids) against complete annotations.

    Equal to pycocotools to 1e-6 at the same limits. Masks are sorted into small, medium and large by their own area,
    never by the `bbox` of a row. Images marked `exhaustive: false` are left out, since an unmatched prediction there
    need not be wrong. max_detections: per image and class; None = the standard 100, raised to twice the 99th percentile
    of objects per image where that is more. class_ids: measure these classes alone (the user's ids).

    Neither argument is changed. Raises DataError for broken or foreign truth or results, naming the row; ConfigError
    for a limit below 1, a kind or class that does not exist.
    """
    if max_detections is not None and max_detections < 1:
        raise ConfigError(f"max_detections is {max_detections}; it must be at least 1")
    if not kinds or set(kinds) - {"segm", "bbox"}:
        raise ConfigError(f"kinds are {list(kinds)}; allowed: segm, bbox")
    truth = CocoTruth.open(truth)
    rows, name = read_results(results, truth, "segmentation" if "segm" in kinds else "bbox")
    selection = select(truth, rows, name, class_ids)
    most = max_detections or _limit_for(selection)
    shapes = truth_rows(selection, kinds), result_rows(selection, kinds)
    limits = sorted({1, min(10, most), min(_STANDARD_LIMIT, most), most})
    curves = curves_of(Protocol(image_rows(selection), category_rows(selection), limits), shapes, kinds)
    first = curves[kinds[0]]
    similar = partial(are_similar, selection)
    metrics = {
        ("" if kind == "segm" else "box_") + key: value for kind in kinds for key, value in _numbers(curves[kind], most)
    }
    return Evaluation(
        metrics=metrics,
        per_class=_per_class(selection, first, most),
        max_detections=most,
        notes=_notes(selection, len(rows), most, raised=max_detections is None and most > _STANDARD_LIMIT),
        summary=_summary(first, most),
        evaluator=f"faster-coco-eval {version('faster-coco-eval')}",
        outcomes=outcomes_of(shapes[0].rows, shapes[1].rows, similar) if "segm" in kinds else {},
        iou="mask" if kinds[0] == "segm" else "box",
    )


def _limit_for(selection: Selection) -> int:
    counts = np.zeros(len(selection.image_rank))
    for row in selection.objects:
        counts[selection.image_rank[row["image_id"]] - 1] += not is_crowd(row)
    return max(_STANDARD_LIMIT, 2 * math.ceil(np.percentile(counts, 99)))


@dataclass(frozen=True)
class Protocol:
    """What an evaluator is told besides objects and results: images, categories, limits of detections per image and
    class, and whether LVIS's fields count.
    """

    images: list[Row]
    categories: list[Row]
    limits: list[int]
    lvis: bool = False


def curves_of(protocol: Protocol, shapes: tuple[Shapes, Shapes], kinds: Sequence[Kind]) -> dict[Kind, Curves]:
    """Match results to objects (the two `shapes`) and accumulate, for every kind."""
    truth, results = (
        COCO({"images": protocol.images, "annotations": s.rows, "categories": protocol.categories}) for s in shapes
    )
    curves: dict[Kind, Curves] = {}
    for kind in kinds:
        for part in shapes:
            part.use(kind)
        evaluator = COCOeval_faster(truth, results, kind, lvis_style=protocol.lvis)
        evaluator.params.maxDets = protocol.limits
        evaluator.evaluate()
        evaluator.accumulate()
        precision, recall = (np.asarray(evaluator.eval[key], dtype=np.float64) for key in ("precision", "recall"))
        thresholds = np.asarray(evaluator.params.iouThrs)
        curves[kind] = Curves(precision, recall, thresholds, list(evaluator.params.maxDets))
    return curves


def _positions(most: int) -> tuple[int, int, int]:
    return 1, min(10, most), most


def _numbers(curves: Curves, most: int) -> list[tuple[str, float]]:
    limits = _positions(most)
    numbers = [(key, curves.mean(what, iou, area, limits[place])) for key, what, iou, area, place in _STANDARD]
    if most > _STANDARD_LIMIT:
        numbers.append((f"AP_{_STANDARD_LIMIT}dets", curves.mean("P", None, 0, _STANDARD_LIMIT)))
        numbers.append((f"AR_{_STANDARD_LIMIT}dets", curves.mean("R", None, 0, _STANDARD_LIMIT)))
    return numbers


def _per_class(selection: Selection, curves: Curves, most: int) -> list[dict[str, Any]]:
    counts = dict.fromkeys(selection.class_rank, 0)
    for row in selection.objects:
        counts[row["category_id"]] += not is_crowd(row)
    table = [
        {
            "name": selection.truth.categories[key],
            "id": key,
            "AP": curves.mean("P", None, 0, most, rank - 1),
            "AP50": curves.mean("P", 0.5, 0, most, rank - 1),
            "count": counts[key],
        }
        for key, rank in selection.class_rank.items()
    ]
    return sorted(table, key=lambda row: (math.isnan(row["AP"]), row["AP"]))


def _notes(selection: Selection, rows: int, most: int, raised: bool) -> list[str]:
    notes = []
    left_out = len(selection.truth.images) - len(selection.image_rank)
    if left_out:
        notes.append(
            f"{left_out} of {len(selection.truth.images)} images are not exhaustively annotated and were left out: "
            "unlabelled is not negative"
        )
    if len(selection.class_rank) < len(selection.truth.categories):
        notes.append(f"measured on {len(selection.class_rank)} of {len(selection.truth.categories)} classes")
    if rows > len(selection.results):
        notes.append(f"{rows - len(selection.results)} of {rows} results belong to what was left out")
    if raised:
        notes.append(
            f"dense images: {most} detections per image count (twice the 99th percentile of objects per image); "
            f"the standard limit of {_STANDARD_LIMIT} is AP_{_STANDARD_LIMIT}dets"
        )
    if all(is_crowd(row) for row in selection.objects):
        crowds = f"; all {len(selection.objects)} annotations are marked iscrowd" if selection.objects else ""
        notes.append(f"the truth has no objects, so AP is undefined{crowds}")
    return notes


def _summary(curves: Curves, most: int) -> str:
    titles = {"P": ("Average Precision", "(AP)"), "R": ("Average Recall", "(AR)")}
    lines = []
    for _, what, iou, area, place in _STANDARD:
        title, short = titles[what]
        value = curves.mean(what, iou, area, _positions(most)[place])
        span = "0.50:0.95" if iou is None else f"{iou:0.2f}"
        number = -1.0 if math.isnan(value) else value
        lines.append(
            f" {title:<18} {short} @[ IoU={span:<9} | area={_AREAS[area]:>6s} "
            f"| maxDets={_positions(most)[place]:>3d} ] = {number:0.3f}"
        )
    return "\n".join(lines)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
