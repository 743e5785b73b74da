"""`make demo`: the main job on the embedded benchmark, from nothing to a table and a report, in a few minutes without a
GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from leanmask.benchmark.table import BenchOptions, bench, run_folders
from leanmask.data.digits import DigitsSpec
from leanmask.errors import RunError
from leanmask.reports.page import write_report
from leanmask.reports.tables import Table

PROTOCOL = "sparse-0.4"  # 16 masks among 4,000 boxes
ARMS = ("baseline", "maskbooster")
STEPS, QUICK_STEPS = 250, 40
# Half of the benchmark's validation images, the same ones: two cores have eight minutes, installing included.
DIGITS, QUICK_DIGITS = DigitsSpec(tune=1, val=250), DigitsSpec(train=300, tune=1, val=60)


@dataclass(frozen=True)
class DemoResult:
    """The comparison table and the report's path."""

    table: Table
    report: Path


def demo(
    out: Path, *, quick: bool = False, jobs: int = 1, on_progress: Callable[..., None] | None = None
) -> DemoResult:
    """Train the sparse baseline and MaskBooster with equally many student updates, and report. An unfinished demo goes
    on.

    Raises RunError when the demo in `out` is finished already.
    """
    report = out / "report.html"
    if report.exists():
        raise RunError(f"{report} is there already: open it, or choose another folder for a new demo")
    steps = QUICK_STEPS if quick else STEPS
    overrides = (f"train.steps={steps}", f"train.eval_every_steps={steps // 2}")
    digits = QUICK_DIGITS if quick else DIGITS
    options = BenchOptions(arms=ARMS, work=out, results=out, jobs=jobs, overrides=overrides, digits=digits)
    table = bench(PROTOCOL, options, on_progress=on_progress)
    write_report(run_folders(PROTOCOL, options), report)
    return DemoResult(table.table, report)
