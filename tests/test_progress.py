"""What a person sees of a training while it runs: time left, lines in logs, pictures of what the network finds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_fakes as fakes
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from run_helpers import TINY, Outcome, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from leanmask import console
from leanmask.config import merge
from leanmask.engine.trainer import train as train_job
from leanmask.errors import RunError
from leanmask.pace import MEASURED_STEPS, Pace
from leanmask.reports.evaluation_pictures import (
    GAP_PX,
    HEAD_PX,
    SIDE_PX,
    EvaluationPictures,
    read_pictures,
    spread,
)
from leanmask.reports.overlays import class_colour
from leanmask.reports.page import write_report
from leanmask.reports.pictures import Truth
from leanmask.summary import Line, LogLine, TrainSummary

Cli = Callable[..., Outcome]
SMALL = merge(
    TINY,
    {
        "model": {"backbone": "tiny", "score_floor": 0},
        "method": {"name": "supervised"},
        "train": {"steps": 12, "precision": "fp32", "log_every_steps": 5, "eval_every_steps": 8},
    },
)


# --- pace ---


def test_the_time_left_by_hand() -> None:
    pace = Pace(total=100, every=40)
    assert pace.seconds_left(0) is None
    for seconds in (30.0, 30.0, 2.0, 4.0):  # the first two are unusual
        pace.add_step(seconds)
    assert pace.seconds_left(10) == 3 * 90
    pace.evaluation_steps = 4.0  # until an evaluation was measured
    assert pace.seconds_left(10) == 3 * 90 + 3 * 4 * 3
    pace.add_evaluation(7.0)
    assert pace.seconds_left(40) == 3 * 60 + 2 * 7  # at 80 and at the end
    assert pace.seconds_left(99) == 3 + 7
    assert pace.seconds_left(100) == 0
    assert pace.log_line(40, 1.23456, 2.5) == "step 40 of 100: loss 1.235, 2.50 s a step, 3m 14s left"
    assert pace.log_line(100, 1.0, 2.5) == "step 100 of 100: loss 1.000, 2.50 s a step"


@given(total=st.integers(1, 60), every=st.integers(0, 70), step=st.integers(0, 60))
def test_evaluations_to_come_are_those_that_the_engine_will_do(total: int, every: int, step: int) -> None:
    def evaluated(at: int) -> bool:
        return at == total or (every > 0 and at % every == 0)

    assert Pace(total, every).evaluations_after(step) == sum(evaluated(at) for at in range(step + 1, total + 1))


def test_the_whole_is_estimated_once_after_the_first_steps() -> None:
    pace, said = Pace(total=100, every=0, evaluation_steps=9.0), {}
    for step in range(1, 31):
        pace.add_step(9.0 if step < 3 else 0.5)
        if (estimate := pace.estimate(step)) is not None:
            said[step] = estimate
    assert said == {MEASURED_STEPS: "the 95 steps to come will take about 52s with 1 evaluation (0.50 s a step)"}
    assert Pace(total=100, every=50, evaluation_steps=9.0).evaluations_after(5) == 2
    unmeasured = Pace(total=100, every=0)
    for _ in range(5):
        unmeasured.add_step(0.5)
    assert unmeasured.estimate(5) == "the 95 steps to come will take about 48s (0.50 s a step)"
    short = Pace(total=9, every=0)
    for step in range(1, 10):
        short.add_step(1.0)
        assert short.estimate(step) is None, "it is over before one has read it"


# --- lines ---


def test_the_engine_tells_of_every_line_of_losses(tmp_path: Path) -> None:
    told: list[tuple[int, dict[str, float], float]] = []
    train_job(fakes.make_job(tmp_path, log_every_steps=3, on_log=lambda *news: told.append(news)))
    lines = fakes.read_lines(tmp_path, "train")
    assert [line["step"] for line in lines] == [3, 4]
    assert told == [(line["step"], line["losses"], line["seconds_step"]) for line in lines]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("lr", "seconds_step"):
        curve = [(event.step, event.value) for event in board.Scalars(f"train/{name}")]
        assert curve == [(line["step"], pytest.approx(line[name])) for line in lines]


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (False, False), (False, True)])
def test_lines_are_printed_where_they_are_wanted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, terminal: bool, quiet: bool
) -> None:
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(
            console, "messages", Console(file=file, force_terminal=terminal, highlight=False, width=200)
        )
        with console.progress("training", quiet) as report:
            report(0, 9, Line("[census]"))
            report(1, 9, "loss 3")
            report(5, 9, LogLine("step 5 of 9: loss 2"))
            report(5, 9, Line("step 5 of 9: mask AP 1"))
    printed = (tmp_path / "out").read_text()
    assert "[census]\n" in printed
    assert "step 5 of 9: mask AP 1\n" in printed
    own_line = re.search(r"^(\x1b\[2K)?step 5 of 9: loss 2$", printed, re.MULTILINE)  # not at the end of the bar
    assert (own_line is not None) == (not terminal and not quiet)
    if not terminal:
        assert "loss 3" not in printed


@pytest.fixture(scope="module")
def logged(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], TrainSummary]:
    """A run of twelve steps that was measured at steps 8 and 12, and every note that it gave."""
    out, notes = tmp_path_factory.mktemp("runs") / "run", []
    settings = merge(SMALL, {"evaluation": {"pictures": 3}})
    summary = train(digits, out, settings=settings, on_progress=lambda step, total, note: notes.append(note))
    return out, notes, summary


def test_a_training_tells_losses_time_and_scores(logged: tuple[Path, list[str], TrainSummary]) -> None:
    out, notes, _ = logged
    logs = [note for note in notes if isinstance(note, LogLine)]
    pattern = r"step (\d+) of 12: loss \d+\.\d{3}, \d+\.\d\d s a step(, .+ left)?"
    assert [re.fullmatch(pattern, note)[1] for note in logs] == ["5", "10", "12"]  # type: ignore[index]
    assert "left" in logs[0]
    losses = [line["losses"] for line in fakes.read_lines(out, "train")]
    assert [float(note.split("loss ")[1].split(",")[0]) for note in logs] == [
        pytest.approx(sum(each.values()), abs=6e-4) for each in losses
    ]
    census, estimate, *scores = (note for note in notes if isinstance(note, Line))
    assert census.startswith("16 images")
    assert re.fullmatch(r"the 7 steps to come will take about .+ with 2 evaluations \(\d+\.\d\d s a step\)", estimate)
    measured = {(line["step"], line["who"]): 100 * line["metrics"]["AP"] for line in fakes.read_lines(out, "eval")}
    assert scores == [
        f"step {step} of 12: student mask AP {measured[step, 'student']:.1f}, "
        f"teacher mask AP {measured[step, 'teacher']:.1f}"
        for step in (8, 12)
    ]


def test_piped_output_has_plain_lines_and_json_stays_alone(leanmask: Cli, digits: Path, tmp_path: Path) -> None:
    settings = merge(SMALL, {"train": {"steps": 2, "log_every_steps": 1}, "evaluation": {"who": ["teacher"]}})
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    arguments = ("train", digits, "--config", tmp_path / "settings.yaml")
    plain = leanmask(*arguments, "--out", tmp_path / "plain")
    lines = [line for line in plain.err.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in lines] == ["step 1 of 2", "step 2 of 2", "step 2 of 2"]
    assert "mask AP" in lines[2]
    told = leanmask(*arguments, "--out", tmp_path / "json", "--json")
    assert json.loads(told.out)["steps"] == 2
    assert "loss" not in told.err


# --- pictures ---


@given(count=st.integers(1, 3000), wanted=st.integers(0, 40))
def test_pictures_are_spread_over_the_split(count: int, wanted: int) -> None:
    found = spread(count, wanted)
    assert len(found) == min(count, wanted)
    assert found == sorted(set(found))
    assert all(0 <= position < count for position in found)
    gaps = [later - earlier for earlier, later in zip([-1, *found], [*found, count], strict=True)]
    if len(found) > 1:
        assert max(gaps[1:-1]) - min(gaps[1:-1]) <= 1
        assert max(gaps[0], gaps[-1]) <= min(gaps[1:-1]) + 1


def test_an_evaluation_leaves_pictures_in_folder_tensorboard_and_report(
    logged: tuple[Path, list[str], TrainSummary], digits: Path, tmp_path: Path
) -> None:
    out, _, summary = logged
    board = EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0}).Reload()
    for who in ("student", "teacher"):
        files = sorted((out / "evaluation" / who / "pictures").iterdir())
        assert [path.name for path in files] == ["0-val_000001.jpg", "1-val_000003.jpg", "2-val_000005.jpg"]
        with Image.open(files[0]) as picture:
            assert picture.size == (2 * SIDE_PX + GAP_PX, SIDE_PX + HEAD_PX)
        for path in files:
            events = board.Images(f"pictures/{who}/{path.stem}")
            assert [(event.step, event.width) for event in events] == [(step, 2 * SIDE_PX + GAP_PX) for step in (8, 12)]
    assert "pictures" not in fakes.read_lines(out, "eval")[0]["metrics"]
    page = write_report([out], tmp_path / "report.html").read_text()
    assert summary.best is not None
    assert f"the {summary.best['who']} of step {summary.best['step']}: predictions on the left" in page
    for picture in read_pictures(out / "evaluation" / "best" / "pictures"):
        assert picture.uri in page


def rle_row(key: int, category: int, box: tuple[int, int, int, int], **more: Any) -> dict[str, Any]:
    x, y, width, height = box
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {"image_id": key, "category_id": category, "bbox": list(box), "segmentation": [polygon], **more}


@pytest.fixture
def scene(tmp_path: Path) -> tuple[EvaluationPictures, Path]:
    """Two grey images of one name, the first with an object of class 1, the second with none."""
    paths = [tmp_path / name / "a b.png" for name in ("x", "y")]
    for path in paths:
        path.parent.mkdir()
        Image.new("RGB", (96, 48), (128, 128, 128)).save(path)
    images = {key: {"id": key, "file_name": str(path), "width": 96, "height": 48} for key, path in enumerate(paths)}
    truth = Truth(images, {0: [rle_row(0, 1, (10, 10, 30, 30))]}, {}, {1: "cat", 2: "dog"})
    return EvaluationPictures(truth, list(enumerate(paths))), tmp_path / "pictures"


def filled_with(half: np.ndarray[Any, Any], category: int) -> int:
    """Pixels of the fill of this class on grey."""
    expected = 128 + 0.42 * (np.array(class_colour(category)) - 128.0)
    return int((np.abs(half - expected).max(axis=-1) < 3).sum())


def test_predictions_stand_left_and_the_truth_right_each_in_its_class(scene: tuple[EvaluationPictures, Path]) -> None:
    pictures, folder = scene
    rows = [
        rle_row(0, 2, (50, 10, 30, 30), score=0.9),
        rle_row(0, 1, (10, 10, 30, 30), score=0.2),  # too unsure to be drawn
        rle_row(7, 1, (10, 10, 30, 30), score=0.9),  # another image
    ]
    drawn, problems = pictures.draw(rows, "teacher, step 5", folder)
    assert problems == []
    assert list(drawn) == ["0-a_b", "1-a_b"]
    first = drawn["0-a_b"].astype(float)[HEAD_PX:]
    left, right = first[:, :SIDE_PX], first[:, SIDE_PX + GAP_PX :]
    area = (30 * SIDE_PX / 96) ** 2
    assert (filled_with(left, 1), filled_with(right, 2)) == (0, 0)
    assert 0.6 * area < filled_with(left, 2) < area
    assert 0.6 * area < filled_with(right, 1) < area
    second = drawn["1-a_b"][HEAD_PX:]
    assert (second[:, :SIDE_PX] == 128).all(), "nothing is there, nothing was found"
    assert sorted(path.name for path in folder.iterdir()) == ["0-a_b.jpg", "1-a_b.jpg"]
    assert [picture.caption for picture in read_pictures(folder)] == ["a_b", "a_b"]


def test_where_nothing_is_sure_the_best_are_drawn(scene: tuple[EvaluationPictures, Path]) -> None:
    pictures, folder = scene
    best = [rle_row(0, 2, (left, 10, 16, 30), score=0.4) for left in (2, 22, 42)]
    drawn, _ = pictures.draw([rle_row(0, 1, (65, 10, 25, 30), score=0.3), *best], "teacher, step 1", folder)
    left = drawn["0-a_b"].astype(float)[HEAD_PX:, :SIDE_PX]
    assert filled_with(left, 1) == 0
    assert filled_with(left, 2) > 0.5 * 3 * 16 * 30 * (SIDE_PX / 96) ** 2


def test_an_image_that_is_gone_is_a_sentence_and_the_others_are_drawn(scene: tuple[EvaluationPictures, Path]) -> None:
    pictures, folder = scene
    pictures.images[0].path.unlink()
    drawn, problems = pictures.draw([], "teacher", folder)
    assert list(drawn) == ["1-a_b"]
    (problem,) = problems
    assert problem.startswith(f"no picture of {pictures.images[0].path}: cannot read image")


def test_pictures_that_cannot_be_written_are_a_sentence(scene: tuple[EvaluationPictures, Path]) -> None:
    pictures, folder = scene
    folder.write_text("mine")
    with pytest.raises(RunError, match=r"cannot write a picture in .*pictures: "):
        pictures.draw([], "teacher", folder)


def test_no_pictures_where_none_are_wanted(digits: Path, tmp_path: Path) -> None:
    settings = merge(SMALL, {"train": {"steps": 1}, "evaluation": {"pictures": 0, "who": ["teacher"]}})
    train(digits, tmp_path / "run", settings=settings)
    assert not (tmp_path / "run" / "evaluation" / "teacher" / "pictures").exists()
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "as last evaluated" not in page
