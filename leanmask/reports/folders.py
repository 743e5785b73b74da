"""Which folders of a run hold trainings."""

from __future__ import annotations

import json
from pathlib import Path

from leanmask.errors import RunError

STAGES_FILE = "stages.json"


def trainings(run: Path) -> list[Path]:
    """The folders of a run's trainings, in order: those of its stages that have begun, or the run itself.

    Raises RunError when the list of stages cannot be read.
    """
    path = run / STAGES_FILE
    if not path.is_file():
        return [run]
    try:
        stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
        folders = [run / stage["folder"] for stage in stages if stage["trains"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} does not list stages as leanmask writes them: {error}") from None
    return [folder for folder in folders if folder.is_dir()] or [run]
