"""What a training says of itself at its end, in files and on a page: all of the network that best.safetensors holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_helpers import TINY, Outcome, train

from leanmask.config import merge, without_places
from leanmask.data.coco import AnnotationStore
from leanmask.engine.checkpoint import weights_metadata
from leanmask.evaluation import validator
from leanmask.inference.predict import evaluate, load
from leanmask.reports.collect import read_run
from leanmask.reports.page import headline
from leanmask.run import resume
from leanmask.summary import TrainSummary

Cli = Callable[..., Outcome]
FALLING = merge(TINY, {"method": {"name": "supervised"}, "train": {"steps": 3, "eval_every_steps": 1}})


def falling(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every evaluation scores less than the one before; the scores that were given."""
    given: list[float] = []
    real = validator.score_results

    def score(*arguments: Any, **more: Any) -> Any:
        found = real(*arguments, **more)
        given.append(0.5 - 0.05 * len(given))
        return dataclasses.replace(found, metrics={**found.metrics, "AP": given[-1]})

    monkeypatch.setattr(validator, "score_results", score)
    return given


def rows_of(folder: Path) -> Any:
    return json.loads((folder / "coco_instances_results.json").read_text())


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainSummary:
    """Three steps, measured after each; the student is best after the first."""
    with pytest.MonkeyPatch.context() as patch:
        falling(patch)
        return train(digits, tmp_path_factory.mktemp("kept") / "run", settings=FALLING)


def test_the_summary_is_of_the_kept_network(run: TrainSummary) -> None:
    assert run.best is not None
    assert (run.best["who"], run.best["step"], run.best["AP"]) == ("student", 1, 0.5)
    assert run.best["metrics"]["AP"] == 0.5
    assert run.metrics["student"]["AP"] == pytest.approx(0.3), "as evaluated last"
    assert "best.safetensors is the student of step 1: mask AP 50.0" in run.to_text()
    assert "the last evaluation, at step 3: student mask AP 30.0, teacher mask AP 25.0" in run.to_text()
    assert run.to_json()["best"]["metrics"]["AP"] == 0.5


def test_what_is_kept_beside_the_weights_is_what_they_predict(run: TrainSummary, digits: Path, tmp_path: Path) -> None:
    kept = run.folder / "evaluation" / "best"
    evaluate(run.folder, digits, out=tmp_path / "again")
    assert rows_of(kept) == rows_of(tmp_path / "again")
    assert rows_of(kept) != rows_of(run.folder / "evaluation" / "student"), "which is of the last step"
    told = json.loads((kept / "metrics.json").read_text())
    said = weights_metadata(run.folder / "best.safetensors")
    assert (told["who"], told["step"], told["AP"]) == (said["who"], int(said["step"]), float(said["AP"]))
    assert list((kept / "pictures").glob("*.jpg"))


def test_report_and_summary_agree(run: TrainSummary) -> None:
    page = read_run(run.folder)
    assert page.kept is not None
    assert page.kept_files == run.folder / "evaluation" / "best"
    assert headline([page], ["m"]) == "m reaches a mask AP of 50.0 with its student of step 1."


def test_a_resumed_run_says_the_same(run: TrainSummary) -> None:
    again = resume(run.folder)
    assert again.to_json()["best"] == run.to_json()["best"]
    assert again.to_text().splitlines()[1:] == run.to_text().splitlines()[1:]


def test_a_run_that_stopped_early_says_the_same(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    falling(monkeypatch)
    settings = merge(FALLING, {"train": {"steps": 9, "patience": 1}, "evaluation": {"who": ["teacher"], "pictures": 0}})
    stopped = train(digits, tmp_path / "run", settings=settings)
    assert stopped.steps == 2
    assert "best.safetensors is the teacher of step 1: mask AP 50.0" in stopped.to_text()
    assert "no mask AP was above 50.0, that of the teacher at step 1" in stopped.to_text()
    page = read_run(tmp_path / "run")
    assert headline([page], ["m"]) == "m reaches a mask AP of 50.0 with its teacher of step 1."


def test_weights_that_are_newer_than_the_checkpoint_are_named_as_they_are(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between the two, on a device that does not repeat itself to the bit."""
    falling(monkeypatch)
    train(digits, tmp_path / "run", settings=merge(FALLING, {"evaluation": {"pictures": 0}}))
    index = tmp_path / "run" / "checkpoints" / "last" / "checkpoint.json"
    content = json.loads(index.read_text())
    content["progress"]["best"] = {"who": "teacher", "step": 0, "AP": 0.01}
    index.write_text(json.dumps(content))
    again = resume(tmp_path / "run")
    assert again.best is not None
    assert (again.best["who"], again.best["step"], again.best["AP"]) == ("student", 1, 0.5)


def test_a_run_of_stages_says_which_network_it_hands_on(run: TrainSummary) -> None:
    whole = TrainSummary.of_stages(run.folder.parent, [run, run])
    lines = whole.to_text().splitlines()
    assert lines[1] == "  best.safetensors is the student of step 1: mask AP 50.0"
    assert "at step 3:" in lines[2], "of the last stage, not of all steps together"
    left = TrainSummary.of_stages(run.folder.parent, [run], left=("student",))
    assert "  run/best.safetensors is the student of step 1" in left.to_text()


def test_the_command_line_tells_both(
    leanmask: Cli, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling(monkeypatch)
    few = (
        "data.image_size=64",
        "data.workers=0",
        "train.batch_size=2",
        "train.eval_every_steps=1",
        "model.backbone=tiny",
    )
    few = (*few, "evaluation.pictures=0", "evaluation.who=[teacher]", "--method", "supervised", "--no-plan")
    done = leanmask("train", digits, *few, "--steps", 2, "--out", tmp_path / "run")
    assert "step 1 of 2: teacher mask AP 50.0" in done.err
    assert "best.safetensors is the teacher of step 1: mask AP 50.0" in done.out
    assert "the last evaluation, at step 2: teacher mask AP 45.0" in done.out


# --- what data a score is of


def test_a_fingerprint_is_of_content_and_not_of_place_or_order(digits: Path, tmp_path: Path) -> None:
    source = digits / "annotations" / "instances_val.json"

    def fingerprint(change: Callable[[dict[str, Any]], None]) -> str:
        content = json.loads(source.read_text())
        change(content)
        path = tmp_path / f"{len(list(tmp_path.glob('*.json')))}.json"
        path.write_text(json.dumps(content, indent=2))
        return AnnotationStore.open(path, digits / "images").fingerprint()

    same = AnnotationStore.open(source, digits / "images").fingerprint()
    assert fingerprint(lambda content: content["annotations"].reverse()) == same
    assert fingerprint(lambda content: content["images"].reverse()) == same
    assert fingerprint(lambda content: content["annotations"].pop()) != same
    assert fingerprint(lambda content: content["images"][0].update(exhaustive=False)) != same
    assert fingerprint(lambda content: content["annotations"][0].update(iscrowd=1)) != same
    names = {row["id"]: row["name"] for row in json.loads(source.read_text())["categories"]}
    first, second, *_ = names

    def swap(content: dict[str, Any]) -> None:
        for row in content["categories"]:
            if row["id"] in (first, second):
                row["name"] = names[second if row["id"] == first else first]

    assert fingerprint(swap) != same


def test_a_run_records_the_fingerprint_of_what_it_is_measured_on(run: TrainSummary, digits: Path) -> None:
    store = AnnotationStore.open(digits / "annotations" / "instances_val.json", digits / "images")
    assert read_run(run.folder).fingerprint == store.fingerprint()


# --- shared weights


@pytest.mark.parametrize(
    ("given", "shared"),
    [
        ("/home/me/data", "data"),
        ("/home/me/weights/x.pth", "x.pth"),
        ("clip:/home/me/clip", "clip:clip"),
        ("python:leanmask.benchmark.handwriting:judge", "python:leanmask.benchmark.handwriting:judge"),
        ("C:\\Users\\me\\data", "data"),
        ("~/data", "data"),
        ("/", "."),
        ("imagenet", "imagenet"),
        ("runs/a/best.safetensors", "runs/a/best.safetensors"),
        (0.5, 0.5),
        (None, None),
    ],
)
def test_paths_of_this_machine_become_names(given: Any, shared: Any) -> None:
    assert without_places({"a": {"b": [given]}, "c": given}) == {"a": {"b": [shared]}, "c": shared}


def test_weights_name_no_path_of_the_machine_and_still_load(digits: Path, run: TrainSummary, tmp_path: Path) -> None:
    places = {"student_weights": str(run.folder / "best.safetensors"), "keep_weights_fractions": [0.5]}
    places["teacher_weights"] = places["student_weights"]
    settings = merge(TINY, {"train": places, "method": {"name": "pldc"}, "evaluation": {"pictures": 0}})
    settings["data"] = {**settings["data"], "unlabelled": [str(digits / "images")]}
    settings["train"] = {**settings["train"], "steps": 2}
    copied = tmp_path / "pool"
    copied.mkdir()
    for number, path in enumerate(sorted((digits / "images").iterdir())[:3]):
        (copied / f"{number}.png").write_bytes(path.read_bytes() + b"another content")
    settings["data"]["unlabelled"] = [str(copied)]
    train(digits, tmp_path / "run", settings=settings)
    files = [*(tmp_path / "run").rglob("*.safetensors"), run.folder / "best.safetensors"]
    assert len(files) >= 4
    for path in files:
        content = path.read_bytes()
        for place in (tmp_path, digits, run.folder.parent, Path.cwd(), Path.home()):
            assert str(place).encode() not in content, path
        assert str(tmp_path.parent.parent).encode() not in content
    loaded = load(tmp_path / "run" / "best.safetensors")
    assert loaded.config.data.path == "digits"
    assert (tmp_path / "run" / "config.yaml").read_text().count(str(digits)) == 1, "a run folder finds its data"
    assert resume(tmp_path / "run").steps == 2
