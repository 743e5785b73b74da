"""The same command under torchrun: two CPU processes train, evaluate and write one run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from leanmask.data.digits import DigitsSpec, write_digits
from leanmask.data.layout import locate
from leanmask.data.splits import split
from leanmask.summary import TrainSummary

SETTINGS = ["model.backbone=tiny", "data.image_size=64", "data.workers=0", "train.batch_size=2", "train.threads=1"]


def two_processes(*arguments: str, verb: str = "train") -> Any:
    """What `leanmask train ... --json`, or another verb, says under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "leanmask"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, verb, *arguments, "--json"], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)  # only the first process speaks


def test_two_processes_write_one_run(sparse: Path, digits: Path, tmp_path: Path) -> None:
    # An untrained network without a floor says something about every image.
    given = ["train.steps=2", "train.eval_every_steps=0", "evaluation.who=[student,teacher]"]
    settings = [*SETTINGS, *given, "model.score_floor=0"]
    assert two_processes(str(sparse), *settings, "--out", str(tmp_path / "run"))["steps"] == 2
    truth = json.loads((digits / "annotations" / "instances_val.json").read_text())
    for who in ("student", "teacher"):
        rows = json.loads((tmp_path / "run" / "evaluation" / who / "coco_instances_results.json").read_text())
        # Every image was predicted, by one of the two processes.
        assert {row["image_id"] for row in rows} == {image["id"] for image in truth["images"]}
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["kind"] == "eval" for line in lines) == 2


def test_two_processes_share_the_stages(digits: Path, tmp_path: Path) -> None:
    """Self-training of Implicit PointRend: both label their part of the images, one writes them all."""
    split(digits, tmp_path / "points", "points-4")
    arguments = ["--model", "implicit_pointrend", "--method", "self_training", "train.steps=1", *SETTINGS]
    found = two_processes(str(tmp_path / "points"), *arguments, "--out", str(tmp_path / "run"))
    assert found["steps"] == 2
    labelled = json.loads((tmp_path / "run" / "2-pseudo" / "instances_train.json").read_text())
    quality = json.loads((tmp_path / "run" / "2-pseudo" / "quality.json").read_text())
    assert quality["count"] == len(labelled["annotations"])
    assert (tmp_path / "run" / "best.safetensors").is_file()


def test_two_processes_share_pointwssis(digits: Path, tmp_path: Path) -> None:
    """Every weak point has one mask, rough and refined, whoever made it; teacher, refiner, student and online teach."""
    split(digits, tmp_path / "weak", "weak-semi-40")
    sizes = ("tower_channels=16", "tower_convs=1", "kernel_channels=16", "mask_channels=16", "fpn_channels=32")
    settings = [*SETTINGS, "train.steps=1", *(f"model.{size}" for size in sizes), "method.refiner={size_px: 32}"]
    arguments = ["--model", "solov2", "--method", "pointwssis", "method.online=true", *settings]
    found = two_processes(str(tmp_path / "weak"), *arguments, "--out", str(tmp_path / "run"))
    assert found["steps"] == 4
    weak = json.loads((tmp_path / "weak" / "annotations" / "instances_train.json").read_text())
    wanted = sorted(row["id"] for row in weak["annotations"])
    for stage in ("5-pseudo", "6-refined"):
        (path,) = (tmp_path / "run" / stage).glob("instances_train_sw*.json")
        rows = json.loads(path.read_text())["annotations"]
        assert sorted(row["id"] for row in rows) == wanted
        assert all(row["segmentation"] for row in rows)


def test_two_processes_learn_from_unlabelled_images(digits: Path, tmp_path: Path) -> None:
    """PL-DC: each process pseudo-labels images of its own, and both learn from all."""
    split(digits, tmp_path / "semi", "semi-25")
    # An untrained teacher believes in little: thresholds at which something is kept at all.
    believing = ("class_quality=0.02", "mask_quality=0.4", "burn_in_fraction=0.25")
    arguments = ["--method", "pldc", "train.steps=4", *SETTINGS, *(f"method.{setting}" for setting in believing)]
    assert two_processes(str(tmp_path / "semi"), *arguments, "--out", str(tmp_path / "run"))["steps"] == 4
    rows = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    assert any(row["losses"].get("loss_unlabelled_mask", 0) > 0 for row in rows if row["kind"] == "train")
    assert any(row["kind"] == "pseudo" for row in rows)


def test_two_processes_label_images_and_write_one_review_page(
    trained: TrainSummary, digits: Path, tmp_path: Path
) -> None:
    images = sorted(locate(digits)["val"].images.glob("val*"))[:4]
    files = ("--out", str(tmp_path / "p.json"), "--review", str(tmp_path / "r.html"))
    trusting = ("--class-quality", "0.02", "--mask-quality", "0.3")
    found = two_processes(str(trained.folder), *map(str, images), *files, *trusting, verb="pseudo")
    rows = json.loads((tmp_path / "p.json").read_text())["annotations"]
    assert found["images"] == len({row["image_id"] for row in rows}) == 4
    assert "<figure>" in (tmp_path / "r.html").read_text()


def test_two_processes_calibrate_one_teacher(tmp_path: Path) -> None:
    """Better labels: one process holds images back and measures the teacher, both wait for it and learn from it."""
    write_digits(tmp_path / "tail", DigitsSpec(train=20, tune=0, val=4, unlabelled=4, size_px=64, longtail=True))
    trusting = ("method.class_quality=0", "method.mask_quality=0", "method.uniform_fraction=0")
    arguments = ["--method", "better_labels", "train.steps=2", *trusting, *SETTINGS]
    found = two_processes(str(tmp_path / "tail"), *arguments, "--out", str(tmp_path / "run"))
    assert found["steps"] == 4
    assert (tmp_path / "run" / "3-calibration" / "calibration.json").is_file()
    assert (tmp_path / "run" / "best.safetensors").is_file()
