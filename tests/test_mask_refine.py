"""MaskRefineNet: channels, heat-maps and dice as published where that is sound; faults that are not repeated."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_mask_rcnn import CLASSES, dense_masks, empty_target, target_of, total
from timm.layers import Conv2dSame
from torch import Tensor

from leanmask.masks import Crops, Grids
from leanmask.models.mask_refine import (
    MaskRefineConfig,
    MaskRefineNet,
    crop_regions,
    rough_objects,
    soft_dice_losses,
    spots,
)
from leanmask.models.mask_refine_network import ClasswiseConv, Encoder, UShape, UShapeSize
from leanmask.models.solov2 import SOLOv2, SOLOv2Config
from leanmask.records import Proposals, Supervision, Target

CANVAS = (64, 96)
BOXES = [[5, 5, 40, 40], [50, 20, 90, 60]]


def tiny(**given: object) -> MaskRefineNet:
    torch.manual_seed(0)
    return MaskRefineNet(MaskRefineConfig(**{"backbone": "tiny", "size_px": 32, **given}), CLASSES)


def images(count: int = 1) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(count, 3, *CANVAS)


def rough_target(boxes: list[list[float]], points: list[list[float]] | None = None, **given: object) -> Target:
    """Ellipses as truth, of which the upper half is the rough mask."""
    target = target_of(boxes, **given)  # type: ignore[arg-type]
    masks = target.instances.masks
    regions = masks.regions.clone()
    regions[:, 3] //= 2
    crops = [crop[: len(crop) // 2] for crop in masks]
    fields: dict[str, object] = {"rough": Crops.join(crops, regions)}
    if points is not None:
        fields |= {"points": torch.tensor(points)[:, None], "point_labels": torch.ones(len(boxes), 1).long()}
    return dataclasses.replace(target, instances=target.instances.replace(**fields))


def objects_of(target: Target) -> object:
    return rough_objects([target], CANVAS, [torch.ones(len(target.instances), dtype=torch.bool)])


# The input


@pytest.mark.parametrize(("classes", "channels"), [(80, 85), (8, 13)])
def test_published_numbers_of_channels(classes: int, channels: int) -> None:
    assert MaskRefineNet(MaskRefineConfig(backbone="tiny"), classes).channels == channels


def test_published_numbers_of_parameters() -> None:
    def block(inputs: int, outputs: int, side: int = 1) -> int:
        return inputs * outputs * side**2 + 2 * outputs  # a convolution, and batch norm's gain and shift

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        network = UShape([64, 256, 512, 1024, 2048], UShapeSize(), torch.nn.BatchNorm2d)
    aspp = 2 * block(2048, 512) + 3 * block(2048, 512, 3) + block(5 * 512, 512)  # whole map and cell, dilations, joined
    assert count(network.aspp) == aspp == 31_725_568
    assert [branch[0].dilation for branch in network.aspp.branches[1:]] == [(3, 3), (6, 6), (9, 9)]
    steps = [(1024 + 512, 512, 256), (512 + 256, 256, 128), (256 + 128, 128, 64), (64 + 64, 64, 64)]
    expected = [block(inputs, middle) + block(middle, outputs, 3) for inputs, middle, outputs in steps]
    assert [count(step) for step in network.steps] == expected
    assert count(network.head) == 64 * 2 + 2
    with torch.device("meta"):
        model = MaskRefineNet(MaskRefineConfig(backbone="resnet101", weights=None), 80)
    assert model.backbone.first_convolution()[1].weight.shape == (64, 85, 7, 7)
    assert count(model.decoder) == count(network)


def test_the_spot_is_the_published_kernel() -> None:
    (spot,) = spots(torch.tensor([[100.5, 80.5]]), torch.tensor([[0.0, 0.0, 256.0, 256.0]]), 256)
    axis = torch.arange(39) - 19
    kernel = torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 6.0**2))
    torch.testing.assert_close(spot[80 - 19 : 80 + 20, 100 - 19 : 100 + 20], kernel)
    assert spot[80, 100] == 1
    assert spot.sum().item() == pytest.approx(kernel.sum().item(), rel=1e-6)
    assert not spots(torch.tensor([[300.0, 80.0]]), torch.tensor([[0.0, 0.0, 256.0, 256.0]]), 256).any()


def test_a_class_has_one_channel_in_training_and_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    model, target = tiny(), rough_target(BOXES)
    seen: list[tuple[Tensor, Tensor]] = []
    network = model.network
    monkeypatch.setattr(model, "network", lambda inputs: seen.append(inputs) or network(inputs))
    model(images(), [target])
    model.predict_for(images(), [target])
    for inputs in seen:
        pixels, channels = inputs
        assert pixels.shape == (2, 5, 32, 32)
        assert channels.tolist() == [3 + 1, 3 + 2]  # class c at c + 1; the first class is not left out
        assert (pixels[:, 3].flatten(1).amax(1) == 1).all()
        assert set(pixels[:, -1].unique().tolist()) <= {0.0, 1.0}
        assert (pixels[:, -1].flatten(1).sum(1) > 0).all()
    assert len(seen) == 2


@pytest.mark.parametrize(
    "first",
    [
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        torch.nn.Conv2d(3, 8, 3, padding=1),
        Conv2dSame(3, 8, 3, stride=2, bias=False),  # pads below and on the right alone where a side is even
    ],
)
@pytest.mark.parametrize("side", [16, 15])
def test_the_stem_is_the_convolution_of_all_channels(first: torch.nn.Conv2d, side: int) -> None:
    torch.manual_seed(0)
    stem = ClasswiseConv(first, CLASSES + 2)
    assert stem.weight.shape[1] == 3 + CLASSES + 1 + 1
    assert torch.equal(stem.weight[:, :3], first.weight)
    pixels, channels = torch.rand(3, 5, side, side), torch.tensor([4, 8, 6])
    dense = torch.zeros(3, stem.weight.shape[1], side, side)
    dense[:, :3], dense[:, -1] = pixels[:, :3], pixels[:, 4]
    dense[torch.arange(3), channels] = pixels[:, 3]
    plain = type(first)(dense.shape[1], 8, 3, first.stride, first.padding)
    plain.weight, plain.bias = stem.weight, stem.bias
    torch.testing.assert_close(stem((pixels, channels)), plain(dense), atol=1e-5, rtol=1e-4)


def test_the_point_is_given_or_the_rough_masks_centre() -> None:
    given = objects_of(rough_target(BOXES, points=[[20.0, 20.0], [60.0, 30.0]]))
    assert given.points.tolist() == [[20.0, 20.0], [60.0, 30.0]]
    rough = rough_target(BOXES)
    found = objects_of(rough)
    dense = dense_masks(
        dataclasses.replace(rough, instances=rough.instances.replace(masks=rough.instances.rough)), CANVAS
    )
    for point, mask in zip(found.points, dense, strict=True):
        rows, columns = mask.nonzero().float().T + 0.5
        torch.testing.assert_close(point, torch.stack([columns.mean(), rows.mean()]))


def test_crops_hold_mask_and_point() -> None:
    objects = objects_of(rough_target([[40, 20, 60, 40]], points=[[10.0, 25.0]]))  # rough: 20 x 10 px from (40, 20)
    (region,) = crop_regions(objects, torch.tensor([2.0]))
    assert region.tolist() == [0.0, 15.0, 70.0, 35.0]  # left: 10 - 20, cut at the edge
    objects = objects_of(rough_target([[40, 20, 60, 40]], points=[[50.0, 25.0]]))
    assert crop_regions(objects, torch.tensor([1.0]))[0].tolist() == [40.0, 20.0, 60.0, 30.0]


def test_the_crop_is_the_stretched_part_of_the_image() -> None:
    model = tiny()
    picture = torch.zeros(1, 3, *CANVAS)
    picture[:, :, 20:30, 40:60] = 1.0
    target = rough_target([[40, 20, 60, 40]])
    inputs = model.inputs(picture, objects_of(target), torch.tensor([[40.0, 20.0, 60.0, 40.0]]))[0][0]
    colour = inputs[:3] * model.std + model.mean
    torch.testing.assert_close(colour[:, 2:13, 2:-2], torch.ones(3, 11, 28))
    torch.testing.assert_close(colour[:, 19:], torch.zeros(3, 13, 32))
    assert inputs[-1, 2:13, 12:20].min() == 1  # the rough mask is the upper half of the ellipse
    assert inputs[-1, 17:].max() == 0


# Learning


def test_dice_is_per_object_over_both_classes_not_per_column() -> None:
    torch.manual_seed(0)
    logits, masks = torch.randn(3, 2, 6, 5), (torch.rand(3, 6, 5) > 0.5).float()
    for row, loss in enumerate(soft_dice_losses(logits, masks)):
        p = logits[row].softmax(0)
        parts = [(p[0], 1 - masks[row]), (p[1], masks[row])]
        dice = [2 * (said * true).sum() / (said.sum() + true.sum() + 1e-7) for said, true in parts]
        assert loss.item() == pytest.approx(1 - sum(dice).item() / 2, rel=1e-5)
    sharp = torch.stack([1 - masks, masks], dim=1) * 50
    assert soft_dice_losses(sharp, masks).max() < 1e-5
    # Columns without the object must not count as wrong: that was the per-column fault.
    narrow = torch.zeros(1, 6, 6)
    narrow[:, :, 2] = 1
    assert soft_dice_losses(torch.stack([1 - narrow, narrow], dim=1) * 50, narrow).item() < 1e-5


def test_one_objects_loss_does_not_depend_on_the_others() -> None:
    model = tiny(crop_scales=(1.5, 1.5)).eval()
    both, (one, other) = rough_target(BOXES), (rough_target(BOXES[:1]), rough_target(BOXES[1:]))
    other = dataclasses.replace(other, instances=other.instances.replace(categories=torch.tensor([1])))
    losses = [model(images(), [target])[0]["loss_dice"].item() for target in (both, one, other)]
    assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-4)


@pytest.mark.parametrize(
    "target",
    [
        empty_target(),
        target_of(BOXES),
        rough_target(BOXES, supervision=Supervision.BOX),
        rough_target(BOXES, weights=[0.0, 0.0]),
    ],
    ids=["empty", "no rough masks", "no true masks", "weight 0"],
)
def test_nothing_to_learn_is_no_loss_and_no_gradient(target: Target) -> None:
    model = tiny()
    losses, said = model(images(), [target])
    assert losses["loss_dice"].item() == 0
    losses["loss_dice"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert len(said) == 0


def test_it_learns_to_complete_masks() -> None:
    model = tiny()
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    scene, target = torch.zeros(1, 3, *CANVAS), rough_target(BOXES)
    scene[0] = dense_masks(target, CANVAS).sum(0)
    losses = []
    for _ in range(25):
        loss = total(model(scene, [target])[0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_pretrained_weights_of_the_colours_stay_when_channels_are_added(tmp_path: Path) -> None:
    torch.manual_seed(3)
    plain = Encoder(MaskRefineConfig(backbone="resnet18", weights=None).backbone_spec())
    save_file(
        {name.removeprefix("body."): value for name, value in plain.state_dict().items()}, tmp_path / "r.safetensors"
    )
    model = MaskRefineNet(
        MaskRefineConfig(backbone="resnet18", weights=str(tmp_path / "r.safetensors")), CLASSES
    ).eval()
    wide = model.backbone.first_convolution()[1].weight
    assert wide.shape == (64, 3 + CLASSES + 2, 7, 7)
    assert torch.equal(wide[:, :3], plain.body["conv1"].weight)
    assert not wide[:, 3:].any()
    inputs = (torch.rand(1, 5, 64, 64), torch.tensor([4]))
    with torch.no_grad():
        for ours, theirs in zip(model.backbone(inputs), plain.eval()(inputs[0][:, :3]), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_teachers_backbone_starts_the_encoder(tmp_path: Path) -> None:
    teacher = SOLOv2(SOLOv2Config(backbone="tiny", tower_channels=16, tower_convs=1), CLASSES)
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    model = tiny(weights=str(tmp_path / "teacher.safetensors"))
    assert torch.equal(model.backbone.body["conv1"][0].weight[:, :3], teacher.backbone.body["conv1"][0].weight)
    assert torch.equal(model.backbone.body["layer4"][0].conv1.weight, teacher.backbone.body["layer4"][0].conv1.weight)


# Use


def test_predictions_look_at_rough_masks_and_never_at_true_ones() -> None:
    model, target = tiny().eval(), rough_target(BOXES)
    (found,) = model.predict_for(images(), [target])
    hidden = dataclasses.replace(target, instances=target.instances.replace(masks=Crops.none(2)))
    (blind,) = model.predict_for(images(), [hidden])
    assert isinstance(found.masks, Grids)
    assert isinstance(blind.masks, Grids)
    assert torch.equal(found.masks.values, blind.masks.values)
    assert [len(each) for each in model.predict_for(images(2), [empty_target(), target_of(BOXES)])] == [0, 0]
    assert [len(each) for each in model.predict(images(2))] == [0, 0]


def test_a_refinement_that_finds_nothing_keeps_the_rough_mask() -> None:
    model, target = tiny().eval(), rough_target(BOXES)
    with torch.no_grad():
        model.decoder.head.weight.zero_()
        model.decoder.head.bias.copy_(torch.tensor([5.0, -5.0]))
    (found,) = model.predict_for(images(), [target])
    rough = model.inputs(images(), objects_of(target), found.masks.boxes)[0][:, -1]
    assert torch.equal(found.masks.values, rough)


def test_objects_come_back_in_order_however_many_at_once() -> None:
    target = rough_target([*BOXES, [10, 30, 30, 60]])
    target = dataclasses.replace(target, instances=target.instances.replace(ids=torch.tensor([7, 3, 5])))
    apart, together = tiny(objects_at_once=1).eval(), tiny().eval()
    first, second = (model.predict_for(images(2), [target, target]) for model in (apart, together))
    assert first[1].ids.tolist() == [7, 3, 5]
    torch.testing.assert_close(first[1].masks.values, second[1].masks.values, atol=1e-5, rtol=1e-4)
    assert (second[0].boxes[:, 2:] >= second[0].boxes[:, :2]).all()


def test_boxes_are_rough_masks_too() -> None:
    model = tiny().eval()
    proposals = Proposals(
        image_index=torch.tensor([1, 0]),
        boxes=torch.tensor([[5.0, 5.0, 40.0, 40.0], [90.0, 60.0, 120.0, 80.0]]),
        object_index=torch.tensor([0, 0]),
        categories=torch.tensor([0, 4]),
    )
    with torch.no_grad():
        said = model.predict_masks(images(2), proposals)
        assert len(model.predict_masks(images(2), proposals[torch.tensor([], dtype=torch.int64)])) == 0
    assert said.logits.shape == (2, 1, 32, 32)
    assert said.boxes.isfinite().all()
