"""Pseudo-masks from a teacher's mask logits: binary ones, soft ones, and the divergence that teaches with the latter.

Letters: K proposals, C class channels, h w rows and columns of a mask grid.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def binary_masks(logits: Tensor, threshold: float = 0.5) -> Tensor:
    """Hard pseudo-masks: probability above `threshold`. (K, h, w) logits of each object's own class to (K, h, w) float
    0/1.

    With `labels.boxes.box_prior` this is the activate-slice-threshold procedure of MaskBooster, Eq. 7 and 10.
    """
    return (logits.sigmoid() > threshold).to(logits.dtype)


def class_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) between the softmax over class channels, per cell (MaskBooster, Eq. 11).

    student, teacher: (K, C, h, w) logits; one channel is read as object against background. Returns (K, h, w), already
    multiplied by temperature squared, so that the gradient's size does not depend on the temperature (Hinton et al.
    2015).
    """
    if student.shape[1] == 1:
        student, teacher = (F.pad(logits, (0, 0, 0, 0, 0, 1)) for logits in (student, teacher))
    target = F.log_softmax(teacher.float() / temperature, dim=1)
    said = F.log_softmax(student.float() / temperature, dim=1)
    return F.kl_div(said, target, reduction="none", log_target=True).sum(1) * temperature**2


def mask_certainty(values: Tensor) -> Tensor:
    """(K,) mean probability inside each mask (above 0.5) of probabilities (K, h, w); 0 for an empty one."""
    inside = (values > 0.5).float()
    return (values * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1.0)
