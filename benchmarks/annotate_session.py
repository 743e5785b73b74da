"""A scripted person labels points in the real page by keyboard: seconds per answer, and from the key to the next point.

    python benchmarks/annotate_session.py --answers 300 --think 0.3 --out benchmarks/results/annotate_session.json

The person thinks for `--think` seconds and presses a key; what is above that in the seconds per answer, which the page
measures itself and the server reports, is the tool. Needs Playwright and a Chromium (its path as `--browser`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from typing import Any

from playwright.sync_api import Page, sync_playwright

from leanmask.benchmark.commit import commit
from leanmask.data.digits import DigitsSpec, write_digits
from leanmask.data.splits import split

POINTS = 10
# Milliseconds from the key's event until the page has drawn the frame that shows another point.
PRESS = """key => new Promise(done => {
  const stage = document.querySelector('#stage'), before = stage.dataset.shown, start = performance.now();
  const look = () => stage.dataset.shown === before
    ? requestAnimationFrame(look)
    : requestAnimationFrame(() => done(performance.now() - start));
  document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
  look();
})"""
SPEED = "() => fetch('/api/statistics').then(answer => answer.json())"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=300)
    parser.add_argument("--think", type=float, default=0.3)
    parser.add_argument("--browser", default=shutil.which("chromium"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _serving(Path(folder), options.answers) as url:
        result = measure(url, options.browser, options.answers, options.think)
    text = json.dumps(result, indent=1)
    sys.stdout.write(text + "\n")
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


def measure(url: str, browser: str, answers: int, think: float) -> dict[str, Any]:
    """Answer so many points in the page at `url`."""
    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = window.new_page(viewport={"width": 1280, "height": 720})
        page.goto(url)
        page.wait_for_selector('#stage[data-shown^="points:"]')
        shown_ms: list[float] = []
        next_object_ms: list[float] = []
        for number in range(answers):
            page.wait_for_timeout(1000 * think)
            took = page.evaluate(PRESS, "fj"[number % 2])
            (next_object_ms if number % POINTS == POINTS - 1 else shown_ms).append(took)
        seconds = _seconds(page, answers)
        window.close()
    return {
        "answers": answers,
        "think_seconds": think,
        "seconds_per_answer_median": round(seconds, 3),
        "key_to_next_point_ms": _spread(shown_ms),
        "key_to_next_object_ms": _spread(next_object_ms),
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
    }


def _seconds(page: Page, answers: int) -> float:
    """What the server says when every answer is there."""
    for _ in range(100):
        (person,) = page.evaluate(SPEED)["speed"]
        if person["answers"] == answers:
            return float(person["median_seconds"])
        page.wait_for_timeout(100)
    raise SystemExit(f"{person['answers']} of {answers} answers arrived")


def _spread(milliseconds: list[float]) -> dict[str, float]:
    ordered = sorted(milliseconds)
    worst = {"p99": round(ordered[int(0.99 * len(ordered))], 1), "longest": round(ordered[-1], 1)}
    return {"mean": round(mean(ordered), 1), "median": round(median(ordered), 1), **worst}


@contextmanager
def _serving(folder: Path, answers: int) -> Iterator[str]:
    """Address of the page on digits with boxes, with objects for at least so many answers."""
    images = max(answers // POINTS, 1)
    write_digits(folder / "digits", DigitsSpec(train=images, tune=1, val=1))
    split(folder / "digits", folder / "boxes", "boxes")
    command = [sys.executable, "-m", "leanmask", "annotate", str(folder / "boxes"), "--points", str(POINTS)]
    command += ["--no-browser", "--annotators", "anna"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        try:
            yield next(found.group(1) for line in process.stderr if (found := re.search(r"page: (\S+)", line)))
        finally:
            process.send_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
