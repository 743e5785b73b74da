"""`leanmask quality`: what is counted, how files find each other, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from run_helpers import Outcome

from leanmask.data.layout import locate
from leanmask.errors import DataError
from leanmask.evaluation.trust import QUALITIES, quality
from leanmask.inference.pseudo_images import PseudoOptions, pseudo
from leanmask.summary import TrainSummary

Row = dict[str, Any]
SIDE = 50


def rle(x: int, y: int, side: int = 10) -> Row:
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8, order="F")
    mask[y : y + side, x : x + side] = 1
    found = coco_mask.encode(mask)
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def content(rows: list[Row], names: dict[int, str], file_name: str = "a.png", number: int = 1) -> Row:
    image = {"id": number, "file_name": file_name, "width": SIDE, "height": SIDE}
    annotations = [{"id": at, "image_id": number, "iscrowd": 0, **row} for at, row in enumerate(rows, 1)]
    categories = [{"id": key, "name": name} for key, name in names.items()]
    return {"images": [image], "annotations": annotations, "categories": categories}


def guess(category: int, mask: Row, class_quality: float, mask_quality: float) -> Row:
    return {
        "category_id": category,
        "segmentation": mask,
        "class_quality": class_quality,
        "mask_quality": mask_quality,
    }


PSEUDO = content(
    [
        guess(1, rle(0, 0), 0.95, 1.0),  # right, exactly
        guess(2, rle(20, 0), 0.55, 0.95),  # the mask is right, the class is not
        guess(1, rle(0, 25), 0.92, 0.35),  # half of its object: IoU 1/3
        guess(2, rle(40, 40), 0.15, 0.32),  # nothing there
    ],
    {1: "cat", 2: "dog"},
    "folder/a.png",
)
# Other ids for the same image and the same classes.
TRUTH = content(
    [
        {"category_id": 8, "segmentation": rle(0, 0), "bbox": [0, 0, 10, 10]},
        {"category_id": 8, "segmentation": rle(20, 0), "bbox": [20, 0, 10, 10]},
        {"category_id": 8, "segmentation": rle(0, 20), "bbox": [0, 20, 10, 10]},
    ],
    {8: "cat", 4: "dog"},
    number=77,
)


def files(folder: Path, found: Row, truth: Row) -> tuple[Path, Path]:
    paths = folder / "pseudo.json", folder / "truth.json"
    for path, written in zip(paths, (found, truth), strict=True):
        path.write_text(json.dumps(written))
    return paths


def test_counts_and_bins(tmp_path: Path) -> None:
    found = quality(*files(tmp_path, PSEUDO, TRUTH))
    assert found.left_out == 0
    assert found.overall.count == 4
    assert (found.overall.precision, found.overall.recall) == (0.25, pytest.approx(1 / 3))
    masks = {each.low: (each.count, each.mask_iou, each.right_class) for each in found.bins["mask_quality"]}
    assert masks == {0.3: (2, pytest.approx(1 / 6), 0.5), 0.9: (2, 1.0, 0.5)}
    classes = {each.low: each.right_class for each in found.bins["class_quality"]}
    assert classes == {0.1: 0.0, 0.5: 0.0, 0.9: 1.0}
    assert all(sum(each.count for each in bins) == 4 for bins in found.bins.values())
    # Ranks of mask quality 4 3 2 1 against IoU 1, 1, 1/3, 0: one tie.
    assert found.iou_correlation["mask_quality"] == pytest.approx(0.9487, abs=1e-4)
    assert found.class_correlation["class_quality"] > found.class_correlation["mask_quality"]


def test_images_that_are_not_exhaustive_are_left_out(tmp_path: Path) -> None:
    open_ended = copy.deepcopy(TRUTH)
    open_ended["images"][0]["exhaustive"] = False
    with pytest.raises(DataError, match="exhaustively"):
        quality(*files(tmp_path, PSEUDO, open_ended))
    open_ended["images"].append({"id": 3, "file_name": "b.png", "width": SIDE, "height": SIDE})
    two = copy.deepcopy(PSEUDO)
    two["images"].append({"id": 2, "file_name": "b.png", "width": SIDE, "height": SIDE})
    found = quality(*files(tmp_path, two, open_ended))
    assert (found.left_out, found.overall.count) == (4, 0)
    assert found.to_json()["overall"]["precision"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found, truth: found["annotations"][1].pop("class_quality"), "annotation 2 .* class_quality None"),
        (lambda found, truth: found["annotations"][0].update(mask_quality=1.5), "annotation 1 .* mask_quality 1.5"),
        (lambda found, truth: truth["images"][0].update(file_name="b.png"), "knows 0 of them by name"),
        (lambda found, truth: truth["images"].append({**truth["images"][0], "id": 78}), "has 2 images of that name"),
        (lambda found, truth: truth["categories"].pop(1), "does not have the classes dog"),
        (lambda found, truth: truth["images"][0].update(width=49), "height, width"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: Any, message: str) -> None:
    found, truth = copy.deepcopy(PSEUDO), copy.deepcopy(TRUTH)
    change(found, truth)
    with pytest.raises(DataError, match=message):
        quality(*files(tmp_path, found, truth))


def test_folders_tell_files_of_one_name_apart(tmp_path: Path) -> None:
    truth = copy.deepcopy(TRUTH)
    truth["images"][0]["file_name"] = "all/folder/a.png"
    truth["images"].append({**truth["images"][0], "id": 5, "file_name": "all/other/a.png"})
    assert quality(*files(tmp_path, PSEUDO, truth)).overall.count == 4


def test_from_a_trained_network_to_the_figure(
    trained: TrainSummary, digits: Path, tmp_path: Path, leanmask: Any
) -> None:
    split = locate(digits)["val"]
    loose = PseudoOptions(class_quality=0.02, mask_quality=0.3, area_px=0)
    written = pseudo(trained.folder, [split.images], tmp_path / "pseudo.json", loose)
    figure = tmp_path / "trust.svg"
    outcome: Outcome = leanmask("quality", tmp_path / "pseudo.json", split.annotations, "--figure", figure, "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert set(found["bins"]) == set(QUALITIES)
    assert sum(each["count"] for each in found["bins"]["product"]) + found["left_out"] == written.objects
    assert "<svg" in figure.read_text()
    again = leanmask("quality", tmp_path / "pseudo.json", split.annotations, "--figure", figure)
    assert again.code == 2
    assert "not overwritten" in again.err
    shown = leanmask("quality", tmp_path / "pseudo.json", split.annotations)
    assert "mask quality" in shown.out
