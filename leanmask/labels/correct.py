"""Categories of pseudo-labels, corrected by somebody who knows more than the teacher (PL-DC's dynamic instance category
correction, section 3.2).

Letters: B images, N objects of one image, K of all of them, C classes (contiguous, without background).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torchvision.ops import roi_align

from leanmask.records import Instances


class CategoryJudge(Protocol):
    """Anything that says of which class objects are, from what they look like."""

    def __call__(self, images: Tensor, instances: Sequence[Instances]) -> list[Tensor]:
        """Class probabilities (N, C) of each image's objects; rows sum to 1.

        images: (B, 3, H, W) RGB in [0, 1]. instances: B, with boxes and masks in the frame of the images.
        """
        ...


def fuse(teacher: Tensor, judge: Tensor, weight: float) -> Tensor:
    """(N, C) weight * judge + (1 - weight) * teacher (PL-DC, Eq. 8); rows sum to 1.

    teacher: (N, C) class probabilities, which may leave out background; they are taken over the classes alone, as in
    the authors' code, and evenly where there are none. judge: (N, C), rows sum to 1. weight: in [0, 1], see
    `labels.weigh.correction_weight`.
    """
    total = teacher.sum(1, keepdim=True)
    even = torch.full_like(teacher, 1 / max(teacher.shape[1], 1))
    return weight * judge.to(teacher) + (1 - weight) * torch.where(total > 0, teacher / total.clamp(min=1e-12), even)


def corrected(instances: Instances, fused: Tensor) -> Instances:
    """The same objects with the most probable class of `fused` (N, C), which becomes their class probabilities."""
    return instances.replace(categories=fused.argmax(1), class_probabilities=fused)


def box_crops(images: Tensor, boxes: Sequence[Tensor], side_px: int, margin: float) -> Tensor:
    """(K, 3, side, side) square cut-outs around the boxes (N, 4) xyxy of every image, resized: averaged
    where larger, bilinear where smaller; 0 beyond the image.

    images: (B, 3, H, W), best normalised before, so that 0 is the mean colour. margin: added on either side, as a share
    of the box's longer side. An unknown box (NaN) is the whole image.
    """
    height, width = images.shape[-2:]
    whole = images.new_tensor([0.0, 0.0, width, height])
    rois = []
    for each in boxes:
        known = torch.where(each.isnan().any(1, keepdim=True), whole, each.to(images))
        centre = (known[:, :2] + known[:, 2:]) / 2
        reach = (known[:, 2:] - known[:, :2]).amax(1, keepdim=True).clamp(min=1.0) * (0.5 + margin)
        rois.append(torch.cat([centre - reach, centre + reach], 1))
    return roi_align(images.float(), rois, (side_px, side_px), aligned=True)
