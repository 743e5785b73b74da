"""Chance that depends on a seed and a name alone, so that splits nest and never change with order or size of a file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Sequence
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)


def stable_number(seed: int, *name: Hashable) -> int:
    """A number below 2 ** 64, the same on every machine, that looks random in (seed, name)."""
    text = ":".join(map(str, (seed, *name)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def shuffled(items: Sequence[Item], seed: int, kind: str) -> list[Item]:
    """The items in the order of their stable numbers: of any two, the same comes first in every set that has both."""
    return sorted(items, key=lambda item: (stable_number(seed, kind, item), str(item)))


def count_of(share: float, total: int) -> int:
    """`share` (0-1) of `total` items, rounded half up; at least one when there is any and the share is above zero."""
    if share <= 0 or total == 0:
        return 0
    return min(max(math.floor(share * total + 0.5), 1), total)
