"""On what networks run: a GPU where there is one, unless a person says otherwise."""

from __future__ import annotations

import os
import platform

import torch
from accelerate.utils import parse_flag_from_env


def use_cpu() -> bool:
    """Whether training is on the CPU: no accelerator is there, or ACCELERATE_USE_CPU is set, or several processes meet
    one that cannot be shared (Apple's). Accelerate must be told: by itself it joins CPU processes under torchrun not.
    """
    if parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available():
        return True
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and torch.accelerator.current_accelerator() == torch.device("mps")


def default_device() -> torch.device:
    """Where a network is loaded when nobody says: on a GPU when there is one, unless ACCELERATE_USE_CPU is set."""
    return torch.device("cuda" if torch.cuda.is_available() and not use_cpu() else "cpu")


def machine() -> str:
    """What this process trains on: the processor and the threads it uses, the GPU where it uses one, torch."""
    found = [platform.machine(), f"{torch.get_num_threads()} thread(s)"]
    gpu = [] if use_cpu() else [torch.cuda.get_device_name() if torch.cuda.is_available() else "GPU"]
    return ", ".join([*found, *gpu, f"torch {torch.__version__}"])
