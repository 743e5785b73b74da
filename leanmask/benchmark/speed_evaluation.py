"""How long COCO evaluation takes beside pycocotools, on generated truth and results, in one interleaved run."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from leanmask.benchmark.turns import Works, in_turns, medians
from leanmask.evaluation.coco_ap import evaluate_results

Row = dict[str, Any]
_OBJECTS = 10  # per image
_SIDE_PX = 256


def evaluation_speed(
    images: int = 500, detections: int = 100, classes: int = 10, rounds: int = 3, seed: int = 0
) -> dict[str, float]:
    """Seconds for mask and box AP from rows in memory, ours and pycocotools in turns, medians over `rounds`.

    Returns images, detections (per image), classes, rounds, ours_seconds and pycocotools_seconds (wall clock), ratio
    (pycocotools over ours), the same with processor time of all threads (ours_cpu_seconds, pycocotools_cpu_seconds,
    cpu_ratio; steadier on a busy machine), and largest_difference between the numbers of masks and of boxes.
    """
    truth, results = synthetic_results(images, detections, classes, seed)
    numbers: dict[str, list[float]] = {"ours": [], "pycocotools": []}  # of all rounds

    def evaluate(name: str, work: Callable[[Row, list[Row]], list[float]], rows: tuple[Row, list[Row]]) -> None:
        numbers[name] += work(*rows)

    def works() -> Works:  # on copies, since pycocotools changes its input
        sides = {"ours": _ours, "pycocotools": _pycocotools}
        return {name: partial(evaluate, name, work, copy.deepcopy((truth, results))) for name, work in sides.items()}

    spent = in_turns(works, rounds, warm_up=0)
    ours, theirs = spent["ours"], spent["pycocotools"]
    difference = max(abs(a - b) for a, b in zip(numbers["ours"], numbers["pycocotools"], strict=True))
    return {
        "images": images,
        "detections": detections,
        "classes": classes,
        "rounds": rounds,
        **medians(spent),
        "ratio": theirs.median / ours.median,
        "ours_cpu_seconds": ours.cpu_median,
        "pycocotools_cpu_seconds": theirs.cpu_median,
        "cpu_ratio": theirs.cpu_median / ours.cpu_median,
        "largest_difference": difference,
    }


def _ours(truth: Row, results: list[Row]) -> list[float]:
    return list(evaluate_results(truth, results, max_detections=100).metrics.values())


def synthetic_results(images: int, detections: int, classes: int, seed: int) -> tuple[Row, list[Row]]:
    """A COCO truth of ellipses, 10 to an image of 256 x 256 px, and results of which half are a moved true object."""
    rng = np.random.default_rng(seed)
    truth: list[Row] = []
    results: list[Row] = []
    for image_id in range(1, images + 1):
        objects = [_ellipse(rng) for _ in range(_OBJECTS)]
        for shape in objects:
            row = _row(image_id, int(rng.integers(classes)) + 1, shape)
            truth.append(
                {**row, "id": len(truth) + 1, "iscrowd": 0, "area": float(coco_mask.area(row["segmentation"]))}
            )
        for number in range(detections):
            place = int(rng.integers(_OBJECTS))
            near = number % 2 == 0
            shape = objects[place] + rng.normal(0, 3, 4) if near else _ellipse(rng)
            category = truth[place - _OBJECTS]["category_id"] if near else int(rng.integers(classes)) + 1
            results.append({**_row(image_id, category, shape), "score": float(rng.random())})
    return {
        "images": [{"id": i, "height": _SIDE_PX, "width": _SIDE_PX} for i in range(1, images + 1)],
        "annotations": truth,
        "categories": [{"id": i, "name": str(i)} for i in range(1, classes + 1)],
    }, results


def _ellipse(rng: np.random.Generator) -> np.ndarray:
    """Centre x, y and radii x, y in pixels."""
    return np.concatenate([rng.uniform(20, _SIDE_PX - 20, 2), rng.uniform(8, 60, 2)])


def _row(image_id: int, category_id: int, shape: np.ndarray) -> Row:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radii = np.maximum(shape[2:], 4)
    polygon = (shape[:2] + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)).clip(0, _SIDE_PX)
    rle = coco_mask.frPyObjects([polygon.reshape(-1).tolist()], _SIDE_PX, _SIDE_PX)[0]
    mask = {"size": [_SIDE_PX, _SIDE_PX], "counts": rle["counts"].decode("ascii")}
    bbox = coco_mask.toBbox(rle).tolist()
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "segmentation": mask}


def _pycocotools(truth: Row, results: list[Row]) -> list[float]:
    numbers: list[float] = []
    with contextlib.redirect_stdout(io.StringIO()):
        of_truth = COCO()
        of_truth.dataset = truth
        of_truth.createIndex()
        for kind in ("segm", "bbox"):
            left_out = "bbox" if kind == "segm" else "segmentation"
            rows = [{key: value for key, value in row.items() if key != left_out} for row in results]
            evaluator = COCOeval(of_truth, of_truth.loadRes(rows), kind)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
            numbers += evaluator.stats.tolist()
    return numbers
