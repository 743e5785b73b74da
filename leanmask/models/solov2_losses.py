"""What SOLOv2's cells and masks learn from whatever is labelled: classes by focal loss, masks by dice loss, and masks
of objects without one at their points.

Letters: N objects of one image, K positive pairs of cell and object, P points, T cells, C categories, h w rows and
columns of a mask, which covers the whole canvas (H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.linalg import vecdot
from torchvision.ops import sigmoid_focal_loss

from leanmask.distributed import global_count, global_mean
from leanmask.masks import Crops
from leanmask.models.class_losses import soft_classes
from leanmask.models.mask_losses import annotated_points, has_mask, has_points
from leanmask.models.matching import IGNORED, has_box, of_object
from leanmask.models.points import PointTargets, point_losses, sample_grids
from leanmask.models.solov2_cells import CellTargets, of_point_alone
from leanmask.records import Target

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
DICE_EPSILON = 1e-3
BACKGROUND_POINTS = 32  # places that say background to the mask of an object that has points


@dataclass(frozen=True, eq=False)
class Positives:
    """K pairs of a cell and an object. boxes: (K, 4) the canvas, which is what their masks cover. image_index,
    object_index: (K,). logits: (K, h, w).
    """

    boxes: Tensor
    image_index: Tensor
    object_index: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, index: Tensor) -> Positives:
        return Positives(self.boxes[index], self.image_index[index], self.object_index[index], self.logits[index])

    def of(self, wanted: Sequence[Tensor]) -> Positives:
        """Those whose object is marked in its image's (N,) bool."""
        return self[of_object(wanted, self.image_index, self.object_index)]


def class_loss(logits: Tensor, assigned: Sequence[CellTargets], targets: Sequence[Target]) -> Tensor:
    """Focal loss of the cells' class logits (B, T, C), over one more than the positive pairs of all processes.

    A cell with an object counts as much as the object; soft classes are learned as they are.
    """
    wanted, weights = torch.zeros_like(logits), logits.new_ones(logits.shape[:2])
    for image, (cells, target) in enumerate(zip(assigned, targets, strict=True)):
        taken = cells.owner >= 0
        owner = cells.owner[taken]
        wanted[image, taken] = soft_classes(target, logits.shape[2], normalised=False)[owner]
        weights[image, taken] = target.instances.weights[owner]
        weights[image, cells.owner == IGNORED] = 0
    surprise = sigmoid_focal_loss(logits, wanted, FOCAL_ALPHA, FOCAL_GAMMA).sum(2)
    pairs = torch.tensor(float(sum(len(cells.cells) for cells in assigned)), device=logits.device)
    return (surprise * weights).sum() / (global_count(pairs) + 1)


def dice_loss(positives: Positives, targets: Sequence[Target], canvas: tuple[int, int]) -> Tensor:
    """Dice loss of the pairs whose object has a mask, weighted, mean over these pairs of all processes."""
    masked = positives.of([has_mask(target) for target in targets])
    masks, weights = torch.zeros_like(masked.logits), None
    if any(target.pixel_weights is not None for target in targets):
        weights = torch.ones_like(masked.logits)
    for image, target in enumerate(targets):
        rows = (masked.image_index == image).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        objects, own = masked.object_index[rows].unique(return_inverse=True)
        crops = target.instances.masks
        assert isinstance(crops, Crops), "targets carry their masks as crops"
        masks[rows] = shrunk(crops, objects, canvas, masked.logits)[own]
        if weights is not None and target.pixel_weights is not None:
            doubt = Crops(1 - target.pixel_weights.data.float(), target.pixel_weights.regions)
            weights[rows] = 1 - shrunk(doubt, objects, canvas, masked.logits)[own]
    trust = of_object([target.instances.weights for target in targets], masked.image_index, masked.object_index)
    losses = dice_losses(masked.logits, masks, weights)
    return global_mean((losses * trust).sum(), len(masked))


def dice_losses(logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> Tensor:
    """(K,) 1 - 2 sum(w p t) / (sum(w p^2) + sum(w t^2)) over each mask's own cells; all (K, h, w). None: w is 1."""
    said, wanted = logits.flatten(1).float().sigmoid(), masks.flatten(1).float()
    if weights is None:
        common, sizes = vecdot(said, wanted), vecdot(said, said) + vecdot(wanted, wanted)
    else:
        own = weights.flatten(1).float()
        common, sizes = vecdot(own * said, wanted), vecdot(own * said, said) + vecdot(own * wanted, wanted)
    return 1 - 2 * common / (sizes + 2 * DICE_EPSILON)


def shrunk(crops: Crops, objects: Tensor, canvas: tuple[int, int], like: Tensor) -> Tensor:
    """(n, h, w) masks of the `objects` (n,) averaged over the cells of a map of `like`'s (..., h, w), without ever
    being dense at the canvas's size.
    """
    height, width = like.shape[-2:]
    stride = canvas[0] // height
    result = like.new_zeros(len(objects), height, width, dtype=torch.float32)
    regions, parts = crops.regions.tolist(), list(crops)
    for row, number in enumerate(objects.tolist()):
        x, y, w, h = regions[number]
        if w * h == 0:
            continue
        left, top = x // stride, y // stride
        right, bottom = -(-(x + w) // stride), -(-(y + h) // stride)
        around = (x - left * stride, right * stride - x - w, y - top * stride, bottom * stride - y - h)
        padded = F.pad(parts[number].float(), around)
        result[row, top:bottom, left:right] = F.avg_pool2d(padded[None, None], stride)[0, 0]
    return result


def points_loss(positives: Positives, targets: Sequence[Target]) -> Tensor:
    """Cross-entropy of the masks of objects that have points but no mask, read at these points and where the object
    surely is not: outside its box or, without one, at other objects' points. Mean over these pairs of all processes.
    """
    pointed = positives.of([has_points(target) | of_point_alone(target) for target in targets])
    if len(pointed) == 0:
        return global_mean(positives.logits.sum() * 0.0, 0)
    given = annotated_points(pointed, targets)
    outside = background_points(pointed, targets)
    grids = pointed.logits[:, None]
    losses = [point_losses(sample_grids(grids, each.coords)[..., 0], each) for each in (given, outside)]
    return global_mean((losses[0] + losses[1]).sum(), len(pointed))


@torch.no_grad()
def background_points(pointed: Positives, targets: Sequence[Target]) -> PointTargets:
    """Random places (K, P) where each pair's object is not; weight 0 where a place may be on it after all."""
    owner = (pointed.image_index, pointed.object_index)
    size = pointed.boxes[:, None, 2:]
    coords = torch.rand(len(pointed), BACKGROUND_POINTS, 2, device=size.device)
    boxes = of_object([target.instances.boxes for target in targets], *owner)[:, None]
    places = coords * size
    off = ((places < boxes[..., :2]) | (places > boxes[..., 2:])).any(2)
    boxless = ~of_object([has_box(target) for target in targets], *owner)
    for image, target in enumerate(targets):
        rows = (boxless & (pointed.image_index == image)).nonzero()[:, 0]
        points = target.instances.object_points
        if len(rows):
            drawn = torch.randint(len(points), (len(rows), BACKGROUND_POINTS), device=rows.device)
            coords[rows] = points[drawn] / size[rows]
            off[rows] = (drawn != pointed.object_index[rows, None]) & points[drawn].isfinite().all(2)
    trust = of_object([target.instances.weights for target in targets], *owner)
    weights = off * (trust * BACKGROUND_POINTS / off.sum(1).clamp(min=1))[:, None]
    return PointTargets(coords.nan_to_num(), torch.zeros_like(weights), weights)
