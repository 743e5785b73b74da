"""What a measurement was made with: which source, on what machine."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

from leanmask.engine.distributed import use_cpu


def commit() -> str:
    """Short hash of the source tree's commit, with a + for uncommitted changes; "unknown" outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """What this process trains on: the processor and the threads it uses, the GPU where there is one, torch."""
    found = [platform.machine(), f"{torch.get_num_threads()} thread(s)"]
    gpu = [] if use_cpu() else [torch.cuda.get_device_name() if torch.cuda.is_available() else "GPU"]
    return ", ".join([*found, *gpu, f"torch {torch.__version__}"])
