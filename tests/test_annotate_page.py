"""The page in a real browser, and its pure helpers in Node: by keyboard, by touch, two people, reload, a server that is
killed, a slow network. Everything is looked at from outside, through what the page shows and what the server has.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from annotate_helpers import Person, Server, chromium, wait_until, write_boxes, write_photos
from playwright.sync_api import Page, Route
from test_annotate import pseudo_file

STATIC = Path(__file__).parent.parent / "leanmask" / "annotate" / "static"

needs_browser = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine (apt install chromium)")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no Node on this machine")


def shown(page: Page, text: str) -> None:
    page.wait_for_selector(f'#stage[data-shown="{text}"]', timeout=10_000)


def what(page: Page, start: str = "") -> str:
    page.wait_for_selector(f'#stage[data-shown^="{start}"]' if start else "#stage[data-shown]", timeout=10_000)
    return str(page.get_attribute("#stage", "data-shown"))


def answers(server: Server) -> int:
    with server.client() as client:
        return sum(item["answers"] for item in client.get("/api/statistics").json()["speed"])


@needs_browser
def test_a_whole_session_by_keyboard_with_reload_and_undo(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    data = write_boxes(tmp_path / "d", images=2)
    with Server(data, "--points", 3, "--annotators", "anna") as server:
        page = open_page(server.url)
        assert "token" not in page.url  # it does not stay in the address
        first = what(page, "points:")
        page.keyboard.press("f")
        target = first.split(":")[1]
        shown(page, f"points:{target}:1")
        page.keyboard.press("ArrowRight")
        shown(page, f"points:{target}:2")
        page.keyboard.press("Backspace")
        shown(page, f"points:{target}:1")
        page.keyboard.press("Space")  # unsure instead
        shown(page, f"points:{target}:2")
        wait_until(lambda: answers(server) == 2)
        page.reload()
        shown(page, f"points:{target}:2")  # in the middle of the object
        assert page.inner_text("#category") in ("boat", "buoy")
        page.keyboard.press("f")
        for _ in range(6):
            before = what(page, "points:")
            assert before != f"points:{target}:2"
            page.keyboard.press("j")
            page.wait_for_selector(f'#stage:not([data-shown="{before}"])')
        page.keyboard.press("s")  # skip the last object
        shown(page, "nothing")
        assert "Everything is labelled" in page.inner_text("#message")
        wait_until(lambda: answers(server) == 10)
        out = " ".join(server.stop().split())
    assert "8 points on 3 objects, 1 unsure and left out" in out
    rows = json.loads((data / "labelling" / "instances_train.json").read_text())["annotations"]
    row = next(row for row in rows if row["id"] == int(target))
    assert row["point_labels"] == [1, 1]
    assert all(0 < item["seconds"] < 60 for item in row["point_provenance"])


@needs_browser
def test_the_next_point_shows_at_once(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    """The stage changes within the key's own event; the frame after it shows it. No clock, so that no load fails it."""
    with Server(write_boxes(tmp_path / "d", images=2), "--points", 3, "--annotators", "anna") as server:
        page = open_page(server.url)
        before = what(page, "points:")
        page.wait_for_timeout(300)  # the next objects' pictures are loaded ahead
        for _ in range(5):
            page.dispatch_event("body", "keydown", {"key": "f", "bubbles": True})
            after = page.get_attribute("#stage", "data-shown")
            assert after != before
            before = after


@needs_browser
def test_a_phone_by_touch_and_zoomed_in(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    with Server(write_boxes(tmp_path / "d", images=8), "--points", 2, "--annotators", "anna") as server:
        phone = open_page(server.url, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
        what(phone, "points:")
        for name in ("object", "background", "unsure", "undo", "skip"):
            box = phone.locator(f"[data-action={name}]").bounding_box()
            assert box is not None
            assert box["height"] >= 44
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360
            assert box["y"] + box["height"] <= 740
        # 200 % on a laptop is half as many CSS pixels.
        zoomed = open_page(server.url, viewport={"width": 640, "height": 360}, device_scale_factor=2)
        what(zoomed, "points:")
        for name in ("object", "zoom"):
            assert zoomed.locator(f"#{name}").bounding_box()["height"] > 120
        zoomed.locator("[data-action=object]").scroll_into_view_if_needed()
        assert zoomed.locator("[data-action=object]").is_visible()


PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


@needs_browser
def test_a_whole_session_by_touch(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    data = write_boxes(tmp_path / "d", images=1)
    with Server(data, "--points", 2, "--annotators", "anna") as server:
        page = open_page(server.url, **PHONE)
        target = what(page, "points:").split(":")[1]
        for name, place in (("object", 1), ("undo", 0), ("background", 1)):
            page.tap(f"[data-action={name}]")
            shown(page, f"points:{target}:{place}")
        page.tap("[data-action=unsure]")
        page.wait_for_selector('#stage[data-shown^="points:"][data-shown$=":0"]')  # the other object
        page.tap("[data-action=skip]")
        shown(page, "nothing")
        assert "Everything is labelled" in page.inner_text("#message")
        page.tap("#choices button")  # takes the skip back
        page.wait_for_selector('#stage[data-shown^="points:"][data-shown$=":0"]')
        page.tap("[data-action=object]")
        page.wait_for_selector('#stage[data-shown^="points:"][data-shown$=":1"]')
        page.tap("[data-action=object]")
        shown(page, "nothing")
        wait_until(lambda: answers(server) == 4)
        out = " ".join(server.stop().split())
    assert "3 points on 2 objects, 1 unsure and left out" in out
    rows = json.loads((data / "labelling" / "instances_train.json").read_text())["annotations"]
    assert {row["id"]: row["point_labels"] for row in rows}[int(target)] == [0]
    assert sorted(row["point_labels"] for row in rows) == [[0], [1, 1]]


@needs_browser
def test_boxes_by_touch(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    photos = write_photos(tmp_path / "photos", count=1, size=(300, 400))
    with Server(photos, "--boxes", "--classes", "cat,dog,cow", "--annotators", "anna") as server:
        page = open_page(server.url, **PHONE)
        what(page, "boxes:")
        for x, y in ((100, 150), (150, 100), (200, 150), (150, 220)):
            canvas = page.locator("#object").bounding_box()  # the line above it may be longer now
            scale = min(canvas["width"] / 400, canvas["height"] / 300)
            left = canvas["x"] + (canvas["width"] - 400 * scale) / 2
            top = canvas["y"] + (canvas["height"] - 300 * scale) / 2
            page.touchscreen.tap(left + x * scale, top + y * scale)
        page.get_by_role("option", name="dog").tap()
        page.wait_for_selector('#stage[data-shown$=":1"]')
        page.tap("[data-action=done]")
        shown(page, "nothing")
        wait_until(lambda: answers(server) == 2)
        server.stop()
    (row,) = json.loads((photos / "labelling" / "instances_train.json").read_text())["annotations"]
    assert row["category_id"] == 2
    assert row["bbox"] == pytest.approx([100, 100, 100, 120], abs=2 / scale)


@needs_browser
def test_two_people_and_two_tabs(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    with Server(write_boxes(tmp_path / "d", images=8), "--points", 2, "--annotators", "anna,ben") as server:
        anna, ben = open_page(server.url), open_page(server.url)
        for page, name in ((anna, "anna"), (ben, "ben")):
            page.get_by_role("button", name=name).click()
        one, other = what(anna, "points:"), what(ben, "points:")
        assert one.split(":")[1] != other.split(":")[1]
        tab = anna.context.new_page()
        tab.goto(server.url)
        tab.get_by_role("button", name="anna").click()
        assert what(tab, "points:").split(":")[1] not in (one.split(":")[1], other.split(":")[1])
        for page in (anna, ben, tab):
            before = what(page)
            page.keyboard.press("f")
            page.wait_for_selector(f'#stage:not([data-shown="{before}"])')
        wait_until(lambda: answers(server) == 3)


@needs_browser
def test_a_killed_server_and_a_slow_network_lose_nothing(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    data = write_boxes(tmp_path / "d", images=2)
    arguments = (data, "--points", 4, "--annotators", "anna")
    with Server(*arguments) as server:
        page = open_page(server.url)
        what(page, "points:")
        page.keyboard.press("f")
        wait_until(lambda: answers(server) == 1)
        server.kill()
        for key in ("f", "j"):
            page.keyboard.press(key)
        page.wait_for_selector("#sync[data-state=waiting]")
        assert "2 kept here" in page.inner_text("#sync")
    with Server(*arguments, port=server.port) as again:
        wait_until(lambda: answers(again) == 3, 20)
        page.wait_for_selector("#sync[data-state=fine]")

        def slowly(route: Route) -> None:
            page.wait_for_timeout(150)
            route.continue_()

        for slow in ("**/api/answers", "**/api/pictures/**"):
            page.route(slow, slowly)
        page.reload()
        page.wait_for_selector('#stage[data-shown$=":3"]')
        page.keyboard.press("j")
        page.wait_for_selector('#stage[data-shown^="points:"][data-shown$=":0"]')  # the next object
        page.keyboard.press("f")
        for _ in range(100):  # routes are served while the page waits
            page.wait_for_timeout(50)
            if answers(again) == 5:
                break
        again.stop()
    rows = json.loads((data / "labelling" / "instances_train.json").read_text())["annotations"]
    assert sorted(len(row.get("point_labels", ())) for row in rows) == [0, 0, 1, 4]
    assert [1, 1, 0, 0] in [row.get("point_labels") for row in rows]


@needs_browser
def test_missing_and_damaged_images_are_left_out(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    data = write_boxes(tmp_path / "d", images=3, objects=1)
    (data / "images" / "001.png").unlink()
    (data / "images" / "002.png").write_bytes(b"\x89PNG no more")
    with Server(data, "--points", 1, "--annotators", "anna") as server:
        page = open_page(server.url)
        shown(page, "points:300:0")
        page.keyboard.press("f")
        shown(page, "nothing")
        assert "2 images or objects cannot be shown" in page.inner_text("#message")


@needs_browser
def test_boxes_by_mouse_and_by_keyboard(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    photos = write_photos(tmp_path / "photos", count=2, size=(300, 400))
    with Server(photos, "--boxes", "--classes", "cat,dog,cow", "--annotators", "anna") as server:
        page = open_page(server.url)
        what(page, "boxes:")
        canvas = page.locator("#object").bounding_box()
        scale = min(canvas["width"] / 400, canvas["height"] / 300)
        left, top = (
            canvas["x"] + (canvas["width"] - 400 * scale) / 2,
            canvas["y"] + (canvas["height"] - 300 * scale) / 2,
        )
        for x, y in ((100, 150), (150, 100), (200, 150), (150, 220)):
            page.mouse.click(left + x * scale, top + y * scale)
        page.keyboard.type("do")
        page.keyboard.press("Enter")
        page.wait_for_selector('#stage[data-shown$=":1"]')
        for key, presses in (("ArrowLeft", 3), ("ArrowUp", 3), ("ArrowRight", 5), ("ArrowDown", 5)):
            for _ in range(presses):
                page.keyboard.press(f"Shift+{key}")
            page.keyboard.press("Enter")
        page.keyboard.press("Enter")  # the class that was used last
        page.wait_for_selector('#stage[data-shown$=":2"]')
        page.keyboard.press("Backspace")  # takes the second box back
        page.wait_for_selector('#stage[data-shown$=":1"]')
        page.keyboard.press("d")
        what(page, "boxes:")
        wait_until(lambda: answers(server) == 2)
        server.stop()
    labels = json.loads((photos / "labelling" / "instances_train.json").read_text())
    (row,) = labels["annotations"]
    assert row["category_id"] == 2
    assert row["bbox"] == pytest.approx([100, 100, 100, 120], abs=2 / scale)


@needs_browser
def test_review_by_keyboard(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    data = write_boxes(tmp_path / "d", images=1)
    with Server(data, "--review", pseudo_file(data, tmp_path), "--annotators", "anna") as server:
        page = open_page(server.url)
        shown(page, "review:5:0")
        plain = page.locator("#object").screenshot()
        page.keyboard.press("m")
        page.wait_for_timeout(50)
        assert page.locator("#object").screenshot() != plain  # the overlay is off
        page.keyboard.press("a")
        shown(page, "review:4:0")
        page.keyboard.press("r")
        shown(page, "review:3:0")
        page.keyboard.press("c")
        page.keyboard.type("buo")
        page.keyboard.press("Enter")
        shown(page, "review:2:0")
        page.keyboard.press("x")
        shown(page, "review:1:0")
        wait_until(lambda: answers(server) == 4)
        out = " ".join(server.stop().split())
    assert "1 accept, 1 cuts off, 1 reject, 1 wrong class" in out


@needs_browser
def test_everything_has_a_name_and_comes_from_here(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    asked: list[str] = []
    with Server(write_boxes(tmp_path / "d", images=1), "--points", 1, "--annotators", "anna") as server:
        page = open_page("about:blank")
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.url)
        what(page, "points:")
        assert all(url.startswith(server.base) for url in asked)
        for canvas in ("#object", "#zoom"):
            assert len(page.get_attribute(canvas, "aria-label")) > 10
        names = [button.get_attribute("aria-keyshortcuts") for button in page.locator("#actions button").all()]
        assert all(names)
        page.keyboard.press("?")
        assert "Background" in page.inner_text("#keys")
        page.keyboard.press("Escape")


NODE_TESTS = """
import assert from "node:assert/strict";
import { around, boxOf, fit, onto, toCanvas, toImage } from "STATIC/geometry.js";
import { Stopwatch, duration, median } from "STATIC/timing.js";
import { Outbox, batchOf, newId } from "STATIC/outbox.js";
import { matching } from "STATIC/chooser.js";

// Scales: there and back is exact enough for a thousandth of a pixel, on any view and screen.
for (let trial = 0; trial < 500; trial += 1) {
  const [r, s, t, u] = Array.from({ length: 4 }, Math.random);
  const view = [Math.floor(r * 2e4), Math.floor(s * 2e4), 1 + Math.floor(t * 5000), 1 + Math.floor(u * 5000)];
  const frame = fit(view, 200 + 1800 * s, 100 + 1200 * r);
  const [x, y] = [view[0] + t * view[2], view[1] + u * view[3]];
  const [a, b] = toImage(frame, ...toCanvas(frame, x, y));
  assert.ok(Math.abs(a - x) < 1e-3 && Math.abs(b - y) < 1e-3);
  const zoom = around(x, y, 5 + 100 * r, view[0] + view[2], view[1] + view[3]);
  assert.ok(zoom[0] >= 0 && zoom[1] >= 0);
  assert.ok(zoom[0] + zoom[2] <= view[0] + view[2] && zoom[1] + zoom[3] <= view[1] + view[3]);
  assert.ok(zoom[0] <= x && x <= zoom[0] + zoom[2] && zoom[1] <= y && y <= zoom[1] + zoom[3]);
}
assert.deepEqual(toCanvas(fit([10, 20, 100, 50], 200, 200), 10, 20), [0, 50]);
assert.deepEqual(boxOf([[1, 5], [3, 2], [9, 4], [4, 8]]), [1, 2, 8, 6]);
assert.deepEqual(onto(-3, 99, 10, 20), [0, 20]);

// Time: hidden seconds and pauses do not count.
let now = 0;
const watch = new Stopwatch(() => now);
now = 1000; watch.hide(); now = 9000; watch.unhide(); now = 9500;
assert.equal(watch.lap(), 1.5);
watch.show(); now += 120000; watch.lap();
assert.equal(watch.median(), 1.5);
assert.equal(median([]), null);
assert.equal(median([4, 1, 3, 2]), 2.5);
assert.deepEqual([40, 720, 12000, 864000].map(duration), ["40 s", "12 min", "3 h 20 min", "10 days"]);

// The outbox: in order, nothing lost when sending fails or the page is closed, nothing sent twice at the same time.
class Storage {
  constructor() { this.map = new Map(); }
  get length() { return this.map.size; }
  key(place) { return [...this.map.keys()][place]; }
  getItem(key) { return this.map.get(key) ?? null; }
  setItem(key, value) { this.map.set(key, value); }
  removeItem(key) { this.map.delete(key); }
}
const storage = new Storage();
const sent = [];
let broken = true;
const later = [];
const send = async (entries) => {
  if (broken) throw new Error("offline");
  sent.push(...entries.map((entry) => entry.id));
};
const make = (tab, given = {}) => new Outbox({
  storage, prefix: "p", tab, send, wait: (call) => later.push(call), ...given,
});
const turn = async () => { for (const call of later.splice(0)) { await call(); } await new Promise(setImmediate); };
const box = make("one");
for (const id of ["a", "b"]) box.add({ id, annotator: "anna", tab: "one" });
await turn();
assert.deepEqual(sent, []);
assert.equal(JSON.parse(storage.getItem("p:one")).length, 2);
const other = make("two"); // the first tab was closed; another one finds what it left
broken = false;
other.add({ id: "c", annotator: "anna", tab: "two" });
other.adopt();
for (let round = 0; round < 6; round += 1) await turn();
assert.deepEqual(new Set(sent), new Set(["a", "b", "c"]));
assert.ok(sent.indexOf("a") < sent.indexOf("b"));
assert.equal(storage.getItem("p:two"), null);
storage.setItem("p:three", "no json");
assert.deepEqual(make("three").entries, []);
const anna = (id) => ({ id, annotator: "anna", tab: "t" });
const taken = { id: "y", undo: true, annotator: "anna", tab: "t" };
assert.deepEqual(batchOf([anna("x"), taken, anna("z")]).length, 1);
assert.deepEqual(batchOf([taken, anna("z")]), [taken]);
assert.equal(batchOf(Array.from({ length: 80 }, (_, place) => anna(String(place)))).length, 50);
assert.match(newId(), /^[0-9a-f]{32}$/);

// What is put in front while a request is on its way is sent as well.
storage.map.clear();
storage.setItem("p:closed", JSON.stringify([anna("early")]));
sent.length = 0;
const joining = make("joining");
joining.add(anna("late"));
joining.adopt();
for (let round = 0; round < 3; round += 1) await turn();
assert.deepEqual(new Set(sent), new Set(["early", "late"]));

// What is refused stays in the browser and stops nobody else; several sent together are refused one by one.
storage.map.clear();
let allowed = ["anna"];
const accepted = [];
const strict = async (entries) => {
  if (!allowed.includes(entries[0].annotator)) throw Object.assign(new Error("none of them"), { status: 403 });
  if (entries.some((entry) => entry.id === "malformed")) throw Object.assign(new Error("no"), { status: 422 });
  if (entries[0].undo) return [];
  accepted.push(...entries.map((entry) => entry.id).filter((id) => id !== "gone"));
  return entries.map(({ id }) => ({ id, status: id === "gone" ? "refused" : "saved", reason: "no image" }));
};
const told = [];
const open = async (tab) => {
  const made = make(tab, { send: strict, refused: (reason) => told.push(reason) });
  made.adopt();
  for (let round = 0; round < 9; round += 1) await turn();
  return made;
};
const kept = () => JSON.parse(storage.getItem("p-refused") ?? "[]").map((entry) => entry.id);
const bens = { ...anna("bens"), annotator: "ben" };
storage.setItem("p:old", JSON.stringify([bens, anna("a1"), anna("malformed"), anna("a2")]));
const first = await open("first");
assert.deepEqual(accepted, ["a1", "a2"]);
assert.deepEqual(kept(), ["bens", "malformed"]);
assert.deepEqual(told, ["none of them", "no"]);
assert.deepEqual(later, []);
first.add(anna("gone"));
first.add(anna("a3"));
for (let round = 0; round < 3; round += 1) await turn();
assert.deepEqual(accepted, ["a1", "a2", "a3"]);
assert.deepEqual(kept(), ["bens", "malformed", "gone"]);
assert.equal(storage.getItem("p:first"), null);
first.add({ id: "gone", undo: true, annotator: "anna", tab: "t" }); // taken back: not offered again
await turn();
assert.deepEqual(kept(), ["bens", "malformed"]);
allowed = ["anna", "ben"];
await open("second");
assert.deepEqual(accepted, ["a1", "a2", "a3", "bens"]);
assert.deepEqual(kept(), ["malformed"]);

const classes = ["Dog", "hot dog", "cat"].map((name, id) => ({ id, name }));
assert.deepEqual(matching(classes, "dog").map((item) => item.name), ["Dog", "hot dog"]);
assert.deepEqual(matching(classes, "").length, 3);
assert.deepEqual(matching(classes, "x"), []);
"""


@needs_node
def test_pure_helpers(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copytree(STATIC, tmp_path / "static")
    (tmp_path / "test.js").write_text(NODE_TESTS.replace("STATIC", "./static"))
    done = subprocess.run(["node", "test.js"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@needs_browser
@pytest.mark.parametrize(
    ("names", "head"), [("anna", "Nothing is left for you here"), ("anna,ben", "Others are working")]
)
def test_who_is_alone_is_not_told_of_others(
    tmp_path: Path, open_page: Callable[..., Page], names: str, head: str
) -> None:
    with Server(write_boxes(tmp_path / "d", images=1, objects=1), "--points", 1, "--annotators", names) as server:
        with server.client() as client:
            assert Person(client, "anna", "tab-99999999").claim(1)  # in another tab
        page = open_page(server.url)
        if names != "anna":
            page.get_by_role("button", name="anna").click()
        shown(page, "nothing")
        assert head in page.inner_text("#message")
