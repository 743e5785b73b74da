"""The one number that losses need from the other processes: a count, averaged over all of them."""

from __future__ import annotations

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
    """This process's share of a mean over all processes: its sum of losses over the global count; 0 where there is nothing.

    Collective, as `global_count`. The counts are whole numbers, so the floor below only guards the division of 0 by 0.
    """
    shared = global_count(torch.as_tensor(count, dtype=torch.float32, device=total.device))
    return total / shared.clamp(min=1e-6)
