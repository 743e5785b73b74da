"""What PL-DC's settings do on `tune`: both thresholds, the EMA, the weight of unlabelled images; and how far class and
mask quality can be trusted.

    python benchmarks/semi_sweeps.py thresholds ema weight --jobs 2
    python benchmarks/semi_sweeps.py --trust --out semi_trust.json

A sweep's rows go where `leanmask bench` keeps them (`tune-semi-5.json`; those of networks from scratch are in
`benchmarks/results/from-scratch/`), with their overrides; finished ones are skipped and interrupted ones continued.
`--trust` labels the unlabelled images with both thresholds at 0, by the arm's own run, and measures that against the
hidden truth. Both end with JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from leanmask.benchmark.arms import SEMI
from leanmask.benchmark.commit import commit
from leanmask.benchmark.table import BenchOptions, Row, bench, run_folders
from leanmask.data.coco import write_json
from leanmask.data.files import read_json
from leanmask.data.layout import locate
from leanmask.errors import LeanmaskError
from leanmask.evaluation.trust import quality
from leanmask.inference.pseudo_images import PseudoOptions, pseudo

_ARM = SEMI["pldc"].settings["method"]

# The shapes of the published tables. () is the arm as it is, which the sweeps share: trained once. In a training this
# short the teacher's average is bounded by its warm-up, so `ema` takes warm-ups of other lengths, and keeps without
# one (1).
SWEEPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "thresholds": tuple(
        ()
        if (class_quality, mask_quality) == (_ARM["class_quality"], _ARM["mask_quality"])
        else (f"method.class_quality={class_quality}", f"method.mask_quality={mask_quality}")
        for class_quality in (0.3, 0.5, 0.7, 0.9)
        for mask_quality in (0.5, 0.7, 0.9)
    ),
    "ema": (
        (),
        *((f"method.ema_warmup_steps={steps}",) for steps in (5, 40)),
        *(("method.ema_warmup_steps=1", f"method.ema_keep={keep}") for keep in (0.9, 0.99, 0.999, 0.9996)),
    ),
    "weight": ((), *((f"method.unlabelled_weight={weight}",) for weight in (0.5, 2.0, 4.0, 8.0))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="SWEEP or KEY=VALUE", help=f"{', '.join(SWEEPS)}; settings of all")
    parser.add_argument("--trust", action="store_true")
    parser.add_argument("--protocol", default="semi-5")
    parser.add_argument("--arm", default="pldc")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=BenchOptions.work)
    parser.add_argument("--results", type=Path, default=BenchOptions.results)
    parser.add_argument("--out", type=Path, help="file for the JSON of --trust")
    told = parser.parse_args()
    sweeps = [name for name in told.what if "=" not in name]
    if unknown := [name for name in sweeps if name not in SWEEPS]:
        parser.error(f"there is no sweep '{unknown[0]}'; sweeps: {', '.join(SWEEPS)}")
    if not sweeps and not told.trust:
        parser.error(f"name a sweep ({', '.join(SWEEPS)}) or --trust")
    options = BenchOptions(
        seeds=told.seeds,
        arms=(told.arm,),
        split="tune",
        work=told.work,
        results=told.results,
        jobs=told.jobs,
        overrides=tuple(name for name in told.what if "=" in name),
    )
    try:
        found: dict[str, Any] = {name: sweep(told.protocol, SWEEPS[name], options) for name in sweeps}
        if told.trust:
            found["trust"] = trust(told.protocol, options)
    except LeanmaskError as error:  # such as a misspelt setting, or Ctrl-C in a training, which is saved
        parser.error(str(error))
    except KeyboardInterrupt:  # elsewhere
        parser.exit(130, "stopped by Ctrl-C\n")
    if told.trust and told.out:
        write_json(told.out, found["trust"], overwrite=True)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


def sweep(protocol: str, points: Sequence[Sequence[str]], options: BenchOptions) -> list[Row]:
    """The rows of one sweep: of every point (dotted settings, on top of the options' own) each arm and seed."""
    tables = [bench(protocol, replace(options, overrides=(*options.overrides, *point))) for point in points]
    return [row for table in tables for row in table.rows]


def trust(protocol: str, options: BenchOptions) -> dict[str, Any]:
    """How class and mask quality of everything the first arm's first run says of the unlabelled images relate to truth;
    trains that run where it is not there yet.
    """
    one = replace(options, seeds=1)
    (row,) = bench(protocol, one).rows
    (run,) = run_folders(protocol, one)
    data = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]["path"]
    files = locate(data)["unlabelled"]
    assert files.truth is not None, "a split of a benchmark keeps the truth of what it hides"
    images = [files.images / image["file_name"] for image in read_json(files.truth)["images"]]
    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder) / "pseudo.json"
        pseudo(run, images, labels, PseudoOptions(class_quality=0.0, mask_quality=0.0, area_px=0))
        measured = quality(labels, files.truth).to_json()
    same = ("protocol", "arm", "model", "seed", "steps", "overrides", "note", "machine")
    return {"what": "semi_trust", **{key: row[key] for key in same if key in row}, "commit": commit(), **measured}


if __name__ == "__main__":
    main()
