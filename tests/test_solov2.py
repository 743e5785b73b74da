"""SOLOv2: published sizes, cells and losses against naive oracles, partial labels, points, NMS, and the three verbs."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_mask_rcnn import CLASSES, dense_masks, empty_target, point_target, target_of, total
from test_points import pointed
from torch import Tensor

from leanmask.masks import Crops
from leanmask.models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from leanmask.models.matching import BACKGROUND, IGNORED
from leanmask.models.matrix_nms import intersections, matrix_nms, point_nms
from leanmask.models.solov2 import LAYOUTS, Said, SOLOv2, SOLOv2Config, mask_regions
from leanmask.models.solov2_cells import CellLayout, assign_cells, mass_centres, object_centres
from leanmask.models.solov2_losses import Positives, dice_losses, points_loss, shrunk
from leanmask.models.solov2_network import CellBranch, HeadSize, MaskBranch, with_coordinates
from leanmask.records import Instances, Proposals, Supervision, Target

LOSSES = {"loss_class", "loss_mask", "loss_points"}
CANVAS = (64, 96)
SMALL = {"tower_channels": 16, "tower_convs": 1, "kernel_channels": 16, "mask_channels": 16, "fpn_channels": 32}
LAYOUT = CellLayout((8, 6, 4), ((1, 20), (16, 48), (40, 2048)))


def tiny(**given: object) -> SOLOv2:
    torch.manual_seed(0)
    return SOLOv2(SOLOv2Config(**{"backbone": "tiny", **SMALL, **given}), CLASSES)


def images(count: int = 1) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(count, 3, *CANVAS)


def none_chosen(target: Target) -> Tensor:
    return torch.zeros(len(target.instances), dtype=torch.int64)


def assigned(target: Target, layout: CellLayout = LAYOUT) -> Tensor:
    return assign_cells(target, layout, CANVAS, none_chosen(target)).owner


# Sizes


def test_published_numbers_of_cells() -> None:
    assert LAYOUTS["stock"].count == 3_872
    assert LAYOUTS["pointwssis"].count == 12_240
    assert SOLOv2Config(backbone="resnet50").cells().count == 3_872
    assert SOLOv2Config(layout="pointwssis").cells().ranges[0] == (1, 72)
    edges = [edge for pair in LAYOUTS["pointwssis"].ranges for edge in pair]
    assert edges[1:-1:2] == edges[2::2]  # PointWSSIS's ranges meet and do not overlap


def test_published_numbers_of_parameters() -> None:
    def conv(inputs: int, outputs: int, side: int, bias: bool = False) -> int:
        return inputs * outputs * side**2 + (outputs if bias else 2 * outputs)  # else group norm's gain and shift

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    towers = conv(256, 512, 3) + conv(258, 512, 3) + 6 * conv(512, 512, 3)
    cells = towers + conv(512, 80, 3, bias=True) + conv(512, 256, 3, bias=True)
    assert count(CellBranch(HeadSize(), LAYOUTS["stock"].grids, 80)) == cells
    levels = 3 * conv(256, 128, 3) + conv(258, 128, 3) + 3 * conv(128, 128, 3)
    assert count(MaskBranch(HeadSize())) == levels + conv(128, 256, 1)


def test_coordinates_are_x_then_y() -> None:
    x, y = with_coordinates(torch.zeros(1, 4, 3, 5))[0, -2:]
    torch.testing.assert_close(x[0], torch.linspace(-1, 1, 5))
    torch.testing.assert_close(y[:, 0], torch.linspace(-1, 1, 3))


def test_shapes_of_the_published_network() -> None:
    size = HeadSize(fpn_channels=8, tower_channels=32, tower_convs=1, kernel_channels=32, mask_channels=32)
    maps = [torch.rand(2, 8, 32 // 2**i, 48 // 2**i) for i in range(5)]
    classes, kernels = CellBranch(size, (5, 4, 3, 2, 1), 7)(maps)
    assert classes.shape == (2, 55, 7)
    assert kernels.shape == (2, 55, 32)
    assert MaskBranch(size)(maps).shape == (2, 32, 32, 48)
    assert MaskBranch(dataclasses.replace(size, mask_upsample=2))(maps).shape == (2, 32, 64, 96)
    assert classes.sigmoid().mean().item() == pytest.approx(0.01, rel=0.3)


# Cells


def naive_owner(target: Target, layout: CellLayout) -> tuple[Tensor, set[tuple[int, int]]]:
    """Cell by cell, object by object: the published assignment of complete labels."""
    owner, pairs = torch.full((layout.count,), BACKGROUND), set()
    masks = dense_masks(target, CANVAS)
    for number, (box, mask) in enumerate(zip(target.instances.boxes.tolist(), masks, strict=True)):
        w, h = box[2] - box[0], box[3] - box[1]
        rows, columns = mask.nonzero().float().T + 0.5
        cx, cy = float(columns.mean()), float(rows.mean())
        for (low, high), grid, start in zip(layout.ranges, layout.grids, layout.starts, strict=True):
            if not low <= math.sqrt(w * h) <= high:
                continue
            for row, column in itertools.product(range(grid), range(grid)):
                top, bottom = row / grid * CANVAS[0], (row + 1) / grid * CANVAS[0]
                left, right = column / grid * CANVAS[1], (column + 1) / grid * CANVAS[1]
                across = left <= cx + 0.1 * w and right > cx - 0.1 * w
                down = top <= cy + 0.1 * h and bottom > cy - 0.1 * h
                near = abs(row - int(cy / CANVAS[0] * grid)) <= 1 and abs(column - int(cx / CANVAS[1] * grid)) <= 1
                if across and down and near:
                    owner[start + row * grid + column] = number
                    pairs.add((start + row * grid + column, number))
    return owner, pairs


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 5))
def test_cells_are_the_published_ones(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = torch.randint(4, 50, (count, 2), generator=generator)
    corner = (torch.rand(count, 2, generator=generator) * (torch.tensor([CANVAS[1], CANVAS[0]]) - size)).long()
    target = target_of(torch.cat([corner, corner + size], dim=1).tolist())
    found = assign_cells(target, LAYOUT, CANVAS, none_chosen(target))
    owner, pairs = naive_owner(target, LAYOUT)
    assert torch.equal(found.owner, owner)
    assert set(zip(found.cells.tolist(), found.objects.tolist(), strict=True)) == pairs


def test_a_shared_cell_learns_the_later_class_and_both_masks() -> None:
    target = target_of([[20, 20, 40, 40], [20, 20, 40, 40]])
    found = assign_cells(target, LAYOUT, CANVAS, none_chosen(target))
    assert set(found.owner[found.owner >= 0].tolist()) == {1}
    assert found.objects.bincount().tolist() == [len(found.cells) // 2] * 2


def test_mass_centres() -> None:
    target = target_of([[4, 6, 30, 20], [50, 10, 61, 47]])
    for centre, mask in zip(mass_centres(target.instances.masks), dense_masks(target, CANVAS), strict=True):
        rows, columns = mask.nonzero().float().T + 0.5
        torch.testing.assert_close(centre, torch.stack([columns.mean(), rows.mean()]))
    assert torch.isnan(mass_centres(Crops.none(2))).all()


def test_the_centre_is_that_of_the_mask_where_there_is_one() -> None:
    target = target_of([[10, 10, 30, 30]])
    corner = Crops(torch.ones(16, dtype=torch.uint8), torch.tensor([[10, 10, 4, 4]]))
    moved = dataclasses.replace(target, instances=target.instances.replace(masks=corner))
    assert object_centres(moved).tolist() == [[12.0, 12.0]]
    boxed = target_of([[10, 10, 30, 30]], supervision=Supervision.BOX)
    assert object_centres(boxed).tolist() == [[20.0, 20.0]]


# Partial labels


def test_what_is_not_known_is_neither_object_nor_background() -> None:
    boxes = [[10, 10, 34, 34], [60, 20, 90, 60]]
    everything = assigned(target_of(boxes))
    assert (everything != IGNORED).all()
    doubted = assigned(target_of(boxes, weights=[1.0, 0.0]))
    assert not (doubted == 1).any()
    inside = (LAYOUT.centres(CANVAS, torch.zeros(1)) >= torch.tensor([60.0, 20.0])).all(1)
    inside &= (LAYOUT.centres(CANVAS, torch.zeros(1)) < torch.tensor([90.0, 60.0])).all(1)
    assert (doubted[inside] == IGNORED).all()
    assert torch.equal(doubted[~inside & (everything != 1)], everything[~inside & (everything != 1)])
    crowd = dataclasses.replace(target_of(boxes[:1]), ignore=torch.tensor([boxes[1]], dtype=torch.float32))
    assert (assigned(crowd)[inside] == IGNORED).all()
    partly = assigned(target_of(boxes[:1], exhaustive=False))
    centres = LAYOUT.centres(CANVAS, torch.zeros(1))
    within = ((centres >= 10) & (centres < 34)).all(1)
    assert (partly[~within & (partly < 0)] == IGNORED).all()
    assert (partly[within] != IGNORED).all()


def test_around_a_point_nothing_is_background() -> None:
    target = point_target([[48.0, 32.0]])
    chosen = LAYOUT.cells_at(torch.tensor([[48.0, 32.0]]), CANVAS)
    found = assign_cells(target, LAYOUT, CANVAS, chosen[:, 1])
    assert found.owner[chosen[0, 1]] == 0
    assert (found.owner[chosen[0, [0, 2]]] == IGNORED).all()
    assert (found.owner == IGNORED).sum() == 3 * 9 - 1
    assert (found.owner == BACKGROUND).any()  # the image is exhaustive


KINDS = {
    "mask": target_of([[5, 5, 40, 40], [30, 20, 90, 60]]),
    "box": target_of([[5, 5, 40, 40]], supervision=Supervision.BOX),
    "points": pointed([[[20.0, 20.0], [39.0, 6.0]]], [[1, 0]], [[5.0, 5.0, 40.0, 40.0]]),
    "point": point_target([[20.0, 20.0], [70.0, 40.0]]),
    "none": empty_target(),
    "unlabelled": empty_target(exhaustive=False),
    "weight 0": target_of([[5, 5, 40, 40]], weights=[0.0]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_label_alone_is_learned_from(kind: str) -> None:
    model, target = tiny(), KINDS[kind]
    losses, said = model(images(), [target])
    assert losses.keys() == LOSSES
    total(losses).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    learned = any(bool(p.grad.abs().sum() > 0) for p in model.mask_branch.parameters())
    assert learned == (kind in ("mask", "points", "point"))
    class_learned = any(bool(p.grad.abs().sum() > 0) for p in model.cells.classes.parameters())
    assert class_learned == (kind != "unlabelled")
    assert set(said.object_index.tolist()) == {"box": {0}, "points": {0}, "point": {0, 1}}.get(kind, set())
    assert said.boxes.isfinite().all()
    assert said.logits.shape[1:] == (1, 14, 14)


def test_a_weight_scales_all_losses_of_its_object() -> None:
    model = tiny().eval()
    found = []
    for weight in (1.0, 0.5):
        losses, _ = model(images(), [target_of([[5, 5, 40, 40]], weights=[weight], exhaustive=False)])
        found.append(losses["loss_mask"].item())
    assert found[1] == pytest.approx(found[0] / 2, rel=1e-5)


def test_images_of_one_batch_do_not_mix() -> None:
    model = tiny().eval()
    targets = [KINDS["mask"], empty_target(), KINDS["box"]]
    both = [model(images(3)[order], [targets[i] for i in order])[0] for order in ([0, 1, 2], [2, 0, 1])]
    for name in LOSSES:
        assert both[0][name].item() == pytest.approx(both[1][name].item(), rel=1e-4)


# Losses


def test_dice_of_equal_masks_is_almost_nothing() -> None:
    masks = torch.zeros(1, 16, 16)
    masks[0, 2:9, 3:12] = 1
    loss = dice_losses((masks - 0.5) * 200, masks, torch.ones_like(masks))
    assert loss.item() == pytest.approx(1e-3 / 63, rel=0.05)
    missed = dice_losses((0.5 - masks) * 200, masks, torch.ones_like(masks))
    assert missed.item() == pytest.approx(1, abs=1e-4)


def test_dice_is_over_the_whole_mask_not_per_column() -> None:
    torch.manual_seed(0)
    said, wanted = torch.randn(2, 6, 5), (torch.rand(2, 6, 5) > 0.5).float()
    for row, loss in enumerate(dice_losses(said, wanted, torch.ones_like(wanted))):
        p, t = said[row].sigmoid(), wanted[row]
        expected = 1 - 2 * (p * t).sum() / ((p**2).sum() + 1e-3 + (t**2).sum() + 1e-3)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(dice_losses(said, wanted), dice_losses(said, wanted, torch.ones_like(wanted)))


def test_pixels_of_weight_0_say_nothing() -> None:
    said, wanted, weights = torch.randn(1, 4, 4), torch.ones(1, 4, 4), torch.ones(1, 4, 4)
    weights[:, :, 2:] = 0
    first = dice_losses(said, wanted, weights)
    said[:, :, 2:] = 5
    assert torch.equal(dice_losses(said, wanted, weights), first)


def test_shrunk_masks_are_those_of_the_dense_ones() -> None:
    target = target_of([[3, 5, 40, 41], [30, 21, 89, 60], [0, 0, 7, 3]])
    expected = F.avg_pool2d(dense_masks(target, CANVAS)[:, None].float(), 4)[:, 0]
    like, index = torch.zeros(1, 16, 24), torch.tensor([2, 0, 1])
    assert torch.equal(shrunk(target.instances.masks, index, CANVAS, like), expected[index])
    assert not shrunk(Crops.none(1), torch.tensor([0]), CANVAS, like).any()


def test_points_are_read_off_the_mask() -> None:
    logits = torch.full((1, 16, 24), -10.0)
    logits[0, 4:8, 4:8] = 10

    def loss(points: list[list[float]], labels: list[int]) -> float:
        box = [[16.0, 16.0, 32.0, 32.0]]
        positives = Positives(torch.tensor([[0.0, 0, 96, 64]]), torch.tensor([0]), torch.tensor([0]), logits)
        return points_loss(positives, [pointed([points], [labels], box)]).item()

    assert loss([[24.0, 24.0], [18.0, 18.0]], [1, 1]) < 0.01
    assert loss([[24.0, 24.0], [18.0, 18.0]], [1, 0]) == pytest.approx(5, abs=0.2)
    assert loss([[24.0, 24.0], [80.0, 18.0]], [1, -1]) < 0.01


# Points and prompts


def asked_at(points: Tensor, categories: Tensor) -> Proposals:
    return Proposals(
        image_index=torch.zeros(len(points), dtype=torch.int64),
        boxes=torch.full((len(points), 4), torch.nan),
        object_index=torch.arange(len(points)),
        categories=categories,
        points=points,
    )


def said_by(model: SOLOv2, scores: list[float], seed: int = 0) -> tuple[Said, Proposals]:
    """A network that has the same class logit everywhere on a level, and blobs of different certainty per level."""
    layout = model.layout
    classes = torch.full((1, layout.count, CLASSES), -6.0)
    kernels = torch.zeros(1, layout.count, 5)
    features = torch.zeros(1, 5, 16, 24)
    for level, (grid, start) in enumerate(zip(layout.grids, layout.starts, strict=True)):
        kernels[0, start : start + grid * grid, level] = 1
        features[0, level] = -4
        features[0, level, 4:8, 4 : 8 + level] = scores[level]
        classes[0, start : start + grid * grid, 2] = 0.0
    return Said(classes, kernels, features, 4), asked_at(torch.tensor([[22.0, 22.0]]), torch.tensor([2]))


@pytest.mark.parametrize("best", range(5))
def test_a_point_takes_the_level_of_highest_maskness_times_class(best: int) -> None:
    model = tiny()
    said, proposals = said_by(model, [3.0 if level == best else 0.5 for level in range(5)])
    cell, masks = model.best_cells(said, proposals, CANVAS)
    assert cell.item() == model.layout.cells_at(proposals.points, CANVAS)[0, best]
    assert torch.equal(masks[0], said.features[0, best])
    said.classes[0, cell, 2] = -4  # now the class speaks against this level
    other, _ = model.best_cells(said, proposals, CANVAS)
    assert other.item() != cell.item()


def test_a_teacher_is_asked_at_the_persons_point_not_where_its_student_saw_the_object() -> None:
    """The student's mask lies on another object; its region is where the grid lies, and nothing else."""
    model = tiny()
    said, asked = said_by(model, [0.5, 0.5, 3.0, 0.5, 0.5])  # masks at 16 to 32 px, where the point is
    point = [22.0, 22.0]
    region = torch.tensor([[60.0, 30.0, 92.0, 60.0]])
    told = dataclasses.replace(asked, boxes=region, box_known=torch.tensor([False]))
    cell, _ = model.best_cells(said, told, CANVAS)
    assert cell.item() == model.layout.cells_at(torch.tensor([point]), CANVAS)[0, 2]  # no IoU with the region either
    # A person's box speaks for its extent, but an explicit point is where the object is.
    drawn = dataclasses.replace(asked, boxes=torch.tensor([[16.0, 16.0, 32.0, 96.0]]), box_known=torch.tensor([True]))
    near = model.layout.cells_at(torch.tensor([point]), CANVAS)[0]
    assert model.best_cells(said, drawn, CANVAS)[0].item() in near.tolist()


def test_of_objects_without_a_box_only_the_point_is_handed_to_the_teacher() -> None:
    model, target = tiny(), point_target([[20.0, 20.0], [70.0, 40.0]])
    _, said = model(images(), [target])
    asked = said.proposals()
    assert not asked.box_known.any()
    assert asked.boxes.isfinite().all()
    assert torch.isnan(asked.known_boxes).all()
    moved = dataclasses.replace(asked, boxes=asked.boxes.flip(0))
    for each in (asked, moved):
        cells, _ = model.best_cells(model.say(images()), each, CANVAS)
        near = model.layout.cells_at(target.instances.object_points[each.object_index], CANVAS)
        assert (near == cells[:, None]).any(1).all()
    taught = model.predict_masks(images(), asked)
    assert torch.equal(taught.boxes, asked.boxes)  # the grids of teacher and student lie on each other
    boxed = target_of([[5, 5, 40, 40]], supervision=Supervision.BOX)
    assert model(images(), [boxed])[1].proposals().box_known.all()


def test_classified_points_in_a_box_do_not_say_where_the_object_is() -> None:
    box = [[0.0, 0, 40, 40]]
    clicks = pointed([[[3.0, 4.0], [35.0, 6.0]]], [[1, 0]], box)
    assert torch.isnan(clicks.instances.named_points).all()
    named = clicks.instances.replace(supervision=torch.tensor([int(Supervision.BOX)]))
    assert named.named_points.tolist() == [[3.0, 4.0]]


def test_the_given_class_decides_not_the_likeliest() -> None:
    model = tiny()
    said, proposals = said_by(model, [1.0] * 5)
    cells = model.layout.cells_at(proposals.points, CANVAS)[0]
    said.classes[0, cells[3], 4] = 9.0  # another class is far more likely on level 3
    said.classes[0, cells[1], 2] = 0.5
    assert model.best_cells(said, proposals, CANVAS)[0].item() == cells[1]


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_points_anywhere_ask_every_likely_cell(seed: int) -> None:
    """Against a loop over all cells: the point's own count anyway, the others if their mask holds it."""
    model = tiny(point_at="random", candidates=10_000)
    draw = torch.Generator().manual_seed(seed)
    points, categories = torch.rand(4, 2, generator=draw) * torch.tensor([96.0, 64.0]), torch.tensor([0, 2, 2, 4])
    said = Said(
        classes=torch.randn(1, model.layout.count, CLASSES, generator=draw),
        kernels=(torch.randn(model.layout.count, 5, generator=draw),),
        features=(torch.randn(5, 16, 24, generator=draw),),
        stride=4,
    )
    found, masks = model.best_cells(said, asked_at(points, categories), CANVAS)
    own = model.layout.cells_at(points, CANVAS)
    every = torch.einsum("te,ehw->thw", said.kernels[0], said.features[0])
    inside = every.sigmoid() * (every > 0)
    maskness = inside.sum((1, 2)) / (every > 0).sum((1, 2)).clamp(min=1)
    for number, ((x, y), category) in enumerate(zip(points.tolist(), categories.tolist(), strict=True)):
        score = said.classes[0, :, category].sigmoid() * maskness
        held = every[:, int(y) // 4, int(x) // 4] > 0
        held[own[number]] = True
        assert found[number] == (score * held).argmax()
        assert torch.allclose(masks[number], every[found[number]], atol=1e-5)


def test_a_click_on_the_rim_gets_the_mask_of_the_cell_that_knows_the_object() -> None:
    published, anywhere = tiny(), tiny(point_at="random", candidates=5)
    said, asked = said_by(published, [0.5] * 5)
    centre = published.layout.cells_at(torch.tensor([[80.0, 50.0]]), CANVAS)[0, 0]
    said.classes[:] = -6.0
    said.classes[0, centre, 2] = 3.0  # far from the point, but its mask, that of the first level, is where the point is
    said.features[0][0, 4:8, 4:8] = 3.0
    near = published.layout.cells_at(asked.points, CANVAS)[0].tolist()
    assert published.best_cells(said, asked, CANVAS)[0].item() in near
    assert anywhere.best_cells(said, asked, CANVAS)[0].item() == centre
    off = dataclasses.replace(asked, points=torch.tensor([[60.0, 10.0]]))
    near = published.layout.cells_at(off.points, CANVAS)[0].tolist()
    assert anywhere.best_cells(said, off, CANVAS)[0].item() in near  # that mask is not this object's
    boxed = dataclasses.replace(asked, boxes=torch.tensor([[16.0, 16.0, 32.0, 32.0]]))
    assert torch.equal(*(each.best_cells(said, boxed, CANVAS)[0] for each in (published, anywhere)))


def test_no_score_is_too_low_for_a_point() -> None:
    model = tiny().eval()
    with torch.no_grad():
        model.cells.classes.bias.fill_(-20)
    proposals = Proposals(
        image_index=torch.tensor([0, 0]),
        boxes=torch.full((2, 4), torch.nan),
        object_index=torch.tensor([0, 1]),
        categories=torch.tensor([1, 1]),
        points=torch.tensor([[30.0, 30.0], [70.0, 20.0]]),
    )
    said = model.predict_masks(images(), proposals, fine=True)
    assert said.logits.shape == (2, 1, 56, 56)
    assert said.boxes.isfinite().all()
    for (x0, y0, x1, y1), (x, y) in zip(said.boxes.tolist(), proposals.points.tolist(), strict=True):
        assert x0 <= x <= x1
        assert y0 <= y <= y1


def test_masks_come_in_the_order_of_the_proposals() -> None:
    model = tiny().eval()
    torch.manual_seed(3)
    count = 9
    boxes = torch.rand(count, 4) * 30
    boxes[:, 2:] += boxes[:, :2] + 8
    boxes[::2] = torch.nan
    proposals = Proposals(
        image_index=torch.randint(0, 2, (count,)),
        boxes=boxes,
        object_index=torch.arange(count),
        categories=torch.randint(0, CLASSES, (count,)),
        points=torch.rand(count, 2) * 60,
    )
    order = torch.randperm(count)
    with torch.no_grad():
        straight, shuffled = (model.predict_masks(images(2), each) for each in (proposals, proposals[order]))
    torch.testing.assert_close(shuffled.logits, straight.logits[order], atol=1e-5, rtol=1e-4)
    assert torch.equal(straight.boxes[1::2], boxes[1::2])
    assert len(model.predict_masks(images(2), proposals[order[:0]])) == 0


def test_thousands_of_points_on_one_image() -> None:
    model = tiny().eval()
    count = 2000
    torch.manual_seed(0)
    proposals = Proposals(
        image_index=torch.zeros(count, dtype=torch.int64),
        boxes=torch.full((count, 4), torch.nan),
        object_index=torch.arange(count),
        categories=torch.zeros(count, dtype=torch.int64),
        points=torch.rand(count, 2) * 64,
    )
    with torch.no_grad():
        assert len(model.predict_masks(images(), proposals)) == count
        losses, _ = model(images(), [point_target((torch.rand(300, 2) * 64).tolist())])
    assert total(losses).isfinite()


def test_regions_hold_mask_and_point() -> None:
    logits = torch.full((2, 16, 24), -1.0)
    logits[0, 4:8, 4:12] = 1
    boxes = mask_regions(logits, torch.tensor([[80.0, 60.0], [2.0, 3.0]]), 4)
    assert boxes[0].tolist() == [8.0, 12.0, 88.0, 64.0]
    assert boxes[1].tolist() == [0.0, 0.0, 10.0, 11.0]


# NMS


def naive_matrix_nms(masks: Tensor, categories: Tensor, scores: Tensor, sigma: float) -> list[float]:
    flat = masks.flatten(1).bool()

    def iou(i: int, j: int) -> float:
        if categories[i] != categories[j]:
            return 0.0
        union = (flat[i] | flat[j]).sum().item()
        return (flat[i] & flat[j]).sum().item() / union if union else 0.0

    own = [max([iou(k, i) for k in range(i)], default=0.0) for i in range(len(masks))]
    decay = [
        min([math.exp(-sigma * (iou(i, j) ** 2 - own[i] ** 2)) for i in range(j)], default=1.0)
        for j in range(len(masks))
    ]
    return [score * min(each, 1.0) for score, each in zip(scores.tolist(), decay, strict=True)]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 12), side=st.sampled_from([7, 16, 33]))
def test_matrix_nms_is_the_papers(seed: int, count: int, side: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, side // 2, (count, 2), generator=generator)
    masks = torch.zeros(count, side, side + 3, dtype=torch.bool)
    for mask, (y, x) in zip(masks, low.tolist(), strict=True):
        mask[y : y + side // 2, x : x + side // 2] = True
    categories = torch.randint(0, 2, (count,), generator=generator)
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    expected = naive_matrix_nms(masks, categories, scores, 2.0)
    torch.testing.assert_close(matrix_nms(masks, categories, scores), torch.tensor(expected), atol=1e-5, rtol=1e-5)
    dense = masks.flatten(1).float()
    assert torch.equal(intersections(masks), dense @ dense.T)


def test_a_copy_decays_and_another_class_does_not() -> None:
    masks = torch.zeros(3, 20, 20, dtype=torch.bool)
    masks[:, 4:9, 4:9] = True
    found = matrix_nms(masks, torch.tensor([0, 0, 1]), torch.tensor([0.9, 0.8, 0.7]))
    torch.testing.assert_close(found, torch.tensor([0.9, 0.8 * math.exp(-2), 0.7]))


def test_point_nms_keeps_local_maxima() -> None:
    torch.manual_seed(0)
    scores = torch.rand(1, 2, 5, 5)
    padded = F.pad(scores, (1, 0, 1, 0), value=-1)
    for c in range(2):
        for i in range(5):
            for j in range(5):
                highest = padded[0, c, i : i + 2, j : j + 2].max()
                expected = scores[0, c, i, j] if scores[0, c, i, j] == highest else 0
                assert point_nms(scores)[0, c, i, j] == expected


# The verbs


def test_detections_of_a_network_that_says_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(class_floor=0.05).eval()
    said, _ = said_by(model, [2.0] * 5)
    said.classes.fill_(-6)
    cell = model.layout.starts[1] + 3
    said.classes[0, cell, 2] = 3.0
    monkeypatch.setattr(model, "say", lambda _: said)
    (found,) = model.predict(torch.zeros(1, 3, *CANVAS))
    assert found.categories.tolist() == [2]
    probability = torch.tensor(3.0).sigmoid() * torch.tensor(2.0).sigmoid()
    assert found.scores.item() == pytest.approx(probability.item(), rel=1e-5)
    x0, y0, x1, y1 = found.boxes[0].tolist()
    assert abs(x0 - 16) <= 2
    assert abs(x1 - 36) <= 2
    assert abs(y0 - 16) <= 2
    assert abs(y1 - 32) <= 2
    assert isinstance(found.masks, Crops)
    assert found.class_probabilities.shape == (1, CLASSES)
    (clipped,) = model.predict(torch.zeros(1, 3, *CANVAS), [(0.0, 0.0, 24.0, 64.0)])
    assert clipped.boxes[0, 2] == 24


def test_predictions_are_bounded_and_sorted() -> None:
    model = tiny(class_floor=0.0, score_floor=0.0, detections_per_image=7, candidates=30).eval()
    for found in model.predict(images(2)):
        assert len(found) <= 7
        assert (found.scores.diff() <= 0).all()
        assert (found.class_probabilities.sum(1) <= 1 + 1e-5).all()
    silent = tiny(class_floor=1.0).eval()
    assert [len(found) for found in silent.predict(images(2))] == [0, 0]


def test_the_mask_loss_teaches_given_grids() -> None:
    model = tiny()
    _, said = model(images(), [KINDS["box"]])
    wanted = torch.zeros(len(said), 14, 14)
    wanted[:, 4:9, 4:9] = 1
    ones = torch.ones(len(said))
    right = dataclasses.replace(said, logits=(wanted[:, None] - 0.5) * 100)
    assert model.mask_loss(right, wanted, ones).item() < 0.01
    assert model.mask_loss(said, wanted, ones).item() > 0.1
    assert model.mask_loss(said, wanted, 0 * ones).item() == 0


def test_a_detectors_backbone_loads_and_the_rest_stays(tmp_path: object) -> None:
    torch.manual_seed(5)
    donor = MaskRCNN(MaskRCNNConfig(backbone="tiny", fpn_channels=32), CLASSES)
    path = f"{tmp_path}/donor.safetensors"
    save_file(donor.state_dict(), path)
    model = tiny(weights=path)
    assert "backbone and its pyramid" in model.weights_note
    assert torch.equal(model.backbone.body.conv1[0].weight, donor.backbone.body.conv1[0].weight)
    assert torch.equal(model.backbone.fpn.layer_blocks[0][0].weight, donor.backbone.fpn.layer_blocks[0][0].weight)
    wider = tiny(weights=path, fpn_channels=48)
    assert wider.weights_note.endswith("into the backbone")
    assert torch.equal(wider.backbone.body.conv1[0].weight, donor.backbone.body.conv1[0].weight)


def test_it_overfits_two_images() -> None:
    torch.manual_seed(0)
    model = tiny(class_weight=3.0)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    scene, target = images(), target_of([[8, 8, 32, 32], [52, 20, 88, 56]])
    for box, colour in zip(target.instances.boxes.long().tolist(), (0.0, 1.0), strict=True):
        scene[0, :, box[1] : box[3], box[0] : box[2]] = colour
    first = None
    for _ in range(15):
        losses, _ = model(scene, [target])
        optimiser.zero_grad()
        total(losses).backward()
        optimiser.step()
        first = first or total(losses).item()
    assert total(losses).item() < 0.6 * first


def test_instances_without_points_have_none() -> None:
    assert Instances.empty().object_points.shape == (0, 2)
    assert torch.isnan(target_of([[1, 1, 5, 5]]).instances.object_points).all()
    assert pointed([[[3.0, 4.0], [5.0, 6.0]]], [[0, 1]], [[0.0, 0, 9, 9]]).instances.object_points.tolist() == [[5, 6]]
