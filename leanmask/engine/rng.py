"""The state of every random generator of a process, taken and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RngState = dict[str, Any]  # plain numbers, lists and tensors only, so that it can be loaded without unpickling code


def capture_rng() -> RngState:
    """State of Python's, numpy's, torch's CPU generator and the current CUDA device's."""
    legacy = np.random.get_state(legacy=False)
    assert isinstance(legacy, dict)
    state: RngState = {
        "python": _plain(random.getstate()),
        "numpy": legacy
        | {"state": legacy["state"] | {"key": torch.from_numpy(legacy["state"]["key"].astype(np.int64))}},
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng(state: RngState) -> None:
    """Put the generators back to what `capture_rng` found."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    inner = state["numpy"]["state"]
    np.random.set_state(state["numpy"] | {"state": inner | {"key": inner["key"].numpy().astype(np.uint32)}})
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def untouched_rng() -> Iterator[None]:
    """Whatever happens inside leaves the random streams of training where they were."""
    state = capture_rng()
    try:
        yield
    finally:
        restore_rng(state)


def _plain(state: tuple[Any, ...]) -> list[Any]:
    version, internal, gauss = state
    return [version, list(internal), gauss]
