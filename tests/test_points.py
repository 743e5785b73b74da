"""Points: reading maps and masks at any place against grid_sample and dense masks, drawing them, the shared loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leanmask.masks import Crops
from leanmask.models.mask_losses import (
    MaskGrid,
    annotated_points,
    has_points,
    keep_points,
    mask_loss,
    mask_values_at,
    read_masks,
)
from leanmask.models.points import (
    Importance,
    Subdivision,
    important_points,
    regular_points,
    sample_grids,
    sample_map,
    subdivide,
)
from leanmask.records import Instances, MaskPredictions, Supervision, Target

CANVAS = 48


def pointed(points: list[list[list[float]]], labels: list[list[int]], boxes: list[list[float]]) -> Target:
    """Objects of class 0, 1, ... with a box and classified points."""
    count = len(boxes)
    instances = Instances(
        boxes=torch.tensor(boxes),
        categories=torch.arange(count),
        supervision=torch.full((count,), int(Supervision.POINTS)),
        weights=torch.ones(count),
        masks=Crops.none(count),
        points=torch.tensor(points),
        point_labels=torch.tensor(labels),
    )
    return Target(instances=instances, ignore=torch.zeros(0, 4))


def said(boxes: list[list[float]], objects: list[int], logits: Tensor) -> MaskPredictions:
    return MaskPredictions(
        image_index=torch.zeros(len(boxes), dtype=torch.int64),
        boxes=torch.tensor(boxes),
        object_index=torch.tensor(objects),
        categories=torch.tensor(objects),
        logits=logits,
    )


@given(seed=st.integers(0, 1000), count=st.integers(0, 5), points=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_reading_a_map_is_grid_sample(seed: int, count: int, points: int) -> None:
    torch.manual_seed(seed)
    maps, stride = torch.randn(3, 4, 7, 9, requires_grad=True), 4
    corner = torch.rand(count, 2) * 20
    boxes = torch.cat([corner, corner + 1 + torch.rand(count, 2) * 30], dim=1)
    image, coords = torch.randint(3, (count,)), torch.rand(count, points, 2)
    found = sample_map(maps, boxes, image, coords, stride)
    place = (boxes[:, None, :2] + coords * (boxes[:, None, 2:] - boxes[:, None, :2])) / stride
    grid = 2 * place / torch.tensor([9.0, 7.0]) - 1
    expected = torch.zeros(count, points, 4)
    if count:
        expected = F.grid_sample(maps[image], grid[:, None], align_corners=False)[:, :, 0].transpose(1, 2)
    torch.testing.assert_close(found, expected)
    if count:
        weight = torch.randn_like(found)
        ours = torch.autograd.grad((found * weight).sum(), maps, retain_graph=True)[0]
        theirs = torch.autograd.grad((expected * weight).sum(), maps)[0]
        torch.testing.assert_close(ours, theirs)


def test_reading_grids_is_grid_sample() -> None:
    torch.manual_seed(0)
    grids, coords = torch.randn(5, 3, 14, 14), torch.rand(5, 11, 2)
    expected = F.grid_sample(grids, 2 * coords[:, None] - 1, align_corners=False)[:, :, 0].transpose(1, 2)
    torch.testing.assert_close(sample_grids(grids, coords), expected)


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_reading_crops_is_reading_dense_masks(seed: int) -> None:
    torch.manual_seed(seed)
    regions, crops, dense = [], [], torch.zeros(4, 1, CANVAS, CANVAS)
    for number in range(4):
        x, y, w, h = (int(n) for n in torch.randint(0, CANVAS // 2, (4,)))
        crop = torch.randint(2, (h, w), dtype=torch.uint8)
        dense[number, 0, y : y + h, x : x + w] = crop
        regions.append([x, y, w, h])
        crops.append(crop)
    masks = Crops.join(crops, torch.tensor(regions))
    owner, points = torch.randint(4, (6,)), torch.rand(6, 10, 2) * (CANVAS - 1) + 0.5
    expected = F.grid_sample(dense[owner], 2 * points[:, None] / CANVAS - 1, align_corners=False)[:, 0, 0]
    torch.testing.assert_close(read_masks(masks, owner, points), expected, atol=1e-4, rtol=1e-4)


def test_no_mask_reads_as_zero() -> None:
    assert read_masks(Crops.none(2), torch.tensor([0, 1]), torch.rand(2, 3, 2)).sum() == 0


def test_pixel_weights_reach_the_points() -> None:
    target = pointed([[[1.0, 1.0]]], [[1]], [[0.0, 0.0, 8.0, 8.0]])
    masks = Crops(torch.ones(64, dtype=torch.uint8), torch.tensor([[0, 0, 8, 8]]))
    weights = Crops(torch.full((32,), 0.25), torch.tensor([[0, 0, 4, 8]]))  # the left half counts a quarter
    target = Target(instances=target.instances.replace(masks=masks), ignore=target.ignore, pixel_weights=weights)
    found = mask_values_at(
        said([[0.0, 0.0, 8.0, 8.0]], [0], torch.zeros(1, 1, 2, 2)), [target], torch.tensor([[[0.2, 0.5], [0.8, 0.5]]])
    )
    assert found.labels.tolist() == [[1.0, 1.0]]
    assert found.weights.tolist() == [[0.25, 1.0]]


def test_annotated_points_relative_to_the_proposal() -> None:
    points = [[[12.0, 14.0], [20.0, 30.0], [1.0, 1.0], [0.0, 0.0]]]
    target = pointed(points, [[1, 0, 1, -1]], [[10.0, 10.0, 30.0, 30.0]])
    matched = said([[10.0, 10.0, 30.0, 50.0]], [0], torch.zeros(1, 1, 4, 4))
    found = annotated_points(matched, [target])
    torch.testing.assert_close(found.coords[0, :2], torch.tensor([[0.1, 0.1], [0.5, 0.5]]))
    assert found.labels[0, :2].tolist() == [1.0, 0.0]
    # Three points count (one is off the canvas), two of them say something; the row is a mean over its four places.
    torch.testing.assert_close(found.weights, torch.tensor([[4 / 3, 4 / 3, 0, 0]]))
    torch.testing.assert_close(annotated_points(matched, [target], "inside").weights, torch.tensor([[2.0, 2, 0, 0]]))


def test_point_loss_is_pointsups() -> None:
    """Mean over all points, ignored ones included, of logits that are interpolated on the grid."""
    torch.manual_seed(0)
    boxes = [[10.0, 10.0, 30.0, 30.0], [8.0, 4.0, 40.0, 44.0]]
    points = torch.rand(2, 10, 2) * 40
    labels = torch.randint(2, (2, 10))
    target = pointed(points.tolist(), labels.tolist(), boxes)
    logits = torch.randn(2, 2, 28, 28)
    total = 0.0
    for row, box in enumerate(torch.tensor(boxes)):
        place = (points[row] - box[:2]) / (box[2:] - box[:2])
        inside = ((place >= 0) & (place <= 1)).all(1)
        read = F.grid_sample(logits[row, row][None, None], (2 * place - 1)[None, None], align_corners=False)[0, 0, 0]
        losses = F.binary_cross_entropy_with_logits(read, labels[row].float(), reduction="none")
        total += float((losses * inside).sum())
    found = mask_loss(said(boxes, [0, 1], logits), [target], MaskGrid(28, (CANVAS, CANVAS)))
    assert float(found) == pytest.approx(total / 20, rel=1e-5)


def test_objects_of_different_point_counts_count_alike() -> None:
    """An object with two points next to one with four: padding takes no part in its mean."""
    boxes = [[0.0, 0.0, 40.0, 40.0]] * 2
    place = [[10.0, 10.0], [30.0, 30.0], [0.0, 0.0], [0.0, 0.0]]
    both = pointed([place, place], [[1, 1, -1, -1], [1, 1, 1, 1]], boxes)
    alone = pointed([place[:2]], [[1, 1]], boxes[:1])
    grid, logits = MaskGrid(14, (CANVAS, CANVAS)), torch.randn(2, 2, 14, 14)
    one = mask_loss(said(boxes[:1], [0], logits[:1]), [both], grid)
    torch.testing.assert_close(one, mask_loss(said(boxes[:1], [0], logits[:1]), [alone], grid))


def test_masks_and_points_in_one_loss() -> None:
    """The mean over proposals of both kinds; no points leaves the mask loss as it is."""
    target = pointed([[[10.0, 10.0]], [[10.0, 10.0]]], [[1], [1]], [[0.0, 0.0, 32.0, 32.0]] * 2)
    masks = Crops(torch.ones(32 * 32, dtype=torch.uint8), torch.tensor([[0, 0, 32, 32], [0, 0, 0, 0]]))
    supervision = torch.tensor([int(Supervision.MASK), int(Supervision.POINTS)])
    target = Target(instances=target.instances.replace(masks=masks, supervision=supervision), ignore=torch.zeros(0, 4))
    boxes, logits, grid = [[0.0, 0.0, 32.0, 32.0]] * 2, torch.randn(2, 2, 14, 14), MaskGrid(14, (CANVAS, CANVAS))
    mask, point = (mask_loss(said(boxes[:1], [i], logits[i : i + 1]), [target], grid) for i in (0, 1))
    torch.testing.assert_close(mask_loss(said(boxes, [0, 1], logits), [target], grid), (mask + point) / 2)
    softer = MaskGrid(14, (CANVAS, CANVAS), point_weight=0.25)
    torch.testing.assert_close(mask_loss(said(boxes, [0, 1], logits), [target], softer), (mask + point / 4) / 2)
    assert has_points(target).tolist() == [False, True]


@given(total=st.integers(1, 12), hidden=st.integers(0, 12), share=st.floats(0.05, 1))
@settings(max_examples=40, deadline=None)
def test_keeping_a_share_of_the_points(total: int, hidden: int, share: float) -> None:
    labels = torch.randint(2, (3, total))
    labels[:, : min(hidden, total)] = -1
    target = pointed(torch.rand(3, total, 2).tolist(), labels.tolist(), [[0.0, 0.0, 9.0, 9.0]] * 3)
    kept = keep_points([target], share)[0].instances.point_labels
    known = labels >= 0
    expected = known.sum(1) if share >= 1 else (known.sum(1) * share).round().clamp(min=1)
    assert torch.equal((kept >= 0).sum(1), torch.minimum(expected, known.sum(1)).long())
    assert torch.equal(kept[kept >= 0], labels[kept >= 0])


def test_important_points_lie_where_the_mask_is_uncertain() -> None:
    torch.manual_seed(0)
    logits = torch.full((2, 7, 7), 9.0)
    logits[:, :, 3] = 0.0  # a column of doubt in the middle
    points = important_points(logits, Importance(points=100, oversample=10, uncertain=0.75))
    assert points.shape == (2, 100, 2)
    near = ((points[..., 0] - 0.5).abs() < 1.5 / 7).float().mean()
    assert near > 0.75
    uniform = important_points(logits, Importance(points=100, oversample=1, uncertain=0))
    assert 0.25 < ((uniform[..., 0] - 0.5).abs() < 1.5 / 7).float().mean() < 0.6


def test_subdivision_computes_only_the_points_it_needs_and_ends_at_224() -> None:
    asked: list[int] = []

    def exact(coords: Tensor) -> Tensor:
        asked.append(coords.shape[1])
        return 60 * (0.3 - (coords - 0.5).norm(dim=-1))  # a disc

    start = exact(regular_points(28, torch.zeros(1)).expand(2, -1, -1)).view(-1, 28, 28)
    fine = subdivide(start, exact, Subdivision(steps=3, points=784))
    assert fine.shape == (2, 224, 224)
    assert asked == [784] * 4
    truth = exact(regular_points(224, torch.zeros(1))).view(224, 224) > 0
    assert ((fine[0] > 0) != truth).float().mean() < 1e-3
    assert torch.equal(subdivide(start, exact, Subdivision(0, 1)), start)
