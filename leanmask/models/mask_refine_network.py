"""MaskRefineNet's network (Kim et al. 2023, PointWSSIS; sizes as in the authors' code): a backbone that sees more than
colours, ASPP at its end, and a decoder with skips up to half the size of the input.

Letters: K crops, S side of a crop in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn

from leanmask.errors import ConfigError
from leanmask.models.backbone import NormLayer, build_body
from leanmask.models.spec import BackboneSpec

HEAD_STD = 1e-3
COLOURS = 3
# (K, 5, S, S) colours, heat-map of the object's class, rough mask; and (K,) which input channel the heat-map is.
Inputs = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class UShapeSize:
    """Widths; the defaults are the published ones. decoder: outputs of its four steps, from the coarsest on."""

    aspp_channels: int = 512
    dilations: tuple[int, ...] = (3, 6, 9)
    decoder: tuple[int, int, int, int] = (256, 128, 64, 64)


class Encoder(nn.Module):
    """A backbone's five stages. Parameters are named as in detectors (`body.*`), so that their weights load."""

    def __init__(self, spec: BackboneSpec) -> None:
        """Raises ConfigError for a backbone without a map at stride 2, or whose first layer cannot be widened."""
        super().__init__()
        self.body, self.widths = build_body(spec, stem=True)
        self.name = spec.name
        self.first_convolution()

    def forward(self, x: Tensor | Inputs) -> list[Tensor]:
        """(K, 3, S, S) colours or, once widened, `Inputs` to maps of `widths` channels at strides 2, 4, 8, 16, 32."""
        return list(self.body(x).values())

    def widen(self, extra: int, keep_rest_silent: bool) -> None:
        """Let the first convolution see `extra` more channels after the colours, whose weights stay as they are.

        keep_rest_silent: the new channels start with weight 0, so that a pretrained network says at first what it said
        before; else as they are initialised.
        """
        place, first = self.first_convolution()
        wide = ClasswiseConv(first, extra)
        if keep_rest_silent:
            with torch.no_grad():
                wide.weight[:, COLOURS:] = 0
        self.body.set_submodule(place, wide)

    def first_convolution(self) -> tuple[str, nn.Conv2d]:
        """Its name in `body` and the convolution that sees the colours. Raises ConfigError where it is of a kind whose
        numbers `ClasswiseConv` would change.
        """
        convolutions = [(name, module) for name, module in self.body.named_modules() if isinstance(module, nn.Conv2d)]
        name, first = convolutions[0]
        if sum(module.in_channels == COLOURS for _, module in convolutions) > 1:
            raise ConfigError(f"{self.name} sees the colours with several convolutions, which this model cannot widen")
        if type(first) not in (nn.Conv2d, Conv2dSame, ClasswiseConv):
            raise ConfigError(f"{self.name} begins with a {type(first).__name__}, which this model cannot widen")
        return name, first


class ClasswiseConv(nn.Conv2d):
    """A convolution of colours, one heat-map per class and a mask, that is told which one heat-map is not empty.

    The numbers are those of the plain convolution of all channels. With 80 classes these would be 85, almost all of
    them zeros, and would cost more than the rest of a small network.
    """

    def __init__(self, first: nn.Conv2d, extra: int) -> None:
        """first: the convolution of the colours, whose weights and padding are kept."""
        size, stride = first.kernel_size, first.stride
        biased = first.bias is not None
        super().__init__(COLOURS + extra, first.out_channels, size, stride, first.padding, bias=biased)  # type: ignore[arg-type]
        self.same = isinstance(first, Conv2dSame)  # pads as TensorFlow does: as much as the input's size wants
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        with torch.no_grad():
            self.weight[:, :COLOURS] = first.weight
            if self.bias is not None and first.bias is not None:
                self.bias.copy_(first.bias)

    def forward(self, x: Inputs) -> Tensor:  # type: ignore[override]
        pixels, channels = x
        padding = self.padding
        if self.same:
            pixels, padding = pad_same(pixels, list(self.kernel_size), list(self.stride)), (0, 0)
        shared = torch.cat([self.weight[:, :COLOURS], self.weight[:, -1:]], dim=1)
        plain = torch.cat([pixels[:, :COLOURS], pixels[:, -1:]], dim=1)
        common = F.conv2d(plain, shared, self.bias, self.stride, padding)
        own = self.weight[:, channels].transpose(0, 1).reshape(-1, 1, *self.kernel_size)
        heat = F.conv2d(pixels[None, :, COLOURS], own, None, self.stride, padding, groups=len(pixels))
        return common + heat.view_as(common)


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
