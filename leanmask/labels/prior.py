"""What the labels' class frequencies put into a network's class probabilities, taken out again.

A network that saw one class two thousand times and another five times says of something between the two that it is the
first, and is right about images like its own. Where classes are to count alike, or where images were searched for their
rare classes, that prior does not hold. Letters: N objects, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def without_prior(probabilities: Tensor, objects_per_class: Sequence[int], strength: float) -> Tensor:
    """Class probabilities (N, C) divided by (objects of the class) ** strength, rows scaled to their old sums, so that
    background keeps its share; cut at 1. strength: 0 changes nothing, 1 takes all of the prior out. A class without
    objects counts as one with a single object.

    The post-hoc logit adjustment of Menon et al. 2021 ("Long-tail learning via logit adjustment"), where
    `strength` is called tau.
    """
    if strength == 0:
        return probabilities
    counts = probabilities.new_tensor(objects_per_class).clamp(min=1)
    weighted = probabilities * (counts / counts.max()) ** -strength
    total = weighted.sum(1, keepdim=True).clamp(min=1e-12)
    return (weighted * (probabilities.sum(1, keepdim=True) / total)).clamp(max=1)
