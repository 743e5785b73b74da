"""How much a pseudo-label counts."""

from __future__ import annotations

import math


def cosine_ramp(step: int, ramp_steps: int) -> float:
    """Weight of pseudo-labels, 0 at step 0, one half in the middle, 1 from `ramp_steps` on (MaskBooster, Eq. 4)."""
    if step >= ramp_steps:
        return 1.0
    return 0.5 - 0.5 * math.cos(math.pi * max(step, 0) / ramp_steps)
