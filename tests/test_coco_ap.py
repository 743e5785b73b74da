"""COCO evaluation against pycocotools on generated cases, and every way a truth or results file can be broken."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from leanmask.errors import ConfigError, DataError
from leanmask.evaluation.coco_ap import Evaluation, evaluate_results
from leanmask.evaluation.rle_check import rle_areas
from leanmask.rle import decode_counts

Row = dict[str, Any]
CLASSES = (90, 3, 11, 40)  # sparse, in no order; 40 never occurs in a truth
SIZE = (130, 170)
KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def blob(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A random ellipse, small to large, now and then with a hole."""
    height, width = size
    ys, xs = np.mgrid[:height, :width]
    radius = rng.choice([5.0, 18.0, 70.0]) * rng.uniform(0.6, 1.3, 2)
    centre = rng.uniform(0, (height, width))
    distance = ((ys - centre[0]) / radius[0]) ** 2 + ((xs - centre[1]) / radius[1]) ** 2
    inner = rng.choice([0.0, 0.2])
    mask = (distance <= 1) & (distance >= inner)
    mask[int(centre[0]) % height, int(centre[1]) % width] = True
    return mask


def encode(mask: np.ndarray) -> Row:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def box_of(mask: np.ndarray) -> list[float]:
    return coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))).tolist()


def shape_of(mask: np.ndarray, how: int) -> Any:
    """A mask as compressed RLE, uncompressed RLE, or the polygon of its box (how = 0, 1, 2)."""
    if how == 0:
        return encode(mask)
    if how == 1:
        line = mask.T.reshape(-1).astype(np.int8)
        edges = np.flatnonzero(np.diff(line, prepend=0))
        return {"size": list(mask.shape), "counts": np.diff([0, *edges, line.size]).tolist()}
    x, y, w, h = box_of(mask)
    return [[x, y, x, y + h, x + w, y + h, x + w, y]]


def make_case(
    seed: int, images: int = 6, objects: int = 6, crowds: bool = True, detections: int = 12
) -> tuple[Row, list[Row]]:
    """A truth with empty images, all kinds of masks and crowds, and results that are near, far, doubled and tied."""
    rng = np.random.default_rng(seed)
    annotations: list[Row] = []
    results: list[Row] = []
    ids = rng.permutation(1000)[:images].tolist()
    for image_id in ids:
        seen = []
        for _ in range(rng.integers(0, objects + 1)):
            mask = blob(rng)
            category = int(rng.choice(CLASSES[:3]))
            seen.append((mask, category))
            annotations.append(
                {
                    "id": 5000 - len(annotations),
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": box_of(mask),
                    "area": float(mask.sum()),
                    "iscrowd": int(crowds and rng.random() < 0.2),
                    "segmentation": shape_of(mask, int(rng.integers(3))),
                }
            )
        for _ in range(rng.integers(0, detections + 1)):
            mask, category = seen[rng.integers(len(seen))] if seen and rng.random() < 0.7 else (blob(rng), 40)
            mask = np.roll(mask, rng.integers(-4, 5, 2), (0, 1))
            category = category if rng.random() < 0.8 else int(rng.choice(CLASSES))
            results.append(
                {
                    "image_id": image_id,
                    "category_id": category,
                    "score": round(float(rng.random()), 1),
                    "bbox": [0.0, 0.0, float(rng.integers(1, 170)), 130.0] if rng.random() < 0.2 else box_of(mask),
                    "segmentation": encode(mask),
                }
            )
    return make_truth(ids, annotations), results


def make_truth(ids: list[int], annotations: list[Row], size: tuple[int, int] = SIZE) -> Row:
    return {
        "images": [{"id": i, "height": size[0], "width": size[1], "file_name": f"{i}.png"} for i in ids],
        "annotations": annotations,
        "categories": [{"id": key, "name": f"class {key}"} for key in CLASSES],
    }


def square_case(count: int, found: int | None = None) -> tuple[Row, list[Row]]:
    """One image with `count` 3 x 3 objects of one class in a grid, and exact results for the first `found`."""
    annotations, results = [], []
    for number in range(count):
        mask = np.zeros((130, 170), dtype=bool)
        y, x = 4 * (number // 40), 4 * (number % 40)
        mask[y : y + 3, x : x + 3] = True
        row = {"image_id": 7, "category_id": 3, "bbox": box_of(mask), "segmentation": encode(mask)}
        annotations.append({**row, "id": number + 1, "area": 9.0, "iscrowd": 0})
        results.append({**row, "score": 1 - number / 1000})
    return make_truth([7], annotations), results[: count if found is None else found]


def oracle(
    truth: Row, results: list[Row], kind: str, limits: tuple[int, ...] = (1, 10, 100), classes: list[int] | None = None
) -> dict[str, float]:
    """The twelve numbers by pycocotools, each at the last limit where COCO's are."""
    truth, results = copy.deepcopy(truth), copy.deepcopy(results)
    for row in results:
        if kind == "segm":  # a box would decide the area range of a mask
            row.pop("bbox", None)
    with contextlib.redirect_stdout(io.StringIO()):
        of_truth = COCO()
        of_truth.dataset = truth
        of_truth.createIndex()
        of_results = of_truth.loadRes(results) if results else COCO()
        evaluator = COCOeval(of_truth, of_results, kind)
        evaluator.params.maxDets = list(limits)
        if classes is not None:
            evaluator.params.catIds = classes
        evaluator.evaluate()
        evaluator.accumulate()
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else math.nan

    numbers = [mean(precision[..., 0, -1]), mean(precision[0, ..., 0, -1]), mean(precision[5, ..., 0, -1])]
    numbers += [mean(precision[..., area, -1]) for area in (1, 2, 3)]
    numbers += [mean(recall[..., 0, place]) for place in range(3)]
    numbers += [mean(recall[..., area, -1]) for area in (1, 2, 3)]
    return dict(zip(KEYS, numbers, strict=True))


def assert_equals_pycocotools(truth: Row, results: list[Row], found: Evaluation | None = None) -> None:
    found = evaluate_results(truth, results) if found is None else found
    for kind, prefix in (("segm", ""), ("bbox", "box_")):
        expected = oracle(truth, results, kind)
        for key in KEYS:
            assert found.metrics[prefix + key] == pytest.approx(expected[key], abs=1e-6, nan_ok=True), (kind, key)


@pytest.mark.parametrize("seed", range(12))
def test_equals_pycocotools(seed: int) -> None:
    assert_equals_pycocotools(*make_case(seed))


@pytest.mark.parametrize(
    "case",
    [
        make_case(20, crowds=False),
        make_case(21, images=1),
        make_case(22, images=2, detections=120),
        make_case(23, images=30, objects=1, detections=1),
    ],
    ids=["no crowds", "one image", "many detections", "sparse"],
)
def test_equals_pycocotools_at_the_limits(case: tuple[Row, list[Row]]) -> None:
    assert_equals_pycocotools(*case)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(0, 5), st.integers(0, 15))
def test_equals_pycocotools_anywhere(seed: int, images: int, objects: int, detections: int) -> None:
    assert_equals_pycocotools(*make_case(seed, images, objects, detections=detections))


def test_the_cases_test_something() -> None:
    metrics = [evaluate_results(*make_case(seed)).metrics for seed in range(12)]
    for key in KEYS:
        assert len({round(m[key], 6) for m in metrics if not math.isnan(m[key])}) > 5, key


def test_no_detections_score_zero_and_no_objects_are_undefined() -> None:
    truth, results = make_case(1)
    nothing = evaluate_results(truth, [])
    assert nothing.metrics["AP"] == 0 == nothing.metrics["AR100"]
    assert_equals_pycocotools(truth, [], nothing)
    truth["annotations"] = []
    undefined = evaluate_results(truth, results)
    assert math.isnan(undefined.metrics["AP"])
    assert undefined.to_json()["metrics"]["AP"] is None
    assert "-1.000" in undefined.summary
    assert any("no objects" in note for note in undefined.notes)
    json.dumps(undefined.to_json(), allow_nan=False)


def test_everything_a_crowd_is_said() -> None:
    truth, results = make_case(1)
    for row in truth["annotations"]:
        row["iscrowd"] = 1
    assert any("all" in note and "iscrowd" in note for note in evaluate_results(truth, results).notes)


def test_a_perfect_result_is_one_and_annotation_id_zero_counts() -> None:
    truth, results = square_case(5)
    truth["annotations"][0]["id"] = 0
    found = evaluate_results(truth, results)
    assert found.metrics["AP"] == pytest.approx(1)
    assert found.metrics["box_AP"] == pytest.approx(1)
    assert found.evaluator.startswith("faster-coco-eval 1.")


def test_the_box_of_a_row_does_not_decide_the_area_of_its_mask() -> None:
    truth, results = square_case(3)
    far = copy.deepcopy(results[0]) | {"score": 1.0, "bbox": [0, 0, 170, 130]}
    mask = np.zeros((130, 170), dtype=bool)
    mask[100:103, 100:103] = True
    results.append(far | {"segmentation": encode(mask)})  # a small false mask with a large box
    found = evaluate_results(truth, results, kinds=("segm",))
    assert found.metrics["APs"] == pytest.approx(oracle(truth, results, "segm")["APs"])
    assert found.metrics["APs"] < 0.9


def test_arguments_are_not_changed(tmp_path: Path) -> None:
    truth, results = make_case(3)
    before = copy.deepcopy((truth, results))
    from_memory = evaluate_results(truth, results)
    assert (truth, results) == before
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    from_files = evaluate_results(tmp_path / "truth.json", tmp_path / "results.json")
    assert json.dumps(from_files.to_json()) == json.dumps(from_memory.to_json())


def test_boxes_and_areas_that_are_missing_come_from_the_masks() -> None:
    truth, results = make_case(4)
    full = evaluate_results(truth, results)
    results = [{**row, "bbox": box_of(coco_mask.decode(row["segmentation"]))} for row in results]
    expected = evaluate_results(truth, results)
    for row in [*truth["annotations"], *results]:
        row.pop("bbox")
        row.pop("area", None)
    found = evaluate_results(truth, results)
    assert found.metrics["box_AP"] == pytest.approx(expected.metrics["box_AP"])
    assert found.metrics["AP50"] == pytest.approx(full.metrics["AP50"])


def test_a_crowd_without_a_mask_covers_its_box() -> None:
    truth, results = square_case(4)
    crowd = {"id": 99, "image_id": 7, "category_id": 3, "iscrowd": 1, "bbox": [80, 80, 40, 40], "area": 1600}
    truth["annotations"].append(crowd)
    mask = np.zeros((130, 170), dtype=bool)
    mask[90:100, 90:100] = True
    results.append({"image_id": 7, "category_id": 3, "score": 1.0, "bbox": box_of(mask), "segmentation": encode(mask)})
    assert evaluate_results(truth, results).metrics["AP"] == pytest.approx(1)
    truth["annotations"].pop()
    assert evaluate_results(truth, results).metrics["AP"] < 0.9


def test_per_class_is_worst_first_with_the_users_ids() -> None:
    truth, results = make_case(5, images=12)
    table = evaluate_results(truth, results).per_class
    defined = [row["AP"] for row in table if not math.isnan(row["AP"])]
    assert defined == sorted(defined)
    assert len(set(defined)) == 3
    assert (table[-1]["id"], table[-1]["name"], table[-1]["count"]) == (40, "class 40", 0)
    assert math.isnan(table[-1]["AP"])
    for row in table[:-1]:
        objects = [a for a in truth["annotations"] if a["category_id"] == row["id"] and not a["iscrowd"]]
        expected = oracle(truth, results, "segm", classes=[row["id"]])
        assert (row["count"], row["name"]) == (len(objects), f"class {row['id']}")
        assert row["AP"] == pytest.approx(expected["AP"], abs=1e-6)
        assert row["AP50"] == pytest.approx(expected["AP50"], abs=1e-6)


def test_a_subset_of_classes() -> None:
    truth, results = make_case(6, images=10)
    found = evaluate_results(truth, results, class_ids=(90, 11))
    expected = oracle(truth, results, "segm", classes=[11, 90])
    assert found.metrics["AP"] == pytest.approx(expected["AP"], abs=1e-6)
    assert {row["id"] for row in found.per_class} == {11, 90}
    assert any("2 of 4 classes" in note for note in found.notes)
    with pytest.raises(ConfigError, match="77"):
        evaluate_results(truth, results, class_ids=(90, 77))


def test_images_that_are_not_exhaustive_are_left_out() -> None:
    truth, results = make_case(7, images=8)
    partial = {image["id"] for image in truth["images"][:3]}
    without = copy.deepcopy(truth)
    without["images"] = [image for image in truth["images"] if image["id"] not in partial]
    without["annotations"] = [row for row in truth["annotations"] if row["image_id"] not in partial]
    kept = [row for row in results if row["image_id"] not in partial]
    for image in truth["images"][:3]:
        image["exhaustive"] = False
    for row in truth["annotations"]:
        if row["image_id"] in partial:
            row["segmentation"] = []  # what cannot be scored is no error where nothing is scored
    found = evaluate_results(truth, results)
    assert_equals_pycocotools(without, kept, found)
    assert any("3 of 8 images" in note for note in found.notes)
    assert any(f"{len(results) - len(kept)} of {len(results)} results" in note for note in found.notes)
    for image in truth["images"]:
        image["exhaustive"] = False
    with pytest.raises(DataError, match="no exhaustively annotated image"):
        evaluate_results(truth, results)


def test_dense_images_raise_the_limit_and_say_so() -> None:
    truth, results = square_case(150)
    found = evaluate_results(truth, results)
    assert found.max_detections == 300
    assert found.metrics["AP"] == pytest.approx(1)
    assert found.metrics["AR100"] == pytest.approx(1)
    assert found.metrics["AP_100dets"] == pytest.approx(oracle(truth, results, "segm")["AP"], abs=1e-6)
    assert found.metrics["AR_100dets"] == pytest.approx(100 / 150)
    assert found.metrics["box_AP_100dets"] < 0.7
    assert any("300 detections" in note for note in found.notes)
    assert "maxDets=300 ]" in found.summary
    standard = evaluate_results(truth, results, max_detections=100)
    assert standard.metrics["AP"] == pytest.approx(found.metrics["AP_100dets"])
    assert "AP_100dets" not in standard.metrics
    assert not any("detections" in note for note in standard.notes)


def test_no_limit_is_raised_for_crowds_or_few_objects() -> None:
    truth, results = square_case(150)
    for row in truth["annotations"][45:]:
        row["iscrowd"] = 1
    assert evaluate_results(truth, results).max_detections == 100


@pytest.mark.parametrize("limit", [1, 4, 10, 30, 250])
def test_a_chosen_limit(limit: int) -> None:
    truth, results = square_case(40)
    found = evaluate_results(truth, results, max_detections=limit, kinds=("segm",))
    expected = oracle(truth, results, "segm", (1, min(10, limit), limit))
    assert {key: found.metrics[key] for key in KEYS} == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert found.metrics["AR100"] == pytest.approx(min(limit, 40) / 40)


def test_the_summary_is_cocos_own_text() -> None:
    truth, results = make_case(8, images=12)
    printed = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()):
        of_truth = COCO()
        of_truth.dataset = copy.deepcopy(truth)
        of_truth.createIndex()
        stripped = [{key: row[key] for key in row if key != "bbox"} for row in copy.deepcopy(results)]
        evaluator = COCOeval(of_truth, of_truth.loadRes(stripped), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
    with contextlib.redirect_stdout(printed):
        evaluator.summarize()
    assert evaluate_results(truth, results).summary == printed.getvalue().rstrip("\n")


def test_keys_follow_the_kinds() -> None:
    truth, results = make_case(9)
    assert set(evaluate_results(truth, results, kinds=("segm",)).metrics) == set(KEYS)
    boxes = evaluate_results(truth, results, kinds=("bbox",))
    assert set(boxes.metrics) == {f"box_{key}" for key in KEYS}
    assert boxes.per_class[0]["AP"] <= boxes.per_class[-1]["AP"] or math.isnan(boxes.per_class[-1]["AP"])
    with pytest.raises(ConfigError, match="kinds"):
        evaluate_results(truth, results, kinds=("mask",))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1"):
        evaluate_results(truth, results, max_detections=0)


@pytest.mark.parametrize("content", [{}, {"segmentation": []}, {"point_coords": [[3, 4]], "point_labels": [1]}])
def test_truth_without_a_mask_names_the_annotation(content: Row) -> None:
    truth, results = square_case(3)
    row = truth["annotations"][1]
    row.pop("segmentation")
    row.update(content, id=4711)
    with pytest.raises(DataError, match=r"annotation 4711 \(image 7\).*no mask.*exhaustive"):
        evaluate_results(truth, results)
    assert evaluate_results(truth, results, kinds=("bbox",)).metrics["box_AP"] == pytest.approx(1)
    row.pop("bbox")
    with pytest.raises(DataError, match="annotation 4711"):
        evaluate_results(truth, results, kinds=("bbox",))


HALF = {"size": [130, 170], "counts": "1"}  # one pixel of 22,100
BROKEN_MASKS = [
    HALF,
    {"size": [130, 170], "counts": ""},
    {"size": [130, 170], "counts": "\x7f\x7f"},
    {"size": [130, 170], "counts": "é1"},
    {"size": [130, 170], "counts": "1P"},
    {"size": [130, 170], "counts": "1" + "o" * 12 + "1"},
    {"size": [130, 170], "counts": "T`e0Tcd"},
    {"size": [130, 171], "counts": encode(np.zeros((130, 171)))["counts"]},
    {"size": [130, 170], "counts": [4, -4, 22100]},
    {"size": [130, 170], "counts": [1, 2, 3]},
    {"size": [130, 170], "counts": [1.5, 22098.5]},
    {"size": [130, 170]},
    {"counts": "1"},
    {"size": 130, "counts": "1"},
    [[1, 2, 3, 4]],
    [["a", "b", 1, 2, 3, 4]],
    [[1, 2, 3, 4, float("nan"), 6]],
    "text",
    5,
]


@pytest.mark.parametrize("broken", BROKEN_MASKS, ids=[str(i) for i in range(len(BROKEN_MASKS))])
def test_broken_masks_are_named_and_never_reach_compiled_code(broken: Any) -> None:
    truth, results = square_case(4)
    results[2]["segmentation"] = broken
    with pytest.raises(DataError, match=r"result 2 \(image 7\)"):
        evaluate_results(truth, results)
    truth, results = square_case(4)
    truth["annotations"][2]["segmentation"] = broken
    with pytest.raises(DataError, match=r"annotation 3 \(image 7\)"):
        evaluate_results(truth, results)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("score", float("nan"), "result 2 of the results has the score nan"),
        ("score", float("inf"), "result 2 .* score inf"),
        ("score", "high", "result 2 .* score 'high'"),
        ("score", "0.5", "result 2 .* score '0.5'"),
        ("score", [0.5], r"result 2 .* score \[0.5\]"),
        ("score", None, "result 2 .* score None"),
        ("bbox", [1, 2, 3], r"result 2 .* bbox \[1, 2, 3\]"),
        ("bbox", [1, 2, -3, 4], "result 2 .* bbox"),
        ("bbox", [1, 2, float("nan"), 4], "result 2 .* bbox"),
        ("image_id", [7], r"result 2 .* image id \[7\]"),
        ("image_id", True, "result 2 .* image id True"),
        ("category_id", None, "result 2 .* category id None"),
    ],
)
def test_broken_rows_are_named(key: str, value: Any, message: str) -> None:
    truth, results = square_case(4)
    results[2][key] = value
    with pytest.raises(DataError, match=message):
        evaluate_results(truth, results)


@pytest.mark.parametrize("key", ["image_id", "category_id", "score", "segmentation"])
def test_missing_keys_are_named(key: str) -> None:
    truth, results = square_case(4)
    del results[1][key]
    with pytest.raises(DataError, match=f"result 1 of the results .*has no '{key}'"):
        evaluate_results(truth, results)


def test_box_results_need_a_box_or_a_mask() -> None:
    truth, results = square_case(2)
    del results[0]["segmentation"]
    assert evaluate_results(truth, results, kinds=("bbox",)).metrics["box_AP"] == pytest.approx(1)
    del results[0]["bbox"]
    with pytest.raises(DataError, match=r"result 0 .*has no 'bbox'"):
        evaluate_results(truth, results, kinds=("bbox",))


def test_results_of_other_images_or_classes() -> None:
    truth, results = square_case(9)
    for place, image_id in ((3, 12), (4, "x"), (5, 12), (6, 13)):
        results[place]["image_id"] = image_id
    with pytest.raises(DataError, match=r"4 of 9 results .* image ids .*first at position 3\): 12, 'x', 13$"):
        evaluate_results(truth, results)
    truth, results = square_case(9)
    results[8]["category_id"] = 0
    with pytest.raises(DataError, match=r"1 of 9 results .* category ids .*position 8\): 0"):
        evaluate_results(truth, results)


@pytest.mark.parametrize("content", [{}, {"annotations": []}, "rows", 3, None])
def test_results_that_are_no_list(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"results\.json must be a list of COCO results"):
        evaluate_results(square_case(1)[0], path)


def test_rows_that_are_no_objects() -> None:
    with pytest.raises(DataError, match="result 0 of the results is not a JSON object"):
        evaluate_results(square_case(1)[0], [[1, 2]])  # type: ignore[list-item]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    truth, results = square_case(1)
    with pytest.raises(DataError, match=r"cannot read .*absent\.json: No such file"):
        evaluate_results(tmp_path / "absent.json", results)
    (tmp_path / "half.json").write_text(json.dumps(truth)[:-20])
    with pytest.raises(DataError, match=r"half\.json is not valid JSON"):
        evaluate_results(tmp_path / "half.json", results)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(DataError, match=r"bytes\.json is not valid JSON"):
        evaluate_results(truth, tmp_path / "bytes.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("images"), "no list 'images'"),
        (lambda t: t.update(annotations={}), "no list 'annotations'"),
        (lambda t: t["images"][0].pop("width"), "image 7 .* width None"),
        (lambda t: t["images"][0].update(height=12.5), "image 7 .* height 12.5"),
        (lambda t: t["images"].append(t["images"][0]), "image id 7 stands twice"),
        (lambda t: t["categories"].append({"name": "no id"}), "category number 4 .* no usable id"),
        (lambda t: t["annotations"].append([]), "annotation number 2 .* not a JSON object"),
        (lambda t: t["annotations"][1].update(image_id=8), "annotation 2 .* unknown image_id 8"),
        (lambda t: t["annotations"][1].update(category_id=8), "annotation 2 .* unknown category_id 8"),
        (lambda t: t["annotations"][1].update(area=float("nan")), "annotation 2 .* area nan"),
        (lambda t: t["annotations"][1].update(bbox=[1, 2, 3]), r"annotation 2 .* box \[1, 2, 3\]"),
    ],
)
def test_broken_truth_is_named(change: Any, message: str) -> None:
    truth, results = square_case(2)
    change(truth)
    with pytest.raises(DataError, match=message):
        evaluate_results(truth, results)


def test_text_ids_work() -> None:
    truth, results = make_case(10)
    expected = evaluate_results(truth, results)
    for row in [*truth["annotations"], *results]:
        row["image_id"] = f"scan-{row['image_id']:04d}"
    for image in truth["images"]:
        image["id"] = f"scan-{image['id']:04d}"
    assert evaluate_results(truth, results).metrics == pytest.approx(expected.metrics, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32)), max_size=6))
def test_areas_of_many_rles_are_those_of_pycocotools(shapes: list[tuple[int, int, int]]) -> None:
    masks = [(np.random.default_rng(seed).random((h, w)) < 0.5) for h, w, seed in shapes]
    areas, broken = rle_areas([encode(mask) for mask in masks])
    assert areas.tolist() == [int(mask.sum()) for mask in masks]
    assert not broken.any()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7), min_size=1, max_size=5))
def test_runs_that_do_not_fill_the_image_are_broken(runs: list[list[int]]) -> None:
    rles = [coco_mask.frPyObjects({"size": [3, 5], "counts": counts}, 3, 5) for counts in runs]
    areas, broken = rle_areas(rles)
    assert broken.tolist() == [sum(counts) != 15 for counts in runs]
    assert areas.tolist() == [sum(counts[1::2]) for counts in runs]


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(min_codepoint=46, max_codepoint=113), max_size=6))
@example("?")  # 15
@example("05:")  # 0, 5, 10
@example("d0F5")  # 20, -10, 5: adds up to 15, but a run is negative
@example("\x7f")  # reads as 15, but is no character of the encoding
@example("/")
def test_any_text_is_a_mask_or_broken(text: str) -> None:
    try:
        runs = decode_counts(text)
        fills = runs.size > 0 and runs.min() >= 0 and runs.sum() == 15
    except DataError:
        fills = False
    assert rle_areas([{"size": [3, 5], "counts": text}])[1].tolist() == [not fills]
