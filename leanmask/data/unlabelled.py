"""The unlabelled images of a semi-supervised training: where they come from, and that none of them is one of those that
the training learns from or is measured on.

Nothing but the images is ever read of an annotation file that is named here.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path

from leanmask.data.coco import AnnotationStore, ClassMap, ImageRecord
from leanmask.data.files import require_regular
from leanmask.data.layout import SplitFiles, locate_unlabelled
from leanmask.errors import DataError

CHUNK_BYTES = 1 << 20
LOOKED_AT = 20  # files of a source; if none of them is there, the folder is wrong
SPLIT = "unlabelled"  # the split that a data set may have for them


@dataclass(frozen=True, eq=False)
class ImagePool:
    """The images of several stores, one after the other."""

    stores: tuple[AnnotationStore, ...]

    def __len__(self) -> int:
        return sum(len(store) for store in self.stores)

    def __getitem__(self, index: int) -> ImageRecord:
        ends = list(accumulate(len(store) for store in self.stores))
        number = bisect_right(ends, index)
        return self.stores[number][index - ends[number] + len(self.stores[number])]

    def paths(self) -> Iterator[Path]:
        for store in self.stores:
            yield from store.paths()


def unlabelled_sources(named: Sequence[str], splits: Mapping[str, SplitFiles]) -> list[SplitFiles]:
    """The folders and COCO files that `data.unlabelled` names, or the data set's own split "unlabelled".

    Raises DataError for a source without images, and when there is none at all.
    """
    if named:
        return [locate_unlabelled(source) for source in named]
    if SPLIT in splits:
        return [splits[SPLIT]]
    raise DataError(
        "this method learns from unlabelled images, and there are none: name folders or COCO files with --unlabelled "
        f"(data.unlabelled), or give the data set a split '{SPLIT}'"
    )


def open_pool(sources: Sequence[SplitFiles], classes: ClassMap) -> ImagePool:
    """Open the images of all sources. Raises DataError for a source without images, or whose images are nowhere."""
    stores = tuple(
        AnnotationStore.open(files.annotations, files.images, classes=classes, only_images=True) for files in sources
    )
    for files, store in zip(sources, stores, strict=True):
        looked_at = list(islice(store.paths(), LOOKED_AT))
        if not any(path.is_file() for path in looked_at):
            raise DataError(
                f"the images of {files.annotations or files.images} are not in {files.images}: looked for "
                f"{looked_at[0].name}; name the folder of the images, or put the file beside it"
            )
    return ImagePool(stores)


def require_apart(pool: ImagePool, known: Mapping[str, AnnotationStore]) -> None:
    """Raise DataError when an unlabelled image is also one of the `known` images (by what they are for), by path or by
    content: a network that has seen the images it is measured on looks better than it is.

    Only files of equal size are read, so that large pools are checked quickly.
    """
    for purpose, store in known.items():
        images = KnownImages(store)
        for path in pool.paths():
            twin = images.twin(path)
            if twin is not None:
                same = "is" if twin == path.resolve() else f"has the same content as {twin},"
                raise DataError(
                    f"unlabelled image {path} {same} one of the {purpose} images; take it out of the unlabelled ones, "
                    "or the result would be measured on what was learned from"
                )


class KnownImages:
    """The images of a store, to be found again by path or by content. Only files of equal size are read."""

    def __init__(self, store: AnnotationStore) -> None:
        self._paths = {path.resolve(): path for path in store.paths()}
        self._by_size: dict[int, list[Path]] = {}
        for path in self._paths:
            self._by_size.setdefault(_size(path), []).append(path)
        self._digests: dict[Path, str] = {}

    def twin(self, path: Path) -> Path | None:
        """The known image that a file is, or is a copy of; its own resolved path when it is one itself."""
        place = path.resolve()
        return place if place in self._paths else _twin(place, self._by_size, self._digests)


def _twin(path: Path, by_size: Mapping[int, Sequence[Path]], digests: dict[Path, str]) -> Path | None:
    candidates = by_size.get(_size(path), ())
    if not candidates:
        return None
    own = _digest(path)
    for other in candidates:
        if other not in digests:
            digests[other] = _digest(other)
        if own and own == digests[other]:
            return other
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # a missing or unreadable file is the loader's to name


def _digest(path: Path) -> str:
    """Hash of a file's bytes; empty when it cannot be read."""
    found = hashlib.blake2b(digest_size=16)
    try:
        require_regular(path)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                found.update(chunk)
    except OSError:
        return ""
    return found.hexdigest()
