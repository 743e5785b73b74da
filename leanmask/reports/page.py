"""`report.html`: one or several runs on a single page that needs nothing from outside."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import yaml

from leanmask.errors import RunError
from leanmask.paths import OneOrMorePaths, PathLike, as_path, as_paths
from leanmask.reports import tables
from leanmask.reports.calibration import frequency_figures, reliability_figures
from leanmask.reports.collect import RESULTS_NAME, RunSummary, comparable, read_run
from leanmask.reports.evaluation_pictures import FOLDER, read_pictures
from leanmask.reports.figures import MARKERS, PALETTE, Group, all_figures
from leanmask.reports.folders import trainings
from leanmask.reports.gallery import draw_labelled
from leanmask.reports.layout import Table, points, render_html
from leanmask.reports.marks import BACKGROUND_RGB, OBJECT_RGB
from leanmask.reports.names import distinct_names
from leanmask.reports.outcomes import outcome_table
from leanmask.reports.pictures import Choice, Comparison, Picture, compare
from leanmask.version import __version__

TEMPLATE = "report.html.j2"
MOST_EVENTS = 200
APART = "Runs that were measured on different data, or in another way, are shown apart: their scores do not compare."


@dataclass(frozen=True)
class Section:
    """One part of the page: what the template needs to lay it out, and where the menu points."""

    key: str
    title: str
    tables: tuple[Table, ...] = ()
    figures: tuple[Group, ...] = ()
    folded: tuple[Table, ...] = ()


def write_report(
    runs: OneOrMorePaths,
    out: PathLike,
    *,
    title: str | None = None,
    overwrite: bool = False,
    choice: Choice = Choice(),
) -> Path:
    """Write the report of one or several run folders to `out` and return that path; of a staged run, its trainings.

    Works for runs that are still going on or were killed; what is missing is said on the page. `choice`: which
    pictures. Raises RunError when a folder is no run folder, or when `out` exists (unless `overwrite`) or cannot be
    written.
    """
    folders, out = as_paths(runs), as_path(out)
    if not folders:
        raise RunError("a report needs at least one run folder")
    if out.exists() and not overwrite:
        raise RunError(f"{out} exists already and is not overwritten; choose another --out or move it away")
    summaries = [read_run(training) for run in folders for training in trainings(run)]
    write_page(out, render(summaries, title, choice))
    return out


def render(runs: Sequence[RunSummary], title: str | None = None, choice: Choice = Choice()) -> str:
    """The page as text."""
    names = distinct_names(runs)
    pictures = _pictures(runs, names, choice)
    labelled = draw_labelled({name: run.training for run, name in zip(runs, names, strict=True)}, choice)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["table"] = render_html
    return environment.get_template(TEMPLATE).render(
        title=title or ", ".join(names),
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        headline=headline(runs, names),
        comparisons=_comparisons(runs, names),
        legend=_legend(names),
        sections=_sections(runs, names),
        pictures=pictures,
        evaluated=_evaluated(runs, names),
        labelled=labelled,
        mark_colours={"object": _css(OBJECT_RGB), "background": _css(BACKGROUND_RGB)},
        choice=choice,
        palette=list(enumerate(PALETTE)),
        configurations=[(name, _yaml(run)) for run, name in zip(runs, names, strict=True)],
        messages=_messages(runs, names),
    )


def headline(runs: Sequence[RunSummary], names: Sequence[str]) -> str:
    """Who is best, by how much, and by which network: one sentence for the runs that can be compared."""
    groups = comparable(runs)
    sentences = [_best_of([runs[at] for at in group], [names[at] for at in group]) for group in groups]
    known = [sentence for sentence in sentences if sentence is not None]
    if not known:
        return "No evaluation has finished yet; the curves below show how far training is."
    if len(groups) > 1:
        known.append(APART)
    return " ".join(known)


def _best_of(runs: Sequence[RunSummary], names: Sequence[str]) -> str | None:
    scored = [
        (ap, name, run.kept)
        for run, name in zip(runs, names, strict=True)
        if run.kept is not None and (ap := run.kept.ap) is not None
    ]
    if not scored:
        return None
    scored.sort(key=lambda entry: -entry[0])
    ap, name, kept = scored[0]
    step = "" if kept.step is None else f" of step {kept.step}"
    sentence = f"{name} reaches a {kept.iou} AP of {points(ap)} with its {kept.who}{step}"
    if len(scored) == 1:
        return f"{sentence}."
    other_ap, other, _ = scored[1]
    if points(ap) == points(other_ap):
        return f"{sentence}, the same as {other}."
    return f"{sentence}, {points(ap - other_ap)} points above {other} ({points(other_ap)})."


def _comparisons(runs: Sequence[RunSummary], names: Sequence[str]) -> list[Table]:
    """One table, or one for each group of runs that can be compared."""
    groups = comparable(runs)
    found = []
    for number, group in enumerate(groups, 1):
        title = "Runs side by side" if len(groups) == 1 else f"Runs that can be compared, {number} of {len(groups)}"
        found.append(tables.run_comparison([runs[at] for at in group], [names[at] for at in group], title))
    return found


def _sections(runs: Sequence[RunSummary], names: Sequence[str]) -> list[Section]:
    """What there is to show, in reading order; parts without content are left out."""
    groups, groups_of = all_figures(runs, names), comparable(runs)
    more = {"frequency": frequency_figures(runs, names), "reliability": reliability_figures(runs, names)}
    groups |= {key: group for key, group in more.items() if group.panels}

    def found(*wanted: Table | None) -> tuple[Table, ...]:
        return tuple(table for table in wanted if table is not None)

    def drawn(*keys: str) -> tuple[Group, ...]:
        return tuple(groups[key] for key in keys if key in groups)

    splits = dict.fromkeys(split for run in runs for split in run.census)
    per_class = [tables.census_per_class(run, name) for run, name in zip(runs, names, strict=True)]
    classes = [tables.per_class_ap([runs[at] for at in group], [names[at] for at in group]) for group in groups_of]
    census = found(*(tables.census(runs, names, split) for split in splits))
    sections = [
        Section("labels", "Labels", tables=census, folded=found(*per_class)),
        Section("curves", "Accuracy over time", figures=drawn("ap")),
        Section("classes", "Classes", tables=found(*classes), figures=drawn("frequency")),
        Section("reliability", "Can scores be trusted?", figures=drawn("reliability")),
        Section("outcomes", "Right and wrong", tables=found(outcome_table(_outcomes(runs, names)))),
        Section("pseudo", "Pseudo-labels", figures=drawn("pseudo", "counts")),
        Section("losses", "Losses, learning rate and gradient", figures=drawn("losses", "lr", "gradient")),
        Section("settings", "Settings that differ", tables=found(tables.differences(runs, names))),
        Section("environment", "Environment", folded=found(tables.environments(runs, names))),
    ]
    return [part for part in sections if part.tables or part.figures or part.folded]


def _outcomes(runs: Sequence[RunSummary], names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Of each run's best network."""
    return {name: run.kept.outcomes for run, name in zip(runs, names, strict=True) if run.kept is not None}


def _legend(names: Sequence[str]) -> list[dict[str, Any]]:
    shapes = dict(zip("osD^vPX*", "●■◆▲▼✚✖★", strict=True))
    return [
        {"name": name, "series": at % len(PALETTE), "marker": shapes[MARKERS[at % len(MARKERS)]]}
        for at, name in enumerate(names)
    ]


def _evaluated(runs: Sequence[RunSummary], names: Sequence[str]) -> list[tuple[str, list[Picture]]]:
    """Of each run's best network, the pictures that were drawn when it was evaluated, with a title."""
    found = []
    for run, name in zip(runs, names, strict=True):
        if run.kept is None or run.kept_files is None or not (drawn := read_pictures(run.kept_files / FOLDER)):
            continue
        step = f" of step {run.kept.step}" if run.kept.step is not None else ""
        found.append((f"{name}: the {run.kept.who}{step}", drawn))
    return found


def _pictures(runs: Sequence[RunSummary], names: Sequence[str], choice: Choice) -> Comparison:
    """Pictures of the runs that were measured on the same as the first one that has results."""
    with_results = [(run, name) for run, name in zip(runs, names, strict=True) if _results(run) and run.validation]
    if not with_results:
        return Comparison(
            notes=[f"no pictures: no run has the results ({RESULTS_NAME}) of its best network and validation images"]
        )
    first = with_results[0][0]
    files = first.validation
    same = {name: path for run, name in with_results if first.same_measure(run) and (path := _results(run))}
    left_out = [name for _, name in with_results if name not in same]
    if files is None:
        raise AssertionError("runs without validation files were left out above")
    found = compare(same, files, choice)
    notes = [f"no pictures of {name}: it was evaluated on another data set than the first run" for name in left_out]
    return Comparison(found.rows, found.notes + notes)


def _css(colour: tuple[int, int, int]) -> str:
    return f"rgb({', '.join(map(str, colour))})"


def _results(run: RunSummary) -> Path | None:
    path = None if run.kept_files is None else run.kept_files / RESULTS_NAME
    return path if path is not None and path.is_file() else None


def _yaml(run: RunSummary) -> str:
    return yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "config.yaml is missing"


def _messages(runs: Sequence[RunSummary], names: Sequence[str]) -> list[dict[str, Any]]:
    """Problems of the folders, notes of the evaluations and events of the journals, with the run they are from."""
    found: list[dict[str, Any]] = []
    for run, name in zip(runs, names, strict=True):
        found += [{"run": name, "step": None, "text": problem} for problem in run.problems]
        for who, final in run.final.items():
            found += [{"run": name, "step": final.step, "text": f"evaluation, {who}: {note}"} for note in final.notes]
            if final.from_journal:
                text = f"{who}: no evaluation file, so its numbers are those of the journal"
                found.append({"run": name, "step": final.step, "text": text})
        events = [{"run": name, "step": row["step"], "text": str(row.get("message"))} for row in run.journal.events]
        found += events[:MOST_EVENTS]
        if len(events) > MOST_EVENTS:
            text = f"{len(events) - MOST_EVENTS} more events stand in journal.jsonl"
            found.append({"run": name, "step": None, "text": text})
    return found


def write_page(out: Path, text: str) -> None:
    """The file appears whole or not at all. Raises RunError."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunError(f"cannot write {out}: {error.strerror}") from None
