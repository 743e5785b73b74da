"""Predict a whole split and score it: the one way a network is measured, in training and by `leanmask evaluate`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import device as Device

from leanmask.distributed import gather_rows
from leanmask.errors import ConfigError
from leanmask.evaluation.calibration import measure_calibration
from leanmask.evaluation.coco_ap import Evaluation, evaluate_results
from leanmask.evaluation.coco_files import CocoTruth, Row
from leanmask.evaluation.coverage import measured_by
from leanmask.evaluation.lvis import evaluate_lvis
from leanmask.evaluation.predictions import predict_results, write_results
from leanmask.models.base import Model
from leanmask.records import Views

METRICS_NAME = "metrics.json"
PROTOCOLS: dict[str, Callable[..., Evaluation]] = {"coco": evaluate_results, "lvis": evaluate_lvis}


@dataclass(frozen=True)
class Validator:
    """A split to measure on.

    batches: makes this process's share of the split, in order. truth: the COCO file. class_ids: the user's id of each
    class index. precision: "fp32" or "bf16". protocol: "coco" or "lvis". max_detections: per image,
    None = the protocol's. calibration: also measure how far scores can be trusted, where masks are measured. iou:
    "mask", "box", None = masks where the truth has all of them (coverage.py). notes: for the evaluation's own.
    """

    batches: Callable[[], Iterable[Views]]
    truth: Path
    class_ids: tuple[int, ...]
    device: Device
    precision: str
    max_detections: int | None = None
    protocol: str = "coco"
    calibration: bool = False
    iou: str | None = None
    notes: tuple[str, ...] = ()

    def measure(
        self, model: Model, folder: Path, see: Callable[[Sequence[dict[str, Any]]], None] | None = None
    ) -> Evaluation | None:
        """Write `coco_instances_results.json` and `metrics.json` into `folder`; None on all processes but the first.
        see: called there with the COCO result rows of the split.
        """
        rows = predict_results(model, self.batches(), self.class_ids, self.device, self.precision)
        everything = gather_rows(rows)
        if everything is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        results = folder / "coco_instances_results.json"
        write_results(everything, results, overwrite=True)
        evaluation = self.score(results)
        (folder / METRICS_NAME).write_text(json.dumps(evaluation.to_json(), indent=1), encoding="utf-8")
        if see is not None:
            see(everything)
        return evaluation

    def score(self, results: Path) -> Evaluation:
        """Measure a results file by the protocol."""
        found = score_results(self.truth, results, self.protocol, self.max_detections, self.iou)
        found = dataclasses.replace(found, notes=[*self.notes, *found.notes])
        return with_calibration(found, self.truth, results) if self.calibration else found


def score_results(
    truth: Path,
    results: Path | list[Row],
    protocol: str = "coco",
    max_detections: int | None = None,
    iou: str | None = None,
) -> Evaluation:
    """Average precision of results by "coco" or "lvis". iou: "mask" or "box", None = masks where the truth has all of
    them; a note says where it has not. Raises ConfigError for another protocol, and as the two evaluations do.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol is '{protocol}'; allowed: {', '.join(PROTOCOLS)}")
    known = CocoTruth.open(truth)
    measured = measured_by(known, iou)
    found = PROTOCOLS[protocol](known, results, max_detections=max_detections, kinds=measured.kinds)
    return dataclasses.replace(found, notes=[measured.note, *found.notes]) if measured.note else found


def with_calibration(evaluation: Evaluation, truth: Path, results: Path | list[Row]) -> Evaluation:
    """The evaluation with `calibration`, and its expected calibration error among the metrics as "ECE"; with a note
    instead where it is of boxes.
    """
    if evaluation.iou == "box":
        note = "how far scores can be trusted is measured on masks, and was left out"
        return dataclasses.replace(evaluation, notes=[*evaluation.notes, note])
    found = measure_calibration(truth, results)
    metrics = {**evaluation.metrics, "ECE": found.ece}
    return dataclasses.replace(evaluation, metrics=metrics, calibration=found.to_json())
