"""Which predictions become pseudo-labels: naive loops, the paper's numbers, and never more for a higher bar."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmask.errors import CheckpointError, ConfigError
from leanmask.labels.select import (
    AdaptiveThresholds,
    Qualities,
    ThresholdRange,
    Thresholds,
    class_quality,
    coupled,
    decoupled,
    mask_area_px,
    mask_quality,
    measure,
)
from leanmask.masks import Crops, Grids
from leanmask.records import Instances

share = st.floats(0, 1, width=32)
rows = st.lists(st.tuples(share, share, st.floats(0, 20, width=32)), max_size=12)


def qualities(values: list[tuple[float, float, float]]) -> Qualities:
    table = torch.tensor(values).reshape(-1, 3)
    return Qualities(table[:, 0], table[:, 1], table[:, 2])


def ragged(seed: int, sizes: list[tuple[int, int]]) -> Crops:
    generator = torch.Generator().manual_seed(seed)
    crops = [torch.rand(h, w, generator=generator) for h, w in sizes]
    regions = torch.tensor([[3, 5, w, h] for h, w in sizes]).reshape(-1, 4)
    return Crops.join(crops, regions, like=torch.zeros(0))


def predictions(masks: Grids | Crops, probabilities: torch.Tensor, categories: list[int]) -> Instances:
    count = len(categories)
    return Instances(
        boxes=torch.zeros(count, 4),
        categories=torch.tensor(categories, dtype=torch.int64),
        supervision=torch.zeros(count, dtype=torch.int64),
        weights=torch.ones(count),
        class_probabilities=probabilities,
        masks=masks,
    )


def test_quality_of_an_all_09_mask_is_09() -> None:
    grids = Grids(torch.full((1, 28, 28), 0.9), torch.tensor([[0.0, 0, 10, 10]]))
    assert mask_quality(grids).item() == pytest.approx(0.9)
    crops = Crops(torch.full((12,), 0.9), torch.tensor([[0, 0, 4, 3]]))
    assert mask_quality(crops).item() == pytest.approx(0.9)


@given(seed=st.integers(0, 10**6), sizes=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=5))
@settings(max_examples=40, deadline=None)
def test_mask_quality_and_area_of_crops_are_the_naive_loop(seed: int, sizes: list[tuple[int, int]]) -> None:
    crops = ragged(seed, sizes)
    found, areas = mask_quality(crops), mask_area_px(crops)
    assert found.shape == areas.shape == (len(sizes),)
    for crop, quality, area in zip(crops, found.tolist(), areas.tolist(), strict=True):
        inside = [value for value in crop.flatten().tolist() if value > 0.5]
        assert area == len(inside)
        assert quality == pytest.approx(sum(inside) / len(inside) if inside else 0.0, abs=1e-6)


def test_area_of_a_grid_is_its_share_of_the_box() -> None:
    values = torch.tensor([[[0.9, 0.9], [0.2, 0.2]], [[0.1, 0.1], [0.5, 0.5]]])
    grids = Grids(values, torch.tensor([[0.0, 0, 10, 4], [0, 0, 8, 8]]))
    assert mask_area_px(grids).tolist() == [20.0, 0.0]
    assert mask_quality(grids).tolist() == [pytest.approx(0.9), 0.0]


def test_class_quality_is_that_of_the_own_category() -> None:
    probabilities = torch.tensor([[0.7, 0.2], [0.7, 0.2], [0.0, 0.4]])  # the rest is background
    boxes = torch.tensor([[0.0, 0, 4, 4]]).expand(3, 4)
    instances = predictions(Grids(torch.rand(3, 4, 4), boxes), probabilities, [0, 1, 1])
    assert class_quality(instances).tolist() == pytest.approx([0.7, 0.2, 0.4])
    measured = measure(instances)
    assert torch.equal(measured.class_quality, class_quality(instances))
    assert torch.equal(measured.mask_quality, mask_quality(instances.masks))  # type: ignore[arg-type]
    assert len(measure(instances[torch.zeros(3, dtype=torch.bool)]).area_px) == 0


@given(values=rows, class_threshold=share, mask_threshold=share, area=st.floats(0, 20, width=32))
def test_filters_are_the_naive_loop(
    values: list[tuple[float, float, float]], class_threshold: float, mask_threshold: float, area: float
) -> None:
    found = decoupled(qualities(values), Thresholds(class_threshold, mask_threshold, area))
    assert found.tolist() == [c >= class_threshold and m >= mask_threshold and a > area for c, m, a in values]
    together = coupled(qualities(values), class_threshold, area)
    for kept, (c, m, a) in zip(together.tolist(), values, strict=True):
        if abs(c * m - class_threshold) > 1e-6:
            assert kept == (c * m > class_threshold and a > area)


@given(values=rows, low=share, high=share)
def test_raising_a_threshold_never_keeps_more(
    values: list[tuple[float, float, float]], low: float, high: float
) -> None:
    low, high = sorted((low, high))
    measured = qualities(values)
    pairs = [
        (coupled(measured, low), coupled(measured, high)),
        (decoupled(measured, Thresholds(class_quality=low)), decoupled(measured, Thresholds(class_quality=high))),
        (decoupled(measured, Thresholds(mask_quality=low)), decoupled(measured, Thresholds(mask_quality=high))),
        (decoupled(measured, Thresholds(area_px=low)), decoupled(measured, Thresholds(area_px=high))),
    ]
    for loose, strict in pairs:
        assert bool((loose | ~strict).all())


def test_one_product_lets_the_mask_make_up_for_the_class_and_two_thresholds_do_not() -> None:
    measured = qualities([(0.78, 0.99, 100), (0.86, 0.91, 100), (0.99, 0.8, 100)])
    assert coupled(measured).tolist() == [True, True, True]
    assert decoupled(measured, Thresholds()).tolist() == [False, True, False]


@given(values=rows)
def test_with_the_product_of_its_thresholds_decoupled_is_the_stricter(values: list[tuple[float, float, float]]) -> None:
    measured = qualities(values)
    assert bool((~decoupled(measured, Thresholds(0.85, 0.9)) | coupled(measured, 0.85 * 0.9 - 1e-6)).all())


def test_what_is_not_a_number_is_not_kept() -> None:
    measured = qualities([(math.nan, 0.95, 100), (0.95, math.nan, 100)])
    assert not decoupled(measured, Thresholds()).any()
    assert not coupled(measured).any()


def test_adaptive_thresholds_start_by_frequency() -> None:
    adaptive = AdaptiveThresholds([1, 0, 3], limits=ThresholdRange((0.6, 0.8), (0.5, 0.9)))
    found = adaptive.thresholds(torch.tensor([2, 0, 1, 2]))
    assert isinstance(found.class_quality, torch.Tensor)
    assert isinstance(found.mask_quality, torch.Tensor)
    assert found.class_quality.tolist() == pytest.approx([0.75, 0.65, 0.6, 0.75])
    assert found.mask_quality.tolist() == pytest.approx([0.8, 0.6, 0.5, 0.8])
    fixed = AdaptiveThresholds([5, 5]).thresholds(torch.tensor([0, 1]))
    assert decoupled(qualities([(0.85, 0.9, 6), (0.84, 0.9, 6)]), fixed).tolist() == [True, False]


def test_adaptive_thresholds_follow_all_predictions_of_a_class() -> None:
    adaptive = AdaptiveThresholds([1, 1, 1], keep=0.9)
    adaptive.update(qualities([(0.5, 0.4, 9), (0.3, 0.6, 9), (0.9, 0.9, 9)]), torch.tensor([0, 0, 2]))
    assert adaptive.class_quality.tolist() == pytest.approx([0.9 * 0.85 + 0.1 * 0.4, 0.85, 0.9 * 0.85 + 0.1 * 0.9])
    assert adaptive.mask_quality.tolist() == pytest.approx([0.9 * 0.9 + 0.1 * 0.5, 0.9, 0.9])
    before = adaptive.state_dict()
    adaptive.update(qualities([]), torch.zeros(0, dtype=torch.int64))
    assert adaptive.state_dict() == before


def test_adaptive_thresholds_go_on_exactly_where_they_were() -> None:
    def follow(adaptive: AdaptiveThresholds, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        values, categories = torch.rand(7, 3, generator=generator), torch.randint(3, (7,), generator=generator)
        adaptive.update(Qualities(*values.unbind(1)), categories)

    straight, stopped = AdaptiveThresholds([3, 2, 1]), AdaptiveThresholds([3, 2, 1])
    follow(straight, 1)
    follow(stopped, 1)
    resumed = AdaptiveThresholds([3, 2, 1])
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    follow(straight, 2)
    follow(resumed, 2)
    assert straight.state_dict() == resumed.state_dict()
    with pytest.raises(CheckpointError, match="3 classes; the data has 2"):
        AdaptiveThresholds([1, 1]).load_state_dict(stopped.state_dict())


def test_a_range_that_cannot_be_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"mask_quality threshold is 0\.9 to 0\.8"):
        ThresholdRange(mask_quality=(0.9, 0.8))
