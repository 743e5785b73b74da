"""Reading files of weights: tensors alone, whoever made the file; nothing in it is executed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from leanmask.errors import CheckpointError

State = dict[str, Tensor]

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")  # what checkpoints have their tensors under
OF_PROCESSES = "module."  # before every name in checkpoints of torch's data parallelism


def read_state(path: Path) -> State:
    """The tensors of a checkpoint file. Raises CheckpointError when it cannot be read or holds more than tensors."""
    if not path.is_file():
        raise CheckpointError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint make the readers fail in any way, KeyError included
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        if isinstance(error, pickle.UnpicklingError):  # whose advice is to run what is in it
            reason = "Python objects, which are not read because reading them runs code"
        raise CheckpointError(f"weights file {path} is damaged or holds more than tensors ({reason})") from None
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"weights file {path} holds no state dict of tensors")
    return {name.removeprefix(OF_PROCESSES): value for name, value in content.items()}
