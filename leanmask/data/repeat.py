"""Repeat-factor sampling: images of rare classes stand in the training stream more often (Gupta et al. 2019, LVIS,
section 4).

A class in the share f of the images has the factor max(1, sqrt(t / f)); an image has that of its rarest class.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from leanmask.geometry import FloatArray


def repeat_factors(classes: Sequence[Collection[int]], threshold: float) -> FloatArray:
    """(images,) how often each image is shown per epoch, on average. classes: those on each image. threshold: share of
    the images below which a class counts as rare.
    """
    counts = Counter(category for own in classes for category in set(own))
    of_class = {category: max(1.0, (threshold * len(classes) / count) ** 0.5) for category, count in counts.items()}
    return np.array([max((of_class[category] for category in own), default=1.0) for own in classes])


class Repeats:
    """The endless stream of image indices: an epoch shows image i floor(r_i) or ceil(r_i) times, r_i on average, in
    random order. What stands at a position depends on factors, seed and position alone.
    """

    def __init__(self, factors: FloatArray, seed: int) -> None:
        """factors: (images,) from `repeat_factors`."""
        self.factors, self.seed = factors, seed
        self._ends: list[int] = []  # where each epoch worked out so far ends in the stream
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))

    def image_index(self, position: int) -> int:
        """Which image stands at a position of the stream."""
        while not self._ends or self._ends[-1] <= position:
            epoch = len(self._ends)
            start = self._ends[-1] if self._ends else 0
            self._ends.append(start + int(self._counts(self._chance(epoch)).sum()))
        epoch = bisect_right(self._ends, position)
        if self._order[0] != epoch:
            chance = self._chance(epoch)
            images = np.repeat(np.arange(len(self.factors)), self._counts(chance))
            self._order = epoch, chance.permutation(images)
        start = self._ends[epoch - 1] if epoch else 0
        return int(self._order[1][position - start])

    def _chance(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 2, epoch])

    def _counts(self, chance: np.random.Generator) -> npt.NDArray[np.int64]:
        whole = np.floor(self.factors)
        more = chance.random(len(self.factors)) < self.factors - whole
        counts: npt.NDArray[np.int64] = (whole + more).astype(np.int64)
        return counts
