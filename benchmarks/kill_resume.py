"""Kill a training with SIGKILL at random moments, resume it each time, and compare its weights with an undisturbed run.

    python benchmarks/kill_resume.py --kills 10 --steps 400 --out benchmarks/results/kill_resume.json

Prints and writes JSON: the step and second of every kill, and whether student, teacher and optimiser ended identical.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from leanmask.benchmark.commit import commit
from leanmask.data.digits import DigitsSpec, write_digits
from leanmask.data.splits import split

SETTINGS = ("data.image_size=96", "data.workers=1", "train.batch_size=4", "train.threads=1", "evaluation.who=[teacher]")

KILL_AFTER_SECONDS = (4.0, 9.0)  # starting takes about five: some kills come before the first step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options.kills, options.steps)
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if options.out:
        options.out.write_text(text, encoding="utf-8")


def measure(folder: Path, kills: int, steps: int) -> dict[str, Any]:
    """Train undisturbed, then with `kills` kills at random moments, and compare the last checkpoints."""
    write_digits(folder / "digits", DigitsSpec(train=64, tune=1, val=8, size_px=96))
    split(folder / "digits", folder / "sparse", "sparse-10")
    whole, disturbed = folder / "whole", folder / "disturbed"
    settings = (*SETTINGS, f"train.steps={steps}", "train.checkpoint_every_steps=5", "train.log_every_steps=1")
    begin = ("train", str(folder / "sparse"), *settings, "--out")
    subprocess.run(_command(*begin, whole), check=True, capture_output=True)
    rng, moments = random.Random(0), []
    resumed = ("train", "--resume")
    for number in range(kills):
        arguments = (*begin, disturbed) if not (disturbed / "config.yaml").exists() else (*resumed, disturbed)
        process = subprocess.Popen(_command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait = rng.uniform(*KILL_AFTER_SECONDS)
        try:
            process.wait(wait)
            break  # finished before it could be killed
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        moments.append({"kill": number + 1, "after_seconds": round(wait, 2), "at_step": _last_step(disturbed)})
    subprocess.run(_command(*resumed, disturbed), check=True, capture_output=True)
    found = {path.name: _hash(path) for path in sorted((whole / "checkpoints" / "last").glob("*.safetensors"))}
    again = {name: _hash(disturbed / "checkpoints" / "last" / name) for name in found}
    return {
        "what": "kill_resume",
        "kills": moments,
        "steps": steps,
        "identical": {name: found[name] == again[name] for name in found},
        "commit": commit(),
        "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}",
    }


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "leanmask", *map(str, arguments)]


def _last_step(run: Path) -> int:
    """The last step in the journal, whose last line may be half written."""
    path = run / "journal.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (json.JSONDecodeError, KeyError):
            continue
    return 0


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
