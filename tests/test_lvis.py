"""LVIS's protocol: equal to the reference package on generated cases, and its fields from file to target."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_helpers import CATEGORIES, image, row, write
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import Outcome

from leanmask.benchmark.speed_evaluation import synthetic_results
from leanmask.data.coco import AnnotationStore
from leanmask.data.digits import DigitsSpec, write_digits
from leanmask.data.federated import known_categories
from leanmask.data.layout import SplitFiles
from leanmask.data.unlabelled import open_pool
from leanmask.data.views.targets import place, to_target
from leanmask.errors import ConfigError, DataError
from leanmask.evaluation.lvis import evaluate_lvis
from leanmask.evaluation.validator import score_results
from leanmask.geometry import Frame

Row = dict[str, Any]


def federated(truth: Row, seed: int) -> Row:
    """The truth with random LVIS fields; some classes lack objects, some images are not exhaustive for some."""
    rng = np.random.default_rng(seed)
    truth = copy.deepcopy(truth)
    classes = [category["id"] for category in truth["categories"]]
    for category in truth["categories"]:
        category |= {"frequency": "rcf"[int(rng.integers(3))], "image_count": 1, "instance_count": 1}
    truth["annotations"] = [each for each in truth["annotations"] if each["category_id"] != classes[-1]]
    for picture in truth["images"]:
        own = {each["category_id"] for each in truth["annotations"] if each["image_id"] == picture["id"]}
        others = [i for i in classes if i not in own]
        picture["neg_category_ids"] = [i for i in others if rng.random() < 0.5]
        picture["not_exhaustive_category_ids"] = [i for i in sorted(own) if rng.random() < 0.3]
    return truth


def reference(truth: Row, results: list[Row], folder: Path, kind: str, most: int) -> dict[str, float]:
    """The numbers of the `lvis` package."""
    from lvis import LVIS, LVISEval, LVISResults

    path = folder / "truth.json"
    path.write_text(json.dumps(truth))
    left_out = "bbox" if kind == "segm" else "segmentation"
    rows = [{key: value for key, value in each.items() if key != left_out} for each in copy.deepcopy(results)]
    of_truth = LVIS(str(path))
    evaluator = LVISEval(of_truth, LVISResults(of_truth, rows, max_dets=most), kind)
    evaluator.run()
    return dict(evaluator.results)


@pytest.fixture(autouse=True)
def _numpy_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "float", float, raising=False)  # the reference uses a name that numpy has removed


@pytest.mark.parametrize(("seed", "most"), [(0, 300), (1, 300), (2, 7)])
def test_equal_to_the_reference(seed: int, most: int, tmp_path: Path) -> None:
    truth, results = synthetic_results(images=12, detections=25, classes=9, seed=seed)
    truth = federated(truth, seed)
    found = evaluate_lvis(truth, results, max_detections=most).metrics
    for kind, prefix in (("segm", ""), ("bbox", "box_")):
        expected = reference(truth, results, tmp_path, kind, most)
        for key in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"):
            ours = found[prefix + key]
            assert (-1 if math.isnan(ours) else ours) == pytest.approx(expected[key], abs=1e-6), (kind, key)
        assert found[prefix + "AR300"] == pytest.approx(expected[f"AR@{300}"], abs=1e-6)


def test_ties_and_the_order_of_rows_are_the_references(tmp_path: Path) -> None:
    truth, results = synthetic_results(images=6, detections=20, classes=4, seed=5)
    truth = federated(truth, 5)
    for each in results:
        each["score"] = round(each["score"], 1)
    results = [results[i] for i in np.random.default_rng(0).permutation(len(results))]
    found, expected = evaluate_lvis(truth, results).metrics, reference(truth, results, tmp_path, "segm", 300)
    assert found["AP"] == pytest.approx(expected["AP"], abs=1e-6)


def test_a_class_that_nobody_looked_for_costs_nothing() -> None:
    truth, results = synthetic_results(images=4, detections=10, classes=3, seed=1)
    for category in truth["categories"]:
        category["frequency"] = "f"
    for picture in truth["images"]:
        picture |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    truth["annotations"] = [each for each in truth["annotations"] if each["category_id"] != 3]
    wrong = [{**each, "category_id": 3, "score": 0.99} for each in results]
    plain, flooded = evaluate_lvis(truth, results), evaluate_lvis(truth, [*results, *wrong])
    assert flooded.metrics["AP"] == plain.metrics["AP"]
    assert "nobody looked for" in flooded.notes[0]
    for picture in truth["images"]:
        picture["neg_category_ids"] = [3]
    assert math.isnan(evaluate_lvis(truth, wrong).metrics["APr"])


def test_truth_without_the_fields_is_refused() -> None:
    truth, results = synthetic_results(images=2, detections=2, classes=2, seed=0)
    with pytest.raises(DataError, match=r"image 1 .* has no neg_category_ids"):
        evaluate_lvis(truth, results)
    for picture in truth["images"]:
        picture |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    with pytest.raises(DataError, match=r"class '1' .* frequency None; LVIS has r, c and f"):
        evaluate_lvis(truth, results)
    with pytest.raises(ConfigError, match="protocol is 'voc'"):
        score_results(Path("a"), Path("b"), "voc")


@given(st.sets(st.integers(1, 9)), st.sets(st.integers(1, 9)), st.sets(st.integers(1, 9)))
@settings(max_examples=50, deadline=None)
def test_known_categories(present: set[int], negative: set[int], partly: set[int]) -> None:
    found = known_categories({"neg_category_ids": [*negative], "not_exhaustive_category_ids": [*partly]}, present)
    assert found == tuple(i for i in range(1, 10) if (i in present or i in negative) and i not in partly)
    assert known_categories({}, present) is None


def test_fields_reach_the_target(tmp_path: Path) -> None:
    images = [image(neg_category_ids=[7], not_exhaustive_category_ids=[90]), image(2), image(3, neg_category_ids=[90])]
    rows = [row(1, category_id=90, bbox=[1, 1, 9, 9]), row(2, image_id=2, bbox=[1, 1, 9, 9])]
    store = AnnotationStore.open(write(tmp_path, rows, images), tmp_path)  # image 3 is decided: nothing of class 90
    dog = store.classes.index_of(7)
    assert [store[i].known_categories for i in range(3)] == [(dog,), None, (store.classes.index_of(90),)]
    frame = Frame((40, 60), (64, 64), (1.0, 1.0), (0.0, 0.0))
    target = to_target(place(store[0], frame))
    assert target.known_categories is not None
    assert target.to("cpu").known_categories.tolist() == [dog]
    assert store.census().class_images == {"cat": 1, "dog": 1}
    assert store[2].exhaustive


def test_unlabelled_images_say_nothing_about_classes(tmp_path: Path) -> None:
    path = write(tmp_path, [], [image(neg_category_ids=[7])])
    (tmp_path / "1.png").write_bytes(b"not read")
    pool = open_pool([SplitFiles(path, tmp_path, None)], AnnotationStore.open(path, tmp_path).classes)
    assert pool[0].known_categories is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"neg_category_ids": [5]}, r"image 1: neg_category_ids must be .* found \[5\]"),
        ({"neg_category_ids": 7}, "neg_category_ids must be a list of the file's category ids, found 7"),
        ({"not_exhaustive_category_ids": ["7"]}, r"not_exhaustive_category_ids must be .* found \['7'\]"),
        ({"neg_category_ids": [7]}, "category id 7 is in neg_category_ids, but annotation 1 is one of it"),
    ],
)
def test_broken_fields_are_named(fields: Row, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, [row(bbox=[1, 1, 9, 9])], [image(**fields)])
    with pytest.raises(DataError, match=message):
        AnnotationStore.open(path, tmp_path)
    assert len(CATEGORIES) == 2


def test_command_line(tmp_path: Path, leanmask: Callable[..., Outcome]) -> None:
    data = tmp_path / "digits"
    write_digits(data, DigitsSpec(train=30, tune=0, val=4, size_px=48, longtail=True))
    truth = json.loads((data / "annotations" / "instances_val.json").read_text())
    results = tmp_path / "results.json"
    keys = ("image_id", "category_id", "segmentation", "bbox")
    results.write_text(json.dumps([{key: each[key] for key in keys} | {"score": 0.9} for each in truth["annotations"]]))
    done = leanmask("evaluate", results, data, "--protocol", "lvis", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["metrics"]["AP"] == pytest.approx(1)
    assert {each["frequency"] for each in found["per_class"]} <= set("rcf")
    text = leanmask("evaluate", results, data, "--protocol", "lvis").out
    assert "APr" in text
    assert "allowed: coco, lvis" in leanmask("evaluate", results, data, "--protocol", "voc").err
