"""How far confidence can be trusted, per class, and soft labels corrected by it (Porcher et al. 2024, "Better
(pseudo-)labels", section 3.2).

Letters: N predictions, C classes, B bins of the confidence from 0 to 1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from leanmask.errors import ConfigError

BINS = 10


@dataclass(frozen=True, eq=False)
class Bins:
    """Predictions by confidence. counts, confidence (mean), accuracy (share of right ones): (B,) float64; the last two
    are 0 in an empty bin.
    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor


def reliability(confidence: Tensor, right: Tensor, bins: int = BINS) -> Bins:
    """Sort predictions into equal bins of confidence (N,) in [0, 1]; right: (N,) bool.

    Bin b holds [b / B, (b + 1) / B), the last one also 1.
    """
    if bins < 1:
        raise ConfigError(f"bins is {bins}; it must be at least 1")
    confidence = confidence.double().cpu()
    index = (confidence * bins).long().clamp(0, bins - 1)
    counts = torch.bincount(index, minlength=bins).double()
    some = counts.clamp(min=1)
    means = (torch.bincount(index, weights=each, minlength=bins) / some for each in (confidence, right.double().cpu()))
    return Bins(counts, *means)


def calibration_error(bins: Bins) -> float:
    """ECE: mean over predictions of |accuracy - confidence| of their bin (Naeini et al. 2015); NaN without any."""
    total = float(bins.counts.sum())
    if total == 0:
        return float("nan")
    return float((bins.counts * (bins.accuracy - bins.confidence).abs()).sum() / total)


def class_errors(
    confidence: Tensor, right: Tensor, categories: Tensor, num_classes: int, bins: int = BINS
) -> tuple[Tensor, Tensor]:
    """Class-conditional calibration error D (C,) and predictions of each class (C,), float64 (CCECE, Eq. 4).

    D is signed: below 0 the class is overconfident. It is 0 for a class of which nothing was predicted. categories:
    (N,) int64 predicted class.
    """
    errors, counts = torch.zeros(num_classes, dtype=torch.float64), torch.zeros(num_classes, dtype=torch.float64)
    for category in categories.unique().tolist():
        own = categories == category
        found = reliability(confidence[own], right[own], bins)
        counts[category] = found.counts.sum()
        errors[category] = (found.counts * (found.accuracy - found.confidence)).sum() / counts[category]
    return errors, counts


def read_calibration(path: Path) -> dict[str, float]:
    """The signed error of each class by name, from a calibration.json. Raises ConfigError when it is none."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["per_class"]
        return {str(row["name"]): float(row["error"]) for row in rows}
    except OSError as error:
        raise ConfigError(f"cannot read the calibration {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is no calibration as leanmask writes it: it has no list per_class") from None


def corrected(probabilities: Tensor, errors: Tensor, strength: float = 2.0) -> Tensor:
    """Soft classes (N, C) plus `strength` times the errors (C,) of all classes (Eq. 5), cut to [0, 1]."""
    return (probabilities + strength * errors.to(probabilities)).clamp(0, 1)
