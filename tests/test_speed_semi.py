"""The measurements of what unlabelled images cost: that they run, and on as much as they say."""

from __future__ import annotations

import pytest

from leanmask.bench.speed_semi import pseudo_speed, semi_speed


def test_a_step_is_measured_with_as_many_pseudo_objects_as_labels() -> None:
    found = semi_speed(rounds=1, learnt_steps=1)
    assert 2 <= found["pseudo_objects"] <= 6
    assert found["ratio"] == pytest.approx(found["semi_seconds"] / found["labelled_seconds"])


def test_pseudo_is_measured_on_all_images() -> None:
    found = pseudo_speed(images=8, rounds=1, learnt_steps=1)
    assert found["images"] == 8
    assert found["share"] == pytest.approx(found["network_seconds"] / found["pseudo_seconds"])
    assert found["sparing_share"] == pytest.approx(found["sparing_network_seconds"] / found["pseudo_seconds"])
