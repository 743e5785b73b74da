"""Classification losses of proposals, with hard or soft targets, that teach a class only where somebody looked for it.

Letters: K proposals, C categories; column 0 of logits and soft targets is background, category c is column c + 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from leanmask.models.matching import of_object
from leanmask.records import Proposals, Target

FREQUENCY_POWER = 0.5  # negatives are drawn in proportion to image count ** 0.5 (EVA-02's and CenterNet2's recipe)


def one_hot(classes: Tensor, count: int) -> Tensor:
    """(N, count) float32, 1 at classes (N,) int64; torch's makes a copy of twice the size on the way."""
    return torch.zeros(len(classes), count, device=classes.device).scatter_(1, classes[:, None], 1.0)


def soft_classes(target: Target, num_classes: int, normalised: bool = True) -> Tensor:
    """(N, C) what the objects' classes are to be: given probabilities (`normalised` rows are scaled to sum to 1), or 1
    for the class.
    """
    instances = target.instances
    if instances.class_probabilities is None:
        return one_hot(instances.categories, num_classes)
    given = instances.class_probabilities.float()
    return given / given.sum(1, keepdim=True).clamp(min=1e-6) if normalised else given


def class_targets(samples: Proposals, targets: Sequence[Target], num_classes: int, normalised: bool = True) -> Tensor:
    """What the class logits of samples are to be: (K,) int64 with 0 for background, or (K, C + 1) probabilities where
    some objects carry soft classes (see `soft_classes`; `normalised`, so that an object in doubt is not background).
    """
    positive = samples.object_index >= 0
    classes = torch.where(positive, samples.categories + 1, 0)
    if all(target.instances.class_probabilities is None for target in targets):
        return classes
    soft = one_hot(classes, num_classes + 1)
    given = [soft_classes(target, num_classes, normalised) for target in targets]
    soft[positive, 1:] = of_object(given, samples.image_index[positive], samples.object_index[positive])
    return soft


def looked_for(targets: Sequence[Target], image_index: Tensor, owners: Tensor, num_classes: int) -> Tensor | None:
    """(K, C) bool: what each proposal may say about each class; None where that is everything (no LVIS fields).

    A proposal speaks of the classes of which everything in its image is labelled, and of its own object's class.
    image_index: (K,). owners: (K,) int64 class of the matched object, -1 for background.
    """
    if all(target.known_categories is None for target in targets):
        return None
    known = torch.zeros(len(targets), num_classes, dtype=torch.bool, device=image_index.device)
    for row, target in zip(known, targets, strict=True):
        row[slice(None) if target.known_categories is None else target.known_categories] = True
    allowed = known[image_index]
    matched = torch.nonzero(owners >= 0)[:, 0]
    allowed[matched, owners[matched]] = True
    return allowed


def draw_classes(present: Tensor, image_counts: Tensor, number: int) -> Tensor:
    """(C,) bool: the classes that learn in this step, at least those `present` (C,) bool, filled up to `number` with
    others, drawn without replacement in proportion to image_counts (C,) ** 0.5 (the federated loss of EVA-02's
    recipe)."""
    chosen = present.clone()
    missing = number - int(present.sum())
    shares = image_counts.to(present.device).float().clamp(min=1) ** FREQUENCY_POWER
    shares[present] = 0
    missing = min(missing, int((shares > 0).sum()))
    if missing > 0:
        chosen[torch.multinomial(shares, missing)] = True
    return chosen


def softmax_loss(logits: Tensor, targets: Tensor, allowed: Tensor | None = None) -> Tensor:
    """(K,) cross-entropy of logits (K, C + 1) against classes (K,) int64 or probabilities (K, C + 1).

    Classes that are not `allowed` (K, C) are left out of the softmax: neither more nor less likely afterwards. What a
    soft target says of them is shared out among the others.
    """
    if allowed is None:
        return F.cross_entropy(logits, targets, reduction="none")
    everything = torch.cat([torch.ones_like(allowed[:, :1]), allowed], dim=1)
    surprise = -logits.masked_fill(~everything, -torch.inf).log_softmax(1)
    if targets.dim() == 1:
        return surprise.gather(1, targets[:, None])[:, 0]
    wanted = targets * everything
    wanted = wanted / wanted.sum(1, keepdim=True).clamp(min=1e-6)
    return (wanted * surprise.masked_fill(~everything, 0.0)).sum(1)


def sigmoid_loss(logits: Tensor, targets: Tensor, allowed: Tensor | None = None) -> Tensor:
    """(K,) binary cross-entropy of every class's logit, summed over the `allowed` (K, C) ones; background is that no
    class applies, so column 0 of logits and targets is not looked at. targets: as for `softmax_loss`, rows of soft
    targets need not sum to 1.
    """
    count = logits.shape[1]
    wanted = one_hot(targets, count).to(logits) if targets.dim() == 1 else targets
    losses = F.binary_cross_entropy_with_logits(logits[:, 1:], wanted[:, 1:], reduction="none")
    return (losses if allowed is None else losses * allowed).sum(1)
