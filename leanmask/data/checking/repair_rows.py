"""Repairs of one annotation: what cannot be right is taken away, and what is left says no more than was labelled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from leanmask.data.annotation import Fault, Row, Size, box_of, faults, is_number, segmentation_of, supervision_of
from leanmask.data.checking.rows import WARNINGS, points_inside, polygon_area, row_faults
from leanmask.geometry import FloatArray, xywh_to_xyxy, xyxy_to_xywh
from leanmask.supervision import Supervision

ROUNDS = 4  # a repaired mask gives a new box, a new box moves points out: each round looks at all again


def repair_row(row: Row, size: Size | None) -> tuple[Row | None, list[tuple[str, str]]]:
    """A repaired copy of an annotation and what was done, as (code, sentence).

    The row is None when nothing usable is left of it. size: (height, width) of its image.
    """
    row = dict(row)
    done: list[tuple[str, str]] = []
    labelled = supervision_of(row) != Supervision.NONE
    for _ in range(ROUNDS):
        found = [fault for fault in row_faults(row, size) if fault.code not in WARNINGS]
        if not found:
            lost = labelled and supervision_of(row) == Supervision.NONE
            return (None if lost else row), done
        lost_crowds = [fault for fault in found if fault.field == "iscrowd" and row.get("iscrowd") == 1]
        if lost_crowds:
            return None, [*done, (lost_crowds[0].code, lost_crowds[0].message)]
        # Masks first: boxes are taken from them.
        for fault in sorted(_one_per_field(found), key=lambda fault: fault.field != "segmentation"):
            action = _repair_field(row, fault, size)
            done.append((fault.code, f"{fault.message}: {action}"))
    return None, done


def _one_per_field(found: list[Fault]) -> list[Fault]:
    return list({fault.field: fault for fault in reversed(found)}.values())


def _repair_field(row: Row, fault: Fault, size: Size | None) -> str:
    if fault.field == "segmentation":
        return _repair_mask(row)
    if fault.field == "bbox":
        return _repair_box(row, size)
    if fault.field in ("point_coords", "point_labels"):
        return _repair_points(row, size)
    if fault.field in ("weight", "score"):
        return _repair_weight(row, fault.field)
    if fault.field == "iscrowd":
        row["iscrowd"] = 0
        return "set to 0"
    row.pop(fault.field, None)
    return f"{fault.field} removed"


def _repair_mask(row: Row) -> str:
    found = row.pop("segmentation")
    if not isinstance(found, list):
        return "mask removed"
    kept = [part for part in found if _usable_polygon(part)]
    if not kept:
        return "mask removed"
    row["segmentation"] = kept
    return f"{len(found) - len(kept)} of {len(found)} polygons removed"


def _usable_polygon(part: Any) -> bool:
    if not isinstance(part, list) or len(part) % 2 or len(part) < 6 or not all(map(is_number, part)):
        return False
    return all(map(math.isfinite, part)) and polygon_area(np.asarray(part, dtype=np.float64).reshape(-1, 2)) > 0


def _repair_box(row: Row, size: Size | None) -> str:
    """The mask's bounds where there is a mask, else the part of the box in the image, else no box."""
    found = row.pop("bbox")
    if row.get("segmentation") and not any(fault.field == "segmentation" for fault in faults(row, size)):
        box, action = box_of(row, segmentation_of(row)), "taken from the mask"
    elif isinstance(found, list) and len(found) == 4 and all(is_number(n) and math.isfinite(n) for n in found):
        box, action = xywh_to_xyxy(np.asarray([found]))[0], "cut off at the image's border"
    else:
        return "box removed"
    box = _clip(box, size)
    if not (box[2:] > box[:2]).all():
        return "box removed"
    row["bbox"] = [round(float(edge), 3) for edge in xyxy_to_xywh(box)[0]]
    return action


def _clip(box: FloatArray, size: Size | None) -> FloatArray:
    return box if size is None else np.clip(box, 0, [size[1], size[0], size[1], size[0]])


def _repair_points(row: Row, size: Size | None) -> str:
    coords, labels = row.pop("point_coords", None), row.pop("point_labels", None)
    if not isinstance(coords, list) or not isinstance(labels, list) or len(coords) != len(labels):
        return "points removed"
    pairs = [(xy, label) for xy, label in zip(coords, labels, strict=True) if _usable_point(xy, label)]
    box = None
    if row.get("bbox") and not any(fault.field == "bbox" for fault in faults(row, size)):
        box = xywh_to_xyxy(np.asarray([row["bbox"]]))[0]
    points = np.asarray([xy for xy, _ in pairs], dtype=np.float64).reshape(-1, 2)
    kept = [pair for pair, inside in zip(pairs, points_inside(points, box, size), strict=True) if inside]
    if not row.get("bbox") and not row.get("segmentation"):
        kept = [pair for pair in kept if pair[1] == 1][:1]
    if kept:
        row["point_coords"], row["point_labels"] = [xy for xy, _ in kept], [label for _, label in kept]
    return f"{len(coords) - len(kept)} of {len(coords)} points removed"


def _usable_point(xy: Any, label: Any) -> bool:
    pair = isinstance(xy, list) and len(xy) == 2 and all(is_number(n) and math.isfinite(n) for n in xy)
    return pair and label in (0, 1)


def _repair_weight(row: Row, field: str) -> str:
    found = row[field]
    row[field] = min(max(found, 0), 1) if is_number(found) and math.isfinite(found) else 0
    return f"set to {row[field]}"
