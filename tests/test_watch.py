"""The collapse watchdog on made-up courses of training."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import engine_fakes as fakes
import pytest

from leanmask.engine.trainer import train
from leanmask.engine.watch import PSEUDO_OBJECTS, TEACHER_SCORE, Watchdog, WatchRules
from leanmask.errors import TrainingStopped
from leanmask.methods.base import StepLosses

RULES = WatchRules(window_steps=10)


def speak(course: Callable[[int], float], name: str = PSEUDO_OBJECTS, steps: int = 400) -> list[tuple[int, str]]:
    watchdog = Watchdog(RULES)
    return [(step, sentence) for step in range(steps) for sentence in watchdog.observe({name: course(step)})]


@pytest.mark.parametrize(
    "course",
    [
        lambda step: 5.0,
        lambda step: 0.0,
        lambda step: 5.0 * min(1.0, step / 200),
        lambda step: max(0.0, random.Random(step).gauss(3, 2)),
        lambda step: 8.0 - step / 100,
        lambda step: 0.0 if step < 100 else 4.0,
    ],
    ids=["steady", "nothing", "ramp", "noise", "slow decline", "starts late"],
)
def test_healthy_runs_are_left_alone(course: Callable[[int], float]) -> None:
    assert speak(course) == []


@pytest.mark.parametrize(
    ("name", "course", "message"),
    [
        (PSEUDO_OBJECTS, lambda step: 5.0 if step < 200 else 0.5, "pseudo-labels vanish: objects per image 0.5 over"),
        (PSEUDO_OBJECTS, lambda step: 5.0 if step < 200 else 50.0, "pseudo-labels multiply: objects per image 50 over"),
        (TEACHER_SCORE, lambda step: 0.9 if step < 200 else 0.3, "the teacher lost confidence: mean score 0.3 over"),
    ],
)
def test_each_collapse_is_told_once_and_in_time(name: str, course: Callable[[int], float], message: str) -> None:
    said = speak(course, name)
    assert len(said) == 1
    step, sentence = said[0]
    assert 200 <= step < 210, "within one window"
    assert sentence.startswith(message)


def test_a_second_collapse_after_a_recovery_is_told_again() -> None:
    said = speak(lambda step: 0.1 if step // 100 in (1, 3) else 5.0, steps=400)
    assert [step for step, _ in said] == [109, 309]


def test_it_judges_only_what_it_has_seen_before() -> None:
    watchdog = Watchdog(RULES)
    for _ in range(29):
        assert watchdog.observe({PSEUDO_OBJECTS: 5.0}) == []
    assert watchdog.observe({PSEUDO_OBJECTS: 0.0}) == []
    assert [w for _ in range(10) for w in watchdog.observe({PSEUDO_OBJECTS: 0.0})] != []


def test_steps_without_the_count_are_no_evidence() -> None:
    watchdog = Watchdog(RULES)
    assert all(watchdog.observe({"ramp": 0.0}) == [] for _ in range(1000))
    assert not watchdog.must_stop


def test_a_teacher_that_loses_its_ap() -> None:
    watchdog = Watchdog()
    assert watchdog.observe_ap(0.0) == watchdog.observe_ap(0.3) == watchdog.observe_ap(0.16) == []
    assert watchdog.observe_ap(0.14) == ["the teacher's AP fell to 0.140 from 0.300"]  # nothing is pseudo-labelled
    watchdog.observe({PSEUDO_OBJECTS: 3.0})
    assert "raise their threshold" in watchdog.observe_ap(0.14)[0]
    assert watchdog.observe_ap(float("nan")) == []


def test_stopping_takes_several_windows_in_a_row_and_is_off_by_default() -> None:
    patient, silent = Watchdog(WatchRules(window_steps=10, stop_windows=2)), Watchdog(RULES)
    ends = []
    for step in range(100):
        for watchdog in (patient, silent):
            watchdog.observe({PSEUDO_OBJECTS: 5.0 if step < 50 else 0.0})
        if patient.must_stop:
            ends.append(step)
    assert ends[0] == 69
    assert not silent.must_stop
    patient.forgive()
    assert not patient.must_stop


def test_the_state_goes_through_json_at_any_moment() -> None:
    course = [5.0] * 57 + [0.1] * 43
    whole = Watchdog(RULES)
    expected = [whole.observe({PSEUDO_OBJECTS: value}) for value in course]
    for cut in (0, 1, 45, 60, 99):
        first = Watchdog(RULES)
        said = [first.observe({PSEUDO_OBJECTS: value}) for value in course[:cut]]
        second = Watchdog(RULES)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert said + [second.observe({PSEUDO_OBJECTS: value}) for value in course[cut:]] == expected


class Collapsing(fakes.FakeMethod):
    """Finds nothing any more after step 8."""

    until = 8

    def losses(self, *args: object) -> StepLosses:
        outcome = super().losses(*args)
        return StepLosses(outcome.losses, {**outcome.counts, PSEUDO_OBJECTS: 3.0 if args[3] < self.until else 0.0})


def test_training_warns_and_can_stop_with_everything_saved(tmp_path: Path) -> None:
    rules = WatchRules(window_steps=2, stop_windows=2)
    with pytest.raises(TrainingStopped, match=r"stopped at step 12 of 30: the pseudo-labels collapsed .*--resume"):
        train(fakes.make_job(tmp_path, steps=30, method=Collapsing(30), watch=rules))
    messages = [line["message"] for line in fakes.read_lines(tmp_path, "event")]
    assert messages[0].startswith("pseudo-labels vanish")
    with pytest.raises(TrainingStopped, match="stopped at step 16"):  # it gets another chance, as long as the first
        train(fakes.make_job(tmp_path, steps=30, method=Collapsing(30), watch=rules), resume=True)
    result = train(fakes.make_job(tmp_path, steps=30, method=Collapsing(30), watch=WatchRules()), resume=True)
    assert result.steps == 30


def test_a_setting_stops_a_collapsed_run(tmp_path: Path) -> None:
    """Three healthy windows of 50 steps, then two in which nothing is found."""
    method = Collapsing(400)
    method.until = 150
    settings = {"steps": 400, "log_every_steps": 100, "checkpoint_every_steps": 400, "collapse_stop_windows": 2}
    with pytest.raises(TrainingStopped, match="stopped at step 250 of 400: the pseudo-labels collapsed"):
        train(fakes.make_job(tmp_path, method=method, **settings))
