"""How long a training is: steps or epochs, and an early end when the validation score does not rise any more."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import engine_fakes as fakes
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from run_helpers import TINY, Outcome, train

from leanmask.config import merge
from leanmask.data.splits import split
from leanmask.engine.checkpoint import load_weights
from leanmask.engine.trainer import train as train_job
from leanmask.errors import ConfigError, LeanmaskError
from leanmask.evaluation.coco_ap import Evaluation
from leanmask.evaluation.validator import Validator
from leanmask.reports.collect import read_run
from leanmask.reports.tables import run_comparison
from leanmask.run import resume
from leanmask.settings import load_config, resolve
from leanmask.settling import epoch_steps, settle, without_replaced_length

Cli = Callable[..., Outcome]
SMALL = merge(
    TINY,
    {
        "model": {"backbone": "tiny"},
        "method": {"name": "supervised"},
        "train": {"precision": "fp32"},
        "evaluation": {"who": ["teacher"]},
    },
)


# --- epochs ---


@given(
    epochs=st.decimals(min_value="0.001", max_value=500, places=3).map(float),
    images=st.integers(1, 100_000),
    batch=st.integers(1, 512),
)
def test_epochs_are_the_fewest_steps_that_show_so_many_images(epochs: float, images: int, batch: int) -> None:
    steps = epoch_steps(epochs, images, batch)
    wanted = Fraction(repr(epochs)) * images
    assert steps >= 1
    assert steps * batch >= wanted
    assert (steps - 1) * batch < wanted


def test_epochs_by_hand() -> None:
    assert [epoch_steps(epochs, 30, 1) for epochs in (1, 0.1, 0.11)] == [30, 3, 4]
    assert [epoch_steps(1, images, 8) for images in (1, 8, 9)] == [1, 1, 2]


def unsettled(data: Path, **length: float) -> Any:
    given_length = {"train": {"batch_size": 6, **length}}
    named = {"model": {"name": "mask_rcnn", "backbone": "tiny"}, "method": {"name": "supervised"}}
    return resolve({**named, "data": {"path": str(data)}, **given_length})


def test_settling_turns_epochs_into_steps_and_says_so(digits: Path) -> None:
    settled, notes = settle(unsettled(digits, epochs=2.5))
    assert (settled.train.steps, settled.train.epochs) == (7, 2.5)  # 40 of 16 images, 6 at a time
    assert notes == ("train.steps = 7: 2.5 epochs of 16 images, 6 a step",)
    assert settle(settled) == (settled, ()), "they are settled already, as a plan's are"
    longer = settled.model_copy(update={"train": settled.train.model_copy(update={"steps": 9})})
    assert settle(longer, begun=True)[0].train.steps == 9
    assert settle(unsettled(digits, steps=5))[0].train.steps == 5
    assert settle(unsettled(digits, steps=5))[1] == ()


def test_two_lengths_in_one_file_are_refused_where_they_differ(digits: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"train\.steps=5 and train\.epochs=1 are both given, and 1 epochs of 16 images"
    ):
        settle(unsettled(digits, steps=5, epochs=1))


@pytest.mark.parametrize(
    ("before", "later", "kept"),
    [
        ({"steps": 5}, {"epochs": 1}, {}),
        ({"epochs": 1}, {"steps": 5}, {}),
        ({"steps": 5, "seed": 1}, {"epochs": 2}, {"seed": 1}),
        ({"steps": 5, "epochs": 1}, {"steps": 3}, {}),
        ({"steps": 5}, {"seed": 2}, {"steps": 5}),
        ({"steps": 5}, {"epochs": None}, {"steps": 5}),
    ],
)
def test_a_later_length_replaces_an_earlier_one(
    before: dict[str, Any], later: dict[str, Any], kept: dict[str, Any]
) -> None:
    assert without_replaced_length({"train": before}, {"train": later}) == {"train": kept}


def test_the_length_in_epochs_is_kept_with_the_run_and_resuming_does_not_count_again(
    leanmask: Cli, digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(SMALL))  # it says train.steps=3
    run = tmp_path / "run"
    done = leanmask("train", digits, "--config", tmp_path / "settings.yaml", "--epochs", 0.5, "--out", run, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["steps"] == 4
    assert (load_config(run).train.steps, load_config(run).train.epochs) == (4, 0.5)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["train"]["steps"] = 5  # as if the data set had grown: what was settled counts
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert resume(run).steps == 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--epochs", "0"], "'train.epochs' is 0"),
        (["train.epochs=-1"], "'train.epochs' is -1"),
        (["--epochs", "inf"], "'train.epochs'"),
        (["--epochs", "2", "--steps", "5"], "both the length of the training; give one of them"),
        (["--epochs", "2", "train.steps=5"], "both the length of the training; give one of them"),
        (["train.patience=-1"], "'train.patience' is -1"),
        (["evaluation.pictures=-1"], "'evaluation.pictures' is -1"),
    ],
)
def test_bad_lengths_are_a_sentence(
    leanmask: Cli, digits: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    outcome = leanmask("train", digits, "--out", tmp_path / "run", *arguments)
    assert outcome.code == 2
    assert says in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "run").exists()


# --- early stopping ---


def with_scores(folder: Path, scores: Sequence[float], **changes: Any) -> Any:
    """A job of one evaluation after every step, of a teacher with these mask APs."""

    def evaluate(step: int) -> dict[str, dict[str, float]]:
        return {"teacher": {"AP": scores[step - 1]}}

    settings = {"steps": len(scores), "eval_every_steps": 1, "checkpoint_every_steps": 2, "evaluate": evaluate}
    return fakes.make_job(folder, **(settings | changes))


NAN = float("nan")


@pytest.mark.parametrize(
    ("patience", "scores", "stops_at"),
    [
        (0, [0.5, 0.4, 0.3, 0.2], None),
        (1, [0.1, 0.2, 0.2, 0.3], 3),  # the same is not better
        (2, [0.1, 0.2, 0.1, 0.3, 0.2, 0.1, 0.4], 6),  # a better one counts from the beginning again
        (2, [0.0, 0.0, 0.0, 0.0, 0.1, 0.1, 0.1, 0.1], 7),  # at 0 nothing is learnt yet
        (2, [NAN, NAN, NAN, NAN], None),  # nothing can be measured
        (2, [0.1, NAN, NAN, 0.2], 3),
        (2, [0.3, 0.2, 0.1], None),  # the last step is the end anyway
    ],
)
def test_patience(tmp_path: Path, patience: int, scores: list[float], stops_at: int | None) -> None:
    result = train_job(with_scores(tmp_path, scores, patience=patience))
    assert result.steps == (stops_at or len(scores))
    events = [line for line in fakes.read_lines(tmp_path, "event") if line.get("stopped_early")]
    if stops_at is None:
        assert result.stopped_early is None
        assert not events
        return
    assert result.best is not None
    assert result.stopped_early is not None
    assert result.stopped_early.startswith(
        f"stopped early at step {stops_at} of {len(scores)}: in {patience} evaluation"
    )
    assert [(line["step"], line["message"]) for line in events] == [(stops_at, result.stopped_early)]
    known = [score for score in scores[:stops_at] if score == score]
    assert result.best["AP"] == max(known)
    assert load_weights(tmp_path / "best.safetensors")[1]["AP"] == str(max(known))


def test_stopping_early_changes_no_step_before_and_survives_kills(tmp_path: Path) -> None:
    """The rates fall as if the training went on; a run killed between the evaluations stops at the same step."""

    class Pause(Exception):
        pass

    def crash(step: int, total: int, losses: object) -> None:
        if step == 4:
            raise Pause

    scores = [0.1, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]
    rates = {}
    for name, patience in (("patient", 0), ("early", 3)):
        train_job(with_scores(tmp_path / name, scores, patience=patience))
        rates[name] = [line["lr"] for line in fakes.read_lines(tmp_path / name, "train")]
    assert rates["early"] == rates["patient"][:5]
    whole = with_scores(tmp_path / "early", scores, patience=3)
    first = train_job(whole, resume=True)
    with pytest.raises(Pause):
        train_job(with_scores(tmp_path / "parts", scores, patience=3, on_progress=crash))
    parts = with_scores(tmp_path / "parts", scores, patience=3)
    second = train_job(parts, resume=True)
    assert fakes.same(fakes.everything(whole), fakes.everything(parts))
    assert (first.steps, first.best, first.stopped_early) == (second.steps, second.best, second.stopped_early)
    assert first.steps == 5
    again = train_job(with_scores(tmp_path / "parts", scores, patience=3), resume=True)
    assert (again.steps, again.stopped_early) == (5, first.stopped_early), "it is finished, and says why"
    assert [line["step"] for line in fakes.read_lines(tmp_path / "parts", "eval")] == [1, 2, 3, 4, 5]


def test_weights_of_steps_that_are_not_made_are_those_of_the_last_one(tmp_path: Path) -> None:
    """The rough masks of `pointwssis` come from weights kept on the way."""
    job = with_scores(tmp_path, [0.3, 0.2, 0.1, 0.1, 0.1], patience=1, keep_weights_fractions=(0.6, 0.8))
    train_job(job)
    (kept,) = (tmp_path / "weights").iterdir()
    assert kept.name == "step-0000002.safetensors"
    assert fakes.same(load_weights(kept)[0], job.teacher.model.state_dict())


@pytest.fixture
def never_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks measured as always equally good."""

    def measure(self: Validator, model: object, folder: Path, see: object = None) -> Evaluation:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps({"metrics": {"AP": 0.25}}))
        return Evaluation(
            {"AP": 0.25}, per_class=[], max_detections=100, notes=[], summary="", evaluator="", outcomes={}
        )

    monkeypatch.setattr(Validator, "measure", measure)


@pytest.mark.usefixtures("never_better")
def test_a_run_that_stops_early_is_finished_and_says_so(leanmask: Cli, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(SMALL))
    run, early = tmp_path / "run", ["train.patience=1", "train.eval_every_steps=1"]
    done = leanmask("train", digits, "--config", tmp_path / "settings.yaml", *early, "train.steps=5", "--out", run)
    says = "stopped early at step 2 of 5: in 1 evaluation in a row (train.patience) no mask AP was above 25.0"
    assert (done.code, says in done.out) == (0, True)
    again = leanmask("train", "--resume", run, "--json")
    assert again.code == 0
    assert json.loads(again.out)["steps"] == 2
    assert json.loads(again.out)["stopped_early"].startswith(says)
    summary = read_run(run)
    assert summary.stopped_early
    (row,) = run_comparison([summary], ["run"]).rows
    assert "2 of 5, stopped early" in row


@pytest.mark.usefixtures("never_better")
def test_a_stage_that_stops_early_hands_on(digits: Path, tmp_path: Path) -> None:
    split(digits, tmp_path / "points", "points-4")
    early = {"method": {"name": "self_training"}, "train": {"epochs": 1, "patience": 1, "eval_every_steps": 1}}
    settings = merge(SMALL, early)
    del settings["train"]["steps"]
    summary = train(tmp_path / "points", tmp_path / "run", settings=settings)
    assert [stage.steps for stage in summary.stages] == [2, 2], "of 8 steps each"
    assert all(stage.stopped_early for stage in summary.stages)
    says = "stopped early at step 2 of 8"
    assert (summary.stopped_early or "").startswith(f"1-labels: {says}")
    assert summary.to_text().count(says) == summary.to_json()["stopped_early"].count(says) == 2
    assert (tmp_path / "run" / "best.safetensors").is_file()
    assert (load_config(tmp_path / "run").train.steps, load_config(tmp_path / "run").train.epochs) == (8, 1.0)
    assert load_config(tmp_path / "run" / "3-student").train.epochs is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patience": 2}, "train.patience=2 does nothing; evaluations before the end: 0 (train.eval_every_steps=0)"),
        (
            {"patience": 2, "eval_every_steps": 1},
            "train.patience=2 does nothing; evaluations before the end: 2 (train.eval_every_steps=1)",
        ),
        ({"patience": 1, "eval_every_steps": 1}, None),
    ],
)
@pytest.mark.usefixtures("never_better")
def test_patience_that_can_do_nothing_says_so(
    digits: Path, tmp_path: Path, changes: dict[str, Any], says: str | None
) -> None:
    notes: list[str] = []
    settings = merge(SMALL, {"train": {"steps": 3, **changes}})
    train(digits, tmp_path / "run", settings=settings, on_progress=lambda step, total, note: notes.append(note))
    assert ("does nothing" in notes[0]) == (says is not None)
    assert says is None or says in notes[0]


def test_patience_without_anything_to_measure_says_so(digits: Path, tmp_path: Path) -> None:
    """No validation image is annotated exhaustively."""
    data = tmp_path / "data"
    (data / "annotations").mkdir(parents=True)
    (data / "images").symlink_to(digits / "images")
    for name in ("train", "val"):
        content = json.loads((digits / "annotations" / f"instances_{name}.json").read_text())
        if name == "val":
            content["images"] = [{**image, "exhaustive": False} for image in content["images"]]
        (data / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    notes: list[str] = []
    settings = merge(SMALL, {"train": {"steps": 1, "patience": 1, "eval_every_steps": 1}})
    train(data, tmp_path / "run", settings=settings, on_progress=lambda step, total, note: notes.append(note))
    assert "train.patience=1 does nothing; nothing is measured" in notes[0]


def test_lengths_that_are_refused_leave_nothing(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(LeanmaskError, match="give one of them"):
        train(digits, tmp_path / "run", settings=merge(SMALL, {"train": {"epochs": 40}}))
    assert not (tmp_path / "run").exists()
