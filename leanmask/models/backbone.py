"""Backbones, with a feature pyramid or their maps alone: EfficientNet-Lite, a small GroupNorm ResNet, torchvision's
ResNets and ResNeXts, and timm's.

Parameter names are torchvision's (`body.*`, `fpn.*`), so that its weights load as they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from leanmask.errors import ConfigError, suggest
from leanmask.models.spec import OWN_NAMES, PREFIX, BackboneSpec, is_timm
from leanmask.models.timm_backbones import PlainTransformer, SimplePyramid, build_timm, require_timm_name

NormLayer = Callable[[int], nn.Module]

TORCHVISION_NAMES: dict[str, str] = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "resnext101": "resnext101_32x8d",
}
STEM = "stem"  # the map at stride 2, where it is asked for
STAGES = ("layer4", "layer3", "layer2", "layer1", "conv1")  # in the order in which training reaches down


class FrozenNorm(FrozenBatchNorm2d):
    """torchvision's frozen batch norm in one pass and in the precision of its input.

    Its own form multiplies bf16 maps by fp32 statistics and so carries fp32 maps through the network under autocast.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups (Wu and He 2018), 8 in narrow layers."""
    return nn.GroupNorm(32 if channels >= 512 else 8, channels)


NORMS: dict[str, NormLayer] = {
    "frozen_batch": FrozenNorm,
    "batch": nn.BatchNorm2d,
    "group": group_norm,
}


def require_known(name: str, further: tuple[str, ...] = ()) -> None:
    """Raise ConfigError, offering the nearest, when there is no backbone of this name. further: names that the model
    knows besides.
    """
    own = (*OWN_NAMES, *further)
    if name.startswith(PREFIX):
        require_timm_name(name)
    elif name not in own:
        near = suggest(name, own)
        raise ConfigError(
            f"model.backbone '{name}' is unknown{near}; there are {', '.join(own)}, and timm's models as {PREFIX}NAME "
            "(`leanmask doctor --backbones`)"
        )


def build_body(spec: BackboneSpec, stem: bool = False) -> tuple[nn.Module, list[int]]:
    """A network without its classifier, with random weights, and the widths of its maps.

    It takes (B, 3, H, W) images to maps at strides 4, 8, 16 and 32, named "0" to "3", with `stem` also at stride 2,
    first and named "stem"; or is a `PlainTransformer`, which has one map at stride 16, named "0". Raises ConfigError
    for a network of timm without these maps.
    """
    if is_timm(spec.name):
        return build_timm(spec, stem)
    if spec.norm == "own":
        raise ConfigError(f"model.norm is own; backbone {spec.name} is built with {', '.join(NORMS)}")
    norm = NORMS[spec.norm]
    if spec.name == "tiny":
        network: nn.Module = tiny_resnet(norm)
        widths = [32, 32, 64, 128, 256]
    else:
        network = getattr(resnet, TORCHVISION_NAMES[spec.name])(weights=None, norm_layer=norm)
        deepest = int(network.inplanes)  # type: ignore[arg-type]
        widths = [64, *(deepest // 8 * 2**i for i in range(4))]
    _freeze(network, spec.trainable_layers)
    layers = {"relu": STEM} if stem else {}
    layers |= {f"layer{i + 1}": str(i) for i in range(4)}
    return IntermediateLayerGetter(network, layers), widths if stem else widths[1:]


class PyramidBackbone(nn.Module):
    """(B, 3, H, W) images to five maps of equal channels at strides 4, 8, 16, 32, 64, named "0" to "3" and "pool"."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.body, widths = build_body(spec)
        self.fpn: nn.Module
        if isinstance(self.body, PlainTransformer):
            self.fpn = SimplePyramid(self.body.width, spec.channels)
        else:
            self.fpn = FeaturePyramidNetwork(widths, spec.channels, LastLevelMaxPool())
        self.out_channels = spec.channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.fpn(self.body(images))
        return maps


def build_backbone(spec: BackboneSpec) -> PyramidBackbone:
    """A backbone with `spec.channels` channels at every level. H and W of its images are multiples of 32. Weights are
    random; see `weights.py`. Raises ConfigError for a network that no pyramid can be built on.
    """
    return PyramidBackbone(spec)


def tiny_resnet(norm: NormLayer) -> nn.Sequential:
    """ResNet-18 at half width (2.8 M parameters) without its classifier, initialised for training from scratch.

    The stem's 7 x 7 convolution is two of 3 x 3, which learn thin strokes faster. Blocks do not start as the identity
    (last norm at 0, Goyal et al. 2017): on the embedded benchmark that was slower.
    """
    first, second = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.Conv2d(16, 32, 3, padding=1, bias=False)
    stem: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Sequential(first, norm(16), nn.ReLU(inplace=True), second)),
        ("bn1", norm(32)),
        ("relu", nn.ReLU(inplace=True)),
        ("maxpool", nn.MaxPool2d(3, stride=2, padding=1)),
    ]
    widths = [32, 32, 64, 128, 256]
    stages = [(f"layer{i}", _stage(widths[i - 1], widths[i], 1 if i == 1 else 2, norm)) for i in range(1, 5)]
    body = nn.Sequential(OrderedDict([*stem, *stages]))
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return body


def _stage(inputs: int, outputs: int, stride: int, norm: NormLayer) -> nn.Sequential:
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))
    block = partial(resnet.BasicBlock, norm_layer=norm)
    return nn.Sequential(block(inputs, outputs, stride, shortcut), block(outputs, outputs))


def _freeze(body: nn.Module, trainable_layers: int) -> None:
    learning = STAGES[:trainable_layers]
    if trainable_layers == len(STAGES):
        learning = (*learning, "bn1")
    for name, parameter in body.named_parameters():
        if not name.startswith(learning):
            parameter.requires_grad_(False)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B, 3, H, W) RGB in [0, 1] to zero mean and unit variance with the backbone's (3, 1, 1) statistics; keeps the
    memory format.
    """
    return (images - mean) / std
