"""Verbs that measure leanmask itself: bench, demo, doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from leanmask.benchmark.annotate import bench_annotate
from leanmask.benchmark.demo import demo as run_demo
from leanmask.benchmark.speed import speed as measure_speed
from leanmask.benchmark.suggest import bench_suggest, require_suggest_arms, seconds_of
from leanmask.benchmark.table import BenchOptions, Row, chosen_arms
from leanmask.benchmark.table import bench as run_bench
from leanmask.cli.shared import Json, app, say
from leanmask.console import output, print_json, progress
from leanmask.errors import ConfigError
from leanmask.machine_check import backbones as list_backbones
from leanmask.machine_check import doctor as examine
from leanmask.reports.tables import render_rich


@app.command(epilog="Examples: leanmask bench sparse-1 points-10 --seeds 3   |   leanmask bench speed")
def bench(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="PROTOCOL... [KEY=VALUE...]",
            help="Protocols, e.g. sparse-1 points-10 suggest-3600, 'speed' or 'annotate'; then settings of every row, "
            "e.g. train.steps=500.",
        ),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 .. N-1.")] = 1,
    arms: Annotated[str | None, typer.Option(help="Comma-separated rows; of speed: what to measure. [all]")] = None,
    data: Annotated[Path | None, typer.Option(help="A fully labelled data set instead of digits.")] = None,
    split: Annotated[str, typer.Option(help="Reported split; 'tune' to choose settings.")] = "val",
    work: Annotated[Path, typer.Option(help="Where data sets and runs are kept.")] = Path("runs/bench"),
    results: Annotated[Path, typer.Option(help="Folder of the raw JSON.")] = Path("benchmarks/results"),
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time, one thread each when above 1.")] = 1,
    model: Annotated[
        str | None, typer.Option(help="What every row trains; mask_rcnn, for weak-semi-P solov2, when left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """A protocol's whole table; rows that are there already are skipped, so it can be built in pieces."""
    protocols = [name for name in what if "=" not in name]
    names = tuple(arms.split(",")) if arms else None
    if protocols in (["speed"], ["annotate"]):
        measured: object = measure_speed(results, names) if protocols == ["speed"] else bench_annotate(results)
        say(as_json, measured, json.dumps(measured, indent=1))
        return
    _require_tables(protocols, names, data)
    options = BenchOptions(
        seeds=seeds,
        arms=names,
        data=data,
        split=split,
        work=work,
        results=results,
        jobs=jobs,
        overrides=tuple(name for name in what if "=" in name),
        model=model,
    )
    rows: list[Row] = []
    for protocol in protocols:
        build = run_bench if seconds_of(protocol) is None else bench_suggest
        with progress(f"bench {protocol}", as_json) as on_progress:
            table = build(protocol, options, on_progress=on_progress)
        rows += [row for row in table.rows if row not in rows]  # tables share their upper bound
        if not as_json:
            output.print(render_rich(table.table))
    if as_json:
        print_json(rows)


def _require_tables(protocols: list[str], arms: tuple[str, ...] | None, data: Path | None) -> None:
    """Raise ConfigError or DataError unless each of the protocols has a table with these arms; better said before the
    hours that the first of them takes.
    """
    if not protocols:
        raise ConfigError("name a protocol before the settings, such as: leanmask bench sparse-1 train.steps=500")
    for protocol in protocols:
        if protocol in ("speed", "annotate"):
            raise ConfigError(f"'{protocol}' is measured alone: leanmask bench {protocol}")
        if seconds_of(protocol) is None:
            chosen_arms(protocol, arms, data)
        else:
            require_suggest_arms(protocol, arms)


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


@app.command(epilog="Examples: leanmask doctor --json   |   leanmask doctor --backbones")
def doctor(
    backbones: Annotated[bool, typer.Option("--backbones", help="List the names that model.backbone takes.")] = False,
    as_json: Json = False,
) -> None:
    """Versions, devices, optional extras, and a tiny forward and backward pass."""
    if backbones:
        names = list_backbones()
        say(as_json, names, "\n".join(names))
        return
    findings = examine()
    say(as_json, findings.to_json(), findings.to_text())
    if not findings.ok:
        raise typer.Exit(1)
