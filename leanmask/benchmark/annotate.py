"""`leanmask bench annotate`: how the annotation server bears many people at once, and how fast it starts.

Simulated annotators answer as fast as they can; afterwards every answer is looked up in the store: none may be lost,
doubled or under another name. The server runs in a process of its own, as a user starts it.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from PIL import Image

from leanmask.annotate.source import open_source
from leanmask.annotate.store import Store
from leanmask.benchmark.commit import commit
from leanmask.data.files import write_json

RESULT = "annotate_load.json"
OBJECTS_PER_IMAGE, IMAGE_SIDE_PX = 50, 640
START_TRIALS = 3


@dataclass(frozen=True)
class Load:
    """people: simulated annotators. seconds: for which they answer. objects: of the data set, on few image files."""

    people: int = 20
    seconds: float = 60.0
    objects: int = 100_000


def bench_annotate(results: Path, load: Load = Load()) -> dict[str, Any]:
    """Measure, write `annotate_load.json` into the folder `results`, and return what it holds."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        _write_data(folder, load.objects)
        starts = []
        for _ in range(START_TRIALS):
            with _serving(folder, load) as (_, _, seconds):
                starts.append(seconds)
        with _serving(folder, load) as (port, token, _):
            said, latencies = asyncio.run(_answer_all(port, token, load))
        found = _compare(folder, said)
    latencies.sort()
    measured = {
        "people": load.people,
        "seconds": load.seconds,
        "objects": load.objects,
        "answers": len(latencies),
        "answers_per_second": round(len(latencies) / load.seconds, 1),
        "p50_ms": round(1000 * latencies[len(latencies) // 2], 2),
        "p99_ms": round(1000 * latencies[int(len(latencies) * 0.99)], 2),
        "longest_ms": round(1000 * latencies[-1], 2),
        **found,
        "start_seconds": [round(seconds, 2) for seconds in starts],
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
    }
    write_json(results / RESULT, measured, overwrite=True)
    return measured


def _write_data(folder: Path, objects: int) -> None:
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (IMAGE_SIDE_PX, IMAGE_SIDE_PX), (90, 120, 150)).save(folder / "images" / "0.jpg")
    count = -(-objects // OBJECTS_PER_IMAGE)
    side = {"width": IMAGE_SIDE_PX, "height": IMAGE_SIDE_PX}
    # All records are of one file: the server cannot know, and the disk stays small.
    images = [{"id": number, "file_name": "0.jpg", **side} for number in range(count)]
    rng = random.Random(0)
    rows = []
    for number in range(objects):
        x, y = rng.uniform(0, 500), rng.uniform(0, 500)
        row = {"id": number, "image_id": number // OBJECTS_PER_IMAGE, "category_id": 1 + number % 80}
        rows.append({**row, "bbox": [x, y, rng.uniform(10, 120), rng.uniform(10, 120)], "area": 100, "iscrowd": 0})
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
    content = {"images": images, "annotations": rows, "categories": categories}
    write_json(folder / "annotations" / "instances_train.json", content)


@contextmanager
def _serving(folder: Path, load: Load) -> Iterator[tuple[int, str, float]]:
    """Port and token of a server, and the seconds from its start as a command to its first answer."""
    names = ",".join(_names(load))
    command = [sys.executable, "-m", "leanmask", "annotate", str(folder), "--no-browser", "--annotators", names]
    started = time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        address = next(found for line in process.stderr if (found := re.search(r":(\d+)/\?token=(\S+)", line)))
        port, token = int(address.group(1)), address.group(2)
        try:
            connection = HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/api/state", headers={"authorization": f"Bearer {token}"})
            connection.getresponse().read()
            yield port, token, time.monotonic() - started
        finally:
            process.send_signal(signal.SIGKILL)


def _names(load: Load) -> list[str]:
    return [f"person{number}" for number in range(load.people)]


Said = dict[str, tuple[int, int, str, str]]  # by id of the answer: object, position, value, annotator


async def _answer_all(port: int, token: str, load: Load) -> tuple[Said, list[float]]:
    said: Said = {}
    latencies: list[float] = []
    people = [await _Person.connect(port, token, name) for name in _names(load)]
    end = time.monotonic() + load.seconds
    await asyncio.gather(*(_answer(person, end, said, latencies) for person in people))
    return said, latencies


class _Person:
    """One annotator's connection. In one thread with all others: twenty threads would wait for each other longer than
    for the server, and that would be measured.
    """

    def __init__(self, name: str, token: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.name, self._token, self._reader, self._writer = name, token, reader, writer

    @classmethod
    async def connect(cls, port: int, token: str, name: str) -> _Person:
        return cls(name, token, *await asyncio.open_connection("127.0.0.1", port))

    async def post(self, path: str, **body: Any) -> dict[str, Any]:
        text = json.dumps({"annotator": self.name, "tab": f"tab-{self.name}", **body}).encode()
        headers = f"Host: 127.0.0.1:{self._writer.get_extra_info('peername')[1]}\r\nAuthorization: Bearer {self._token}"
        headers += f"\r\nContent-Type: application/json\r\nContent-Length: {len(text)}"
        self._writer.write(f"POST /api/{path} HTTP/1.1\r\n{headers}\r\n\r\n".encode() + text)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", head)
        assert head.startswith(b"http/1.1 200 "), head
        assert length is not None, head
        response: dict[str, Any] = json.loads(await self._reader.readexactly(int(length.group(1))))
        return response


async def _answer(person: _Person, end: float, said: Said, latencies: list[float]) -> None:
    """Answer point after point, each in a request of its own as the page sends them, until the time is over."""
    number = 0
    while time.monotonic() < end:
        for unit in (await person.post("claim", count=5))["units"]:
            for position in range(len(unit["points"])):
                if time.monotonic() >= end:
                    return
                number += 1
                value = ("object", "background")[(unit["target"] + position) % 2]
                item = {"id": f"{person.name}-{number:08}", "kind": "points", "target": unit["target"]}
                item |= {"position": position, "value": value, "seconds": 0.1}
                before = time.monotonic()
                told = (await person.post("answers", answers=[item]))["results"][0]["status"]
                latencies.append(time.monotonic() - before)
                if told == "saved":
                    said[item["id"]] = (unit["target"], position, value, person.name)


def _compare(folder: Path, said: Said) -> dict[str, int]:
    """Answers that were acknowledged against those in the store."""
    source = open_source(folder)
    store = Store.open(folder / "labelling" / "train.sqlite", source.fingerprint())
    kept = {item.id: (item.target, item.position, item.value, item.annotator) for item in store.answers()}
    store.close()
    questions = [(target, position) for target, position, _, _ in kept.values()]
    return {
        "lost": len(said.keys() - kept.keys()),
        "doubled": len(questions) - len(set(questions)),
        "crossed": sum(kept[key] != value for key, value in said.items() if key in kept),
    }
