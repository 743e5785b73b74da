"""Finding a data set's files: the layouts users have, the YAML, and messages where nothing fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanmask.data.layout import SplitFiles, locate, locate_unlabelled
from leanmask.errors import DataError


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            path.write_text("{}")
        elif path.suffix:
            path.write_bytes(b"")
        else:
            path.mkdir(parents=True, exist_ok=True)


LAYOUTS = [
    (
        ["images/1.jpg", "annotations/instances_train.json", "annotations/instances_tune.json"],
        {
            "train": ("annotations/instances_train.json", "images"),
            "tune": ("annotations/instances_tune.json", "images"),
        },
    ),
    (
        [
            *("train2017/1.jpg", "val2017/2.jpg", "unlabeled2017/3.jpg"),
            *("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
        ],
        {
            "train": ("annotations/instances_train2017.json", "train2017"),
            "val": ("annotations/instances_val2017.json", "val2017"),
            "unlabelled": (None, "unlabeled2017"),
        },
    ),
    (
        ["images/train/1.jpg", "annotations/instances_train.json"],
        {"train": ("annotations/instances_train.json", "images/train")},
    ),
    (
        [f"{name}/_annotations.coco.json" for name in ("train", "valid", "test")],
        {
            name: (f"{place}/_annotations.coco.json", place)
            for name, place in (("train", "train"), ("val", "valid"), ("test", "test"))
        },
    ),
]


@pytest.mark.parametrize(("names", "expected"), LAYOUTS)
def test_layouts(tmp_path: Path, names: list[str], expected: dict[str, tuple[str | None, str]]) -> None:
    make(tmp_path, *names)
    assert locate(str(tmp_path)) == {
        split: SplitFiles(tmp_path / file if file else None, tmp_path / images, None)
        for split, (file, images) in expected.items()
    }


def test_yaml(tmp_path: Path) -> None:
    make(tmp_path, "a.json", "t.json", "pictures", "more")
    path = tmp_path / "data.yaml"
    path.write_text(
        "splits: {train: {annotations: a.json, images: pictures, truth: t.json}, unlabelled: {images: more}}"
    )
    expected = {
        "train": SplitFiles(tmp_path / "a.json", tmp_path / "pictures", tmp_path / "t.json"),
        "unlabelled": SplitFiles(None, tmp_path / "more", None),
    }
    assert locate(path) == locate(tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("splits: {train: {annotations: no.json, images: pictures}}", r"no\.json, which does not exist"),
        ("splits: {train: {annotations: a.json, images: picture}}", "folder .*picture, which does not exist"),
        ("splits: {train: {annotation: a.json, images: pictures}}", "did you mean 'annotations'"),
        ("splits: {train: {annotations: a.json}}", "does not say where its `images` are"),
        ("splits: {train: {images: [pictures]}}", "must be a path"),
        ("splits: {train: a.json}", "must be a mapping"),
        ("splits: {}", "needs `splits`"),
        ("split: {}", "unknown key 'split'; did you mean 'splits'"),
        ("[1]", "must hold a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, message: str) -> None:
    make(tmp_path, "a.json", "pictures")
    path = tmp_path / "data.yml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        locate(path)


def test_unknown_layouts(tmp_path: Path) -> None:
    make(tmp_path, "mydata/notes.txt", "pictures/1.jpg", "lonely/annotations/instances_train.json")
    with pytest.raises(DataError, match=r"did you mean '.*mydata'"):
        locate(tmp_path / "mydat")
    with pytest.raises(DataError, match="has no 'zzz'"):
        locate(tmp_path / "zzz" / "below")
    with pytest.raises(DataError, match=r"Looked for .*_annotations.coco.json"):
        locate(tmp_path / "mydata")
    with pytest.raises(DataError, match=r"images only: name it in data.unlabelled"):
        locate(tmp_path / "pictures")
    with pytest.raises(DataError, match="single file"):
        locate(tmp_path / "mydata" / "notes.txt")
    with pytest.raises(DataError, match=r"no images found for .*instances_train.json"):
        locate(tmp_path / "lonely")
    make(tmp_path, "two/images", "two/annotations/instances_train2014.json", "two/annotations/instances_train2017.json")
    with pytest.raises(DataError, match="both split 'train'"):
        locate(tmp_path / "two")


def test_unlabelled_sources(tmp_path: Path) -> None:
    make(tmp_path, "set/images/1.jpg", "set/annotations/image_info_unlabeled2017.json", "set/unlabeled2017/2.jpg")
    make(tmp_path, "flat/all.json", "flat/3.jpg", "none/x.txt")
    root = tmp_path / "set"
    assert locate_unlabelled(root / "images") == locate_unlabelled(root) == SplitFiles(None, root / "images", None)
    path = root / "annotations" / "image_info_unlabeled2017.json"
    assert locate_unlabelled(path) == SplitFiles(path, root / "unlabeled2017", None)
    flat = tmp_path / "flat" / "all.json"
    assert locate_unlabelled(flat) == SplitFiles(flat, tmp_path / "flat", None)
    for source, message in (("none", "no images"), ("none/x.txt", "neither"), ("gone", "does not exist")):
        with pytest.raises(DataError, match=message):
            locate_unlabelled(tmp_path / source)
