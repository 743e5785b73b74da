"""PointRend and Implicit PointRend: published sizes, partial labels, the verbs, and learning a shape."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from run_helpers import TINY, train
from safetensors.torch import load_file
from test_mask_rcnn import CLASSES, NOTHING, target_of, total
from test_points import pointed
from torch import Tensor

from leanmask.config import merge
from leanmask.models import MODELS
from leanmask.models.implicit_pointrend import FourierFeatures, ImplicitPointRend, ImplicitPointRendConfig, PointNetwork
from leanmask.models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from leanmask.models.pointrend import PointRend, PointRendConfig
from leanmask.models.two_stage import TwoStage
from leanmask.records import Proposals, Supervision, Target
from leanmask.run import resume

NAMES = ["pointrend", "implicit_pointrend"]


def tiny(name: str, **settings: object) -> TwoStage:
    torch.manual_seed(0)
    return MODELS[name](MODELS[name].Config(backbone="tiny", **settings), CLASSES)


@pytest.mark.parametrize(
    ("classes", "agnostic", "expected"), [(80, False, 283_472), (80, True, 263_169)], ids=["80 classes", "agnostic"]
)
def test_published_parameter_count(classes: int, agnostic: bool, expected: int) -> None:
    with torch.device("meta"):
        model = ImplicitPointRend(
            ImplicitPointRendConfig(backbone="resnet50", weights=None, class_agnostic=agnostic), classes
        )
    assert model.roi_heads.network.parameter_count == expected
    assert model.roi_heads.parameter_head.last.weight.numel() == expected * 1024
    assert model.roi_heads.parameter_head.fc1.in_features == 12_544


def test_published_pointrend() -> None:
    with torch.device("meta"):
        heads = PointRend(PointRendConfig(backbone="resnet50", weights=None), 80).roi_heads
    assert [layer.weight.shape for layer in heads.point_head.layers] == [(256, 336)] * 3
    assert heads.point_head.last.weight.shape == (80, 336)
    assert heads.coarse_head.last.out_features == 80 * 49
    assert heads.preset.train_points == 196
    assert heads.preset.subdivision_points == 784


def test_point_network_against_a_loop() -> None:
    torch.manual_seed(0)
    network = PointNetwork([3, 5, 4, 2])
    assert network.parameter_count == 15 + 20 + 8 + 5 + 4 + 2
    parameters, inputs = torch.randn(3, network.parameter_count), torch.randn(3, 7, 3)
    found = network(parameters, inputs)
    for row in range(3):
        p, hidden = parameters[row], inputs[row]
        hidden = (hidden @ p[:15].view(3, 5) + p[43:48]).relu()
        hidden = (hidden @ p[15:35].view(5, 4) + p[48:52]).relu()
        torch.testing.assert_close(found[row], hidden @ p[35:43].view(4, 2) + p[52:])


def test_fourier_features() -> None:
    encode = FourierFeatures(6)
    found = encode(torch.tensor([[[0.5, 0.5], [0.75, 0.0]]]))
    assert found[0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    angles = 2 * torch.pi * (0.5 * encode.matrix[0] - encode.matrix[1])
    torch.testing.assert_close(found[0, 1], torch.cat([angles.sin(), angles.cos()]))
    assert "matrix" in encode.state_dict()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("targets", NOTHING.values(), ids=NOTHING.keys())
def test_batches_that_lack_something_train(name: str, targets: list[Target]) -> None:
    model = tiny(name).train()
    losses, _ = model(torch.rand(2, 3, 64, 64), targets)
    assert losses["loss_mask"] == 0
    assert torch.isfinite(total(losses))
    total(losses).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_masks_points_and_boxes_in_one_batch(name: str) -> None:
    model = tiny(name).train()
    box = [10.0, 10.0, 50.0, 60.0]
    targets = [
        target_of([box]),
        pointed([[[30.0, 30.0], [12.0, 12.0]]], [[1, 0]], [box]),
        target_of([box], Supervision.BOX),
    ]
    losses, predictions = model(torch.rand(3, 3, 96, 96), targets)
    assert all(loss.dim() == 0 and loss.dtype == torch.float32 and loss >= 0 for loss in losses.values())
    assert set(predictions.image_index.tolist()) == {1, 2}  # those that a teacher could help
    assert predictions.logits.shape == (len(predictions), CLASSES, 14, 14)
    total(losses).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", [*NAMES, "mask_rcnn"])
def test_few_masks_can_weigh_as_among_many(name: str) -> None:
    box = [10.0, 10.0, 50.0, 60.0]
    masked, boxed = target_of([box]), target_of([box], Supervision.BOX)
    found = {}
    for mean in ("taught", "positives"):
        for which, targets in (("few", [masked, boxed]), ("all", [masked, masked])):
            torch.manual_seed(0)
            model = tiny(name, mask_mean=mean).train()
            found[mean, which] = model(torch.rand(2, 3, 96, 96), targets)[0]["loss_mask"].item()
    assert 0 < found["positives", "few"] < found["taught", "few"]
    assert found["positives", "all"] == found["taught", "all"]


@pytest.mark.parametrize("name", NAMES)
def test_points_can_weigh_less_than_masks(name: str) -> None:
    target = pointed([[[30.0, 30.0], [12.0, 12.0]]], [[1, 0]], [[10.0, 10.0, 50.0, 60.0]])
    found = []
    for weight in (1.0, 0.25):
        torch.manual_seed(0)
        model = tiny(name, point_weight=weight).train()
        found.append(model(torch.rand(1, 3, 96, 96), [target])[0]["loss_mask"])
    torch.testing.assert_close(found[1], found[0] / 4)


@pytest.mark.parametrize("name", NAMES)
def test_weight_zero_and_points_off_the_box_teach_nothing(name: str) -> None:
    model = tiny(name, train_on_predicted_boxes=False).train()
    box = [10.0, 10.0, 50.0, 60.0]
    far = pointed([[[90.0, 90.0]]], [[1]], [box])
    assert model(torch.rand(1, 3, 96, 96), [far])[0]["loss_mask"] == 0
    trusted = pointed([[[30.0, 30.0]]], [[1]], [box])
    instances = trusted.instances.replace(weights=torch.zeros(1))
    assert model(torch.rand(1, 3, 96, 96), [Target(instances=instances, ignore=trusted.ignore)])[0]["loss_mask"] == 0
    assert model(torch.rand(1, 3, 96, 96), [trusted])[0]["loss_mask"] > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("agnostic", [False, True])
def test_predict_masks_are_those_of_the_forward_pass(name: str, agnostic: bool) -> None:
    model = tiny(name, class_agnostic=agnostic).train()
    images = torch.rand(2, 3, 96, 96)
    boxes = [[10.0, 10.0, 50.0, 60.0], [20.0, 30.0, 70.0, 70.0]]
    _, predictions = model(images, [target_of(boxes, Supervision.BOX), target_of(boxes[:1], Supervision.BOX)])
    shuffled = predictions[torch.randperm(len(predictions))]
    again = model.predict_masks(images, shuffled.proposals())
    torch.testing.assert_close(again.logits, shuffled.logits, atol=1e-5, rtol=1e-4)
    assert again.logits.shape[1] == (1 if agnostic else CLASSES)


@pytest.mark.parametrize("name", [*NAMES, "mask_rcnn"])
def test_fine_masks_are_those_of_predict(name: str) -> None:
    model, images = tiny(name).eval(), torch.rand(1, 3, 96, 96)
    found = model.predict(images)[0]
    zeros = torch.zeros_like(found.categories)
    proposals = Proposals(image_index=zeros, boxes=found.boxes, object_index=zeros, categories=found.categories)
    with torch.no_grad():
        fine = model.predict_masks(images, proposals, fine=True)
    assert fine.logits.shape == (len(found), 1, *found.masks.values.shape[1:])
    # Where two cells are equally uncertain, which of them is computed anew is a matter of rounding.
    different = (fine.of_category().sigmoid() - found.masks.values).abs() > 1e-4
    assert different.float().mean() < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_predict_masks_for_no_box_and_when_nothing_is_found(name: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    proposals = Proposals(image_index=none, boxes=torch.zeros(0, 4), object_index=none, categories=none)
    model = tiny(name, score_floor=1.0).eval()
    assert model.predict_masks(torch.rand(1, 3, 64, 64), proposals).logits.shape == (0, CLASSES, 14, 14)
    assert model.predict_masks(torch.rand(1, 3, 64, 64), proposals, fine=True).logits.shape == (0, 1, 56, 56)
    assert model.predict(torch.rand(1, 3, 64, 64))[0].masks.values.shape == (0, 56, 56)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_and_channels_last(name: str) -> None:
    model = tiny(name).to(memory_format=torch.channels_last).train()
    images = torch.rand(2, 3, 96, 96).contiguous(memory_format=torch.channels_last)
    targets = [target_of([[10, 10, 50, 60]]), pointed([[[30.0, 30.0]]], [[1]], [[20.0, 30.0, 70.0, 70.0]])]
    with torch.autocast("cpu", torch.bfloat16):
        losses, predictions = model(images, targets)
        found = model.eval().predict(images)
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    assert predictions.logits.dtype == found[0].masks.values.dtype == torch.float32


@pytest.mark.parametrize("encoding", ["fourier", "coordinates", "none"])
def test_encodings(encoding: str) -> None:
    model = tiny("implicit_pointrend", encoding=encoding).train()
    losses, _ = model(torch.rand(1, 3, 64, 64), [target_of([[8, 10, 40, 50]])])
    assert torch.isfinite(losses["loss_mask"])


def test_published_point_networks_start_at_almost_nothing_and_tiny_ones_as_one_network() -> None:
    with torch.device("meta"):
        published = ImplicitPointRendConfig(backbone="resnet50").preset()
    assert (published.shared_start, published.parameter_scale, published.parameter_std) == (False, 1.0, 0.001)
    small = ImplicitPointRendConfig(backbone="tiny").preset()
    assert (small.shared_start, small.parameter_scale, small.parameter_std) == (True, 0.03, 0.003)
    finest, boxes = torch.rand(1, 64, 32, 32), torch.tensor([[4.0, 4.0, 60.0, 70.0], [50.0, 40.0, 90.0, 120.0]])
    zeros = torch.zeros(2, dtype=torch.int64)
    heads = tiny("implicit_pointrend").roi_heads
    one, other = heads.knowledge(finest, boxes, zeros).detach()
    assert not torch.equal(one, other)
    own, shared = (one - other).std(), one.std()
    assert own < 0.2 * shared
    first, second = heads.network.shapes[:2]
    for (inputs, outputs), start in ((first, 0), (second, math.prod(first))):
        weights = one[start : start + inputs * outputs]
        assert weights.std() == pytest.approx(math.sqrt(2 / inputs), rel=0.1)  # He's
    almost_nothing = tiny("implicit_pointrend", shared_start=False).roi_heads.knowledge(finest, boxes, zeros)
    assert almost_nothing.std() < 0.3 * shared


def test_a_scale_changes_the_pace_alone() -> None:
    """The same parameters at the start; a step of the last layer changes them by so much less."""
    finest, boxes, zero = torch.rand(1, 64, 32, 32), torch.tensor([[4.0, 4.0, 60.0, 70.0]]), torch.zeros(1).long()
    starts, moves = [], []
    for scale in (1.0, 0.1):
        heads = tiny("implicit_pointrend", parameter_scale=scale).roi_heads
        starts.append(heads.knowledge(finest, boxes, zero).detach())
        with torch.no_grad():
            heads.parameter_head.last.weight += 0.01
        moves.append(heads.knowledge(finest, boxes, zero).detach() - starts[-1])
    torch.testing.assert_close(starts[0], starts[1])
    torch.testing.assert_close(0.1 * moves[0], moves[1], rtol=1e-3, atol=1e-5)


def test_parameter_penalty_is_the_mean_square() -> None:
    model = tiny("implicit_pointrend").train()
    known = torch.randn(4, 10)
    losses = model.roi_heads.further_losses(known, None, [], (64, 64))
    torch.testing.assert_close(losses["loss_parameters"], 1e-5 * known.square().mean())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["mask", "points"])
def test_a_few_steps_learn_a_shape(name: str, kind: str) -> None:
    """The object is the left half of its box; the learned mask shows it, from a mask and from a hundred points."""
    torch.manual_seed(0)
    model = tiny(name, train_on_predicted_boxes=False).train()
    images = torch.rand(1, 3, 64, 64) * 0.2
    images[0, :, 10:50, 8:24] += 0.7
    box = [8.0, 10.0, 40.0, 50.0]
    target = _half_mask(box) if kind == "mask" else _half_points(box)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(60):
        losses, _ = model(images, [target])
        optimiser.zero_grad()
        total(losses).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
    zero = torch.zeros(1, dtype=torch.int64)
    proposals = Proposals(image_index=zero, boxes=torch.tensor([box]), object_index=zero, categories=zero)
    with torch.no_grad():
        mask = model.eval().predict_masks(images, proposals, fine=True).of_category()[0] > 0
    wanted = torch.zeros_like(mask)
    wanted[:, : mask.shape[1] // 2] = True
    assert (mask == wanted).float().mean() > 0.9


def _half_mask(box: list[float]) -> Target:
    target = target_of([box])
    crops = target.instances.masks
    half = torch.zeros(40, 32, dtype=torch.uint8)
    half[:, :16] = 1
    masks = type(crops)(half.reshape(-1), crops.regions)
    return Target(instances=target.instances.replace(masks=masks), ignore=target.ignore)


def _half_points(box: list[float]) -> Target:
    points: Tensor = torch.rand(100, 2) * torch.tensor([32.0, 40.0])
    labels = (points[:, 0] < 16).long()
    return pointed([(points + torch.tensor([8.0, 10.0])).tolist()], [labels.tolist()], [box])


def test_weights_of_a_mask_rcnn_load_without_its_mask_branch(tmp_path: Path) -> None:
    path = f"{tmp_path}/detector.pth"
    detector = MaskRCNN(MaskRCNNConfig(backbone="tiny"), CLASSES)
    torch.save(detector.state_dict(), path)
    model = PointRend(PointRendConfig(backbone="tiny", weights=path), CLASSES)
    assert torch.equal(model.roi_heads.box_head.fc6.weight, detector.roi_heads.box_head.fc6.weight)
    assert "the mask branch" in model.weights_note
    torch.save(model.state_dict(), path)
    again = PointRend(PointRendConfig(backbone="tiny", weights=path), CLASSES)
    assert torch.equal(again.roi_heads.point_head.last.weight, model.roi_heads.point_head.last.weight)
    assert again.weights_note == f"loaded {path}"
    fewer = PointRend(PointRendConfig(backbone="tiny", weights=path), 3)
    assert "coarse_head.last" in fewer.weights_note


@pytest.mark.parametrize("name", NAMES)
def test_maskbooster_wraps_it_and_a_killed_run_resumes_to_the_same_weights(
    name: str, sparse: Path, tmp_path: Path
) -> None:
    def kill(step: int, total: int, note: str) -> None:
        if step == 3:
            raise KeyboardInterrupt

    boosted = {
        "model": {"name": name, "backbone": "tiny"},
        "method": {"name": "maskbooster", "start_fraction": 0, "ramp_fraction": 0},
    }
    settings = merge(merge(TINY, boosted), {"train": {"steps": 4}})
    train(sparse, tmp_path / "whole", settings=settings)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "journal.jsonl").read_text().splitlines()]
    assert any(row["losses"]["loss_pseudo_binary"] > 0 for row in rows if row["kind"] == "train")
    with pytest.raises(KeyboardInterrupt):
        train(sparse, tmp_path / "killed", settings=settings, on_progress=kill)
    resume(tmp_path / "killed")
    for part in ("student", "teacher"):
        path = Path("checkpoints") / "last" / f"{part}.safetensors"
        one, two = (load_file(tmp_path / run / path) for run in ("whole", "killed"))
        assert all(torch.equal(one[key], two[key]) for key in one)
