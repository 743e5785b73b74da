"""Finding a data set's files: the layouts users have, the YAML, and messages where nothing fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from leanmask.data.check import check
from leanmask.data.coco import AnnotationStore
from leanmask.data.layout import SplitFiles, locate, locate_images, locate_unlabelled
from leanmask.errors import DataError
from leanmask.paths import image_path


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
    with pytest.raises(DataError, match=r"images only: label some .leanmask annotate .*name it in data.unlabelled"):
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


def coco(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": n, "file_name": name} for n, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    return path


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(path)


SINGLE = [
    ("annotations/instances_default.json", "images/default/1.png", "1.png", "images/default"),  # CVAT
    ("annotations/instances_default.json", "1.png", "1.png", "."),
    ("result.json", "images/1.png", "images/1.png", "."),  # Label Studio
    ("result.json", "images/1.png", "1.png", "images"),
    ("my labels.json", "1.png", "1.png", "."),
    ("labels/coco.json", "photos/1.png", "1.png", "photos"),
    ("labels/coco.json", "photos/day/1.png", "day/1.png", "photos"),
    ("_annotations.coco.json", "1.png", "1.png", "."),
]


@pytest.mark.parametrize(("file", "image", "named", "folder"), SINGLE)
def test_a_single_file_near_its_images(tmp_path: Path, file: str, image: str, named: str, folder: str) -> None:
    path = coco(tmp_path / file, named)
    picture(tmp_path / image)
    (tmp_path / "notes.json").write_text("[]")  # something else
    expected = {"train": SplitFiles(path, tmp_path / folder, None)}
    assert locate(tmp_path) == expected
    assert locate(path) == expected


def test_files_called_as_splits_are_splits_and_others_are_listed(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "1.png")
    train, val = (coco(tmp_path / f"{name}.json", "1.png") for name in ("train", "instances_val2017"))
    found = locate(tmp_path)
    assert {name: files.annotations for name, files in found.items()} == {"train": train, "val": val}
    (tmp_path / "labelling").mkdir()
    coco(tmp_path / "labelling" / "labels.json", "1.png")  # leanmask's own
    assert locate(tmp_path) == found
    pseudo = json.loads(train.read_text()) | {"info": {"image_folder": str(tmp_path / "images")}}
    (tmp_path / "pseudo.json").write_text(json.dumps(pseudo))
    assert locate(tmp_path) == found
    assert locate(tmp_path / "pseudo.json")["train"].images == tmp_path / "images"
    coco(tmp_path / "final.json", "1.png")
    with pytest.raises(
        DataError, match=r"has 3 COCO files: final\.json, instances_val2017\.json, train\.json; name the"
    ):
        locate(tmp_path)
    assert locate(tmp_path / "final.json")["train"].images == tmp_path / "images"


def test_a_single_file_without_its_images(tmp_path: Path) -> None:
    path = coco(tmp_path / "set" / "labels.json", "gone.png")
    for data in (path, path.parent):
        with pytest.raises(DataError, match=r"no images found for .*labels\.json: what it names \(such as gone\.png\)"):
            locate(data)
    assert locate_images(path) == SplitFiles(path, path.parent, None)


def test_the_image_folder_alone_leads_to_the_labels_above_it(tmp_path: Path) -> None:
    coco(tmp_path / "set" / "labels.json", "1.png")
    picture(tmp_path / "set" / "images" / "1.png")
    picture(tmp_path / "set" / "others" / "2.png")
    with pytest.raises(DataError, match=rf"its images are further up: give {tmp_path / 'set'}\."):
        locate(tmp_path / "set" / "images")
    with pytest.raises(DataError, match=r"data\.unlabelled\. Looked for"):
        locate(tmp_path / "set" / "others")


def test_a_file_that_a_yaml_names_has_the_images_that_it_says(tmp_path: Path) -> None:
    path = coco(tmp_path / "store" / "reviewed.json", "1.png")
    picture(tmp_path / "photos" / "1.png")
    (tmp_path / "store" / "data.yaml").write_text("splits: {train: {annotations: reviewed.json, images: ../photos}}")
    assert locate(path)["train"].images.samefile(tmp_path / "photos")


@pytest.mark.parametrize(
    ("image", "named", "folder"),
    [
        ("images/1.png", "images/1.png", "."),  # names that begin with the folder
        ("images/train/1.png", "train/1.png", "images"),
        ("pictures/1.png", "1.png", "pictures"),
        ("images/1.png", "images\\1.png", "."),  # Label Studio on Windows
        ("images/1.png", "1.png", "images"),
        ("images/2.png", "1.png", "images"),  # it is missing, which is said where images are read
    ],
)
def test_the_images_are_where_the_file_names_say(tmp_path: Path, image: str, named: str, folder: str) -> None:
    (tmp_path / "annotations").mkdir()
    path = coco(tmp_path / "annotations" / "instances_train.json", named)
    picture(tmp_path / image)
    assert locate(tmp_path)["train"] == SplitFiles(path, tmp_path / folder, None)
    assert locate_unlabelled(path) == SplitFiles(path, tmp_path / folder, None)


def test_a_backslash_is_between_folders_where_no_file_has_it(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "1.png")
    assert image_path(tmp_path, "images\\1.png") == tmp_path / "images" / "1.png"
    picture(tmp_path / "a\\b.png")
    assert image_path(tmp_path, "a\\b.png") == tmp_path / "a\\b.png"
    row = {"id": 1, "file_name": "images\\1.png", "width": 4, "height": 4}
    content = {"images": [row], "annotations": [], "categories": []}
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert not [problem for problem in check(tmp_path).problems if problem.code == "image-missing"]
    store = AnnotationStore.open(tmp_path / "result.json", tmp_path, unannotated="unlabelled")
    assert list(store.paths()) == [store[0].path] == [tmp_path / "images" / "1.png"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Train", "train"),
        ("training", "train"),
        ("Validation", "val"),
        ("VALID", "val"),
        ("Test", "test"),
        ("Odd", "Odd"),
    ],
)
def test_splits_are_known_by_other_names_and_check_misses_a_train(tmp_path: Path, name: str, split: str) -> None:
    picture(tmp_path / "images" / name / "1.png")
    path = coco(tmp_path / "annotations" / f"instances_{name}.json", "1.png")
    assert locate(tmp_path) == {split: SplitFiles(path, tmp_path / "images" / name, None)}
    said = [problem.message for problem in check(tmp_path).problems if problem.code == "no-train"]
    assert bool(said) == (split != "train")
    assert all(f"found '{split}'" in message for message in said)
