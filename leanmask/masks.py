"""A network's masks without dense images: crops and grids at box size in the network frame, and their way to RLE.

Letters: N masks, h w rows and columns of one crop. Regions and RLE are those of rle.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from leanmask.geometry import FloatArray, Frame, transform_boxes
from leanmask.rle import ByteArray, Region, Rle, encode_crop


@dataclass(frozen=True, eq=False)
class Crops:
    """N masks as pixel crops of one canvas, flattened into a single tensor (ragged, nothing padded).

    data: (sum of h*w,) uint8 0/1 for true masks, or float probabilities or weights. regions: (N, 4) int64 x0, y0,
    width, height; a mask that does not exist has width = height = 0. Outside its region a mask is 0.
    """

    data: Tensor
    regions: Tensor

    def __len__(self) -> int:
        return int(self.regions.shape[0])

    def __getitem__(self, index: Tensor) -> Crops:
        """The masks that a boolean (N,) or integer (M,) tensor selects."""
        chosen = torch.arange(len(self))[index.cpu()].tolist()
        crops = list(self)
        return Crops.join([crops[i] for i in chosen], self.regions[index], like=self.data)

    def __iter__(self) -> Iterator[Tensor]:
        """Every crop as an (h, w) view of the data."""
        sizes = self.regions[:, 2:].tolist()
        parts = torch.split(self.data, [w * h for w, h in sizes]) if sizes else ()
        return iter([part.view(h, w) for part, (w, h) in zip(parts, sizes, strict=True)])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Crops:
        return Crops(
            self.data.to(device, non_blocking=non_blocking), self.regions.to(device, non_blocking=non_blocking)
        )

    @staticmethod
    def join(crops: Sequence[Tensor], regions: Tensor, like: Tensor | None = None) -> Crops:
        """Flatten (h, w) crops that lie at `regions` (N, 4); `like` gives type and device when there are none."""
        empty = torch.zeros(0, dtype=torch.uint8) if like is None else like[:0]
        return Crops(torch.cat([crop.reshape(-1) for crop in crops]) if crops else empty, regions)

    @staticmethod
    def none(count: int) -> Crops:
        """`count` masks that do not exist."""
        return Crops(torch.zeros(0, dtype=torch.uint8), torch.zeros(count, 4, dtype=torch.int64))

    @staticmethod
    def concatenate(parts: Sequence[Crops]) -> Crops:
        return Crops(torch.cat([part.data for part in parts]), torch.cat([part.regions for part in parts]))


@dataclass(frozen=True, eq=False)
class Grids:
    """N masks as probabilities on an h x w grid over each box: values (N, h, w), boxes (N, 4) xyxy, network frame.

    shift_px: what a grid shows lies so far right of and below its box: 0.5 of a network that learned from RoIAlign
    without half-pixel correction. As torchvision does, `to_rles` takes no notice of it.
    """

    values: Tensor
    boxes: Tensor
    shift_px: float = 0.0

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def __getitem__(self, index: Tensor) -> Grids:
        return replace(self, values=self.values[index], boxes=self.boxes[index])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Grids:
        return replace(
            self,
            values=self.values.to(device, non_blocking=non_blocking),
            boxes=self.boxes.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True, eq=False)
class Rles:
    """N masks of one image as RLE, in the image frame."""

    items: tuple[Rle, ...]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Tensor) -> Rles:
        return Rles(tuple(self.items[i] for i in torch.arange(len(self))[index.cpu()].tolist()))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Rles:
        return self


Masks = Crops | Grids | Rles


def to_rles(masks: Masks, frame: Frame, threshold: float = 0.5) -> Iterator[Rle]:
    """Binary masks of the image frame, one by one, so that memory never holds more than one.

    Grids are pasted the way torchvision does it (one cell of zero padding, bilinear, box rounded down to whole pixels).
    """
    if isinstance(masks, Rles):
        yield from masks.items
        return
    mirrored = frame.flip_width is not None
    if isinstance(masks, Grids):
        boxes = transform_boxes(masks.boxes.double().cpu().numpy(), frame.inverse)
        for grid, box in zip(masks.values.float().cpu(), boxes, strict=True):
            crop, region = _paste(grid.flip(1) if mirrored else grid, box, threshold)
            yield encode_crop(crop, region, frame.image_size)
        return
    for part, (x, y, w, h) in zip(masks, masks.regions.tolist(), strict=True):
        box = transform_boxes(np.array([[x, y, x + w, y + h]], dtype=np.float64), frame.inverse)[0]
        x0, y0, x1, y1 = (round(float(edge)) for edge in box)
        region = (x0, y0, max(x1 - x0, 1), max(y1 - y0, 1)) if part.numel() else (0, 0, 0, 0)
        values = (part.flip(1) if mirrored else part).float().cpu()
        crop = _resize(values, (region[3], region[2]), threshold) if part.numel() else np.zeros((0, 0), dtype=np.uint8)
        yield encode_crop(crop, region, frame.image_size)


def _paste(grid: Tensor, box: FloatArray, threshold: float) -> tuple[ByteArray, Region]:
    cells = grid.shape[-1]
    padded = F.pad(grid, (1, 1, 1, 1))
    low, high = np.split(box.astype(np.float32), 2)  # torchvision's precision, or edges near whole pixels differ
    half = np.float32(0.5)
    centre, reach = (low + high) * half, (high - low) * half * np.float32((cells + 2) / cells)
    x0, y0 = (centre - reach).astype(np.int64).tolist()  # towards zero, as torchvision does
    x1, y1 = (centre + reach).astype(np.int64).tolist()
    w, h = max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1)
    return _resize(padded, (h, w), threshold), (x0, y0, w, h)


def _resize(values: Tensor, size: tuple[int, int], threshold: float) -> ByteArray:
    resized = F.interpolate(values[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    return (resized > threshold).numpy().astype(np.uint8)
