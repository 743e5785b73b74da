"""Mask R-CNN: torchvision's predictions and losses with torchvision's weights, and training from partial labels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import FrozenBatchNorm2d

from leanmask.masks import Crops, Grids
from leanmask.models import MODELS
from leanmask.models.mask_rcnn import MaskRCNN, MaskRCNNConfig, class_targets
from leanmask.models.matching import assign
from leanmask.records import Instances, Proposals, Supervision, Target

CLASSES = 5
LOSSES = {"loss_objectness", "loss_rpn_box", "loss_classifier", "loss_box", "loss_mask"}


def target_of(
    boxes: list[list[float]],
    supervision: Supervision = Supervision.MASK,
    weights: list[float] | None = None,
    exhaustive: bool = True,
) -> Target:
    """Objects that fill the ellipse inside their boxes, categories 0, 1, 2, ..."""
    count = len(boxes)
    regions, crops = [], []
    for x0, y0, x1, y1 in boxes:
        x, y, w, h = int(x0), int(y0), int(x1) - int(x0), int(y1) - int(y0)
        u, v = (torch.arange(w) + 0.5) / w * 2 - 1, (torch.arange(h) + 0.5) / h * 2 - 1
        regions.append([x, y, w, h])
        crops.append((u[None] ** 2 + v[:, None] ** 2 <= 1).to(torch.uint8))
    instances = Instances(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        categories=torch.arange(count) % CLASSES,
        supervision=torch.full((count,), int(supervision)),
        weights=torch.ones(count) if weights is None else torch.tensor(weights),
        masks=Crops.join(crops, torch.tensor(regions).reshape(-1, 4)),
    )
    return Target(instances=instances, exhaustive=exhaustive, ignore=torch.zeros(0, 4))


def point_target(points: list[list[float]]) -> Target:
    """Objects known by one point and their class only."""
    count = len(points)
    instances = Instances(
        boxes=torch.full((count, 4), float("nan")),
        categories=torch.zeros(count, dtype=torch.int64),
        supervision=torch.full((count,), int(Supervision.POINT)),
        weights=torch.ones(count),
        masks=Crops.none(count),
        points=torch.tensor(points)[:, None],
        point_labels=torch.ones(count, 1, dtype=torch.int64),
    )
    return Target(instances=instances, ignore=torch.zeros(0, 4))


def empty_target(exhaustive: bool = True) -> Target:
    return Target(instances=Instances.empty(), exhaustive=exhaustive, ignore=torch.zeros(0, 4))


def dense_masks(target: Target, size: tuple[int, int]) -> Tensor:
    masks = torch.zeros(len(target.instances), *size, dtype=torch.uint8)
    crops = target.instances.masks
    assert isinstance(crops, Crops)
    for mask, crop, (x, y, w, h) in zip(masks, crops, crops.regions.tolist(), strict=True):
        mask[y : y + h, x : x + w] = crop
    return masks


def tiny(**settings: object) -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN(MaskRCNNConfig(backbone="tiny", **settings), CLASSES)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.fixture(scope="module")
def twins() -> tuple[MaskRCNN, TorchvisionMaskRCNN]:
    """Our model and torchvision's with the same random weights, spread so that no two scores tie."""
    torch.manual_seed(1)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
    )
    theirs = TorchvisionMaskRCNN(
        backbone, CLASSES + 1, min_size=160, max_size=160, box_batch_size_per_image=64, rpn_batch_size_per_image=64
    )
    for name, module in theirs.named_modules():
        if isinstance(module, FrozenBatchNorm2d) and name.endswith("bn2"):
            module.weight.fill_(0.3)
    with torch.no_grad():
        theirs.roi_heads.box_predictor.cls_score.weight.mul_(15)
        theirs.rpn.head.cls_logits.weight.mul_(30)
    config = MaskRCNNConfig(
        backbone="resnet18", norm="frozen_batch", score_floor=0.05, proposals_per_image=64, rpn_samples=64
    )
    ours = MaskRCNN(config, CLASSES)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.fixture(scope="module")
def scene() -> tuple[Tensor, list[Target]]:
    torch.manual_seed(2)
    images = torch.rand(2, 3, 160, 160)
    targets = [
        target_of([[10, 12, 70, 80], [60, 50, 150, 158], [100, 5, 160, 60]]),
        target_of([[0, 0, 90, 64], [30, 70, 75, 120]]),
    ]
    return images, targets


def test_parameters_are_torchvisions() -> None:
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES + 1)
    ours = MaskRCNN(MaskRCNNConfig(backbone="resnet50", norm="batch"), CLASSES)
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes


def test_predictions_are_torchvisions(twins, scene) -> None:
    ours, theirs = (model.eval() for model in twins)
    images, _ = scene
    expected = theirs(list(images))
    for found, known in zip(ours.predict(images), expected, strict=True):
        assert len(known["boxes"]) > 10
        torch.testing.assert_close(found.boxes, known["boxes"], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(found.scores, known["scores"], atol=1e-5, rtol=1e-4)
        assert torch.equal(found.categories + 1, known["labels"])
        grids = found.masks
        assert isinstance(grids, Grids)
        pasted = paste_masks_in_image(grids.values[:, None], grids.boxes, (160, 160))
        # A box edge within rounding of a whole pixel may be pasted one pixel further; such pixels are rare.
        assert ((pasted - known["masks"]).abs() > 1e-4).float().mean() < 1e-3
        own = found.class_probabilities[torch.arange(len(found)), found.categories]
        assert torch.equal(own, found.scores)


def test_losses_are_torchvisions(twins, scene) -> None:
    ours, theirs = (model.train() for model in twins)
    images, targets = scene
    truth = [
        {
            "boxes": target.instances.boxes,
            "labels": target.instances.categories + 1,
            "masks": dense_masks(target, (160, 160)),
        }
        for target in targets
    ]
    # Its resizing draws a random number, so both are seeded where the first anchors are sampled.
    seeding = theirs.rpn.register_forward_pre_hook(lambda *_: torch.manual_seed(3) and None)
    expected = theirs(list(images), truth)
    seeding.remove()
    torch.manual_seed(3)
    losses, _ = ours(images, targets)
    names = {
        "loss_objectness": "loss_objectness",
        "loss_rpn_box": "loss_rpn_box_reg",
        "loss_classifier": "loss_classifier",
        "loss_box": "loss_box_reg",
        "loss_mask": "loss_mask",
    }
    for name, theirs_name in names.items():
        torch.testing.assert_close(losses[name], expected[theirs_name], atol=1e-5, rtol=1e-4, msg=name)
