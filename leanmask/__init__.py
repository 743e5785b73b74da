"""leanmask: train instance segmentation from the labels you can afford.

Every verb of the command line is a function here. They are loaded on first use, so `import leanmask` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from leanmask.version import __version__

if TYPE_CHECKING:
    from leanmask.annotate.run import annotate_data, export_annotations
    from leanmask.benchmark.table import bench
    from leanmask.data.check import check
    from leanmask.data.convert.translate import convert
    from leanmask.data.digits import write_digits
    from leanmask.data.splits import split
    from leanmask.evaluation.trust import quality
    from leanmask.inference.predict import evaluate, load, predict
    from leanmask.inference.pseudo_images import pseudo
    from leanmask.inference.pseudo_points import pseudo_points
    from leanmask.inference.refine import refine
    from leanmask.machine_check import doctor
    from leanmask.planning.plan import plan
    from leanmask.reports.page import write_report
    from leanmask.reports.review import write_review
    from leanmask.retrieval.retrieve import retrieve
    from leanmask.run import resume, train
    from leanmask.spending import budget
    from leanmask.suggestions import suggest

_HOME = {
    "annotate_data": "leanmask.annotate.run",
    "bench": "leanmask.benchmark.table",
    "budget": "leanmask.spending",
    "check": "leanmask.data.check",
    "convert": "leanmask.data.convert.translate",
    "doctor": "leanmask.machine_check",
    "evaluate": "leanmask.inference.predict",
    "export_annotations": "leanmask.annotate.run",
    "load": "leanmask.inference.predict",
    "plan": "leanmask.planning.plan",
    "predict": "leanmask.inference.predict",
    "pseudo": "leanmask.inference.pseudo_images",
    "quality": "leanmask.evaluation.trust",
    "pseudo_points": "leanmask.inference.pseudo_points",
    "refine": "leanmask.inference.refine",
    "resume": "leanmask.run",
    "retrieve": "leanmask.retrieval.retrieve",
    "split": "leanmask.data.splits",
    "suggest": "leanmask.suggestions",
    "train": "leanmask.run",
    "write_digits": "leanmask.data.digits",
    "write_report": "leanmask.reports.page",
    "write_review": "leanmask.reports.review",
}

__all__ = [
    "__version__",
    "annotate_data",
    "bench",
    "budget",
    "check",
    "convert",
    "doctor",
    "evaluate",
    "export_annotations",
    "load",
    "plan",
    "predict",
    "pseudo",
    "pseudo_points",
    "quality",
    "refine",
    "resume",
    "retrieve",
    "split",
    "suggest",
    "train",
    "write_digits",
    "write_report",
    "write_review",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'leanmask' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
