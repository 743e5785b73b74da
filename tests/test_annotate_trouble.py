"""What goes wrong while people label: pictures that come late or not at all, images that are not what their annotations
say, answers that cannot be taken. None of it may stop the others, lose an answer, or label what nobody saw.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from annotate_helpers import Person, Server, write_boxes, write_photos
from fastapi.testclient import TestClient
from PIL import Image
from test_annotate import break_file, pseudo_file

from leanmask.annotate.desk import Desk
from leanmask.annotate.server import create_app
from leanmask.annotate.store import Answer, Store
from leanmask.annotate.tasks import Job
from leanmask.annotate.work import AnnotateOptions, Work

Opened = Callable[..., tuple[Desk, TestClient]]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """A desk and a client of its interface, of a data set."""
    works: list[Work] = []

    def opening(
        data: Path, options: AnnotateOptions = AnnotateOptions(annotators=("anna",))
    ) -> tuple[Desk, TestClient]:
        works.append(Work.open(data, options))
        desk, _ = works[-1].desk()
        return desk, TestClient(create_app(desk, "key"))

    yield opening
    for work in works:
        work.store.close()


# --- images and masks that cannot be shown


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)


def smaller(path: Path) -> None:
    Image.open(path).resize((80, 60)).save(path)


def deep(path: Path) -> None:
    Image.fromarray(np.zeros((120, 160), dtype=np.int32)).save(path, "TIFF")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (turned, "EXIF rotation"),
        (smaller, "is 80 x 60 pixels, but its annotations say 160 x 120"),
        (deep, "32-bit pixels"),
        (truncated, "cannot be read"),
    ],
)
def test_images_that_turn_out_unfit_are_dealt_no_more(
    tmp_path: Path, opened: Opened, damage: Callable[[Path], None], reason: str
) -> None:
    data = write_boxes(tmp_path / "d", images=2, objects=1)
    damage(data / "images" / "001.png")
    desk, client = opened(data)
    anna = Person(client, "anna")

    def picture(number: int, width: int = 9) -> int:
        region = {"x": 0, "y": 0, "width": width, "height": 9}
        return client.get(f"/api/pictures/{number}", params=region).status_code

    assert {unit["picture"] for unit in anna.claim(5)} == {0, 1}
    assert (picture(0), picture(1), picture(1, width=9999)) == (404, 200, 404)
    assert [unit["picture"] for unit in anna.claim(5)] == [1]  # a wrong region is no fault of the image
    assert list(desk.problems) == [("image", 0)]
    assert reason in desk.problems["image", 0]


def test_an_object_that_cannot_be_shown_leaves_the_others_of_its_image(tmp_path: Path, opened: Opened) -> None:
    data = write_boxes(tmp_path / "d", images=1)
    break_file(data, lambda content: content["annotations"][0].update(bbox=[500, 500, 10, 10]))
    desk, client = opened(data)
    assert [unit["target"] for unit in Person(client, "anna").claim(5)] == [101]
    ((key, reason),) = desk.problems.items()
    assert key == ("object", 100)
    assert "annotation 100" in reason
    assert "outside the image" in reason


def test_a_mask_that_cannot_be_read_is_dealt_no_more(tmp_path: Path, opened: Opened) -> None:
    data = write_boxes(tmp_path / "d", images=1)
    path = pseudo_file(data, tmp_path)
    content = json.loads(path.read_text())
    content["annotations"][4]["segmentation"] = [["no", "numbers", 1, 2, 3, 4]]
    path.write_text(json.dumps(content))
    desk, client = opened(data, AnnotateOptions(review=path, annotators=("anna",)))
    anna = Person(client, "anna")
    assert anna.claim(5)[0]["target"] == 5
    region = {"x": 0, "y": 0, "width": 9, "height": 9}
    assert client.get("/api/masks/5", params=region).status_code == 404
    assert [unit["target"] for unit in anna.claim(5)] == [4, 3, 2, 1]
    assert "annotation 5 has a segmentation that cannot be read" in desk.problems["object", 5]


def test_what_was_left_out_is_said_at_the_end(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "d", images=25, objects=1)
    for number in range(1, 24):
        (data / "images" / f"{number:03}.png").unlink()
    turned(data / "images" / "024.png")
    with Server(data, "--points", 1, "--annotators", "anna") as server, server.client() as client:
        assert client.get("/api/pictures/23", params={"x": 0, "y": 0, "width": 9, "height": 9}).status_code == 404
        assert [unit["target"] for unit in Person(client, "anna").claim(5)] == [2500]
        server.stop()
    said = " ".join("".join(server.said).split())
    assert "024.png carries an EXIF rotation" in said
    assert said.count("does not exist") == 19
    assert "left out: 4 more images or objects" in said


# --- answers that cannot be taken


def test_one_answer_about_a_missing_image_refuses_no_other(tmp_path: Path, opened: Opened) -> None:
    photos = write_photos(tmp_path / "photos", count=2)
    _, client = opened(photos, AnnotateOptions(boxes=True, classes=("cat",), annotators=("anna",)))
    (photos / "photo0.jpg").unlink()
    detail = {"box": [1, 1, 20, 20], "category_id": 1}
    given = [
        {"id": f"answer-{target}", "kind": "boxes", "target": target, "position": 0, "value": "box", "seconds": 1}
        for target in (0, 1)
    ]
    body = {"annotator": "anna", "tab": "tab-00000001", "answers": [{**item, "detail": detail} for item in given]}
    response = client.post("/api/answers", json=body)
    assert response.status_code == 200
    results = response.json()["results"]
    assert [item["status"] for item in results] == ["refused", "saved"]
    assert "no such file" in results[0]["reason"]


def test_points_that_an_earlier_session_asked_for_are_taken(tmp_path: Path, opened: Opened) -> None:
    desk, _ = opened(write_boxes(tmp_path / "d", images=1), AnnotateOptions(points=3, round=2, annotators=("anna",)))

    def take(desk: Desk, position: int) -> str:
        answer = Answer(f"answer-{position}", "points", 100, position, "object", "anna", 1.0)
        return desk.take(answer, "tab-00000001")[0]

    assert (take(desk, 5), take(desk, 6)) == ("saved", "refused")
    store = Store.open(tmp_path / "boxes.sqlite", desk.source.fingerprint())
    boxes = Desk(desk.source, store, Job("boxes"), ("anna",), ())
    assert (take(boxes, 15), take(boxes, 5000)) == ("saved", "refused")
    store.close()
