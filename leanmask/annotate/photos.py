"""The images of a folder of images alone, which changes while people label: photographs come, go, get other names.

A photograph is its content. It has a number from the day it is first seen, and what people say is kept about that
number: under another name it is the same photograph, and other content under its name is another one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import Any

from leanmask.annotate.source import Picture, Source, SourceOptions, digest_of_classes, digest_of_pictures
from leanmask.annotate.store import Photo, Store
from leanmask.data.files import content_digest, image_files, read_json
from leanmask.data.layout import LABELLING
from leanmask.errors import ConfigError, DataError

FINGERPRINT = {"folder": "images alone"}
NAMES_SAID = 10


def open_photos(store: Store, folder: Path, options: SourceOptions) -> tuple[Source, list[str]]:
    """The photographs of a folder as they are now, with the numbers that the store gives them, and sentences about what
    has changed. Raises DataError for a store of something else, ConfigError where no class is named.
    """
    known = store.about().get("fingerprint")
    if known is not None and known != FINGERPRINT:
        _adopt(store, folder, known, options)
    elif known is None:
        store.tell("fingerprint", FINGERPRINT)
    categories, notes = _classes(store, folder, options)
    labelled = {given.unit[1] + 1 for given in store.given() if given.unit[0] == "boxes"}
    photos, changes = _look(store.photos(), folder, labelled)
    store.keep_photos(photos)
    if all(photo.gone for photo in photos):
        raise DataError(f"{folder} has no images any more; {len(photos)} are known from before")
    pictures = tuple(Picture(photo.number, folder / photo.name, None) for photo in photos)
    gone = frozenset(place for place, photo in enumerate(photos) if photo.gone)
    held = frozenset(place for place, photo in enumerate(photos) if photo.split == "val")
    left_out = {"boxes": gone, "points": gone | held}
    exif = options.exif or "apply"
    return Source(folder, folder, categories, pictures, (), {}, exif, plain=True, gone=gone, left_out=left_out), [
        *notes,
        *changes,
    ]


def photo_files(folder: Path) -> list[Path]:
    """The images that lie in a folder itself or, where none does, in folders below it."""
    found = image_files(folder) or image_files(folder, recursive=True)
    return [path for path in found if path.relative_to(folder).parts[0] != LABELLING]


def _classes(store: Store, folder: Path, options: SourceOptions) -> tuple[dict[int, str], list[str]]:
    """Class names by id: those that the store has, then those that were named now. An id is never given twice."""
    known: list[str] = store.about().get("classes", [])
    names = list(dict.fromkeys([*known, *options.classes]))
    if not names:
        raise ConfigError(f"{folder} is a folder of images without annotations: name the classes, --classes cat,dog")
    if names != known:
        store.tell("classes", names)
    added = names[len(known) :] if known else []
    return dict(enumerate(names, start=1)), [f"new classes: {', '.join(added)}"] if added else []


def _look(known: Sequence[Photo], folder: Path, labelled: Set[int]) -> tuple[list[Photo], list[str]]:
    """The known photographs as they are in the folder now and the new ones, by number; and what has changed."""
    before = {photo.name: photo for photo in known}
    there: dict[str, list[Photo]] = {}  # by content, without a number
    for path in photo_files(folder):
        found = _read(path, path.relative_to(folder).as_posix(), before)
        there.setdefault(found.digest, []).append(found)
    photos: list[Photo] = []
    gone: list[Photo] = []
    renamed: list[str] = []
    named: dict[str, str] = {}  # of every content that is known, the name that counts
    # Those of the same name come first: of two copies that are known from before, each stays what it was.
    for photo in sorted(known, key=lambda each: each.name not in {o.name for o in there.get(each.digest, ())}):
        same = there.get(photo.digest, [])
        now = next((each for each in same if each.name == photo.name), same[0] if same else None)
        if now is None:
            photos.append(dataclasses.replace(photo, gone=True))
            if not photo.gone or photo.number in labelled:
                gone.append(photo)
            continue
        same.remove(now)
        named[photo.digest] = now.name
        if now.name != photo.name:
            renamed.append(f"{photo.name} is now {now.name}")
        photos.append(dataclasses.replace(now, number=photo.number, split=photo.split))
    copies = [f"{each.name} is {named[digest]}" for digest in named for each in there.pop(digest, ())]
    fresh = sorted((same for same in there.values() if same), key=lambda same: same[0].name)
    for number, (first, *rest) in enumerate(fresh, start=max((photo.number for photo in known), default=0) + 1):
        photos.append(dataclasses.replace(first, number=number))
        copies += [f"{each.name} is {first.name}" for each in rest]
    photos.sort(key=lambda photo: photo.number)
    notes = []
    new = {same[0].name for same in fresh}
    replaced = [photo.name for photo in gone if photo.name in new]
    gone = [photo for photo in gone if photo.name not in new]
    if replaced:
        notes.append(
            f"{names_of(replaced)}: other content than before, so another photograph; what was said about the old one "
            "is kept, and counts again when it is back"
        )
    if gone:
        notes.append(
            f"{_counted(len(gone), 'photograph')} gone from {folder}: {names_of(photo.name for photo in gone)}; "
            "what was said about gone ones is kept, and counts again when they are back"
        )
    if renamed:
        notes.append(f"the labels go with the photographs that were renamed: {names_of(renamed)}")
    if copies:
        notes.append(f"copies are left out: {names_of(copies)}")
    if known and new - set(replaced):
        notes.append(f"{_counted(len(new) - len(replaced), 'new photograph')}: {names_of(sorted(new - set(replaced)))}")
    return photos, notes


def _read(path: Path, name: str, before: dict[str, Photo]) -> Photo:
    """A file as a photograph without a number. Its content is read when its size or time is not as it was."""
    try:
        about = path.stat()
        size, modified = about.st_size, about.st_mtime_ns
    except OSError:
        size = modified = -1
    known = before.get(name)
    if known is not None and (known.size_bytes, known.modified_ns) == (size, modified):
        return dataclasses.replace(known, split="", gone=False)
    # What cannot be read is a photograph all the same: the page says that it cannot be shown.
    return Photo(0, name, content_digest(path) or f"unreadable {name}", size, modified)


def names_of(names: Iterable[Any]) -> str:
    """The first few names, and how many more there are."""
    told = [str(name) for name in names]
    more = f" and {len(told) - NAMES_SAID} more" if len(told) > NAMES_SAID else ""
    return ", ".join(told[:NAMES_SAID]) + more


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _adopt(store: Store, folder: Path, fingerprint: dict[str, str], options: SourceOptions) -> None:
    """Take over a store of version 2, which knew a photograph by its place in the folder. Raises DataError where the
    folder, or the classes, are not as they were then.
    """
    paths = image_files(folder)
    pictures = [Picture(number, path, None) for number, path in enumerate(paths, start=1)]
    names = list(options.classes) or _exported_classes(store.path.parent)
    same = {
        "images": digest_of_pictures(pictures) == fingerprint.get("images"),
        "classes": digest_of_classes(dict(enumerate(names, start=1))) == fingerprint.get("classes"),
    }
    if not all(same.values()):
        raise DataError(
            f"{store.path} is of an earlier leanmask, and the {' and the '.join(n for n in same if not same[n])} of "
            f"{folder} are not those that it was made for. Nothing was changed; put the folder back as it was, name "
            "the classes as then with --classes, and start once: from then on the folder may change"
        )
    held = _held_by_name(store.path.parent)
    photos = [_read(path, path.name, {}) for path in paths]
    store.keep_photos(
        [
            dataclasses.replace(photo, number=number, split="val" if photo.name in held else "")
            for number, photo in enumerate(photos, start=1)
        ]
    )
    store.tell("classes", names)
    store.tell("fingerprint", FINGERPRINT)


def _exported_classes(folder: Path) -> list[str]:
    path = folder / "instances_train.json"
    rows = read_json(path).get("categories", []) if path.is_file() else []
    return [row["name"] for row in sorted(rows, key=lambda row: row["id"])]


def _held_by_name(folder: Path) -> set[str]:
    path = folder / "instances_val.json"
    return {row["file_name"] for row in read_json(path).get("images", [])} if path.is_file() else set()
