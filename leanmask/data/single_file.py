"""A data set that is a COCO file beside its images, or one folder away, as drawing tools export it: which files these
are, and where the images lie. What the file says its images are called decides.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from leanmask.data.files import read_any_json
from leanmask.data.formats import LISTS, explain
from leanmask.errors import DataError
from leanmask.paths import image_path

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
SKIPPED_FOLDERS = frozenset({"labelling", "truth", "evaluation", "checkpoints"})  # leanmask's own
MOST_FILES = 20  # JSON files of a folder; more are one per image, of another format
SAMPLED = 50  # image names of a file
NEARLY_ALL = 0.9  # a folder farther away is taken only where it has more than that

Found = dict[str, tuple[Path, Path]]  # (annotation file, image folder) by split


def find_single(root: Path, below: bool = True) -> Found:
    """The COCO file in a folder, or (`below`) in one below, as split "train"; several only where each is called as a
    split is, such as train.json and val.json. Empty where there is none.

    Raises DataError that lists the files where it cannot be told which is meant, or when the images are not there.
    """
    # A file that remembers its folder is one of pseudo-labels: they are trained on where somebody names them.
    candidates = [path for path in _json_files(root, below) if (named := _named_images(path)) and named.folder is None]
    if not candidates:
        return {}
    names = [_split_name(path) for path in candidates]
    if len(candidates) == 1:
        names = [names[0] or "train"]
    if None in names or len(set(names)) < len(names):
        listed = ", ".join(str(path.relative_to(root)) for path in candidates[:10])
        raise DataError(
            f"{root} has {len(candidates)} COCO files: {listed}; name the one that you mean in place of the folder, "
            f"such as {candidates[0]}, or give each a split in a data.yaml"
        )
    return {
        str(name): (path, folder_of_images(path, image_folders(path, root)))
        for name, path in zip(names, candidates, strict=True)
    }


def folder_of_images(annotations: Path, places: Sequence[Path]) -> Path:
    """The first folder that has nearly the most of the images that a COCO file names. Raises DataError when none has
    any.
    """
    named = _named_images(annotations)
    if named is None:
        raise DataError(f"{annotations} is no COCO instance file: it needs the lists {', '.join(LISTS)}")
    if named.folder is not None and named.folder.is_dir():
        places = [named.folder, *places]
    counts = {place: sum(image_path(place, name).is_file() for name in named.some) for place in places}
    most = max(counts.values(), default=0)
    best = next((place for place in places if counts[place] >= NEARLY_ALL * most), places[0])
    if not most:
        first = f" (such as {named.some[0]})" if named.some else ""
        raise DataError(
            f"no images found for {annotations}: what it names{first} is in none of {', '.join(map(str, places[:5]))}; "
            "put it beside the folder of its images, or name both in a data.yaml"
        )
    return best


def first_name(annotations: Path) -> str | None:
    """The first file name in a COCO file, found without parsing a file that may be large; None where there is none."""
    try:
        with annotations.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = re.search(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', content)
            return None if found is None else str(json.loads(found[1]))
    except (OSError, ValueError):  # unreadable, empty or broken, as is said where it is read
        return None


def image_folders(annotations: Path, root: Path) -> list[Path]:
    """Where the images of a file can lie, the nearest first: beside it, in `root`, or in a folder of either or of
    images/.
    """
    inside = root / "images"
    places = [annotations.parent, root, inside, *_folders(root), *_folders(annotations.parent)]
    places += _folders(inside) if inside.is_dir() else ()
    return list(dict.fromkeys(place for place in places if place.is_dir()))


def _json_files(root: Path, below: bool) -> list[Path]:
    found: list[Path] = []
    for folder in (root, *(_folders(root) if below else ())):
        inside = sorted(path for path in folder.glob("*.json") if path.is_file())
        found += inside if len(inside) <= MOST_FILES else []
    return found


def _folders(root: Path) -> Iterable[Path]:
    inside = (path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in inside if path.name not in SKIPPED_FOLDERS)


def _split_name(path: Path) -> str | None:
    bare = re.sub(
        r"^(instances|annotations?|labels|coco)[-_]|[-_]?(19|20)\d\d$|[-_](coco|annotations?)$", "", path.stem
    )
    return SPLIT_NAMES.get(bare.lower())


@dataclass(frozen=True)
class Named:
    """What a COCO instance file says of its images. some: names of some of them. folder: where they were, as
    leanmask's own files remember it.
    """

    some: tuple[str, ...]
    folder: Path | None


def _named_images(path: Path) -> Named | None:
    """None where a file is no COCO instance file."""
    found = path.stat()
    return _read_names(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=64)
def _read_names(path: Path, changed_ns: int, size: int) -> Named | None:
    # The time and size are there for the cache: a data set is located several times, and the file may be large.
    try:
        content = read_any_json(path)
    except DataError:
        return None
    if not isinstance(content, dict) or explain(content, path) is not None:
        return None
    if not all(isinstance(content.get(key), list) for key in LISTS):
        return None
    images = content["images"]
    names = (row.get("file_name") for row in images[:: max(1, len(images) // SAMPLED)] if isinstance(row, dict))
    info = content.get("info")
    folder = info.get("image_folder") if isinstance(info, dict) else None
    return Named(
        tuple(name for name in names if isinstance(name, str)), Path(folder) if isinstance(folder, str) else None
    )
