"""Nearest neighbours among very many embeddings: an index on disk, exact up to a million vectors, approximate beyond.

Vectors are compared by cosine similarity, about the pool's centre where one is given: the features of many networks all
point nearly the same way, and then every picture is like every other. faiss is an optional extra (`pip install
leanmask[retrieval]`), imported when it is asked for. Letters: N vectors of D numbers, Q queries, K neighbours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from leanmask.errors import ConfigError, DataError, RunError

EXACT_UP_TO = 1_000_000
CHUNK = 65_536  # vectors added, or searched through, at a time
CODE_BYTES = 64  # of a product-quantised vector
TRAINED_PER_CELL = 40  # vectors per cell that the cells are learned from
PROBED_SHARE = 0.05  # of the cells are looked into
INDEX_FILE, ABOUT_FILE = "index.faiss", "index.json"

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


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
    _faiss: Any

    def search(self, queries: FloatArray, neighbours: int, model: str) -> tuple[FloatArray, IntArray]:
        """Cosine similarities and positions (Q, K) of the nearest vectors of queries (Q, D), best first; position -1
        where there are fewer. model: what made the queries. Raises ConfigError when that is another than the index's.
        """
        require_same_model(self.about, model)
        if queries.shape[1] != self.about.dimension:
            raise ConfigError(
                f"the queries have {queries.shape[1]} numbers, the index {self.about.dimension}; embed both alike"
            )
        scores, places = self._faiss.search(self.about.directions(queries), min(neighbours, self.about.vectors))
        return scores, places


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
    comes, RunError when `out` cannot be written.
    """
    model, count, dimension = about
    faiss = faiss_library()
    exact = count <= EXACT_UP_TO
    index = faiss.IndexFlatIP(dimension) if exact else None
    kept: list[FloatArray] = []
    done = 0
    for chunk in chunks:
        vectors = unit(chunk, centre)
        if index is None:
            kept.append(vectors)
            if sum(map(len, kept)) < min(TRAINED_PER_CELL * cells_for(count), count):
                continue
            index = _trained(faiss, np.concatenate(kept), count)
            vectors, kept = np.concatenate(kept), []
        if exact:
            index.add(vectors)
        else:  # what is like nothing has no direction, so no cell, and from its bytes it could be like anything
            something = np.flatnonzero(vectors.any(axis=1))
            index.add_with_ids(vectors[something], done + something)
        done += len(vectors)
    if index is None or done != count:
        raise DataError(f"{done} embeddings came instead of {count}; the pool has changed, start again")
    kept_centre = () if centre is None else tuple(centre.tolist())
    found = About(model, count, dimension, "exact" if exact else "ivf-pq", kept_centre)
    try:
        out.mkdir(parents=True, exist_ok=True)
        faiss.write_index(index, str(out / INDEX_FILE))
        (out / ABOUT_FILE).write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
    except (OSError, RuntimeError) as error:
        raise RunError(f"cannot write the index {out}: {error}") from None
    return found


def open_index(folder: Path) -> Index:
    """An index from disk, memory-mapped. Raises DataError when the folder holds none."""
    faiss = faiss_library()
    try:
        told = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
        about = About(**{**told, "centre": tuple(told.get("centre", ()))})
        return Index(about, faiss.read_index(str(folder / INDEX_FILE), faiss.IO_FLAG_MMAP))
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{folder} holds no index that can be read: {' '.join(str(error).split())[:200]}") from None


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
