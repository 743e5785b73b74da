"""Implicit PointRend (Cheng, Parkhi and Kirillov 2022, section 5): a head writes, for every box, the weights of a small
network that says object or background at any point of the box. One point loss, uniform points, no coarse mask.

    pyramid's finest map --14 x 14 points--> parameter head --> weights of the box's own point network
                         --any point--> [Fourier features of its place in the box, map's features] --> logits per class

Letters: K proposals, C classes, P points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from leanmask.distributed import global_mean
from leanmask.models.base import ClassAxes, output_axes
from leanmask.models.pointrend import SMALL_POINTS, CoarseHead, PointHeadConfig, PointHeads, PointPreset
from leanmask.models.points import uniform_points
from leanmask.models.two_stage import TwoStage
from leanmask.records import Proposals, Target

LAST_LAYER_STD = 0.001
Encoding = Literal["fourier", "coordinates", "none"]


@dataclass(frozen=True)
class ImplicitPreset(PointPreset):
    """The numbers that `ImplicitPointRendConfig` leaves to the backbone; those of the published code."""

    encoding_channels: int = 256
    parameter_std: float = 0.001
    parameter_scale: float = 1.0
    shared_start: bool = False


class ImplicitPointRendConfig(PointHeadConfig):
    """Implicit PointRend. A setting that is null takes the backbone's own value: the published numbers for ResNets (the
    parameter head's last layer alone has 290 M weights), smaller ones for small backbones.
    """

    PUBLISHED: ClassVar[ImplicitPreset] = ImplicitPreset()
    SMALL: ClassVar[ImplicitPreset] = ImplicitPreset(
        **{**vars(SMALL_POINTS), "point_channels": 32},
        encoding_channels=32,
        parameter_std=0.003,
        parameter_scale=0.03,
        shared_start=True,
    )

    name: Literal["implicit_pointrend"] = "implicit_pointrend"
    points_kept: float = Field(
        0.5, gt=0, le=1, description="share of an object's classified points that each step draws to learn from"
    )
    point_layers: int = Field(3, ge=1, description="hidden layers of the point network")
    encoding: Encoding = Field("fourier", description="what the point network sees of a point's place in the box")
    encoding_channels: int | None = Field(None, ge=2, multiple_of=2, description="fourier: null = 256, small 32")
    image_features: bool = Field(True, description="the point network sees the finest map")
    parameter_penalty: float = Field(1e-5, ge=0, description="weight of the mean squared parameter")
    parameter_std: float | None = Field(
        None, gt=0, description="of the parameter head's last layer at the start; null = 0.001, small 0.003"
    )
    parameter_scale: float | None = Field(
        None,
        gt=0,
        description="the parameter head learns as if at this share of the learning rate (Adam's); null = 1, small 0.03",
    )
    shared_start: bool | None = Field(
        None,
        description="the point networks of all boxes start as one random network, which the parameter head learns to "
        "change for each; false: they start at almost 0, as published; null = false, small true",
    )


class PointNetwork:
    """The layout of a point network whose weights come as one vector: all weights of all layers, then all biases."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """sizes: width of input, hidden layers and output."""
        self.shapes = list(pairwise(sizes))
        self.parts = [*(i * o for i, o in self.shapes), *(o for _, o in self.shapes)]
        self.parameter_count = sum(self.parts)

    def output_positions(self) -> Tensor:
        """(outputs, n) where in the vector the weights and the bias of each output are."""
        inputs, outputs = self.shapes[-1]
        first = sum(self.parts[: len(self.shapes) - 1])
        weights = first + torch.arange(inputs * outputs).view(inputs, outputs)
        biases = self.parameter_count - outputs + torch.arange(outputs)
        return torch.cat([weights, biases[None]]).T

    def random_parameters(self) -> Tensor:
        """(parameter_count,) of a network that is ready to learn: He's, nearly 0 in the last layer; no biases."""
        stds = [math.sqrt(2 / inputs) for inputs, _ in self.shapes[:-1]] + [LAST_LAYER_STD]
        weights = [torch.randn(i * o) * std for (i, o), std in zip(self.shapes, stds, strict=True)]
        return torch.cat([*weights, torch.zeros(sum(o for _, o in self.shapes))])

    def __call__(self, parameters: Tensor, inputs: Tensor) -> Tensor:
        """(K, P, outputs) from parameters (K, parameter_count) and inputs (K, P, features)."""
        pieces = parameters.split(self.parts, dim=1)
        weights, biases = pieces[: len(self.shapes)], pieces[len(self.shapes) :]
        hidden = inputs
        for number, (shape, weight, bias) in enumerate(zip(self.shapes, weights, biases, strict=True)):
            if number:
                hidden = F.relu(hidden)
            hidden = torch.bmm(hidden.to(weight), weight.view(-1, *shape)) + bias[:, None]
        return hidden


class FourierFeatures(nn.Module):
    """Random Fourier features of a place: sin and cos of 2 pi (2x - 1) B with a fixed Gaussian matrix B (2, channels /
    2) that is saved with the weights (Tancik et al. 2020).
    """

    matrix: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.randn(2, channels // 2))

    def forward(self, coords: Tensor) -> Tensor:
        """(K, P, channels) from coords (K, P, 2) in [0, 1]."""
        with torch.autocast(coords.device.type, enabled=False):
            angles = 2 * math.pi * ((2 * coords - 1) @ self.matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ImplicitHeads(PointHeads):
    """What is known of a box is the parameters (K, parameter_count) of its own point network."""

    config: ImplicitPointRendConfig

    def __init__(self, config: ImplicitPointRendConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        preset = config.preset()
        assert isinstance(preset, ImplicitPreset)
        encoded = {"fourier": preset.encoding_channels, "coordinates": 2, "none": 0}[config.encoding]
        seen = preset.fpn_channels if config.image_features else 0
        hidden = [preset.point_channels] * config.point_layers
        self.network = PointNetwork([encoded + seen, *hidden, self.classes])
        self.parameter_head = CoarseHead(preset.fpn_channels, preset, self.network.parameter_count)
        # Adam moves every weight of the last layer by the learning rate, however many inputs add up to a parameter: at
        # the rate that suits the rest of `tiny` the point networks fly apart and the trunk with them. Multiplied by a
        # scale, and divided by it at the start, the same outputs move so much slower.
        self.scale, last = preset.parameter_scale, self.parameter_head.last
        nn.init.normal_(last.weight, std=preset.parameter_std / self.scale)
        if preset.shared_start:
            # Through four layers of parameters that are all nearly 0 almost nothing is learned for hundreds of steps.
            last.bias.data.copy_(self.network.random_parameters() / self.scale)
        self.encoding = FourierFeatures(preset.encoding_channels) if config.encoding == "fourier" else nn.Identity()

    def fresh(self) -> tuple[str, ...]:
        return "parameter_head.", "encoding."

    def class_axes(self) -> dict[str, ClassAxes]:
        """See `Model.class_axes`; the last layer of the point networks has an output for each class."""
        found = super().class_axes()
        if self.config.class_agnostic:
            return found
        return found | output_axes("parameter_head.last", self.network.output_positions())

    def knowledge(self, finest: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        parameters: Tensor = self.scale * self.parameter_head(finest, boxes, image_index)
        return parameters

    def logits_at(self, known: Tensor, features: Tensor, coords: Tensor) -> Tensor:
        inputs = []
        if self.config.encoding != "none":
            inputs.append(self.encoding(coords))
        if self.config.image_features:
            inputs.append(features)
        return self.network(known, torch.cat(inputs, dim=-1))

    def training_points(self, known: Tensor, positives: Proposals) -> Tensor:
        return uniform_points(len(positives), self.preset.train_points, positives.boxes)

    def further_losses(
        self, known: Tensor, positives: Proposals, targets: Sequence[Target], canvas: tuple[int, int]
    ) -> dict[str, Tensor]:
        """ "loss_parameters": the mean (not sum) of the squared parameters over boxes and parameters."""
        per_box = known.float().square().mean(1)
        return {"loss_parameters": self.config.parameter_penalty * global_mean(per_box.sum(), len(per_box))}


class ImplicitPointRend(TwoStage):
    """Two-stage detector with Implicit PointRend's branch; see the module's text."""

    Config = ImplicitPointRendConfig
    Heads = ImplicitHeads
