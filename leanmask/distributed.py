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
