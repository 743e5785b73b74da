"""A folder that appears complete or not at all: filled beside its place under another name, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leanmask.data.files import why
from leanmask.errors import RunError


def require_new(out: Path) -> None:
    """Raise RunError when `out` exists and is not an empty folder: better before long work than after it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists already and is not an empty folder; nothing was written, name a new folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a folder to fill; when the block ends without an error it becomes `out`, else it is removed.

    Raises RunError when `out` exists and is not an empty folder, and when it cannot be written (permission, full disk).
    """
    out = Path(out).absolute()
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    made = False
    try:
        require_new(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        made = True
        yield partial
        partial.replace(out)
        made = False
    except OSError as error:
        raise RunError(f"cannot write {out}: {why(error)}") from None
    finally:
        if made:
            shutil.rmtree(partial, ignore_errors=True)
