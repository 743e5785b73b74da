"""How far the scores of results can be trusted: reliability, expected calibration error, and the error of every class.

A result is right when its mask overlaps an object of its class, not taken by a better result, with IoU 0.5 or more.
Results that cannot be called wrong are left out: where nobody looked for their class (LVIS), or on a crowd.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from leanmask.evaluation.coco_files import CocoTruth, Identifier, Row, read_results
from leanmask.evaluation.rle_check import checked_rles
from leanmask.labels.calibrate import BINS, calibration_error, class_errors, reliability
from leanmask.masks import Rle

RIGHT_IOU = 0.5


@dataclass(frozen=True)
class Calibration:
    """ece: mean distance of confidence and accuracy over the bins of all results; NaN without results. bins: the bins
    that are not empty: low, high, count, confidence, accuracy. per_class: id, name, count, error (signed, below 0 =
    overconfident; 0 without results), in the truth's order. left_out: results that could not be called right or wrong.
    """

    ece: float
    bins: list[dict[str, float]]
    per_class: list[dict[str, Any]]
    left_out: int

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON; an undefined ECE is null."""
        ece = None if math.isnan(self.ece) else self.ece
        return {"ece": ece, "bins": self.bins, "per_class": self.per_class, "left_out": self.left_out}


def measure_calibration(truth: Path | Row | CocoTruth, results: Path | list[Row], bins: int = BINS) -> Calibration:
    """Measure results (rows in the image frame, the user's ids) against complete annotations of masks.

    Images marked `exhaustive: false` are left out. Raises DataError as the evaluations do.
    """
    truth = CocoTruth.open(truth)
    rows, name = read_results(results, truth, "segmentation")
    by_image: dict[Identifier, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        by_image[row["image_id"]].append(place)
    verdicts: dict[int, bool] = {}
    for key, places in by_image.items():
        if key in truth.exhaustive_images:
            verdicts |= _judge(truth, key, [(place, rows[place]) for place in places], name)
    places = sorted(verdicts)
    ranks = {key: rank for rank, key in enumerate(truth.categories)}
    confidence = torch.tensor([float(rows[place]["score"]) for place in places], dtype=torch.float64)
    right = torch.tensor([verdicts[place] for place in places], dtype=torch.bool)
    categories = torch.tensor([ranks[rows[place]["category_id"]] for place in places], dtype=torch.int64)
    found = reliability(confidence, right, bins)
    errors, counts = class_errors(confidence, right, categories, len(ranks), bins)
    return Calibration(
        ece=calibration_error(found),
        bins=[
            {"low": at / bins, "high": (at + 1) / bins, "count": count, "confidence": sure, "accuracy": accuracy}
            for at, (count, sure, accuracy) in enumerate(
                zip(found.counts.tolist(), found.confidence.tolist(), found.accuracy.tolist(), strict=True)
            )
            if count
        ],
        per_class=[
            {"id": key, "name": truth.categories[key], "count": int(counts[rank]), "error": float(errors[rank])}
            for key, rank in ranks.items()
        ],
        left_out=len(rows) - len(places),
    )


def _judge(truth: CocoTruth, image: Identifier, numbered: Sequence[tuple[int, Row]], name: str) -> dict[int, bool]:
    """Whether each result of one image is right, by its position; without those that cannot be judged."""
    objects = truth.by_image.get(image, [])
    shapes = truth.rles(objects)[0]
    given = [row["segmentation"] for _, row in numbered]
    masks = checked_rles(given, [truth.size(image)] * len(given), lambda at: f"result {numbered[at][0]} of {name}")[0]
    by_class: dict[Identifier, list[int]] = defaultdict(list)
    for at, (_, row) in enumerate(numbered):
        by_class[row["category_id"]].append(at)
    judged: dict[int, bool] = {}
    for key, own in by_class.items():
        of_class = [at for at, row in enumerate(objects) if row["category_id"] == key]
        if not _looked_for(truth.images[image], key, bool(of_class)):
            continue
        own = sorted(own, key=lambda at: -numbered[at][1]["score"])
        crowds = [bool(objects[at].get("iscrowd")) for at in of_class]
        verdicts = match([masks[at] for at in own], [shapes[at] for at in of_class], crowds)
        partly = key in (truth.images[image].get("not_exhaustive_category_ids") or ())
        for at, verdict in zip(own, verdicts, strict=True):
            if verdict is not None and (verdict or not partly):
                judged[numbered[at][0]] = verdict
    return judged


def _looked_for(image: Row, category: Identifier, present: bool) -> bool:
    negative = image.get("neg_category_ids")
    return present or negative is None or category in negative


def match(masks: Sequence[Rle], shapes: Sequence[Rle], crowds: Sequence[bool]) -> list[bool | None]:
    """Whether each mask, best score first, has an object to itself; None for one that only lies on a crowd."""
    if not masks or not shapes:
        return [False] * len(masks)
    overlaps = np.asarray(coco_mask.iou(list(masks), list(shapes), [int(crowd) for crowd in crowds]))
    crowd, free = np.array(crowds), ~np.array(crowds)
    verdicts: list[bool | None] = []
    for row in overlaps:
        own = np.where(free, row, -1.0)
        best = int(own.argmax())
        if own[best] >= RIGHT_IOU:
            free[best] = False
            verdicts.append(True)
        else:
            verdicts.append(None if (row[crowd] >= RIGHT_IOU).any() else False)
    return verdicts
