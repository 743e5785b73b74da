"""What a measurement of pseudo-labels' qualities (evaluation/trust.py, as JSON) says in tables and as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from leanmask.errors import RunError
from leanmask.reports.collect import number
from leanmask.reports.figures import PALETTE
from leanmask.reports.layout import NOTHING, Table, count, points

NAMES = {"class_quality": "class quality", "mask_quality": "mask quality", "product": "their product"}
IOU, RIGHT = "mean mask IoU", "share with the right class"


def overall_table(measured: Mapping[str, Any]) -> Table:
    """Precision, recall and mean mask IoU of all pseudo-objects."""
    overall = measured["overall"]
    rows = [[name, points(number(overall[key]))] for name, key in (("precision", "precision"), ("recall", "recall"))]
    rows.append(["mean mask IoU of the right ones", points(number(overall["mask_iou"]))])
    rows.append(["pseudo-objects", count(number(overall["count"]))])
    note = "Right: mask IoU 0.5 or more with an object of the class. Percent."
    return Table("Pseudo-labels against the truth", ("", "all"), rows, note=note)


def correlation_table(measured: Mapping[str, Any]) -> Table:
    """How the qualities order pseudo-objects."""
    rows = [
        [name, *(_signed(measured[what].get(key)) for what in ("iou_correlation", "class_correlation"))]
        for key, name in NAMES.items()
    ]
    note = "Spearman's rank correlation; 1: the quality puts pseudo-objects in the true order."
    return Table("What each quality tells", ("quality", "with the mask's IoU", "with the right class"), rows, note=note)


def bin_table(measured: Mapping[str, Any], key: str) -> Table:
    """Pseudo-objects by one quality."""
    rows = [
        [
            f"{found['low']:.1f} to {found['high']:.1f}",
            str(found["count"]),
            points(found["mask_iou"]),
            points(found["right_class"]),
        ]
        for found in measured["bins"][key]
    ]
    return Table(f"By {NAMES[key]}", (NAMES[key], "objects", IOU, RIGHT), rows)


def draw_trust(measured: Mapping[str, Any], out: Path) -> None:
    """Write an SVG with one picture per quality: IoU and right classes of its bins. Raises RunError when `out` exists
    or cannot be written.
    """
    if out.exists():
        raise RunError(f"{out} exists already and is not overwritten; choose another name")
    with mpl.rc_context({"svg.hashsalt": "leanmask", "font.size": 9.0}):
        figure = Figure(figsize=(9.0, 2.8), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(1, len(NAMES), sharey=True)
        for axes, (key, name) in zip(panels, NAMES.items(), strict=True):
            _draw(axes, measured["bins"][key], name)
        panels[0].legend(loc="upper left", frameon=False)
        temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        try:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
            temporary.replace(out)
        except OSError as error:
            raise RunError(f"cannot write {out}: {error.strerror}") from None


def _draw(axes: Axes, bins: list[dict[str, Any]], name: str) -> None:
    centres = [(found["low"] + found["high"]) / 2 for found in bins]
    most = max((found["count"] for found in bins), default=1)
    shares = [found["count"] / most for found in bins]
    axes.bar(centres, shares, width=0.09, color="#d9dde2", label="objects (of the fullest bin)")
    for key, label, colour, marker in (
        ("mask_iou", IOU, PALETTE[0], "o"),
        ("right_class", RIGHT, PALETTE[1], "s"),
    ):
        axes.plot(centres, [found[key] for found in bins], color=colour, marker=marker, markersize=4, label=label)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel(name)


def _signed(value: Any) -> str:
    known = number(value)
    return NOTHING if known is None else f"{known:+.2f}"
