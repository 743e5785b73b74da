"""What the processes of a data-parallel run agree on: flags, buffers, numbers for the journal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

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


def make_accelerator(folder: Path, trackers: Sequence[str]) -> Accelerator:
    """Accelerate for this process: device, data-parallel wrapping and further trackers.

    Mixed precision and accumulation stay with the training loop, so nothing global depends on one run's settings.
    Parameters take part in every backward pass and buffers are shared after it, so the wrapper looks for neither.
    Raises ConfigError for a tracker that does not exist or is not installed.
    """
    wrapping = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    try:
        accelerator = Accelerator(
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
