"""Which predictions become pseudo-labels: class and mask each have a quality and a threshold of their own (PL-DC,
section 3.1; adaptive per class in the authors' later code), with one threshold on their product as the baseline.

Letters: N predictions of one image, C classes, h w rows and columns of one mask's grid or crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanmask.distributed import global_count
from leanmask.errors import CheckpointError, ConfigError
from leanmask.labels.masks import mask_certainty
from leanmask.masks import Crops, Grids
from leanmask.records import Instances


@dataclass(frozen=True, eq=False)
class Qualities:
    """How good N predictions say they are: class_quality and mask_quality (N,) in [0, 1], area_px (N,) pixels of the
    network's canvas.
    """

    class_quality: Tensor
    mask_quality: Tensor
    area_px: Tensor


@dataclass(frozen=True)
class Thresholds:
    """The least that a pseudo-label must have; each quality one number, or (N,) numbers. area_px: must be exceeded.

    The defaults are PL-DC's.
    """

    class_quality: float | Tensor = 0.85
    mask_quality: float | Tensor = 0.9
    area_px: float = 5.0


def measure(instances: Instances) -> Qualities:
    """The qualities of predictions that have class probabilities and soft masks (Grids or Crops)."""
    masks = instances.masks
    assert isinstance(masks, Grids | Crops), "predictions have soft masks"
    return Qualities(class_quality(instances), mask_quality(masks), mask_area_px(masks))


def class_quality(instances: Instances) -> Tensor:
    """(N,) probability of each prediction's own category.

    PL-DC's c_k, the highest class probability, for a query or box that is predicted once, as its most probable class. A
    detector may report the same box again as its second most probable class, and that one must not inherit the first's
    quality. Rows of `class_probabilities` (N, C) may sum to less than 1: the rest is background.
    """
    probabilities = instances.class_probabilities
    assert probabilities is not None, "predictions keep their class probabilities"
    return probabilities.gather(1, instances.categories[:, None])[:, 0]


def surest(qualities: Tensor) -> Tensor:
    """(N,) bool: as good as the best of them (N,); to be told of where nothing passes."""
    return qualities == qualities.max() if len(qualities) else torch.zeros_like(qualities, dtype=torch.bool)


def mask_quality(masks: Grids | Crops) -> Tensor:
    """(N,) mean probability over the pixels above 0.5 of each mask, 0 where there are none (PL-DC's m_k)."""
    if isinstance(masks, Grids):
        return mask_certainty(masks.values)
    qualities = [mask_certainty(crop[None])[0] for crop in masks]
    return torch.stack(qualities) if qualities else torch.zeros(0, device=masks.data.device)


def mask_area_px(masks: Grids | Crops) -> Tensor:
    """(N,) float area of each mask above 0.5, in pixels of the canvas; that of a grid by its share of the box."""
    if isinstance(masks, Crops):
        areas = [(crop > 0.5).sum() for crop in masks]
        return torch.stack(areas).float() if areas else torch.zeros(0, device=masks.data.device)
    extent = (masks.boxes[:, 2:] - masks.boxes[:, :2]).clamp(min=0)
    return (masks.values > 0.5).float().mean((1, 2)) * extent.prod(1)


def decoupled(qualities: Qualities, thresholds: Thresholds) -> Tensor:
    """(N,) bool: class and mask are both good enough, whatever the other one is (PL-DC's DDTF, section 3.1)."""
    return (
        (qualities.class_quality >= thresholds.class_quality)
        & (qualities.mask_quality >= thresholds.mask_quality)
        & (qualities.area_px > thresholds.area_px)
    )


def coupled(qualities: Qualities, threshold: float = 0.765, area_px: float = 5.0) -> Tensor:
    """(N,) bool: the product of both qualities is good enough, so that one may make up for the other.

    The baseline that PL-DC replaces; its ablation takes the product of its two thresholds, 0.9 * 0.85.
    """
    return (qualities.class_quality * qualities.mask_quality >= threshold) & (qualities.area_px > area_px)


@dataclass(frozen=True)
class ThresholdRange:
    """Between which values the thresholds of a class begin, as (lowest, highest) of each quality: the lowest for a
    class without labelled objects, the highest for one that has them all. The authors publish no range; without one,
    their code starts every class at the fixed thresholds, as the defaults here do.
    """

    class_quality: tuple[float, float] = (0.85, 0.85)
    mask_quality: tuple[float, float] = (0.9, 0.9)

    def __post_init__(self) -> None:
        for name in ("class_quality", "mask_quality"):
            lowest, highest = getattr(self, name)
            if not 0 <= lowest <= highest <= 1:
                raise ConfigError(
                    f"the range of the {name} threshold is {lowest} to {highest}; allowed: 0 <= a <= b <= 1"
                )


class AdaptiveThresholds:
    """Thresholds of every class that follow what is predicted of it (PL-DC's later code, DF-ACAT).

    A class c starts at lowest + (highest - lowest) * freq_c, freq_c its share of the labelled objects; every `update`
    moves both its thresholds towards the mean quality of all predictions of the class, not of the kept ones alone.
    """

    def __init__(
        self, objects_per_class: Sequence[int], keep: float = 0.9996, limits: ThresholdRange | None = None
    ) -> None:
        """objects_per_class: labelled objects of each of the C classes. keep: share of a threshold that an update keeps
        (the EMA's). limits: None = the defaults of `ThresholdRange`.
        """
        limits = limits or ThresholdRange()
        counts = torch.tensor(list(objects_per_class), dtype=torch.float64)
        shares = counts / counts.sum().clamp(min=1)
        self.keep = keep
        self.class_quality = _between(limits.class_quality, shares)
        self.mask_quality = _between(limits.mask_quality, shares)

    def thresholds(self, categories: Tensor, area_px: float = 5.0) -> Thresholds:
        """What predictions of these classes (N,) must have; on the device of `categories`."""
        index = categories.cpu()
        values = [table[index].float().to(categories.device) for table in (self.class_quality, self.mask_quality)]
        return Thresholds(values[0], values[1], area_px)

    def update(self, qualities: Qualities, categories: Tensor) -> None:
        """Follow the predictions of one step: of all images together, over all processes. categories: (N,) int64.

        A class of which nothing is predicted keeps its thresholds. Collective, as `global_count`: every process must
        call it equally often.
        """
        size = len(self.class_quality)
        index = categories.cpu()
        sums = torch.zeros(3, size, dtype=torch.float64)
        for row, values in enumerate((qualities.class_quality, qualities.mask_quality, torch.ones(len(index)))):
            sums[row].index_add_(0, index, values.detach().double().cpu())
        sums = global_count(sums.to(categories.device)).double().cpu()
        seen = sums[2] > 0
        for table, total in ((self.class_quality, sums[0]), (self.mask_quality, sums[1])):
            table[seen] = self.keep * table[seen] + (1 - self.keep) * total[seen] / sums[2][seen]

    def state_dict(self) -> dict[str, Any]:
        """The thresholds as plain lists of C floats, which JSON keeps to the last bit."""
        return {"class_quality": self.class_quality.tolist(), "mask_quality": self.mask_quality.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken. Raises CheckpointError for another number of classes."""
        tables = [torch.tensor(state[name], dtype=torch.float64) for name in ("class_quality", "mask_quality")]
        if any(table.shape != self.class_quality.shape for table in tables):
            found = f"adaptive thresholds of {len(tables[0])} classes"
            raise CheckpointError(f"the checkpoint holds {found}; the data has {len(self.class_quality)}")
        self.class_quality, self.mask_quality = tables


def _between(limits: tuple[float, float], shares: Tensor) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * shares
