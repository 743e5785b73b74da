"""How far the scores of networks can be trusted, as numbers and as one picture: `bench longtail`'s calibration in full.

    python benchmarks/longtail_reliability.py NAME=RUN [NAME=RUN ...] [--out FILE] [--figure FILE]

RUN: a finished run folder, or a stage of one (`RUN/2-teacher`), that was evaluated with `evaluation.calibration=true`;
NAME: what it is called. Per run: the expected calibration error, the bins of the reliability diagram, and the signed
error of every class, all of the results on the reported split.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from leanmask.benchmark.commit import commit
from leanmask.data.files import write_json
from leanmask.devices import machine
from leanmask.errors import RunError
from leanmask.reports.calibration import draw_reliability
from leanmask.reports.collect import read_run, section


def measured(name: str, folder: Path) -> dict[str, Any]:
    """One row. Raises RunError for a folder that is no run, or was never evaluated with calibration."""
    run = read_run(folder)
    kept = run.kept
    if kept is None or not kept.calibration:
        raise RunError(f"{folder} was not evaluated with evaluation.calibration=true")
    split = section(run.config, "data").get("val_split") or "val"
    return _rounded({"name": name, "run": str(folder), "who": kept.who, "split": split, **kept.calibration})


def _rounded(value: Any) -> Any:
    """The same with all numbers to five decimals, also within lists and mappings."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/longtail_reliability.json"))
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    try:
        pairs = [(name, folder) for name, _, folder in (told.partition("=") for told in options.runs)]
        rows = [measured(name, Path(folder)) for name, folder in pairs]
        if options.figure:
            draw_reliability({row["name"]: row for row in rows}, options.figure)
    except RunError as error:
        sys.exit(str(error))
    write_json(options.out, [{**row, "commit": commit(), "machine": machine()} for row in rows], overwrite=True)
    sys.stdout.write(json.dumps({row["name"]: row["ece"] for row in rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
