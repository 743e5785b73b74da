"""The same command under torchrun: two CPU processes train, evaluate and write one run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_two_processes_write_one_run(sparse: Path, digits: Path, tmp_path: Path) -> None:
    settings = ["data.image_size=64", "data.workers=0", "train.batch_size=2", "train.threads=1", "train.steps=2"]
    settings.append("model.score_floor=0")  # an untrained network says something about every image
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "leanmask"]
    arguments = ["train", str(sparse), *settings, "--out", str(tmp_path / "run"), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["steps"] == 2  # only the first process speaks
    truth = json.loads((digits / "annotations" / "instances_val.json").read_text())
    for who in ("student", "teacher"):
        rows = json.loads((tmp_path / "run" / "evaluation" / who / "coco_instances_results.json").read_text())
        # Every image was predicted, by one of the two processes.
        assert {row["image_id"] for row in rows} == {image["id"] for image in truth["images"]}
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["kind"] == "eval" for line in lines) == 2
