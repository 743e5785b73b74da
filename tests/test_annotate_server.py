"""The HTTP interface: who is let in, what is refused, fuzzing from its own description, and people at the same time."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from annotate_helpers import Person, Server, write_boxes, write_photos
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from leanmask.annotate.desk import Desk
from leanmask.annotate.guard import MOST_BODY_BYTES, Pass
from leanmask.annotate.server import create_app, guarded
from leanmask.annotate.work import AnnotateOptions, Work

TOKEN = "secret-token-of-the-test"
ALLOWED = Pass(TOKEN, "127.0.0.1", 8765)
HOST = {"host": "127.0.0.1:8765"}
ENTRY = {**HOST, "authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    data = write_boxes(tmp_path_factory.mktemp("server") / "d", images=8)
    opened = Work.open(data, AnnotateOptions(points=3, annotators=("anna", "ben")))
    yield opened
    opened.store.close()


@pytest.fixture(scope="module")
def desk(work: Work) -> Desk:
    return work.desk()[0]


@pytest.fixture(scope="module")
def client(desk: Desk) -> Iterator[TestClient]:
    # Requests go through the guard, as from the network.
    with TestClient(guarded(create_app(desk, "key"), ALLOWED), base_url="http://127.0.0.1:8765") as found:
        found.headers.pop("authorization", None)
        yield found


def test_the_printed_address_lets_in_and_sets_a_cookie(client: TestClient) -> None:
    entered = client.get(f"/?token={TOKEN}", headers=HOST, follow_redirects=False)
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    name, _, value = cookie.split(";")[0].partition("=")
    inside = client.get("/", headers={**HOST, "cookie": f"{name}={value}"})
    assert inside.status_code == 200
    assert "<!doctype html>" in inside.text
    client.cookies.clear()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (HOST, 401),
        ({**HOST, "authorization": "Bearer wrong"}, 401),
        ({**HOST, "cookie": "leanmask_8765=wrong"}, 401),
        ({**HOST, "cookie": 'leanmask_8765="; x=y'}, 401),
        ({**ENTRY, "host": "evil.example:8765"}, 421),
        ({**ENTRY, "host": "127.0.0.1:9999"}, 421),
        ({**ENTRY, "host": "127.0.0.1:notaport"}, 421),
        ({**ENTRY, "origin": "http://evil.example"}, 403),
        ({**ENTRY, "origin": "null"}, 403),
        ({**ENTRY, "host": "localhost:8765"}, 200),
        ({**ENTRY, "host": "192.168.1.7:8765"}, 200),
        ({**ENTRY, "origin": "http://127.0.0.1:8765"}, 200),
    ],
)
def test_who_is_let_in(client: TestClient, headers: dict[str, str], status: int) -> None:
    response = client.get("/api/state", headers=headers)
    assert response.status_code == status
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert TOKEN not in response.text


def test_writing_from_another_site_is_refused(client: TestClient) -> None:
    body = {"annotator": "anna", "tab": "tab-00000001", "count": 1}
    response = client.post("/api/claim", headers={**ENTRY, "sec-fetch-site": "cross-site"}, json=body)
    assert response.status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/api/pictures/..%2f..%2fetc%2fpasswd?x=0&y=0&width=9&height=9",
        "/api/pictures/-1?x=0&y=0&width=9&height=9",
        "/api/pictures/99?x=0&y=0&width=9&height=9",
        "/api/pictures/0?x=0&y=0&width=99999&height=9",
        "/api/pictures/0",
        "/api/masks/100?x=0&y=0&width=500&height=9",
        "/server.py",
        "/static/app.js",
        "/labelling/train.sqlite",
        "//etc/passwd",
    ],
)
def test_paths_lead_nowhere(client: TestClient, path: str) -> None:
    response = client.get(path, headers=ENTRY)
    assert response.status_code in (404, 422)
    assert "root:" not in response.text


def test_oversized_and_malformed_bodies(client: TestClient) -> None:
    large = client.post("/api/answers", headers=ENTRY, content=b"[" * (MOST_BODY_BYTES + 1))
    assert large.status_code == 413
    for content in (b"", b"{", b"[]", b"null", b'{"annotator": "anna"}', b"\xff\xfe", b'{"a":' * 5000):
        assert client.post("/api/answers", headers=ENTRY, content=content).status_code == 422
    chunks = (b"[" * 65536 for _ in range(8))  # does not say how long it is
    with contextlib.suppress(httpx.HTTPError):  # or it is cut off
        assert client.post("/api/answers", headers=ENTRY, content=chunks).status_code in (400, 413, 422)


def said(desk: Desk, **changes: Any) -> dict[str, Any]:
    item = {"id": "answer-00000001", "kind": "points", "target": 100, "position": 0, "value": "object", "seconds": 1.0}
    return {"annotator": "anna", "tab": "tab-00000001", "answers": [{**item, **changes}]}


BOX = {"kind": "boxes", "target": 0, "value": "box"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"value": "maybe"}, "'maybe' is no answer about points"),
        ({"target": 5}, "there is no object 5"),
        ({"position": 5000}, "position 5000"),
        ({"position": 3}, "position 3; allowed: up to 2"),  # three points were asked for
        ({"value": "skip"}, "only skip and done"),
        ({"kind": "boxes", "target": 99, "value": "box"}, "there is no image 99"),
        ({"kind": "boxes", "target": 0, "value": "box"}, "a box needs"),
        ({**BOX, "detail": {"box": [0, 0, 500, 5], "category_id": 3}}, "does not lie on the image of 160 x 120"),
        ({**BOX, "detail": {"box": [0, 0, 5, 5], "category_id": 9}}, "category id 9 is unknown"),
        ({"kind": "review", "position": 1, "value": "accept"}, "position 1"),
    ],
)
def test_answers_that_cannot_be_are_refused_with_a_reason(
    client: TestClient, desk: Desk, changes: dict[str, Any], reason: str
) -> None:
    response = client.post("/api/answers", headers=ENTRY, json=said(desk, **changes))
    (result,) = response.json()["results"]
    assert result["status"] == "refused"
    assert reason in result["reason"]
    assert not list(desk.store.answers())


def test_strangers_may_not_answer(client: TestClient, desk: Desk) -> None:
    response = client.post("/api/answers", headers=ENTRY, json={**said(desk), "annotator": "mallory"})
    assert response.status_code == 403
    assert "anna, ben" in response.json()["detail"]


def test_fuzzed_from_its_own_description(desk: Desk) -> None:
    """Whatever the description allows, and what it forbids, is answered without an error of the server."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(desk, "key"))
    seen = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:

            @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
            @given(case=operation.as_strategy(generation_mode=mode))
            def fuzz(case: schemathesis.Case) -> None:
                assert case.call().status_code < 500

            with contextlib.suppress(Unsatisfiable):  # there is no wrong way to ask for what takes no parameters
                fuzz()
        seen.add(operation.path)
    assert seen >= {"/api/state", "/api/claim", "/api/answers", "/api/undo", "/api/pictures/{picture}"}


# --- the whole server


def test_a_session_over_http(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "d", images=2)
    with Server(data, "--points", 2, "--annotators", "anna", "--json") as server, server.client() as client:
        anna = Person(client, "anna")
        units = anna.claim(9)
        assert len(units) == 4
        for unit in units:
            view = dict(zip(("x", "y", "width", "height"), unit["view"], strict=True))
            picture = client.get(f"/api/pictures/{unit['picture']}", params=view)
            assert picture.headers["content-type"] == "image/png"
            assert [anna.answer(unit, place, "object") for place in range(2)] == ["saved", "saved"]
        assert anna.claim(9) == []
        assert anna.undo(anna.last) == "undone"
        assert anna.undo("answer-that-is-none") == "unknown"
        (again,) = anna.claim(9)
        assert [item["position"] for item in again["given"]] == [0]
        told = client.get("/api/statistics").json()
        assert told["speed"][0]["answers"] == 7
        out = json.loads(server.stop())
    assert out["exported"]["points"] == 7
    labels = json.loads((data / "labelling" / "instances_train.json").read_text())
    assert sum(len(row.get("point_coords", ())) for row in labels["annotations"]) == 7


def test_killed_and_started_again_it_goes_on(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "d", images=3)
    with Server(data, "--points", 2, "--annotators", "anna,ben") as server, server.client() as client:
        anna, ben = Person(client, "anna"), Person(client, "ben", "tab-00000002")
        first, second = anna.claim()[0], ben.claim()[0]
        assert anna.answer(first, 0, "object") == "saved"
        server.kill()
    with Server(data, "--points", 2, "--annotators", "anna,ben", port=server.port) as again, again.client() as client:
        assert again.token == server.token  # open pages go on
        anna.client = ben.client = client
        assert anna.claim()[0]["target"] == first["target"]
        assert [item["position"] for item in anna.claim()[0]["given"]] == [0]
        assert ben.claim()[0]["target"] == second["target"]
        assert anna.answer(first, 0, "object", id=anna.last) == "known"
        out = again.stop(signal.SIGTERM)  # asked to end: the labels are written all the same
    assert "1 points on 1 objects" in " ".join(out.split())


def test_a_taken_port_other_machines_and_a_second_server(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "d", images=1)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Server(data, "--host", "0.0.0.0", port=port) as server:
            said = "".join(server.said)
            assert f"port {port} is taken; using" in said
            assert f":{port}/" not in server.url
            assert "warning: every machine that reaches" in said
            assert (data / "labelling" / "train.sqlite").stat().st_mode & 0o077 == 0  # it holds the token
            with pytest.raises(AssertionError, match="being labelled by another leanmask annotate"):
                Server(data)


def test_many_people_at_once_lose_double_or_cross_nothing(tmp_path: Path) -> None:
    people, points = 6, 3
    data = write_boxes(tmp_path / "d", images=20)
    names = [f"person{number}" for number in range(people)]
    truth: dict[tuple[int, int], tuple[str, str]] = {}
    lock = threading.Lock()
    with Server(data, "--points", points, "--annotators", ",".join(names)) as server:

        def work(name: str) -> None:
            with server.client() as client:
                person = Person(client, name, f"tab-{name}")
                while units := person.claim(2):
                    for unit in units:
                        for place in range(points):
                            value = ("object", "background")[(unit["target"] + place) % 2]
                            assert person.answer(unit, place, value) == "saved"
                            with lock:
                                assert (unit["target"], place) not in truth
                                truth[unit["target"], place] = (name, value)

        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.stop()
    assert len(truth) == 40 * points
    labels = json.loads((data / "labelling" / "instances_train.json").read_text())
    for row in labels["annotations"]:
        for place, (label, who) in enumerate(zip(row["point_labels"], row["point_provenance"], strict=True)):
            assert (who["annotator"], ("background", "object")[label]) == truth[row["id"], place]


def test_boxes_over_http(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", count=2)
    with Server(photos, "--boxes", "--classes", "cat,dog", "--annotators", "anna") as server, server.client() as client:
        anna = Person(client, "anna")
        unit = anna.claim()[0]
        box = {"box": [1.5, 2.0, 30.0, 40.0], "category_id": 2, "extremes": [[1.5, 9], [9, 2], [31.5, 9], [9, 42]]}
        assert anna.answer(unit, 0, "box", detail=box) == "saved"
        assert anna.claim()[0]["given"][0]["detail"]["box"] == box["box"]
        assert anna.answer(unit, -1, "done", detail={"exhaustive": True}) == "saved"
        assert anna.claim()[0]["target"] != unit["target"]
