"""Checking a data set: every kind of problem is found with its place, clean data has none, and the repair passes."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from run_helpers import Outcome

from leanmask.data.check import CheckReport, check
from leanmask.data.coco import AnnotationStore
from leanmask.data.layout import locate
from leanmask.errors import ConfigError, DataError, RunError

Content = dict[str, Any]
NAN = float("nan")
REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


def _rle() -> dict[str, Any]:
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[5:20, 7:31] = 1
    return {"size": [40, 60], "counts": coco_mask.encode(np.asfortranarray(mask))["counts"].decode()}


def _split(first_image: int) -> Content:
    images = [
        {"id": first_image + i, "file_name": f"{first_image + i}.jpg", "width": 60, "height": 40} for i in range(3)
    ]
    n = first_image * 10
    annotations = [
        {
            "id": n,
            "image_id": first_image,
            "category_id": 3,
            "bbox": [7, 5, 24, 15],
            "segmentation": _rle(),
            "area": 360,
        },
        {
            "id": n + 1,
            "image_id": first_image,
            "category_id": 8,
            "bbox": [10, 10, 20, 15],
            "segmentation": [[10, 10, 30, 10, 30, 25, 10, 25], [12, 12, 20, 12, 20, 20]],
        },
        {
            "id": n + 2,
            "image_id": first_image + 1,
            "category_id": 3,
            "bbox": [10, 10, 20, 15],
            "point_coords": [[12, 12], [28, 11], [10, 24]],
            "point_labels": [1, 0, 1],
        },
        {"id": n + 3, "image_id": first_image + 2, "category_id": 8, "bbox": [0, 0, 60, 40], "iscrowd": 1},
        {"id": n + 4, "image_id": first_image + 2, "category_id": 8, "point": [3.5, 39.5], "weight": 0.5},
    ]
    return {
        "info": {"year": 2026},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
    }


@dataclass
class DataSet:
    """A small data set on disk whose files a test may spoil."""

    root: Path

    def path(self, split: str = "train") -> Path:
        return self.root / "annotations" / f"instances_{split}.json"

    def change(self, edit: Callable[[Content], None], split: str = "train") -> None:
        content = json.loads(self.path(split).read_text())
        edit(content)
        self.path(split).write_text(json.dumps(content))

    def image(self, number: int) -> Path:
        return self.root / "images" / f"{number}.jpg"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    monkeypatch.setenv("LEANMASK_CACHE", str(tmp_path / "cache"))
    made = DataSet(tmp_path / "data")
    (made.root / "annotations").mkdir(parents=True)
    (made.root / "images").mkdir()
    rng = np.random.default_rng(0)
    for split, first in (("train", 1), ("val", 4)):
        made.path(split).write_text(json.dumps(_split(first)))
        for number in range(first, first + 3):
            Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(made.image(number))
    return made


def test_clean_data_has_no_problems(data: DataSet) -> None:
    seen: list[tuple[int, int]] = []
    report = check(data.root, on_progress=lambda done, total: seen.append((done, total)))
    assert report.problems == ()
    assert report.ok
    assert seen == [(n, 6) for n in range(1, 7)]
    train = report.census["train"]
    assert train.objects == {"none": 0, "point": 1, "box": 0, "points": 1, "mask": 2}
    assert (train.images, train.exhaustive_images, train.crowds, train.one_label_points) == (3, 3, 1, 0)
    assert train.per_class["cat"] == {"none": 0, "point": 0, "box": 0, "points": 1, "mask": 1}
    assert json.loads(json.dumps(report.to_json()))["ok"] is True
    assert "train: 3 images (3 exhaustive); 2 mask, 1 points, 1 point, 1 crowds" in report.to_text()


def test_the_census_is_that_of_the_store(data: DataSet) -> None:
    data.change(lambda c: c["images"].append({**c["images"][0], "id": 9, "file_name": "3.jpg", "exhaustive": True}))
    files = locate(data.root)["train"]
    assert files.annotations is not None
    opened = AnnotationStore.open(files.annotations, files.images)
    assert check(data.root).census["train"] == opened.census()


def edit(number: int, **fields: Any) -> Callable[[Content], None]:
    """Change fields of the annotation at a position."""
    return lambda content: content["annotations"][number].update(fields)


def picture(number: int, **fields: Any) -> Callable[[Content], None]:
    return lambda content: content["images"][number].update(fields)


def again(key: str, number: int, **fields: Any) -> Callable[[Content], None]:
    """Add a changed copy of a row."""
    return lambda content: content[key].append({**copy.deepcopy(content[key][number]), **fields})


def remove(number: int, *names: str, **fields: Any) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content["annotations"][number].update(fields)
        for name in names:
            del content["annotations"][number][name]

    return change


def crowds(content: Content) -> None:
    for row in content["annotations"]:
        row["iscrowd"] = 1


ROWS: list[tuple[str, Callable[[Content], None], int | str | None, int | str | None]] = [
    ("not-finite", edit(0, bbox=[7, NAN, 24, 15]), 1, 10),
    ("not-finite", edit(0, area=float("inf")), 1, 10),
    ("not-finite", edit(1, segmentation=[[10, 10, 30, 10, 30, NAN]]), 1, 11),
    ("not-finite", edit(4, weight=NAN), 3, 14),
    ("not-finite", edit(2, point_coords=[[12, NAN], [28, 11], [10, 24]]), 2, 12),
    ("not-finite", edit(0, attributes={"quality": [1, -float("inf")]}), 1, 10),
    ("not-finite", lambda c: c["info"].update(scale=NAN), None, None),
    ("not-finite", picture(1, gps=[NAN, 3]), 2, None),
    ("box-size", edit(0, bbox=[7, 5, 0, 15]), 1, 10),
    ("box-size", edit(2, bbox=[10, 10, 20, -15]), 2, 12),
    ("box-outside", edit(2, bbox=[10, 10, 70, 15]), 2, 12),
    ("box-outside", edit(1, bbox=[-8, 10, 38, 15]), 1, 11),
    ("box-mask", edit(0, bbox=[40, 20, 10, 10]), 1, 10),
    ("box-mask", edit(1, bbox=[10, 10, 4, 4]), 1, 11),
    ("malformed", edit(0, bbox=[1, 2, 3]), 1, 10),
    ("malformed", edit(0, bbox={"x": 1}), 1, 10),
    ("malformed", edit(0, segmentation="none"), 1, 10),
    ("malformed", edit(1, segmentation=[["a", 1, 2, 3, 4, 5]]), 1, 11),
    ("malformed", edit(2, point_coords=[[1, 2, 3]] * 3), 2, 12),
    ("malformed", edit(4, point=[3]), 3, 14),
    ("malformed", edit(3, iscrowd="yes"), 3, 13),
    ("malformed", remove(3, "bbox"), 3, 13),
    ("malformed", edit(0, category_id="cat"), 1, 10),
    ("malformed", edit(0, id="ten"), 1, "ten"),
    ("malformed", edit(0, id=-1), 1, -1),
    ("malformed", edit(0, id=2**53), 1, 2**53),
    ("malformed", edit(0, id=True), 1, True),
    ("malformed", remove(0, "id"), 1, None),
    ("malformed", picture(1, exhaustive="no"), 2, None),
    ("malformed", again("images", 1, id=None), None, None),
    ("malformed", again("images", 1, id=77, file_name=None), 77, None),
    ("malformed", again("categories", 0, id="x", name=None), None, None),
    ("polygon-odd", edit(1, segmentation=[[10, 10, 30, 10, 30, 25, 10, 25], [12, 12, 20, 12, 20, 20, 3]]), 1, 11),
    ("polygon-degenerate", edit(1, segmentation=[[10, 10, 30, 10, 30, 25, 10, 25], [12, 12, 20, 12]]), 1, 11),
    ("polygon-degenerate", edit(1, segmentation=[[]]), 1, 11),
    ("polygon-degenerate", edit(1, segmentation=[[10, 10, 20, 20, 30, 30]], bbox=[10, 10, 20, 20]), 1, 11),
    ("rle-size", edit(0, segmentation={"size": [60, 40], "counts": [0, 2400]}), 1, 10),
    ("rle-size", edit(0, segmentation={"counts": [0, 2400]}), 1, 10),
    ("rle-broken", edit(0, segmentation={"size": [40, 60], "counts": [100, 2000]}), 1, 10),
    ("rle-broken", edit(0, segmentation={"size": [40, 60], "counts": "zz!"}), 1, 10),
    ("rle-broken", edit(0, segmentation={"size": [40, 60], "counts": None}), 1, 10),
    ("mask-empty", edit(0, segmentation={"size": [40, 60], "counts": [2400]}), 1, 10),
    ("point-outside", edit(2, point_coords=[[12, 12], [28, 11], [50, 24]]), 2, 12),
    ("point-outside", edit(2, point_coords=[[12, 12], [28, 11], [10, 40]], bbox=[10, 10, 20, 31]), 2, 12),
    ("point-outside", edit(4, point=[61, 3]), 3, 14),
    ("point-outside", edit(2, point_coords=[[12, 12], [28, 11], [-1, 24]], bbox=[0, 10, 30, 15]), 2, 12),
    ("point-label", edit(2, point_labels=[1, 0, 2]), 2, 12),
    ("point-label", edit(2, point_labels=[1, 0, -1]), 2, 12),
    ("point-label", edit(2, point_labels=[1, 0, "1"]), 2, 12),
    ("point-lengths", edit(2, point_labels=[1, 0]), 2, 12),
    ("point-lengths", edit(2, point_labels=[1, 0, 1, 1]), 2, 12),
    ("point-lengths", edit(2, point_labels=None), 2, 12),
    ("point-lengths", remove(2, "point_labels"), 2, 12),
    ("point-lengths", remove(2, "point_coords"), 2, 12),
    ("point-lengths", edit(2, point_coords=[]), 2, 12),
    ("points-without-box", remove(2, "bbox"), 2, 12),
    ("weight-range", edit(4, weight=1.5), 3, 14),
    ("duplicate-annotation-id", again("annotations", 0), 1, 10),
    ("unknown-image", edit(0, image_id=99), 99, 10),
    ("unknown-category", edit(0, category_id=5), 1, 10),
    ("crowd-everything", crowds, None, None),
    ("class-duplicate-name", again("categories", 0, id=4), None, None),
    ("class-duplicate-id", again("categories", 0, name="bird"), None, None),
    ("duplicate-image-id", again("images", 1), 2, None),
    ("duplicate-image-id", again("images", 1, file_name="3.jpg"), 2, None),
    ("duplicate-file", again("images", 1, id=50, exhaustive=True), 50, None),
    ("size-mismatch", picture(0, width=64), 1, None),
    ("size-mismatch", picture(1, width=40, height=60), 2, None),
    ("size-mismatch", picture(1, width=None), 2, None),
]


@pytest.mark.parametrize(
    ("code", "spoil", "image_id", "annotation_id"), ROWS, ids=[f"{i}-{row[0]}" for i, row in enumerate(ROWS)]
)
def test_annotation_problems_are_found_and_repaired(
    data: DataSet,
    code: str,
    spoil: Callable[[Content], None],
    image_id: int | str | None,
    annotation_id: int | str | None,
) -> None:
    data.change(spoil)
    before = data.path().read_bytes()
    report = check(data.root, fix=data.root.parent / "fixed", drop=True)
    found = [(problem.image_id, problem.annotation_id) for problem in report.problems if problem.code == code]
    assert (image_id, annotation_id) in found, report.to_text()
    assert not report.ok
    assert {problem.split for problem in report.problems if problem.severity == "error"} <= {"train", "val"}
    if code not in ("rle-size", "size-mismatch", "class-duplicate-id", "class-duplicate-name"):
        others = {problem.code for problem in report.problems} - {code, "unannotated", "same-content"}
        assert others <= ALSO.get(code, set()), report.to_text()
    assert data.path().read_bytes() == before
    repaired = passes_after_repair(data, report)
    assert code in {repair.code for repair in report.repairs}, repaired.to_text()


# What a fault brings along, by its nature.
ALSO = {"crowd-everything": {"malformed"}}  # an object with a point alone cannot be a crowd


def passes_after_repair(data: DataSet, report: CheckReport) -> CheckReport:
    assert report.fixed is not None
    repaired = check(report.fixed)
    assert repaired.ok, repaired.to_text()
    splits = locate(report.fixed)
    train = AnnotationStore.open(splits["train"].annotations, splits["train"].images, unannotated="unlabelled")
    AnnotationStore.open(splits["val"].annotations, splits["val"].images, unannotated="negative", classes=train.classes)
    assert repaired.census["train"] == check(report.fixed).census["train"]
    return repaired


def fixed_rows(report: CheckReport, key: str = "annotations", split: str = "train") -> list[dict[str, Any]]:
    assert report.fixed is not None
    content = json.loads((report.fixed / "annotations" / f"instances_{split}.json").read_text())
    return content[key]  # type: ignore[no-any-return]


def repair(data: DataSet, *changes: Callable[[Content], None]) -> CheckReport:
    for change in changes:
        data.change(change)
    report = check(data.root, fix=data.root.parent / "fixed", drop=True)
    passes_after_repair(data, report)
    return report


def test_a_repair_keeps_what_is_good(data: DataSet) -> None:
    report = repair(data)
    assert report.repairs == ()
    for split, first in (("train", 1), ("val", 4)):
        assert json.loads((data.root.parent / f"fixed/annotations/instances_{split}.json").read_text()) == _split(first)


def test_a_wrong_box_is_taken_from_the_mask_and_a_broken_mask_leaves_the_box(data: DataSet) -> None:
    report = repair(data, edit(0, bbox=[40, 20, 10, 10]), edit(1, segmentation=[[1, 2, 3]]))
    first, second = fixed_rows(report)[:2]
    assert first["bbox"] == [7, 5, 24, 15]
    assert "segmentation" not in second
    assert second["bbox"] == [10, 10, 20, 15]
    assert all("exhaustive" not in image for image in fixed_rows(report, "images"))


def test_good_polygons_and_points_survive(data: DataSet) -> None:
    whole = [10, 10, 30, 10, 30, 25, 10, 25]
    report = repair(
        data,
        edit(1, segmentation=[[1, 1, 2, 2], whole, [5.0] * 8]),
        edit(2, point_coords=[[12, 12], [59, 39], [10, NAN]], point_labels=[0, 1, 1]),
    )
    assert fixed_rows(report)[1]["segmentation"] == [whole]
    assert fixed_rows(report)[2]["point_coords"] == [[12, 12]]
    assert fixed_rows(report)[2]["point_labels"] == [0]


def test_an_image_that_loses_an_object_is_no_longer_exhaustive(data: DataSet) -> None:
    report = repair(data, edit(0, category_id=5), picture(0, exhaustive=True))
    assert [row["id"] for row in fixed_rows(report)] == [11, 12, 13, 14]
    assert [image.get("exhaustive") for image in fixed_rows(report, "images")] == [False, None, None]
    assert "not-exhaustive" in {found.code for found in report.repairs}


def test_a_problem_of_points_is_named_with_its_place_and_only_the_bad_point_goes(data: DataSet) -> None:
    report = repair(data, edit(2, point_coords=[[12, 12], [28, 11], [50, 24], [11, 11]], point_labels=[1, 0, 1, 7]))
    places = {(problem.file, problem.image_id, problem.annotation_id) for problem in report.problems}
    assert places == {(str(data.path()), 2, 12)}
    assert "point_labels are [1, 0, 1, 7]; allowed: 1 (object) and 0 (background)" in report.to_text()
    assert fixed_rows(report)[2]["point_coords"] == [[12, 12], [28, 11]]
    assert fixed_rows(report)[2]["point_labels"] == [1, 0]


def test_duplicated_points_are_allowed_and_more_points_than_pixels_are_noticed(data: DataSet) -> None:
    data.change(edit(2, point_coords=[[12, 12]] * 3, point_labels=[1, 1, 0]))
    assert check(data.root).problems == ()
    small = {"bbox": [57.5, 38.5, 3, 1.5], "point_coords": [[58, 38]] * 6, "point_labels": [1, 0] * 3}
    data.change(edit(2, **small))  # the box touches 3 x 2 pixels of the image
    assert check(data.root).problems == ()
    seven = {"point_coords": [[58, 38]] * 7, "point_labels": [1] * 6 + [0]}
    report = repair(data, edit(2, **{**small, **seven}))
    found = [(problem.severity, problem.code, problem.image_id, problem.annotation_id) for problem in report.problems]
    assert found == [("warning", "point-count", 2, 12)]
    assert "7 points in a box of 6 pixels" in report.to_text()
    assert report.repairs == ()


def test_objects_with_points_of_one_label_are_counted_and_allowed(data: DataSet) -> None:
    data.change(edit(2, point_labels=[0, 0, 0]))
    data.change(again("annotations", 2, id=20, point_labels=[1, 1, 1]))
    report = check(data.root)
    assert report.problems == ()
    assert report.census["train"].one_label_points == 2
    assert "2 points, 1 point, 1 crowds, 2 with points of one label only" in report.to_text()
    files = locate(data.root)["train"]
    census = AnnotationStore.open(files.annotations, files.images).census()
    assert census == report.census["train"]
    assert "2 points, 1 point (2 with points of one label only); 1 crowd" in census.to_text()


def test_doubtful_weights_do_not_become_full_trust(data: DataSet) -> None:
    report = repair(data, edit(4, weight=NAN), edit(0, weight=-0.5), edit(1, weight=3))
    assert [row.get("weight") for row in fixed_rows(report)] == [0, 1, None, None, 0]


def test_records_of_one_file_are_merged_without_doubling_objects(data: DataSet) -> None:
    def spoil(content: Content) -> None:
        content["images"].append({**content["images"][1], "id": 50})
        original = content["annotations"][2]
        content["annotations"] += [{**original, "id": 90, "image_id": 50}]
        content["annotations"] += [{**original, "id": 91, "image_id": 50, "bbox": [11, 10, 20, 15]}]

    report = repair(data, spoil)
    assert [image["id"] for image in fixed_rows(report, "images")] == [1, 2, 3]
    assert [(row["id"], row["image_id"]) for row in fixed_rows(report) if row["image_id"] == 2] == [(12, 2), (91, 2)]


def test_a_size_is_corrected_only_where_the_annotations_prove_it(data: DataSet) -> None:
    doubtful, proven = picture(1, width=120, height=80), picture(2, width=30, height=20)
    report = repair(data, doubtful, proven)
    assert [image["id"] for image in fixed_rows(report, "images")] == [1, 3]
    assert [(image["width"], image["height"]) for image in fixed_rows(report, "images")] == [(60, 40)] * 2
    assert {row["image_id"] for row in fixed_rows(report)} == {1, 3}


def test_broken_images(data: DataSet) -> None:
    data.image(1).unlink()
    data.image(2).write_bytes(data.image(2).read_bytes()[:-400])
    data.image(4).write_bytes(b"no picture at all")
    report = check(data.root, fix=data.root.parent / "fixed", drop=True)
    found = {(p.code, p.split, p.image_id, Path(p.file).name) for p in report.problems}
    assert found == {
        ("image-missing", "train", 1, "1.jpg"),
        ("image-truncated", "train", 2, "2.jpg"),
        ("image-unreadable", "val", 4, "4.jpg"),
    }
    passes_after_repair(data, report)
    assert [image["id"] for image in fixed_rows(report, "images")] == [3]


@pytest.mark.parametrize("cut", [30, 200, 700, 1500])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_every_truncation_is_noticed(data: DataSet, suffix: str, cut: int) -> None:
    path = data.image(1).with_suffix(f".{suffix}")
    Image.open(data.image(1)).save(path)
    data.change(picture(0, file_name=path.name))
    assert check(data.root).ok
    path.write_bytes(path.read_bytes()[:-cut])
    codes = {(problem.code, problem.image_id) for problem in check(data.root).problems}
    assert codes <= {("image-truncated", 1), ("image-unreadable", 1)}
    assert codes


def turn(path: Path, orientation: int) -> None:
    with Image.open(path) as picture_:
        picture_.load()
        exif = picture_.getexif()
        exif[0x0112] = orientation
        picture_.save(path, exif=exif)


@pytest.mark.parametrize(
    ("size", "exif", "codes", "message"),
    [
        ((60, 40), "error", ["exif-rotation"], "data.exif=ignore fits"),
        ((40, 60), "error", ["exif-rotation"], "data.exif=apply fits"),
        ((50, 50), "error", ["exif-rotation", "size-mismatch"], "neither way"),
        ((60, 40), "ignore", [], ""),
        ((60, 40), "apply", ["size-mismatch"], "40 x 60"),
        ((40, 60), "ignore", ["size-mismatch"], "60 x 40"),
        ((40, 60), "apply", [], ""),
    ],
)
def test_exif(data: DataSet, size: tuple[int, int], exif: str, codes: list[str], message: str) -> None:
    turn(data.image(2), 6)
    data.change(picture(1, width=size[0], height=size[1]))
    report = check(data.root, exif=exif)
    assert sorted(problem.code for problem in report.problems) == codes
    assert all(problem.image_id == 2 for problem in report.problems)
    assert not codes or message in report.to_text()


def test_exif_is_the_users_choice(data: DataSet) -> None:
    turn(data.image(2), 3)
    report = check(data.root, fix=data.root.parent / "fixed", drop=True)
    assert [repair.message for repair in report.repairs] == ["left as it is: choose data.exif=apply or ignore"]
    assert check(data.root, exif="apply").ok
    with pytest.raises(DataError, match="exif is 'aply'; did you mean 'apply'"):
        check(data.root, exif="aply")


def test_classes_of_the_splits(data: DataSet) -> None:
    def rename(content: Content) -> None:
        content["categories"] = [{"id": 8, "name": "cat"}, {"id": 3, "name": "doge"}]

    data.change(rename, "val")
    report = check(data.root, fix=data.root.parent / "fixed", drop=True)
    found = [(problem.code, problem.split) for problem in report.problems]
    assert found == [("class-id-differs", "val"), ("class-unknown", "val")]
    assert "class 'doge' (id 3) is not in split 'train'" in report.to_text()
    passes_after_repair(data, report)
    categories = {row["name"]: row["id"] for row in fixed_rows(report, "categories", "val")}
    assert categories == {"cat": 3, "doge": 9}
    assert [row["category_id"] for row in fixed_rows(report, split="val")] == [9, 3, 9, 3, 3]
    assert fixed_rows(report, "categories")[-1] == {"id": 9, "name": "doge"}


def test_warnings_do_not_fail(data: DataSet) -> None:
    shutil.copy(data.image(1), data.image(5))
    data.change(lambda c: c["images"].append({**c["images"][2], "id": "x", "file_name": "copy.jpg"}))
    shutil.copy(data.image(3), data.root / "images" / "copy.jpg")
    data.change(edit(1, segmentation=[[10, 10, 30, 10, 30, 70, 10, 70]], bbox=[10, 10, 20, 30]))
    data.change(edit(2, point_coords=[[12.5, 12], [28, 11], [10, 24]]))
    report = check(data.root)
    found = {(problem.code, problem.split, problem.image_id) for problem in report.problems}
    assert report.ok
    assert found == {
        ("same-content", "val", 5),
        ("same-content", "train", "x"),
        ("unannotated", "train", None),
        ("mask-outside", "train", 1),
        ("point-fraction", "train", 2),
    }
    assert "1 images have no annotations (ids x)" in report.to_text()
    assert report.census["train"].undecided_images == 1
    leak = next(problem for problem in report.problems if problem.split == "val")
    assert "what is learnt in one is measured in the other" in leak.message


def test_the_yaml_of_a_repaired_copy(data: DataSet) -> None:
    unlabelled = data.root / "unlabelled"
    unlabelled.mkdir()
    for name, colour in (("b.jpg", "blue"), ("a.jpg", "red")):
        Image.new("RGB", (20, 10), colour).save(unlabelled / name)
    fixed = locate(check(data.root, fix=data.root.parent / "fixed").fixed or "")
    assert set(fixed) == {"train", "val", "unlabelled"}
    assert fixed["train"].images.resolve() == (data.root / "images").resolve()
    assert fixed["unlabelled"].annotations is None
    (unlabelled / "b.jpg").write_bytes(b"broken")
    report = check(data.root, fix=data.root.parent / "again")
    assert [(p.code, p.image_id) for p in report.problems] == [("image-unreadable", 2)]
    passes_after_repair(data, report)
    assert [image["file_name"] for image in fixed_rows(report, "images", "unlabelled")] == ["a.jpg"]


def test_nothing_is_overwritten(data: DataSet) -> None:
    before = {path: path.read_bytes() for path in data.root.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="exists already"):
        check(data.root, fix=data.root)
    occupied = data.root.parent / "fixed"
    occupied.mkdir()
    (occupied / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="exists already"):
        check(data.root, fix=occupied)
    assert [path.name for path in occupied.iterdir()] == ["mine.txt"]
    assert {path: path.read_bytes() for path in data.root.rglob("*") if path.is_file()} == before


def test_files_that_are_no_coco(data: DataSet) -> None:
    data.path("val").write_text("{")
    report = check(data.root, fix=data.root.parent / "fixed", drop=True)
    assert [(problem.code, problem.split) for problem in report.problems] == [("file-unreadable", "val")]
    assert report.repairs[0].message == "cannot be repaired and is left out of the copy"
    assert set(locate(report.fixed or "")) == {"train"}
    assert report.usable
    data.path("train").write_text("{")
    nothing = check(data.root, fix=data.root.parent / "nothing", drop=True)
    assert not nothing.usable, "a copy of nothing"
    data.path("train").write_text(json.dumps(_split(1)))
    data.path("val").write_text('{"images": [], "annotations": [3], "categories": []}')
    assert [problem.code for problem in check(data.root).problems] == ["file-unreadable"]
    with pytest.raises(DataError, match="does not exist"):
        check(data.root / "nowhere")


def test_long_lists_are_summed_up(data: DataSet) -> None:
    def spoil(content: Content) -> None:
        for row in content["annotations"]:
            row["category_id"] = 55

    data.change(spoil)
    text = check(data.root).to_text(limit=2)
    assert text.count("error [unknown-category] split train") == 2
    assert "and 3 x unknown-category" in text
    assert "5 errors, 0 warnings" in text


@pytest.mark.parametrize("name", ["nuclei", "facades"])
def test_real_data(name: str) -> None:
    if not (REAL_DATA / name).is_dir():
        pytest.skip(f"the data set {name} is not on this machine")
    report = check(REAL_DATA / name)
    assert report.ok, report.to_text()
    assert report.census["train"].objects["mask"] > 1000


def rows_without(*keys: str, every: int = 1) -> Callable[[Content], None]:
    """Twenty objects of the first image; `every` n-th has a mask that cannot be read, or a class that is not there."""

    def change(content: Content) -> None:
        rows = []
        for number in range(20):
            row = {**copy.deepcopy(content["annotations"][0]), "id": 100 + number}
            if number % every == 0:
                row.update(segmentation=[[1, 2, 3]] if "segmentation" in keys else row["segmentation"])
                row.update(category_id=5 if "category_id" in keys else 3)
            rows.append(row)
        content["annotations"] = [*rows, *content["annotations"][1:]]

    return change


def only_one_of_a_class(content: Content) -> None:
    """The only object of a class, among many others, has no image."""
    rows_without()(content)
    content["annotations"] = [row for row in content["annotations"] if row["category_id"] == 3]
    content["annotations"].append({"id": 7, "image_id": 99, "category_id": 8, "bbox": [1, 1, 5, 5]})


LOSSES: list[tuple[Callable[[Content], None], str]] = [
    (rows_without("category_id", every=4), "5 of 24 annotations of split 'train'"),
    (rows_without("segmentation", every=4), "5 of 21 masks of split 'train'"),
    (
        lambda c: [row.update(segmentation=[[1, 2, 3]]) for row in c["annotations"] if row.get("segmentation")],
        "all 2 masks of split 'train'",
    ),
    (only_one_of_a_class, "all 1 annotations of class 'dog' of split 'train'"),
    (lambda c: c.pop("annotations"), "all labels of split 'train' \\(.*'annotations' must be a list"),
]


@pytest.mark.parametrize(("spoil", "loss"), LOSSES, ids=[str(i) for i in range(len(LOSSES))])
def test_a_repair_that_loses_much_stops_and_is_done_when_asked_for(
    data: DataSet, leanmask: Callable[..., Outcome], spoil: Callable[[Content], Any], loss: str
) -> None:
    data.change(spoil)
    fixed = data.root.parent / "fixed"
    with pytest.raises(DataError, match=f"the repair would lose .*{loss}"):
        check(data.root, fix=fixed)
    refused = leanmask("check", data.root, "--fix", fixed)
    assert refused.code == 2
    assert "Nothing was written" in refused.err
    assert not fixed.exists()
    done = leanmask("check", data.root, "--fix", fixed, "--drop")
    assert (fixed / "data.yaml").is_file()
    assert "wrote a repaired copy" in done.out


def test_small_losses_and_merged_duplicates_are_repaired_at_once(data: DataSet) -> None:
    data.change(rows_without("category_id", every=20))
    assert check(data.root, fix=data.root.parent / "fixed").fixed is not None
    data.change(again("images", 0, id=50))
    data.change(
        lambda c: c["annotations"].extend(
            {**row, "id": row["id"] + 500, "image_id": 50} for row in c["annotations"][:20]
        )
    )
    assert check(data.root, fix=data.root.parent / "merged").fixed is not None


def test_drop_needs_a_repair(data: DataSet) -> None:
    with pytest.raises(ConfigError, match="--drop is for a repair"):
        check(data.root, drop=True)


def test_an_accepted_pseudo_mask_is_as_exact_as_its_network(data: DataSet) -> None:
    review = {"decision": "accept", "annotator": "anna", "before": {"provenance": "leanmask m"}}
    data.change(edit(0, bbox=[40, 20, 10, 10], provenance="human", weight=1.0, review=review))
    report = check(data.root)
    assert report.ok
    assert [problem.code for problem in report.problems] == ["box-pseudo-mask"]


def test_a_copy_without_errors_is_a_success_and_one_with_errors_none(
    data: DataSet, leanmask: Callable[..., Outcome]
) -> None:
    data.change(lambda c: c["annotations"][0].update(bbox=[0, 0, 0, 0]))
    assert leanmask("check", data.root).code == 1
    done = leanmask("check", data.root, "--fix", data.root.parent / "fixed", "--drop")
    assert (done.code, "the copy has no errors" in done.out) == (0, True), done.out
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(data.image(1)) as image:
        image.save(data.image(1), exif=turned)  # what to do about it is the user's choice
    left = leanmask("check", data.root, "--fix", data.root.parent / "left", "--drop")
    assert (left.code, "the copy has 1 error\n" in left.out) == (1, True), left.out
