"""How far scores can be trusted, and what rare classes reach, as tables and pictures (evaluation/calibration.py, as
JSON).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as MplFigure

from leanmask.errors import RunError
from leanmask.reports.collect import FinalMetrics, RunSummary, comparable, number, section
from leanmask.reports.figures import INK, MARKERS, PALETTE, SERIES, STYLE, Group, Panel, as_svg, set_log_ticks
from leanmask.reports.layout import NOTHING, Table, count, points

MOST_CLASSES = 30  # in the table of a terminal; the JSON has all


def calibration_tables(measured: Mapping[str, Any]) -> list[Table]:
    """The bins of the reliability diagram, and the classes whose confidence is furthest off."""
    bins = [
        [
            f"{found['low']:.1f} to {found['high']:.1f}",
            count(number(found["count"])),
            points(found["confidence"]),
            points(found["accuracy"]),
        ]
        for found in measured["bins"]
    ]
    ece = number(measured["ece"])
    note = f"Expected calibration error {NOTHING if ece is None else f'{ece:.3f}'}. Right: mask IoU 0.5 or more."
    known = [found for found in measured["per_class"] if found["count"]]
    worst = sorted(known, key=lambda found: -abs(found["error"]))[:MOST_CLASSES]
    rows = [[found["name"], count(found["count"]), f"{found['error']:+.3f}"] for found in worst]
    return [
        Table("Can scores be trusted?", ("confidence", "results", "mean confidence", "right"), bins, note=note),
        Table(
            "By class", ("class", "results", "error"), rows, note="Accuracy minus confidence; below 0: overconfident."
        ),
    ]


def draw_reliability(measured: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Write an SVG with one reliability diagram per name. Raises RunError when `out` exists or cannot be written."""
    if out.exists():
        raise RunError(f"{out} exists already and is not overwritten; choose another name")
    with mpl.rc_context({"svg.hashsalt": "leanmask", "font.size": 9.0, "text.parse_math": False}):
        figure = MplFigure(figsize=(3.2 * len(measured), 3.0), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(1, len(measured), sharey=True, squeeze=False)[0]
        for at, (axes, (name, found)) in enumerate(zip(panels, measured.items(), strict=True)):
            _diagram(axes, found, PALETTE[at % len(PALETTE)], "#6b6b6b")
            axes.set_title(f"{name}: ECE {found['ece']:.3f}" if found["ece"] is not None else name)
        temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        try:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
            temporary.replace(out)
        except OSError as error:
            raise RunError(f"cannot write {out}: {error.strerror}") from None


def reliability_figures(runs: Sequence[RunSummary], names: Sequence[str]) -> Group:
    """A reliability diagram of every run whose best network was measured with calibration."""
    panels = [
        _reliability_panel(at, f"{name}, {run.kept.who}", run.kept)
        for at, (run, name) in enumerate(zip(runs, names, strict=True))
        if run.kept is not None and run.kept.calibration
    ]
    note = "Bars: share of right results by confidence. On the line confidence is right; below it, too high."
    return Group("Can scores be trusted?", panels, note)


def frequency_figures(runs: Sequence[RunSummary], names: Sequence[str]) -> Group:
    """AP of every class against the number of training images that have it; runs that compare in one picture."""
    panels = []
    groups = comparable(runs)
    for number_, group in enumerate(groups, 1):
        drawn = [(at, names[at], pairs) for at in group if (pairs := _frequency_pairs(runs[at]))]
        if drawn:
            which = f" ({number_} of {len(groups)})" if len(groups) > 1 else ""
            panels.append(_frequency_panel(drawn, f"AP against training images{which}"))
    note = "One mark per class, of each run's best network; the number of training images is on a logarithmic axis."
    return Group("AP by how often a class was labelled", panels, note if panels else "")


def _frequency_pairs(run: RunSummary) -> list[tuple[int, float]]:
    """(training images, AP in points) of every class of the best network that has both."""
    frequencies = section(section(run.census, _train_split(run)), "class_images")
    return [
        (frequencies[name], 100 * ap)
        for row in (run.kept.per_class if run.kept is not None else ())
        if (ap := number(row.get("AP"))) is not None and frequencies.get(name := str(row.get("name")))
    ]


def _train_split(run: RunSummary) -> str:
    return str(section(run.config, "data").get("train_split") or "train")


def _reliability_panel(at: int, name: str, final: FinalMetrics) -> Panel:
    with mpl.rc_context(STYLE):
        figure = MplFigure(figsize=(2.8, 2.6), layout="constrained")
        FigureCanvasSVG(figure)
        _diagram(figure.add_subplot(), final.calibration, SERIES.format(at % len(PALETTE)), INK)
        ece = number(final.calibration.get("ece"))
        title = name if ece is None else f"{name}: ECE {ece:.3f}"
        words = "; ".join(
            f"confidence {each['confidence']:.2f}: {each['accuracy']:.2f} right" for each in final.calibration["bins"]
        )
        alt = f"Reliability of {title}. {words}"
        return Panel(title, as_svg(figure, title, alt), alt)


def _diagram(axes: Axes, measured: Mapping[str, Any], colour: str, ink: str) -> None:
    for found in measured["bins"]:
        width = found["high"] - found["low"]
        axes.bar(found["low"], found["accuracy"], width=0.92 * width, align="edge", color=colour, alpha=0.7)
    axes.plot([0, 1], [0, 1], color=ink, linestyle=(0, (4, 2)), linewidth=1.0)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence")
    axes.set_ylabel("share of right results")


def _frequency_panel(drawn: Sequence[tuple[int, str, list[tuple[int, float]]]], title: str) -> Panel:
    with mpl.rc_context(STYLE):
        figure = MplFigure(figsize=(4.4, 2.8), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for at, _, pairs in drawn:
            axes.plot(
                [images for images, _ in pairs],
                [ap for _, ap in pairs],
                color=SERIES.format(at % len(PALETTE)),
                marker=MARKERS[at % len(MARKERS)],
                linestyle="none",
                markersize=4,
            )
        counts = [images for _, _, pairs in drawn for images, _ in pairs]
        set_log_ticks(axes, 0.9 * min(counts), 1.1 * max(counts))
        axes.set_xlabel("training images with the class")
        axes.set_ylabel("AP")
        words = [f"{name}: {', '.join(f'{n} images {ap:.1f}' for n, ap in sorted(pairs))}" for _, name, pairs in drawn]
        alt = f"{title}. " + "; ".join(words)
        return Panel(title, as_svg(figure, title, alt), alt)
