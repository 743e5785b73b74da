"""COCO files with partial labels: meanings, masks against pycocotools, classes, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_helpers import SQUARE, image, row, store, write
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from leanmask.config import DataConfig
from leanmask.data.annotation import segmentation_of
from leanmask.data.coco import AnnotationStore, ClassMap, read_json
from leanmask.data.dataset import _classes_of_images
from leanmask.data.layout import SplitFiles
from leanmask.data.views.copy_paste import can_be_pasted
from leanmask.errors import DataError
from leanmask.planning.fingerprint import fingerprint
from leanmask.records import Supervision
from leanmask.rle import rle_crop, segmentation_bounds

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"segmentation": SQUARE}, Supervision.MASK),
        ({"segmentation": SQUARE, "bbox": [10, 10, 20, 15], "point_coords": [[12, 12]], "point_labels": [1]}, "MASK"),
        ({"bbox": [1, 2, 3, 4]}, Supervision.BOX),
        ({"bbox": [1, 2, 3, 4], "segmentation": []}, Supervision.BOX),
        ({"bbox": [1, 2, 3, 4], "segmentation": None}, Supervision.BOX),
        ({"bbox": [1, 2, 3, 4], "segmentation": {}}, Supervision.BOX),
        ({"bbox": [1, 2, 3, 4], "point_coords": [[1, 2], [3, 5]], "point_labels": [1, 0]}, Supervision.POINTS),
        ({"bbox": [1, 2, 3, 4], "point": [2, 3]}, Supervision.BOX),
        ({"point": [2.5, 3.25]}, Supervision.POINT),
        ({"point_coords": [[2, 3]], "point_labels": [1]}, Supervision.POINT),
        ({}, Supervision.NONE),
    ],
)
def test_kind_of_supervision(tmp_path: Path, fields: dict[str, Any], kind: Supervision | str) -> None:
    opened = store(tmp_path, row(**fields))
    expected = Supervision[kind] if isinstance(kind, str) else kind
    assert opened[0].objects[0].supervision is expected
    counts = opened.census().objects
    assert counts == {name.name.lower(): int(name is expected) for name in Supervision}
    assert opened.census().per_class["dog"] == counts
    assert sum(opened.census().per_class["cat"].values()) == 0


def test_fields_of_an_object(tmp_path: Path) -> None:
    points = {"bbox": [1, 2, 30, 20], "point_coords": [[1, 2], [30, 5]], "point_labels": [1, 0]}
    record = store(tmp_path, row(5, **points, score=0.25, provenance="round 1"))[0].objects[0]
    assert (record.id, record.category, record.weight, record.provenance) == (5, 0, 0.25, "round 1")
    assert record.box_xyxy.tolist() == [1, 2, 31, 22]
    assert record.points_xy.tolist() == [[1.5, 2.5], [30.5, 5.5]]
    assert record.point_labels.tolist() == [1, 0]
    single = store(tmp_path, row(point=[2.5, 3.25]))[0].objects[0]
    assert single.points_xy.tolist() == [[2.5, 3.25]]
    assert np.isnan(single.box_xyxy).all()
    assert (single.weight, single.provenance, single.crowd) == (1.0, "human", False)
    assert store(tmp_path, row(weight=0.5, score=0.25, bbox=[1, 1, 2, 2]))[0].objects[0].weight == 0.5


def test_box_of_a_mask_without_bbox_is_its_bounds(tmp_path: Path) -> None:
    assert store(tmp_path, row(segmentation=SQUARE))[0].objects[0].box_xyxy.tolist() == [10, 10, 30, 25]


def test_crowds_become_boxes(tmp_path: Path) -> None:
    crowd = row(2, segmentation={"size": [40, 60], "counts": [0, 40, 2360]}, iscrowd=1)
    opened = store(tmp_path, row(bbox=[1, 1, 2, 2]), crowd, row(3, bbox=[5, 5, 5, 5], iscrowd=1))
    record = opened[0]
    assert [found.id for found in record.objects] == [1]
    assert record.crowd_boxes_xyxy.tolist() == [[0, 0, 1, 40], [5, 5, 10, 10]]
    assert opened.census().crowds == 2


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.randoms(use_true_random=False))
def test_every_rle_form_is_the_same_mask(height: int, width: int, random: Any) -> None:
    mask = np.array([[random.random() < 0.5 for _ in range(width)] for _ in range(height)], dtype=np.uint8)
    compressed = coco_mask.encode(np.asfortranarray(mask))
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
    counts = np.diff(np.concatenate([[0], edges])).tolist()
    for found in (compressed["counts"].decode(), counts):
        rle = segmentation_of({"segmentation": {"size": [height, width], "counts": found}})
        assert isinstance(rle, dict)
        np.testing.assert_array_equal(coco_mask.decode(rle), mask)
        np.testing.assert_array_equal(rle_crop(rle, (0, 0, width, height)), mask)


def test_masks_survive_the_store(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[5:20, 7:31] = 1
    mask[8:12, 10:14] = 0
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    flat = np.flatnonzero(np.diff(mask.T.reshape(-1), prepend=0))
    runs = np.diff(np.concatenate([[0], flat, [mask.size]])).tolist()
    parts = [SQUARE[0], [40.5, 1, 50.25, 1, 45, 9]]
    rows = [
        row(1, segmentation={"size": [40, 60], "counts": counts}),
        row(2, segmentation={"size": [40, 60], "counts": runs}),
        row(3, segmentation=parts),
    ]
    objects = store(tmp_path, *rows)[0].objects
    for record in objects[:2]:
        np.testing.assert_array_equal(coco_mask.decode(record.segmentation), mask)
        assert segmentation_bounds(record.segmentation) == (7, 5, 31, 20)
    assert [part.reshape(-1).tolist() for part in objects[2].segmentation] == parts


def test_exhaustive_and_images_without_annotations(tmp_path: Path) -> None:
    images = [
        image(1),
        image(2, exhaustive=False),
        image(3, exhaustive=True),
        image(4, exhaustive=False),
        image("five"),
        image(6),
    ]
    rows = [row(1, bbox=[1, 1, 2, 2]), row(2, image_id=2, bbox=[1, 1, 2, 2])]
    path = write(tmp_path, rows, images)
    with pytest.raises(DataError, match=r"2 of 6 images .*ids five, 6.*unannotated=negative.*unannotated=unlabelled"):
        AnnotationStore.open(path, tmp_path)
    negative = AnnotationStore.open(path, tmp_path, unannotated="negative")
    assert [record.exhaustive for record in negative] == [True, False, True, False, True, True]
    counted = negative.census()
    assert (counted.exhaustive_images, counted.negative_images, counted.unlabelled_images) == (4, 3, 1)
    unlabelled = AnnotationStore.open(path, tmp_path, unannotated="unlabelled")
    assert [record.exhaustive for record in unlabelled] == [True, False, True, False, False, False]
    counted = unlabelled.census()
    assert (counted.exhaustive_images, counted.negative_images, counted.unlabelled_images) == (2, 1, 3)
    assert counted.undecided_images == 0
    with pytest.raises(DataError, match="allowed: error, negative, unlabelled"):
        AnnotationStore.open(path, tmp_path, unannotated="maybe")


def test_hidden_annotations_do_not_reach_an_unlabelled_store(tmp_path: Path) -> None:
    path = write(tmp_path, [row(segmentation=SQUARE)], [image(exhaustive=True)])
    hidden = AnnotationStore.open(path, tmp_path, only_images=True, classes=ClassMap(("bird",), (3,)))
    assert hidden[0].objects == ()
    assert not hidden[0].exhaustive
    assert hidden.census().unlabelled_images == 1
    assert hidden.census().objects["mask"] == 0


def test_plain_folder_is_unlabelled(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in (("b.jpg", (30, 20)), ("a.PNG", (12, 34))):
        Image.new("RGB", size).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    opened = AnnotationStore.open(None, folder)
    assert [(r.id, r.path.name, r.width, r.height, r.exhaustive) for r in opened] == [
        (1, "a.PNG", 12, 34, False),
        (2, "b.jpg", 30, 20, False),
    ]
    assert opened.census().unlabelled_images == 2
    (folder / "a.PNG").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"a\.PNG"):
        opened[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        AnnotationStore.open(None, tmp_path / "empty")
    with pytest.raises(DataError, match="No such file"):
        AnnotationStore.open(None, tmp_path / "nowhere")


def test_class_map(tmp_path: Path) -> None:
    classes = store(tmp_path, row(bbox=[1, 1, 2, 2])).classes
    assert (classes.names, classes.ids) == (("dog", "cat"), (7, 90))
    assert (classes.index_of(7), classes.index_of(90)) == (0, 1)
    assert ClassMap.from_json(json.loads(json.dumps(classes.to_json()))) == classes
    with pytest.raises(DataError, match="category id 1 is unknown; known: 7, 90"):
        classes.index_of(1)


def test_validation_takes_the_classes_of_training(tmp_path: Path) -> None:
    train = ClassMap(("bird", "dog", "cat"), (1, 7, 90))
    opened = store(tmp_path, row(bbox=[1, 1, 2, 2]), classes=train)
    assert opened.classes is train
    assert opened[0].objects[0].category == 1
    assert opened.census().per_class["bird"]["box"] == 0
    assert opened.census().per_class["dog"]["box"] == 1
    with pytest.raises(DataError, match="has class 'cat' which the training data does not have; did you mean 'cats'"):
        store(tmp_path, row(bbox=[1, 1, 2, 2]), classes=ClassMap(("dog", "cats"), (7, 90)))
    with pytest.raises(DataError, match="class 'dog' the id 7 but the training data gives it 8"):
        store(tmp_path, row(bbox=[1, 1, 2, 2]), classes=ClassMap(("dog", "cat"), (8, 90)))


BAD_ROWS = [
    ({"bbox": [1, 1, -5, 4]}, "has no area"),
    ({"bbox": [1, 1, 5]}, "four numbers"),
    ({"bbox": [1, float("nan"), 5, 5]}, "bbox holds NaN"),
    ({"bbox": [1, 1, 5, float("inf")]}, "bbox holds NaN, infinity"),
    ({"bbox": [1, 1, 5, 10**400]}, "bbox holds NaN, infinity"),
    ({"bbox": [1, 1, True, 5]}, "four numbers"),
    ({"bbox": "1 2 3 4"}, "four numbers"),
    ({"segmentation": [[1, 1, 2, 2, 3]]}, "pairs"),
    ({"segmentation": [[1, 1, 2, 2]]}, "at least 3"),
    ({"segmentation": [[]]}, "at least 3"),
    ({"segmentation": [1, 1, 2, 2, 3, 3]}, "list of polygons"),
    ({"segmentation": "polygon"}, "list of polygons"),
    ({"segmentation": {"size": [40, 60], "counts": "ab!"}}, "RLE counts"),
    ({"segmentation": {"size": [40, 60], "counts": "é"}}, "RLE counts"),
    ({"segmentation": {"size": [40, 60], "counts": [1, 2]}}, "sum to 2400"),
    ({"segmentation": {"size": [40, 60], "counts": [-1, 2401]}}, "0 or more"),
    ({"segmentation": {"size": [40, 60], "counts": [1.5, 2398.5]}}, "whole numbers"),
    ({"segmentation": {"size": [60, 40], "counts": [2400]}}, "RLE size"),
    ({"segmentation": {"size": "big", "counts": [2400]}}, "RLE size"),
    ({"segmentation": {"counts": [2400]}}, "RLE size"),
    ({"bbox": [1, 1, 2, 2], "point_coords": [[1, 1]]}, "no point_labels"),
    ({"bbox": [1, 1, 2, 2], "point_coords": [[1, 1]], "point_labels": [1, 0]}, "1 point_coords but 2"),
    ({"bbox": [1, 1, 2, 2], "point_coords": [[1, 1]], "point_labels": [2]}, "allowed: 1"),
    ({"bbox": [1, 1, 2, 2], "point_coords": [1, 1], "point_labels": [1, 0]}, "list of"),
    ({"point_coords": [[1, 1], [2, 2]], "point_labels": [1, 0]}, "need a bbox"),
    ({"point": [1]}, r"\[x, y\]"),
    ({"bbox": [1, 1, 2, 2], "weight": 1.5}, "0 to 1"),
    ({"bbox": [1, 1, 2, 2], "score": "high"}, "0 to 1"),
    ({"iscrowd": 1}, "crowd needs"),
    ({"iscrowd": "yes", "bbox": [1, 1, 2, 2]}, "iscrowd is 'yes'"),
    ({"bbox": [1, 1, 2, 2], "category_id": 8}, "category id 8 is not among"),
    ({"bbox": [1, 1, 2, 2], "category_id": "dog"}, "category_id must be a whole number"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_ROWS, ids=[message for _, message in BAD_ROWS])
def test_bad_rows_are_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        store(tmp_path, row(3, bbox=[1, 1, 2, 2]), row(12, **fields))
    assert "file.json: image 1, annotation 12" in str(caught.value)
    assert not list(tmp_path.glob("cache/annotations/*")), "nothing half read may stay in the cache"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [row(1, image_id=9)]}, "annotation 1 belongs to image 9"),
        ({"annotations": [row(1, image_id=[1])]}, "annotation 1 belongs to image"),
        ({"annotations": [row(4, bbox=[1, 1, 2, 2])] * 2}, "annotation id 4 is used twice"),
        ({"images": [image(1), image(1)]}, "image id 1 is used twice"),
        ({"images": [{"id": 1}]}, "file_name"),
        ({"images": [image(1, width=None)]}, "needs a width"),
        ({"images": [image(1, exhaustive="yes")]}, "exhaustive is 'yes'"),
        ({"images": []}, "no images"),
        ({"images": {}}, "'images' must be a list"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "both 'a' and 'b'"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "class 'a' is listed twice"),
        ({"categories": [{"id": "x"}]}, "a category needs"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path, [])
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message) as caught:
        AnnotationStore.open(path, tmp_path, unannotated="negative")
    assert str(path) in str(caught.value)


def test_missing_and_broken_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        AnnotationStore.open(tmp_path / "no.json", tmp_path)
    path = tmp_path / "broken.json"
    path.write_text('{"images": [1,\n 2,}')
    with pytest.raises(DataError, match=r"not valid JSON.*line 2"):
        AnnotationStore.open(path, tmp_path)
    path.write_bytes(b"\xff\xfe\x00\x01\x02")
    with pytest.raises(DataError, match="not valid JSON"):
        read_json(path)
    path.write_text("[1]")
    with pytest.raises(DataError, match="JSON object, found list"):
        read_json(path)


def test_what_somebody_rejected_is_no_label(tmp_path: Path) -> None:
    box = [10, 10, 20, 15]
    rejected = {"bbox": box, "segmentation": SQUARE, "weight": 0.0}
    opened = store(tmp_path, row(1, bbox=box), row(2, category_id=90, **rejected), row(3, score=0, bbox=box))
    counted = opened.census()
    assert (sum(counted.objects.values()), counted.rejected) == (1, 2)
    assert counted.class_images == {"dog": 1, "cat": 0}
    assert counted.to_text().endswith("objects by label: 1 box; 2 rejected")
    assert [item.id for item in opened[0].counted] == [1]
    assert len(opened[0].objects) == 3, "training leaves their places alone"
    assert not any(map(can_be_pasted, opened[0].objects))
    assert _classes_of_images(opened) == [{opened.classes.names.index("dog")}]


def test_a_plan_of_data_with_rejected_masks(tmp_path: Path) -> None:
    rows = [row(1, bbox=[10, 10, 20, 15]), row(2, bbox=[0, 0, 2, 2], segmentation=SQUARE, weight=0)]
    files = SplitFiles(write(tmp_path, rows), tmp_path, None)
    Image.new("RGB", (60, 40)).save(tmp_path / "1.png")
    found = fingerprint({"train": files}, DataConfig(path=str(tmp_path)))
    assert (found.objects, found.labels["mask"], found.mask_images) == (1, 0, 0)
    assert found.objects_per_image.most == 1
    assert found.object_side.least > 0.2
