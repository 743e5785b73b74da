"""What processes tell each other: a count averaged over all of them, and rows gathered on the first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def global_count(count: Tensor) -> Tensor:
    """Mean over all processes of a count (any shape), as detached float32; the count itself where there is one process.

    Divide a process's sum of losses by it: data-parallel training averages gradients over the W processes, and
    (1/W) * sum_r(sum_r / (sum_r count_r / W)) = (sum of all losses) / (count of all objects), the gradient of the
    joined batch. The result is 0 where no process has anything: clamp it *after* this call, never before. It is a
    collective operation: every process must call it equally often and in the same order, also for an empty batch.
    """
    result = count.detach().to(torch.float32).clone()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(result, op=dist.ReduceOp.SUM)
        result /= dist.get_world_size()
    return result


def global_mean(total: Tensor, count: Tensor | int) -> Tensor:
    """This process's share of a mean over all processes: its sum of losses over the global count; 0 where there is
    nothing.

    Collective, as `global_count`. The counts are whole numbers, so the floor below only guards the division of 0 by 0.
    """
    shared = global_count(torch.as_tensor(count, dtype=torch.float32, device=total.device))
    return total / shared.clamp(min=1e-6)


def gather_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """All processes' rows, in the order of the processes, on the first process; None on the others. Collective."""
    mine = list(rows)
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return mine
    parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine, parts)
    return None if parts is None else [row for part in parts for row in part]
