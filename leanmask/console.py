"""How the command line looks: progress bars with time left, tables, and JSON for machines. Used by cli alone."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from leanmask.summary import Line, LogLine

OnProgress = Callable[[int, int], None]

# Messages and progress go to the error stream, so that --json leaves nothing but JSON on the output.
# Under torchrun only the first process speaks.
_SILENT = os.environ.get("RANK", "0") != "0"
PIPED_COLUMNS = 1000  # in a file or a pipe no line is broken: paths stay whole


def _columns(stream: TextIO) -> int | None:
    return None if stream.isatty() or "COLUMNS" in os.environ else PIPED_COLUMNS


messages = Console(stderr=True, highlight=False, width=_columns(sys.stderr))
output = Console(highlight=False, quiet=_SILENT, width=_columns(sys.stdout))


@contextmanager
def progress(title: str, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """A progress bar; call the yielded function with (done, total) and, if there is one, a note to show beside it.

    A `Line` is printed, above the bar where there is one; a `LogLine` where there is none, as in a file or a pipe, if
    not `quiet`.
    """
    piped = not messages.is_terminal and not quiet
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=messages,
        disable=quiet or _SILENT or not messages.is_terminal,
        speed_estimate_period=600,  # of the last 30 seconds, as is usual, an evaluation would leave nothing to go by
    )
    with bar:
        task = bar.add_task(title, total=None, note="")

        def report(done: int, total: int, note: str = "") -> None:
            if _SILENT:
                return
            if isinstance(note, Line) or (isinstance(note, LogLine) and piped):
                messages.print(note, markup=False, soft_wrap=True)
            if not isinstance(note, Line):
                bar.update(task, note=str(note))
            bar.update(task, completed=done, total=total)

        yield report


def print_json(content: Any) -> None:
    output.print_json(json.dumps(content, allow_nan=False, default=str))
