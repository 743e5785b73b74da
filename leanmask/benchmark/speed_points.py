"""What learning from points costs beside learning from masks, and the memory of PointRend's inference."""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from leanmask.benchmark.speed_steps import session_on, stepper, to_cpu
from leanmask.benchmark.turns import Seconds, Works, in_turns, medians
from leanmask.data.digits import DigitsSpec, write_digits
from leanmask.data.splits import split
from leanmask.models.implicit_pointrend import ImplicitPointRend
from leanmask.models.pointrend import PointRend
from leanmask.records import Proposals

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def points_speed(rounds: int = 20) -> dict[str, Any]:
    """Median seconds of a step from ten points per object and of one from masks, of the same images and model, in
    turns; and by model the median ratio of the two of a turn, which a machine that slows down for a while spoils least.
    """
    found: dict[str, Any] = {"rounds": rounds}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "digits"
        write_digits(source, DigitsSpec(train=64, tune=1, val=1))
        for protocol in ("full", "points-10"):
            split(source, Path(folder) / protocol, protocol)
        for model in ("mask_rcnn", "pointrend", "implicit_pointrend"):
            spent = _spent(Path(folder), model, rounds)
            found |= {f"{model}_{name}": seconds for name, seconds in medians(spent).items()}
            turns = zip(spent["points-10"].wall, spent["full"].wall, strict=True)
            found[f"{model}_ratio"] = statistics.median(points / masks for points, masks in turns)
    return found


def _spent(folder: Path, model: str, rounds: int) -> dict[str, Seconds]:
    settings = {"model": {"name": model}, "method": {"name": "supervised"}, "data": {"workers": 0}}
    sessions = {name: session_on(folder / name, settings, folder / "run") for name in ("full", "points-10")}
    batches = {name: session.loader.iterate(0) for name, session in sessions.items()}
    steps = {name: stepper(session) for name, session in sessions.items()}

    def own_batches() -> Works:
        return {name: partial(step, to_cpu(next(batches[name]))) for name, step in steps.items()}

    return in_turns(own_batches, rounds)


@torch.inference_mode()
def pointrend_memory(objects: int = 300, side_px: int = 1024) -> dict[str, Any]:
    """Most bytes that the masks of one image's objects take above the backbone's maps and the model, by model with the
    published numbers. Linux only.
    """
    found: dict[str, Any] = {"objects": objects, "side_px": side_px}
    torch.manual_seed(0)
    corner = torch.rand(objects, 2) * (side_px - 100)
    boxes = torch.cat([corner, corner + 20 + torch.rand(objects, 2) * 80], dim=1)
    zeros = torch.zeros(objects, dtype=torch.int64)
    for name, kind in (("pointrend", PointRend), ("implicit_pointrend", ImplicitPointRend)):
        config = kind.Config(name=name, backbone="resnet50", weights=None, norm="frozen_batch")
        model = kind(config, 80).eval()
        features = model.features(torch.rand(1, 3, side_px, side_px))[:4]
        proposals = Proposals(image_index=zeros, boxes=boxes, object_index=zeros, categories=zeros)
        before = _reset_peak()
        masks = model.roi_heads.own_masks(features, proposals.boxes, proposals.image_index, proposals.categories)
        found[f"{name}_bytes"] = None if before is None else _kib("VmHWM") * 1024 - before
        found["mask_side"] = int(masks.shape[-1])
        del model, features, masks
    return found


def _reset_peak() -> int | None:
    """Bytes this process holds now, from which its peak is counted anew; None where the system does not tell."""
    try:
        _RESET.write_text("5")
    except OSError:
        return None
    return _kib("VmRSS") * 1024


def _kib(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])
