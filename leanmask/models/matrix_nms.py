"""Matrix NMS (Wang et al. 2020, SOLOv2, section 3.3): scores decay by overlap, all at once; and its point NMS.

Letters: M masks, best first, h w rows and columns of a mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 16  # rows and columns of a tile, a multiple of 8


def point_nms(scores: Tensor) -> Tensor:
    """(B, C, S, S) scores, 0 but where a cell is the highest of the 2 x 2 that end with it."""
    highest = F.max_pool2d(scores, 2, stride=1, padding=1)[..., :-1, :-1]
    return scores * (highest == scores)


def matrix_nms(masks: Tensor, categories: Tensor, scores: Tensor, sigma: float = 2.0) -> Tensor:
    """(M,) decayed scores of binary masks (M, h, w), categories (M,) and scores (M,), which must not increase.

    A mask decays by exp(-sigma * (iou^2 - own^2)), the least over all better masks of its class, where `own` is the
    highest IoU of that better mask with masks better still (the gaussian form).
    """
    count = len(masks)
    if count == 0:
        return scores
    common = intersections(masks)
    area = common.diagonal().clone()
    iou = common.div_((area[:, None] + area).sub_(common).clamp_(min=1))
    iou.mul_(categories[:, None] == categories).triu_(1)
    own = iou.amax(0)
    # A worse mask makes no other decay: below the diagonal the exponent is at most 0, so the factor at least 1.
    return scores * iou.square_().sub_(own.square()[:, None]).triu_(1).amax(0).mul_(-sigma).exp_().clamp_(max=1)


def intersections(masks: Tensor) -> Tensor:
    """(M, M) float32 number of pixels that two binary masks (M, h, w) share; exact.

    Tile by tile, of each only the masks that reach into it: objects are compact, so most pairs meet nowhere, and the
    product over the whole canvas would be thirty times the work.
    """
    count, height, width = masks.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    pixels = (masks if masks.dtype == torch.bool else masks > 0).contiguous().view(torch.uint8)
    if (rows * TILE, columns * TILE) != (height, width):
        pixels = F.pad(pixels, (0, columns * TILE - width, 0, rows * TILE - height))
    words = pixels.view(torch.int64).view(count, rows, TILE, columns * TILE // 8)  # eight pixels looked at in one go
    reached = (words.amax(2).view(count, rows, columns, TILE // 8).amax(3) > 0).permute(1, 2, 0).contiguous()
    tiles = pixels.view(count, rows, TILE, columns, TILE)
    common = torch.zeros(count, count, device=masks.device)
    for row in range(rows):
        for column in range(columns):
            here = reached[row, column].nonzero()[:, 0]
            if len(here) > 0:
                part = tiles[:, row, :, column].index_select(0, here).reshape(len(here), -1).float()
                with torch.autocast(masks.device.type, enabled=False):
                    shared = part @ part.T
                common.view(-1).index_add_(0, (here[:, None] * count + here).view(-1), shared.view(-1))
    return common
