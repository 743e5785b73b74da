"""What a report says in tables: runs side by side, AP of each class, the census of labels, settings, benchmarks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from leanmask.reports.collect import FinalMetrics, RunSummary, fraction, number, section
from leanmask.reports.layout import (
    NOTHING,
    Table,
    count,
    duration,
    footnotes,
    points,
    render_html,
    render_markdown,
    render_rich,
    spread,
)

__all__ = [
    "Table",
    "benchmark_table",
    "benchmark_tables",
    "census",
    "census_per_class",
    "differences",
    "environments",
    "gap_closed",
    "per_class_ap",
    "render_html",
    "render_markdown",
    "render_rich",
    "run_comparison",
]
KINDS = ("mask", "box", "points", "point", "none")
IMAGE_COUNTS = {
    "images": "images",
    "exhaustive_images": "images, exhaustively annotated",
    "negative_images": "images, nothing on them (negative)",
    "unlabelled_images": "images, unlabelled",
}
BENCHMARK_NOTE = "Mean ± standard deviation over seeds; AP in points (hundredths); time of one training."
Arms = dict[str, dict[str, Mapping[str, Any]]]


def run_comparison(runs: Sequence[RunSummary], names: Sequence[str], title: str = "Runs side by side") -> Table:
    """One row per run that can be compared, by the network that it keeps as its best; the best number of a column is
    stressed.
    """
    boxes = any(run.kept is not None and run.kept.iou == "box" for run in runs)
    keys = ("box_AP", "box_AP50", "box_AP75") if boxes else ("AP", "AP50", "AP75", "box_AP")
    rows, values = [], []
    for run, name in zip(runs, names, strict=True):
        kept = run.kept
        found = [_metric(kept, key) for key in keys]
        last = [f"{who} {points(each.ap)}" for who, each in run.final.items()]
        network = NOTHING if kept is None else kept.who if kept.step is None else f"{kept.who}, step {kept.step}"
        early = ", stopped early" if run.stopped_early else ""
        steps = f"{run.last_step} of {run.planned_steps}{early}" if _unfinished(run) else str(run.last_step)
        time = duration(run.train_seconds)
        text = [name, run.method, run.model, network]
        rows.append([*text, *map(points, found), ", ".join(last) or NOTHING, steps, time])
        values.append(found)
    measured = (key.replace("_", " ") for key in keys)
    headers = ("run", "method", "model", "best", *measured, "AP at the end", "steps", "time")
    return Table(title, headers, rows, text_columns=4, strong=_column_best(values, first_column=4))


def per_class_ap(runs: Sequence[RunSummary], names: Sequence[str]) -> Table | None:
    """AP of every class side by side, worst mean first, of runs that can be compared; None when none has it."""
    columns = [_class_rows(run) for run in runs]
    order: dict[str, dict[str, Any]] = {}
    for column in columns:
        for key, row in column.items():
            order.setdefault(key, row)
    if not order:
        return None
    values = {key: [fraction(column.get(key, {}).get("AP")) for column in columns] for key in order}
    keys = sorted(order, key=lambda key: (_mean(values[key]), key))
    rows = [[key, _count(order[key].get("count")), *map(points, values[key])] for key in keys]
    bars = {(at, i + 2): ap for at, key in enumerate(keys) for i, ap in enumerate(values[key]) if ap is not None}
    strong = _row_best([values[key] for key in keys], first_column=2)
    iou = next((run.kept.iou for run in runs if run.kept is not None), "mask")
    return Table(
        f"{iou.capitalize()} AP of each class, worst first",
        ("class", "objects", *names),
        rows,
        strong=strong,
        bars=bars,
    )


def class_table(per_class: Sequence[Mapping[str, Any]], iou: str = "mask") -> Table:
    """One evaluation's classes, in the order given (worst first). iou: what AP is of, "mask" or "box"."""
    rows = [
        [str(row["name"]), str(row["id"]), points(number(row["AP"])), points(number(row["AP50"])), count(row["count"])]
        for row in per_class
    ]
    return Table("per class, worst first", ("class", "id", f"{iou} AP", "AP50", "objects"), rows)


def census(runs: Sequence[RunSummary], names: Sequence[str], split: str = "train") -> Table | None:
    """What was annotated, by kind of supervision; runs that saw the same data share a column."""
    groups = _same_census(runs, names, split)
    if not groups:
        return None
    found = [content for content, _ in groups]
    rows = [[text, *(_count(c.get(key)) for c in found)] for key, text in IMAGE_COUNTS.items()]
    kinds = [kind for c in found for kind in section(c, "objects")]
    for kind in [*KINDS, *sorted(set(kinds) - set(KINDS))]:
        rows.append([f"objects: {_kind_text(kind)}", *(_count(section(c, "objects").get(kind, 0)) for c in found)])
    if any(c.get("one_label_points") for c in found):
        rows.append(["objects: points of one label only", *(_count(c.get("one_label_points")) for c in found)])
    if any(c.get("rejected") for c in found):
        rows.append(["rejected (weight 0)", *(_count(c.get("rejected")) for c in found)])
    rows.append(["crowd regions (ignored)", *(_count(c.get("crowds")) for c in found)])
    return Table(f"Labels of the {split} split", ("", *(" / ".join(who) for _, who in groups)), rows)


def census_per_class(run: RunSummary, name: str, split: str = "train") -> Table | None:
    """Objects of each class by kind of supervision, the class with the fewest masks first."""
    content = section(run.census.get(split, {}), "per_class")
    if not content:
        return None
    kinds = [kind for kind in KINDS if any(section(content, key).get(kind) for key in content)]
    order = sorted(content, key=lambda key: (section(content, key).get("mask", 0), key))
    rows = [[key, *(_count(section(content, key).get(kind, 0)) for kind in kinds)] for key in order]
    return Table(f"Labels of each class, {split} split: {name}", ("class", *map(_kind_text, kinds)), rows)


def differences(runs: Sequence[RunSummary], names: Sequence[str]) -> Table | None:
    """The settings in which the runs differ; None for a single run."""
    flat = [flatten(run.config) for run in runs]
    keys = sorted({key for settings in flat for key in settings})
    rows = [[key, *(f.get(key, NOTHING) for f in flat)] for key in keys if len({f.get(key) for f in flat}) > 1]
    if len(runs) < 2 or not rows:
        return None
    return Table("Settings that differ", ("setting", *names), rows, text_columns=len(runs) + 1)


def environments(runs: Sequence[RunSummary], names: Sequence[str]) -> Table | None:
    """Folder, versions and machine of every run."""
    flat = [{"folder": str(run.folder), **flatten(run.environment)} for run in runs]
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    rows = [[key, *(f.get(key, NOTHING) for f in flat)] for key in keys]
    return Table("Environment", ("", *names), rows, text_columns=len(runs) + 1) if rows else None


def benchmark_tables(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str] = ("AP", "AP50", "AP75")) -> list[Table]:
    """One table per protocol, model, split and overrides, from rows {protocol, arm, model, seed, steps, metrics, ...}:
    the arms in the order of their first rows, `full` at the end.

    Mean +- sample standard deviation over seeds. `gap closed` is (AP - AP_baseline) / (AP_full - AP_baseline) of the
    means, with the deviation over the seeds that all three arms have. An upper bound stored under protocol `full`
    serves every protocol of the same model and makes no table of its own then. Of rows with the same seed the last
    counts.
    """
    groups: dict[tuple[str, str], Arms] = {}
    for row in rows:
        setting = (str(row.get("model", "?")), str(row.get("split", "val")), *map(str, row.get("overrides") or ()))
        arms = groups.setdefault(
            (str(row.get("protocol", "?")), ", ".join(part for part in setting if part != "val")), {}
        )
        arms.setdefault(str(row.get("arm", "?")), {})[str(row.get("seed", 0))] = row
    bounds = {
        setting: arms["full"] for (protocol, setting), arms in groups.items() if protocol == "full" and "full" in arms
    }
    served = {setting for protocol, setting in groups if protocol != "full"}
    tables = []
    for (protocol, where), arms in groups.items():
        if protocol == "full" and where in served:
            continue
        shared = {"full": bounds[where]} if where in bounds else {}
        tables.append(_benchmark_table(f"{protocol}, {where}", shared | arms, metrics))
    return tables


def benchmark_table(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str] = ("AP", "AP50", "AP75")) -> Table:
    """`benchmark_tables` as a single table; where there are several, a first column says which one a row is from."""
    tables = benchmark_tables(rows, metrics) or [_benchmark_table("no rows yet", {}, metrics)]
    if len(tables) == 1:
        return tables[0]
    joined = [[table.title, *row] for table in tables for row in table.rows]
    headers = ("protocol", *tables[0].headers)
    said = dict.fromkeys(table.note.removeprefix(BENCHMARK_NOTE) for table in tables)
    return Table("Benchmark", headers, joined, tables[0].text_columns + 1, note=BENCHMARK_NOTE + "".join(said))


def _benchmark_table(title: str, arms: Arms, metrics: Sequence[str]) -> Table:
    order = sorted(arms, key=lambda arm: arm == "full")
    ap = {arm: _known({seed: _row_metric(row, "AP") for seed, row in arms[arm].items()}) for arm in order}
    body = []
    for arm in order:
        rows = list(arms[arm].values())
        columns = [
            spread(list(_known({at: _row_metric(row, key) for at, row in enumerate(rows)}).values())) for key in metrics
        ]
        seconds = list(_known({at: number(row.get("train_seconds")) for at, row in enumerate(rows)}).values())
        time = duration(statistics.fmean(seconds)) if seconds else NOTHING
        text = [arm, _each(rows, "who"), str(len(rows)), _each(rows, "steps")]
        body.append([*text, *columns, gap_closed(ap, arm), _of_full(ap, arm), time])
    headers = ("arm", "network", "seeds", "steps", *metrics, "gap closed", "of full", "time")
    said = {arm: [str(row["note"]) for row in arms[arm].values() if row.get("note")] for arm in order}
    return Table(title, headers, body, text_columns=2, note=BENCHMARK_NOTE + footnotes(said))


def _each(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    return " / ".join(sorted({str(row.get(key, NOTHING)) for row in rows}))


def _known(values: Mapping[Any, float | None]) -> dict[Any, float]:
    return {key: value for key, value in values.items() if value is not None}


def gap_closed(ap: Mapping[str, Mapping[str, float]], arm: str) -> str:
    """The share of the gap from baseline to full that `arm` closes, in percent. ap: arm -> seed -> AP."""
    if arm in ("baseline", "full") or not all(ap.get(name) for name in ("baseline", "full", arm)):
        return NOTHING
    low, high, mine = (statistics.fmean(ap[name].values()) for name in ("baseline", "full", arm))
    if high <= low:
        return NOTHING
    shared = [seed for seed in ap[arm] if seed in ap["baseline"] and ap["full"].get(seed, 0) > ap["baseline"][seed]]
    each = [(ap[arm][s] - ap["baseline"][s]) / (ap["full"][s] - ap["baseline"][s]) for s in shared]
    deviation = f" ± {100 * statistics.stdev(each):.0f}" if len(each) > 1 else ""
    return f"{100 * (mine - low) / (high - low):.0f}{deviation} %"


def _of_full(ap: Mapping[str, Mapping[str, float]], arm: str) -> str:
    if arm == "full" or not ap.get(arm) or not ap.get("full"):
        return NOTHING
    full = statistics.fmean(ap["full"].values())
    return f"{100 * statistics.fmean(ap[arm].values()) / full:.0f} %" if full > 0 else NOTHING


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys and text values."""
    flat: dict[str, str] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return flat


def _unfinished(run: RunSummary) -> bool:
    return run.planned_steps is not None and run.last_step < run.planned_steps


def _kind_text(kind: str) -> str:
    return {"none": "no label", "point": "one point"}.get(kind, kind)


def _metric(final: FinalMetrics | None, key: str) -> float | None:
    return fraction(final.metrics.get(key)) if final else None


def _row_metric(row: Mapping[str, Any], key: str) -> float | None:
    return fraction(section(row, "metrics").get(key))


def _count(value: Any) -> str:
    return count(number(value))


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else float("inf")


def _class_rows(run: RunSummary) -> dict[str, dict[str, Any]]:
    return {str(row.get("name", row.get("id"))): row for row in run.kept.per_class} if run.kept else {}


def _same_census(
    runs: Sequence[RunSummary], names: Sequence[str], split: str
) -> list[tuple[dict[str, Any], list[str]]]:
    groups: list[tuple[dict[str, Any], list[str]]] = []
    for run, name in zip(runs, names, strict=True):
        content = run.census.get(split)
        known = next((who for found, who in groups if found == content), None)
        if known is not None:
            known.append(name)
        elif content:
            groups.append((content, [name]))
    return groups


def _column_best(values: Sequence[Sequence[float | None]], first_column: int) -> frozenset[tuple[int, int]]:
    """The cells that hold a column's highest value, if there is more than one row."""
    if len(values) < 2:
        return frozenset()
    found = set()
    for index, column in enumerate(zip(*values, strict=True)):
        best = max((value for value in column if value is not None), default=None)
        found |= {(at, index + first_column) for at, value in enumerate(column) if best is not None and value == best}
    return frozenset(found)


def _row_best(values: Sequence[Sequence[float | None]], first_column: int) -> frozenset[tuple[int, int]]:
    if not values:
        return frozenset()
    turned = _column_best([list(row) for row in zip(*values, strict=True)], first_column=0)
    return frozenset((row, column + first_column) for column, row in turned)
