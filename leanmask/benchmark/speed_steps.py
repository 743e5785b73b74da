"""What a MaskBooster step costs beside a supervised one, the loader's share of a step, and the memory of targets."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leanmask.benchmark.arms import PRESET, SPARSE
from leanmask.benchmark.turns import WARM_UP_TURNS, Works, in_turns, medians
from leanmask.config import merge
from leanmask.data.coco import ImageRecord, ObjectRecord
from leanmask.data.digits import DigitsSpec, write_digits
from leanmask.data.splits import split
from leanmask.data.views.targets import place, to_target
from leanmask.devices import channels_last, settle_precision
from leanmask.engine.distributed import start_processes
from leanmask.engine.step import to_device
from leanmask.geometry import Frame
from leanmask.masks import Crops
from leanmask.models.spec import is_depthwise
from leanmask.records import Batch, Supervision
from leanmask.session import Session
from leanmask.settings import resolve
from leanmask.settling import settle

CPU = torch.device("cpu")


def maskbooster_speed(rounds: int = 20) -> dict[str, Any]:
    """Seconds of a MaskBooster step and of a supervised step on the same batches, in turns; the ratio of medians."""
    with tempfile.TemporaryDirectory() as folder:
        supervised, boosted = (_session(Path(folder), name) for name in ("ema_aug", "maskbooster"))
        batches = supervised.loader.iterate(0)
        steps = {"supervised": stepper(supervised), "maskbooster": stepper(boosted)}
        spent = in_turns(lambda: on_batch(steps, next(batches)), rounds)
    ratio = spent["maskbooster"].median / spent["supervised"].median
    return {**medians(spent), "ratio": ratio, "rounds": rounds}


def data_share(steps: int = 30) -> dict[str, Any]:
    """Share of a supervised training step that waits for the loader, with two loader processes."""
    with tempfile.TemporaryDirectory() as folder:
        session = _session(Path(folder), "ema_aug", workers=2)
        step, batches = stepper(session), session.loader.iterate(0)
        waited, whole = [], []
        for turn in range(WARM_UP_TURNS + steps):
            started = time.perf_counter()
            batch = next(batches)
            loaded = time.perf_counter()
            step(to_cpu(batch))
            if turn >= WARM_UP_TURNS:
                waited.append(loaded - started)
                whole.append(time.perf_counter() - started)
    return {"share": sum(waited) / sum(whole), "steps": steps, "median_wait_seconds": statistics.median(waited)}


def target_memory(objects: int = 300, side_px: int = 1024) -> dict[str, Any]:
    """Bytes of one image's targets, `objects` ellipses of 20 to 80 px, beside dense masks of the same."""
    rng = np.random.default_rng(0)
    records = tuple(_ellipse(number, rng, side_px) for number in range(objects))
    image = ImageRecord(1, Path("none.png"), side_px, side_px, True, records, np.zeros((0, 4)))
    frame = Frame((side_px, side_px), (side_px, side_px), (1.0, 1.0), (0.0, 0.0))
    instances = to_target(place(image, frame)).instances
    crops = instances.masks
    assert isinstance(crops, Crops)
    tensors = [
        instances.boxes,
        instances.categories,
        instances.supervision,
        instances.weights,
        crops.data,
        crops.regions,
    ]
    found = sum(int(tensor.nbytes) for tensor in tensors)
    dense = len(instances) * side_px**2
    return {"objects": len(instances), "bytes": found, "dense_bytes": dense, "ratio": found / dense}


def _ellipse(number: int, rng: np.random.Generator, side_px: int) -> ObjectRecord:
    radius = rng.uniform(10, 40, 2)
    centre = rng.uniform(50, side_px - 50, 2)
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    polygon = centre + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return ObjectRecord(
        id=number,
        category=0,
        box_xyxy=np.concatenate([centre - radius, centre + radius]),
        supervision=Supervision.MASK,
        segmentation=[polygon],
        points_xy=np.zeros((0, 2)),
        point_labels=np.zeros(0, dtype=np.int64),
        crowd=False,
        weight=1.0,
        provenance="human",
    )


def _session(folder: Path, arm: str, workers: int = 0) -> Session:
    source, data = folder / "digits", folder / "sparse"
    if not source.exists():
        write_digits(source, DigitsSpec(train=64, tune=1, val=1))
        split(source, data, "sparse-10")
    return session_on(data, merge(SPARSE[arm].settings, {"data": {"workers": workers}}), folder / arm)


def session_on(data: Path, settings: dict[str, Any], folder: Path) -> Session:
    """A training of the benchmark's preset, put together but not begun."""
    settings = merge(merge(PRESET, settings), {"data": {"path": str(data)}})
    session = Session(settle(resolve(settings))[0], folder, start_processes())
    if session.config.train.channels_last:
        for model in (session.student, session.teacher.model):
            model.to(memory_format=torch.channels_last)
    return session


def to_cpu(batch: Batch) -> Batch:
    """As a training on this machine's CPU gets it, when its settings leave that open."""
    depthwise = is_depthwise(PRESET["model"]["backbone"])
    return to_device(batch, CPU, channels_last(settle_precision("auto", CPU, depthwise)[0], CPU, depthwise))


def on_batch(steps: Mapping[str, Callable[[Batch], None]], batch: Batch) -> Works:
    """One update of each on the same batch, which has gone to the device."""
    there = to_cpu(batch)
    return {name: partial(step, there) for name, step in steps.items()}


def stepper(session: Session) -> Callable[[Batch], None]:
    """One update of a session on a given batch."""
    optimiser = torch.optim.AdamW(session.student.parameters(), lr=1e-4)
    middle = session.config.train.steps // 2  # past the start of the ramp
    bf16 = session.config.train.precision == "bf16"

    def step(batch: Batch) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = session.method.losses(session.student, session.teacher.model, batch, middle).losses
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        session.teacher.follow(session.student, 0.999)

    return step
