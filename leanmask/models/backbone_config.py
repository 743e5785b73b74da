"""The settings of the backbone, which all models share, and how settings that a person leaves open get their value.

A configuration is resolved when it is checked: weights, norm, normalisation and every size that is open take the value
that suits the backbone, so that what is written to `config.yaml` rebuilds the network whatever defaults become.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator
from torchvision.models import get_model_weights

from leanmask.config import Frozen
from leanmask.models.backbone import TORCHVISION_NAMES, require_known
from leanmask.models.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    LITE,
    PREFIX,
    SMALL_BACKBONES,
    BackboneSpec,
    NormName,
    Triple,
    is_timm,
)
from leanmask.models.timm_backbones import (
    DOWNLOAD,
    PACKAGED,
    PUBLISHED_WINDOW,
    last_of_quarters,
    own_normalisation,
)

AUTO = "auto"
DEFAULT_BACKBONE = "lite0"
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BackboneConfig(Frozen):
    """The backbone. A setting that is null takes the value that suits it when the configuration is checked. Small
    backbones are `tiny` and `lite0` to `lite2`: their heads are small, too, and made for images of about 128 to 256 px.
    """

    PUBLISHED: ClassVar[Any]  # a dataclass of the numbers that the model leaves to the backbone
    SMALL: ClassVar[Any]  # the same, for small backbones
    FURTHER: ClassVar[tuple[str, ...]] = ()  # backbones that only this model has
    PUBLISHED_LAYERS: ClassVar[int] = 5  # stages of a ResNet with weights that learn

    backbone: str = Field(
        DEFAULT_BACKBONE,
        description="lite0, lite1, lite2 (EfficientNet-Lite with ImageNet weights, fast on a CPU), tiny (3 M "
        "parameters, learns from scratch), resnet18, resnet34, resnet50, resnet101, resnext101, or timm:NAME for a "
        "model of timm",
    )
    backbone_options: dict[str, Any] = Field(
        default_factory=dict, description="timm: further arguments of its model, such as {drop_path_rate: 0.4}"
    )
    window: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        "auto",
        description="plain vision transformers: tokens along a side of the windows that most blocks see; null = all "
        "tokens; auto = 16 for EVA-02, as published, null for others",
    )
    global_blocks: tuple[int, ...] | None = Field(
        None, description="with windows: blocks that see all tokens, counted from 0; null = the last of each quarter"
    )
    weights: Annotated[str, Field(min_length=1)] | None = Field(
        AUTO,
        description="of the backbone: imagenet (lite0 to lite2, from a package), DEFAULT and torchvision's other names "
        "(IMAGENET1K_V1, ...; COCO_V1 for the whole Mask R-CNN of resnet50), DEFAULT for timm's, both downloaded, or a "
        "local .pth, .pt or .safetensors file, also of a detector; null = from scratch; auto = imagenet for lite0 to "
        "lite2, null for tiny, DEFAULT for the others",
    )
    trainable_layers: int | None = Field(
        None,
        ge=0,
        le=5,
        description="backbone stages that learn, from the top; null = 5, all (two-stage models and SOLOv2: 3 of "
        "ResNets with weights); timm: 0 or 5",
    )
    norm: NormName | None = Field(
        None,
        description="of the backbone; null = frozen_batch with weights; without: own (the network's) for lite0 to "
        "lite2 and timm, else group",
    )
    image_mean: tuple[Finite, Finite, Finite] | None = Field(
        None, description="RGB in [0, 1], subtracted from images; null = what the backbone was trained with"
    )
    image_std: tuple[Positive, Positive, Positive] | None = Field(
        None, description="RGB in [0, 1], divides images; null = what the backbone was trained with"
    )

    @model_validator(mode="before")
    @classmethod
    def _resolved(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        settings = {"backbone": DEFAULT_BACKBONE, "weights": AUTO, "window": AUTO, **given}
        name = settings["backbone"]
        if not isinstance(name, str):
            return settings  # the field says what is wrong
        require_known(name, cls.FURTHER)
        if settings["weights"] == AUTO:
            settings["weights"] = cls.own_weights(name)
        if settings["window"] == AUTO:
            settings["window"] = PUBLISHED_WINDOW if name.startswith(PREFIX) and "eva02" in name else None
        for key, value in cls.open_values(settings).items():
            if settings.get(key) is None:
                settings[key] = value
        if settings.get("global_blocks") is None:
            options = settings.get("backbone_options") or {}
            windowed = settings["window"] is not None and is_timm(name) and isinstance(options, dict)
            settings["global_blocks"] = last_of_quarters(name, options) if windowed else ()
        return settings

    @classmethod
    def own_weights(cls, name: str) -> str | None:
        """What `weights: auto` means for a backbone."""
        if name in LITE:
            return PACKAGED
        return None if name == "tiny" else DOWNLOAD

    @classmethod
    def open_values(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """The values of settings that are null, from the backbone and its weights, which are known by now."""
        name, weights = settings["backbone"], settings["weights"]
        mean, std = normalisation_of(name)
        pretrained = bool(weights) and name != "tiny"
        norm: NormName = "frozen_batch" if pretrained else ("own" if is_timm(name) else "group")
        layers = cls.PUBLISHED_LAYERS if pretrained and name in TORCHVISION_NAMES else 5
        numbers = vars(cls.SMALL if name in SMALL_BACKBONES else cls.PUBLISHED)
        open_ = {key: value for key, value in numbers.items() if key in cls.model_fields}
        return {"trainable_layers": layers, "norm": norm, "image_mean": mean, "image_std": std, **open_}

    def sizes(self) -> Any:
        """The numbers of the model's preset as they are configured."""
        preset = self.SMALL if self.backbone in SMALL_BACKBONES else self.PUBLISHED
        own = [field.name for field in dataclasses.fields(preset) if field.name in type(self).model_fields]
        return dataclasses.replace(preset, **{name: getattr(self, name) for name in own})

    def spec_of(self, channels: int) -> BackboneSpec:
        """What to build of these settings, with so many channels in the pyramid."""
        assert self.norm is not None
        assert self.trainable_layers is not None
        assert self.window != AUTO
        return BackboneSpec(
            name=self.backbone,
            norm=self.norm,
            channels=channels,
            trainable_layers=self.trainable_layers,
            options=tuple(self.backbone_options.items()),
            window=self.window,  # type: ignore[arg-type]
            global_blocks=self.global_blocks or (),
        )

    def start_note(self, loaded: str | None) -> str:
        """What the network starts from, for the user, and what is unusual about it. loaded: what was loaded."""
        note = loaded or "initialised from scratch"
        if loaded is None and self.norm == "frozen_batch":
            note += " with batch norms that stay frozen (model.norm=frozen_batch), which learns badly"
        own, used = normalisation_of(self.backbone), (self.image_mean, self.image_std)
        if loaded and not np.allclose(np.array(used), np.array(own), atol=1e-6):
            note += (
                f"; images are normalised with model.image_mean={list(used[0] or ())}, "
                f"model.image_std={list(used[1] or ())}, and {self.backbone}'s own are {list(own[0])}, {list(own[1])}"
            )
        return note


def normalisation_of(name: str) -> tuple[Triple, Triple]:
    """Mean and standard deviation of the images that a backbone was trained on: RGB in [0, 1]."""
    if is_timm(name):
        return own_normalisation(name)
    if name in TORCHVISION_NAMES:
        known = get_model_weights(TORCHVISION_NAMES[name])["DEFAULT"].transforms()
        return tuple(known.mean), tuple(known.std)
    return IMAGENET_MEAN, IMAGENET_STD  # tiny has no weights; Swin's checkpoints have these
