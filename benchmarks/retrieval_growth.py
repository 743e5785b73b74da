"""How retrieval grows: index size, memory and seconds for synthetic vectors of 384 numbers.

    python benchmarks/retrieval_growth.py 10000 100000 1000000 [--out benchmarks/results/retrieval_growth.json]

For every size one process builds the index from chunks, another opens it from disk and searches 1,000 queries for their
64 neighbours. Reports seconds (wall clock, and processor time of all threads), the index's bytes, and the largest
resident memory of the search in multiples of the vectors; adds rows to the file, one per size.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from leanmask.benchmark.commit import commit
from leanmask.devices import machine
from leanmask.retrieval.index import CHUNK, FloatArray, build_index, open_index

DIMENSION, QUERIES, NEIGHBOURS = 384, 1000, 64


def vectors(count: int) -> Iterator[FloatArray]:
    """Random vectors in chunks, so that no process holds them twice."""
    rng = np.random.default_rng(0)
    for start in range(0, count, CHUNK):
        yield rng.standard_normal((min(CHUNK, count - start), DIMENSION), dtype=np.float32)


def build(count: int, folder: Path, told: Any) -> None:
    """Seconds to make vectors and index."""
    start = time.perf_counter()
    about = build_index(vectors(count), ("synthetic", count, DIMENSION), folder)
    told.put({"kind": about.kind, "build_seconds": round(time.perf_counter() - start, 2)})


def search(folder: Path, told: Any) -> None:
    """Seconds of the search, and resident memory above that of the process before it."""
    queries = np.random.default_rng(1).standard_normal((QUERIES, DIMENSION), dtype=np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index = open_index(folder)
    start, cpu = time.perf_counter(), time.process_time()
    index.search(queries, NEIGHBOURS, "synthetic")
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    told.put({"search_seconds": round(seconds, 3), "search_cpu_seconds": round(cpu, 3), "search_bytes": grown})


def measure(count: int) -> dict[str, Any]:
    """One row."""
    context = multiprocessing.get_context("spawn")
    row: dict[str, Any] = {"vectors": count, "dimension": DIMENSION, "queries": QUERIES, "neighbours": NEIGHBOURS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for target, arguments in ((build, (count, folder)), (search, (folder,))):
            told = context.Queue()
            process = context.Process(target=target, args=(*arguments, told))
            process.start()
            row |= told.get()
            process.join()
        row["index_bytes"] = sum(file.stat().st_size for file in folder.iterdir())
    row["memory_over_vectors"] = round(row.pop("search_bytes") / (count * DIMENSION * 4), 3)
    return {**row, "commit": commit(), "machine": machine()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="+", type=int)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/retrieval_growth.json"))
    given = parser.parse_args()
    for count in given.sizes:
        rows = json.loads(given.out.read_text()) if given.out.is_file() else []
        row = measure(count)
        rows = [*(each for each in rows if each["vectors"] != count), row]
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(sorted(rows, key=lambda each: each["vectors"]), indent=1) + "\n")
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
