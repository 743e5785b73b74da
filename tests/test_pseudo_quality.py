"""Pseudo-label quality against naive dense oracles: owned and free pseudo-labels, crowds, cropped views, bad input."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from leanmask.errors import DataError
from leanmask.evaluation.coco_files import CocoTruth
from leanmask.evaluation.pseudo_quality import PseudoImage, PseudoQuality, pseudo_quality
from leanmask.geometry import Frame
from leanmask.masks import Crops, Rles
from leanmask.records import Instances, Supervision

CLASS_IDS = (40, 3, 11)
SIZE = (20, 24)
WHOLE = Frame(SIZE, SIZE, (1.0, 1.0), (0.0, 0.0))
Row = dict[str, Any]


def encode(mask: np.ndarray) -> Row:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def rectangle(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[max(y, 0) : y + h, max(x, 0) : x + w] = True
    return mask


def truth_of(masks: list[np.ndarray], categories: list[int], crowds: tuple[int, ...] = ()) -> Row:
    """One image, id 5, whose objects have the ids 100, 101, ..."""
    return {
        "images": [{"id": 5, "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": key, "name": str(key)} for key in CLASS_IDS],
        "annotations": [
            {
                "id": 100 + i,
                "image_id": 5,
                "category_id": CLASS_IDS[category],
                "segmentation": encode(mask),
                "iscrowd": int(i in crowds),
            }
            for i, (mask, category) in enumerate(zip(masks, categories, strict=True))
        ],
    }


def labels(
    masks: list[np.ndarray],
    categories: list[int] | None = None,
    scores: list[float] | None = None,
    ids: list[int] | None = None,
) -> Instances:
    count = len(masks)
    return Instances(
        boxes=torch.zeros(count, 4),
        categories=torch.tensor(categories or [0] * count, dtype=torch.int64),
        supervision=torch.full((count,), int(Supervision.NONE)),
        weights=torch.ones(count),
        scores=None if scores is None else torch.tensor(scores),
        masks=Rles(tuple(encode(mask) for mask in masks)),
        ids=None if ids is None else torch.tensor(ids, dtype=torch.int64),
    )


def measure(truth: Row, instances: Instances, asked: frozenset[int] | None = None) -> PseudoQuality:
    return pseudo_quality([PseudoImage(5, instances, WHOLE, asked)], truth, CLASS_IDS)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


A, B, C = rectangle(0, 0, 8, 8), rectangle(10, 0, 8, 8), rectangle(0, 10, 10, 10)


def test_owned_masks_by_hand() -> None:
    truth = truth_of([A, B, C], [0, 1, 2])
    half, third = rectangle(0, 0, 8, 4), rectangle(10, 0, 8, 2)
    found = measure(truth, labels([half, third], ids=[100, 101]))
    assert found.precision == 1 / 2  # IoU of exactly one half counts
    assert found.recall == 1 / 3
    assert found.mask_iou == pytest.approx((0.5 + 0.25) / 2)
    assert found.count == 2
    # A mask is compared with its own object, not with the one that it lies on.
    assert measure(truth, labels([A], ids=[101])).mask_iou == 0


def test_only_objects_without_a_mask_are_asked_for() -> None:
    truth = truth_of([A, B, C], [0, 1, 2])
    found = measure(truth, labels([A, B, C & ~A], ids=[100, 101, 102]), frozenset({101}))
    assert (found.count, found.precision, found.recall, found.mask_iou) == (1, 1, 1, 1)
    nothing = measure(truth, labels([], ids=[]), frozenset())
    assert nothing.count == 0
    assert math.isnan(nothing.precision)
    assert math.isnan(nothing.recall)
    missed = measure(truth, labels([], ids=[]), frozenset({100, 102}))
    assert missed.recall == 0
    assert math.isnan(missed.mask_iou)


def test_several_masks_of_one_object() -> None:
    truth = truth_of([A, B], [0, 1])
    found = measure(truth, labels([A, rectangle(0, 0, 2, 2), A], ids=[100, 100, 100]))
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == 1 / 2


def test_free_objects_by_hand() -> None:
    truth = truth_of([A, B, C], [0, 1, 2])
    found = measure(truth, labels([A, B, C, A], [0, 0, 2, 0], [0.9, 0.8, 0.7, 0.6]))
    # B has the wrong class; the second A finds its object taken.
    assert (found.count, found.precision, found.recall, found.mask_iou) == (4, 1 / 2, 2 / 3, 1)


def test_the_best_score_chooses_first() -> None:
    shifted = rectangle(1, 0, 8, 8)
    truth = truth_of([A], [0])
    assert measure(truth, labels([shifted, A], [0, 0], [0.9, 0.8])).mask_iou == pytest.approx(iou(A, shifted))
    assert measure(truth, labels([shifted, A], [0, 0], [0.8, 0.9])).mask_iou == 1
    assert measure(truth, labels([shifted, A], [0, 0])).mask_iou == pytest.approx(
        iou(A, shifted)
    )  # no scores: in order


def test_crowds_are_neither_object_nor_mistake() -> None:
    truth = truth_of([A, rectangle(10, 0, 14, 20)], [0, 0], crowds=(1,))
    inside, outside = rectangle(12, 2, 4, 4), rectangle(0, 12, 4, 4)
    found = measure(truth, labels([A, inside, outside], [0, 0, 0], [0.9, 0.8, 0.7]))
    assert (found.count, found.precision, found.recall) == (2, 1 / 2, 1)
    other_class = measure(truth, labels([inside], [1], [0.5]))
    assert (other_class.count, other_class.precision) == (1, 0)


def test_several_images_are_pooled() -> None:
    truth = truth_of([A, B], [0, 1])
    truth["images"].append({"id": "b", "height": SIZE[0], "width": SIZE[1]})
    truth["annotations"].append({**truth["annotations"][0], "id": 200, "image_id": "b"})
    images = [
        PseudoImage(5, labels([A, B], [0, 1], [0.9, 0.8]), WHOLE),
        PseudoImage("b", labels([C], [0], [0.9]), WHOLE),
    ]
    found = pseudo_quality(iter(images), CocoTruth.open(truth), CLASS_IDS)
    assert (found.count, found.precision, found.recall) == (3, pytest.approx(2 / 3), pytest.approx(2 / 3))
    alone = pseudo_quality(images[:1], truth, CLASS_IDS)
    assert (alone.precision, alone.recall) == (1, 1)  # images that were not looked at do not count


def test_free_objects_of_an_incomplete_image_say_nothing() -> None:
    truth = truth_of([A], [0])
    truth["images"][0]["exhaustive"] = False
    assert measure(truth, labels([C], [0], [0.9])).count == 0
    assert measure(truth, labels([A], ids=[100])).recall == 1


def test_masks_are_compared_in_the_image_frame() -> None:
    truth = truth_of([A, C], [0, 1])
    doubled = Frame(SIZE, (64, 64), (2.0, 2.0), (3.0, 5.0))
    crops = Crops.join(
        [torch.ones(16, 16, dtype=torch.uint8), torch.ones(20, 20, dtype=torch.uint8)],
        torch.tensor([[3, 5, 16, 16], [3, 25, 20, 20]]),
    )
    instances = labels([A, C], ids=[100, 101]).replace(masks=crops)
    assert pseudo_quality([PseudoImage(5, instances, doubled)], truth, CLASS_IDS).mask_iou == 1
    mirrored = Frame(SIZE, (64, 64), (2.0, 2.0), (3.0, 5.0), flip_width=64.0)
    turned = crops.regions.clone()
    turned[:, 0] = 64 - crops.regions[:, 0] - crops.regions[:, 2]
    instances = instances.replace(masks=Crops(crops.data, turned))
    assert pseudo_quality([PseudoImage(5, instances, mirrored)], truth, CLASS_IDS).mask_iou == 1


def test_only_what_lies_on_the_canvas_counts() -> None:
    truth = truth_of([C, rectangle(0, 0, 2, 2)], [0, 0])  # C is rows 10..19; the canvas starts at row 15
    lower_part = Frame(SIZE, (10, 24), (1.0, 1.0), (0.0, -15.0))
    crop = Crops.join([torch.ones(5, 10, dtype=torch.uint8)], torch.tensor([[0, 0, 10, 5]]))
    for ids in (None, torch.tensor([100])):
        instances = labels([C], [0], [0.9]).replace(masks=crop, ids=ids)
        found = pseudo_quality([PseudoImage(5, instances, lower_part)], truth, CLASS_IDS)
        assert (found.count, found.precision, found.recall, found.mask_iou) == (1, 1, 1, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(0, 6))
def test_free_objects_against_a_naive_oracle(seed: int, objects: int, pseudo: int) -> None:
    rng = np.random.default_rng(seed)

    def shapes(count: int) -> list[np.ndarray]:
        return [rectangle(*rng.integers(0, 8, 2), *rng.integers(4, 12, 2)) for _ in range(count)]

    true_masks, masks = shapes(objects), shapes(pseudo)
    true_classes, classes = rng.integers(0, 2, objects).tolist(), rng.integers(0, 2, pseudo).tolist()
    scores = rng.permutation(pseudo).astype(float).tolist()
    taken: set[int] = set()
    ious = []
    for place in sorted(range(pseudo), key=lambda i: -scores[i]):
        open_ones = [i for i in range(objects) if i not in taken and true_classes[i] == classes[place]]
        best = max(open_ones, key=lambda i: iou(masks[place], true_masks[i]), default=None)
        if best is not None and iou(masks[place], true_masks[best]) >= 0.5:
            taken.add(best)
            ious.append(iou(masks[place], true_masks[best]))
    found = measure(truth_of(true_masks, true_classes), labels(masks, classes, scores))
    assert found.count == pseudo
    assert found.precision == pytest.approx(len(ious) / pseudo if pseudo else math.nan, nan_ok=True)
    assert found.recall == pytest.approx(len(ious) / objects if objects else math.nan, nan_ok=True)
    assert found.mask_iou == pytest.approx(float(np.mean(ious)) if ious else math.nan, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_owned_masks_against_a_naive_oracle(seed: int, objects: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = [rectangle(*rng.integers(0, 8, 2), *rng.integers(4, 12, 2)) for _ in range(2 * objects)]
    true_masks, masks = shapes[:objects], shapes[objects:]
    labelled = rng.random(objects) < 0.6
    ids = [100 + i for i in range(objects) if labelled[i]]
    ious = [iou(masks[i], true_masks[i]) for i in range(objects) if labelled[i]]
    given_masks = [masks[i] for i in range(objects) if labelled[i]]
    found = measure(truth_of(true_masks, [0] * objects), labels(given_masks, ids=ids))
    right = sum(value >= 0.5 for value in ious)
    assert found.count == len(ids)
    assert found.precision == pytest.approx(right / len(ids) if ids else math.nan, nan_ok=True)
    assert found.recall == pytest.approx(right / objects)
    assert found.mask_iou == pytest.approx(float(np.mean(ious)) if ids else math.nan, nan_ok=True)


def test_undefined_numbers_are_null_in_json() -> None:
    found = pseudo_quality([], truth_of([A], [0]), CLASS_IDS)
    assert found.to_json() == {"precision": None, "recall": None, "mask_iou": None, "count": 0}
    full = measure(truth_of([A], [0]), labels([A], ids=[100])).to_json()
    assert json.loads(json.dumps(full, allow_nan=False)) == {"precision": 1, "recall": 1, "mask_iou": 1, "count": 1}


def test_bad_input_is_named() -> None:
    truth = truth_of([A, B], [0, 1])
    with pytest.raises(DataError, match=r"image 6.*does not have this image"):
        pseudo_quality([PseudoImage(6, labels([A]), WHOLE)], truth, CLASS_IDS)
    with pytest.raises(DataError, match="no object with annotation id 102 in image 5"):
        measure(truth, labels([A], ids=[102]))
    with pytest.raises(DataError, match="no object with annotation id 99 in image 5"):
        measure(truth, labels([A], ids=[100]), frozenset({99, 100}))
    other = Frame((9, 9), (9, 9), (1.0, 1.0), (0.0, 0.0))
    with pytest.raises(DataError, match=r"image 5 is \(height, width\) \(9, 9\), the truth says \(20, 24\)"):
        pseudo_quality([PseudoImage(5, labels([A]), other)], truth, CLASS_IDS)
    del truth["annotations"][1]["segmentation"]
    with pytest.raises(DataError, match=r"annotation 101 \(image 5\).*has no mask"):
        measure(truth, labels([A], ids=[100]))
