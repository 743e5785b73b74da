"""Mask R-CNN: torchvision's predictions and losses with torchvision's weights, and training from partial labels."""

from __future__ import annotations

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
from leanmask.models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from leanmask.models.two_stage import class_targets
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
        backbone="resnet18", weights=None, norm="frozen_batch", score_floor=0.05, proposals_per_image=64, rpn_samples=64
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
    ours = MaskRCNN(MaskRCNNConfig(backbone="resnet50", weights=None, norm="batch"), CLASSES)
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


def test_losses_and_masks_of_positives() -> None:
    model = tiny().train()
    targets = [target_of([[10, 10, 50, 60]]), target_of([[20, 30, 70, 70], [60, 60, 90, 90]], Supervision.BOX)]
    losses, predictions = model(torch.rand(2, 3, 96, 96), targets)
    assert set(losses) == LOSSES
    assert all(loss.dim() == 0 and loss.dtype == torch.float32 and loss > 0 for loss in losses.values())
    assert predictions.logits.shape == (len(predictions), CLASSES, 28, 28)
    assert set(predictions.image_index.tolist()) == {1}  # whose objects have no mask
    assert torch.equal(predictions.categories, predictions.object_index)
    total(losses).backward()
    assert all(p.grad is not None for p in model.parameters())


NOTHING = {
    "empty": [empty_target(), empty_target()],
    "unlabelled": [empty_target(exhaustive=False), empty_target(exhaustive=False)],
    "boxes only": [target_of([[10, 10, 50, 60]], Supervision.BOX), empty_target()],
    "points only": [point_target([[30.0, 40.0]]), point_target([[5.0, 5.0], [90.0, 80.0]])],
    "weight 0": [target_of([[10, 10, 50, 60]], weights=[0.0]), target_of([[10, 10, 50, 60]], weights=[0.0])],
    "no area": [target_of([[10, 10, 10, 60]], Supervision.BOX), target_of([[20, 20, 20, 20]], Supervision.BOX)],
}


@pytest.mark.parametrize("targets", NOTHING.values(), ids=NOTHING.keys())
def test_batches_that_lack_something_train(targets: list[Target]) -> None:
    model = tiny().train()
    losses, predictions = model(torch.rand(2, 3, 64, 64), targets)
    assert losses["loss_mask"] == 0
    assert torch.isfinite(total(losses))
    total(losses).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert len(predictions) == 0 or targets is NOTHING["boxes only"]


def test_bfloat16_and_channels_last() -> None:
    model = tiny().to(memory_format=torch.channels_last).train()
    images = torch.rand(2, 3, 96, 96).contiguous(memory_format=torch.channels_last)
    targets = [target_of([[10, 10, 50, 60]]), target_of([[20, 30, 70, 70]])]
    torch.manual_seed(0)
    exact, _ = model(images, targets)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        rough, predictions = model(images, targets)
        found = model.eval().predict(images)
    assert all(loss.dtype == torch.float32 for loss in rough.values())
    assert predictions.logits.dtype == torch.float32
    assert found[0].boxes.dtype == found[0].masks.values.dtype == torch.float32
    for name in ("loss_objectness", "loss_classifier", "loss_mask"):
        torch.testing.assert_close(rough[name], exact[name], rtol=0.05, atol=0.02)


def test_predict_when_nothing_is_found() -> None:
    found = tiny(score_floor=1.0).eval().predict(torch.rand(2, 3, 64, 64))
    for instances in found:
        assert len(instances) == 0
        assert instances.masks.values.shape == (0, 28, 28)
        assert instances.class_probabilities.shape == (0, CLASSES)


@pytest.mark.parametrize(("aligned", "shift_px"), [(True, 0.0), (False, 0.5)])
def test_grids_say_where_what_they_show_is(aligned: bool, shift_px: float) -> None:
    (found,) = tiny(aligned=aligned).eval().predict(torch.rand(1, 3, 96, 96))
    assert isinstance(found.masks, Grids)
    assert found.masks.shift_px == shift_px
    assert found[torch.arange(2)].masks.to("cpu").shift_px == shift_px


def test_predictions_stay_inside_the_content() -> None:
    content = [(0.0, 0.0, 96.0, 40.0), (10.0, 20.0, 96.0, 96.0)]
    found = tiny().eval().predict(torch.rand(2, 3, 96, 96), content)
    for instances, (x0, y0, x1, y1) in zip(found, content, strict=True):
        assert 0 < len(instances) <= 100
        assert instances.boxes.min() >= 0
        assert (instances.boxes >= torch.tensor([x0, y0, x0, y0])).all()
        assert (instances.boxes <= torch.tensor([x1, y1, x1, y1])).all()
        assert (instances.scores.diff() <= 0).all()
        assert (instances.scores > 0.01).all()


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_predict_masks_are_those_of_the_forward_pass(class_agnostic: bool) -> None:
    model = tiny(class_agnostic=class_agnostic).train()
    images = torch.rand(2, 3, 96, 96)
    _, predictions = model(images, [target_of([[10, 10, 50, 60]]), target_of([[20, 30, 70, 70], [60, 60, 90, 90]])])
    shuffled = predictions[torch.randperm(len(predictions))]
    again = model.predict_masks(images, shuffled.proposals())
    torch.testing.assert_close(again.logits, shuffled.logits, atol=1e-5, rtol=1e-4)
    assert again.logits.shape[1] == (1 if class_agnostic else CLASSES)
    assert torch.equal(again.object_index, shuffled.object_index)


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_a_predictions_mask_is_that_of_its_box_and_class(class_agnostic: bool) -> None:
    model, images = tiny(class_agnostic=class_agnostic).eval(), torch.rand(1, 3, 96, 96)
    found = model.predict(images)[0]
    zeros = torch.zeros_like(found.categories)
    proposals = Proposals(image_index=zeros, boxes=found.boxes, object_index=zeros, categories=found.categories)
    expected = model.predict_masks(images, proposals).of_category().sigmoid()
    assert len(found.categories.unique()) > 1
    torch.testing.assert_close(found.masks.values, expected, atol=1e-5, rtol=1e-4)


def test_predict_masks_for_no_box() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    proposals = Proposals(image_index=none, boxes=torch.zeros(0, 4), object_index=none, categories=none)
    assert tiny().predict_masks(torch.rand(1, 3, 64, 64), proposals).logits.shape == (0, CLASSES, 28, 28)


def test_a_few_steps_learn_an_image() -> None:
    model = tiny().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    images = torch.rand(1, 3, 64, 64) * 0.2
    images[0, :, 10:50, 8:40] += 0.7
    targets = [target_of([[8, 10, 40, 50]])]
    for step in range(60):
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 - step / 60)  # at a constant rate the last steps decide by chance
        losses, _ = model(images, targets)
        optimiser.zero_grad()
        total(losses).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
    best = model.eval().predict(images)[0]
    assert best.scores[0] > 0.5
    assert best.categories[0] == 0
    assert (best.boxes[0] - targets[0].instances.boxes[0]).abs().max() < 6


def test_soft_classes_are_the_target() -> None:
    target = target_of([[10, 10, 50, 60], [40, 40, 90, 90]])
    soft = torch.tensor([[0.2, 0.2, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
    doubtful = Target(instances=target.instances.replace(class_probabilities=soft), ignore=target.ignore)
    index = torch.tensor([0, 1, -1])
    samples = Proposals(
        image_index=torch.zeros(3, dtype=torch.int64),
        boxes=torch.zeros(3, 4),
        object_index=index,
        categories=torch.tensor([0, 1, 0]),
    )
    assert class_targets(samples, [target], CLASSES).tolist() == [1, 2, 0]
    expected = [[0, 0.5, 0.5, 0, 0, 0], [0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]]
    torch.testing.assert_close(class_targets(samples, [doubtful], CLASSES), torch.tensor(expected))


def test_config_takes_the_backbones_numbers() -> None:
    assert MaskRCNNConfig(backbone="resnet50").preset().rpn_before_nms == (2000, 1000)
    assert MaskRCNNConfig(backbone="tiny").preset().fpn_channels == 64
    assert MaskRCNNConfig(backbone="tiny", proposals_per_image=33).preset().proposals_per_image == 33
    assert MaskRCNNConfig(backbone="resnet50", aligned=True).preset().aligned
    assert MaskRCNNConfig(backbone="resnet50", weights="DEFAULT").backbone_spec().norm == "frozen_batch"
    assert MaskRCNNConfig(backbone="resnet50", weights="DEFAULT").backbone_spec().trainable_layers == 3
    assert MaskRCNNConfig(backbone="resnet50", weights=None).backbone_spec().trainable_layers == 5
    assert MODELS["mask_rcnn"].Config is MaskRCNNConfig
    assert sum(p.numel() for p in tiny().parameters()) < 5e6
