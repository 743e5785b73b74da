"""CLIP as a judge of categories: looks at a cut-out of each object, or at the whole image once and inside each mask.

The published correction (PL-DC) pools inside masks, with a ConvNeXt; its code feeds pixel values of 0 to 255 without
CLIP's normalisation, which is done here. Letters: B images, N objects of one image, C classes, T texts, F channels,
D dimensions of the shared space, H W the canvas in pixels, h w its feature map in cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from leanmask.errors import ConfigError
from leanmask.labels.clip_encoders import Encoder, OpenClip, TransformersClip
from leanmask.labels.correct import box_crops
from leanmask.labels.prompts import Prompts, class_logits, prompts_from_file, prompts_from_names
from leanmask.masks import Crops, Grids
from leanmask.records import Instances

Look = Literal["boxes", "masks"]
AT_ONCE = 64  # cut-outs or texts in one pass


def clip_judge(
    model: str, class_names: Sequence[str], descriptions: Path | None = None, look: Look = "boxes"
) -> ClipJudge:
    """A judge by `transformers`' CLIP: hub id or local folder. descriptions: YAML or JSON {class name: [sentences]},
    None = the names. Raises ConfigError.
    """
    return ClipJudge(TransformersClip(model), class_names, _prompts(class_names, descriptions), look)


def open_clip_judge(
    model: str, class_names: Sequence[str], descriptions: Path | None = None, look: Look = "masks"
) -> ClipJudge:
    """A judge by `open_clip`, an optional extra: MODEL/WEIGHTS. Otherwise as `clip_judge`."""
    return ClipJudge(OpenClip(model), class_names, _prompts(class_names, descriptions), look)


def _prompts(class_names: Sequence[str], descriptions: Path | None) -> Prompts:
    return prompts_from_file(descriptions, class_names) if descriptions else prompts_from_names(class_names)


class ClipJudge:
    """Class probabilities by CLIP, a `labels.correct.CategoryJudge`.

    look "boxes": a square cut-out around each box. "masks": the image once, features averaged inside each mask; an
    object without a mask gets the same probability for every class. The network follows the images to their device.
    """

    def __init__(
        self, encoder: Encoder, class_names: Sequence[str], prompts: Prompts, look: Look, margin: float = 0.1
    ) -> None:
        """margin: around a box, as a share of its longer side. Raises ConfigError for a text that says nothing to this
        model, or is longer than it can read, and for a model without a feature map that is to look inside masks.
        """
        for name, texts in zip(class_names, prompts, strict=True):
            _require_readable(encoder, name, texts)
        self.encoder, self.look, self.margin = encoder, look, margin
        self.counts = tuple(len(texts) for texts in prompts)
        self._texts = [text for texts in prompts for text in texts]
        self._known: Tensor | None = None
        if look == "masks":  # better said before the hours of burn-in
            with torch.no_grad():
                encoder.features(torch.zeros(1, 3, encoder.side_px, encoder.side_px))

    @torch.no_grad()
    def __call__(self, images: Tensor, instances: Sequence[Instances]) -> list[Tensor]:
        sizes = [len(each) for each in instances]
        known = self._text_features(images.device)
        if sum(sizes) == 0:
            return [images.new_zeros(0, len(self.counts)) for _ in sizes]
        seen = self._inside_masks(images, instances) if self.look == "masks" else self._cut_outs(images, instances)
        with torch.autocast(images.device.type, enabled=False):
            logits = self.encoder.scale().float() * F.normalize(seen.embedded.float(), dim=1) @ known.T
            probabilities = class_logits(logits, self.counts).softmax(1)
        even = torch.full_like(probabilities, 1 / len(self.counts))
        return list(torch.where(seen.there[:, None], probabilities, even).split(sizes))

    def _text_features(self, device: torch.device) -> Tensor:
        """(T, D) unit vectors, made when they are first needed."""
        if self._known is None or self._known.device != device:
            self.encoder.module.to(device)
            parts = [self.encoder.texts(self._texts[i : i + AT_ONCE]) for i in range(0, len(self._texts), AT_ONCE)]
            self._known = F.normalize(torch.cat(parts).float(), dim=1)
        return self._known

    def _normalised(self, images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.encoder.mean, self.encoder.std))
        return (images - mean) / std

    def _cut_outs(self, images: Tensor, instances: Sequence[Instances]) -> _Seen:
        cut_outs = box_crops(
            self._normalised(images), [each.boxes for each in instances], self.encoder.side_px, self.margin
        )
        embedded = torch.cat([self.encoder.cut_outs(part) for part in cut_outs.split(AT_ONCE)])
        return _Seen(embedded, torch.ones(len(embedded), dtype=torch.bool, device=embedded.device))

    def _inside_masks(self, images: Tensor, instances: Sequence[Instances]) -> _Seen:
        stride, canvas = self.encoder.stride_px, (int(images.shape[-2]), int(images.shape[-1]))
        size = [max(round(side / stride), 1) * stride for side in canvas]
        pixels = self._normalised(images)
        if tuple(size) != canvas:
            pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
        pooled, there = [], []
        for features, each in zip(self.encoder.features(pixels).float(), instances, strict=True):
            assert isinstance(each.masks, Grids | Crops), "objects have masks"
            weights = cell_weights(each.masks, canvas, (features.shape[1], features.shape[2]))
            pooled.append(pool_inside(features, weights))
            there.append(weights.sum((1, 2)) > 0)
        return _Seen(self.encoder.project(torch.cat(pooled)), torch.cat(there))


@dataclass(frozen=True, eq=False)
class _Seen:
    """embedded: (K, D). there: (K,) bool, something was to be seen."""

    embedded: Tensor
    there: Tensor


def cell_weights(masks: Grids | Crops, canvas: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(N, h, w) how many of the canvas's pixels each mask covers (probability above 0.5) in each cell of a feature map
    (h, w); so an object smaller than a cell still has one.
    """
    places = masks.boxes if isinstance(masks, Grids) else torch.cat([masks.regions[:, :2]] * 2, 1)
    if isinstance(masks, Crops):
        places = places + F.pad(masks.regions[:, 2:], (2, 0))
    grids = masks.values if isinstance(masks, Grids) else masks
    weights = [
        _covered((grid > 0.5).float(), box, canvas, size) for grid, box in zip(grids, places.tolist(), strict=True)
    ]
    return torch.stack(weights) if weights else torch.zeros(0, *size, device=places.device)


def pool_inside(features: Tensor, weights: Tensor) -> Tensor:
    """(N, F) averages of a feature map (F, h, w) with weights (N, h, w); 0 where they are all 0."""
    with torch.autocast(features.device.type, enabled=False):
        total = weights.sum((1, 2)).clamp(min=1e-6)
        return weights.flatten(1) @ features.flatten(1).T / total[:, None]


def _covered(mask: Tensor, box: list[float], canvas: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(h, w) area of a 0/1 grid over a box, xyxy pixels of the canvas, that lies in each cell of the canvas."""
    if mask.numel() == 0 or not all(torch.tensor(box).isfinite()):
        return torch.zeros(size, device=mask.device)
    down = _overlaps((box[1], box[3], mask.shape[0]), canvas[0], size[0]).to(mask)
    across = _overlaps((box[0], box[2], mask.shape[1]), canvas[1], size[1]).to(mask)
    with torch.autocast(mask.device.type, enabled=False):
        return down @ mask @ across.T


def _overlaps(line: tuple[float, float, int], length: int, cells: int) -> Tensor:
    """(cells, n) common length, in pixels, of each of the equal cells of [0, length] and of each of the n equal parts
    of a line (start, end, n).
    """
    edges = torch.linspace(line[0], line[1], line[2] + 1, dtype=torch.float64)
    bounds = torch.linspace(0, length, cells + 1, dtype=torch.float64)[:, None]
    return (torch.minimum(edges[1:], bounds[1:]) - torch.maximum(edges[:-1], bounds[:-1])).clamp(min=0).float()


def _require_readable(encoder: Encoder, name: str, texts: Sequence[str]) -> None:
    by_name = tuple(texts) == prompts_from_names([name])[0]
    for text in texts:
        if encoder.count(name if by_name else text) <= 0:
            found = f"class name '{name}'" if by_name else f"the description '{text}' of class '{name}'"
            raise ConfigError(f"{found} has nothing that this CLIP can read; say it in words")
        if (tokens := encoder.count(text)) > encoder.context:
            cut = f"{tokens} tokens, and this CLIP reads {encoder.context}"
            raise ConfigError(f"a description of '{name}' has {cut}: '{text[:60]}...'; shorten it")
