"""Matrix NMS of a thousand masks, and what MaskRefineNet's crops cost beside its network."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from leanmask.benchmark.turns import in_turns
from leanmask.masks import Crops
from leanmask.models.mask_refine import MaskRefineConfig, MaskRefineNet, RoughObjects, crop_regions
from leanmask.models.matrix_nms import matrix_nms

REFINED = {"tiny": 32, "resnet101": 4}


def nms_speed(candidates: int = 1000, side: int = 160, rounds: int = 15) -> dict[str, Any]:
    """Seconds of matrix NMS of random ellipses, all of one class (the worst case), on one thread; wall clock and
    processor time (steadier on a busy machine), medians. Bar: 0.03 s.
    """
    torch.manual_seed(0)
    centres, radii = torch.rand(candidates, 2, 1, 1) * side, 5 + torch.rand(candidates, 2, 1, 1) * 25
    at = torch.arange(side) + 0.5
    off = ((at[:, None] - centres[:, 0]) / radii[:, 0]) ** 2 + ((at[None] - centres[:, 1]) / radii[:, 1]) ** 2
    masks, categories = off <= 1, torch.zeros(candidates, dtype=torch.int64)
    scores = torch.rand(candidates).sort(descending=True).values
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        spent = in_turns(lambda: {"nms": lambda: matrix_nms(masks, categories, scores)}, rounds)["nms"]
    finally:
        torch.set_num_threads(threads)
    covered = round(float(masks.float().mean()), 4)
    return {
        "candidates": candidates,
        "side": side,
        "covered": covered,
        "seconds": spent.median,
        "cpu_seconds": spent.cpu_median,
    }


@torch.inference_mode()
def refiner_speed(side_px: int = 512, rounds: int = 5, objects: dict[str, int] = REFINED) -> dict[str, Any]:
    """Objects per second of MaskRefineNet (80 classes; tiny, and as published) with cropping and heat-maps, and of its
    bare network on ready inputs, in turns; by size the ratio of processor times. Bar: 0.9. objects: by backbone.
    """
    found: dict[str, Any] = {"side_px": side_px, "rounds": rounds}
    for backbone, count in objects.items():
        torch.manual_seed(0)
        model = MaskRefineNet(MaskRefineConfig(backbone=backbone, weights=None, objects_at_once=count), 80).eval()
        images, rough = torch.rand(1, 3, side_px, side_px), _random_objects(count, side_px)
        inputs = model.inputs(images, rough, crop_regions(rough, torch.full((count,), 2.0)))
        works = {"refined": partial(model.refine, images, rough), "bare": partial(model.network, inputs)}
        spent = in_turns(partial(dict, works), rounds)
        found |= {f"{backbone}_{name}_per_cpu_second": count / each.cpu_median for name, each in spent.items()}
        found[f"{backbone}_ratio"] = spent["bare"].cpu_median / spent["refined"].cpu_median
    return found


def _random_objects(count: int, side_px: int) -> RoughObjects:
    size = torch.randint(20, 90, (count, 2))
    corner = (torch.rand(count, 2) * (side_px - size)).long()
    zeros = torch.zeros(count, dtype=torch.int64)
    return RoughObjects(
        image_index=zeros,
        object_index=torch.arange(count),
        categories=torch.randint(0, 80, (count,)),
        points=(corner + size / 2).float(),
        rough=Crops(torch.ones(int(size.prod(1).sum()), dtype=torch.uint8), torch.cat([corner, size], dim=1)),
        canvas=(side_px, side_px),
    )
