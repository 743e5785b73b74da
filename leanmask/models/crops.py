"""Convolutions over many small maps, as mask heads have them, by Winograd's method where it is there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FEWEST_CROPS = 16


def convolve_crops(head: nn.Module, crops: Tensor) -> Tensor:
    """`head(crops)` for a head of 3 x 3 convolutions with padding 1 and ReLU, torchvision's `MaskRCNNHeads`, on crops
    (K, C, S, S).

    On CPUs in fp32 by NNPACK, which does such a convolution by Winograd's method (Lavin and Gray 2016) with a third of
    the products: the same numbers to rounding, no less exact than the direct sum (`benchmarks/cpu_choices.py`: three
    quarters of oneDNN's processor seconds with AVX512). A few large maps are slower so, and bf16
    instructions are as fast without.
    """
    if not _winograd(crops):
        result: Tensor = head(crops)
        return result
    cells = crops.contiguous()
    for convolution in (module for module in head.modules() if isinstance(module, nn.Conv2d)):
        cells = _Winograd.apply(cells, convolution.weight, convolution.bias).relu_()
    return cells


class _Winograd(torch.autograd.Function):
    """A 3 x 3 convolution with padding 1 by NNPACK, and the gradient of its input likewise, for that is the convolution
    with mirrored weights. The gradient of the weights is oneDNN's.
    """

    @staticmethod
    def forward(context: Any, crops: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(crops, weight)
        context.has_bias = bias is not None
        return torch._nnpack_spatial_convolution(crops, weight.contiguous(), bias, padding=1, stride=1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        crops, weight = context.saved_tensors
        gradient = gradient.contiguous()
        of_crops = None
        if context.needs_input_grad[0]:
            mirrored = weight.flip(2, 3).transpose(0, 1).contiguous()
            of_crops = torch._nnpack_spatial_convolution(gradient, mirrored, None, padding=1, stride=1)
        wanted = [False, context.needs_input_grad[1], context.needs_input_grad[2]]
        biases = [len(weight)] if context.has_bias else None
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, crops, weight, biases, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted
        )
        return of_crops, of_weight, of_bias


def _winograd(crops: Tensor) -> bool:
    usable = crops.device.type == "cpu" and crops.dtype == torch.float32 and len(crops) >= FEWEST_CROPS
    # Asking whether NNPACK is there also makes it ready; without it the call fails.
    return usable and not torch.is_autocast_enabled("cpu") and torch.backends.nnpack.is_available()
