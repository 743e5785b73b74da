"""Verbs about runs: train, evaluate, predict, pseudo, refine, report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from leanmask.cli.shared import (
    Data,
    Json,
    Out,
    Overrides,
    Unlabelled,
    Weights,
    app,
    named_settings,
    of_unlabelled,
    say,
    tell_changes,
)
from leanmask.config import load_yaml, merge
from leanmask.console import messages, output, print_json, progress
from leanmask.engine.distributed import start_processes
from leanmask.errors import ConfigError
from leanmask.evaluation.trust import quality as measure_quality
from leanmask.inference.predict import EvaluateOptions, PredictOptions
from leanmask.inference.predict import evaluate as run_evaluate
from leanmask.inference.predict import predict as run_predict
from leanmask.inference.pseudo_images import PseudoOptions, PseudoSummary
from leanmask.inference.pseudo_images import pseudo as write_pseudo
from leanmask.inference.pseudo_points import PointOptions, PointSummary
from leanmask.inference.pseudo_points import pseudo_points as write_pseudo_points
from leanmask.inference.refine import RefineOptions
from leanmask.inference.refine import refine as run_refine
from leanmask.methods import METHODS, STAGED
from leanmask.models import MODELS
from leanmask.reports.calibration import calibration_tables, draw_reliability
from leanmask.reports.outcomes import outcome_table
from leanmask.reports.overlays import LONGEST_PX
from leanmask.reports.page import write_report
from leanmask.reports.review import write_review
from leanmask.reports.tables import class_table, render_rich
from leanmask.reports.trust import NAMES, bin_table, correlation_table, draw_trust, overall_table
from leanmask.run import resume as run_resume
from leanmask.run import train as run_train


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


@app.command(
    epilog="Examples: leanmask train mydata --method maskbooster --out runs/a --steps 3000 train.seed=1   |   "
    "leanmask train --resume runs/a"
)
def train(
    context: typer.Context,
    data: Annotated[Path | None, typer.Argument(help="Data set: a folder or a data YAML.")] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="New run folder.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run; with --steps to another length.")] = None,
    until: Annotated[
        str | None, typer.Option(help="Of a method of several stages, the last to do now; --resume does the others.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help=f"{_listed(METHODS | STAGED)}. [default: what fits the labels]")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"{_listed(MODELS)}. [default: mask_rcnn; solov2 for pointwssis]")
    ] = None,
    weights: Weights = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Student updates, with --resume of the whole run.")] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Instead of --steps: passes over the labelled training images.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="The longest that the training may take. [default: 20, on a GPU no limit]")
    ] = None,
    unlabelled: Unlabelled = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings, such as a plan's.")] = None,
    plan: Annotated[
        bool, typer.Option("--plan/--no-plan", help="Choose what is not set for these data, or take fixed defaults.")
    ] = True,
    accept_new_data: Annotated[
        bool, typer.Option("--accept-new-data", help="With --resume: although the run's data have changed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a model. The same command under torchrun uses many GPUs or machines."""
    if resume is not None:
        _refuse_beside_resume(context, data, overrides)
    with progress("training", as_json) as on_progress:
        if resume is not None:
            summary = run_resume(
                resume,
                steps=steps,
                until=until,
                accept_new_data=accept_new_data,
                on_progress=on_progress,
                tell=_say,
            )
        elif accept_new_data:
            raise ConfigError("--accept-new-data is for a run that goes on; name it with --resume RUN")
        elif data is None or out is None:
            raise ConfigError("name a data set and a new run folder: leanmask train DATA --out RUN")
        else:
            summary = run_train(
                data,
                out,
                settings=merge(load_yaml(config) if config else {}, of_unlabelled(unlabelled)),
                overrides=[*named_settings(method, model, steps, epochs), *(overrides or ())],
                weights=weights,
                plan=plan,
                minutes=minutes,
                until=until,
                on_progress=on_progress,
                tell=_say,
            )
    say(as_json, summary.to_json(), summary.to_text())


_WITH_RESUME = ("resume", "steps", "until", "accept_new_data", "as_json")


def _refuse_beside_resume(context: typer.Context, data: Path | None, overrides: list[str] | None) -> None:
    """Raises ConfigError that names everything of the command line that a run which goes on cannot take."""
    named = [f"'{each}'" for each in (data, *(overrides or ())) if each is not None]
    options = (name for name in context.params if name not in (*_WITH_RESUME, "data", "overrides"))
    named += [f"--{'no-' * (context.params[name] is False)}{name}" for name in options if _was_named(context, name)]
    if named:
        raise ConfigError(
            f"--resume goes on with the run's own data and settings and takes only --steps and --until beside it, not "
            f"{', '.join(named)}"
        )


def _was_named(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)  # an enum of click, or of the click that newer typers carry
    return source is not None and source.name == "COMMANDLINE"


def _say(sentence: str) -> None:
    messages.print(sentence, markup=False, soft_wrap=True)


@app.command(
    epilog="Examples: leanmask evaluate runs/a mydata   |   leanmask evaluate results.json mydata --split val   |   "
    "leanmask evaluate runs/a mydata --protocol lvis --calibration   |   "
    "leanmask evaluate runs/a mydata --iou box"
)
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, weights file, or a COCO results file.")],
    data: Data,
    split: Annotated[str, typer.Option(help="Which split of the data set.")] = "val",
    protocol: Annotated[
        str | None, typer.Option(help="coco or lvis (rare, common, frequent classes). [default: the run's own]")
    ] = None,
    iou: Annotated[
        str | None, typer.Option(help="mask or box. [default: mask, or box where an object of the split has no mask]")
    ] = None,
    calibration: Annotated[bool, typer.Option("--calibration", help="Also say how far scores can be trusted.")] = False,
    figure: Annotated[Path | None, typer.Option(help="Draw the reliability diagram into this SVG.")] = None,
    as_json: Json = False,
) -> None:
    """Average precision, with a table per class."""
    if figure is not None and not calibration:
        raise ConfigError("--figure draws the reliability diagram of --calibration; give both")
    tell_changes(data)
    with progress("evaluating", as_json) as on_progress:
        options = EvaluateOptions(protocol, calibration, iou)
        evaluation = run_evaluate(run, data, split=split, options=options, on_progress=on_progress)
    if figure is not None and evaluation.calibration is not None:
        draw_reliability({run.stem: evaluation.calibration}, figure)
    if as_json:
        print_json(evaluation.to_json())
        return
    output.print(evaluation.summary, markup=False)
    output.print(render_rich(class_table(evaluation.per_class, evaluation.iou)))
    if (outcomes := outcome_table({"share": evaluation.outcomes})) is not None:
        output.print(render_rich(outcomes))
    if evaluation.calibration is not None:
        for table in calibration_tables(evaluation.calibration):
            output.print(render_rich(table))
    for note in evaluation.notes:
        messages.print(note, markup=False)


@app.command(epilog="Example: leanmask predict runs/a photos/*.jpg --out predictions")
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    images: Annotated[list[Path], typer.Argument(help="Images or folders of images.")],
    out: Out,
    score: Annotated[float, typer.Option(min=0, max=1, help="Draw and write objects from this score on.")] = 0.5,
    overlays: Annotated[bool, typer.Option(help="Write pictures with the masks drawn in.")] = True,
    overlay_px: Annotated[
        int, typer.Option(min=0, help="Longest side of these pictures; 0 = as large as the image.")
    ] = LONGEST_PX,
    as_json: Json = False,
) -> None:
    """Segment images: COCO results in your own category ids, and overlay pictures."""
    with progress("predicting", as_json) as on_progress:
        options = PredictOptions(score=score, overlays=overlays, overlay_px=overlay_px)
        summary = run_predict(run, images, out, options, on_progress=on_progress)
    say(as_json, summary.to_json(), summary.to_text())


@app.command(
    epilog="Examples: leanmask pseudo runs/a photos --out pseudo.json --review review.html   |   "
    "leanmask pseudo runs/a --points weak.json --refined --out pseudo.json"
)
def pseudo(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Run folder or weights file.")],
    out: Annotated[Path, typer.Option(help="COCO file to write; must not exist yet.")],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Images or folders; with --points, the folder of its images.")
    ] = None,
    points: Annotated[
        Path | None, typer.Option(help="COCO file with a point and class per object: write the masks of these objects.")
    ] = None,
    refined: Annotated[
        bool, typer.Option("--refined", help="With --points: improve them by the run's refiner.")
    ] = False,
    refiner: Annotated[Path | None, typer.Option(help="With --points: improve them by this run's refiner.")] = None,
    rule: Annotated[str, typer.Option(help="With --points: 'one' mask per point, or the 'published' NMS.")] = "one",
    point_at: Annotated[
        str | None,
        typer.Option(help="With --points: 'centre', or 'random' for points anywhere on objects. [as the run was told]"),
    ] = None,
    class_quality: Annotated[
        float, typer.Option(min=0, max=1, help="Without --points: least probability of the class.")
    ] = 0.5,
    mask_quality: Annotated[
        float, typer.Option(min=0, max=1, help="Without --points: least mean probability inside the mask.")
    ] = 0.8,
    polygons: Annotated[
        bool, typer.Option("--polygons", help="Without --points: masks as polygons instead of RLE.")
    ] = False,
    review: Annotated[
        Path | None, typer.Option(help="Without --points: also write a page that shows the least certain first.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Label images nobody labelled, or objects that have a point: a COCO file, accepted as training data."""
    summary: PseudoSummary | PointSummary
    if points is None and not images:
        raise ConfigError("name images or folders to label, or objects with --points FILE")
    _refuse_unread(context, *_UNREAD[points is not None])
    with progress("labelling", as_json) as on_progress:
        if points is not None:
            told = _point_options(images, rule, point_at, refined, refiner)
            summary = write_pseudo_points(run, points, out, told, on_progress=on_progress)
        else:
            options = PseudoOptions(class_quality=class_quality, mask_quality=mask_quality, polygons=polygons)
            summary = write_pseudo(run, images or [], out, options, on_progress=on_progress)
    if review is not None and start_processes().is_main_process:  # all of them share one page
        write_review(out, review)
    text = summary.to_text() + (f"\nreview page: {review}" if review else "")
    say(as_json, summary.to_json(), text)


# What `pseudo` does not read without --points, and with it; saying it would be a mistake that nobody is told of.
_UNREAD = {
    False: (
        ("refined", "refiner", "rule", "point_at"),
        "is for objects that have a point; name them with --points FILE",
    ),
    True: (
        ("class_quality", "mask_quality", "polygons", "review"),
        "is for objects that a network found; those of --points are a person's own",
    ),
}


def _refuse_unread(context: typer.Context, names: Iterable[str], reason: str) -> None:
    """Raises ConfigError when the command line names one of these options."""
    for name in names:
        if _was_named(context, name):
            raise ConfigError(f"--{name.replace('_', '-')} {reason}")


def _point_options(
    images: list[Path] | None, rule: str, point_at: str | None, refined: bool, refiner: Path | None
) -> PointOptions:
    if images and len(images) > 1:
        raise ConfigError("with --points name at most one folder, that of the file's images")
    folder = images[0] if images else None
    return PointOptions(rule=rule, images=folder, refined=refined, refiner=refiner, point_at=point_at)  # type: ignore[arg-type]


@app.command(epilog="Example: leanmask refine masks.json --refiner runs/a --out refined.json")
def refine(
    masks: Annotated[Path, typer.Argument(help="COCO file with rough masks, anybody's (or PointWSSIS's .pth).")],
    refiner: Annotated[Path, typer.Option(help="Run of --method pointwssis, or of the model mask_refine.")],
    out: Annotated[Path, typer.Option(help="COCO file to write; must not exist yet.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the images, where it is not found.")] = None,
    predicted_only: Annotated[
        bool, typer.Option("--predicted-only", help="Leave masks alone that a person drew (no provenance).")
    ] = False,
    like: Annotated[Path | None, typer.Option(help="For a .pth: COCO file with its images and categories.")] = None,
    as_json: Json = False,
) -> None:
    """Improve rough masks, whoever made them, around their points or mass centres."""
    options = RefineOptions(images=images, predicted_only=predicted_only, like=like)
    with progress("refining", as_json) as on_progress:
        summary = run_refine(masks, refiner, out, options, on_progress=on_progress)
    say(as_json, summary.to_json(), summary.to_text())


@app.command(epilog="Example: leanmask quality pseudo.json truth.json --figure trust.svg")
def quality(
    pseudo: Annotated[Path, typer.Argument(help="COCO file that `leanmask pseudo` wrote.")],
    truth: Annotated[Path, typer.Argument(help="COCO file with everything on the same images.")],
    figure: Annotated[Path | None, typer.Option(help="Also draw this SVG; must not exist yet.")] = None,
    as_json: Json = False,
) -> None:
    """How good pseudo-labels are, and how far class and mask quality can be trusted."""
    measured = measure_quality(pseudo, truth).to_json()
    if figure is not None:
        draw_trust(measured, figure)
    if as_json:
        print_json(measured)
        return
    for table in (overall_table(measured), correlation_table(measured), *(bin_table(measured, key) for key in NAMES)):
        output.print(render_rich(table))


@app.command(epilog="Example: leanmask report runs/baseline runs/maskbooster --out report.html")
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, shown side by side.")],
    out: Out = Path("report.html"),
    as_json: Json = False,
) -> None:
    """Write one HTML page: census, curves, per-class AP, pictures, pseudo-label quality."""
    page = write_report(runs, out)
    say(as_json, {"out": str(page)}, f"wrote {page}")
