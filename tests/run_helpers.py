"""What tests of whole commands and runs share: the smallest settings, and what a command did."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from leanmask.run import train as planned_train

# What a test says is all that is set: a plan would choose the rest by the data and the machine (see test_planning.py).
train = partial(planned_train, plan=False)

# The smallest network and shortest training that still goes through every part of the code.
TINY: dict[str, Any] = {
    "data": {"image_size": 64, "workers": 0},
    "model": {"backbone": "tiny"},
    "train": {"steps": 3, "batch_size": 2, "threads": 1, "log_every_steps": 1, "checkpoint_every_steps": 2},
    "optim": {"warmup_steps": 1},
    "evaluation": {"batch_size": 4, "pictures": 1},
}


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


def benchmark_script(name: str) -> ModuleType:
    """benchmarks/NAME.py, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
