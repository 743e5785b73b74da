"""How good the pseudo-masks of a run of several stages are, for its row of a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leanmask.data.files import read_json
from leanmask.inference.pseudo_masks import QUALITY_FILE

NAMES = {"pseudo": "rough", "refined": "refined"}  # of stages, and what their masks are


def stage_quality(run: Path, until: str | None = None) -> dict[str, Any]:
    """ "pseudo": {"rough": ..., "refined": ...}, what the finished stages of the run, up to the one named `until`, have
    measured against the hidden truth (mean IoU, also by the objects' size, and more); nothing without such a stage.
    """
    found = {}
    for folder in sorted(run.glob("*-*/")):
        name = folder.name.partition("-")[2]
        if name in NAMES and (folder / QUALITY_FILE).is_file():
            found[NAMES[name]] = read_json(folder / QUALITY_FILE)
        if name == until:
            break
    return {"pseudo": found} if found else {}
