"""What partial labels may and may not teach: trust weights, ignore regions, unlabelled places, points."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from leanmask.masks import Crops
from leanmask.models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from leanmask.models.matching import BACKGROUND, IGNORED, Thresholds, assign
from leanmask.records import Instances, MaskPredictions, Supervision, Target

RPN = Thresholds(0.7, 0.3, keep_best=True)
BOX = Thresholds(0.5, 0.5)
CANVAS = 96


def target_of(boxes: list[list[float]], weights: list[float] | None = None, **fields: object) -> Target:
    """Objects of class 0, 1, ... with full-box masks."""
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    regions = torch.cat([tensor[:, :2], tensor[:, 2:] - tensor[:, :2]], dim=1).nan_to_num(0).long()
    instances = Instances(
        boxes=tensor,
        categories=torch.arange(len(boxes)),
        supervision=torch.full((len(boxes),), int(Supervision.MASK)),
        weights=torch.ones(len(boxes)) if weights is None else torch.tensor(weights),
        masks=Crops(torch.ones(int(regions[:, 2:].prod(1).sum()), dtype=torch.uint8), regions),
    )
    return Target(instances=instances, **{"ignore": torch.zeros(0, 4), **fields})


def grid_of_boxes(seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    centre, size = torch.rand(400, 2) * CANVAS, 4 + torch.rand(400, 2) * 40
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


def test_complete_labels_match_as_torchvision_does() -> None:
    boxes, target = grid_of_boxes(), target_of([[10, 10, 50, 40], [30, 20, 90, 90]])
    for thresholds in (RPN, BOX):
        matcher = Matcher(thresholds.positive, thresholds.background, thresholds.keep_best)
        expected = matcher(box_iou(target.instances.boxes, boxes))
        assert torch.equal(assign(boxes, target, thresholds), expected)


@pytest.mark.parametrize("thresholds", [RPN, BOX])
def test_weight_zero_leaves_other_positives_alone_and_makes_no_background(thresholds: Thresholds) -> None:
    doubted = torch.tensor([[30.0, 20.0, 80.0, 80.0]])
    boxes = torch.cat([grid_of_boxes(), doubted])
    without = assign(boxes, target_of([[10, 10, 50, 40]]), thresholds)
    with_it = assign(boxes, target_of([[10, 10, 50, 40], [30, 20, 80, 80]], weights=[1.0, 0.0]), thresholds)
    assert torch.equal(with_it == 0, without == 0)
    assert not (with_it == 1).any()
    close = box_iou(boxes, doubted)[:, 0] >= thresholds.background
    assert (with_it[close] != BACKGROUND).all()
    assert (with_it[close] == IGNORED).sum() > 0
    far = box_iou(boxes, doubted)[:, 0] == 0
    assert torch.equal(with_it[far], without[far])


def test_objects_keep_their_index_behind_a_doubtful_one() -> None:
    target = target_of([[0, 0, 20, 20], [40, 40, 80, 80]], weights=[0.0, 1.0])
    assert assign(torch.tensor([[40.0, 40.0, 80.0, 80.0]]), target, RPN).tolist() == [1]


def test_ignore_regions() -> None:
    target = target_of([[10, 10, 30, 30]], ignore=torch.tensor([[0.0, 0.0, 48.0, 96.0]]))
    boxes = torch.tensor(
        [
            [10.0, 10.0, 30.0, 30.0],  # an object in an ignore region still teaches
            [20.0, 50.0, 40.0, 70.0],  # inside: neither object nor background
            [40.0, 50.0, 54.0, 70.0],  # a little more than half inside
            [44.0, 50.0, 60.0, 70.0],  # less than half inside
            [0.0, 0.0, 96.0, 96.0],  # covers it and as much besides: exactly half is inside
        ]
    )
    assert assign(boxes, target, BOX).tolist() == [0, IGNORED, IGNORED, BACKGROUND, BACKGROUND]


def test_unlabelled_places_are_not_background() -> None:
    target = target_of([[10, 10, 50, 50]], exhaustive=False)
    boxes = torch.tensor(
        [
            [10.0, 10.0, 50.0, 50.0],
            [12.0, 12.0, 25.0, 25.0],  # a part of a labelled object is background
            [60.0, 60.0, 90.0, 90.0],  # nobody looked there
            [0.0, 0.0, 96.0, 96.0],  # may hold other objects
        ]
    )
    assert assign(boxes, target, BOX).tolist() == [0, BACKGROUND, IGNORED, IGNORED]
    nothing = target_of([], exhaustive=False)
    assert (assign(boxes, nothing, BOX) == IGNORED).all()
    assert (assign(boxes, dataclasses.replace(nothing, exhaustive=True), BOX) == BACKGROUND).all()


def test_boxes_around_a_point_are_left_out() -> None:
    target = target_of([[float("nan")] * 4, [60, 60, 90, 90]])
    points = torch.tensor([[[20.0, 30.0], [70.0, 10.0]], [[75.0, 75.0], [0.0, 0.0]]])
    labels = torch.tensor([[1, 0], [1, -1]])
    target = dataclasses.replace(target, instances=target.instances.replace(points=points, point_labels=labels))
    boxes = torch.tensor([[10.0, 20.0, 30.0, 40.0], [60.0, 0.0, 80.0, 20.0], [60.0, 60.0, 90.0, 90.0]])
    assert assign(boxes, target, BOX).tolist() == [IGNORED, BACKGROUND, 1]


def test_an_object_without_box_and_point_may_be_anywhere() -> None:
    target = target_of([[float("nan")] * 4, [60, 60, 90, 90]])
    boxes = torch.tensor([[10.0, 20.0, 30.0, 40.0], [61.0, 61.0, 70.0, 70.0]])
    assert assign(boxes, target, BOX).tolist() == [IGNORED, BACKGROUND]


def losses_of(model: MaskRCNN, target: Target) -> tuple[dict[str, Tensor], MaskPredictions]:
    torch.manual_seed(5)
    images = torch.rand(1, 3, CANVAS, CANVAS)
    return model(images, [target])


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    """Takes every anchor and proposal, so that losses do not depend on the draw."""
    torch.manual_seed(0)
    settings = {"proposals_per_image": 4000, "rpn_samples": 100_000, "positive_fraction": 0.5}
    return MaskRCNN(MaskRCNNConfig(backbone="tiny", **settings), 3).train()


def test_weight_zero_gives_no_gradient(model: MaskRCNN) -> None:
    """A doubted object alone in an image where nobody looked elsewhere: nothing whatever is learnt."""
    losses, predictions = losses_of(model, target_of([[20, 20, 70, 70]], weights=[0.0], exhaustive=False))
    assert all(loss == 0 for loss in losses.values())
    assert len(predictions) == 0
    gradients = torch.autograd.grad(torch.stack(list(losses.values())).sum(), list(model.parameters()))
    assert all((gradient == 0).all() for gradient in gradients)


def test_losses_of_positives_are_proportional_to_the_weight(model: MaskRCNN) -> None:
    whole, _ = losses_of(model, target_of([[20, 20, 70, 70]], weights=[1.0]))
    half, _ = losses_of(model, target_of([[20, 20, 70, 70]], weights=[0.5]))
    for name in ("loss_rpn_box", "loss_box", "loss_mask"):
        assert whole[name] > 0
        torch.testing.assert_close(half[name], whole[name] / 2)
    for name in ("loss_objectness", "loss_classifier"):
        assert half[name] < whole[name]


def test_what_the_weight_zero_object_is_does_not_matter(model: MaskRCNN) -> None:
    first = target_of([[10, 10, 40, 40], [50, 50, 90, 90]], weights=[1.0, 0.0])
    other = first.instances.replace(categories=torch.tensor([0, 2]), supervision=torch.tensor([4, 1]))
    one, _ = losses_of(model, first)
    two, _ = losses_of(model, dataclasses.replace(first, instances=other))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=0)


def test_pixel_weights_reach_the_mask_loss(model: MaskRCNN) -> None:
    target = target_of([[20, 20, 70, 70]])
    plain, _ = losses_of(model, target)
    ones = Crops(torch.ones(2500), target.instances.masks.regions)
    same, _ = losses_of(model, dataclasses.replace(target, pixel_weights=ones))
    none, _ = losses_of(model, dataclasses.replace(target, pixel_weights=Crops(torch.zeros(2500), ones.regions)))
    torch.testing.assert_close(same["loss_mask"], plain["loss_mask"])
    assert none["loss_mask"] < 0.6 * plain["loss_mask"]
    for name in set(plain) - {"loss_mask"}:
        assert none[name] == plain[name]


def test_unlabelled_image_beside_a_labelled_one_changes_nothing_but_its_own_share(model: MaskRCNN) -> None:
    """Joined with an image of which nothing is known, the labelled image's losses stay what they are."""
    torch.manual_seed(6)
    images = torch.rand(2, 3, CANVAS, CANVAS)
    labelled, unknown = target_of([[20, 20, 70, 70]]), target_of([], exhaustive=False)
    alone, _ = model(images[:1], [labelled])
    joined, _ = model(images, [labelled, unknown])
    for name in alone:
        torch.testing.assert_close(joined[name], alone[name], rtol=1e-4, atol=1e-6)
