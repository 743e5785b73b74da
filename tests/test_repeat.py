"""Repeat-factor sampling: the published factors, the shares that come out, and a stream to enter anywhere."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_helpers import calm, data_config, open_store
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmask.data.dataset import TrainDataset
from leanmask.data.repeat import Repeats, repeat_factors


@given(st.lists(st.sets(st.integers(0, 4)), min_size=1, max_size=30), st.floats(0.001, 1))
@settings(max_examples=50, deadline=None)
def test_factors_are_the_published_ones(classes: list[set[int]], threshold: float) -> None:
    found = repeat_factors(classes, threshold)
    for own, factor in zip(classes, found, strict=True):
        expected = 1.0
        for category in own:
            share = sum(category in other for other in classes) / len(classes)
            expected = max(expected, (threshold / share) ** 0.5)
        assert factor == pytest.approx(expected)


def test_an_epoch_shows_every_image_and_rare_ones_more_often() -> None:
    factors = np.array([1.0, 2.5, 1.0, 3.0])
    stream = Repeats(factors, seed=3)
    shown = Counter(stream.image_index(position) for position in range(7500))
    assert shown[1] / shown[0] == pytest.approx(2.5, rel=0.05)
    assert shown[3] / shown[0] == pytest.approx(3.0, rel=0.05)
    assert {stream.image_index(position) for position in range(8)} == {0, 1, 2, 3}


def test_any_position_without_the_ones_before() -> None:
    factors = np.array([1.0, 1.4, 2.2])
    whole = [Repeats(factors, 5).image_index(position) for position in range(60)]
    straight = Repeats(factors, 5)
    assert [straight.image_index(position) for position in range(60)] == whole
    backwards = Repeats(factors, 5)
    assert [backwards.image_index(position) for position in reversed(range(60))] == whole[::-1]
    assert whole != [Repeats(factors, 6).image_index(position) for position in range(60)]


def test_a_training_stream_repeats(tmp_path: Path) -> None:
    store = open_store(tmp_path, 4)  # one class on every image: nothing is rare
    plain = TrainDataset(store, data_config(), calm(), 0)
    assert data_config(repeat_threshold=10.0).repeat_threshold == 10  # guided distillation's
    alike = TrainDataset(store, data_config(repeat_threshold=0.5), calm(), 0)
    assert sorted(plain.image_index(i) for i in range(4)) == sorted(alike.image_index(i) for i in range(4))
