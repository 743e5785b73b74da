"""The settings of a run as one checked value: which data, model and method, and how they are trained and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator

from leanmask.config import (
    AugmentConfig,
    DataConfig,
    EvaluationConfig,
    Frozen,
    OptimConfig,
    TrainConfig,
    explain,
    load_yaml,
)
from leanmask.errors import ConfigError, RunError, suggest
from leanmask.methods import METHODS, STAGED
from leanmask.methods.base import Method, Stage, TrainingFacts
from leanmask.models import MODELS
from leanmask.models.backbone_config import BackboneConfig
from leanmask.models.base import Model
from leanmask.models.spec import IMAGENET_MEAN, IMAGENET_STD, is_timm

CONFIG_FILE = "config.yaml"  # of a run folder
PRETRAINED_LR_FACTOR = 0.3  # features that are good already change slower than a head that starts at random


class RunConfig(Frozen):
    """Everything that decides a run; `config.yaml` of every run folder holds it resolved."""

    data: DataConfig
    model: SerializeAsAny[Frozen] = Field(description="`name` chooses the model, the rest are its own settings")
    method: SerializeAsAny[Frozen] = Field(description="`name` chooses the method, the rest are its own settings")
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @field_validator("model", mode="before")
    @classmethod
    def _model(cls, value: Any) -> Frozen:
        return _named("model", value, {name: model.Config for name, model in MODELS.items()})

    @field_validator("optim")
    @classmethod
    def _backbone_rate(cls, value: OptimConfig, info: ValidationInfo) -> OptimConfig:
        if value.backbone_lr_factor is not None:
            return value
        model = info.data.get("model")
        pretrained = isinstance(model, BackboneConfig) and is_timm(model.backbone) and model.weights is not None
        return value.model_copy(update={"backbone_lr_factor": PRETRAINED_LR_FACTOR if pretrained else 1.0})

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any) -> Frozen:
        return _named("method", value, {name: method.Config for name, method in (METHODS | STAGED).items()})

    def build_model(self, num_classes: int, *, pretrained: bool = True) -> Model:
        """The network; `pretrained=False` when a checkpoint follows. Raises CheckpointError."""
        name: str = self.model.name  # type: ignore[attr-defined]
        return MODELS[name](self.model, num_classes, pretrained)

    def build_method(self, facts: TrainingFacts) -> Method:
        """The training method, told what it may know of the training."""
        name: str = self.method.name  # type: ignore[attr-defined]
        return METHODS[name](self.method, facts)  # type: ignore[arg-type]

    def stages(self) -> tuple[Stage, ...]:
        """The stages of a staged method; empty when the method is a single training."""
        name: str = self.method.name  # type: ignore[attr-defined]
        return STAGED[name](self.method).stages() if name in STAGED else ()  # type: ignore[arg-type]


def _named(kind: str, value: Any, configs: dict[str, type[Frozen]]) -> Frozen:
    if isinstance(value, Frozen):
        return value
    settings = {"name": value} if isinstance(value, str) else dict(value or {})
    name = settings.get("name")
    if name not in configs:
        raise ConfigError(f"unknown {kind} {name!r}{suggest(str(name), configs)}")
    try:
        return configs[name].model_validate(settings)
    except ValidationError as error:
        raise explain(error, configs[name], where=kind) from None


def resolve(settings: dict[str, Any]) -> RunConfig:
    """Check settings and fill in defaults. Raises ConfigError with the nearest valid name for every mistake."""
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise explain(error, RunConfig) from None


_OLD_BENCHMARK = "python:leanmask.bench."  # what the package was called that the judge of the digits is in


def stored(settings: dict[str, Any]) -> RunConfig:
    """The settings that a run folder or a weights file says it was made with, whichever version wrote them.

    Before there was `model.image_mean`, all networks saw images normalised by ImageNet's numbers, the default backbone
    was `tiny`, and a `norm` that timm's networks do not have left them as they are. Raises ConfigError.
    """
    model, method = settings.get("model"), settings.get("method")
    if isinstance(method, dict) and str(method.get("judge")).startswith(_OLD_BENCHMARK):
        method = method | {"judge": method["judge"].replace(_OLD_BENCHMARK, "python:leanmask.benchmark.")}
        settings = settings | {"method": method}
    if not isinstance(model, dict) or "image_mean" in model:
        return resolve(settings)
    model = {"backbone": "tiny", "weights": None} | model | {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    if model.get("window") is None:
        model["window"] = "auto"
    if is_timm(str(model["backbone"])) and model.get("norm") in ("batch", "group"):
        model["norm"] = "own"
    if model.get("name") == "mask_refine":
        model["decoder_norm"] = model.get("norm")
    if isinstance(method, dict) and isinstance(method.get("refiner"), dict):  # PointWSSIS's second network
        refiner = {"weights": None} | method["refiner"]
        if refiner.get("backbone", model["backbone"]) == model["backbone"] and refiner["weights"] is None:
            del refiner["weights"]  # it began with the teacher's
        method = method | {"refiner": refiner}
    return resolve(settings | {"model": model, "method": method})


def load_config(run: Path) -> RunConfig:
    """The resolved settings of a run folder. Raises RunError when it is none."""
    path = run / CONFIG_FILE
    if not path.is_file():
        raise RunError(f"{run} is no run folder: it has no config.yaml")
    return stored(load_yaml(path))
