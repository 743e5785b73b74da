"""Whether weights of a whole network that has seen COCO can be had here: in a cache, or over a network. Looking never
fails and takes seconds at most; the training loads what was found.
"""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

LOOKED_FOR_SECONDS = 3.0
HUB = "https://huggingface.co"
MASK2FORMER = "facebook/mask2former-swin-tiny-coco-instance"


def coco_weights(model: str) -> str | None:
    """Where weights for `model` would come from, such as "the network"; None = they cannot be had."""
    if model in ("mask_rcnn", "pointrend"):
        url = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url
        if (Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name).is_file():
            return "torch's cache"
        return "the network" if reachable(url) else None
    if model == "mask2former":
        if isinstance(try_to_load_from_cache(MASK2FORMER, "config.json"), str):
            return "the hub's cache"
        offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
        return "the network" if not offline and reachable(HUB) else None
    return None


def reachable(url: str) -> bool:
    """Whether a server answers for `url` within seconds."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=LOOKED_FOR_SECONDS):
            return True
    except (OSError, ValueError):
        return False
