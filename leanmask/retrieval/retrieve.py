"""`leanmask retrieve`: unlabelled images that look like the objects of rare classes (Porcher et al. 2024, section 4.1:
object crops as queries, 64 neighbours each, duplicates removed).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from leanmask.data.coco import AnnotationStore
from leanmask.data.files import IMAGE_SUFFIXES, image_files, write_json
from leanmask.data.image_files import open_image
from leanmask.data.layout import locate
from leanmask.data.unlabelled import KnownImages
from leanmask.engine.distributed import start_processes
from leanmask.errors import DataError, RunError, suggest
from leanmask.options import FROM_ONE, FROM_ZERO, check_fields, require_options
from leanmask.paths import OneOrMorePaths, as_path, as_paths, settle_fields
from leanmask.reports.contact import Hit, Sheet, write_contact_sheet
from leanmask.retrieval.embed import Box, Embedder, crop_of, load_embedder, read_upright
from leanmask.retrieval.index import (
    ABOUT_FILE,
    About,
    FloatArray,
    best_images,
    build_index,
    near_duplicates,
    open_index,
    require_same_model,
)
from leanmask.retrieval.store import Pool, centre_of, claim, embed_pool, read_chunks, read_rows

OnProgress = Callable[[int, int], None]
RARE = "rare"
RARE_IMAGES = 10  # LVIS: a class on at most so many training images
DEFAULT_MODEL = "timm:vit_large_patch14_dinov2"


@dataclass(frozen=True)
class RetrieveOptions:
    """What to look for, and with what eyes.

    classes: names, or "rare" for those on at most ten training images. neighbours: images per query. model, weights:
    see `load_embedder`. index: folder for embeddings and index, kept for the next search; None = beside the output.
    duplicates: cosine similarity from which two found images count as the same. margin: of an object's longer side,
    shown around it. train: the split that the queries are from. batch_size: pictures at a time.
    """

    classes: tuple[str, ...] = (RARE,)
    neighbours: int = 64
    model: str = DEFAULT_MODEL
    weights: str | None = None
    index: Path | None = None
    duplicates: float = 0.98
    margin: float = 0.2
    train: str = "train"
    batch_size: int = 32

    def __post_init__(self) -> None:
        settle_fields(self, texts=("classes",), paths=("index",))
        check_fields(self, neighbours=FROM_ONE, duplicates=(-1, 1), margin=FROM_ZERO, batch_size=FROM_ONE)


@dataclass(frozen=True)
class RetrieveSummary:
    """What was found. per_class: images by the class of the query they are nearest to. known: found, but left out
    because they are (copies of) images of the data set. duplicates: left out as nearly the same as a better one.
    """

    out: Path
    pool: int
    queries: int
    images: int
    per_class: dict[str, int]
    known: int
    duplicates: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "out": str(self.out), "notes": list(self.notes)}

    def to_text(self) -> str:
        found = ", ".join(f"{count} {name}" for name, count in self.per_class.items())
        lines = [
            f"{self.images} of {self.pool} images for {self.queries} objects ({found or 'none'}): {self.out}",
            f"left out: {self.known} that the data set has already, {self.duplicates} near-duplicates",
        ]
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True, eq=False)
class _Queries:
    """Objects to look for: where they are, their classes, and their embeddings (Q, D)."""

    places: list[tuple[Path, tuple[int, int], Box]]
    classes: list[str]
    vectors: FloatArray


def retrieve(
    data: str | Path,
    pool: OneOrMorePaths,
    out: str | Path,
    options: RetrieveOptions = RetrieveOptions(),
    *,
    review: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> RetrieveSummary:
    """Search folders of images for those like the objects of some classes; writes a COCO file of unlabelled images.

    pool: one folder or several. Images that the data set has already, by content, are never among them. Under torchrun
    the pool is embedded by all processes; killed and called again, the same command goes on. review: also write a
    contact sheet. Raises DataError, ConfigError (embeddings of another model, missing extras) or RunError (`out`
    exists).
    """
    require_options(options, RetrieveOptions)
    out, state = as_path(out), start_processes()
    review = None if review is None else as_path(review)
    for path in (out, review):
        if path is not None and path.exists():
            raise RunError(f"{path} exists already and is never overwritten; choose another name")
    stores = _stores(as_path(data))
    if options.train not in stores:
        raise DataError(f"{data} has no annotated split '{options.train}'{suggest(options.train, stores)}")
    paths = _pool_files(as_paths(pool))
    names, notes = chosen_classes(stores[options.train], options.classes)
    embedder = load_embedder(options.model, options.weights, str(state.device))
    folder = options.index or out.with_name(f"{out.stem}.index")
    images = Pool(tuple(paths), folder, state.process_index, state.num_processes, embedder.vectors)
    if state.is_main_process:
        claim(images, embedder)
    state.wait_for_everyone()
    try:
        dimension = embed_pool(images, embedder, options.batch_size, on_progress or (lambda done, total: None))
    except KeyboardInterrupt:
        raise RunError(f"stopped; {folder} keeps what is done, and the same command goes on from there") from None
    state.wait_for_everyone()
    summary = RetrieveSummary(out, len(paths), 0, 0, {}, 0, 0, tuple(notes))
    if state.is_main_process:
        if not (folder / ABOUT_FILE).is_file():
            about = (embedder.name, images.rows, dimension)
            build_index(read_chunks(images, dimension), about, folder, centre_of(images, dimension))
        queries = _queries(stores[options.train], names, embedder, options)
        summary = _search(images, queries, stores, (out, review), (embedder, options, notes))
    state.wait_for_everyone()
    return summary


def chosen_classes(store: AnnotationStore, wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of the classes to look for, and sentences about those that have no object to look for.

    Raises DataError for a name that is no class, and when nothing is left.
    """
    counts = store.census().class_images
    names: list[str] = []
    for name in wanted:
        if name == RARE and RARE not in counts:
            names += [each for each, images in counts.items() if images <= RARE_IMAGES]
        elif name in counts:
            names.append(name)
        else:
            raise DataError(f"there is no class '{name}'{suggest(name, [*counts, RARE])}")
    empty = [name for name in names if counts[name] == 0]
    left = [name for name in dict.fromkeys(names) if counts[name]]
    if not left:
        raise DataError(
            f"none of the classes {', '.join(names) or '(no class is rare)'} has an object to look for; name others "
            "with --classes"
        )
    notes = [f"no object to look for: {', '.join(empty)}"] if empty else []
    return left, notes


def _stores(data: Path) -> dict[str, AnnotationStore]:
    return {
        name: AnnotationStore.open(files.annotations, files.images, unannotated="unlabelled")
        for name, files in locate(data).items()
        if files.annotations is not None
    }


def _pool_files(pools: Sequence[Path]) -> list[Path]:
    """Every image once, in the order of the folders and then of the names."""
    found: dict[Path, None] = {}
    for pool in pools:
        if not pool.is_dir():
            raise DataError(f"{pool} is no folder of images")
        inside = image_files(pool, recursive=True)
        if not inside:
            raise DataError(f"{pool} has no images; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
        found |= dict.fromkeys(inside)
    if not found:
        raise DataError("no folder of images to search is named")
    return list(found)


def _queries(store: AnnotationStore, names: Sequence[str], embedder: Embedder, options: RetrieveOptions) -> _Queries:
    wanted = {store.classes.names.index(name) for name in names}
    places, classes, vectors = [], [], []
    for index in range(len(store)):
        record = store[index]
        objects = [item for item in record.counted if item.category in wanted and np.isfinite(item.box_xyxy).all()]
        if not objects:
            continue
        own = [(record.path, (record.width, record.height), _box(item.box_xyxy)) for item in objects]
        vectors.append(embedder.objects(_picture(*own[0][:2]), [box for _, _, box in own], options.margin))
        places += own
        classes += [store.classes.names[item.category] for item in objects]
    if not places:
        raise DataError(f"no object of {', '.join(names)} has a box or a mask, so there is nothing to cut out")
    return _Queries(places, classes, np.concatenate(vectors))


def _box(box: Any) -> Box:
    x0, y0, x1, y1 = (float(edge) for edge in box)
    return x0, y0, x1, y1


def _picture(path: Path, size: tuple[int, int]) -> Image.Image:
    try:
        with open_image(path) as opened:
            picture = opened.convert("RGB")
    except OSError as error:
        raise DataError(f"cannot read image {path}: {error}") from None
    if picture.size != size:
        raise DataError(f"image {path} is {picture.size[0]} x {picture.size[1]}, the annotations say {size}")
    return picture


def _search(
    pool: Pool,
    queries: _Queries,
    stores: Mapping[str, AnnotationStore],
    files: tuple[Path, Path | None],
    how: tuple[Embedder, RetrieveOptions, Sequence[str]],
) -> RetrieveSummary:
    out, review = files
    embedder, options, notes = how
    index = open_index(pool.folder)
    require_same_model(index.about, embedder.name)
    scores, places = index.search(queries.vectors, options.neighbours * pool.vectors, embedder.name)
    best = best_images(scores, places // pool.vectors, options.neighbours)
    order = sorted(best, key=lambda place: (-best[place][0], place))
    known = [KnownImages(store) for store in stores.values()]
    new = [place for place in order if not any(images.twin(pool.paths[place]) for images in known)]
    same = near_duplicates(_means(pool, index.about, new), options.duplicates)
    hits = [
        Hit(pool.paths[place], queries.classes[best[place][1]], best[place][0])
        for place, twice in zip(new, same, strict=True)
        if not twice
    ]
    _write(hits, stores[options.train], out, embedder.name)
    if review is not None:
        shown = [(place, name) for place, name in zip(queries.places, queries.classes, strict=True)]
        crops = [(name, crop_of(_picture(*place[:2]), place[2], options.margin)) for place, name in shown[:200]]
        write_contact_sheet(Sheet(hits, crops, options.model), review, read_upright)
    per_class = {name: sum(hit.category == name for hit in hits) for name in dict.fromkeys(queries.classes)}
    left_out = (len(order) - len(new), int(same.sum()))
    return RetrieveSummary(
        out, len(pool), len(queries.places), len(hits), per_class, left_out[0], left_out[1], tuple(notes)
    )


def _means(pool: Pool, about: About, images: Sequence[int]) -> FloatArray:
    """(n, D) of images: the mean of the directions of what is on them."""
    rows = (np.array(images, dtype=np.int64)[:, None] * pool.vectors + np.arange(pool.vectors)).reshape(-1)
    directions = about.directions(read_rows(pool, about.dimension, rows))
    means: FloatArray = directions.reshape(len(images), pool.vectors, about.dimension).mean(axis=1)
    return means


def _write(hits: Sequence[Hit], store: AnnotationStore, out: Path, model: str) -> None:
    images = []
    for number, hit in enumerate(hits, 1):
        picture = read_upright(hit.path)
        assert picture is not None, "what cannot be read is like nothing"
        images.append(
            {
                "id": number,
                "file_name": str(hit.path.resolve()),
                "width": picture.width,
                "height": picture.height,
                "exhaustive": False,
                "retrieved_for": hit.category,
                "similarity": round(hit.similarity, 4),
            }
        )
    categories = [{"id": key, "name": name} for key, name in zip(store.classes.ids, store.classes.names, strict=True)]
    info = {"description": "images like the objects of rare classes", "model": model}
    write_json(out, {"info": info, "images": images, "annotations": [], "categories": categories})
