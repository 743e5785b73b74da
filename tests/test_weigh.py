"""Weights over the training and pixel by pixel, and the crops they lie on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmask.labels.pseudo import binary, to_crops
from leanmask.labels.weigh import boundary_weights, certainty_weights, correction_weight, mask_uncertainty
from leanmask.masks import Crops, Grids
from leanmask.models.mask_losses import MaskGrid, sample_masks


def dense(crops: Crops, canvas: tuple[int, int]) -> torch.Tensor:
    images = torch.zeros(len(crops), *canvas)
    for image, crop, (x, y, w, h) in zip(images, crops, crops.regions.tolist(), strict=True):
        image[y : y + h, x : x + w] = crop
    return images


def test_correction_weight_is_a_half_after_burn_in_and_nothing_at_the_end() -> None:
    assert correction_weight(0, 200, 1000) == 0.5
    assert correction_weight(200, 200, 1000) == 0.5
    assert correction_weight(600, 200, 1000) == pytest.approx(0.25)
    assert correction_weight(1000, 200, 1000) == 0.0
    assert correction_weight(999, 200, 1000) == pytest.approx(0.0, abs=1e-5)
    assert correction_weight(5, 10, 10) == 0.5  # burn-in only


@given(step=st.integers(0, 500), burn_in=st.integers(0, 300), total=st.integers(1, 400))
def test_correction_weight_never_rises(step: int, burn_in: int, total: int) -> None:
    assert 0 <= correction_weight(step + 1, burn_in, total) <= correction_weight(step, burn_in, total) <= 0.5


def test_uncertainty_is_one_at_a_half_and_nothing_at_the_ends() -> None:
    assert mask_uncertainty(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist() == [0.0, 0.5, 1.0, 0.5, 0.0]


def test_both_kinds_of_masks_get_the_same_weights() -> None:
    values = torch.rand(2, 5, 4)
    boxes = torch.tensor([[1.0, 2, 5, 7], [0, 0, 4, 5]])
    regions = torch.tensor([[1, 2, 4, 5], [0, 0, 4, 5]])
    for weigh in (certainty_weights, boundary_weights):
        grids, crops = weigh(Grids(values, boxes)), weigh(Crops(values.flatten(), regions))
        assert torch.equal(grids.boxes, boxes)
        assert torch.equal(crops.regions, regions)
        torch.testing.assert_close(crops.data, grids.values.flatten())
        assert len(weigh(Crops.none(0)).data) == len(weigh(Grids(values[:0], boxes[:0])).values) == 0
        assert weigh(Crops.none(2)).data.dtype == torch.float32
    torch.testing.assert_close(certainty_weights(Grids(values, boxes)).values, 2 * (values - 0.5).abs())


@given(seed=st.integers(0, 10**6), height=st.integers(1, 7), width=st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_boundary_weights_are_the_naive_loop(seed: int, height: int, width: int) -> None:
    values = torch.rand(height, width, generator=torch.Generator().manual_seed(seed))
    found = boundary_weights(Crops(values.flatten(), torch.tensor([[0, 0, width, height]])))
    rows = values.tolist()
    change = [[0.0] * width for _ in range(height)]
    for i in range(height):
        for j in range(width):
            near = [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
            around = sum(rows[y][x] for y, x in near if 0 <= y < height and 0 <= x < width)
            change[i][j] = abs(8 * rows[i][j] - around)
    expected = torch.tensor(change)
    torch.testing.assert_close(next(iter(found)), 3 * expected / expected.mean(), atol=1e-4, rtol=1e-4)


def test_boundary_weights_are_large_at_the_boundary_three_on_average_and_take_no_gradient() -> None:
    values = torch.zeros(2, 16, 16)
    values[0, 4:12, 4:12] = 1.0
    values.requires_grad_()
    weights = boundary_weights(Grids(values, torch.zeros(2, 4))).values
    assert not weights.requires_grad
    assert weights[0].mean().item() == pytest.approx(3.0)
    assert weights[0, 4, 4] > weights[0, 4, 8] > 3.0
    assert weights[0, 8, 8] == weights[0, 0, 0] == 0.0
    assert bool((weights[1] == 3.0).all())  # no boundary, no preference


def test_in_the_loss_the_place_of_the_mean_decides() -> None:
    """The released code multiplies a loss that is a mean already: a constant. Before the mean it is not."""
    values = torch.zeros(1, 12, 12)
    values[0, 3:9, 3:9] = 0.9
    said = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(0))
    loss = torch.nn.functional.binary_cross_entropy(said, (values > 0.5).float(), reduction="none")
    weights = boundary_weights(Grids(values, torch.zeros(1, 4))).values
    assert (loss.mean() * weights).mean().item() == pytest.approx(3 * loss.mean().item(), rel=1e-5)
    assert abs((loss * weights).mean().item() - 3 * loss.mean().item()) > 0.05


edge = st.floats(-30, 70, allow_nan=False, width=32)


@st.composite
def grids(draw: st.DrawFn) -> Grids:
    count, cells = draw(st.integers(0, 3)), draw(st.sampled_from([4, 7, 14]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    coarse = torch.rand(count, 1, 3, 3, generator=generator)
    values = torch.nn.functional.interpolate(coarse, size=(cells, cells), mode="bilinear")[:, 0]
    boxes = torch.tensor(
        [
            [x, y, x + draw(st.floats(0.25, 60)), y + draw(st.floats(0.25, 60))]
            for x, y in [(draw(edge), draw(edge)) for _ in range(count)]
        ]
    )
    return Grids(values, boxes.reshape(-1, 4))


@given(masks=grids(), floor=st.sampled_from([0.0, 0.01, 0.3]))
@settings(max_examples=60, deadline=None)
def test_crops_lie_where_their_boxes_lie(masks: Grids, floor: float) -> None:
    canvas = (48, 40)
    crops = to_crops(masks, canvas, floor)
    regions = crops.regions
    assert bool((regions[:, :2] >= 0).all())
    assert bool((regions[:, :2] + regions[:, 2:] <= torch.tensor([canvas[1], canvas[0]])).all())
    assert crops.data.numel() == int(regions[:, 2:].prod(1).sum())
    soft = dense(crops, canvas)
    assert torch.equal(dense(binary(crops), canvas), (soft > 0.5).float())
    y, x = torch.meshgrid(torch.arange(canvas[0]) + 0.5, torch.arange(canvas[1]) + 0.5, indexing="ij")
    for found, values, (x0, y0, x1, y1) in zip(soft, masks.values, masks.boxes.tolist(), strict=True):
        places = torch.stack([2 * (x - x0) / (x1 - x0) - 1, 2 * (y - y0) / (y1 - y0) - 1], -1)
        laid = torch.nn.functional.grid_sample(values[None, None], places[None], align_corners=False)[0, 0]
        far = (found - laid).abs()
        assert float(far.max()) < max(floor, 2e-3)  # what a floor leaves out is below it; float32 in thin boxes


@pytest.mark.parametrize("aligned", [True, False])
@given(seed=st.integers(0, 10**6), side=st.floats(6, 30))
@settings(max_examples=20, deadline=None)
def test_labels_of_a_teacher_that_is_right_stay_the_same_from_one_student_to_the_next(
    aligned: bool, seed: int, side: float
) -> None:
    low = 10 + torch.rand(40, 2, generator=torch.Generator().manual_seed(seed))
    true = to_crops(Grids(torch.ones(40, 28, 28), torch.cat([low, low + side], 1)), (64, 64))
    boxes = torch.cat([low - side / 4, low + side * 5 / 4], 1)
    labels = true
    for _ in range(5):
        learned = sample_masks(binary(labels), torch.arange(40), boxes, MaskGrid(28, (64, 64), aligned=aligned))
        labels = to_crops(Grids(learned, boxes, shift_px=0.0 if aligned else 0.5), (64, 64))
    (before, from_), (after, to) = (extents(binary(crops)) for crops in (true, labels))
    assert before == pytest.approx(side, abs=0.25)
    assert after == pytest.approx(before, abs=0.1)
    assert from_ == pytest.approx(to, abs=0.1)


def extents(crops: Crops) -> tuple[float, float]:
    """Mean side of masks on a canvas of 64 x 64, and the mean of where their middles are."""
    masks = dense(crops, (64, 64))
    areas = masks.sum((1, 2))
    middles = (masks.sum(1) * torch.arange(64)).sum(1) / areas
    return float(areas.sqrt().mean()), float(middles.mean())


def test_no_margin_that_says_nothing_is_kept() -> None:
    values = torch.zeros(1, 16, 16)
    values[0, 4:8, 10:12] = 1.0
    box = torch.tensor([[0.0, 0, 160, 160]])
    tight, whole = (to_crops(Grids(values, box), (160, 160), floor) for floor in (0.01, 0.0))
    assert tight.data.numel() < whole.data.numel() / 8
    torch.testing.assert_close(dense(tight, (160, 160)), dense(whole, (160, 160)))


def test_what_is_not_there_has_no_crop() -> None:
    values = torch.ones(4, 7, 7)
    values[3] = 0.001
    boxes = torch.tensor([[0.0, 0, 8, 8], [100, 100, 120, 120], [math.nan] * 4, [0, 0, 8, 8]])
    crops = to_crops(Grids(values, boxes), (32, 32))
    assert (crops.regions[:, 2:].prod(1) > 0).tolist() == [True, False, False, False]
    assert crops.regions[1:].tolist() == [[0, 0, 0, 0]] * 3
    assert crops.data.dtype == torch.float32
    again = to_crops(crops, (32, 32))
    assert torch.equal(again.data, crops.data)
    assert len(to_crops(Grids(values[:0], boxes[:0]), (32, 32))) == 0


def test_a_huge_box_costs_no_more_than_the_canvas() -> None:
    crops = to_crops(Grids(torch.ones(1, 7, 7), torch.tensor([[-1e6, -1e6, 1e6, 1e6]])), (16, 24))
    assert crops.regions.tolist() == [[0, 0, 24, 16]]
    assert bool((crops.data > 0.99).all())


def test_crops_take_no_half_precision_under_autocast() -> None:
    masks = Grids(torch.rand(1, 7, 7, generator=torch.Generator().manual_seed(0)), torch.tensor([[1.0, 2, 20, 30]]))
    plain = to_crops(masks, (32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(to_crops(masks, (32, 32)).data, plain.data)
