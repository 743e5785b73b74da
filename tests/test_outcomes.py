"""What predictions get wrong: hand-made cases, a naive oracle on random ones, and the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from leanmask.evaluation.coco_ap import evaluate_results
from leanmask.evaluation.outcomes import OUTCOMES, outcomes_of
from leanmask.reports.outcomes import MEANINGS, outcome_table

Row = dict[str, Any]
SIZE = 40
CATEGORIES = [
    {"id": 5, "name": "cat", "supercategory": "animal"},
    {"id": 2, "name": "dog", "supercategory": "animal"},
    {"id": 9, "name": "car", "supercategory": "vehicle"},
]


def rle(x: int, y: int, w: int, h: int) -> Row:
    mask = np.zeros((SIZE, SIZE), dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    found = coco_mask.encode(mask)
    return {"size": found["size"], "counts": found["counts"].decode()}


def truth(*objects: tuple[int, Row], categories: list[Row] = CATEGORIES, **fields: Any) -> Row:
    rows = [
        {"id": at, "image_id": 1, "category_id": key, "segmentation": mask, "bbox": [0, 0, 9, 9], **fields}
        for at, (key, mask) in enumerate(objects, 1)
    ]
    return {"images": [{"id": 1, "width": SIZE, "height": SIZE}], "annotations": rows, "categories": categories}


def result(category: int, mask: Row, score: float = 0.9) -> Row:
    return {"image_id": 1, "category_id": category, "segmentation": mask, "score": score}


def measured(content: Row, *rows: Row) -> dict[str, int]:
    found = evaluate_results(content, list(rows)).outcomes
    return {outcome: number for outcome, number in found.items() if number}


SQUARE, THIRD, FAR = rle(5, 5, 12, 12), rle(5, 5, 12, 4), rle(25, 25, 10, 10)


@pytest.mark.parametrize(
    ("category", "mask", "outcome"),
    [
        (5, SQUARE, "correct"),
        (5, THIRD, "localisation"),
        (2, SQUARE, "similar"),
        (2, THIRD, "similar"),
        (9, SQUARE, "other"),
        (5, FAR, "background"),
    ],
)
def test_each_outcome(category: int, mask: Row, outcome: str) -> None:
    # Objects of the other classes lie out of the way, so that each class has a prediction to be looked at.
    away = rle(0, 36, 4, 4)
    content = truth((5, SQUARE), *((key, away) for key in (2, 9)))
    assert measured(content, result(category, mask)) == {outcome: 1}


def test_only_as_many_as_there_are_objects_best_first() -> None:
    rows = [result(5, FAR, 0.2), result(5, SQUARE, 0.8), result(2, FAR, 0.99)]
    assert measured(truth((5, SQUARE)), *rows) == {"correct": 1}


def test_a_second_mask_of_an_object_is_a_poor_one() -> None:
    rows = [result(5, SQUARE, 0.8), result(5, SQUARE, 0.7)]
    assert measured(truth((5, SQUARE), (5, FAR)), *rows) == {"correct": 1, "localisation": 1}


def test_crowds_are_neither() -> None:
    content = truth((5, FAR), (5, SQUARE))
    content["annotations"][1]["iscrowd"] = 1
    assert measured(content, result(5, THIRD)) == {}
    assert measured(content, result(5, FAR)) == {"correct": 1}


@pytest.mark.parametrize("above", [None, "thing"])
def test_without_two_supercategories_nothing_is_similar(above: str | None) -> None:
    plain = [{"id": row["id"], "name": row["name"]} | ({"supercategory": above} if above else {}) for row in CATEGORIES]
    content = truth((5, SQUARE), (2, FAR), categories=plain)
    assert measured(content, result(2, SQUARE)) == {"other": 1}


def naive(objects: list[Row], results: list[Row]) -> dict[str, int]:
    """The definition, written down one prediction at a time on dense masks."""
    counts = dict.fromkeys(OUTCOMES, 0)
    order = sorted(range(len(results)), key=lambda at: -results[at]["score"])
    used: set[int] = set()
    for category in {row["category_id"] for row in objects}:
        own = [at for at in order if results[at]["category_id"] == category]
        for at in own[: sum(row["category_id"] == category for row in objects)]:
            mask = coco_mask.decode(results[at]["rle"]).astype(bool)
            ious = []
            for row in objects:
                other = coco_mask.decode(row["rle"]).astype(bool)
                same_image = row["image_id"] == results[at]["image_id"]
                ious.append((mask & other).sum() / (mask | other).sum() if same_image else 0.0)
            fits = [(iou, -k) for k, iou in enumerate(ious) if objects[k]["category_id"] == category and k not in used]
            touched = {objects[k]["category_id"] for k, iou in enumerate(ious) if iou >= 0.1}
            if fits and max(fits)[0] >= 0.5:
                used.add(-max(fits)[1])
                counts["correct"] += 1
            elif category in touched:
                counts["localisation"] += 1
            elif any(abs(category - other) == 1 for other in touched):
                counts["similar"] += 1
            else:
                counts["other" if touched else "background"] += 1
    return counts


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_equals_the_naive_count(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def rows(number: int) -> list[Row]:
        boxes = rng.integers([0, 0, 3, 3], [20, 20, 20, 20], size=(number, 4)).tolist()
        return [
            {
                "image_id": int(rng.integers(1, 3)),
                "category_id": int(rng.integers(1, 5)),
                "rle": rle(*box),
                "iscrowd": 0,
                "score": float(rng.random()),
            }
            for box in boxes
        ]

    objects, results = rows(8), rows(12)
    found = outcomes_of(objects, results, lambda one, other: abs(one - other) == 1)
    assert found == naive(objects, results)


def test_the_table_is_of_shares() -> None:
    counts = {"correct": 6, "localisation": 2, "similar": 0, "other": 1, "background": 1}
    table = outcome_table({"a": counts, "without": {}})
    assert table is not None
    assert table.headers == ("", "a")
    assert [row[1] for row in table.rows] == ["60.0", "20.0", "0.0", "10.0", "10.0", "10"]
    assert list(MEANINGS) == list(OUTCOMES)
    assert outcome_table({"without": {}}) is None
