"""The same command under torchrun: two CPU processes train, evaluate and write one run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import TINY

from leanmask.config import merge
from leanmask.run import train


def test_two_processes_write_one_run(sparse: Path, tmp_path: Path) -> None:
    settings = ["data.image_size=64", "data.workers=0", "train.batch_size=2", "train.threads=1", "train.steps=2"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "leanmask"]
    arguments = ["train", str(sparse), *settings, "--out", str(tmp_path / "run"), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    alone = train(sparse, tmp_path / "alone", settings=merge(TINY, {"train": {"steps": 2}}))
    for who in ("student", "teacher"):
        path = Path("evaluation") / who / "coco_instances_results.json"
        both = json.loads((tmp_path / "run" / path).read_text())
        one = json.loads((alone.folder / path).read_text())
        # Every image was predicted by one of the two processes.
        assert {row["image_id"] for row in both} == {row["image_id"] for row in one}
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["kind"] == "eval" for line in lines) == 2
