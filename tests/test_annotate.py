"""What is asked, shown and exported: sources, points, pictures, labels that training reads, and bad input."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotate_helpers import write_boxes, write_photos
from PIL import Image
from run_helpers import TINY, Outcome, train

from leanmask.annotate.export import by_split
from leanmask.annotate.pictures import Part, Pictures
from leanmask.annotate.source import SourceOptions, open_source
from leanmask.annotate.store import Answer
from leanmask.annotate.tasks import Job, certainty, units_of
from leanmask.annotate.work import AnnotateOptions, Work
from leanmask.config import merge
from leanmask.data.check import check
from leanmask.data.coco import AnnotationStore
from leanmask.data.convert.shapes import segmentation_from
from leanmask.data.hashed import in_share
from leanmask.data.splits import split
from leanmask.data.views.canvas import UnreadableImage, read_picture
from leanmask.data.withholding.clicks import innermost_pixel
from leanmask.errors import ConfigError, DataError

ONE_STEP = merge(TINY, {"method": {"name": "supervised"}, "train": {"steps": 1}})


def said(number: int, kind: str, target: int, position: int, value: str, **given: Any) -> Answer:
    fixed = {"annotator": "anna", "seconds": 0.9, "answered_at": 1_700_000_000.0 + number}
    return Answer(f"answer-{number:06}", kind, target, position, value, **{**fixed, **given})


def session(data: Path, **options: Any) -> Work:
    return Work.open(data, AnnotateOptions(**options))


def export(work: Work, answers: list[Answer], out: Path | None = None) -> dict[str, Any]:
    for item in answers:
        assert work.store.save(item) == "saved"
    summary = work.export(out)
    work.close()
    return json.loads(summary.labels.read_text())


def test_points_are_those_of_split(digits: Path, tmp_path: Path) -> None:
    """Somebody who answers as the masks say makes the file that `split --points` makes."""
    split(digits, tmp_path / "boxes", "boxes", seed=3)
    split(digits, tmp_path / "points", "points-4", seed=3)
    expected = json.loads((tmp_path / "points" / "annotations" / "instances_train.json").read_text())
    truth = {row["id"]: row for row in expected["annotations"]}
    work = session(tmp_path / "boxes", points=4, seed=3)
    desk, _ = work.desk()
    shown = {unit["target"]: unit for unit in desk.claim(desk.annotators[0], "tab-00000001", 1000)}
    assert shown.keys() == truth.keys()
    assert all(shown[key]["points"] == truth[key]["point_coords"] for key in truth)
    answers = [
        said(100 * key + place, "points", key, place, "object" if label else "background")
        for key, row in truth.items()
        for place, label in enumerate(row["point_labels"])
    ]
    content = export(work, answers)
    for row in content["annotations"]:
        assert (row["point_coords"], row["point_labels"]) == (
            truth[row["id"]]["point_coords"],
            truth[row["id"]]["point_labels"],
        )
        assert row["point_provenance"][0].keys() == {"annotator", "time", "seconds"}


def test_a_second_round_asks_for_later_points(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "d", images=1)
    first, second = (session(data, points=3, round=number, store=tmp_path / f"{number}.sqlite") for number in (1, 2))
    one, two = (work.desk()[0].claim(work.desk()[0].annotators[0], "tab-00000001", 1)[0] for work in (first, second))
    assert two["points"][:3] == one["points"]
    assert len(two["points"]) == 6
    first.close()
    second.close()


def test_labels_train_and_check(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "d", images=4)
    before = (data / "annotations" / "instances_train.json").read_bytes()
    work = session(data, points=3)
    answers = []
    for number, row in enumerate(json.loads(before)["annotations"]):
        answers += [said(10 * number + p, "points", row["id"], p, ("object", "background")[p % 2]) for p in range(3)]
    export(work, answers)
    assert (data / "annotations" / "instances_train.json").read_bytes() == before
    report = check(data / "labelling")
    assert report.ok
    assert report.census["train"].objects["points"] == 8
    assert train(data / "labelling", tmp_path / "run", settings=ONE_STEP).steps == 1
    store = AnnotationStore.open(data / "labelling" / "instances_train.json", data / "images")
    assert "point_provenance" in store._pack[0]["annotations"][0]  # the reader keeps who said it


def test_unsure_and_disputed_points_are_no_labels_and_majorities_are(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "d", images=1, objects=1)
    answers = [said(1, "points", 100, 0, "unsure"), said(2, "points", 100, 1, "object")]
    answers += [said(3, "points", 100, 1, "background", annotator="ben"), said(4, "points", 100, 2, "object")]
    answers += [said(5, "points", 100, 2, "background", annotator="ben")]
    answers += [said(6, "points", 100, 2, "object", annotator="carla")]
    answers += [said(7, "points", 100, 3, "background")]
    work = session(data, points=4)
    for item in answers:
        work.store.save(item)
    summary = work.export()
    work.close()
    (row,) = json.loads(summary.labels.read_text())["annotations"]
    assert row["point_labels"] == [1, 0]
    assert len(row["point_coords"]) == len(row["point_provenance"]) == 2
    assert (summary.exported.unsure, summary.exported.disputed) == (1, 1)


def test_the_same_answers_give_the_same_bytes(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "d", images=2)
    answers = [said(n, "points", 100 + n % 2, n // 2, "object") for n in range(6)]
    files = []
    for name, order in (("a", answers), ("b", answers[::-1])):
        work = session(data, points=3, store=tmp_path / name / "s.sqlite")
        export(work, order)
        files.append((tmp_path / name / "instances_train.json").read_bytes())
    assert files[0] == files[1]


def test_from_a_folder_of_photos_to_a_data_set(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    work = session(photos, boxes=True, classes=("cat", "dog"))
    desk, _ = work.desk()
    assert len(desk.dealer.units) == 5
    answers = []
    for picture in range(4):
        box = {"box": [10.0, 20.0, 30.5, 40.0], "category_id": 2}
        answers.append(said(10 * picture, "boxes", picture, 0, "box", detail=box))
        answers.append(said(10 * picture + 1, "boxes", picture, -1, "done", detail={"exhaustive": picture != 3}))
    content = export(work, answers)
    again = session(photos, classes=("cat", "dog"), points=2)
    units = again.desk()[0].dealer.units
    again.close()
    assert len(units) == 3  # the drawn boxes are asked about next, by ids that never change; not those of val
    found = {}
    for name in ("train", "val", "unlabelled"):
        part = json.loads((photos / "labelling" / f"instances_{name}.json").read_text())
        found[name] = (len(part["images"]), len(part["annotations"]))
    assert found == {"train": (3, 3), "val": (1, 1), "unlabelled": (1, 0)}
    trained = json.loads((photos / "labelling" / "instances_train.json").read_text())["annotations"]
    assert {row["id"] for row in trained} <= {unit.target for unit in units}
    assert all(row["provenance"] == "human" for row in content["annotations"])
    assert check(photos).ok
    # What was held out has no masks to measure by yet; training says so and goes on, also without a photograph.
    (photos / "photo0.jpg").unlink()
    (photos / "photo1.jpg").rename(photos / "held.jpg")
    told: list[str] = []
    assert train(photos, tmp_path / "run", settings=ONE_STEP, tell=told.append).steps == 1
    assert "1 photograph gone" in told[0]
    assert "photo1.jpg is now held.jpg" in told[1]


def labelled(classes_of: dict[str, set[int]], **exhaustive: bool) -> dict[str, Any]:
    """A folder of images with one object of each of these classes."""
    images = [
        {"id": n, "file_name": name, "exhaustive": exhaustive.get(name, True)} for n, name in enumerate(classes_of, 1)
    ]
    rows = [
        {"id": 10 * n + key, "image_id": n, "category_id": key}
        for n, keys in enumerate(classes_of.values(), 1)
        for key in keys
    ]
    return {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}


def test_a_fixed_share_of_names_is_held_out_for_ever() -> None:
    content = labelled({f"{n}.jpg": {1} for n in range(200)})
    _, splits, notes = by_split(content, {}, 0.2)
    expected = {n + 1 for n in range(200) if in_share(f"{n}.jpg", 0.2)}
    assert {key for key, split in splits.items() if split == "val"} == expected
    assert 20 < len(expected) < 60
    assert not notes
    # Neither another share nor more or fewer labels move an image that has its place.
    fewer = {**content, "annotations": content["annotations"][:50]}
    for changed, share in ((content, 0.9), (content, 0.0), (fewer, 0.2)):
        assert {key for key, split in by_split(changed, splits, share)[1].items() if split == "val"} == expected
    assert by_split({"images": [], "annotations": [], "categories": []}, {}, 0.2)[0] == {}


def test_images_with_parts_labelled_are_trained_on() -> None:
    content = labelled({"a": {1}, "b": {1}, "c": set()}, b=False, c=False)
    parts, splits, _ = by_split(content, {}, 1.0)
    assert splits == {1: "val", 2: "train", 3: "unlabelled"}
    assert {name: len(part["images"]) for name, part in parts.items()} == {"train": 1, "val": 1, "unlabelled": 1}
    assert parts["val"]["images"][0]["exhaustive"]  # boxes without masks are measured as boxes
    assert by_split(content, {2: "train"}, 1.0)[1][2] == "train"
    content["annotations"][1]["weight"] = 0.0  # a rejected pseudo-label
    parts, splits, _ = by_split(content, {}, 1.0)
    assert splits[2] == "unlabelled"
    assert parts["unlabelled"]["annotations"] == []


def test_no_class_is_held_out_as_a_whole() -> None:
    _, splits, notes = by_split(labelled({"a": {1}, "b": {1}, "c": {2}, "d": {1, 2}}), {}, 1.0)
    assert splits == {1: "train", 2: "val", 3: "train", 4: "val"}
    assert [note.split(" would be")[0] for note in notes] == ["a", "c"]
    assert "c would be for validation, but has the only objects of dog and is trained on" in notes
    _, alone, notes = by_split(labelled({"a": set()}), {}, 1.0)
    assert alone == {1: "train"}
    assert "a would be for validation, but is the only one with labels and is trained on" in notes


def pseudo_file(data: Path, tmp_path: Path) -> Path:
    """Five pseudo-labels, one of each fate."""
    mask = np.zeros((120, 160), dtype=np.uint8)
    mask[30:60, 20:50] = 1
    rows = [
        {
            "id": number,
            "image_id": 1,
            "category_id": 3,
            "bbox": [20, 30, 30, 30],
            "area": 900,
            "iscrowd": 0,
            "segmentation": segmentation_from(mask, (0, 0), (120, 160)),
            "score": 0.6,
            "class_quality": 0.9 - 0.1 * number,
            "mask_quality": 0.9,
            "provenance": "leanmask a",
        }
        for number in range(1, 6)
    ]
    images = [{"id": 1, "file_name": "001.png", "width": 160, "height": 120, "exhaustive": False}]
    categories = [{"id": 3, "name": "boat"}, {"id": 4, "name": "buoy"}]
    folder = data / "images" if not (tmp_path / "more").exists() else tmp_path / "more"
    content = {"images": images, "annotations": rows, "categories": categories, "info": {"image_folder": str(folder)}}
    path = tmp_path / "pseudo.json"
    path.write_text(json.dumps(content))
    return path


def test_decisions_of_a_review(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "d", images=2)
    (tmp_path / "more").mkdir()
    Image.new("RGB", (160, 120)).save(tmp_path / "more" / "001.png")
    work = session(data, review=pseudo_file(data, tmp_path))
    desk, _ = work.desk()
    assert [unit.target for unit in desk.dealer.units] == [5, 4, 3, 2, 1]  # the doubtful first
    decided = {1: "accept", 2: "reject", 3: "wrong_class", 4: "cuts_off"}
    answers = [
        said(key, "review", key, 0, value, detail={"category_id": 4} if key == 3 else None)
        for key, value in decided.items()
    ]
    content = export(work, answers)
    rows = {row["id"]: row for row in content["annotations"]}
    assert rows[1]["weight"] == 1.0
    assert rows[2]["weight"] == 0.0
    assert (rows[3]["category_id"], rows[3]["weight"]) == (4, 1.0)
    assert rows[3]["review"]["before"] == {"provenance": "leanmask a", "category_id": 3}
    assert rows[1]["provenance"] == rows[3]["provenance"] == "human"
    assert rows[5]["provenance"] == "leanmask a"
    assert "segmentation" not in rows[4]
    assert "bbox" not in rows[4]
    assert 20 < rows[4]["point"][0] < 50
    assert "review" not in rows[5]
    assert "weight" not in rows[5]
    folder = data / "labelling" / "review-pseudo"
    store = AnnotationStore.open(folder / "instances_train.json", data / "images")
    assert len(store) == 3  # the training images, and the pseudo-labelled one that is new
    joined = store[2]
    assert [item.weight for item in joined.objects] == [1.0, 0.0, 1.0, 1.0, 0.6]
    assert not joined.exhaustive
    assert joined.path.is_file()
    assert check(folder).ok


def test_certainty() -> None:
    assert certainty({"class_quality": 0.5, "mask_quality": 0.5, "score": 0.9}) == 0.25
    assert certainty({"score": 0.9}) == 0.9
    assert certainty({"score": True}) == 1.0


def test_the_innermost_pixel_against_all_distances() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = np.zeros((24, 30), dtype=np.uint8)
        for _ in range(4):
            x, y = rng.integers(0, 20, 2)
            mask[y : y + 9, x : x + 9] = 1
        x, y = innermost_pixel({"size": [24, 30], "counts": segmentation_from(mask, (0, 0), (24, 30))["counts"]})
        padded = np.pad(mask, 1)
        outside, inside = np.argwhere(padded == 0), np.argwhere(padded)
        depth = np.sqrt(((inside[:, None] - outside[None]) ** 2).sum(2)).min(1)
        found = depth[(inside == (y + 1, x + 1)).all(1)][0]
        assert found > depth.max() - 1
    assert innermost_pixel(segmentation_from(np.zeros((0, 0), dtype=np.uint8), (0, 0), (4, 4))) is None


# --- pictures


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_parts_of_pictures_are_exact(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "d", images=1)
    pictures = Pictures(open_source(data))
    whole = np.asarray(Image.open(data / "images" / "001.png"))
    part = pictures.part(0, Part((30, 20, 50, 40), 1000))
    assert np.array_equal(pixels_of(part.content), whole[20:60, 30:80])
    small = pixels_of(pictures.part(0, Part((0, 0, 160, 120), 80)).content)
    assert small.shape == (60, 80, 3)
    assert np.allclose(small, whole.reshape(60, 2, 80, 2, 3).mean((1, 3)), atol=1)
    for region in ((150, 0, 20, 10), (0, 0, 161, 10)):
        with pytest.raises(DataError, match="does not lie on an image of 160 x 120"):
            pictures.part(0, Part(region, 100))


def test_large_images_come_downsized_with_exact_coordinates(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    image = Image.new("L", (20_000, 300))
    image.paste(255, (19_000, 100, 19_002, 102))
    image.save(tmp_path / "photos" / "wide.png")
    source = open_source(tmp_path / "photos", SourceOptions(classes=("a",)))
    pictures = Pictures(source)
    shown = pictures.part(0, Part((0, 0, 20_000, 300), 2000))
    assert Image.open(io.BytesIO(shown.content)).size == (2000, 30)
    near = pixels_of(pictures.part(0, Part((18_990, 90, 30, 30), 600)).content)
    assert np.argwhere(near[..., 0]).min(0).tolist() == [10, 10]


def test_an_image_that_many_ask_for_at_once_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = 5
    source = open_source(write_boxes(tmp_path / "d", images=1))
    pictures = Pictures(source)
    reads: list[Path] = []
    all_reading = threading.Barrier(people)

    def read(path: Path, *given: Any) -> Image.Image:
        reads.append(path)
        with contextlib.suppress(threading.BrokenBarrierError):
            all_reading.wait(0.5)  # passes only where everybody reads
        return read_picture(path, *given)

    monkeypatch.setattr("leanmask.annotate.pictures.read_picture", read)
    with ThreadPoolExecutor(people) as threads:
        parts = list(threads.map(lambda number: pictures.part(0, Part((number, 0, 30, 30), 30)), range(people)))
    assert len(reads) == 1
    assert len({part.content for part in parts}) == people


def test_large_images_are_decoded_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = Pictures(open_source(write_boxes(tmp_path / "d", images=2)))
    together: list[Path] = []
    both_reading = threading.Barrier(2)

    def read(path: Path, *given: Any) -> Image.Image:
        with contextlib.suppress(threading.BrokenBarrierError):
            both_reading.wait(0.5)
            together.append(path)
        return read_picture(path, *given)

    monkeypatch.setattr("leanmask.annotate.pictures.read_picture", read)
    monkeypatch.setattr("leanmask.annotate.pictures.LARGE_PIXELS", 160 * 120)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(pictures.part, range(2)))
    assert not together


def test_rotated_photographs_are_shown_upright(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    image = Image.new("RGB", (40, 20))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    image.save(tmp_path / "photos" / "a.png", exif=exif)
    source = open_source(tmp_path / "photos", SourceOptions(classes=("a",)))
    assert source.size_of(0) == (40, 20)
    shown = pixels_of(Pictures(source).part(0).content)
    assert shown[0, 19].tolist() == [255, 0, 0]
    ignoring = open_source(tmp_path / "photos", SourceOptions(classes=("a",), exif="ignore"))
    assert ignoring.size_of(0) == (20, 40)


def test_masks_are_laid_over_exactly(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "d", images=2)
    work = session(data, review=pseudo_file(data, tmp_path))
    overlay = pixels_of(Pictures(work.source).mask(0, Part((10, 20, 60, 60), 600)).content)
    work.close()
    assert overlay.shape == (600, 600, 4)
    inside = overlay[..., 3] > 0
    assert inside[105:395, 105:395].all()
    assert not inside[:90].any()
    assert not inside[:, :90].any()


def test_missing_and_damaged_images(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "d", images=3)
    (data / "images" / "001.png").unlink()
    (data / "images" / "002.png").write_bytes(b"no picture")
    work = session(data)
    desk, _ = work.desk()
    shown = desk.claim(desk.annotators[0], "tab-00000001", 10)
    assert {unit["picture"] for unit in shown} == {1, 2}
    assert desk.progress()["problems"] == 1
    with pytest.raises(UnreadableImage, match="no image"):
        Pictures(work.source).part(1)
    assert list(desk.problems) == [("image", 0)]
    desk.set_aside(1, "damaged")
    assert {unit["picture"] for unit in desk.claim(desk.annotators[0], "tab-00000001", 10)} == {2}
    assert desk.progress()["answers_left"] == 20
    work.close()


# --- mistakes


def break_file(data: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = data / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def open_and_close(data: Path) -> None:
    work = session(data)
    try:
        work.desk()
    finally:
        work.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["annotations"].clear(), "draw boxes first: leanmask annotate DATA --boxes"),
        (lambda c: [row.pop("bbox") for row in c["annotations"]], "no object with a box"),
        (lambda c: (c["images"].clear(), c["annotations"].clear()), "has no images"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, "wide", 4]), "annotation 100: bbox must be four numbers"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 0, 4]), "annotation 101: bbox .* has no area"),
        (lambda c: c["annotations"][0].update(image_id=77), "belongs to image 77, which the file does not have"),
        (lambda c: c["annotations"][0].update(category_id=77), "category id 77 is not among"),
        (lambda c: c["annotations"][0].update(id=101), "uses an annotation id twice"),
        (lambda c: c["annotations"][0].update(id="x"), "id must be a whole number"),
        (lambda c: c["images"][0].update(width=0), "needs width and height"),
        (lambda c: c["images"][0].update(id=2), "image id 2 is used twice"),
    ],
)
def test_bad_data_is_a_sentence(tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str) -> None:
    data = write_boxes(tmp_path / "d", images=2)
    break_file(data, change)
    with pytest.raises(DataError, match=says):
        open_and_close(data)


def test_mistakes_of_the_verb(leanmask: Callable[..., Outcome], tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "d", images=2)
    photos = write_photos(tmp_path / "photos")
    cases = {
        "name the classes": [photos, "--boxes"],
        "its classes already": [data, "--classes", "a"],
        "no boxes to draw": [data, "--boxes"],
        "is no queue": [data, "--queue", data / "annotations" / "instances_train.json"],
        "--review looks at pseudo-labels": [data, "--review", "x.json", "--boxes"],
        "did you mean": [data, "--split", "trian"],
        "exif is 'turn'": [data, "--exif", "turn"],
        "does not exist": [tmp_path / "nowhere"],
    }
    for says, arguments in cases.items():
        outcome = leanmask("annotate", *arguments)
        assert outcome.code == 2, says
        assert says in " ".join(outcome.err.split()), says
        assert "Traceback" not in outcome.err


def test_another_seed_is_refused(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "d", images=1)
    session(data, seed=1).close()
    with pytest.raises(ConfigError, match="give --seed 1"):
        session(data, seed=2)


def test_export_by_the_verb_never_overwrites(leanmask: Callable[..., Outcome], tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "d", images=1)
    out = tmp_path / "labels.json"
    assert leanmask("annotate", data, "--export", out).code == 0
    before = out.read_bytes()
    again = leanmask("annotate", data, "--export", out)
    assert again.code == 2
    assert "never overwritten" in again.err
    assert out.read_bytes() == before


def test_queues_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "d", images=1)
    path = tmp_path / "queue.json"
    for item, says in (
        ({"kind": "points", "annotation_id": 5}, "item 1 is about object 5"),
        ({"kind": "boxes", "image_id": 5}, "item 1 is about image 5"),
        ({"kind": "points", "annotation_id": 100, "points": 0}, "asks for 0 points"),
        ({"kind": "poem"}, "is of kind 'poem'"),
        ({"kind": "mask", "annotation_id": 100}, "asks for 1 masks alone"),
    ):
        path.write_text(json.dumps({"leanmask_queue": 1, "items": [item]}))
        work = session(data, queue=path)
        with pytest.raises(DataError, match=says):
            work.desk()
        work.close()


def test_overlap_chooses_a_share_by_object(tmp_path: Path) -> None:
    source = open_source(write_boxes(tmp_path / "d", images=40))
    twice = [unit.target for unit in units_of(source, Job(overlap=0.3)) if unit.needed == 2]
    assert 12 <= len(twice) <= 36
    assert set(twice) <= {unit.target for unit in units_of(source, Job(overlap=0.6)) if unit.needed == 2}
    with pytest.raises(ConfigError, match=r"overlap is 1\.5"):
        Job(overlap=1.5)
    with pytest.raises(ConfigError, match="allowed: 1 to"):
        Job(points=600, round=2)
