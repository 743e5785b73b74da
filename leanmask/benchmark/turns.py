"""Pieces of work timed in turns, A B A B, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Works = Mapping[str, Callable[[], object]]
WARM_UP_TURNS = 3


@dataclass(frozen=True)
class Seconds:
    """What one piece of work took in every turn: seconds by the clock, and of the processor in all threads, which is
    steadier on a busy machine.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """By the clock."""
        return statistics.median(self.wall)

    @property
    def cpu_median(self) -> float:
        """Of the processor."""
        return statistics.median(self.cpu)


def in_turns(works: Callable[[], Works], rounds: int, warm_up: int = WARM_UP_TURNS) -> dict[str, Seconds]:
    """Seconds of every piece of work, by name, in `rounds` turns after `warm_up` that do not count. `works` is asked
    before every turn, for what is new in it (a batch, a copy); that takes no part in the time.
    """
    spent: dict[str, Seconds] = {}
    for turn in range(warm_up + rounds):
        for name, work in works().items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn >= warm_up:
                seconds = spent.setdefault(name, Seconds())
                seconds.wall.append(wall)
                seconds.cpu.append(cpu)
    return spent


def medians(spent: Mapping[str, Seconds]) -> dict[str, float]:
    """{"NAME_seconds": the median by the clock}."""
    return {f"{name}_seconds": seconds.median for name, seconds in spent.items()}
