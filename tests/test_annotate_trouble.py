"""What goes wrong while people label: pictures that come late or not at all, images that are not what their annotations
say, answers that cannot be taken. None of it may stop the others, lose an answer, or label what nobody saw.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from annotate_helpers import Person, Server, wait_until, write_boxes, write_photos
from fastapi.testclient import TestClient
from PIL import Image
from playwright.sync_api import Page, Route
from test_annotate import break_file, pseudo_file
from test_annotate_page import answers, needs_browser, shown, what

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
        work.close()


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


# --- the page


class Held:
    """Requests for pictures that wait until the test lets them go on; those of the first image pass."""

    def __init__(self, page: Page) -> None:
        self.routes: list[Route] = []
        self.first: str | None = None
        self.open = False
        page.route("**/api/pictures/**", self._meet)

    def _meet(self, route: Route) -> None:
        picture = route.request.url.partition("?")[0]
        self.first = self.first or picture
        if self.open or picture == self.first:
            route.continue_()
        else:
            self.routes.append(route)

    def let_go(self) -> None:
        self.open = True
        for route in self.routes:
            route.continue_()

    def break_off(self) -> None:
        self.open = True
        for route in self.routes:
            route.abort()


@needs_browser
def test_keys_before_the_next_picture_label_nothing(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    data = write_boxes(tmp_path / "d", images=2, objects=1)
    with Server(data, "--points", 1, "--annotators", "anna") as server:
        page = open_page("about:blank")
        held = Held(page)
        page.goto(server.url)
        first = what(page, "points:")
        for _ in range(3):
            page.keyboard.press("f")
        shown(page, "loading")
        wait_until(lambda: answers(server) == 1)
        page.keyboard.press("Backspace")  # back to the first, also while the second loads
        shown(page, first)
        held.let_go()
        url = held.routes[0].request.url
        page.evaluate("async (url) => { const image = new Image(); image.src = url; await image.decode(); }", url)
        assert what(page) == first
        page.keyboard.press("j")
        page.wait_for_selector(f'#stage[data-shown^="points:"]:not([data-shown="{first}"])')
        page.keyboard.press("f")
        shown(page, "nothing")
        wait_until(lambda: answers(server) == 2)
        page.wait_for_selector("#sync[data-state=fine]")  # nor was anything sent that the server had to refuse
        assert page.inner_text("#sync") == "saved"
        server.stop()
    rows = json.loads((data / "labelling" / "instances_train.json").read_text())["annotations"]
    assert {row["id"]: row["point_labels"] for row in rows}[int(first.split(":")[1])] == [0]
    assert sorted(row["point_labels"] for row in rows) == [[0], [1]]


@needs_browser
def test_pictures_that_a_dead_server_broke_off_are_loaded_again(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    data = write_boxes(tmp_path / "d", images=2, objects=1)
    arguments = (data, "--points", 1, "--annotators", "anna")
    with Server(*arguments) as server:
        page = open_page("about:blank")
        held = Held(page)
        page.goto(server.url)
        first = what(page, "points:")
        server.kill()
        held.break_off()
        page.keyboard.press("f")
        page.wait_for_selector("#message:not([hidden])")
        assert "The server does not answer" in page.inner_text("#message")
    with Server(*arguments, port=server.port) as again:
        page.wait_for_selector(f'#stage[data-shown^="points:"]:not([data-shown="{first}"])', timeout=20_000)
        page.keyboard.press("j")
        shown(page, "nothing")
        assert "Everything is labelled" in page.inner_text("#message")
        wait_until(lambda: answers(again) == 2)


@needs_browser
def test_an_answer_of_somebody_who_left_stops_nobody(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    data = write_boxes(tmp_path / "d", images=8)
    with Server(data, "--points", 2, "--annotators", "anna") as server:
        page = open_page(server.url)
        what(page, "points:")
        server.kill()
        page.keyboard.press("f")
        page.wait_for_selector("#sync[data-state=waiting]")
    other = page.context.new_page()
    page.close()
    with Server(data, "--points", 2, "--annotators", "ben", port=server.port) as again:
        other.goto(again.url)
        what(other, "points:")
        other.keyboard.press("f")
        other.wait_for_selector("#sync[data-state=refused]")
        assert "1 refused, kept here" in other.inner_text("#sync")
        assert "'anna' is none of the annotators: ben" in other.get_attribute("#sync", "title")
        wait_until(lambda: answers(again) == 1)
        again.kill()
    with Server(data, "--points", 2, "--annotators", "anna,ben", port=server.port) as both:
        other.reload()
        other.get_by_role("button", name="ben").click()
        what(other, "points:")
        wait_until(lambda: answers(both) == 2)
        other.wait_for_selector("#sync[data-state=fine]")
