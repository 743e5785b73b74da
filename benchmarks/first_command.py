"""Rows of what `leanmask train DATA --out RUN` makes, with nothing set: reads finished runs.

leanmask train nuclei --out runs/nuclei        # and so on, at the commit that is named
python benchmarks/first_command.py runs/* --commit COMMIT [--out benchmarks/results/first_command.json]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from leanmask.benchmark.table import add_row
from leanmask.settings import load_config

METRICS = ("AP", "AP50", "AP75", "AP_100dets", "box_AP")
MACHINE = ("processor", "capability", "threads", "torch")


def row_of(run: Path, commit: str) -> dict[str, Any]:
    """What a run is, without any path of the machine. Metrics are of the network that `best.safetensors` holds, as
    evaluated last.
    """
    config = load_config(run)
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    measured = [event for event in events if event["kind"] == "eval" and "AP" in event["metrics"]]
    best = max(measured, key=lambda event: event["metrics"]["AP"])
    seconds = [event["seconds_step"] for event in events if event["kind"] == "train"]
    found = json.loads((run / "env.json").read_text(encoding="utf-8"))
    return {
        "data": Path(config.data.path).name,
        "command": f"leanmask train {Path(config.data.path).name} --out RUN",
        "method": config.method.name,  # type: ignore[attr-defined]
        "model": f"{config.model.name} {config.model.backbone}",  # type: ignore[attr-defined]
        "image_size": config.data.image_size,
        "steps": config.train.steps,
        "seed": config.train.seed,
        "who": best["who"],
        "step": best["step"],
        "metrics": {name: best["metrics"][name] for name in METRICS if name in best["metrics"]},
        "seconds_step": round(sum(seconds) / len(seconds), 3),
        "machine": {name: found[name] for name in MACHINE} | {"precision": config.train.precision},
        "commit": commit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--commit", required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/first_command.json"))
    given = parser.parse_args()
    for run in given.runs:
        row = row_of(run, given.commit)
        sys.stdout.write(f"{row['data']}: {row['steps']} steps, AP {100 * row['metrics']['AP']:.1f}\n")
        add_row(given.out, row)


if __name__ == "__main__":
    main()
