"""Label verbs against naive loops and the papers' own numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmask.labels.boxes import box_agreement, box_prior
from leanmask.labels.masks import binary_masks, class_divergence
from leanmask.labels.weigh import cosine_ramp

coordinate = st.floats(-20, 60, allow_nan=False, width=32)


@st.composite
def boxes(draw: st.DrawFn) -> torch.Tensor:
    x, y = draw(coordinate), draw(coordinate)
    width, height = draw(st.floats(0.5, 50)), draw(st.floats(0.5, 50))
    return torch.tensor([[x, y, x + width, y + height]])


@given(grid=boxes(), given_box=boxes(), rows=st.integers(1, 9), columns=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_box_prior_is_the_naive_double_loop(
    grid: torch.Tensor, given_box: torch.Tensor, rows: int, columns: int
) -> None:
    prior = box_prior(grid, given_box, (rows, columns))[0]
    x0, y0, x1, y1 = grid[0].tolist()
    left, top, right, bottom = given_box[0].tolist()
    for i in range(rows):
        for j in range(columns):
            x, y = x0 + (x1 - x0) * (j + 0.5) / columns, y0 + (y1 - y0) * (i + 0.5) / rows
            if min(abs(x - left), abs(x - right), abs(y - top), abs(y - bottom)) < 1e-3:
                continue  # on the line, rounding decides
            assert prior[i, j] == float(left < x < right and top < y < bottom)


def test_box_prior_of_an_unknown_box_is_one_everywhere() -> None:
    prior = box_prior(torch.tensor([[0.0, 0, 10, 10]]), torch.full((1, 4), math.nan), (4, 4))
    assert bool((prior == 1).all())


def test_box_agreement_by_hand() -> None:
    grid = torch.tensor([[0.0, 0, 8, 8]])
    mask = torch.zeros(1, 4, 4)  # cells of 2 x 2 px
    mask[0, 1:3, 1:4] = 1  # x 2 to 8, y 2 to 6
    assert box_agreement(mask, grid, torch.tensor([[2.0, 2, 8, 6]])).item() == 1.0
    assert box_agreement(mask, grid, torch.tensor([[2.0, 2, 8, 8]])).item() == pytest.approx(24 / 36)
    # What lies outside the grid cannot be seen: it is not held against the mask.
    assert box_agreement(mask, grid, torch.tensor([[2.0, 2, 20, 6]])).item() == 1.0
    assert box_agreement(torch.zeros(1, 4, 4), grid, torch.tensor([[2.0, 2, 8, 6]])).item() == 0.0
    assert box_agreement(mask, grid, torch.full((1, 4), math.nan)).item() == 1.0


@given(seed=st.integers(0, 10**6), given_box=boxes())
@settings(max_examples=60, deadline=None)
def test_box_agreement_is_an_iou(seed: int, given_box: torch.Tensor) -> None:
    from torchvision.ops import box_iou

    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(1, 5, 7, generator=generator) > 0.8).float()
    grid = torch.tensor([[0.0, 0.0, 35.0, 25.0]])
    found = box_agreement(mask, grid, given_box)
    assert 0 <= found.item() <= 1 + 1e-6
    rows, columns = mask[0].any(1).nonzero(), mask[0].any(0).nonzero()
    clipped = torch.cat([given_box[:, :2].clamp(min=0), given_box[:, 2:].minimum(grid[:, 2:])], 1)
    inside = bool((clipped[:, 2:] > clipped[:, :2]).all())
    if not len(rows) or not inside:
        assert found.item() == 0
        return
    tight = torch.tensor([[columns[0] * 5.0, rows[0] * 5.0, (columns[-1] + 1) * 5.0, (rows[-1] + 1) * 5.0]])
    torch.testing.assert_close(found, box_iou(tight, clipped)[0], atol=1e-4, rtol=1e-4)


def test_binary_masks_cut_at_the_threshold() -> None:
    logits = torch.tensor([[[-1.0, 0.1], [2.0, -0.1]]])
    assert binary_masks(logits).tolist() == [[[0.0, 1.0], [1.0, 0.0]]]
    assert binary_masks(logits, threshold=0.8).tolist() == [[[0.0, 0.0], [1.0, 0.0]]]


def test_class_divergence_is_the_textbook_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 4, 2, 2, generator=generator)
    teacher = torch.randn(3, 4, 2, 2, generator=generator)
    temperature = 2.0
    p = torch.softmax(teacher / temperature, 1)
    q = torch.softmax(student / temperature, 1)
    expected = (p * (p / q).log()).sum(1) * temperature**2
    torch.testing.assert_close(class_divergence(student, teacher, temperature), expected)


def test_class_divergence_is_zero_only_between_equals() -> None:
    logits = torch.randn(2, 3, 4, 4)
    assert class_divergence(logits, logits, 1.0).abs().max() < 1e-6
    assert bool((class_divergence(logits, logits.flip(1), 1.0).sum((1, 2)) > 0).all())
    # A constant added to all channels changes no distribution.
    assert class_divergence(logits + 3, logits, 1.0).abs().max() < 1e-5


def test_one_channel_is_object_against_background() -> None:
    student, teacher = torch.tensor([[[[0.3]]]]), torch.tensor([[[[-1.2]]]])
    p, q = torch.sigmoid(teacher), torch.sigmoid(student)
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())[:, 0]
    torch.testing.assert_close(class_divergence(student, teacher, 1.0), expected)


def test_cosine_ramp_goes_through_the_published_points() -> None:
    assert cosine_ramp(0, 100) == 0.0
    assert cosine_ramp(50, 100) == pytest.approx(0.5)
    assert cosine_ramp(100, 100) == 1.0
    assert cosine_ramp(10_000, 100) == 1.0
    assert cosine_ramp(0, 0) == 1.0  # no ramp


@given(step=st.integers(0, 500), length=st.integers(1, 400))
def test_cosine_ramp_never_falls(step: int, length: int) -> None:
    assert 0.0 <= cosine_ramp(step, length) <= cosine_ramp(step + 1, length) <= 1.0
