"""Verbs about data: write the embedded benchmark, check a data set, take labels away, say what labels cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from leanmask.cli.shared import Data, Json, app, say
from leanmask.console import output, print_json, progress
from leanmask.costs import LabelCosts
from leanmask.data.check import check as check_data
from leanmask.data.digits import DigitsSpec, write_digits
from leanmask.data.splits import FORMS, SplitOptions, parse_protocol
from leanmask.data.splits import split as split_data
from leanmask.errors import ConfigError
from leanmask.reports.tables import render_rich
from leanmask.spending import budget as tell_budget


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
    say(as_json, {"out": str(out), "images": train + tune + val + unlabelled}, f"wrote the digits data set to {out}")


@app.command(epilog="Examples: leanmask check mydata   |   leanmask check mydata --fix mydata-fixed")
def check(
    data: Data,
    fix: Annotated[
        Path | None, typer.Option(help="Write a repaired copy of the annotations to this new folder.")
    ] = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="With --fix: repair even where many labels, or all of a kind, are lost.")
    ] = False,
    exif: Annotated[
        str, typer.Option(help="EXIF rotations: error, apply or ignore, as data.exif in training.")
    ] = "error",
    limit: Annotated[int, typer.Option(help="How many problems to print.")] = 50,
    as_json: Json = False,
) -> None:
    """Validate a data set and count what is labelled how. Exit code 1 when it has errors; with --fix, the copy."""
    with progress("checking images", as_json) as on_progress:
        found = check_data(data, fix=fix, drop=drop, exif=exif, on_progress=on_progress)
    if as_json:
        print_json(found.to_json())
    else:
        output.print(found.to_text(limit), markup=False)
    if not found.usable:
        raise typer.Exit(1)


def _share(text: str | float) -> float:
    """A share as people write it: 0.05 or 5%."""
    number = str(text).strip()
    try:
        share = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise typer.BadParameter(f"'{text}' is no share; write a number from 0 to 1, such as 0.05, or 5%")
    return share


def _protocol(name: str | None, points: int | None, val: float | None) -> str | None:
    """The protocol that --protocol, --points or both ask for; None where only --val is asked for."""
    if points is None:
        if name is None and val is None:
            raise ConfigError(
                f"say what to make: --val 20%, or what to keep: --points N, or --protocol {', '.join(FORMS.values())}"
            )
        return name
    wanted = f"points-{points}"
    found, same = (parse_protocol(text) for text in (name or wanted, wanted))
    if (found.kind, found.amount) != (same.kind, same.amount):
        raise ConfigError(f"--protocol {name} and --points {points}, which is --protocol {wanted}, differ; give one")
    return wanted


@app.command(
    epilog="Examples: leanmask split mydata mydata-split --val 20%   |   "
    "leanmask split digits digits-sparse --protocol sparse-1 --seed 0   |   "
    "leanmask split digits digits-points --points 10 --noise 5%"
)
def split(
    data: Data,
    out: Annotated[Path, typer.Argument(help="New folder for the split.")],
    protocol: Annotated[
        str | None, typer.Option(help="full, boxes, sparse-R, points-N, semi-P, weak-semi-P, partial or mixed-T.")
    ] = None,
    points: Annotated[
        int | None, typer.Option(min=1, help="Points per object: the same as --protocol points-N.")
    ] = None,
    val: Annotated[
        float | None,
        typer.Option(
            parser=_share, metavar="SHARE", help="Share of the labelled images to measure on (split val), such as 20%."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    noise: Annotated[
        float,
        typer.Option(parser=_share, metavar="SHARE", help="points-N: share of wrong labels, such as 0.05 or 5%."),
    ] = 0.0,
    noise_where: Annotated[
        str, typer.Option("--noise-where", "--noise-at", help="points-N: wrong ones at 'random' or at the 'boundary'.")
    ] = "random",
    bias: Annotated[
        float, typer.Option(min=0, max=1, help="points-N: share of the points drawn near the mask's boundary.")
    ] = 0.0,
    point_at: Annotated[str, typer.Option(help="weak-semi-P: the point is the 'centre' or 'random'.")] = "centre",
    displaced: Annotated[
        float,
        typer.Option(parser=_share, metavar="SHARE", help="weak-semi-P: share of points that miss their object."),
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Make a validation split, or a partly labelled data set from a fully labelled one; what is taken away is kept."""
    options = SplitOptions(
        point_noise=noise,
        noise_where=noise_where,  # type: ignore[arg-type]
        point_bias=bias,
        point_at=point_at,  # type: ignore[arg-type]
        point_displaced=displaced,
    )
    chosen = _protocol(protocol, points, val)
    with progress("comparing images", as_json) as on_progress:
        summary = split_data(data, out, chosen, val=val, seed=seed, options=options, on_progress=on_progress)
    say(as_json, summary.to_json(), summary.to_text())


@app.command(
    epilog="Examples: leanmask budget mydata --hours 40   |   leanmask budget coco --spotting 43.2 --json   |   "
    "leanmask budget photos --objects-per-image 5 --hours 40"
)
def budget(
    data: Data,
    hours: Annotated[float | None, typer.Option(help="Hours of labelling: also say what these buy.")] = None,
    spotting: Annotated[
        float, typer.Option(help="Seconds to find an object and name its class, on top of any label; 43.2 on COCO.")
    ] = 0.0,
    objects: Annotated[
        int | None, typer.Option(help="Objects in all; needed where images are not annotated exhaustively.")
    ] = None,
    per_image: Annotated[
        float | None, typer.Option("--objects-per-image", help="Instead of --objects: so many on average.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which split. [default: train; of a folder of images alone, all of them]")
    ] = None,
    as_json: Json = False,
) -> None:
    """What labels cost: those that are there, those of every object under each scheme, and what hours of work buy."""
    costs = LabelCosts(spotting_seconds=spotting)
    with progress("pricing labels", as_json) as on_progress:
        found = tell_budget(
            data,
            hours=hours,
            costs=costs,
            split=split,
            objects=objects,
            objects_per_image=per_image,
            on_progress=on_progress,
        )
    if as_json:
        print_json(found.to_json())
        return
    output.print(found.summary(), markup=False)
    for table in found.tables():
        output.print(render_rich(table))
