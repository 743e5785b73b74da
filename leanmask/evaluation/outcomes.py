"""What predictions get wrong, one by one (Hoiem et al. 2012, section 2.1, as in PL-DC's figure 5).

Of every class as many predictions are looked at as it has objects, the best-scored ones: no score threshold has to be
chosen, and runs of different confidence compare. Each of them is, in this order,

    correct        the first at mask IoU >= 0.5 with an object of its class
    localisation   IoU >= 0.1 with an object of its class: a poor mask, or a second one for the same object
    similar        IoU >= 0.1 with an object of a class of the same supercategory
    other          IoU >= 0.1 with an object of any other class
    background     nothing of all that

Predictions in a crowd region of their class are neither. Where the truth names no two supercategories, no classes are
similar.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from leanmask.evaluation.coco_files import Row

OUTCOMES = ("correct", "localisation", "similar", "other", "background")
CORRECT_IOU, TOUCHED_IOU = 0.5, 0.1

# Whether two different categories are of one kind.
Similar = Callable[[int, int], bool]


def outcomes_of(objects: Sequence[Row], results: Sequence[Row], similar: Similar) -> dict[str, int]:
    """Number of predictions of each of `OUTCOMES`.

    objects, results: rows with "image_id", "category_id", "rle" (of one image frame), "iscrowd"; results with "score".
    """
    truth = _by_image(objects)
    counts = Counter(dict.fromkeys(OUTCOMES, 0))
    for image, best in _by_image(_best_scored(objects, results)).items():
        counts.update(_outcomes_in_image(truth.get(image, []), best, similar))
    return dict(counts)


def _best_scored(objects: Sequence[Row], results: Sequence[Row]) -> list[Row]:
    """Of every class the results with the highest scores, as many as it has objects; best first."""
    left = Counter(row["category_id"] for row in objects if not row["iscrowd"])
    chosen = []
    for row in sorted(results, key=lambda row: -row["score"]):
        if left[row["category_id"]] > 0:
            left[row["category_id"]] -= 1
            chosen.append(row)
    return chosen


def _outcomes_in_image(objects: list[Row], results: list[Row], similar: Similar) -> list[str]:
    """The outcomes of one image's results, which come best first."""
    if not objects:
        return ["background"] * len(results)
    crowd = np.array([bool(row["iscrowd"]) for row in objects])
    overlaps = coco_mask.iou([row["rle"] for row in results], [row["rle"] for row in objects], crowd.tolist())
    classes = np.array([row["category_id"] for row in objects])
    free, found = ~crowd, []
    for row, overlap in zip(results, np.asarray(overlaps), strict=True):
        own = classes == row["category_id"]
        candidates = np.where(own & free, overlap, 0.0)
        if candidates.max() >= CORRECT_IOU:
            free[candidates.argmax()] = False
            found.append("correct")
        elif not (own & crowd & (overlap >= CORRECT_IOU)).any():
            touched = classes[~crowd & (overlap >= TOUCHED_IOU)]
            found.append(_mistake(row["category_id"], touched, similar))
    return found


def _mistake(category: int, touched: npt.NDArray[np.int64], similar: Similar) -> str:
    """What is wrong with a prediction of `category` that overlaps objects of the categories `touched`."""
    others = set(touched.tolist())
    if category in others:
        return "localisation"
    if any(similar(category, other) for other in others):
        return "similar"
    return "other" if others else "background"


def _by_image(rows: Sequence[Row]) -> dict[int, list[Row]]:
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["image_id"], []).append(row)
    return groups
