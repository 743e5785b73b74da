"""Nearest neighbours among very many embeddings: an index on disk, exact up to a million vectors, approximate beyond.

Vectors are compared by cosine similarity, about the pool's centre where one is given: the features of many networks all
point nearly the same way, and then every picture is like every other. The approximate index is faiss's, an optional
extra (`pip install leanmask[retrieval]`), imported when it is needed. The exact one is a file of vectors and a product
of matrices, which needs no extra. Letters: N vectors of D numbers, Q queries, K neighbours.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from leanmask.errors import ConfigError, DataError, RunError

EXACT_UP_TO = 1_000_000
CHUNK = 65_536  # vectors added at a time
COMPARED_AT_ONCE = 1 << 24  # pairs of a query and a vector
CODE_BYTES = 64  # of a product-quantised vector
TRAINED_PER_CELL = 40  # vectors per cell that the cells are learned from
PROBED_SHARE = 0.05  # of the cells are looked into
PQ_CODES = 256  # values of such a byte, each to be learned from a vector at least
EXACT_FILE, CELLS_FILE, ABOUT_FILE = "index.f32", "index.faiss", "index.json"

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Nearest = Callable[[FloatArray, int], tuple[FloatArray, IntArray]]


@dataclass(frozen=True)
class About:
    """What an index holds. model: what made the embeddings; those of another one cannot be compared with them. centre:
    D numbers taken off every vector before it is compared; none = 0.
    """

    model: str
    vectors: int
    dimension: int
    kind: str
    centre: tuple[float, ...] = ()

    def directions(self, vectors: FloatArray) -> FloatArray:
        """(N, D) what of vectors is compared: their direction from the centre."""
        return unit(vectors, np.array(self.centre, dtype=np.float32) if self.centre else None)


@dataclass(frozen=True, eq=False)
class Index:
    """An index that can be searched."""

    about: About
    _nearest: Nearest

    def search(self, queries: FloatArray, neighbours: int, model: str) -> tuple[FloatArray, IntArray]:
        """Cosine similarities and positions (Q, K) of the nearest vectors of queries (Q, D), best first; position -1
        where there are fewer. model: what made the queries. Raises ConfigError when that is another than the index's.
        """
        require_same_model(self.about, model)
        if queries.shape[1] != self.about.dimension:
            raise ConfigError(
                f"the queries have {queries.shape[1]} numbers, the index {self.about.dimension}; embed both alike"
            )
        return self._nearest(self.about.directions(queries), min(neighbours, self.about.vectors))


def require_same_model(about: About, model: str) -> None:
    """Raise ConfigError when embeddings of `model` do not belong into this index."""
    if about.model != model:
        raise ConfigError(
            f"the index was made with {about.model}, the queries with {model}: their numbers mean different things; "
            "make the index anew, or embed with the index's model"
        )


def unit(vectors: FloatArray, centre: FloatArray | None = None) -> FloatArray:
    """(N, D) float32 vectors of length 1, about a centre (D,); a zero vector, which is like nothing, stays zero."""
    if centre is not None:
        vectors = np.where(vectors.any(axis=1, keepdims=True), vectors - centre, np.float32(0))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def build_index(
    chunks: Iterable[FloatArray], about: tuple[str, int, int], out: Path, centre: FloatArray | None = None
) -> About:
    """Write the index of vectors that come in chunks (n, D) into the folder `out`.

    about: model, number of vectors, D. centre: (D,), see `About`. Up to a million vectors the index holds them as they
    are; beyond, IVF-PQ: cells, and `CODE_BYTES` bytes per vector. Raises DataError when another number of vectors
    comes or hardly one is of anything, RunError when `out` cannot be written.
    """
    model, count, dimension = about
    exact = count <= EXACT_UP_TO
    directions = (unit(chunk, centre) for chunk in chunks)
    try:
        out.mkdir(parents=True, exist_ok=True)
        done = _write_exact(directions, out) if exact else _write_cells(directions, count, dimension, out)
        if done != count:
            raise DataError(f"{done} embeddings came instead of {count}; the pool has changed, start again")
        kept_centre = () if centre is None else tuple(centre.tolist())
        found = About(model, count, dimension, "exact" if exact else "ivf-pq", kept_centre)
        (out / ABOUT_FILE).write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
    except (OSError, RuntimeError) as error:
        raise RunError(f"cannot write the index {out}: {error}") from None
    return found


def _write_exact(directions: Iterator[FloatArray], out: Path) -> int:
    """The vectors as they are, raw float32; returns how many came."""
    done = 0
    with (out / EXACT_FILE).open("wb") as file:
        for vectors in directions:
            file.write(vectors.tobytes())
            done += len(vectors)
    return done


def _write_cells(directions: Iterator[FloatArray], count: int, dimension: int, out: Path) -> int:
    """Cells and codes, learned from the first vectors that are of something; returns how many came."""
    faiss = faiss_library()
    first: list[FloatArray] = []
    telling = 0
    for vectors in directions:
        first.append(vectors)
        telling += int(vectors.any(axis=1).sum())
        if telling >= TRAINED_PER_CELL * cells_for(count):
            break
    if telling < max(PQ_CODES, cells_for(count)):
        raise DataError(f"{telling} of {count} embeddings are of something that was found; too few for an index")
    index = _trained(faiss, np.concatenate(first), count)
    done = 0
    for vectors in itertools.chain(first, directions):
        # What is like nothing has no direction, so no cell, and from its bytes it could be like anything.
        something = np.flatnonzero(vectors.any(axis=1))
        index.add_with_ids(vectors[something], done + something)
        done += len(vectors)
    faiss.write_index(index, str(out / CELLS_FILE))
    return done


def open_index(folder: Path) -> Index:
    """An index from disk, memory-mapped. Raises DataError when the folder holds none."""
    try:
        told = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
        about = About(**{**told, "centre": tuple(told.get("centre", ()))})
        if about.kind == "exact":
            shape = (about.vectors, about.dimension)
            return Index(about, partial(_nearest, np.memmap(folder / EXACT_FILE, np.float32, mode="c", shape=shape)))
        faiss = faiss_library()
        return Index(about, faiss.read_index(str(folder / CELLS_FILE), faiss.IO_FLAG_MMAP).search)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{folder} holds no index that can be read: {reason}; without {ABOUT_FILE} the next search makes it anew"
        ) from None


def _nearest(vectors: FloatArray, queries: FloatArray, neighbours: int) -> tuple[FloatArray, IntArray]:
    """Products and positions (Q, K) of the K vectors (N, D) with the largest product with queries (Q, D)."""
    asked = torch.from_numpy(queries)
    scores, places = torch.zeros(len(asked), 0), torch.zeros(len(asked), 0, dtype=torch.int64)
    at_once = max(neighbours, COMPARED_AT_ONCE // max(len(asked), 1))
    for start in range(0, len(vectors), at_once):
        block = torch.from_numpy(vectors[start : start + at_once])
        near = (asked @ block.T).topk(min(neighbours, len(block)), dim=1)
        scores = torch.cat([scores, near.values], dim=1)
        places = torch.cat([places, near.indices + start], dim=1)
        scores, kept = scores.topk(min(neighbours, scores.shape[1]), dim=1)
        places = places.gather(1, kept)
    return scores.numpy(), places.numpy()


def cells_for(count: int) -> int:
    """Cells of an IVF index of so many vectors: about 4 * sqrt(N), a power of two."""
    return int(2 ** round(math.log2(4 * math.sqrt(count))))


def _trained(faiss: ModuleType, sample: FloatArray, count: int) -> Any:
    dimension, cells = sample.shape[1], cells_for(count)
    parts = next(parts for parts in range(min(CODE_BYTES, dimension), 0, -1) if dimension % parts == 0)
    coarse = faiss.IndexFlatIP(dimension)
    index = faiss.IndexIVFPQ(coarse, dimension, cells, parts, 8, faiss.METRIC_INNER_PRODUCT)
    index.train(sample[sample.any(axis=1)])
    index.nprobe = max(1, round(PROBED_SHARE * cells))
    index.own_fields = True
    coarse.this.disown()
    return index


def best_images(scores: FloatArray, images: IntArray, neighbours: int) -> dict[int, tuple[float, int]]:
    """By image: its largest similarity and the query that it is most similar to, of the `neighbours` nearest images of
    every query. scores, images: (Q, M), nearest first; below 0: none.
    """
    best: dict[int, tuple[float, int]] = {}
    for query, (row, found) in enumerate(zip(scores.tolist(), images.tolist(), strict=True)):
        near: dict[int, float] = {}
        for score, image in zip(row, found, strict=True):
            if image >= 0 and score > 0 and len(near) < neighbours:
                near.setdefault(image, score)
        for image, score in near.items():
            if score > best.get(image, (0.0, 0))[0]:
                best[image] = (score, query)
    return best


def near_duplicates(vectors: FloatArray, similarity: float) -> npt.NDArray[np.bool_]:
    """(N,) bool: nearly the same as an earlier vector that is kept, by cosine similarity."""
    normal, drop = unit(vectors), np.zeros(len(vectors), dtype=bool)
    for start in range(0, len(normal), 1024):
        rows = normal[start : start + 1024]
        close = rows @ normal[: start + len(rows)].T >= similarity
        for place in range(len(rows)):
            own = start + place
            drop[own] = bool((close[place, :own] & ~drop[:own]).any())
    return drop


def faiss_library() -> ModuleType:
    """The library. Raises ConfigError with what to install when it is not there."""
    try:
        import faiss  # noqa: PLC0415
    except ImportError:
        raise ConfigError("retrieval needs the package faiss: pip install 'leanmask[retrieval]'") from None
    return faiss


def chunked(vectors: FloatArray) -> Iterator[FloatArray]:
    """A large, perhaps memory-mapped, array (N, D) in chunks."""
    for start in range(0, len(vectors), CHUNK):
        yield np.asarray(vectors[start : start + CHUNK])
