"""The table of what predictions get wrong, for one evaluation or several side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leanmask.reports.collect import number
from leanmask.reports.layout import Table, count, points

MEANINGS = {
    "correct": "right: mask IoU 0.5 or more with an object of its class",
    "localisation": "poor mask, or a second one for the same object",
    "similar": "confused with a class of the same supercategory",
    "other": "confused with another class",
    "background": "nothing is there",
}
NOTE = "Of every class as many predictions as it has objects, the best-scored ones; share of them in percent."


def outcome_table(outcomes: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """outcomes: by run or network, the number of predictions of each outcome. None where there is none at all."""
    known = {name: found for name, found in outcomes.items() if _total(found) > 0}
    if not known:
        return None
    rows: list[list[str]] = []
    bars: dict[tuple[int, int], float] = {}
    for at, (outcome, meaning) in enumerate(MEANINGS.items()):
        shares = [(number(found.get(outcome)) or 0.0) / _total(found) for found in known.values()]
        rows.append([meaning, *map(points, shares)])
        bars |= {(at, column): share for column, share in enumerate(shares, start=1)}
    rows.append(["predictions looked at", *(count(_total(found)) for found in known.values())])
    return Table("What the predictions are", ("", *known), rows, note=NOTE, bars=bars)


def _total(found: Mapping[str, Any]) -> float:
    return sum(number(found.get(outcome)) or 0.0 for outcome in MEANINGS)
