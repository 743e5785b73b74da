"""Verbs that collect labels: the annotation page. Nothing here may import torch, see verbs.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanmask.annotate.run import PORT, ServeOptions, annotate_data, export_annotations
from leanmask.annotate.work import AnnotateOptions
from leanmask.cli.shared import Data, Json, app, say
from leanmask.console import messages
from leanmask.data.convert.label_studio import LOCAL_FILES
from leanmask.data.convert.translate import FORMATS, ConvertOptions
from leanmask.data.convert.translate import convert as convert_file
from leanmask.errors import ConfigError

EXIF = ("error", "apply", "ignore")


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def _tell(message: str) -> None:
    messages.print(message, markup=False, soft_wrap=True)


@app.command(
    epilog="Examples: leanmask annotate mydata --points 10   |   "
    "leanmask annotate photos --boxes --classes cat,dog   |   "
    "leanmask annotate mydata --review pseudo.json   |   "
    "leanmask annotate mydata --export labels.json"
)
def annotate(
    data: Data,
    points: Annotated[int, typer.Option(min=1, help="Classified points per object.")] = 10,
    round_: Annotated[int, typer.Option("--round", min=1, help="2 asks for as many more points, and so on.")] = 1,
    boxes: Annotated[bool, typer.Option("--boxes", help="Draw boxes on images that have none.")] = False,
    review: Annotated[Path | None, typer.Option(help="Pseudo-labels to accept or reject, the doubtful first.")] = None,
    queue: Annotated[Path | None, typer.Option(help="What `leanmask suggest` chose, in its order.")] = None,
    export: Annotated[Path | None, typer.Option(help="Write the labels so far to this new file, and stop.")] = None,
    classes: Annotated[str | None, typer.Option(help="Class names, for a folder of images alone: cat,dog.")] = None,
    annotators: Annotated[str | None, typer.Option(help="Who labels: anna,ben. [default: your user name]")] = None,
    overlap: Annotated[float, typer.Option(min=0, max=1, help="Share of objects that two people label.")] = 0.0,
    split: Annotated[str, typer.Option(help="Which split of the data set.")] = "train",
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the points and the order of images. [default: as before, at first 0]")
    ] = None,
    val_share: Annotated[
        float | None,
        typer.Option(help="Of a folder of images: share of names for validation. [default: as before, at first 0.2]"),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="File of the answers; of a review, of its decisions. [default: labelling/ in the data]"),
    ] = None,
    exif: Annotated[str | None, typer.Option(help="EXIF rotations: error, apply or ignore, as data.exif.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="The next free port from here.")] = PORT,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address only.")] = False,
    as_json: Json = False,
) -> None:
    """Label in the browser: classify points, draw boxes, or review pseudo-labels. Ctrl-C writes the labels."""
    if exif is not None and exif not in EXIF:
        raise ConfigError(f"exif is '{exif}'; allowed: {', '.join(EXIF)}")
    options = AnnotateOptions(
        split=split,
        points=points,
        round=round_,
        boxes=boxes,
        review=review,
        queue=queue,
        classes=_names(classes),
        annotators=_names(annotators) or None,
        overlap=overlap,
        seed=seed,
        store=store,
        exif=exif,  # type: ignore[arg-type]
        val_share=val_share,
    )
    if export is not None:
        summary = export_annotations(data, export, options)
    else:
        summary = annotate_data(data, options, ServeOptions(host, port, not no_browser), say=_tell)
    say(as_json, summary.to_json(), summary.to_text())


@app.command(
    epilog="Examples: leanmask convert mydata tasks.json --to label-studio   |   "
    "leanmask convert mydata annotations.xml --to cvat   |   "
    "leanmask convert export.json labels.json --like mydata   |   "
    "leanmask convert panoptic_train2017.json labels.json"
)
def convert(
    source: Annotated[Path, typer.Argument(help="A data set, a COCO file, Label Studio's .json or CVAT's .xml.")],
    out: Annotated[Path, typer.Argument(help="New file.")],
    to: Annotated[str, typer.Option(help=f"{', '.join(FORMATS)}.")] = "coco",
    split: Annotated[str, typer.Option(help="Which split of a data set.")] = "train",
    images: Annotated[Path | None, typer.Option(help="Folder of the images, where a file does not tell sizes.")] = None,
    like: Annotated[Path | None, typer.Option(help="Data set or COCO file whose class ids to use.")] = None,
    prefix: Annotated[
        str, typer.Option(help="What comes before file names in Label Studio's image addresses.")
    ] = LOCAL_FILES,
    masks: Annotated[
        Path | None, typer.Option(help="Folder of a panoptic file's PNG masks. [default: the one beside it]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert labels to and from Label Studio and CVAT, and from COCO panoptic; what a format cannot say is counted."""
    found = convert_file(source, out, ConvertOptions(to, split, images, like, prefix, masks))
    say(as_json, found.to_json(), found.to_text())
