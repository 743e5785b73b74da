"""What soft labels cost with as many classes as LVIS has."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from leanmask.benchmark.speed_model import LEARNING_RATE, SpeedSettings, random_target, update
from leanmask.benchmark.turns import Works, in_turns
from leanmask.devices import settle_precision
from leanmask.labels.smooth import uniform_table
from leanmask.methods.smoothed import smoothed_targets
from leanmask.models.cascade_mask_rcnn import CascadeMaskRCNN, CascadeMaskRCNNConfig
from leanmask.records import Target

CLASSES, PROPOSALS = 1203, 512
LOSSES = ("softmax", "sigmoid")


def soft_losses_speed(settings: SpeedSettings = SpeedSettings(), rounds: int = 20) -> dict[str, Any]:
    """Seconds of a supervised step of Cascade Mask R-CNN (tiny, 1,203 classes, 512 proposals per image) whose labels
    are smoothed, as in the teacher of `better_labels`, and of one whose labels are not, in turns; and by classification
    loss the median ratio of the processor times of a turn. Bar: 1.05.
    """
    torch.manual_seed(settings.seed)
    images = torch.rand(settings.batch, 3, settings.size_px, settings.size_px).contiguous(
        memory_format=torch.channels_last
    )
    targets = [random_target(settings, CLASSES) for _ in range(settings.batch)]
    table = uniform_table(CLASSES)
    found: dict[str, Any] = {"classes": CLASSES, "proposals": PROPOSALS, "size_px": settings.size_px, "rounds": rounds}
    for loss in LOSSES:
        spent = in_turns(partial(_steps, _learner(loss), images, targets, table), rounds)
        turns = zip(spent["soft"].cpu, spent["hard"].cpu, strict=True)
        found |= {f"{loss}_{name}_seconds": seconds.median for name, seconds in spent.items()}
        found[f"{loss}_ratio"] = statistics.median(soft / hard for soft, hard in turns)
    return found


def _learner(class_loss: str) -> tuple[CascadeMaskRCNN, torch.optim.Optimizer]:
    """A model that learns one mask for all classes, so that masks hide little of what classes cost."""
    config = CascadeMaskRCNNConfig(
        class_loss=class_loss,
        class_agnostic=True,
        rpn_before_nms=(2000, 1000),
        rpn_after_nms=(2000, 1000),
        proposals_per_image=PROPOSALS,
    )
    model = CascadeMaskRCNN(config, CLASSES).train().to(memory_format=torch.channels_last)
    return model, torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9)


def _steps(
    learner: tuple[CascadeMaskRCNN, torch.optim.Optimizer], images: Tensor, targets: Sequence[Target], table: Tensor
) -> Works:
    model, optimiser = learner
    bf16 = settle_precision("auto", images.device)[0] == "bf16"

    def step(soften: bool) -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            losses, _ = model(images, smoothed_targets(targets, table) if soften else targets)
        update(losses, optimiser)

    return {"hard": partial(step, False), "soft": partial(step, True)}
