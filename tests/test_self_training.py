"""Self-training in stages: pseudo-masks for human boxes as a COCO data set, kill and resume at any stage."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_helpers import TINY, train
from safetensors.torch import load_file

from leanmask.config import merge
from leanmask.data.check import check
from leanmask.data.coco import AnnotationStore
from leanmask.data.layout import locate
from leanmask.data.splits import split
from leanmask.data.views.augment import fitted_frame
from leanmask.data.views.targets import place
from leanmask.errors import ConfigError, DataError, RunInterrupted, TrainingStopped
from leanmask.inference.predict import evaluate, load
from leanmask.inference.pseudo_masks import PseudoJob, finish_pseudo_masks, make_pseudo_masks
from leanmask.reports.page import write_report
from leanmask.run import resume
from leanmask.summary import LogLine, TrainSummary

SETTINGS = merge(TINY, {"method": {"name": "self_training"}, "train": {"steps": 2}})


class Killed(Exception):
    """Stands in for a kill."""


@pytest.fixture(scope="module")
def pointed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "points"
    split(digits, out, "points-4")
    return out


@pytest.fixture(scope="module")
def staged(pointed: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainSummary:
    return train(pointed, tmp_path_factory.mktemp("runs") / "staged", settings=SETTINGS)


def test_stages_leave_folders_that_one_can_open(staged: TrainSummary, pointed: Path) -> None:
    folder = staged.folder
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["1-labels", "2-pseudo", "3-student"]
    assert staged.steps == 4
    assert (folder / "best.safetensors").read_bytes() == (folder / "3-student" / "best.safetensors").read_bytes()
    labelled = json.loads((folder / "2-pseudo" / "instances_train.json").read_text())
    given = json.loads((pointed / "annotations" / "instances_train.json").read_text())
    assert [row["id"] for row in labelled["annotations"]] == [row["id"] for row in given["annotations"]]
    with_mask = [row for row in labelled["annotations"] if row.get("segmentation")]
    assert with_mask
    for row, old in zip(labelled["annotations"], given["annotations"], strict=True):
        assert row.items() >= old.items()  # nothing of the person's is lost
    for row in with_mask:
        assert row["weight"] == 1.0
        assert 0.5 <= row["score"] <= 1
        assert row["provenance"] == f"leanmask {folder.name}/1-labels"
    assert check(folder / "2-pseudo").ok
    trained_on = yaml.safe_load((folder / "3-student" / "config.yaml").read_text())
    assert Path(trained_on["data"]["path"]) == folder / "2-pseudo"
    assert json.loads((folder / "2-pseudo" / "quality.json").read_text())["count"] == len(given["annotations"])


def test_a_staged_run_is_used_like_any_other(staged: TrainSummary, pointed: Path, tmp_path: Path) -> None:
    assert evaluate(staged.folder, pointed).metrics["AP"] == pytest.approx(staged.metrics["teacher"]["AP"], abs=1e-6)
    page = write_report([staged.folder], tmp_path / "report.html").read_text()
    assert "1-labels" in page
    assert "3-student" in page


def test_predicted_masks_do_not_move_the_persons_boxes(staged: TrainSummary) -> None:
    files = locate(staged.folder / "2-pseudo")["train"]
    store = AnnotationStore.open(files.annotations, files.images)
    for index in range(len(store)):
        record = store[index]
        for item in place(record, fitted_frame((record.height, record.width), 64)).objects:
            np.testing.assert_allclose(item.box, item.source.box_xyxy, atol=1e-6)


@pytest.mark.parametrize("killed_in", ["labels", "student"])
def test_killed_and_resumed_equals_uninterrupted(
    pointed: Path, staged: TrainSummary, tmp_path: Path, killed_in: str
) -> None:
    def kill(step: int, total: int, note: str) -> None:
        assert total == 4
        if step % 2 == 1 and note.startswith(f"{killed_in}: loss"):
            raise Killed

    out = tmp_path / staged.folder.name
    with pytest.raises(Killed):
        train(pointed, out, settings=SETTINGS, on_progress=kill)
    assert resume(out).steps == 4
    found, expected = (load_file(folder / "best.safetensors") for folder in (out, staged.folder))
    assert all((found[name] == expected[name]).all() for name in expected)
    text = (out / "2-pseudo" / "instances_train.json").read_bytes()
    assert text == (staged.folder / "2-pseudo" / "instances_train.json").read_bytes()


@pytest.mark.parametrize("left", [0, 1, 2])
def test_labelling_goes_on_where_it_was_killed(staged: TrainSummary, pointed: Path, tmp_path: Path, left: int) -> None:
    """Killed after some images, in the middle of a line: nothing is lost, doubled or crossed; two processes agree."""
    loaded = load(staged.folder / "1-labels")
    provenance = f"leanmask {staged.folder.name}/1-labels"
    jobs = [PseudoJob(locate(pointed), "train", provenance, rank, 2) for rank in (0, 1)]
    for job in jobs:
        make_pseudo_masks(loaded, job, tmp_path)
    part = tmp_path / "share-1-of-2.jsonl"
    lines = part.read_text().splitlines(keepends=True)
    part.write_text("".join(lines[:left]) + lines[left][: len(lines[left]) // 2])
    make_pseudo_masks(loaded, jobs[0], tmp_path)
    assert part.read_text().splitlines(keepends=True) == lines
    quality = finish_pseudo_masks(loaded, jobs[0], tmp_path)
    assert quality == json.loads((staged.folder / "2-pseudo" / "quality.json").read_text())
    one, two = (json.loads((f / "instances_train.json").read_text()) for f in (tmp_path, staged.folder / "2-pseudo"))
    assert one == two


def test_sparse_masks_and_rounds(sparse: Path, tmp_path: Path) -> None:
    """True masks stay; the others get pseudo-masks, twice."""
    settings = merge(SETTINGS, {"method": {"rounds": 2, "first": "maskbooster"}, "train": {"steps": 1}})
    summary = train(sparse, tmp_path / "run", settings=settings)
    assert summary.steps == 3
    given = json.loads((sparse / "annotations" / "instances_train.json").read_text())["annotations"]
    drawn = {row["id"]: row["segmentation"] for row in given if row.get("segmentation")}
    for name in ("2-pseudo", "4-pseudo-2"):
        rows = json.loads((summary.folder / name / "instances_train.json").read_text())["annotations"]
        assert all(row["segmentation"] == drawn[row["id"]] for row in rows if row["id"] in drawn)
        assert all("provenance" not in row for row in rows if row["id"] in drawn)
        assert any("provenance" in row for row in rows)


def test_boxes_alone_are_refused_before_anything_is_written(digits: Path, tmp_path: Path) -> None:
    split(digits, tmp_path / "boxes", "boxes")
    with pytest.raises(DataError, match="neither a mask nor classified points"):
        train(tmp_path / "boxes", tmp_path / "run", settings=SETTINGS)
    assert not (tmp_path / "run").exists()


def test_mistakes_are_said_before_anything_is_written(pointed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rounds"):
        train(pointed, tmp_path / "run", settings=merge(SETTINGS, {"method": {"rounds": 0}}))
    with pytest.raises(DataError, match="no split 'trian'"):
        train(pointed, tmp_path / "run", settings=merge(SETTINGS, {"data": {"train_split": "trian"}}))
    assert not (tmp_path / "run").exists()


def test_the_command_line_says_which_stage(leanmask: Callable, pointed: Path, tmp_path: Path) -> None:
    flags = [f"{section}.{key}={value}" for section in ("data", "train") for key, value in TINY[section].items()]
    done = leanmask("train", pointed, "--method", "self_training", "--out", tmp_path / "run", *flags)
    assert done.code == 0, done.err
    assert "trained 6 steps" in done.out
    again = leanmask("train", "--resume", tmp_path / "run")
    assert again.code == 0, again.err


@pytest.mark.parametrize(("until", "again"), [(None, ""), ("pseudo", " --until pseudo")])
def test_an_interrupted_stage_says_how_to_go_on_with_the_whole_run(
    pointed: Path, tmp_path: Path, until: str | None, again: str
) -> None:
    def interrupt(step: int, total: int, note: str) -> None:
        if step == 1 and isinstance(note, LogLine):
            os.kill(os.getpid(), signal.SIGINT)

    settings = merge(SETTINGS, {"train": {"steps": 4}})
    with pytest.raises(RunInterrupted) as stopped:
        train(pointed, tmp_path / "run", settings=settings, until=until, on_progress=interrupt)
    sentence = (
        f"stopped at step 1 of 4; everything is saved; go on with: leanmask train --resume {tmp_path / 'run'}{again}"
    )
    assert str(stopped.value) == sentence


def test_a_stage_that_ends_itself_says_how_to_go_on_with_the_whole_run(pointed: Path, tmp_path: Path) -> None:
    settings = merge(SETTINGS, {"train": {"steps": 4, "max_bad_steps": 1}, "optim": {"lr": 1e30, "warmup_steps": 0}})
    with pytest.raises(TrainingStopped, match="not finite") as stopped:
        train(pointed, tmp_path / "run", settings=settings)
    assert str(stopped.value).endswith(f"leanmask train --resume {tmp_path / 'run'}")
