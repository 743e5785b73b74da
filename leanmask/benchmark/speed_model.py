"""Speed of Mask R-CNN R50-FPN against torchvision's own training and inference loops, interleaved in one process.

torchvision's `maskrcnn_resnet50_fpn` runs as in its reference scripts, in fp32 and, where the machine has bf16
instructions, under bf16 autocast; leanmask's runs with the same weights in the precision and memory order that it
chooses there. All see the same images and objects and have the same settings: frozen batch norm, all layers trained,
torchvision's numbers of proposals, score floor and detections. They take turns, so that whatever else the machine does
hits all alike; the ratio is of medians of processor seconds, to torchvision's faster precision. `arithmetic_ratio` is
what the convolutions and matrix products of leanmask alone are of the same: both networks have them, so no ratio can be
below it unless the processor does them faster.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from leanmask.benchmark.turns import Works, in_turns, medians
from leanmask.devices import capability, channels_last, machine, settle_precision
from leanmask.masks import Crops
from leanmask.models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from leanmask.records import Instances, Supervision, Target

CPU = torch.device("cpu")
CLASSES = 80
SCORE_FLOOR = 0.05
ARITHMETIC = (
    "aten::mkldnn_convolution",
    "aten::_nnpack_spatial_convolution",
    "aten::convolution_backward",
    "aten::addmm",
    "aten::mm",
    "aten::bmm",
)
LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class SpeedSettings:
    """One measurement: images of size_px squared, batch, objects per image, and how many turns each side gets; of
    processor seconds, which are steady, a few are enough.
    """

    size_px: int = 256
    batch: int = 2
    objects: int = 8
    repetitions: int = 3
    warmup: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Contest:
    """Both models with the same weights, and the same input in either's form."""

    theirs: TorchvisionMaskRCNN
    ours: MaskRCNN
    images: Tensor
    truths: list[dict[str, Tensor]]
    targets: list[Target]


def training_speed(settings: SpeedSettings | None = None) -> dict[str, Any]:
    """Seconds of a supervised step (forward, backward, SGD update) of either side, and their ratio (bar: 0.5 with bf16
    instructions, 0.75 without).
    """
    settings = settings or SpeedSettings()
    contest = prepare(settings)
    theirs, ours = contest.theirs.train(), contest.ours.train()
    optimisers = [torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9) for model in (theirs, ours)]
    images, chosen = _as_chosen(contest)

    def their_step(precision: str) -> None:
        with _autocast(precision):
            losses = theirs(list(contest.images), contest.truths)
        update(losses, optimisers[0])

    def our_step() -> None:
        with _autocast(chosen):
            losses, _ = ours(images, contest.targets)
        update(losses, optimisers[1])

    return _report("training_step", settings, {**_in_each_precision(their_step), "leanmask": our_step}, chosen)


def update(losses: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> None:
    """Backward and one step, in fp32."""
    optimiser.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    optimiser.step()


def inference_speed(settings: SpeedSettings | None = None) -> dict[str, Any]:
    """Seconds to predict one batch, masks at box size (ours) or pasted into the image (torchvision's), and their ratio
    (bar: 0.4 with bf16 instructions, 0.6 without).
    """
    settings = settings or SpeedSettings()
    contest = prepare(settings)
    theirs, ours = contest.theirs.eval(), contest.ours.eval()
    images, chosen = _as_chosen(contest)
    found: dict[str, int] = {}

    def their_batch(precision: str) -> None:
        with torch.inference_mode(), _autocast(precision):
            found[f"torchvision_{precision}"] = sum(len(result["boxes"]) for result in theirs(list(contest.images)))

    def our_batch() -> None:
        with torch.inference_mode(), _autocast(chosen):
            found["leanmask"] = sum(len(instances) for instances in ours.predict(images))

    works = {**_in_each_precision(their_batch), "leanmask": our_batch}
    return _report("inference", settings, works, chosen) | {"detections": found}


def _autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def _as_chosen(contest: Contest) -> tuple[Tensor, str]:
    """The images in the memory order, and the precision, that leanmask chooses here; its network gets that order."""
    precision, _ = settle_precision("auto", CPU)
    layout = torch.channels_last if channels_last(precision, CPU) else torch.contiguous_format
    contest.ours.to(memory_format=layout)
    return contest.images.contiguous(memory_format=layout), precision


def _in_each_precision(work: Callable[[str], None]) -> dict[str, Callable[[], None]]:
    """torchvision's work in fp32, and in bf16 where that is not emulated."""
    native = capability(CPU).native_bf16
    return {f"torchvision_{name}": partial(work, name) for name in (("fp32", "bf16") if native else ("fp32",))}


def prepare(settings: SpeedSettings) -> Contest:
    """Build both models from one seed and copy the weights; random images with rectangles as objects."""
    torch.manual_seed(settings.seed)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
    )
    # Residual branches at full strength overflow without statistics; trained networks keep their activations small.
    for name, module in backbone.named_modules():
        if name.endswith("bn3"):
            module.weight.fill_(0.2)
    size = settings.size_px
    theirs = TorchvisionMaskRCNN(backbone, CLASSES + 1, min_size=size, max_size=size, box_score_thresh=SCORE_FLOOR)
    with torch.no_grad():
        theirs.roi_heads.box_predictor.cls_score.weight.mul_(30)  # confident enough for a full list of detections
    config = MaskRCNNConfig(backbone="resnet50", weights=None, norm="frozen_batch", score_floor=SCORE_FLOOR)
    ours = MaskRCNN(config, CLASSES)
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(settings.batch, 3, size, size)
    targets = [random_target(settings) for _ in range(settings.batch)]
    truths = [_truth(target, size) for target in targets]
    return Contest(theirs, ours, images, truths, targets)


def random_target(settings: SpeedSettings, classes: int = CLASSES) -> Target:
    """Rectangles as objects of random classes."""
    size, count = settings.size_px, settings.objects
    extent = torch.randint(size // 10, size // 2, (count, 2))
    corner = (torch.rand(count, 2) * (size - extent)).long()
    regions = torch.cat([corner, extent], dim=1)
    instances = Instances(
        boxes=torch.cat([corner, corner + extent], dim=1).float(),
        categories=torch.randint(0, classes, (count,)),
        supervision=torch.full((count,), int(Supervision.MASK)),
        weights=torch.ones(count),
        masks=Crops(torch.ones(int(extent.prod(1).sum()), dtype=torch.uint8), regions),
    )
    return Target(instances=instances, ignore=torch.zeros(0, 4))


def _truth(target: Target, size: int) -> dict[str, Tensor]:
    masks = torch.zeros(len(target.instances), size, size, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, target.instances.boxes.long().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    return {"boxes": target.instances.boxes, "labels": target.instances.categories + 1, "masks": masks}


def _report(what: str, settings: SpeedSettings, works: Works, precision: str) -> dict[str, Any]:
    spent = in_turns(lambda: works, settings.repetitions, settings.warmup)
    best = min((name for name in spent if name != "leanmask"), key=lambda name: spent[name].cpu_median)
    ratio = spent["leanmask"].cpu_median / spent[best].cpu_median
    return {
        "what": what,
        "model": "mask_rcnn resnet50",
        "size_px": settings.size_px,
        "batch": settings.batch,
        **{f"{name}_cpu_seconds": seconds.cpu_median for name, seconds in spent.items()},
        **medians(spent),
        "anchor": best,
        "ratio": ratio,
        "arithmetic_ratio": arithmetic_share(works["leanmask"]) * ratio,
        "turns": {f"{name}_cpu_seconds": seconds.cpu for name, seconds in spent.items()},
        "machine": machine(precision),
    }


def arithmetic_share(work: Callable[[], object]) -> float:
    """The share of `work`'s time on the CPU that convolutions and matrix products take, 0 to 1, by torch's profiler."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it calls a machine without a GPU an error
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    seconds = {event.key: float(event.self_cpu_time_total) for event in profile.key_averages()}
    return sum(seconds.get(name, 0.0) for name in ARITHMETIC) / sum(seconds.values())
