"""A table as plain data with three faces (terminal, HTML, Markdown), and how its numbers are written."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """Headers and rows of text. The first `text_columns` columns are text, the others numbers (right-aligned).
    strong: (row, column) of the cells to stress. bars: (row, column) -> fraction of the cell to fill (HTML only)."""

    title: str
    headers: tuple[str, ...]
    rows: list[list[str]]
    text_columns: int = 1
    note: str = ""
    strong: frozenset[tuple[int, int]] = frozenset()
    bars: Mapping[tuple[int, int], float] | None = None


def render_rich(table: Table) -> RichTable:
    """For a rich console; the users' names are shown as they are, never read as markup."""
    caption = Text(table.note) if table.note else None
    rich_table = RichTable(title=Text(table.title), caption=caption, box=box.SIMPLE_HEAD)
    for index, header in enumerate(table.headers):
        justify: Literal["left", "right"] = "left" if index < table.text_columns else "right"
        rich_table.add_column(Text(header), justify=justify, overflow="fold", no_wrap=index == 0)
    for at, row in enumerate(table.rows):
        rich_table.add_row(*(Text(cell, "bold" if (at, i) in table.strong else "") for i, cell in enumerate(row)))
    return rich_table


def render_html(table: Table) -> Markup:
    """A table element with caption, scoped headers and escaped cells, in a region that scrolls when it is too wide."""
    headers = enumerate(table.headers)
    head = "".join(f'<th scope="col"{_css(table, -1, i)}>{escape(name)}</th>' for i, name in headers)
    body = "".join(f"<tr>{_html_row(table, at, row)}</tr>\n" for at, row in enumerate(table.rows))
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return Markup(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table>'
        f"<caption>{escape(table.title)}</caption><thead><tr>{head}</tr></thead>\n"
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def render_markdown(table: Table) -> str:
    """A pipe table with its title above; pipes and line breaks in cells are escaped."""
    rule = [":--" if index < table.text_columns else "--:" for index in range(len(table.headers))]
    body = [
        [f"**{_md(cell)}**" if (at, i) in table.strong else _md(cell) for i, cell in enumerate(row)]
        for at, row in enumerate(table.rows)
    ]
    lines = ["| " + " | ".join(cells) + " |" for cells in [[_md(h) for h in table.headers], rule, *body]]
    return "\n".join([f"**{_md(table.title)}**", "", *lines, *(["", _md(table.note)] if table.note else [])]) + "\n"


def _html_row(table: Table, at: int, row: Sequence[str]) -> str:
    cells = []
    for index, cell in enumerate(row):
        text = f"<strong>{escape(cell)}</strong>" if (at, index) in table.strong else escape(cell)
        tag, scope = ("th", ' scope="row"') if index == 0 else ("td", "")
        cells.append(f"<{tag}{scope}{_css(table, at, index)}>{text}</{tag}>")
    return "".join(cells)


def _css(table: Table, at: int, index: int) -> str:
    bar = (table.bars or {}).get((at, index))
    kinds = [name for name, wanted in (("n", index >= table.text_columns), ("bar", bar is not None)) if wanted]
    style = f' style="--fill:{min(max(bar, 0.0), 1.0):.1%}"' if bar is not None else ""
    return (f' class="{" ".join(kinds)}"' if kinds else "") + style


def spread(values: Sequence[float]) -> str:
    """`24.3 ± 0.4`: mean and sample standard deviation in points; no deviation for a single value."""
    if not values:
        return NOTHING
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{deviation}"


def points(value: float | None) -> str:
    """A fraction in points: 0.243 is `24.3`."""
    return NOTHING if value is None else f"{100 * value:.1f}"


def duration(seconds: float | None) -> str:
    """`45s`, `3m 20s`, `2h 05m`."""
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def count(value: float | None) -> str:
    """A whole number with thousands separated."""
    return NOTHING if value is None else f"{value:,.0f}"


def footnotes(said: Mapping[str, Sequence[str]]) -> str:
    """What rows say of themselves, such as " pldc, no_thresholds: with outside knowledge."; empty for nothing."""
    notes = dict.fromkeys(note for own in said.values() for note in own)
    return "".join(f" {', '.join(name for name, own in said.items() if note in own)}: {note}." for note in notes)


def _md(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
