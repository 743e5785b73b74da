"""Label smoothing towards similar and rare classes (Porcher et al. 2024, "Better (pseudo-)labels", section 3.1).

A label says "this class and nothing else"; smoothed, it also says what the class looks like. Letters: M objects, D
numbers of an embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from leanmask.errors import ConfigError

Reading = Literal["row", "column"]


@dataclass(frozen=True)
class Smoothing:
    """epsilon: share of a label that is spread. gamma: how strongly rare classes are preferred; 0 = not at all.

    reading: how the published product S'y is read: "row" spreads a label of class c by row c of S', which sums to 1;
    "column" takes the formula at its word, by column c, which does not.
    """

    epsilon: float = 0.1
    gamma: float = 1.5
    reading: Reading = "row"

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise ConfigError(f"smoothing epsilon is {self.epsilon}; allowed: 0 to 1")
        if self.gamma < 0:
            raise ConfigError(f"smoothing gamma is {self.gamma}; it must be 0 or more")


class Prototypes:
    """Running sums of the embeddings of every class's objects; their mean is the class's prototype (Eq. 1)."""

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.float64)
        self.sums: Tensor | None = None  # (C, D), once an embedding has told D

    def add(self, embeddings: Tensor, categories: Tensor) -> None:
        """Take in M objects: embeddings (M, D), categories (M,) int64."""
        values, index = embeddings.detach().double().cpu(), categories.cpu()
        if self.sums is None:
            self.sums = torch.zeros(len(self.counts), values.shape[1], dtype=torch.float64)
        self.sums.index_add_(0, index, values)
        self.counts += torch.bincount(index, minlength=len(self.counts)).double()

    def add_sums(self, sums: Tensor, counts: Tensor) -> None:
        """Take in sums (C, D) of embeddings and how many objects of each class (C,) are in them."""
        self.sums = sums.double() if self.sums is None else self.sums + sums.double()
        self.counts = self.counts + counts.double()

    def means(self) -> Tensor:
        """(C, D) prototypes, a row of NaN where a class has no object."""
        sums = torch.zeros(len(self.counts), 1, dtype=torch.float64) if self.sums is None else self.sums
        return sums / torch.where(self.counts > 0, self.counts, torch.nan)[:, None]

    def state_dict(self) -> dict[str, Tensor | None]:
        """Sums and counts, as `load_state_dict` takes them."""
        return {"counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        """Go on where `state_dict` was taken."""
        assert state["counts"] is not None, "saved prototypes have counts"
        self.counts, self.sums = state["counts"], state["sums"]


def similarity(prototypes: Tensor) -> Tensor:
    """(C, C) cosine similarity of prototypes (C, D); NaN where one of the two is not known (NaN) or has no length."""
    lengths = prototypes.norm(dim=1, keepdim=True)
    unit = prototypes / torch.where(lengths > 0, lengths, torch.nan)
    return (unit @ unit.T).clamp(-1, 1)


def modulated(similarities: Tensor, counts: Tensor, gamma: float) -> Tensor:
    """S' (C, C), rows sum to 1: softmax over j of S_ij / N_j ** gamma (Eq. 2). counts: (C,) objects of each class.

    A class without a prototype is like no other and no other is like it: its own row is uniform, and in other rows it
    has the weight of a similarity of 0.
    """
    exponents = similarities / counts.to(similarities).clamp(min=1)[None, :] ** gamma
    return exponents.nan_to_num(nan=0.0).softmax(dim=1)


def smoothing_table(prototypes: Tensor, counts: Tensor, how: Smoothing = Smoothing()) -> Tensor:
    """(C, C) float: row c is the target of an object of class c, (1 - epsilon) of itself and epsilon of S' (Eq. 3)."""
    spread = modulated(similarity(prototypes), counts, how.gamma)
    if how.reading == "column":
        spread = spread.T
    return ((1 - how.epsilon) * torch.eye(len(counts), dtype=spread.dtype) + how.epsilon * spread).float()


def uniform_table(num_classes: int, epsilon: float = 0.1) -> Tensor:
    """(C, C) float, as `smoothing_table`, spread evenly over all classes (Szegedy et al. 2016)."""
    return (1 - epsilon) * torch.eye(num_classes) + epsilon / num_classes


def smooth(categories: Tensor, table: Tensor) -> Tensor:
    """(N, C) soft classes of objects (N,) int64, on their device."""
    return F.embedding(categories, table.to(categories.device))


def without_prototype(counts: Tensor, names: Sequence[str]) -> str | None:
    """A sentence that names the classes without a single object; None when there is none."""
    missing = [name for name, count in zip(names, counts.tolist(), strict=True) if count == 0]
    if not missing:
        return None
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return (
        f"{len(missing)} of {len(names)} classes have no object, so they have no prototype and are smoothed uniformly: "
        f"{', '.join(missing[:5])}{more}"
    )
