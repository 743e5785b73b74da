"""The command line: thin verbs over the Python functions of the same names. Only this file prints and exits.

Exit codes: 0 done; 1 the check found errors or a measurement is incomplete; 2 a mistake the user can mend, said in a
sentence.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from leanmask import __version__
from leanmask.bench.demo import demo as run_demo
from leanmask.bench.speed import speed as measure_speed
from leanmask.bench.table import BenchOptions
from leanmask.bench.table import bench as run_bench
from leanmask.console import messages, output, print_json, progress
from leanmask.data.check import check as check_data
from leanmask.data.digits import DigitsSpec, write_digits
from leanmask.data.splits import SplitOptions
from leanmask.data.splits import split as split_data
from leanmask.doctor import doctor as examine
from leanmask.errors import ConfigError, LeanmaskError
from leanmask.inference import PredictOptions
from leanmask.inference import evaluate as run_evaluate
from leanmask.inference import predict as run_predict
from leanmask.reports.page import write_report
from leanmask.reports.tables import class_table, render_rich
from leanmask.run import resume as run_resume
from leanmask.run import train as run_train

app = typer.Typer(
    name="leanmask",
    help="Train instance segmentation from the labels you can afford: masks, boxes, points, nothing.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output, nothing else.")]
Data = Annotated[Path, typer.Argument(help="Data set: a folder in COCO's or Roboflow's layout, or a data YAML.")]
Out = Annotated[Path, typer.Option("--out", help="Where to write; must not exist yet.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as dotted.key=value, e.g. train.seed=1 augment.strong=false.")
]


def _version(value: bool) -> None:
    if value:
        output.print(f"leanmask {__version__}")
        raise typer.Exit


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    pass


@app.command(epilog="Example: leanmask digits digits --train 1000 --val 500")
def digits(
    out: Annotated[Path, typer.Argument(help="New folder for the data set.")],
    train: Annotated[int, typer.Option(min=0, help="Training images.")] = 1000,
    tune: Annotated[int, typer.Option(min=0, help="Images to choose hyper-parameters on.")] = 250,
    val: Annotated[int, typer.Option(min=0, help="Validation images.")] = 500,
    unlabelled: Annotated[int, typer.Option(min=0, help="Unlabelled images.")] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    size: Annotated[int, typer.Option(min=32, help="Side of an image, pixels.")] = 128,
    longtail: Annotated[bool, typer.Option(help="Class frequencies with a long tail.")] = False,
    as_json: Json = False,
) -> None:
    """Write the embedded benchmark, handwritten digits in photographs, as a COCO data set."""
    spec = DigitsSpec(
        train=train, tune=tune, val=val, unlabelled=unlabelled, seed=seed, size_px=size, longtail=longtail
    )
    with progress("writing images", as_json) as report:
        write_digits(out, spec, report)
    _done(as_json, {"out": str(out), "images": train + tune + val + unlabelled}, f"wrote the digits data set to {out}")


@app.command(epilog="Examples: leanmask check mydata   |   leanmask check mydata --fix mydata-fixed")
def check(
    data: Data,
    fix: Annotated[
        Path | None, typer.Option(help="Write a repaired copy of the annotations to this new folder.")
    ] = None,
    exif: Annotated[
        str, typer.Option(help="EXIF rotations: error, apply or ignore, as data.exif in training.")
    ] = "error",
    limit: Annotated[int, typer.Option(help="How many problems to print.")] = 50,
    as_json: Json = False,
) -> None:
    """Validate a data set and count what is labelled how. Exit code 1 when there are errors."""
    with progress("checking images", as_json) as on_progress:
        found = check_data(data, fix=fix, exif=exif, on_progress=on_progress)
    if as_json:
        print_json(found.to_json())
    else:
        output.print(found.to_text(limit), markup=False)
    if not found.ok:
        raise typer.Exit(1)


@app.command(epilog="Example: leanmask split digits digits-sparse --protocol sparse-1 --seed 0")
def split(
    data: Data,
    out: Annotated[Path, typer.Argument(help="New folder for the split.")],
    protocol: Annotated[
        str, typer.Option(help="full, boxes, sparse-R, points-N, semi-P, weak-semi-P, partial or mixed-T.")
    ],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    noise: Annotated[float, typer.Option(min=0, max=1, help="points-N: share of points with a wrong label.")] = 0.0,
    noise_at: Annotated[str, typer.Option(help="points-N: wrong ones at 'random' or at the 'boundary'.")] = "random",
    point_at: Annotated[str, typer.Option(help="weak-semi-P: the point is the 'centre' or 'random'.")] = "centre",
    as_json: Json = False,
) -> None:
    """Make a partly labelled data set from a fully labelled one; what is taken away is kept apart to measure by."""
    options = SplitOptions(point_noise=noise, noise_at=noise_at, point_at=point_at)  # type: ignore[arg-type]
    summary = split_data(data, out, protocol, seed=seed, options=options)
    _done(as_json, summary.to_json(), summary.to_text())


@app.command(
    epilog="Examples: leanmask train mydata --method maskbooster --out runs/a --steps 3000 train.seed=1   |   "
    "leanmask train --resume runs/a"
)
def train(
    data: Annotated[Path | None, typer.Argument(help="Data set: a folder or a data YAML.")] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="New run folder.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this interrupted run.")] = None,
    method: Annotated[str | None, typer.Option(help="supervised or maskbooster. [default: maskbooster]")] = None,
    model: Annotated[str | None, typer.Option(help="mask_rcnn. [default: mask_rcnn]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Student updates.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    as_json: Json = False,
) -> None:
    """Train a model. The same command under torchrun uses many GPUs or machines."""
    with progress("training", as_json) as report:

        def on_progress(step: int, total: int, note: str) -> None:
            if step == 0:
                messages.print(note, markup=False, soft_wrap=True)
            report(step, total, note if step else "")

        if resume is not None:
            summary = run_resume(resume, on_progress=on_progress)
        elif data is None or out is None:
            raise ConfigError("name a data set and a new run folder: leanmask train DATA --out RUN")
        else:
            named = [f"{key}={value}" for key, value in _named(method, model, steps) if value is not None]
            summary = run_train(
                data, out, config=config, overrides=[*named, *(overrides or ())], on_progress=on_progress
            )
    _done(as_json, summary.to_json(), summary.to_text())


def _named(method: str | None, model: str | None, steps: int | None) -> list[tuple[str, Any]]:
    return [("method.name", method), ("model.name", model), ("train.steps", steps)]


@app.command(epilog="Examples: leanmask evaluate runs/a mydata   |   leanmask evaluate results.json mydata --split val")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, weights file, or a COCO results file.")],
    data: Data,
    split: Annotated[str, typer.Option(help="Which split of the data set.")] = "val",
    as_json: Json = False,
) -> None:
    """COCO average precision, with the twelve numbers and a table per class."""
    with progress("evaluating", as_json) as on_progress:
        evaluation = run_evaluate(run, data, split=split, on_progress=on_progress)
    if as_json:
        print_json(evaluation.to_json())
        return
    output.print(evaluation.summary, markup=False)
    output.print(render_rich(class_table(evaluation.per_class)))
    for note in evaluation.notes:
        messages.print(note, markup=False)


@app.command(epilog="Example: leanmask predict runs/a photos/*.jpg --out predictions")
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    images: Annotated[list[Path], typer.Argument(help="Images or folders of images.")],
    out: Out,
    score: Annotated[float, typer.Option(min=0, max=1, help="Draw and write objects from this score on.")] = 0.5,
    overlays: Annotated[bool, typer.Option(help="Write pictures with the masks drawn in.")] = True,
    as_json: Json = False,
) -> None:
    """Segment images: COCO results in your own category ids, and overlay pictures."""
    with progress("predicting", as_json) as on_progress:
        summary = run_predict(run, images, out, PredictOptions(score=score, overlays=overlays), on_progress=on_progress)
    _done(as_json, summary.to_json(), summary.to_text())


@app.command(epilog="Example: leanmask report runs/baseline runs/maskbooster --out report.html")
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, shown side by side.")],
    out: Out = Path("report.html"),
    as_json: Json = False,
) -> None:
    """Write one HTML page: census, curves, per-class AP, pictures, pseudo-label quality."""
    page = write_report(runs, out)
    _done(as_json, {"out": str(page)}, f"wrote {page}")


@app.command(epilog="Examples: leanmask bench sparse-1 --seeds 3   |   leanmask bench speed")
def bench(
    protocol: Annotated[str, typer.Argument(help="A protocol, e.g. sparse-1, or 'speed'.")],
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 .. N-1.")] = 1,
    arms: Annotated[str | None, typer.Option(help="Comma-separated rows; all when left out.")] = None,
    data: Annotated[Path | None, typer.Option(help="A fully labelled data set instead of digits.")] = None,
    split: Annotated[str, typer.Option(help="Reported split; 'tune' to choose settings.")] = "val",
    work: Annotated[Path, typer.Option(help="Where data sets and runs are kept.")] = Path("runs/bench"),
    results: Annotated[Path, typer.Option(help="Folder of the raw JSON.")] = Path("benchmarks/results"),
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time, one thread each when above 1.")] = 1,
    as_json: Json = False,
) -> None:
    """A protocol's whole table; rows that are there already are skipped, so it can be built in pieces."""
    if protocol == "speed":
        rows = measure_speed(results)
        _done(as_json, rows, json.dumps(rows, indent=1))
        return
    names = tuple(arms.split(",")) if arms else None
    options = BenchOptions(
        seeds=seeds,
        arms=names,
        data=data,
        split=split,
        work=work,
        results=results,
        jobs=jobs,
        overrides=tuple(overrides or ()),
    )
    with progress(f"bench {protocol}", as_json) as on_progress:
        table = run_bench(protocol, options, on_progress=on_progress)
    if as_json:
        print_json(table.rows)
    else:
        output.print(render_rich(table.table))


@app.command(epilog="Example: leanmask demo demo --quick")
def demo(
    out: Annotated[Path, typer.Argument(help="New or unfinished demo folder.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="The same path in under two minutes.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time.")] = 1,
) -> None:
    """The main job on the embedded benchmark: data, sparse split, baseline and MaskBooster, table and report."""
    with progress("demo") as on_progress:
        result = run_demo(out, quick=quick, jobs=jobs, on_progress=on_progress)
    output.print(render_rich(result.table))
    output.print(f"report: {result.report}", markup=False)


@app.command(epilog="Example: leanmask doctor --json")
def doctor(as_json: Json = False) -> None:
    """Versions, devices, optional extras, and a tiny forward and backward pass."""
    findings = examine()
    _done(as_json, findings.to_json(), findings.to_text())
    if not findings.ok:
        raise typer.Exit(1)


def _done(as_json: bool, content: Any, text: str) -> None:
    if as_json:
        print_json(content)
    else:
        output.print(text, markup=False)


def main() -> None:
    """Entry point: a user's mistake becomes a sentence and exit code 2, never a traceback."""
    try:
        app()
    except LeanmaskError as error:
        _complain(str(error))
        sys.exit(2)


def _complain(message: str) -> None:
    if "--json" in sys.argv:
        print_json({"error": message})
    messages.print(f"error: {message}", style="red", markup=False, soft_wrap=True)
