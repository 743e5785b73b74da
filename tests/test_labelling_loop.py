"""The labelling loop of docs/annotate.md from a folder of photographs alone, twice round, and folders that change."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotate_helpers import Person, write_boxes, write_photos
from fastapi.testclient import TestClient
from PIL import Image
from run_helpers import Outcome
from test_annotate import said, session

from leanmask.annotate import run as annotate_run
from leanmask.annotate.desk import Desk
from leanmask.annotate.labels import refresh_labels
from leanmask.annotate.server import create_app
from leanmask.annotate.source import SourceOptions, open_source
from leanmask.annotate.store import Store
from leanmask.data.check import check
from leanmask.data.convert.shapes import segmentation_from
from leanmask.data.hashed import in_share
from leanmask.data.layout import labelled_data, locate, photo_folder
from leanmask.data.withholding.clicks import labels_at, rle_of
from leanmask.errors import ConfigError, DataError
from leanmask.suggestions import SuggestOptions, suggest

PAGE = Path(__file__).parent.parent / "docs" / "annotate.md"
TINY = "model.name=mask_rcnn model.backbone=tiny data.image_size=64 data.workers=0 train.batch_size=2 train.threads=1"
APPENDED = {
    "train": f"train.steps=2 optim.warmup_steps=1 evaluation.batch_size=4 {TINY}",
    "pseudo": "--class-quality 0 --mask-quality 0",  # two steps teach nothing
}
BOXED_PER_SESSION = 7
REVIEWED_PER_SESSION = 12
SIDE = 64


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def names(photos: Path, split: str) -> set[str]:
    path = photos / "labelling" / f"instances_{split}.json"
    return {row["file_name"] for row in read(path)["images"]} if path.is_file() else set()


class Somebody:
    """Answers through the page's interface as the true masks say. The classes of even digits are one, odd ones two."""

    def __init__(self, truth: dict[str, list[dict[str, Any]]]) -> None:
        self.truth = truth
        self.answered: list[str] = []

    def serve(self, desk: Desk, *_: object) -> None:
        person = Person(TestClient(create_app(desk, "key")), desk.annotators[0])
        person.sent = 1000 * len(self.answered)
        left = {"boxes": BOXED_PER_SESSION, "review": REVIEWED_PER_SESSION, "points": 1000}
        while all(left.values()) and (units := person.claim(1)):
            (unit,) = units
            self.answered.append(f"{unit['kind']} {unit['name']}")
            left[unit["kind"]] -= 1
            assert set(getattr(self, unit["kind"])(person, unit)) == {"saved"}

    def boxes(self, person: Person, unit: dict[str, Any]) -> list[str]:
        found = []
        for place, row in enumerate(self.truth[unit["name"]]):
            detail = {"box": row["bbox"], "category_id": 1 + row["category_id"] % 2}
            found.append(person.answer(unit, place, "box", detail=detail))
        return [*found, person.answer(unit, -1, "done", detail={"exhaustive": True})]

    def points(self, person: Person, unit: dict[str, Any]) -> list[str]:
        row = next(row for row in self.truth[unit["name"]] if row["bbox"] == unit["box"])
        labels = labels_at(rle_of(row, (SIDE, SIDE)), np.asarray(unit["points"]))
        known = {item["position"] for item in unit["given"]}
        todo = [place for place in range(len(labels)) if place not in known]
        return [person.answer(unit, place, ("background", "object")[int(labels[place])]) for place in todo]

    def review(self, person: Person, unit: dict[str, Any]) -> list[str]:
        return [person.answer(unit, 0, "accept" if unit["target"] % 2 else "reject")]


@pytest.fixture
def somebody(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Somebody:
    """16 photographs in `photos`, and the person who labels them when the server would start."""
    content = read(digits / "annotations" / "instances_train.json")
    (tmp_path / "photos").mkdir()
    for image in content["images"]:
        shutil.copyfile(digits / "images" / image["file_name"], tmp_path / "photos" / Path(image["file_name"]).name)
    monkeypatch.chdir(tmp_path)
    truth = {
        Path(image["file_name"]).name: [row for row in content["annotations"] if row["image_id"] == image["id"]]
        for image in content["images"]
    }
    found = Somebody(truth)
    monkeypatch.setattr(annotate_run, "_serve", found.serve)
    return found


def test_the_page_runs_from_its_first_line_to_its_last(
    somebody: Somebody, leanmask: Callable[..., Outcome], tmp_path: Path
) -> None:
    block = re.search(r"```\n(leanmask budget photos.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    commands = [line.partition("#")[0] for line in block.group(1).splitlines()]
    assert len(commands) == 12
    photos = tmp_path / "photos"
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    held: set[str] = set()
    trained: list[int] = []
    for command in commands:
        _, verb, *arguments = shlex.split(command)
        outcome = leanmask(verb, *arguments, *APPENDED.get(verb, "").split())
        assert outcome.code == 0, f"{command}\n{outcome.out}\n{outcome.err}"
        if verb == "annotate":
            assert "leanmask train photos --out" in outcome.out
            assert held <= names(photos, "val")  # once there, for ever
            held = names(photos, "val")
        if verb == "train":
            trained.append(len(names(photos, "train")))
        if verb == "suggest":
            queue = read(tmp_path / arguments[arguments.index("--out") + 1])
            about = {photos / "labelling" / f"instances_{split}.json" for split in ("train", "unlabelled")}
            ids = {row["id"] for path in about if path.is_file() for row in read(path)["images"]}
            assert queue["items"]
            assert {item["image_id"] for item in queue["items"]} <= ids
    assert trained[0] < trained[1] <= trained[2]
    boxed = {line.removeprefix("boxes ") for line in somebody.answered if line.startswith("boxes")}
    assert len(boxed) > BOXED_PER_SESSION  # the queue led to photographs that had no labels
    assert held
    assert held <= {name for name in boxed if in_share(name, 0.2)}
    assert {name for line in somebody.answered for kind, name in [line.split(" ")] if kind != "boxes"}.isdisjoint(held)
    labels = read(photos / "labelling" / "labels.json")
    assert {row["file_name"] for row in labels["images"]} == before.keys()
    decisions = {row["review"]["decision"] for row in labels["annotations"] if "review" in row}
    assert decisions <= {"accept", "reject"}
    assert all(len(row["point_labels"]) == 10 for row in labels["annotations"] if row.get("point_labels"))
    assert not (photos / "labelling" / "labelling").exists()
    assert {path.name: path.read_bytes() for path in photos.iterdir() if path.is_file()} == before
    # The boxes and masks of a network that has learned nothing do not agree; nothing else is wrong.
    assert {problem.code for problem in check(photos).problems if problem.severity == "error"} <= {"box-mask"}


# --- one store, whatever the folder is called


def boxed(photos: Path, pictures: range, category: int = 1, **options: Any) -> Any:
    """A session in which the photographs of these numbers less one get a box each and are finished."""
    work = session(photos, boxes=True, **{"classes": ("cat", "dog"), "val_share": 0.0, **options})
    for picture in pictures:
        detail = {"box": [10.0, 20.0, 30.0, 40.0], "category_id": category}
        work.store.save(said(10 * picture, "boxes", picture, 0, "box", detail=detail))
        work.store.save(said(10 * picture + 1, "boxes", picture, -1, "done", detail={"exhaustive": True}))
    summary = work.export()
    work.close()
    return summary


def test_photos_and_its_labelling_folder_are_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_photos(tmp_path / "photos")
    boxed(photos, range(2))
    assert locate(photos) == locate(photos / "labelling")
    boxed(photos / "labelling", range(2, 3), classes=())  # the classes are known
    monkeypatch.chdir(photos / "labelling")
    boxed(Path(), range(3, 4), classes=())
    assert len(read(photos / "labelling" / "instances_train.json")["annotations"]) == 4
    assert not (photos / "labelling" / "labelling").exists()
    assert photo_folder(photos / "labelling") == photo_folder(photos) == photos
    with pytest.raises(ConfigError, match="labelled as a whole, without --split"):
        session(photos, split="val")


def test_a_labelling_folder_beside_a_yaml_or_in_a_coco_data_set_is_its_data_too(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "d", images=1)
    session(data).close()
    assert labelled_data(data / "labelling") == data
    (tmp_path / "some.yaml").write_text(
        "splits: {train: {annotations: d/annotations/instances_train.json, images: d/images}}"
    )
    session(tmp_path / "some.yaml").close()
    assert labelled_data(tmp_path / "some-labelling") == tmp_path / "some.yaml"
    (tmp_path / "labelling").mkdir()  # somebody's own folder of that name
    assert labelled_data(tmp_path / "labelling") == tmp_path / "labelling"


def test_points_on_labels_so_far_are_asked_for_in_addition(tmp_path: Path) -> None:
    """A queue that was ranked with the answers so far wants more points than there are, also after unsure ones."""
    photos = write_photos(tmp_path / "photos", count=2)
    boxed(photos, range(2))
    work = session(photos, points=3)
    target = work.desk()[0].dealer.units[0].target
    for place, value in enumerate(("object", "unsure", "background")):
        work.store.save(said(900 + place, "points", target, place, value))
    work.export()
    work.close()
    queue = tmp_path / "queue.json"
    suggest(photos, SuggestOptions(hours=1, points=4, masks=False), out=queue)
    item = next(item for item in read(queue)["items"] if item.get("annotation_id") == target)
    assert (item["points"], item["points_before"]) == (2, 2)
    work = session(photos, queue=queue)
    desk, _ = work.desk()
    assert {unit.target: unit.count for unit in desk.dealer.units}[target] == 5
    work.close()


def test_a_data_set_with_annotations_goes_round_too(tmp_path: Path) -> None:
    """Labels so far are ranked where they lie, and the queue leads to the store that is there."""
    data = write_boxes(tmp_path / "d", images=1, objects=2)
    work = session(data, points=3)
    for place in range(3):
        work.store.save(said(place, "points", 100, place, "object"))
    work.export()
    work.close()
    queue = tmp_path / "queue.json"
    suggest(data / "labelling", SuggestOptions(hours=1, points=4, masks=False), out=queue)
    work = session(data / "labelling", queue=queue)
    assert {unit.target: unit.count for unit in work.desk()[0].dealer.units} == {100: 4, 101: 4}
    assert work.labels.folder == data / "labelling"
    work.close()


def test_suggestions_are_never_about_val(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", count=6)
    boxed(photos, range(3), val_share=0.99)
    assert names(photos, "val")
    found = suggest(photos, SuggestOptions(hours=9, masks=False))
    held = {row["id"] for row in read(photos / "labelling" / "instances_val.json")["images"]}
    assert {item.kind for item in found.items} == {"points", "boxes"}
    assert {item.image_id for item in found.items} == set(range(1, 7)) - held
    with pytest.raises(DataError, match="nothing is suggested there"):
        suggest(photos, SuggestOptions(hours=1, split="val"))
    with pytest.raises(DataError, match="no labels yet; label a few images first: leanmask annotate"):
        suggest(write_photos(tmp_path / "more"), SuggestOptions(hours=1))


@pytest.mark.parametrize("plain", [True, False])
def test_what_was_skipped_is_not_suggested(tmp_path: Path, plain: bool) -> None:
    if plain:
        data = write_photos(tmp_path / "photos", count=4)
        boxed(data, range(2))
        skipped = [said(500, "boxes", 2, -1, "skip"), said(501, "points", 1, -1, "skip")]
    else:
        data = write_boxes(tmp_path / "d", images=3, objects=1)
        path = data / "annotations" / "instances_train.json"
        content = read(path)
        last = content["images"][-1]["id"]
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] != last]
        path.write_text(json.dumps(content))
        skipped = [
            said(500, "boxes", 2, -1, "skip"),
            said(501, "points", content["annotations"][0]["id"], -1, "skip"),
        ]
    before = suggest(data, SuggestOptions(hours=9, masks=False)).items
    work = session(data)
    for answer in skipped:
        work.store.save(answer)
    image = work.source.pictures[2].id
    work.close()
    (data / "queue.json").write_text(json.dumps(suggest(data, SuggestOptions(hours=9, masks=False)).to_json()))
    items = read(data / "queue.json")["items"]
    assert len(items) == len(before) - 2
    assert not [item for item in items if item["image_id"] == image or item.get("annotation_id") == skipped[1].target]
    # The page serves all of the queue.
    work = session(data, queue=data / "queue.json")
    desk, _ = work.desk()
    assert len(desk.claim(desk.annotators[0], "tab-00000001", 9)) == len(items)
    assert work.store.undo(skipped[0].id, skipped[0].annotator) is not None
    work.close()
    assert len(suggest(data, SuggestOptions(hours=9, masks=False)).items) == len(before) - 1


def test_mistakes_with_the_share_for_validation(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", count=2)
    for share in (1.0, -0.1):
        with pytest.raises(ConfigError, match="allowed: 0 to below 1"):
            session(photos, boxes=True, classes=("a",), val_share=share)
    summary = boxed(photos, range(1), val_share=0.99)
    assert any("has the only objects of cat and is trained on" in note for note in summary.notes)
    assert names(photos, "train") == {"photo0.jpg"}


def test_classes_can_be_added(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", count=3)
    boxed(photos, range(1))
    work = session(photos, boxes=True, classes=("bird", "cat"))
    assert work.source.categories == {1: "cat", 2: "dog", 3: "bird"}
    assert work.labels.notes == ("new classes: bird",)
    work.close()


def test_a_store_elsewhere_has_its_data_set_beside_it(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", count=3)
    summary = boxed(photos, range(1), store=tmp_path / "ben" / "ben.sqlite")
    assert summary.data == tmp_path / "ben"
    assert locate(summary.data).keys() == {"train", "unlabelled"}
    assert not (photos / "labelling").exists()


@pytest.mark.parametrize("place", ["", "train.sqlite"])
def test_a_review_with_a_store_elsewhere_adds_to_the_labels_that_are_there(tmp_path: Path, place: str) -> None:
    """The labels are those of the data or, where `--store` is beside another store, those of that one."""
    photos = write_photos(tmp_path / "photos", count=3)
    boxed(photos, range(1), **({"store": tmp_path / "ben" / place} if place else {}))
    path = pseudo(photos, tmp_path / "pseudo.json", {"photo2.jpg": [[5, 5, 20, 20]]})
    own = tmp_path / "ben" / "review.sqlite"
    _, summary = reviewed(photos, path, {1: "accept"}, store=own)
    assert own.is_file()
    labels = read(locate(summary.data)["train"].annotations)
    assert ["review" in row for row in labels["annotations"]] == [False, True]
    assert (photos / "labelling").exists() == (not place)


# --- the folder changes between two rounds


def test_a_folder_that_changes(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")  # photo0.jpg to photo4.jpg
    boxed(photos, range(4))
    labels = photos / "labelling" / "instances_train.json"
    assert refresh_labels(photos) == []
    before = labels.stat().st_mtime_ns
    assert refresh_labels(photos) == []
    assert labels.stat().st_mtime_ns == before
    kept = tmp_path / "kept"
    kept.mkdir()
    shutil.move(photos / "photo0.jpg", kept)
    (photos / "photo1.jpg").rename(photos / "renamed.jpg")
    shutil.copyfile(photos / "photo2.jpg", photos / "copy.jpg")
    Image.new("RGB", (80, 60), "red").save(photos / "photo3.jpg")
    Image.new("RGB", (80, 60), "blue").save(photos / "fresh.jpg")
    (photos / "broken.jpg").write_bytes(b"no picture")
    told = "\n".join(refresh_labels(photos))
    assert "1 photograph gone from" in told
    assert "photo0.jpg; what was said about gone ones is kept" in told
    assert "photo1.jpg is now renamed.jpg" in told
    assert "photo3.jpg: other content than before" in told
    assert "copies are left out: photo2.jpg is copy.jpg" in told or "copy.jpg is photo2.jpg" in told
    assert "2 new photographs: broken.jpg, fresh.jpg" in told
    assert names(photos, "train") == {"renamed.jpg", "photo2.jpg"}
    assert names(photos, "unlabelled") == {"photo3.jpg", "photo4.jpg", "fresh.jpg"}
    found = suggest(photos, SuggestOptions(hours=9, masks=False))
    assert any("photo0.jpg" in note for note in found.notes)
    work = session(photos, boxes=True)
    desk, _ = work.desk()
    offered = {unit["name"] for unit in desk.claim(desk.annotators[0], "tab-00000001", 20)}
    assert offered == {"photo3.jpg", "photo4.jpg", "fresh.jpg"}
    assert desk.progress()["problems"] == 1  # broken.jpg, whose reason is printed at the end
    work.close()
    # Everything comes back.
    shutil.move(kept / "photo0.jpg", photos)
    (photos / "renamed.jpg").rename(photos / "photo1.jpg")
    refresh_labels(photos)
    assert names(photos, "train") == {"photo0.jpg", "photo1.jpg", "photo2.jpg"}


def test_an_image_of_val_stays_there_under_another_name(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", count=3)
    boxed(photos, range(3), val_share=0.99)
    (held, *_) = sorted(names(photos, "val"))
    (photos / held).rename(photos / "other.jpg")
    boxed(photos, range(0), val_share=0.0)
    assert "other.jpg" in names(photos, "val")


def test_a_folder_without_images_any_more_is_a_sentence(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", count=2)
    boxed(photos, range(1))
    for path in photos.glob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match="has no images any more; 2 are known from before"):
        session(photos)
    (told,) = refresh_labels(photos)
    assert "are those that were written last" in told


def test_photographs_in_folders_below(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos" / "monday", count=2)
    write_photos(tmp_path / "photos" / "tuesday", count=3)
    (tmp_path / "photos" / "tuesday" / "photo1.jpg").write_bytes(b"something else")
    boxed(tmp_path / "photos", range(1))
    assert names(tmp_path / "photos", "train") == {"monday/photo0.jpg"}
    assert names(tmp_path / "photos", "unlabelled") == {"monday/photo1.jpg", "tuesday/photo2.jpg"}


# --- stores of the version before


def old_store(photos: Path, classes: tuple[str, ...] = ("cat",)) -> None:
    """As version 2 left it: photographs are known by their place, and one is held out."""
    source = open_source(photos, SourceOptions(classes=classes))
    path = photos / "labelling" / "train.sqlite"
    store = Store.open(path, source.fingerprint())
    store.tell("seed", 0)
    for picture in (0, 2):
        detail = {"box": [10.0, 20.0, 30.0, 40.0], "category_id": 1}
        store.save(said(10 * picture, "boxes", picture, 0, "box", detail=detail))
        store.save(said(10 * picture + 1, "boxes", picture, -1, "done", detail={"exhaustive": True}))
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE photos")
        connection.execute("PRAGMA user_version = 2")
    content = {"categories": [{"id": n, "name": name} for n, name in enumerate(classes, 1)], "annotations": []}
    for split, number in (("train", 1), ("val", 3)):
        rows = [{"id": number, "file_name": f"photo{number - 1}.jpg", "width": 120, "height": 90}]
        (photos / "labelling" / f"instances_{split}.json").write_text(json.dumps({**content, "images": rows}))


def test_a_store_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    old_store(photos)
    boxed(photos, range(0), classes=())
    assert names(photos, "train") == {"photo0.jpg"}
    assert names(photos, "val") == {"photo2.jpg"}
    assert read(photos / "labelling" / "instances_train.json")["annotations"][0]["id"] == 1  # as it was


def test_a_store_of_the_version_before_that_does_not_fit_is_a_sentence(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    old_store(photos)
    (photos / "photo1.jpg").unlink()
    with pytest.raises(DataError, match=r"of an earlier leanmask, and the images of .* put the folder back"):
        session(photos)
    assert len(list(photos.glob("*.jpg"))) == 4
    more = write_photos(tmp_path / "more")
    old_store(more)
    with pytest.raises(DataError, match="and the classes of"):
        session(more, classes=("horse",))


def test_nested_labels_of_the_version_before_are_said(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    boxed(photos, range(1))
    (photos / "labelling" / "labelling").mkdir()
    assert any("labelled by an earlier leanmask as a data set of its own" in note for note in refresh_labels(photos))


def test_the_closing_line_counts_what_the_file_that_it_names_has(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", count=5)
    summary = boxed(photos, range(2), val_share=0.99)
    assert names(photos, "val")
    assert "2 boxes drawn; 2 objects on 5 images in all" in summary.to_text()
    assert "points" not in summary.to_text()
    reviewed(photos, pseudo(photos, tmp_path / "pseudo.json", {"photo3.jpg": [[5, 5, 20, 20]]}), {1: "accept"})
    summary = boxed(photos, range(0))
    content = read(summary.labels)
    assert (len(content["annotations"]), len(content["images"])) == (3, 5)
    assert f"2 boxes drawn; 3 objects on 5 images in all: {summary.labels}" in summary.to_text()


# --- reviews are part of the same data


def pseudo(photos: Path, path: Path, boxes: dict[str, list[list[int]]]) -> Path:
    """A file of pseudo-labels as `leanmask pseudo` writes it: class 1, masks that fill their boxes."""
    images, rows = [], []
    for number, (name, found) in enumerate(boxes.items(), start=1):
        images.append({"id": number, "file_name": name, "width": 120, "height": 90, "exhaustive": False})
        for x, y, w, h in found:
            mask = np.zeros((90, 120), dtype=np.uint8)
            mask[y : y + h, x : x + w] = 1
            row = {"id": len(rows) + 1, "image_id": number, "category_id": 1, "bbox": [x, y, w, h], "area": w * h}
            row |= {"segmentation": segmentation_from(mask, (0, 0), (90, 120)), "iscrowd": 0, "score": 0.6}
            rows.append({**row, "provenance": "leanmask runs/a", "class_quality": 0.6, "mask_quality": 0.9})
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}
    path.write_text(json.dumps({**content, "info": {"image_folder": str(photos)}}))
    return path


def reviewed(photos: Path, path: Path, decisions: dict[int, str], **options: Any) -> Any:
    work = session(photos, review=path, **options)
    asked = {unit.target for unit in work.desk()[0].dealer.units}
    for number, value in decisions.items():
        work.store.save(said(500 + number, "review", number, 0, value))
    summary = work.export()
    work.close()
    return asked, summary


def test_decisions_belong_to_the_photographs_labels(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", count=5)
    boxed(photos, range(2), val_share=0.99)
    (held,) = names(photos, "val")
    (mine,) = names(photos, "train")
    box, other = [5, 5, 20, 20], [60, 40, 30, 30]
    free = sorted(names(photos, "unlabelled"))
    found = {held: [box], mine: [box], free[0]: [box, other], free[1]: [box], free[2]: [box]}
    path = pseudo(photos, tmp_path / "pseudo.json", found)
    asked, summary = reviewed(photos, path, {3: "accept", 4: "reject", 5: "cuts_off"})
    assert asked == {3, 4, 5, 6}  # not where all is labelled, nor what measures
    assert names(photos, "train") == {mine, free[0], free[1]}
    rows = read(photos / "labelling" / "instances_train.json")["annotations"]
    assert {row["review"]["decision"]: row.get("weight") for row in rows if "review" in row} == {
        "accept": 1.0,
        "reject": 0.0,
        "cuts_off": 1.0,
    }
    # The others are in a data set of their own, which also has all labels.
    own = locate(summary.review)
    assert len(read(own["train"].annotations)["annotations"]) == len(rows) + 1
    assert "unlabelled" not in own
    assert check(summary.review).ok
    assert check(photos).ok
    assert summary.data == photos
    # Labels go on, and what was decided stays; its photograph is offered for boxes no more.
    work = session(photos, boxes=True)
    desk, _ = work.desk()
    assert {unit["name"] for unit in desk.claim(desk.annotators[0], "tab-00000001", 9)} == {free[2]}
    work.close()
    boxed(photos, range(0))
    assert read(photos / "labelling" / "instances_train.json")["annotations"] == rows
    # Another file of the same name is another review; what is labelled is not asked about again.
    path.unlink()
    found = {free[0]: [[6, 6, 20, 20], [30, 5, 20, 20]], free[1]: [[4, 4, 22, 22]], free[2]: [box]}
    asked, _ = reviewed(photos, pseudo(photos, path, found), {2: "accept"})
    assert asked == {2, 4}
    after = read(photos / "labelling" / "instances_train.json")["annotations"]
    assert len(after) == len(rows) + 1
    assert {row["id"] for row in rows} < {row["id"] for row in after}
    assert {path.name for path in (photos / "labelling").glob("review-*")} == {"review-pseudo", "review-pseudo-2"}


def test_reviewed_photographs_from_elsewhere_are_trained_on(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", count=3)
    boxed(photos, range(2))
    more = tmp_path / "more"
    more.mkdir()
    Image.new("RGB", (120, 90), "green").save(more / "a.jpg")
    path = pseudo(more, tmp_path / "pseudo.json", {"a.jpg": [[5, 5, 20, 20]]})
    reviewed(photos, path, {1: "accept"})
    assert names(photos, "train") == {"photo0.jpg", "photo1.jpg", "../more/a.jpg"}
    assert check(photos).ok
    (more / "a.jpg").unlink()
    refresh_labels(photos)
    assert names(photos, "train") == {"photo0.jpg", "photo1.jpg"}


def decisions_on(photos: Path) -> dict[str, list[str]]:
    """What a review decided, by the name that each photograph has in the labels."""
    content = read(photos / "labelling" / "labels.json")
    named = {row["id"]: row["file_name"] for row in content["images"]}
    found: dict[str, list[str]] = {}
    for row in content["annotations"]:
        if "review" in row:
            found.setdefault(named[row["image_id"]], []).append(row["review"]["decision"])
    return found


def swapped(photos: Path) -> None:
    """The photograph gets another name, and another picture its old one."""
    (photos / "photo1.jpg").rename(photos / "IMG_2.jpg")
    Image.new("RGB", (120, 90), "green").save(photos / "photo1.jpg")


@pytest.mark.parametrize("older", [False, True], ids=["", "review-of-an-earlier-leanmask"])
def test_decisions_of_a_review_go_with_the_photograph(tmp_path: Path, older: bool) -> None:
    photos = write_photos(tmp_path / "photos", count=3)
    boxed(photos, range(1))
    boxes = [[5, 5, 20, 20], [60, 40, 30, 30]]
    path = pseudo(photos, tmp_path / "pseudo.json", {"photo1.jpg": boxes, "photo2.jpg": boxes[:1]})
    reviewed(photos, path, {1: "accept", 2: "reject"})
    if older:
        (photos / "labelling" / "review-pseudo" / "photographs.json").unlink()
    swapped(photos)
    assert not any("decisions of" in note for note in refresh_labels(photos))
    assert decisions_on(photos) == {"IMG_2.jpg": ["accept", "reject"]}
    assert names(photos, "train") == {"photo0.jpg", "IMG_2.jpg"}
    # The page shows the photograph that is meant, and what is said now goes there too.
    work = session(photos, review=path)
    assert [picture.path.name for picture in work.source.pictures] == ["IMG_2.jpg", "photo2.jpg"]
    work.close()
    asked, summary = reviewed(photos, path, {3: "accept"})
    assert asked == {1, 2, 3}
    assert decisions_on(photos) == {"IMG_2.jpg": ["accept", "reject"], "photo2.jpg": ["accept"]}
    own = read(locate(summary.review)["train"].annotations)
    assert {row["file_name"] for row in own["images"]} == {"photo0.jpg", "IMG_2.jpg", "photo2.jpg"}


def test_decisions_about_a_photograph_that_is_gone_are_kept_and_said(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", count=3)
    boxed(photos, range(1))
    path = pseudo(photos, tmp_path / "pseudo.json", {"photo1.jpg": [[5, 5, 20, 20]], "photo2.jpg": [[5, 5, 20, 20]]})
    reviewed(photos, path, {1: "accept"})
    swapped(photos)
    (photos / "IMG_2.jpg").rename(tmp_path / "away.jpg")
    (told,) = [note for note in refresh_labels(photos) if "decisions of" in note]
    assert "photo1.jpg" in told
    assert decisions_on(photos) == {}
    asked, _ = reviewed(photos, path, {})
    assert asked == {2}
    (tmp_path / "away.jpg").rename(photos / "back.jpg")
    refresh_labels(photos)
    assert decisions_on(photos) == {"back.jpg": ["accept"]}


def test_pseudo_labels_of_other_classes_go_with_the_photograph_too(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", count=3)
    boxed(photos, range(1))
    path = pseudo(photos, tmp_path / "pseudo.json", {"photo1.jpg": [[5, 5, 20, 20]]})
    path.write_text(path.read_text().replace('"cat"', '"ship"'))
    reviewed(photos, path, {1: "accept"})
    swapped(photos)
    _, summary = reviewed(photos, path, {})
    (image,) = read(locate(summary.review)["train"].annotations)["images"]
    assert image["file_name"] == "IMG_2.jpg"


def test_a_photograph_of_val_that_is_gone_holds_no_other_one_out(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", count=3)
    boxed(photos, range(3), val_share=0.99)
    held = sorted(names(photos, "val"))[0]
    (photos / held).rename(tmp_path / "away.jpg")
    Image.new("RGB", (120, 90), "green").save(photos / held)
    refresh_labels(photos)
    asked, _ = reviewed(photos, pseudo(photos, tmp_path / "pseudo.json", {held: [[5, 5, 20, 20]]}), {1: "accept"})
    assert asked == {1}
    assert decisions_on(photos) == {held: ["accept"]}


def files_in(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for path in place.rglob("*")}


def test_a_session_with_nothing_to_do_leaves_nothing(tmp_path: Path, leanmask: Callable[..., Outcome]) -> None:
    photos = write_photos(tmp_path / "photos", count=2)
    empty = pseudo(photos, tmp_path / "empty.json", {"photo1.jpg": []})
    before = files_in(photos)
    outcome = leanmask("annotate", photos, "--review", empty, "--classes", "cat", "--no-browser")
    assert "no objects to review" in " ".join(outcome.err.split())
    assert files_in(photos) == before  # also where nothing was labelled before
    boxed(photos, range(2))
    before = files_in(photos)
    labelled = pseudo(photos, tmp_path / "labelled.json", {"photo1.jpg": [[5, 5, 20, 20]]})
    for path in (empty, labelled):
        outcome = leanmask("annotate", photos, "--review", path, "--no-browser")
        assert "no objects to review" in " ".join(outcome.err.split())
        assert files_in(photos) == before
    data = write_boxes(tmp_path / "d", images=1, objects=1)
    before = files_in(data)
    assert "no boxes to draw" in " ".join(leanmask("annotate", data, "--boxes", "--no-browser").err.split())
    assert files_in(data) == before


def test_a_review_that_was_begun_stays(tmp_path: Path, leanmask: Callable[..., Outcome]) -> None:
    photos = write_photos(tmp_path / "photos", count=2)
    boxed(photos, range(1))
    path = pseudo(photos, tmp_path / "pseudo.json", {"photo1.jpg": [[5, 5, 20, 20]]})
    reviewed(photos, path, {1: "accept"})
    (photos / "photo1.jpg").rename(tmp_path / "away.jpg")
    outcome = leanmask("annotate", photos, "--review", path, "--no-browser")
    assert "no objects to review" in " ".join(outcome.err.split())
    (tmp_path / "away.jpg").rename(photos / "photo1.jpg")
    refresh_labels(photos)
    assert decisions_on(photos) == {"photo1.jpg": ["accept"]}


def test_a_review_has_the_points_of_its_data_set(tmp_path: Path) -> None:
    """Also of a data set with annotations: what people pointed at is in the data that a review leaves."""
    data = write_boxes(tmp_path / "d", images=2, objects=1)
    work = session(data, points=1)
    work.store.save(said(1, "points", 100, 0, "object"))
    work.export()
    work.close()
    path = pseudo(data / "images", tmp_path / "pseudo.json", {"002.png": [[5, 5, 20, 20]]})
    content = read(path)
    content["categories"] = [{"id": 3, "name": "boat"}]
    content["images"][0] |= {"width": 160, "height": 120}
    for row in content["annotations"]:
        row |= {"category_id": 3, "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]}
    path.write_text(json.dumps(content))
    reviewed(data, path, {1: "accept"})
    for folder in (data / "labelling", data / "labelling" / "review-pseudo"):
        rows = read(folder / "instances_train.json")["annotations"]
        assert [row["point_labels"] for row in rows if "point_labels" in row] == [[1]]
        assert [row["review"]["decision"] for row in rows if "review" in row] == ["accept"]
        assert check(folder).ok
    assert labelled_data(data / "labelling") == data
