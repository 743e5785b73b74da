"""Annotations of other formats, and COCO files whose labels are elsewhere: said, with the command that reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coco_helpers import CATEGORIES, SQUARE, image, row
from PIL import Image
from run_helpers import Outcome

from leanmask.data.check import check
from leanmask.data.coco import AnnotationStore
from leanmask.data.convert.translate import convert
from leanmask.data.formats import explain
from leanmask.data.layout import locate
from leanmask.errors import DataError


def coco(*rows: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"images": [image()], "annotations": list(rows), "categories": CATEGORIES, **fields}


BARE = {"id": 1, "image_id": 1, "category_id": 7}
OTHERS: list[tuple[Any, str]] = [
    (coco({"image_id": 1, "segments_info": [], "file_name": "1.png"}), "is a COCO panoptic file: `leanmask convert"),
    (
        coco({"id": 1, "image_id": 1, "caption": "a cat"}),
        "is a COCO captions file: no command of leanmask reads it yet",
    ),
    (coco({**BARE, "keypoints": [3, 4, 2, 9, 9, 1], "num_keypoints": 2}), "is a COCO keypoint file"),
    (coco({**BARE, "polygon": [3, 4, 9, 9, 3, 9]}), "1 of them have 'polygon', which is not read"),
    (coco({**BARE, "mask": {"size": [40, 60], "counts": "x"}}), "1 of them have 'mask', which is not read"),
    (coco(labels=[row(bbox=[1, 1, 5, 5])]), "1 rows with an image_id under 'labels'; rename that key"),
    (coco(images=[image(annotations=[{"bbox": [1, 1, 5, 5]}])]), "its images carry their own, under 'annotations'"),
    ({"shapes": [], "imagePath": "1.png"}, "is a LabelMe file"),
    ({"1.png1": {"filename": "1.png", "regions": []}}, "is a VGG Image Annotator file"),
    ({"objects": [{"classTitle": "cat"}], "size": {}}, "is a Supervisely file"),
    ([{"image_id": 1, "category_id": 7, "bbox": [1, 1, 5, 5], "score": 0.5}], "is a COCO results file"),
    ([{"data": {"image": "1.png"}, "annotations": []}], "is a Label Studio file: `leanmask convert"),
    ([{"image": "1.png", "annotations": []}], "is a CreateML file"),
]


@pytest.mark.parametrize(("content", "message"), OTHERS, ids=[str(i) for i in range(len(OTHERS))])
def test_other_formats_are_named_wherever_a_data_set_is_opened(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "1.png")
    path = tmp_path / "annotations" / "instances_train.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as opened:
        AnnotationStore.open(path, tmp_path / "images", unannotated="negative")
    assert message in str(opened.value)
    report = check(tmp_path)
    assert [problem.code for problem in report.problems] == ["file-unreadable"]
    assert message in report.problems[0].message
    with pytest.raises(DataError, match=r"all labels of split 'train' \(.*instances_train\.json"):
        check(tmp_path, fix=tmp_path / "fixed")
    assert not (tmp_path / "fixed").exists()


USABLE: list[Any] = [
    coco(row(segmentation=SQUARE)),
    coco(row(segmentation=SQUARE, keypoints=[3, 4, 2])),
    coco({**BARE, "attributes": {"occluded": False}, "color": "red"}),  # the class alone is a label
    coco(),
    [],
    "text",
]


@pytest.mark.parametrize("content", USABLE, ids=[str(i) for i in range(len(USABLE))])
def test_nothing_is_said_of_instance_files_and_of_what_nobody_knows(content: Any) -> None:
    assert explain(content, "a.json") is None


def test_keypoints_beside_boxes_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "1.png")
    content = coco(row(segmentation=SQUARE, keypoints=[3, 4, 2]), row(2, segmentation=SQUARE, category_id=90))
    (tmp_path / "labels.json").write_text(json.dumps(content))
    report = check(tmp_path)
    assert report.ok
    assert [(problem.code, problem.severity) for problem in report.problems] == [("unread", "warning")]
    assert "1 annotations have keypoints" in report.to_text()


def test_a_class_without_objects_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "1.png")
    (tmp_path / "labels.json").write_text(json.dumps(coco(row(segmentation=SQUARE))))
    report = check(tmp_path)
    assert [problem.code for problem in report.problems] == ["class-empty"]
    assert report.problems[0].message == "no object of 1 of 2 classes: 'cat'"


def _labelme(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / f"{name}.json").write_text(json.dumps({"shapes": [], "imagePath": f"{name}.jpg"}))


def _yolo(folder: Path) -> None:
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text("0 0.5 0.5 0.25 0.25\n")


def _voc(folder: Path) -> None:
    (folder / "a.xml").write_text("<annotation><object/></annotation>")


def _cvat(folder: Path) -> None:
    (folder / "annotations.xml").write_text("<annotations><image/></annotations>")


def _masks(folder: Path) -> None:
    (folder / "masks").mkdir()
    for name in ("a", "b"):
        Image.new("L", (8, 8)).save(folder / "masks" / f"{name}.png")


def _suffixed_masks(folder: Path) -> None:
    Image.new("L", (8, 8)).save(folder / "a_mask.png")


def _panoptic(folder: Path) -> None:
    (folder / "annotations" / "panoptic_val").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "annotations" / "panoptic_val" / "a.png")
    content = coco({"image_id": 1, "segments_info": [], "file_name": "a.png"})
    (folder / "annotations" / "panoptic_val.json").write_text(json.dumps(content))


def _broken(folder: Path) -> None:
    (folder / "labels.json").write_text('{"images": [')


FOLDERS: list[tuple[Callable[[Path], None], str]] = [
    (_labelme, r"2 images and 2 LabelMe files\. LabelMe \(a\.json, \.\.\.\): no command of leanmask reads it yet"),
    (_yolo, r"2 images and 1 YOLO file\. YOLO \(labels/a\.txt\): no command"),
    (_voc, r"2 images and 1 Pascal VOC file\. Pascal VOC \(a\.xml\): no command .* read are COCO"),
    (
        _cvat,
        r"2 images and 1 CVAT file\. CVAT \(annotations\.xml\): `leanmask convert .*annotations\.xml labels\.json`",
    ),
    (_masks, r"2 images and 2 PNG mask files\. PNG mask \(masks/a\.png, \.\.\.\): no command"),
    (_suffixed_masks, r"2 images and 1 PNG mask file\."),
    (_panoptic, r"2 images and 1 COCO panoptic file\. .*panoptic_val\.json labels\.json` reads it"),
    (_broken, r"2 images\. .*labels\.json is not valid JSON"),
    (lambda folder: None, r"images only: label some .*or name it in data\.unlabelled"),
]


@pytest.mark.parametrize(("fill", "message"), FOLDERS, ids=[str(i) for i in range(len(FOLDERS))])
def test_what_lies_beside_images_is_said(tmp_path: Path, fill: Callable[[Path], None], message: str) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.jpg")
    fill(tmp_path)
    with pytest.raises(DataError, match=message):
        locate(tmp_path)


def test_the_commands_say_it_too(leanmask: Callable[..., Outcome], tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    _labelme(tmp_path)
    for verb in (["check", tmp_path], ["train", tmp_path, "--out", tmp_path / "run"], ["check", tmp_path / "a.json"]):
        done = leanmask(*verb)
        assert done.code == 2
        assert "LabelMe" in done.err
        assert "Traceback" not in done.err
    with pytest.raises(DataError, match="is a LabelMe file"):
        convert(tmp_path / "a.json", tmp_path / "out.json")
