"""What tests of whole commands and runs share: the smallest settings, and what a command did."""

from __future__ import annotations

from typing import Any, NamedTuple

# The smallest network and shortest training that still goes through every part of the code.
TINY: dict[str, Any] = {
    "data": {"image_size": 64, "workers": 0},
    "train": {"steps": 3, "batch_size": 2, "threads": 1, "log_every_steps": 1, "checkpoint_every_steps": 2},
    "optim": {"warmup_steps": 1},
    "evaluation": {"batch_size": 4},
}


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str
