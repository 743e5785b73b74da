"""Predict a whole split and score it: the one way a network is measured, in training and by `leanmask evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import device as Device

from leanmask.distributed import gather_rows
from leanmask.evaluation.coco_ap import Evaluation, evaluate_results
from leanmask.evaluation.predictions import predict_results, write_results
from leanmask.models.base import Model
from leanmask.records import Views


@dataclass(frozen=True)
class Validator:
    """A split to measure on.

    batches: makes this process's share of the split, in order. truth: the COCO file. class_ids: the user's id of each
    class index. precision: "fp32" or "bf16". max_detections: per image, None = raised for dense images and said so.
    """

    batches: Callable[[], Iterable[Views]]
    truth: Path
    class_ids: tuple[int, ...]
    device: Device
    precision: str
    max_detections: int | None = None

    def measure(self, model: Model, folder: Path) -> Evaluation | None:
        """Write `coco_instances_results.json` and `metrics.json` into `folder`; None on all processes but the first."""
        rows = predict_results(model, self.batches(), self.class_ids, self.device, self.precision)
        everything = gather_rows(rows)
        if everything is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        results = folder / "coco_instances_results.json"
        write_results(everything, results, overwrite=True)
        evaluation = evaluate_results(self.truth, results, max_detections=self.max_detections)
        (folder / "metrics.json").write_text(json.dumps(evaluation.to_json(), indent=1), encoding="utf-8")
        return evaluation
