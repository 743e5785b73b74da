"""Curves of one or several runs as small inline SVG pictures whose colours follow the page's light or dark style."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as MplFigure
from matplotlib.ticker import MaxNLocator

from leanmask.reports.collect import RunSummary, comparable, number, section

# Okabe and Ito's colour-blind-safe palette, darkened where white paper asks for it. Pages may redefine --series-N.
PALETTE = ("#0072b2", "#d55e00", "#00805f", "#a8508a", "#a87400", "#3b8fc4", "#6b6b6b", "#7a4f2b")
# Stand-ins that are swapped for CSS after drawing; no palette colour may equal one.
INK, RULE, SERIES = "#010101", "#020202", "#0300{:02x}"
MARKERS = "osD^vPX*"
GRADIENT_NORM = "gradient_norm"  # among a step's counts, whatever the method
MOST_POINTS = 300
LEAST_TICKS, MOST_TICKS = 3, 6  # of a logarithmic axis
SMOOTHING_FRACTION = 0.04
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Line:
    """One curve. run: index of the run, which gives colour and marker. dashed: the second curve of the same run."""

    run: int
    label: str
    steps: list[int]
    values: list[float]
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One picture: an `<svg>` element and what it shows in words."""

    title: str
    svg: str
    alt: str


@dataclass(frozen=True)
class Group:
    """Pictures that belong together. note: how to read them."""

    title: str
    panels: list[Panel]
    note: str = ""


def all_figures(runs: Sequence[RunSummary], names: Sequence[str]) -> dict[str, Group]:
    """Every group that the runs have data for, by key: ap, pseudo, counts, losses, lr, gradient."""
    groups = {
        "ap": ap_curves(runs, names),
        "pseudo": pseudo_quality_curves(runs, names),
        "counts": count_curves(runs, names),
        "losses": loss_curves(runs, names),
        "lr": learning_rate_curve(runs, names),
        "gradient": gradient_curve(runs, names),
    }
    return {key: group for key, group in groups.items() if group.panels}


def ap_curves(runs: Sequence[RunSummary], names: Sequence[str]) -> Group:
    """Mask AP, AP50 and box AP over steps, teacher and student of every run, those that compare in one picture; values
    in points.
    """
    panels = []
    groups = comparable(runs)
    for number_, group in enumerate(groups, 1):
        which = f" ({number_} of {len(groups)})" if len(groups) > 1 else ""
        for key, title in (("AP", "mask AP"), ("AP50", "mask AP50"), ("box_AP", "box AP")):
            lines = [
                _line(at, f"{names[at]}, {who}", _evaluations(runs[at], who, key), scale=100, dashed=who == "student")
                for at in group
                for who in ("teacher", "student")
            ]
            panels += _panel(title + which, lines, marked=True)
    return Group("AP over steps", panels, "Solid: the teacher (moving average of the student). Dashed: the student.")


def pseudo_quality_curves(runs: Sequence[RunSummary], names: Sequence[str]) -> Group:
    """Precision, recall and mean mask IoU of pseudo-labels against the hidden truth."""
    panels = []
    for key, title in (("mask_iou", "mean mask IoU"), ("precision", "precision"), ("recall", "recall")):
        panels += _panel(title, _lines(runs, names, "pseudo", key), marked=True, limits=(0.0, 1.0))
    note = "What the teacher would tell the student, measured against truth that training never sees."
    return Group("Quality of the pseudo-labels", panels, note)


def count_curves(runs: Sequence[RunSummary], names: Sequence[str]) -> Group:
    """Everything the method counts in a step (pseudo objects per image, teacher score, ramp, ...)."""
    panels = _panel("pseudo-labels measured", _lines(runs, names, "pseudo", "count"), marked=True)
    for key in _keys(runs, "counts"):
        if key != GRADIENT_NORM:
            panels += _panel(key.replace("_", " "), _smooth_lines(runs, names, "counts", key))
    return Group("What the method counted", panels, "Lightly smoothed.")


def gradient_curve(runs: Sequence[RunSummary], names: Sequence[str]) -> Group:
    """The gradient's norm, which the trainer counts for every method."""
    panels = _panel("gradient norm", _smooth_lines(runs, names, "counts", GRADIENT_NORM), limits=(0.0, None))
    return Group("Gradient norm", panels, "Before clipping; lightly smoothed.")


def loss_curves(runs: Sequence[RunSummary], names: Sequence[str]) -> Group:
    """Every named loss, one picture each."""
    panels = []
    for key in _keys(runs, "losses"):
        panels += _panel(key.replace("_", " "), _smooth_lines(runs, names, "losses", key), limits=(0.0, None))
    return Group("Losses", panels, "Lightly smoothed; each as it enters the sum that is minimised.")


def learning_rate_curve(runs: Sequence[RunSummary], names: Sequence[str]) -> Group:
    return Group("Learning rate", _panel("learning rate", _lines(runs, names, "train", "lr")))


def _smooth_lines(runs: Sequence[RunSummary], names: Sequence[str], *path: str) -> list[Line]:
    return [smooth(line) for line in _lines(runs, names, "train", *path)]


def smooth(line: Line) -> Line:
    """A centred running mean over a twenty-fifth of the curve; short curves stay as they are."""
    width = int(len(line.values) * SMOOTHING_FRACTION) // 2
    if width < 1:
        return line
    total = np.concatenate([[0.0], np.cumsum(line.values)])
    at = np.arange(len(line.values))
    low, high = np.maximum(at - width, 0), np.minimum(at + width + 1, len(at))
    mean = (total[high] - total[low]) / (high - low)
    return Line(line.run, line.label, line.steps, mean.tolist(), line.dashed)


def _keys(runs: Sequence[RunSummary], part: str) -> list[str]:
    """Names in the order in which the journals bring them up, pseudo-label counts first."""
    seen = dict.fromkeys(str(key) for run in runs for row in run.journal.train for key in section(row, part))
    return sorted(seen, key=lambda key: not key.startswith("pseudo"))


def _column(rows: Iterable[dict[str, Any]], *path: str) -> list[tuple[int, float]]:
    """(step, value) of the rows that have a finite value under the key, or under the section and its key."""
    *sections, key = path
    found = [(row["step"], number(section(row, sections[0]).get(key) if sections else row.get(key))) for row in rows]
    return [(step, value) for step, value in found if value is not None]


def _evaluations(run: RunSummary, who: str, key: str) -> list[tuple[int, float]]:
    rows = [row for row in run.journal.evaluations if row.get("who") == who]
    return [(step, value) for step, value in _column(rows, "metrics", key) if value >= 0]


def _lines(runs: Sequence[RunSummary], names: Sequence[str], kind: str, *path: str) -> list[Line]:
    rows = [run.journal.pseudo if kind == "pseudo" else run.journal.train for run in runs]
    return [_line(at, name, _column(rows[at], *path)) for at, name in enumerate(names)]


def _line(run: int, label: str, pairs: list[tuple[int, float]], scale: float = 1.0, dashed: bool = False) -> Line:
    return Line(run, label, [step for step, _ in pairs], [scale * value for _, value in pairs], dashed)


def _panel(
    title: str, lines: Sequence[Line], marked: bool = False, limits: tuple[float | None, float | None] = (None, None)
) -> list[Panel]:
    """The picture of the lines that have points; no picture when none has."""
    drawn = [line for line in lines if line.values]
    if not drawn:
        return []
    with mpl.rc_context(STYLE):
        figure = MplFigure(figsize=(3.6, 2.3), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for line in drawn:
            _draw(axes, line, marked)
        _limit(axes, drawn, limits)
        axes.set_xlabel("steps")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        alt = f"{title} over steps. " + "; ".join(f"{line.label}: {_in_words(line)}" for line in drawn)
        return [Panel(title, as_svg(figure, title, alt), alt)]


def _draw(axes: Axes, line: Line, marked: bool) -> None:
    stride = -(-len(line.values) // MOST_POINTS)
    # The last point is the one people read off; thinning out must not lose it.
    kept = sorted({*range(0, len(line.values), stride), len(line.values) - 1})
    colour = SERIES.format(line.run % len(PALETTE))
    axes.plot(
        [line.steps[i] for i in kept],
        [line.values[i] for i in kept],
        color=colour,
        linestyle=(0, (4, 2)) if line.dashed else "solid",
        marker=MARKERS[line.run % len(MARKERS)] if marked or len(kept) == 1 else None,
        markersize=4,
        markerfacecolor="none" if line.dashed else colour,
    )


def _limit(axes: Axes, lines: Sequence[Line], limits: tuple[float | None, float | None]) -> None:
    """Leave outliers of the first steps outside the picture, so that what follows can be seen."""
    everything = np.concatenate([line.values for line in lines])
    top = float(np.quantile(everything, 0.99))
    low, high = limits
    if high is None and len(everything) > 50 and top > 0 and everything.max() > 1.5 * top:
        high = 1.05 * top
    if low is not None and everything.min() < low:
        low = None
    axes.set_ylim(low, high)


def _in_words(line: Line) -> str:
    low, high = min(line.values), max(line.values)
    return f"from {line.values[0]:.4g} to {line.values[-1]:.4g}, between {low:.4g} and {high:.4g}"


def set_log_ticks(axes: Axes, low: float, high: float) -> None:
    """A logarithmic x axis from `low` to `high` (above 0) with plain numbers; matplotlib's own are written in TeX,
    which an SVG with text shows as it stands.
    """
    axes.set_xscale("log")
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    decades = [10.0**exponent for exponent in exponents]
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [factor * decade for decade in decades for factor in factors if low <= factor * decade <= high]
        if len(ticks) >= LEAST_TICKS:
            break
    else:  # a narrow range has even steps
        ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high] or [low]
    ticks = ticks[:: -(-len(ticks) // MOST_TICKS)]
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.minorticks_off()


def as_svg(figure: MplFigure, title: str, alt: str) -> str:
    """The figure as an `<svg>` element: no fixed size, CSS colours, ids of its own, described for screen readers."""
    salt = hashlib.sha256((title + alt).encode()).hexdigest()[:10]
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>f{salt}-", text)
    text = re.sub(r'^<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'^<svg ([^>]*?)height="[^"]*"', r'<svg aria-hidden="true" focusable="false" \1', text, count=1)
    text = text.replace(INK, "currentColor").replace(RULE, "var(--rule, #d0d4da)")
    for index, colour in enumerate(PALETTE):
        text = text.replace(SERIES.format(index), f"var(--series-{index}, {colour})")
    return text.strip()
