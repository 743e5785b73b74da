"""The verbs that plan: a training, and what to label next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanmask.cli.shared import (
    Data,
    Json,
    Overrides,
    Unlabelled,
    Weights,
    app,
    named_settings,
    of_unlabelled,
    tell_changes,
)
from leanmask.config import load_yaml, merge
from leanmask.console import output, print_json, progress
from leanmask.costs import LabelCosts
from leanmask.data.layout import photo_folder
from leanmask.errors import RunError
from leanmask.planning.plan import plan as make_plan
from leanmask.suggestions import SuggestOptions, free_queue
from leanmask.suggestions import suggest as rank_labels


@app.command(
    epilog="Examples: leanmask plan mydata   |   leanmask plan mydata --minutes 60 --out plan.yaml, then "
    "leanmask train mydata --config plan.yaml --out runs/a"
)
def plan(
    data: Data,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="File for `train --config`; must not exist yet.")] = None,
    method: Annotated[str | None, typer.Option(help="[default: what fits the labels]")] = None,
    model: Annotated[str | None, typer.Option(help="[default: mask_rcnn; solov2 for pointwssis]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Student updates.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Instead of --steps: passes over the labelled images.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="The longest that the training may take. [default: 20, on a GPU no limit]")
    ] = None,
    unlabelled: Unlabelled = None,
    weights: Weights = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings that are kept.")] = None,
    as_json: Json = False,
) -> None:
    """The settings that `train` would choose for these data on this machine, each with its reason."""
    if out is not None and out.exists():
        raise RunError(f"{out} exists already and is never overwritten; give another name")
    tell_changes(data)
    made = make_plan(
        data,
        settings=merge(load_yaml(config) if config else {}, of_unlabelled(unlabelled)),
        overrides=[*named_settings(method, model, steps, epochs), *(overrides or ())],
        weights=weights,
        minutes=minutes,
    )
    if out is not None:
        made.write(out)
    if as_json:
        print_json(made.to_json())
        return
    output.print(made.to_text(), markup=False, soft_wrap=True)
    if out is not None:
        output.print(f"train with it: leanmask train {data} --config {out} --out RUN", markup=False, soft_wrap=True)


@app.command(
    epilog="Examples: leanmask suggest mydata --hours 4   |   "
    "leanmask suggest mydata --run runs/a --hours 4 --out queue.json, then leanmask annotate mydata --queue queue.json"
)
def suggest(
    data: Data,
    hours: Annotated[float, typer.Option(help="Hours of labelling to plan.")],
    run: Annotated[Path | None, typer.Option(help="Run whose doubts count; without one, rarity and diversity.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Queue file to write; must not exist yet. [default: in DATA's labelling folder]")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which split. [default: train; of a folder of images all but val]")
    ] = None,
    points: Annotated[int, typer.Option(min=1, help="Classified points per object.")] = 10,
    no_masks: Annotated[bool, typer.Option("--no-masks", help="Only what the annotation page collects.")] = False,
    spotting: Annotated[float, typer.Option(help="Seconds to find an object and name its class, for boxes.")] = 0.0,
    expected: Annotated[
        float | None, typer.Option(help="Objects on an image without labels. [default: as on the others]")
    ] = None,
    exif: Annotated[
        str | None,
        typer.Option(help="EXIF rotations: error, apply or ignore. [default: error; of a folder of images apply]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """What to label next: objects and images by expected gain per second, each with its reason in a sentence."""
    options = SuggestOptions(
        hours=hours,
        run=run,
        split=split,
        points=points,
        masks=not no_masks,
        costs=LabelCosts(spotting_seconds=spotting),
        expected_objects=expected,
        exif=exif,  # type: ignore[arg-type]
    )
    queue = out or free_queue(data)
    with progress("looking at images", as_json) as on_progress:
        found = rank_labels(data, options, out=queue, on_progress=on_progress)
    if as_json:
        print_json({**found.to_json(), "queue": str(queue)})
        return
    output.print(found.to_text(), markup=False)
    where = "" if split in (None, "train") or photo_folder(data) is not None else f" --split {split}"
    if not found.items:
        return
    # A command that is copied must not be broken into lines.
    output.print(f"label it: leanmask annotate {data}{where} --queue {queue}", markup=False, soft_wrap=True)
