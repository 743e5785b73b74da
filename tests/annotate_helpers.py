"""The annotation server as a subprocess, a client for it, and small data sets to label."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
from PIL import Image

START_SECONDS = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`leanmask annotate` in a process of its own."""

    def __init__(self, *arguments: object, port: int | None = None) -> None:
        self.port = port or free_port()
        command = [sys.executable, "-m", "leanmask", "annotate", *map(str, arguments)]
        self.process = subprocess.Popen(
            [*command, "--no-browser", "--port", str(self.port)],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.said: list[str] = []
        self.url = self._wait()

    def _wait(self) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            found = re.search(r"labelling page: (\S+)", line)
            if found:
                return found.group(1)
        raise AssertionError("".join(self.said))

    @property
    def token(self) -> str:
        return self.url.rpartition("token=")[2]

    @property
    def base(self) -> str:
        return self.url.partition("/?")[0]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.base, headers={"authorization": f"Bearer {self.token}"}, timeout=10)

    def stop(self, how: int = signal.SIGINT) -> str:
        """End the server; what it printed at its end."""
        self.process.send_signal(how)
        out, messages = self.process.communicate(timeout=START_SECONDS)
        self.said.append(messages)
        return out

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.stop(signal.SIGKILL)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


@dataclass
class Person:
    """Somebody who labels through the interface."""

    client: httpx.Client
    name: str
    tab: str = "tab-00000001"
    sent: int = 0

    def claim(self, count: int = 1) -> list[dict[str, Any]]:
        return list(self._post("claim", count=count)["units"])

    def answer(self, unit: dict[str, Any], position: int, value: str, **given: Any) -> str:
        self.sent += 1
        item = {
            "id": given.pop("id", f"{self.name}-{self.tab}-{self.sent:06}"),
            "kind": unit["kind"],
            "target": unit["target"],
            "position": position,
            "value": value,
            "seconds": given.pop("seconds", 0.8),
            "detail": given.pop("detail", None),
        }
        self.last = item["id"]
        return str(self._post("answers", answers=[item])["results"][0]["status"])

    def undo(self, answer_id: str) -> str:
        return str(self._post("undo", id=answer_id)["status"])

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        response = self.client.post(f"/api/{path}", json={"annotator": self.name, "tab": self.tab, **body})
        assert response.status_code == 200, response.text
        return dict(response.json())


def write_boxes(folder: Path, images: int = 6, objects: int = 2, size: tuple[int, int] = (120, 160)) -> Path:
    """A COCO data set of photographs-to-be with bright blobs in boxes, two classes; no masks. Returns its folder."""
    height, width = size
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    rng = np.random.default_rng(0)
    rows, listed = [], []
    for number in range(1, images + 1):
        pixels = rng.integers(40, 110, (height, width, 3), dtype=np.uint8)
        for place in range(objects):
            x, y = 10 + 70 * place, 20 + 3 * number
            pixels[y : y + 40, x : x + 50] = (230, 180, 60) if place % 2 else (60, 160, 230)
            row = {"id": 100 * number + place, "image_id": number, "category_id": 3 + place % 2}
            rows.append({**row, "bbox": [x, y, 50, 40], "area": 2000, "iscrowd": 0})
        Image.fromarray(pixels).save(folder / "images" / f"{number:03}.png")
        listed.append({"id": number, "file_name": f"{number:03}.png", "width": width, "height": height})
    write_annotations(folder, listed, rows)
    return folder


def write_annotations(folder: Path, images: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    categories = [{"id": 3, "name": "boat"}, {"id": 4, "name": "buoy"}]
    corners = [(row, *row["bbox"]) for row in rows]
    masked = [{**row, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]} for row, x, y, w, h in corners]
    for split, part in (("train", rows), ("val", masked)):
        content = {"images": images, "annotations": part, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def write_photos(folder: Path, count: int = 5, size: tuple[int, int] = (90, 120)) -> Path:
    """A plain folder of images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"photo{number}.jpg")
    return folder


def chromium() -> str | None:
    """The browser that the page is tested in, None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
