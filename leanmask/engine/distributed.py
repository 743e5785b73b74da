"""What the processes of a data-parallel run agree on: flags, buffers, numbers for the journal."""

from __future__ import annotations

import atexit
import gc
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from torch import Tensor, nn

from leanmask.devices import use_cpu
from leanmask.errors import ConfigError


def world_size() -> int:
    """Number of processes, 1 when nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def agree(flags: Sequence[int], device: torch.device) -> list[int]:
    """The largest value of each flag over all processes. Collective."""
    if world_size() == 1:
        return list(flags)
    shared = torch.tensor(list(flags), device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return [int(flag) for flag in shared.tolist()]


def everyones(item: Any) -> list[Any]:
    """What each process has, in the order of the processes. Collective."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def mean_numbers(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each named number over the parts that have it."""
    names = dict.fromkeys(name for part in parts for name in part)
    found = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


@torch.no_grad()
def share_from_first(tensors: Sequence[Tensor]) -> None:
    """Give every process the first one's values, bit for bit, with one message per data type. Collective."""
    if world_size() == 1:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        dist.broadcast(flat.view(torch.uint8) if dtype == torch.bool else flat, src=0)
        for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def share_module(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers. Collective."""
    share_from_first([*module.parameters(), *module.buffers()])


def start_processes() -> PartialState:
    """Join the processes that torchrun started (gloo on CPUs, nccl on GPUs); alone it is a single process.

    Must come before any other use of Accelerate, which keeps what its first use found.
    """
    state = PartialState(cpu=use_cpu())
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    assert state.num_processes == expected, "Accelerate was used before start_processes(), the processes are not joined"
    if expected > 1:
        # A 1x1 convolution's weight has two equally right orders in memory; the wrapper warns when they differ.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        atexit.unregister(part_processes)
        atexit.register(part_processes)
    return state


def part_processes() -> None:
    """End the communication between processes. Wrapped models that still wait for the garbage collector keep gloo's
    threads alive, and one that lets go of a tensor while the interpreter ends aborts the process.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
        time.sleep(0.1)  # gives the interpreter lock to threads that are about to end


def make_accelerator(folder: Path, trackers: Sequence[str]) -> Accelerator:
    """Accelerate for this process: device, data-parallel wrapping and further trackers.

    Mixed precision and accumulation stay with the training loop, so nothing global depends on one run's settings.
    Every parameter takes part in every backward pass, so the wrapper need not look for unused ones.
    Raises ConfigError for a tracker that does not exist or is not installed.
    """
    start_processes()
    wrapping = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    try:
        accelerator = Accelerator(
            cpu=use_cpu(),
            mixed_precision="no",
            kwargs_handlers=[wrapping],
            log_with=list(trackers) or None,
            project_dir=str(folder / "trackers"),
        )
    except ValueError as error:
        if not trackers:
            raise
        raise ConfigError(f"train.trackers: {error}") from None
    missing = set(trackers) - {str(tracker) for tracker in accelerator.log_with}
    if missing:
        raise ConfigError(f"train.trackers: not installed: {', '.join(sorted(missing))}; use pip install to add them")
    if trackers:
        accelerator.init_trackers("leanmask")
    return accelerator


def finish_trackers(accelerator: Accelerator) -> None:
    """Close the trackers. Accelerate's own `end_training` would also part the processes, and then nobody could evaluate
    or train again.
    """
    for tracker in accelerator.trackers:
        tracker.finish()
