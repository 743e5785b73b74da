"""What every verb shares: the app, the options that recur, and how a result is said."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from leanmask.annotate.labels import refresh_labels
from leanmask.cli.verbs import Verbs
from leanmask.console import messages, output, print_json
from leanmask.version import __version__

app = typer.Typer(
    name="leanmask",
    cls=Verbs,
    help="Train instance segmentation from the labels you can afford: masks, boxes, points, nothing.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output, nothing else.")]
Data = Annotated[
    Path,
    typer.Argument(
        help="Data set: a folder with a COCO file near its images, a folder of labelled photographs, or a data YAML."
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Where to write; must not exist yet.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as dotted.key=value, e.g. train.seed=1 augment.strong=false.")
]

Unlabelled = Annotated[
    list[Path] | None, typer.Option(help="Folder or COCO file of unlabelled images; may be given several times.")
]


Weights = Annotated[
    Path | None,
    typer.Option(help="Run folder or weights file of the same network to start as; classes of the same name are kept."),
]


def named_settings(method: str | None, model: str | None, steps: int | None, epochs: float | None) -> list[str]:
    """The settings that have an option of their own, as overrides."""
    named = {"method.name": method, "model.name": model, "train.steps": steps, "train.epochs": epochs}
    return [f"{key}={value}" for key, value in named.items() if value is not None]


def of_unlabelled(paths: list[Path] | None) -> dict[str, Any]:
    """The settings of `--unlabelled`."""
    return {"data": {"unlabelled": [str(path.absolute()) for path in paths]}} if paths else {}


def tell_changes(data: Path) -> None:
    """Bring the labels of a folder of photographs up to date, and say what has changed there."""
    for sentence in refresh_labels(data):
        messages.print(sentence, markup=False, soft_wrap=True)


def _version(value: bool) -> None:
    if value:
        output.print(f"leanmask {__version__}")
        raise typer.Exit


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    pass


def say(as_json: bool, content: Any, text: str) -> None:
    """Print a verb's result: JSON for machines or a text for people."""
    if as_json:
        print_json(content)
    else:
        output.print(text, markup=False)
