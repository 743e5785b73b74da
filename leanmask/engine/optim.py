"""The optimiser's parameter groups and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer

from leanmask.config import OptimConfig
from leanmask.models.base import Model


def build_optimiser(student: Model, config: OptimConfig) -> Optimizer:
    """AdamW or SGD over the student's trainable parameters, which must already be on their device.

    AdamW decays matrices and kernels only: biases and the gains and shifts of normalisation layers (everything with
    fewer than two dimensions) have no weight decay. SGD decays everything, as torchvision's detection recipes do.
    `backbone_lr_factor` scales the rate of `student.backbone_parameters()`; 0 takes their gradient away.
    """
    factor = 1.0 if config.backbone_lr_factor is None else config.backbone_lr_factor  # a run's settings have a number
    backbone = {id(parameter) for parameter in student.backbone_parameters()}
    if factor == 0:
        freeze_backbone(student)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in student.parameters():
        if parameter.requires_grad:
            scale = factor if id(parameter) in backbone else 1.0
            decay = 0.0 if config.optimiser == "adamw" and parameter.dim() < 2 else config.weight_decay
            groups.setdefault((scale, decay), []).append(parameter)
    settings = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (scale, decay), parameters in groups.items()
    ]
    if config.optimiser == "sgd":
        return torch.optim.SGD(settings, lr=config.lr, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(settings, lr=config.lr, fused=True)


def freeze_backbone(student: Model) -> None:
    """Take the gradient of the backbone's parameters away."""
    for parameter in student.backbone_parameters():
        parameter.requires_grad_(False)


def lr_factor(step: int, total_steps: int, config: OptimConfig) -> float:
    """Learning rate of update number `step` (from 0) as a share of the peak rate.

    Linear warm-up from `warmup_factor` to 1 over `warmup_steps`; after it a half cosine that reaches 0 at
    `total_steps`, or a drop to a tenth at each of `step_fractions` of the training, or 1.
    """
    warmup = min(config.warmup_steps, total_steps)
    if step < warmup:
        return config.warmup_factor + (1.0 - config.warmup_factor) * step / warmup
    if config.schedule == "cosine":
        progress = (step - warmup) / max(1, total_steps - warmup)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    if config.schedule == "step":
        return float(0.1 ** sum(step >= fraction * total_steps for fraction in config.step_fractions))
    return 1.0


def set_lr(optimiser: Optimizer, step: int, total_steps: int, config: OptimConfig) -> float:
    """Write the rate of update number `step` into the parameter groups and return that of the head."""
    rate = config.lr * lr_factor(step, total_steps, config)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_scale"]
    return rate
