"""MaskRefineNet's network (Kim et al. 2023, PointWSSIS; sizes as in the authors' code): a ResNet that sees more than
colours, ASPP at its end, and a decoder with skips up to half the size of the input.

Letters: K crops, S side of a crop in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter

from leanmask.models.backbone import NORMS, TORCHVISION_NAMES, BackboneName, NormLayer, NormName, tiny_resnet

STAGES = {"relu": "stem", "layer1": "1", "layer2": "2", "layer3": "3", "layer4": "4"}  # strides 2, 4, 8, 16, 32
HEAD_STD = 1e-3


@dataclass(frozen=True)
class UShapeSize:
    """Widths; the defaults are the published ones. decoder: outputs of its four steps, from the coarsest on."""

    aspp_channels: int = 512
    dilations: tuple[int, ...] = (3, 6, 9)
    decoder: tuple[int, int, int, int] = (256, 128, 64, 64)


class Encoder(nn.Module):
    """A ResNet's five stages. Parameters are named as in detectors (`body.*`), so that their weights load."""

    def __init__(self, name: BackboneName, norm: NormName) -> None:
        super().__init__()
        layer = NORMS[norm]
        if name == "tiny":
            network, self.widths = tiny_resnet(layer), [32, 32, 64, 128, 256]
        else:
            network = getattr(resnet, TORCHVISION_NAMES[name])(weights=None, norm_layer=layer)
            deepest = network.inplanes
            self.widths = [64, *(deepest // 8 * 2**i for i in range(4))]
        self.body = IntermediateLayerGetter(network, STAGES)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(K, channels, S, S) to maps of `widths` channels at strides 2, 4, 8, 16, 32."""
        return list(self.body(x).values())

    def widen(self, extra: int, keep_rest_silent: bool) -> None:
        """Let the first convolution see `extra` more channels after the colours, whose weights stay as they are.

        keep_rest_silent: the new channels start with weight 0, so that a pretrained network says at first what it said
        before; else as they are initialised.
        """
        holder, name = (self.body, "conv1")
        if isinstance(holder[name], nn.Sequential):
            holder, name = holder[name], "0"
        setattr(holder, name, _widened(getattr(holder, name), extra, keep_rest_silent))


def _widened(first: nn.Conv2d, extra: int, silent: bool) -> nn.Conv2d:
    size, stride, padding = first.kernel_size, first.stride, first.padding
    wide = nn.Conv2d(first.in_channels + extra, first.out_channels, size, stride, padding, bias=False)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(wide.weight, mode="fan_out", nonlinearity="relu")
    with torch.no_grad():
        wide.weight[:, : first.in_channels] = first.weight
        if silent:
            wide.weight[:, first.in_channels :] = 0
    return wide


def _block(inputs: int, outputs: int, norm: NormLayer, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, norm(outputs), nn.ReLU(inplace=True))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al. 2017): the whole map's mean, each cell, and its surroundings at
    several dilations.
    """

    def __init__(self, inputs: int, size: UShapeSize, norm: NormLayer) -> None:
        super().__init__()
        outputs = size.aspp_channels
        self.whole = _block(inputs, outputs, norm)
        near = [_block(inputs, outputs, norm, 3, dilation) for dilation in size.dilations]
        self.branches = nn.ModuleList([_block(inputs, outputs, norm), *near])
        self.join = _block(outputs * (len(self.branches) + 1), outputs, norm)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.whole(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        joined: Tensor = self.join(torch.cat([whole, *(branch(x) for branch in self.branches)], dim=1))
        return joined


class UShape(nn.Module):
    """From the encoder's maps to two logits per pixel, background and object."""

    def __init__(self, widths: Sequence[int], size: UShapeSize, norm: NormLayer) -> None:
        super().__init__()
        self.aspp = ASPP(widths[-1], size, norm)
        self.steps = nn.ModuleList()
        below = size.aspp_channels
        for skip, outputs in zip(reversed(widths[:-1]), size.decoder, strict=True):
            self.steps.append(nn.Sequential(_block(below + skip, below, norm), _block(below, outputs, norm, 3)))
            below = outputs
        self.head = nn.Conv2d(below, 2, 1)
        nn.init.normal_(self.head.weight, std=HEAD_STD)

    def forward(self, maps: Sequence[Tensor], side: int) -> Tensor:
        """Maps at strides 2 to 32 of S x S crops; `side` is S. Returns (K, 2, S, S) float32 logits."""
        *skips, deepest = maps
        x = self.aspp(deepest)
        for step, skip in zip(self.steps, reversed(skips), strict=True):
            x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = step(torch.cat([x, skip], dim=1))
        said: Tensor = self.head(x).float()
        return F.interpolate(said, size=(side, side), mode="bilinear", align_corners=False)
