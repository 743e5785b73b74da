"""leanmask: train instance segmentation from the labels you can afford.

Every verb of the command line is a function here, beside its options (docs/python.md). They are loaded on first use, so
`import leanmask` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from leanmask.version import __version__

if TYPE_CHECKING:
    from leanmask.annotate.run import annotate_data, export_annotations
    from leanmask.annotate.work import AnnotateOptions
    from leanmask.benchmark.table import BenchOptions, bench
    from leanmask.data.check import check
    from leanmask.data.convert.translate import ConvertOptions, convert
    from leanmask.data.digits import write_digits
    from leanmask.data.splits import split
    from leanmask.data.withholding.protocols import SplitOptions
    from leanmask.evaluation.trust import quality
    from leanmask.inference.predict import EvaluateOptions, PredictOptions, evaluate, load, predict
    from leanmask.inference.pseudo_images import PseudoOptions, pseudo
    from leanmask.inference.pseudo_points import PointOptions, pseudo_points
    from leanmask.inference.refine import RefineOptions, refine
    from leanmask.machine_check import doctor
    from leanmask.planning.plan import plan
    from leanmask.reports.page import write_report
    from leanmask.reports.review import write_review
    from leanmask.retrieval.retrieve import RetrieveOptions, retrieve
    from leanmask.run import resume, train
    from leanmask.spending import budget
    from leanmask.suggestions import SuggestOptions, suggest

_HOME = {
    "AnnotateOptions": "leanmask.annotate.work",
    "BenchOptions": "leanmask.benchmark.table",
    "ConvertOptions": "leanmask.data.convert.translate",
    "EvaluateOptions": "leanmask.inference.predict",
    "PointOptions": "leanmask.inference.pseudo_points",
    "PredictOptions": "leanmask.inference.predict",
    "PseudoOptions": "leanmask.inference.pseudo_images",
    "RefineOptions": "leanmask.inference.refine",
    "RetrieveOptions": "leanmask.retrieval.retrieve",
    "SplitOptions": "leanmask.data.withholding.protocols",
    "SuggestOptions": "leanmask.suggestions",
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
    "pseudo_points": "leanmask.inference.pseudo_points",
    "quality": "leanmask.evaluation.trust",
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
    "AnnotateOptions",
    "BenchOptions",
    "ConvertOptions",
    "EvaluateOptions",
    "PointOptions",
    "PredictOptions",
    "PseudoOptions",
    "RefineOptions",
    "RetrieveOptions",
    "SplitOptions",
    "SuggestOptions",
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
