"""What the choices for processors rest on: leanmask's own kernels against the libraries', and bf16 and the memory order
of the default network.

    python benchmarks/cpu_choices.py [--out benchmarks/results/cpu_choices.json]
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/cpu_choices.py      # the same as an AVX2 machine

One thread; both sides take turns in one run; a row has the medians of processor seconds and their ratio.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops import MultiScaleRoIAlign

from leanmask.benchmark.commit import commit
from leanmask.benchmark.speed_model import SpeedSettings, random_target
from leanmask.benchmark.table import add_row
from leanmask.benchmark.turns import Works, in_turns
from leanmask.devices import capability, machine
from leanmask.models.crops import convolve_crops
from leanmask.models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from leanmask.models.pooling import RoIPool

ROUNDS = 5
CROPS, CHANNELS, CELLS = 100, 256, 14
BOXES, SIZE_PX = 512, 256
NETWORKS = (("lite0", 192, 8), ("lite0", 384, 4), ("resnet50", 256, 2))  # backbone, image size in px, batch


def mask_head() -> Works:
    """Forward and backward of the mask head's four convolutions over its crops."""
    head = MaskRCNNHeads(CHANNELS, (CHANNELS,) * 4, 1)
    crops = torch.randn(CROPS, CHANNELS, CELLS, CELLS, requires_grad=True)
    return {
        "leanmask": partial(_step, partial(convolve_crops, head, crops)),
        "oneDNN": partial(_step, lambda: head(crops)),
    }


def pooling() -> Works:
    """Forward and backward of RoIAlign from four levels of a pyramid."""
    maps = [torch.randn(2, CHANNELS, SIZE_PX // s, SIZE_PX // s, requires_grad=True) for s in (4, 8, 16, 32)]
    corner = torch.rand(BOXES, 2) * SIZE_PX / 2
    boxes = torch.cat([corner, corner + 8 + torch.rand(BOXES, 2) * SIZE_PX / 2], dim=1)
    index = torch.arange(BOXES) % 2
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    named = {str(level): each for level, each in enumerate(maps)}
    lists, sizes = [boxes[index == image] for image in (0, 1)], [(SIZE_PX, SIZE_PX)] * 2
    ours = RoIPool(7)
    return {
        "leanmask": partial(_step, lambda: ours(maps, boxes, index)),
        "torchvision": partial(_step, lambda: theirs(named, lists, sizes)),
    }


def training_step(backbone: str, size_px: int, batch: int, *, bf16: bool, last: bool) -> Callable[[], None]:
    """A supervised step, without the update, of Mask R-CNN."""
    weights = "imagenet" if backbone == "lite0" else None
    model = MaskRCNN(MaskRCNNConfig(backbone=backbone, weights=weights, norm="frozen_batch"), 4).train()
    for name, module in model.named_modules():
        if name.endswith("bn3"):  # residual branches at full strength overflow without statistics
            nn.init.constant_(module.weight, 0.2)
    layout = torch.channels_last if last else torch.contiguous_format
    model = model.to(memory_format=layout)
    images = torch.rand(batch, 3, size_px, size_px).contiguous(memory_format=layout)
    targets = [random_target(SpeedSettings(size_px=size_px), classes=4) for _ in range(batch)]

    def losses() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return torch.stack([each.float() for each in model(images, targets)[0].values()])

    return partial(_step, losses, model)


def _step(forward: Callable[[], Tensor], model: nn.Module | None = None) -> None:
    forward().sum().backward()
    if model is not None:
        model.zero_grad()


def cases() -> Iterator[tuple[str, str, str, str, Works]]:
    """What is measured, both sides of the ratio, the precision of the first, and the work."""
    yield "mask head, 100 crops", "leanmask", "oneDNN", "fp32", mask_head()
    yield "RoIAlign, 512 boxes", "leanmask", "torchvision", "fp32", pooling()
    native = capability(torch.device("cpu")).native_bf16
    for backbone, size, batch in NETWORKS:
        make, where = partial(training_step, backbone, size, batch), f"{backbone}, {size} px, batch {batch}"
        for precision in ("fp32", "bf16") if native else ("fp32",):
            sides = {name: make(bf16=precision == "bf16", last=name == "last") for name in ("last", "first")}
            yield f"channels last, {precision}, {where}", "last", "first", precision, sides
        if native:
            sides = {"bf16": make(bf16=True, last=True), "fp32": make(bf16=False, last=True)}
            yield f"bf16, {where}", "bf16", "fp32", "bf16", sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_choices.json"))
    out = parser.parse_args().out
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for what, ours, theirs, precision, works in cases():
        spent = in_turns(lambda works=works: works, ROUNDS, warm_up=1)  # type: ignore[misc]
        row: dict[str, Any] = {"what": what, "of": ours, "to": theirs}
        row |= {f"{name}_cpu_seconds": seconds.cpu_median for name, seconds in spent.items()}
        row["ratio"] = spent[ours].cpu_median / spent[theirs].cpu_median
        row |= {"turns": ROUNDS, "commit": commit(), "machine": machine(precision)}
        sys.stdout.write(f"{what}: {row['ratio']:.2f}\n")
        add_row(out, row)


if __name__ == "__main__":
    main()
