"""`leanmask bench speed`: every speed and memory claim beside its anchor, interleaved in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leanmask.benchmark.commit import commit
from leanmask.benchmark.speed_default import default_step_profile
from leanmask.benchmark.speed_evaluation import evaluation_speed
from leanmask.benchmark.speed_longtail import soft_losses_speed
from leanmask.benchmark.speed_model import inference_speed, training_speed
from leanmask.benchmark.speed_points import pointrend_memory, points_speed
from leanmask.benchmark.speed_semi import pseudo_speed, semi_speed
from leanmask.benchmark.speed_solov2 import nms_speed, refiner_speed
from leanmask.benchmark.speed_steps import data_share, maskbooster_speed, target_memory
from leanmask.benchmark.table import add_row
from leanmask.devices import machine
from leanmask.errors import ConfigError, suggest

MEASUREMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "training_step": training_speed,
    "inference": inference_speed,
    "default_step": default_step_profile,
    "maskbooster_step": maskbooster_speed,
    "points_step": points_speed,
    "pointrend_memory": pointrend_memory,
    "semi_step": semi_speed,
    "pseudo": pseudo_speed,
    "matrix_nms": nms_speed,
    "refiner": refiner_speed,
    "soft_losses": soft_losses_speed,
    "data_share": data_share,
    "target_memory": target_memory,
    "coco_evaluation": evaluation_speed,
}


def speed(
    results: Path, names: Sequence[str] | None = None, *, on_progress: Callable[..., None] | None = None
) -> list[dict[str, Any]]:
    """Measure everything once, or what is named, and append the rows to `speed.json` in `results`. Raises ConfigError
    for a name that is none, before anything is measured.
    """
    names, rows = list(MEASUREMENTS) if names is None else names, []
    for name in names:
        if name not in MEASUREMENTS:
            raise ConfigError(f"bench speed has no measurement '{name}'{suggest(name, MEASUREMENTS)}")
    for done, name in enumerate(names):
        if on_progress:
            on_progress(done, len(names), name)
        row = {
            "what": name,
            "machine": machine(),
            **MEASUREMENTS[name](),
            "commit": commit(),
        }
        add_row(results / "speed.json", row)
        rows.append(row)
    return rows
