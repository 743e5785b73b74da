"""Measures what a large annotation file costs each loader process: the memory-mapped store against plain lists of rows.

Run `python benchmarks/store_memory.py` (Linux; a minute or two and about 6 GB for a million annotations). It prints
JSON: the parent's resident memory, and the growth of every worker's private memory while it reads all images and while
the other workers are alive too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from leanmask.data.coco import AnnotationStore, read_json

MIB = 2**20
VERTICES = 12


def generate(path: Path, annotations: int, per_image: int) -> None:
    """A COCO file of polygons with `VERTICES` corners, row by row."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)
    images = -(-annotations // per_image)
    rows = [{"id": i, "file_name": f"{i:08d}.jpg", "width": 640, "height": 480} for i in range(1, images + 1)]
    with path.open("w") as file:
        file.write(f'{{"images": {json.dumps(rows)}, "categories": [{{"id": 1, "name": "thing"}}], "annotations": [')
        for start in range(0, annotations, per_image):
            count = min(per_image, annotations - start)
            centres, radii = rng.uniform(50, 400, (count, 2)), rng.uniform(5, 40, count)
            corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None, None] + centres[:, None]
            texts = []
            for i, (polygon, (x, y), radius) in enumerate(zip(corners.round(2), centres, radii, strict=True)):
                row = {"id": start + i + 1, "image_id": start // per_image + 1, "category_id": 1, "iscrowd": 0}
                row["bbox"] = [round(x - radius, 2), round(y - radius, 2), round(2 * radius, 2), round(2 * radius, 2)]
                texts.append(json.dumps({**row, "segmentation": [polygon.reshape(-1).tolist()]}))
            file.write((", " if start else "") + ", ".join(texts))
        file.write("]}")


def memory_mib() -> dict[str, float]:
    """This process: resident, proportional and private memory, MiB."""
    fields = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, amount, *_ = line.split()
        fields[name.rstrip(":")] = int(amount) / 1024
    private = fields["Private_Clean"] + fields["Private_Dirty"]
    return {"resident": fields["Rss"], "proportional": fields["Pss"], "private": private}


def read_store(store: AnnotationStore) -> int:
    """Every image of the store; the number of polygon corners seen."""
    return sum(len(part) for record in store for found in record.objects for part in found.segmentation or [])


def read_rows(rows: list[dict[str, Any]]) -> int:
    """The same of plain rows."""
    return sum(len(np.asarray(part).reshape(-1, 2)) for row in rows for part in row["segmentation"])


def _work(read: Callable[[Any], int], data: Any, barrier: Any, queue: Any) -> None:
    barrier.wait()
    before, started = memory_mib(), time.perf_counter()
    corners = read(data)
    seconds = time.perf_counter() - started
    barrier.wait()  # nobody leaves before all have read: pages that are shared are counted as shared
    after = memory_mib()
    barrier.wait()
    growth = {f"{name}_growth_mib": round(after[name] - before[name], 1) for name in after}
    queue.put({**growth, "seconds": round(seconds, 1), "corners": corners})


def workers(count: int, read: Callable[[Any], int], data: Any) -> list[dict[str, float]]:
    """Fork `count` processes that each read all of `data` at the same time."""
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(count), context.Queue()
    started = [context.Process(target=_work, args=(read, data, barrier, queue)) for _ in range(count)]
    for process in started:
        process.start()
    found = [queue.get() for _ in started]
    for process in started:
        process.join()
    return found


def measure(annotations: int, per_image: int, count: int) -> dict[str, Any]:
    """All numbers of one generated file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LEANMASK_CACHE"] = str(folder / "cache")
        path = folder / "instances.json"
        generate(path, annotations, per_image)
        parent, seconds = {"before": memory_mib()["resident"]}, {}
        for when in ("first_open", "second_open"):
            started = time.perf_counter()
            store = AnnotationStore.open(path, folder)
            seconds[when] = round(time.perf_counter() - started, 1)
            parent[f"after_{when}"] = memory_mib()["resident"]
        mapped = workers(count, read_store, store)
        rows = read_json(path)["annotations"]
        parent["with_plain_rows"] = memory_mib()["resident"]
        plain = workers(count, read_rows, rows)
        size = path.stat().st_size / MIB
    return {
        "annotations": annotations,
        "images": len(store),
        "file_mib": round(size, 1),
        "open_seconds": seconds,
        "parent_resident_mib": {key: round(value, 1) for key, value in parent.items()},
        "workers_memory_mapped": mapped,
        "workers_plain_rows": plain,
        "machine": {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotations", type=int, default=1_000_000)
    parser.add_argument("--per-image", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    sys.stdout.write(json.dumps(measure(chosen.annotations, chosen.per_image, chosen.workers), indent=2) + "\n")
