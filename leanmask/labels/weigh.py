"""How much a pseudo-label counts: over the training, and pixel by pixel."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from leanmask.masks import Crops, Grids

Soft = TypeVar("Soft", Grids, Crops)  # masks of probabilities, or of weights


def cosine_ramp(step: int, ramp_steps: int) -> float:
    """Weight of pseudo-labels, 0 at step 0, one half in the middle, 1 from `ramp_steps` on (MaskBooster, Eq. 4)."""
    if step >= ramp_steps:
        return 1.0
    return 0.5 - 0.5 * math.cos(math.pi * max(step, 0) / ramp_steps)


def correction_weight(step: int, burn_in_steps: int, total_steps: int) -> float:
    """Weight of an outside judge of categories: 0.5 up to the end of burn-in, falling to 0 at `total_steps` (PL-DC's
    DICC, Eq. 7).

    The paper counts from the first step on; here, as in the authors' code, the fall begins when burn-in ends.
    """
    if step <= burn_in_steps:
        return 0.5
    if step >= total_steps:
        return 0.0
    return 0.25 * (math.cos(math.pi * (step - burn_in_steps) / (total_steps - burn_in_steps)) + 1)


def mask_uncertainty(probabilities: Tensor) -> Tensor:
    """How undecided a teacher is about each pixel: 1 at probability 0.5, 0 at 0 and 1; any shape (PL-DC, Eq. 10)."""
    return 1 - 2 * (probabilities - 0.5).abs()


def certainty_weights(masks: Soft) -> Soft:
    """Weight of every pixel in the loss of pseudo-masks: 1 - uncertainty (PL-DC's PMUA), at the same boxes or regions.

    What lies outside a crop has probability 0, hence weight 1, as `Target.pixel_weights` has it.
    """
    if isinstance(masks, Grids):
        return replace(masks, values=1 - mask_uncertainty(masks.values.float()))
    return Crops(1 - mask_uncertainty(masks.data.float()), masks.regions)


def boundary_weights(masks: Soft, factor: float = 3.0) -> Soft:
    """Weight of every pixel by how near it is to the mask's boundary (Noisy Boundaries, boundary-preserving map): the
    size of the 3x3 Laplacian (8 neighbours, 0 outside) of the probabilities, over the mask's own mean, times `factor`.

    Detached; the mean weight of every mask is `factor`. A mask without any boundary has it everywhere. The weights are
    to multiply the loss of each pixel *before* any mean. The released code takes the mean of the cross-entropy first
    and multiplies that one number with the map: the mean of the result is `factor` times the plain loss, whatever the
    map looks like, so that there the map amounts to a constant 3.
    """
    if isinstance(masks, Grids):
        return replace(masks, values=_boundary_map(masks.values.detach().float(), factor))
    maps = [_boundary_map(crop[None].detach().float(), factor)[0] for crop in masks]
    return Crops.join(maps, masks.regions, like=masks.data.float())


def _boundary_map(values: Tensor, factor: float) -> Tensor:
    """(K, h, w) of (K, h, w)."""
    if values.numel() == 0:
        return values
    kernel = torch.full((1, 1, 3, 3), -1.0, device=values.device)
    kernel[0, 0, 1, 1] = 8.0
    with torch.autocast(values.device.type, enabled=False):
        change = F.conv2d(values[:, None], kernel, padding=1)[:, 0].abs()
    mean = change.mean((1, 2), keepdim=True)
    return factor * torch.where(mean > 1e-6, change / mean.clamp(min=1e-6), 1.0)
