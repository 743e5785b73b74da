"""What a person gets wrong, in rows that a protocol has kept: classified points with the other label, and the one point
of an object beside it.
"""

from __future__ import annotations

import numpy as np

from leanmask.data.annotation import Row
from leanmask.data.withholding.chance import count_of, shuffled, stable_number
from leanmask.data.withholding.clicks import boundary_distances, random_beside, rle_of
from leanmask.data.withholding.protocols import Source


def with_wrong_labels(source: Source, rows: list[Row]) -> tuple[list[Row], int]:
    """Rows where the share `point_noise` of all classified points has the other label, and how many these are."""
    changed, wrong = list(rows), _wrong_points(source, rows)
    for position, number in wrong:
        labels = list(changed[position]["point_labels"])
        labels[number] = 1 - labels[number]
        changed[position] = {**changed[position], "point_labels": labels}
    return changed, len(wrong)


def with_displaced_points(source: Source, rows: list[Row]) -> tuple[list[Row], int]:
    """Rows where the share `point_displaced` of the objects with one point has it beside the object, and how many these
    are. Objects that fill the image have nothing beside them and keep their point.
    """
    ids = [row["id"] for row in rows if "point" in row]
    chosen = set(shuffled(ids, source.seed, "displaced")[: count_of(source.options.point_displaced, len(ids))])
    masks = {row["id"]: rle_of(row, source.size(image)) for image, row in source.objects() if row["id"] in chosen}
    beside = {number: random_beside(rle, source.seed, number) for number, rle in masks.items()}
    found = {number: point.tolist() for number, point in beside.items() if point is not None}
    return [{**row, "point": found[row["id"]]} if row["id"] in found else row for row in rows], len(found)


def _wrong_points(source: Source, rows: list[Row]) -> list[tuple[int, int]]:
    """(row, point) of the labels to turn over: exactly the wanted share of all points."""
    options = source.options
    points = [(i, k) for i, row in enumerate(rows) for k in range(len(row.get("point_coords", ())))]
    count = count_of(options.point_noise, len(points))
    if not count:
        return []
    luck = {(i, k): stable_number(source.seed, "noise", rows[i]["id"], k) for i, k in points}
    if options.noise_where == "random":
        return sorted(points, key=luck.__getitem__)[:count]
    distances = _distances(source, rows)
    return sorted(points, key=lambda point: (distances[point[0]][point[1]], luck[point]))[:count]


def _distances(source: Source, rows: list[Row]) -> dict[int, list[float]]:
    masks = {row["id"]: rle_of(row, source.size(image)) for image, row in source.objects()}
    return {
        i: boundary_distances(masks[row["id"]], np.asarray(row["point_coords"])).tolist()
        for i, row in enumerate(rows)
        if row.get("point_coords")
    }
