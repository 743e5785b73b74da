"""How good the pseudo-masks of a run of several stages are, for its row of a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leanmask.data.files import read_json
from leanmask.pseudo.masks import QUALITY_FILE

NAMES = {"pseudo": "rough", "refined": "refined"}  # of stages, and what their masks are


def stage_quality(run: Path) -> dict[str, Any]:
    """ "pseudo": {"rough": ..., "refined": ...}, what the finished stages of the run have measured against the hidden
    truth (mean IoU, also by the objects' size, and more); nothing for a run without such a stage.
    """
    files = sorted(run.glob(f"*-*/{QUALITY_FILE}"))
    stages = [(path.parent.name.partition("-")[2], path) for path in files]
    found = {NAMES[name]: read_json(path) for name, path in stages if name in NAMES}
    return {"pseudo": found} if found else {}
