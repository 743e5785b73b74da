"""Embeddings of a pool of images on disk, made by any number of processes, each into a file of its own; a kill loses
one batch at most. Letters: N images, D numbers of an embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from leanmask.data.files import read_json, why, write_json
from leanmask.errors import ConfigError, RunError
from leanmask.retrieval.embed import Embedder, read_upright
from leanmask.retrieval.index import CHUNK, FloatArray, IntArray

WORK_FILE = "embeddings.json"
NUMBER_BYTES = 4
CENTRED_ON = (32, 65_536)  # images, at least and at most, whose mean is a pool's centre


@dataclass(frozen=True)
class Pool:
    """The images of a pool in a fixed order, and the folder of their embeddings. rank, world: this process, of all."""

    paths: tuple[Path, ...]
    folder: Path
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, rank: int) -> Path:
        """Rows of one process, raw float32: images rank, rank + world, ..."""
        return self.folder / f"embeddings-{rank + 1}-of-{self.world}.f32"


def claim(pool: Pool, embedder: Embedder) -> None:
    """Say in the folder whose embeddings these are. Raises ConfigError when they are another model's or another pool's,
    so that vectors that mean different things never meet.
    """
    paths = hashlib.blake2b("\n".join(map(str, pool.paths)).encode(), digest_size=16).hexdigest()
    wanted: dict[str, Any] = {"model": embedder.name, "images": len(pool), "paths": paths, "processes": pool.world}
    if not (pool.folder / WORK_FILE).is_file():
        write_json(pool.folder / WORK_FILE, wanted)
        return
    found = read_json(pool.folder / WORK_FILE)
    kinds = (("model", "another model"), ("paths", "other images"), ("processes", "another number of processes"))
    for key, what in kinds:
        if found.get(key) != wanted[key]:
            raise ConfigError(
                f"{pool.folder} holds embeddings of {what} ({found.get(key)}, now {wanted[key]}); name another "
                "--index, or remove that folder"
            )


def embed_pool(pool: Pool, embedder: Embedder, batch_size: int, on_progress: Callable[[int, int], None]) -> int:
    """Embed this process's images, from where an earlier start ended; returns D. Memory holds one batch.

    A file that cannot be read gets zeros, which are like nothing. Raises RunError when the disk is full.
    """
    mine = pool.paths[pool.rank :: pool.world]
    dimension = embedder([Image.new("RGB", (embedder.side_px,) * 2)]).shape[1]
    path = pool.file(pool.rank)
    done = path.stat().st_size // (NUMBER_BYTES * dimension) if path.is_file() else 0
    try:
        with path.open("ab") as file:
            file.truncate(done * NUMBER_BYTES * dimension)
            for start in range(done, len(mine), batch_size):
                file.write(_embed_files(mine[start : start + batch_size], embedder, dimension).tobytes())
                file.flush()
                on_progress(min((start + batch_size) * pool.world, len(pool)), len(pool))
    except OSError as error:
        raise RunError(f"cannot write {path}: {why(error)}; what is there is kept, the same command goes on") from None
    return dimension


def _embed_files(paths: Sequence[Path], embedder: Embedder, dimension: int) -> FloatArray:
    found = [(place, read_upright(path)) for place, path in enumerate(paths)]
    readable = [(place, picture) for place, picture in found if picture is not None]
    vectors = np.zeros((len(paths), dimension), dtype=np.float32)
    if readable:
        vectors[[place for place, _ in readable]] = embedder([picture for _, picture in readable])
    return vectors


def read_chunks(pool: Pool, dimension: int) -> Iterator[FloatArray]:
    """All embeddings in the order of the images, in chunks."""
    for start in range(0, len(pool), CHUNK):
        yield read_rows(pool, dimension, np.arange(start, min(start + CHUNK, len(pool))))


def read_rows(pool: Pool, dimension: int, places: IntArray) -> FloatArray:
    """(n, D) embeddings of the images at `places` (n,)."""
    rows = np.zeros((len(places), dimension), dtype=np.float32)
    for rank in range(pool.world):
        own = places % pool.world == rank
        if own.any():
            stored = np.memmap(pool.file(rank), dtype=np.float32, mode="r").reshape(-1, dimension)
            rows[own] = stored[places[own] // pool.world]
    return rows


def centre_of(pool: Pool, dimension: int) -> FloatArray:
    """(D,) mean embedding of the pool, or of images all over a very large one, without those that cannot be read; zeros
    where there are too few to say what is common to all.
    """
    rows = read_rows(pool, dimension, np.linspace(0, len(pool) - 1, min(len(pool), CENTRED_ON[1])).astype(np.int64))
    rows = rows[rows.any(axis=1)]
    if len(rows) < CENTRED_ON[0]:
        return np.zeros(dimension, dtype=np.float32)
    centre: FloatArray = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    return centre
