"""Cascade Mask R-CNN against naive computations, and classification losses with soft and partly known targets."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mask_rcnn import CLASSES, empty_target, target_of, total
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from leanmask.models.cascade_mask_rcnn import (
    STAGE_IOUS,
    CascadeHeads,
    CascadeMaskRCNN,
    CascadeMaskRCNNConfig,
    scale_gradient,
)
from leanmask.models.class_losses import draw_classes, looked_for, sigmoid_loss, softmax_loss
from leanmask.models.matching import BACKGROUND, IGNORED
from leanmask.records import Proposals, Target

SMALL: dict[str, Any] = {
    "fpn_channels": 16,
    "box_channels": 16,
    "mask_channels": 8,
    "mask_convs": 1,
    "rpn_before_nms": (64, 64),
    "rpn_after_nms": (48, 32),
}


def cascade(**given_settings: Any) -> CascadeMaskRCNN:
    torch.manual_seed(0)
    return CascadeMaskRCNN(CascadeMaskRCNNConfig(backbone="tiny", **{**SMALL, **given_settings}), CLASSES)


def known_only(target: Target, *categories: int) -> Target:
    return dataclasses.replace(target, known_categories=torch.tensor(categories, dtype=torch.int64))


@given(st.integers(0, 10_000), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_class_losses_are_naive_sums(seed: int, soft: bool, partly: bool) -> None:
    make = torch.Generator().manual_seed(seed)
    count, classes = 4, 5
    logits = torch.randn(count, classes + 1, generator=make, dtype=torch.float64)
    owners = torch.randint(-1, classes, (count,), generator=make)
    targets: Tensor = owners + 1
    if soft:
        targets = torch.rand(count, classes + 1, generator=make, dtype=torch.float64)
        targets = targets / targets.sum(1, keepdim=True)
    allowed = torch.rand(count, classes, generator=make) < 0.5 if partly else None
    if allowed is not None:
        allowed[torch.nonzero(owners >= 0)[:, 0], owners[owners >= 0]] = True
    softmax, sigmoid = softmax_loss(logits, targets, allowed), sigmoid_loss(logits, targets, allowed)
    for k in range(count):
        columns = [0, *(c + 1 for c in range(classes) if allowed is None or allowed[k, c])]
        wanted = {c: float(targets[k, c]) if soft else float(targets[k] == c) for c in range(classes + 1)}
        share = sum(wanted[c] for c in columns)
        log_sum = math.log(sum(math.exp(float(logits[k, c])) for c in columns))
        expected = sum(wanted[c] / share * (log_sum - float(logits[k, c])) for c in columns)
        assert float(softmax[k]) == pytest.approx(expected, rel=1e-6)
        expected = 0.0
        for c in columns[1:]:
            p = 1 / (1 + math.exp(-float(logits[k, c])))
            expected -= wanted[c] * math.log(p) + (1 - wanted[c]) * math.log(1 - p)
        assert float(sigmoid[k]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", [softmax_loss, sigmoid_loss])
def test_a_class_nobody_looked_for_gets_no_gradient(loss: Any) -> None:
    targets = [known_only(target_of([[8, 8, 40, 40]]), 0, 1), empty_target()]
    image_index, owners = torch.tensor([0, 0, 1]), torch.tensor([0, -1, -1])
    allowed = looked_for(targets, image_index, owners, CLASSES)
    assert allowed is not None
    assert allowed[:2].tolist() == [[True, True, False, False, False]] * 2
    assert allowed[2].all()  # an image without LVIS's fields speaks of every class
    logits = torch.randn(3, CLASSES + 1, requires_grad=True)
    loss(logits, owners + 1, allowed).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[:2, 3:] == 0).all()
    assert (logits.grad[2, 1:] != 0).all()


def test_a_class_that_is_not_exhaustive_learns_from_its_own_objects() -> None:
    target = known_only(target_of([[8, 8, 40, 40]]), 1)  # the object is of class 0, which is not complete here
    allowed = looked_for([target], torch.tensor([0, 0]), torch.tensor([0, -1]), CLASSES)
    assert allowed is not None
    assert allowed[:, 0].tolist() == [True, False]
    assert looked_for([target_of([[8, 8, 40, 40]])], torch.tensor([0]), torch.tensor([0]), CLASSES) is None


def test_drawn_classes() -> None:
    torch.manual_seed(0)
    present = torch.tensor([True, False, False, False, False, False])
    counts = torch.tensor([5, 10_000, 1, 1, 1, 1])
    drawn = torch.stack([draw_classes(present, counts, 3) for _ in range(200)])
    assert drawn[:, 0].all()
    assert (drawn.sum(1) == 3).all()
    assert drawn[:, 1].float().mean() > 0.95  # 100 against 1
    assert draw_classes(present, counts, 1).tolist() == present.tolist()
    assert draw_classes(present, counts, 50).all()
    assert draw_classes(torch.ones(3, dtype=torch.bool), torch.ones(3), 2).all()  # classes with objects always learn


@pytest.mark.parametrize("class_loss", ["softmax", "sigmoid"])
def test_a_step_reaches_every_parameter(class_loss: str) -> None:
    model = cascade(class_loss=class_loss, federated_classes=3)
    model.tell_image_counts([5, 4, 3, 2, 1])
    images = torch.rand(2, 3, 64, 64)
    soft = target_of([[8, 8, 40, 40], [30, 20, 60, 60]])
    probabilities = torch.tensor([[0.7, 0.3, 0, 0, 0], [0.1, 0.8, 0.1, 0, 0]])
    targets = [
        dataclasses.replace(soft, instances=soft.instances.replace(class_probabilities=probabilities)),
        known_only(target_of([[10, 12, 44, 50]]), 0, 3),
    ]
    losses, predictions = model(images, targets)
    names = {f"loss_{kind}_{number}" for kind in ("classifier", "box") for number in (1, 2, 3)}
    assert set(losses) == names | {"loss_objectness", "loss_rpn_box", "loss_mask"}
    assert total(losses).isfinite()
    assert len(predictions) == 0  # every object has a mask, so nobody asks for what the model says of them
    total(losses).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_weight_zero_and_unknown_places_teach_nothing() -> None:
    model, images = cascade(), torch.rand(1, 3, 64, 64)
    targets = [target_of([[8, 8, 40, 40]], weights=[0.0], exhaustive=False)]
    losses, _ = model(images, targets)
    assert {name: float(loss.detach()) for name, loss in losses.items()} == dict.fromkeys(losses, 0.0)


def test_scores_are_averaged_and_boxes_are_the_last_stages() -> None:
    model, images = cascade().eval(), torch.rand(1, 3, 64, 64)
    boxes = torch.tensor([[4.0, 4.0, 30.0, 30.0], [10.0, 20.0, 60.0, 50.0]])
    index = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        features = model.features(images)[:4]
        probabilities, boxes_of = model.score(features, boxes, index, (64, 64))
        expected, place = torch.zeros(2, CLASSES), boxes
        for number in range(3):
            pooled = model.roi_heads.box_pool(features, place, index)
            logits, coded = model.roi_heads.box_predictors[number](model.roi_heads.box_heads[number](pooled))
            expected += logits.softmax(1)[:, 1:] / 3
            place = model.coders[number].decode_single(coded, place)
            place = clip_boxes_to_image(place, (64, 64)) if number < 2 else place
    torch.testing.assert_close(probabilities, expected)
    rows = torch.tensor([1, 0])
    torch.testing.assert_close(boxes_of(rows, rows), place[rows])
    found = model.predict(images)[0]
    assert found.class_probabilities is not None
    assert found.class_probabilities.shape[1] == CLASSES


def test_later_stages_are_stricter() -> None:
    target = target_of([[0, 0, 40, 40]])
    boxes = torch.tensor([[0.0, 0.0, 40.0, 22.0], [0.0, 0.0, 40.0, 26.0], [0.0, 0.0, 40.0, 38.0], [44.0, 44, 60, 60]])
    index = torch.zeros(4, dtype=torch.int64)
    samples = Proposals(  # IoU 0.55, 0.65, 0.95, 0
        boxes=boxes, image_index=index, object_index=index.clone(), categories=index.clone()
    )
    matched = [cascade().match_again(samples, [target], iou).object_index.tolist() for iou in STAGE_IOUS]
    assert matched == [[0, 0, 0, -1], [-1, 0, 0, -1], [-1, -1, 0, -1]]
    unknown = [dataclasses.replace(target, exhaustive=False)]
    assert cascade().match_again(samples, unknown, 0.7).object_index.tolist() == [BACKGROUND, BACKGROUND, 0, IGNORED]


def test_masks_for_given_boxes_and_features_of_them() -> None:
    model, images = cascade(), torch.rand(2, 3, 64, 64)
    proposals = Proposals(
        image_index=torch.tensor([0, 1, 1]),
        boxes=torch.tensor([[4.0, 4.0, 30.0, 30.0], [10.0, 20.0, 60.0, 50.0], [0.0, 0.0, 9.0, 9.0]]),
        object_index=torch.tensor([0, 0, 1]),
        categories=torch.tensor([0, 1, 2]),
    )
    assert model.predict_masks(images, proposals).logits.shape == (3, CLASSES, 28, 28)
    features = model.embed(images, proposals)
    assert features.shape == (3, 256)
    assert not features.requires_grad
    assert not torch.equal(features[1], features[2])
    described = model.describe(images, proposals)
    said = model.roi_heads.stage(2, model.features(images)[:4], proposals.boxes, proposals.image_index)[0]
    torch.testing.assert_close(model.roi_heads.box_predictors[2](described)[0], said)  # classes are told from it


def test_gradient_is_scaled_and_values_are_not() -> None:
    values = torch.randn(3, requires_grad=True)
    scaled = scale_gradient(values, 1 / 3)
    assert torch.equal(scaled, values)
    scaled.sum().backward()
    torch.testing.assert_close(values.grad, torch.full((3,), 1 / 3))


def test_published_sizes() -> None:
    with torch.device("meta"):
        heads = CascadeHeads(CascadeMaskRCNNConfig(backbone="resnet50"), 80)
    convs = 4 * (256 * 256 * 9 + 2 * 256)
    stage = convs + 256 * 49 * 1024 + 1024 + (1024 + 1) * 81 + (1024 + 1) * 4
    boxes = sum(p.numel() for n, p in heads.named_parameters() if n.startswith("box_"))
    assert boxes == 3 * stage
    config = CascadeMaskRCNNConfig(backbone="resnet50")
    assert config.preset().rpn_convs == 2
    assert CascadeMaskRCNNConfig(backbone="tiny").preset().box_channels == 256
    assert float(cascade(class_loss="sigmoid").roi_heads.box_predictors[0].cls_score.bias[0]) == pytest.approx(
        -math.log(99)
    )
