"""Where the time of a training step of the default size goes: what is network, and what is everything around it."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from leanmask.benchmark.speed_steps import WARM_UP_TURNS
from leanmask.config import merge
from leanmask.data.digits import DigitsSpec, write_digits
from leanmask.devices import machine
from leanmask.engine.distributed import start_processes
from leanmask.models import mask_rcnn
from leanmask.session import Session
from leanmask.settings import resolve
from leanmask.settling import settle

SIZE_PX, BATCH = 192, 8
NETWORK = ("backbone", "proposal head", "box head", "mask head", "backward")


class Clock:
    """Processor seconds of named pieces of work, each without the pieces inside it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._running: list[float] = []  # what the pieces inside each running one took

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def timing(*values: Any, **named: Any) -> Any:
            self._running.append(0.0)
            started = time.process_time()
            try:
                return work(*values, **named)
            finally:
                whole = time.process_time() - started
                self.seconds[name] += whole - self._running.pop()
                if self._running:
                    self._running[-1] += whole

        return timing


def default_step_profile(steps: int = 20, model: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Processor seconds per step of the engine's own loop for a supervised Mask R-CNN with the default backbone, by
    piece, and the share that is not network (bar: 0.15). Batches are loaded before: loading is the workers' part.

    model: settings instead of the default ones.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits"
        write_digits(data, DigitsSpec(train=2 * BATCH, tune=1, val=1, size_px=SIZE_PX))
        session = Session(_settings(data, steps, model or {}), Path(folder) / "run", start_processes())
        session.write_folder({}, {})
        batches = list(itertools.islice(session.loader.iterate(0), 2))
        session.loader.iterate = lambda start_step: itertools.cycle(batches)  # type: ignore[method-assign]
        session.evaluate = lambda step: {}  # type: ignore[method-assign]
        clock, after = Clock(), list[dict[str, float]]()
        moments: dict[int, float] = {}  # when each step was first said to be done

        def at_step(step: int, total: int, note: str) -> None:
            if step >= WARM_UP_TURNS and step not in moments:
                moments[step] = time.process_time()
                after.append(dict(clock.seconds))

        with _watched(session, clock):
            session.run(resume=False, on_progress=at_step)
    count = len(moments) - 1
    whole = (max(moments.values()) - min(moments.values())) / count
    spent = {name: (seconds - after[0].get(name, 0.0)) / count for name, seconds in after[-1].items()}
    network = sum(spent.get(name, 0.0) for name in NETWORK)
    spent["rest"] = whole - sum(spent.values())
    config = session.config
    return {
        "model": f"mask_rcnn {config.model.backbone}",  # type: ignore[attr-defined]
        "size_px": SIZE_PX,
        "batch": BATCH,
        "steps": count,
        "step_cpu_seconds": whole,
        "pieces_cpu_seconds": spent,
        "not_network": 1 - network / whole,
        "machine": machine(config.train.precision),
    }


def _settings(data: Path, steps: int, model: Mapping[str, Any]) -> Any:
    given = {
        "data": {"path": str(data), "image_size": SIZE_PX, "workers": 0},
        "model": {"name": "mask_rcnn", **model},
        "method": {"name": "supervised"},
        "train": {"steps": WARM_UP_TURNS + steps, "batch_size": BATCH, "checkpoint_every_steps": 10**6},
    }
    return settle(resolve(merge(given, {})))[0]


@contextmanager
def _watched(session: Session, clock: Clock) -> Iterator[None]:
    """Let the clock see the pieces of a step."""
    student: Any = session.student
    heads: Any = student.roi_heads
    for name, owner, method in (
        ("backbone", student, "features"),
        ("proposal head", student.rpn, "forward"),
        ("proposals", student.rpn, "propose"),
        ("proposal losses", student.rpn, "losses"),
        ("matching and sampling", student, "choose"),
        ("box head", heads, "classify"),
        ("box losses", student, "stage_losses"),
        ("mask head", heads, "_cells"),
        ("mask targets and losses", heads, "mask_losses"),
        ("average of the teacher", session.teacher, "follow"),
    ):
        setattr(owner, method, clock.timed(name, getattr(owner, method)))
    shared: tuple[tuple[Any, str, str], ...] = (
        (torch.Tensor, "backward", "backward"),
        (torch.optim.AdamW, "step", "optimiser"),
        (mask_rcnn, "upsampled_logits", "mask head"),
    )
    kept = [getattr(owner, method) for owner, method, _ in shared]
    for (owner, method, name), work in zip(shared, kept, strict=True):
        setattr(owner, method, clock.timed(name, work))
    try:
        yield
    finally:
        for (owner, method, _), work in zip(shared, kept, strict=True):
            setattr(owner, method, work)
