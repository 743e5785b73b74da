"""Mask heads by Winograd's method give what torchvision's own forward pass gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads

from leanmask.models import crops as crops_module
from leanmask.models.crops import FEWEST_CROPS, convolve_crops

needs_nnpack = pytest.mark.skipif(
    not torch.backends.nnpack.is_available(), reason="NNPACK is not built into this torch"
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many crops each of NNPACK's convolutions was given."""
    seen: list[int] = []
    own = torch._nnpack_spatial_convolution

    def watch(images: Tensor, *rest: object, **named: object) -> Tensor:
        seen.append(len(images))
        return own(images, *rest, **named)

    monkeypatch.setattr(crops_module.torch, "_nnpack_spatial_convolution", watch)
    return seen


def gradients(result: Tensor, crops: Tensor, head: nn.Module, signal: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((result * signal).sum(), [crops, *head.parameters()])


@needs_nnpack
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_the_heads_own(layout: torch.memory_format, calls: list[int]) -> None:
    torch.manual_seed(0)
    head = MaskRCNNHeads(12, (16, 8), 1).to(memory_format=layout)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.1)
    crops = torch.randn(20, 12, 14, 14).contiguous(memory_format=layout).requires_grad_()
    expected, result = head(crops), convolve_crops(head, crops)
    assert calls == [20, 20]
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)
    signal = torch.randn_like(expected)
    for found, wanted in zip(
        gradients(result, crops, head, signal), gradients(expected, crops, head, signal), strict=True
    ):
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)


def test_few_crops_and_bf16_go_the_usual_way(calls: list[int]) -> None:
    head = MaskRCNNHeads(4, (8,), 1)
    few = torch.randn(FEWEST_CROPS - 1, 4, 14, 14)
    assert torch.equal(convolve_crops(head, few), head(few))
    many = torch.randn(FEWEST_CROPS, 4, 14, 14)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(convolve_crops(head, many), head(many))
    assert not calls
