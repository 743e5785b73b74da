"""Embeddings of a pool of images on disk, made by any number of processes, each into a file of its own; a kill loses
one batch at most. Letters: N images, V vectors of each, D numbers of a vector.
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
BLANK_PX = (256, 256)  # a picture that tells how long vectors are
CENTRED_ON = (32, 65_536)  # rows, at least and at most, whose mean is a pool's centre


@dataclass(frozen=True)
class Pool:
    """The images of a pool in a fixed order, and the folder of their embeddings: N * V rows, those of an image one
    after the other. rank, world: this process, of all. vectors: V, the embedder's.
    """

    paths: tuple[Path, ...]
    folder: Path
    rank: int = 0
    world: int = 1
    vectors: int = 1

    @property
    def rows(self) -> int:
        return len(self) * self.vectors

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, rank: int) -> Path:
        """Rows of one process, raw float32: those of images rank, rank + world, ..."""
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
    dimension = embedder([Image.new("RGB", BLANK_PX)]).shape[2]
    image_bytes = NUMBER_BYTES * pool.vectors * dimension
    path = pool.file(pool.rank)
    done = path.stat().st_size // image_bytes if path.is_file() else 0
    try:
        with path.open("ab") as file:
            file.truncate(done * image_bytes)
            for start in range(done, len(mine), batch_size):
                file.write(
                    _embed_files(mine[start : start + batch_size], embedder, (pool.vectors, dimension)).tobytes()
                )
                file.flush()
                on_progress(min((start + batch_size) * pool.world, len(pool)), len(pool))
    except OSError as error:
        raise RunError(f"cannot write {path}: {why(error)}; what is there is kept, the same command goes on") from None
    return dimension


def _embed_files(paths: Sequence[Path], embedder: Embedder, shape: tuple[int, int]) -> FloatArray:
    """(n, V, D). shape: V, D."""
    found = [(place, read_upright(path)) for place, path in enumerate(paths)]
    readable = [(place, picture) for place, picture in found if picture is not None]
    vectors = np.zeros((len(paths), *shape), dtype=np.float32)
    if readable:
        vectors[[place for place, _ in readable]] = embedder([picture for _, picture in readable])
    return vectors


def read_chunks(pool: Pool, dimension: int) -> Iterator[FloatArray]:
    """All rows in the order of the images, in chunks (n, D)."""
    for start in range(0, pool.rows, CHUNK):
        yield read_rows(pool, dimension, np.arange(start, min(start + CHUNK, pool.rows)))


def read_rows(pool: Pool, dimension: int, places: IntArray) -> FloatArray:
    """(n, D) the rows at `places` (n,); row i is of image i // V. Raises RunError when their file is gone or cut."""
    rows = np.zeros((len(places), dimension), dtype=np.float32)
    images, vectors = np.divmod(places, pool.vectors)
    for rank in range(pool.world):
        own = images % pool.world == rank
        if not own.any():
            continue
        try:
            stored = np.memmap(pool.file(rank), dtype=np.float32, mode="r").reshape(-1, pool.vectors, dimension)
            rows[own] = stored[images[own] // pool.world, vectors[own]]
        except (OSError, ValueError, IndexError) as error:
            reason = why(error) if isinstance(error, OSError) else "it is cut short"
            raise RunError(
                f"cannot read embeddings from {pool.file(rank)}: {reason}; the same command makes what is missing anew"
            ) from None
    return rows


def centre_of(pool: Pool, dimension: int) -> FloatArray:
    """(D,) mean vector of the pool, or of rows all over a very large one, without those of nothing; zeros where there
    are too few to say what is common to all.
    """
    rows = read_rows(pool, dimension, np.linspace(0, pool.rows - 1, min(pool.rows, CENTRED_ON[1])).astype(np.int64))
    rows = rows[rows.any(axis=1)]
    if len(rows) < CENTRED_ON[0]:
        return np.zeros(dimension, dtype=np.float32)
    centre: FloatArray = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    return centre
