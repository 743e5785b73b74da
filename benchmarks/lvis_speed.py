"""How long LVIS evaluation takes beside the `lvis` package, on generated truth and results, in one interleaved run.

    python benchmarks/lvis_speed.py [--out benchmarks/results/lvis_speed.json]

Masks only, from rows in memory; median of three rounds; the numbers of both must agree to 1e-6.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lvis import LVIS, LVISEval, LVISResults

from leanmask.benchmark.commit import commit
from leanmask.benchmark.speed_evaluation import synthetic_results
from leanmask.benchmark.turns import Works, in_turns
from leanmask.devices import machine
from leanmask.evaluation.lvis import evaluate_lvis

Row = dict[str, Any]
IMAGES, DETECTIONS, CLASSES, ROUNDS = 200, 60, 60, 3


def case() -> tuple[Row, list[Row]]:
    """A truth with LVIS's fields, half of the absent classes negative, and results."""
    truth, results = synthetic_results(IMAGES, DETECTIONS, CLASSES, seed=0)
    rng = np.random.default_rng(0)
    for category in truth["categories"]:
        category |= {"frequency": "rcf"[category["id"] % 3], "image_count": 1, "instance_count": 1}
    present: dict[int, set[int]] = {}
    for row in truth["annotations"]:
        present.setdefault(row["image_id"], set()).add(row["category_id"])
    for image in truth["images"]:
        absent = sorted(set(range(1, CLASSES + 1)) - present.get(image["id"], set()))
        image["neg_category_ids"] = [i for i in absent if rng.random() < 0.5]
        image["not_exhaustive_category_ids"] = []
    return truth, results


def reference(truth_file: Path, results: list[Row]) -> float:
    """The package's mask AP; rows without boxes, as detectron2 gives them."""
    logging.disable(logging.WARNING)
    np.float = float  # type: ignore[attr-defined]  # a name that numpy has removed
    truth = LVIS(str(truth_file))
    rows = [{key: value for key, value in row.items() if key != "bbox"} for row in results]
    evaluator = LVISEval(truth, LVISResults(truth, rows), "segm")
    evaluator.run()
    return float(evaluator.results["AP"])


def _ours(truth: Row, results: list[Row]) -> float:
    return evaluate_lvis(truth, results, kinds=("segm",)).metrics["AP"]


def _keep(found: list[float], evaluate: Callable[..., float], *given: Any) -> None:
    found.append(evaluate(*given))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/lvis_speed.json"))
    out = parser.parse_args().out
    truth, results = case()
    found: dict[str, list[float]] = {"ours": [], "lvis": []}
    with tempfile.TemporaryDirectory() as folder:
        truth_file = Path(folder) / "truth.json"
        truth_file.write_text(json.dumps(truth))

        def works() -> Works:
            return {
                "ours": partial(_keep, found["ours"], _ours, truth, copy.deepcopy(results)),
                "lvis": partial(_keep, found["lvis"], reference, truth_file, copy.deepcopy(results)),
            }

        spent = in_turns(works, ROUNDS, warm_up=0)
    assert all(abs(a - b) < 1e-6 for a, b in zip(found["ours"], found["lvis"], strict=True)), found
    ours, theirs = spent["ours"].cpu_median, spent["lvis"].cpu_median
    measured = {
        "images": IMAGES,
        "detections_per_image": DETECTIONS,
        "classes": CLASSES,
        "ours_cpu_seconds": round(ours, 3),
        "lvis_cpu_seconds": round(theirs, 3),
        "ratio": round(theirs / ours, 2),
        "commit": commit(),
        "machine": machine(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(measured, indent=1) + "\n")
    sys.stdout.write(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
