"""The measurements of speed: that they run, and on as much as they say."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest
import torch

from leanmask.benchmark.speed_default import NETWORK, Clock, default_step_profile
from leanmask.benchmark.speed_longtail import soft_losses_speed
from leanmask.benchmark.speed_model import SpeedSettings, arithmetic_share, inference_speed, training_speed
from leanmask.benchmark.speed_semi import pseudo_speed, semi_speed
from leanmask.benchmark.speed_solov2 import refiner_speed
from leanmask.benchmark.turns import in_turns, medians
from leanmask.devices import capability


def test_work_takes_turns_and_only_the_turns_after_the_warm_up_count() -> None:
    order: list[str] = []
    asked: list[int] = []

    def works() -> dict[str, Callable[[], object]]:
        asked.append(len(order))
        return {"a": partial(order.append, "a"), "b": partial(time.sleep, 0.01)}

    spent = in_turns(works, rounds=3, warm_up=2)
    assert order == ["a"] * 5
    assert asked == [0, 1, 2, 3, 4]
    assert len(spent["a"].wall) == len(spent["b"].cpu) == 3
    assert medians(spent)["b_seconds"] >= 0.01 > spent["b"].cpu_median  # asleep, no processor works


def test_a_refiner_is_measured_by_size() -> None:
    found = refiner_speed(side_px=64, rounds=1, objects={"tiny": 2})
    assert found["tiny_ratio"] == pytest.approx(
        found["tiny_refined_per_cpu_second"] / found["tiny_bare_per_cpu_second"]
    )


def test_soft_labels_are_measured_with_both_losses() -> None:
    found = soft_losses_speed(SpeedSettings(size_px=64, batch=1, objects=2), rounds=1)
    for loss in ("softmax", "sigmoid"):
        assert found[f"{loss}_soft_seconds"] > 0
        assert found[f"{loss}_ratio"] > 0


def test_a_step_is_measured_with_as_many_pseudo_objects_as_labels() -> None:
    found = semi_speed(rounds=1, learnt_steps=1)
    assert 2 <= found["pseudo_objects"] <= 6
    assert found["ratio"] == pytest.approx(found["semi_seconds"] / found["labelled_seconds"])


def test_pseudo_is_measured_on_all_images() -> None:
    found = pseudo_speed(images=8, rounds=1, learnt_steps=1)
    assert found["images"] == 8
    assert found["share"] == pytest.approx(found["network_seconds"] / found["pseudo_seconds"])
    assert found["sparing_share"] == pytest.approx(found["sparing_network_seconds"] / found["pseudo_seconds"])


def test_torchvision_is_met_in_its_fastest_precision() -> None:
    """Ratios are of processor seconds; bf16 is tried where it is native alone."""
    settings = SpeedSettings(size_px=64, batch=1, objects=2, repetitions=1, warmup=0)
    native = capability(torch.device("cpu")).native_bf16
    theirs = {"torchvision_fp32", "torchvision_bf16"} if native else {"torchvision_fp32"}
    for found in (training_speed(settings), inference_speed(settings)):
        seconds = {name: found[f"{name}_cpu_seconds"] for name in (*theirs, "leanmask")}
        best = min(theirs, key=lambda name: seconds[name])
        assert found["anchor"] == best
        assert found["ratio"] == pytest.approx(seconds["leanmask"] / seconds[best])
        assert found["machine"]["precision"] == ("bf16" if native else "fp32")
        assert 0 < found["arithmetic_ratio"] < found["ratio"]
    assert set(found["detections"]) == {*theirs, "leanmask"}


def test_the_share_of_arithmetic() -> None:
    numbers = torch.rand(1500, 1500)
    assert arithmetic_share(lambda: numbers @ numbers) > 0.9
    assert arithmetic_share(lambda: numbers.sort()) == 0.0


def test_the_clock_counts_no_second_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 2.0, 5.0, 9.0])
    monkeypatch.setattr("leanmask.benchmark.speed_default.time.process_time", lambda: next(now))
    clock = Clock()
    clock.timed("outer", clock.timed("inner", lambda: None))()
    assert clock.seconds == {"inner": 3.0, "outer": 6.0}


def test_the_pieces_of_a_default_step_are_the_whole() -> None:
    found = default_step_profile(steps=2, model={"backbone": "tiny"})
    pieces = found["pieces_cpu_seconds"]
    assert set(NETWORK) < set(pieces)
    assert all(pieces[name] > 0 for name in (*NETWORK, "matching and sampling", "optimiser", "average of the teacher"))
    assert sum(pieces.values()) == pytest.approx(found["step_cpu_seconds"])
    assert 0 < found["not_network"] < 1
    assert found["steps"] == 2
