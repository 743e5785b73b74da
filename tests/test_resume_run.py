"""`train --resume`: what it takes, what it refuses, and a run that gets another length."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_fakes as fakes
import pytest
import yaml
from filelock import FileLock
from PIL import Image
from run_helpers import TINY, Outcome, train

from leanmask import session, stages
from leanmask.config import OptimConfig, commented_yaml, merge, reasons_in
from leanmask.data.files import image_files, write_atomically
from leanmask.engine.checkpoint import load_weights
from leanmask.engine.lock import LOCK_FILE
from leanmask.engine.optim import lr_factor
from leanmask.engine.trainer import train as train_job
from leanmask.errors import ConfigError, DataError, RunError
from leanmask.reports.collect import read_run
from leanmask.run import resume
from leanmask.settings import load_config
from leanmask.summary import TrainSummary

Cli = Callable[..., Outcome]
SHORT = merge(TINY, {"method": {"name": "supervised"}, "train": {"checkpoint_every_steps": 1, "precision": "fp32"}})
SHORT = merge(SHORT, {"evaluation": {"who": ["teacher"], "pictures": 0}})


@pytest.fixture
def run(trained: TrainSummary, tmp_path: Path) -> Path:
    """A copy of the finished run of three steps."""
    return Path(shutil.copytree(trained.folder, tmp_path / "run"))


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LOCK_FILE}


# --- what it refuses ---


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["nonsense"], "'nonsense'"),
        (["nonsense", "bogus.key=1"], "'nonsense', 'bogus.key=1'"),
        (["--config", "missing.yaml"], "--config"),
        (["--method", "pldc"], "--method"),
        (["--model", "solov2"], "--model"),
        (["--out", "other"], "--out"),
        (["--epochs", "2"], "--epochs"),
        (["--minutes", "5"], "--minutes"),
        (["--unlabelled", "photos"], "--unlabelled"),
        (["--weights", "runs/a"], "--weights"),
        (["--plan"], "--plan"),
        (["--no-plan"], "--no-plan"),
        (["--steps", "9", "--method", "pldc", "train.seed=1"], "'train.seed=1', --method"),
    ],
)
def test_what_a_resume_cannot_take_is_refused(leanmask: Cli, run: Path, more: list[str], named: str) -> None:
    before = everything_in(run)
    done = leanmask("train", "--resume", run, *more)
    assert done.code == 2
    assert "takes only --steps and --until beside it" in done.err
    assert done.err.strip().endswith(f", not {named}")
    assert everything_in(run) == before


def test_a_run_that_is_being_trained_is_refused(leanmask: Cli, run: Path, digits: Path, tmp_path: Path) -> None:
    before = everything_in(run)
    with FileLock(run / LOCK_FILE):
        done = leanmask("train", "--resume", run, "--steps", 9)
    assert done.code == 2
    assert f"{run} is being trained by another process" in done.err
    assert everything_in(run) == before

    def again(step: int, total: int, note: str) -> None:
        with pytest.raises(RunError, match="is being trained by another process"):
            resume(tmp_path / "new")
        refused.append(step)

    refused: list[int] = []
    train(digits, tmp_path / "new", settings=merge(SHORT, {"train": {"steps": 1}}), on_progress=again)
    assert refused
    assert resume(tmp_path / "new").steps == 1, "it is free again"


def test_a_staged_run_that_is_being_trained_is_refused(sparse: Path, tmp_path: Path) -> None:
    def again(step: int, total: int, note: str) -> None:
        with pytest.raises(RunError, match=f"{tmp_path / 'run'} is being trained"):
            resume(tmp_path / "run")
        refused.append(note)

    refused: list[str] = []
    settings = merge(TINY, {"method": {"name": "self_training"}, "train": {"steps": 1}})
    train(sparse, tmp_path / "run", settings=settings, until="labels", on_progress=again)
    assert refused
    for folder in (tmp_path / "run", tmp_path / "run" / "1-labels"):
        with pytest.raises(RunError, match=r"run consists of several trainings.* --weights .*run --steps 9"):
            resume(folder, steps=9)


# --- another length ---


@pytest.mark.parametrize("steps", [2, 3])
def test_steps_that_are_done_already_are_refused(run: Path, steps: int) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["train"]["steps"] = 5
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(RunError, match="has done 3 of its 5 steps; steps are those of the whole training"):
        resume(run, steps=steps)
    assert load_config(run).train.steps == 5


def test_steps_below_one_are_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"'train\.steps' is 0"):
        resume(run, steps=0)


def test_a_finished_run_gets_more_steps_and_keeps_them(leanmask: Cli, digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(digits, run, settings=merge(SHORT, {"train": {"steps": 2, "epochs": None}}))
    reasons = {"optim.lr": "because", "train.steps": "as planned"}
    (run / "config.yaml").write_text(commented_yaml(yaml.safe_load((run / "config.yaml").read_text()), reasons))
    done = leanmask("train", "--resume", run, "--steps", 4)
    assert done.code == 0, done.err
    assert "train.steps = 4 instead of 2: from step 2 on the learning rate is that of a run of 4 steps" in done.err
    assert "weights: the run's own, of step 2" in done.err
    assert "trained 4 steps" in done.out
    config = load_config(run)
    assert (config.train.steps, config.train.epochs) == (4, None)
    assert reasons_in((run / "config.yaml").read_text()) == {
        "optim.lr": "because",
        "train.steps": "when resumed; 2 before",
    }
    lines = fakes.read_lines(run, "train")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    rates = [config.optim.lr * lr_factor(step, 4, config.optim) for step in (2, 3)]
    assert [line["lr"] for line in lines[2:]] == pytest.approx(rates)
    assert {line["step"] for line in fakes.read_lines(run, "eval")} == {2, 4}
    before = everything_in(run / "checkpoints")
    assert resume(run).steps == 4
    assert everything_in(run / "checkpoints") == before
    assert read_run(run).config["train"]["steps"] == 4


def test_the_length_in_epochs_gives_way(digits: Path, tmp_path: Path) -> None:
    settings = merge(SHORT, {"train": {"steps": None, "epochs": 0.125}})
    del settings["train"]["steps"]
    assert train(digits, tmp_path / "run", settings=settings).steps == 1
    assert resume(tmp_path / "run", steps=2).steps == 2
    assert load_config(tmp_path / "run").train.epochs is None


CONSTANT = OptimConfig(schedule="constant", warmup_steps=1, lr=0.01)


def test_a_longer_run_is_bit_for_bit_the_one_that_was_long_from_the_start(tmp_path: Path) -> None:
    whole = fakes.make_job(tmp_path / "whole", optim=CONSTANT)
    train_job(whole)
    train_job(fakes.make_job(tmp_path / "parts", optim=CONSTANT, steps=2))
    longer = fakes.make_job(tmp_path / "parts", optim=CONSTANT)
    train_job(longer, resume=True)
    assert fakes.same(fakes.everything(whole), fakes.everything(longer))
    assert "goes on to step 4 instead of 2" in fakes.read_lines(tmp_path / "parts", "event")[1]["message"]


def test_more_steps_undo_an_early_end(tmp_path: Path) -> None:
    def job(steps: int) -> Any:
        evaluate = lambda step: {"teacher": {"AP": 0.5}}  # noqa: E731
        return fakes.make_job(tmp_path, steps=steps, eval_every_steps=1, patience=2, evaluate=evaluate)

    assert train_job(job(6)).steps == 3
    assert train_job(job(6), resume=True).steps == 3
    longer = train_job(job(9), resume=True)
    assert longer.steps == 5
    assert longer.stopped_early is not None


def test_of_a_longer_run_that_nothing_measures_the_last_teacher_is_kept(tmp_path: Path) -> None:
    train_job(fakes.make_job(tmp_path, evaluate=lambda step: None))
    first, _ = load_weights(tmp_path / "best.safetensors")
    longer = train_job(fakes.make_job(tmp_path, steps=6, evaluate=lambda step: None), resume=True)
    assert longer.best == {"who": "teacher", "step": 6, "AP": None}
    assert not fakes.same(first, load_weights(tmp_path / "best.safetensors")[0])


def test_reasons_are_read_back_from_the_file() -> None:
    settings = {"a": {"b": 1, "c": "x  # y", "d": {"e": [1, 2]}}, "f": None, "g": {}}
    reasons = {"a.b": "one: two", "a.d.e": "why # not", "f": "none"}
    assert reasons_in(commented_yaml(settings, reasons)) == reasons
    assert reasons_in(yaml.safe_dump(settings)) == {}


# --- what it says of its weights ---


def test_a_run_that_goes_on_needs_the_weights_it_started_as_no_more(
    digits: Path, trained: TrainSummary, tmp_path: Path
) -> None:
    start = Path(shutil.copy(trained.folder / "best.safetensors", tmp_path / "start.safetensors"))
    weights = {"steps": 2, "student_weights": str(start), "teacher_weights": str(start)}
    notes: list[str] = []

    def stop(step: int, total: int, note: str) -> None:
        notes.append(note)
        if step == 1 and note.startswith("loss"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(digits, tmp_path / "run", settings=merge(SHORT, {"train": weights}), on_progress=stop)
    assert f"; the teacher starts as {start}" in notes[0]
    assert "initialised from scratch" not in notes[0]
    resume(tmp_path / "run", on_progress=lambda step, total, note: notes.append(note))
    start.unlink()
    resume(tmp_path / "run", on_progress=lambda step, total, note: notes.append(note))
    assert "weights: the run's own, of step 2" in notes[-1]


# --- a run that was killed before it had begun ---


class Killed(BaseException):
    """As if the process were gone: nobody tidies up."""


@pytest.mark.parametrize(
    ("method", "at"),
    [("supervised", 0), ("supervised", 1), ("supervised", 2), ("self_training", 0), ("self_training", 1)],
)
def test_a_folder_in_which_no_run_has_begun_is_taken_again(
    sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, at: int
) -> None:
    """Killed before the first, second or last of the files that a run's folder is made of; config.yaml is the last."""
    out, settings = tmp_path / "run", merge(SHORT, {"method": {"name": method}})
    until = "labels" if method == "self_training" else None
    written = 0

    def dying(write: Callable[..., Any]) -> Callable[..., Any]:
        def writing(path: Path, *values: Any, **named: Any) -> Any:
            nonlocal written
            if path.parent == out:
                if written == at:
                    raise Killed
                written += 1
            return write(path, *values, **named)

        return writing

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", dying(Path.write_text))
        for module in (session, stages):
            patched.setattr(module, "write_atomically", dying(write_atomically))
        with pytest.raises(Killed):
            train(sparse, out, settings=settings, until=until)
    assert out.is_dir()
    with pytest.raises(RunError, match="is no run folder"):
        resume(out)
    assert train(sparse, out, settings=settings, until=until).folder == out


def test_a_run_that_learned_nothing_leaves_nothing(leanmask: Cli, digits: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(digits, tmp_path / "data"))
    exif = Image.Exif()
    exif[0x0112] = 3
    for path in image_files(data / "images", recursive=True):
        with Image.open(path) as opened:
            opened.load()
        opened.save(path, exif=exif)
    with pytest.raises(DataError, match=r"set data\.exif"):
        train(data, tmp_path / "run", settings=SHORT)
    assert not (tmp_path / "run").exists()
    assert train(data, tmp_path / "run", settings=merge(SHORT, {"data": {"exif": "ignore"}})).steps == 3


def test_a_folder_with_anything_else_is_not(sparse: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "env.json").write_text("{}")
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="exists already and is never overwritten"):
        train(sparse, out, settings=SHORT)
    assert (out / "env.json").read_text() == "{}"


# --- a run whose data have changed ---


@pytest.mark.parametrize(
    ("split", "change", "named"),
    [
        ("train", lambda content: content["annotations"][0]["bbox"].__setitem__(0, 1), "split 'train'"),
        ("train", lambda content: content["images"].pop(), "split 'train'"),
        ("train", lambda content: content["categories"][0].update(name="other"), "the classes"),
        ("val", lambda content: content["annotations"].pop(), "split 'val'"),
    ],
)
def test_changed_data_are_refused_or_accepted(
    leanmask: Cli, digits: Path, tmp_path: Path, split: str, change: Callable[[Any], Any], named: str
) -> None:
    data = Path(shutil.copytree(digits, tmp_path / "data"))
    train(data, tmp_path / "run", settings=SHORT)
    path = data / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    kept = {row["id"] for row in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    if named == "the classes":  # in both files, or they do not belong together
        other = data / "annotations" / "instances_val.json"
        val = json.loads(other.read_text())
        val["categories"] = content["categories"]
        other.write_text(json.dumps(val))
    path.write_text(json.dumps(content))
    assert resume(tmp_path / "run").steps == 3  # a finished run has no more use for them
    before = everything_in(tmp_path / "run")
    outcome = leanmask("train", "--resume", str(tmp_path / "run"), "--steps", "4")
    assert outcome.code != 0
    assert "have changed since it began" in outcome.err
    assert named in outcome.err
    assert everything_in(tmp_path / "run") == before
    outcome = leanmask("train", "--resume", str(tmp_path / "run"), "--steps", "4", "--accept-new-data")
    assert outcome.code == 0
    assert "the data have changed since the run began" in outcome.err
    assert load_config(tmp_path / "run").train.steps == 4


def test_data_in_another_order_are_the_same(digits: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(digits, tmp_path / "data"))
    train(data, tmp_path / "run", settings=SHORT)
    path = data / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": content["annotations"][::-1]}, indent=2))
    assert resume(tmp_path / "run", steps=4).steps == 4


def test_a_file_system_without_locks_is_said(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*_: Any, **__: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", acquire)
    notes: list[str] = []
    train(digits, tmp_path / "run", settings=SHORT, on_progress=lambda step, total, note: notes.append(note))
    assert any("has no locks: take care" in note for note in notes)
