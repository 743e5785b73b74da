"""Whether pseudo-objects come at all, and of every class as often as labelled ones: a class that vanishes or multiplies
is an early sign of self-training going wrong, which the mean over classes hides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leanmask.labels.select import Qualities

WINDOW_IMAGES = 400  # between two judgements
LEAST_EXPECTED = 10.0  # objects per window at the labelled rate, below which chance could explain anything
FEW, MANY = 0.1, 4.0  # times the labelled rate
NAMED = 5  # classes in a sentence
NOTHING_IMAGES = 200  # in a row of which nothing is kept, before that is said
SILENT = -(2**62)  # images: nothing more is said until something is kept


class NothingKept:
    """Says once, with the best qualities seen, that the thresholds keep nothing; and again after something was kept."""

    def __init__(self) -> None:
        self._images = 0
        self._best = [0.0, 0.0]

    def see(self, qualities: Sequence[Qualities], kept: Sequence[Tensor]) -> None:
        """Take the predictions of some images, and which of them (N,) bool are kept."""
        if any(bool(keep.any()) for keep in kept):
            self._images, self._best = 0, [0.0, 0.0]
            return
        self._images += len(kept)
        for place, name in enumerate(("class_quality", "mask_quality")):
            values = torch.cat([getattr(quality, name) for quality in qualities])
            self._best[place] = max(self._best[place], float(values.max()) if len(values) else 0.0)

    def news(self, settings: str) -> list[str]:
        """The sentence, when it is time for it. settings: which thresholds decide."""
        if self._images < NOTHING_IMAGES:
            return []
        images, self._images = self._images, SILENT
        return [
            f"nothing was kept on {images} images; the best class quality seen is {self._best[0]:.2f}, mask quality "
            f"{self._best[1]:.2f}; if that lasts, lower {settings}"
        ]

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"images": self._images, "best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._images, self._best = state["images"], list(state["best"])


class ClassRates:
    """Counts pseudo-objects per class and says a sentence when classes begin to vanish or to multiply, once each time.

    objects_per_class: labelled objects (C,), on so many labelled_images; empty: nothing is known, nothing is said. The
    numbers of FEW and MANY are ours.
    """

    def __init__(self, objects_per_class: Sequence[int], labelled_images: int, names: Sequence[str]) -> None:
        images = max(labelled_images, 1)
        self._labelled = torch.tensor([count / images for count in objects_per_class], dtype=torch.float64)
        self._names = tuple(names)
        self._counts = torch.zeros_like(self._labelled)
        self._images = 0
        self._told: dict[str, list[int]] = {"few": [], "many": []}

    def update(self, categories: Tensor, images: int) -> list[str]:
        """Take the categories (N,) of the pseudo-objects of so many images; sentences when a window is full."""
        if len(self._counts) == 0:
            return []
        self._counts += torch.bincount(categories.cpu(), minlength=len(self._counts)).double()
        self._images += images
        if self._images < WINDOW_IMAGES:
            return []
        rates = self._counts / self._images
        enough = self._labelled * self._images >= LEAST_EXPECTED
        judged = {"few": enough & (rates < FEW * self._labelled), "many": enough & (rates > MANY * self._labelled)}
        self._counts.zero_()
        self._images = 0
        return [sentence for kind, found in judged.items() if (sentence := self._news(kind, found, rates))]

    def _news(self, kind: str, found: Tensor, rates: Tensor) -> str | None:
        """A sentence when classes are concerned that were not the time before."""
        now = torch.nonzero(found)[:, 0].tolist()
        before, self._told[kind] = self._told[kind], now
        if not set(now) - set(before):
            return None
        each = [f"{self._names[c]} ({rates[c]:.2f} an image, labelled {self._labelled[c]:.2f})" for c in now[:NAMED]]
        more = f" and {len(now) - NAMED} more classes" if len(now) > NAMED else ""
        what, advice = ("far fewer", "lower") if kind == "few" else ("far more", "raise")
        return (
            f"{what} pseudo-objects than labels of {', '.join(each)}{more}; if that lasts, {advice} the thresholds "
            "(method.class_quality, method.mask_quality)"
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"counts": self._counts.tolist(), "images": self._images, "told": self._told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._counts = torch.tensor(state["counts"], dtype=torch.float64)
        self._images, self._told = state["images"], {kind: list(classes) for kind, classes in state["told"].items()}
