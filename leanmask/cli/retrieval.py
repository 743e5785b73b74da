"""The verb that finds unlabelled images: retrieve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanmask.cli.shared import Data, Json, app, say
from leanmask.console import progress
from leanmask.retrieval.retrieve import DEFAULT_MODEL, RARE, RetrieveOptions
from leanmask.retrieval.retrieve import retrieve as run_retrieve


@app.command(
    epilog="Examples: leanmask retrieve mydata --pool photos --out unlabelled.json --weights dinov2.safetensors   |   "
    "leanmask retrieve mydata --pool photos --model runs/a --classes rare --neighbours 64 --out unlabelled.json"
)
def retrieve(
    data: Data,
    pool: Annotated[
        list[Path],
        typer.Option(help="Folder of images, searched with all its folders; may be given several times."),
    ],
    out: Annotated[Path, typer.Option(help="COCO file of unlabelled images to write; must not exist yet.")],
    classes: Annotated[str, typer.Option(help="Comma-separated class names, or rare.")] = RARE,
    neighbours: Annotated[int, typer.Option(min=1, help="Images per object.")] = 64,
    model: Annotated[
        str, typer.Option(help="timm:NAME, transformers:FOLDER, or a run folder, whose network is used.")
    ] = DEFAULT_MODEL,
    weights: Annotated[str | None, typer.Option(help="timm: a local file, or DEFAULT to download them.")] = None,
    index: Annotated[Path | None, typer.Option(help="Folder for embeddings and index. [default: beside --out]")] = None,
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Similarity of near-duplicates.")] = 0.98,
    review: Annotated[Path | None, typer.Option(help="Also write a contact sheet (HTML).")] = None,
    as_json: Json = False,
) -> None:
    """Find unlabelled images that look like the objects of rare classes."""
    names = tuple(name.strip() for name in classes.split(",") if name.strip())
    options = RetrieveOptions(names, neighbours, model, weights, index, duplicates)
    with progress("embedding", as_json) as on_progress:
        summary = run_retrieve(data, pool, out, options, review=review, on_progress=on_progress)
    say(as_json, summary.to_json(), summary.to_text() + (f"\ncontact sheet: {review}" if review else ""))
