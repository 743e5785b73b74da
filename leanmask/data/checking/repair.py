"""The repaired copy of a data set: new annotation files and a data.yaml beside the untouched original.

Where an object is left out although something is there, its image becomes `exhaustive: false`: what is missing must not
be learnt as background.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import yaml

from leanmask.data.annotation import Row, finite_faults, usable_id
from leanmask.data.checking.losses import losses_of, require_kept
from leanmask.data.checking.repair_images import Copy, Repair, repair_images, without_nan
from leanmask.data.checking.repair_rows import repair_row
from leanmask.data.checking.rows import category_of, image_size
from leanmask.data.checking.splits import hashable
from leanmask.data.files import write_json
from leanmask.data.formats import LISTS
from leanmask.data.layout import SplitFiles
from leanmask.data.new_folder import new_folder


def write_repaired(copies: list[Copy], located: dict[str, SplitFiles], out: Path, drop: bool = False) -> list[Repair]:
    """Repair every split and write annotations/instances_*.json and data.yaml into the new folder `out`; images are
    referred to.

    Returns every change, and what could not be repaired. Raises RunError when the folder exists or cannot be written,
    DataError when the copy would lose much of the labels (see losses.py), unless `drop`: then nothing is written.
    """
    copies = sorted(copies, key=lambda copy: (copy.split.name != "train", not copy.split.categories))
    ids: dict[str, int] = {}  # the classes of all splits: the training split's ids come first
    for copy in copies:
        _repair_classes(copy, ids)
        repair_images(copy)
        _repair_annotations(copy)
        _mark_partial(copy)
    if copies and copies[0].split.categories:
        _share_classes(copies[0], ids)
    missing = [name for name in located if name not in {copy.split.name for copy in copies}]
    if not drop:
        require_kept(losses_of(copies, {name: located[name] for name in missing}), out)
    lost = [Repair("file-unreadable", "cannot be repaired and is left out of the copy", name) for name in missing]
    with new_folder(out) as folder:
        entries = {copy.split.name: _write_split(copy, folder, out) for copy in copies}
        ordered = {name: entries[name] for name in located if name in entries}
        text = yaml.safe_dump({"splits": ordered}, sort_keys=False, allow_unicode=True)
        (folder / "data.yaml").write_text(text, encoding="utf-8")
    return [*lost, *(repair for copy in copies for repair in copy.repairs)]


def _write_split(copy: Copy, folder: Path, out: Path) -> dict[str, str]:
    files = copy.split.files

    def relative(path: Path) -> str:
        return os.path.relpath(path.absolute(), out.absolute())

    entry = {"images": relative(files.images)}
    if files.truth is not None:
        entry["truth"] = relative(files.truth)
    if files.annotations is None and not copy.repairs:
        return entry
    rest = {key: value for key, value in copy.split.content.items() if key not in LISTS}
    for fault in list(finite_faults(rest)):
        rest.pop(fault.field)
        copy.note(fault.code, f"{fault.field} removed from the file: it held NaN or infinity")
    name = f"annotations/instances_{copy.split.name}.json"
    rows = {"images": copy.images, "annotations": copy.annotations, "categories": copy.categories}
    write_json(folder / name, {**rest, **rows})
    return {"annotations": name, **entry}


def _repair_classes(copy: Copy, ids: dict[str, int]) -> None:
    """Fills `categories`; a name has the same id, that of `ids`, in every split."""
    seen: set[str] = set()
    for row in copy.split.categories:
        number, name = category_of({"category_id": row.get("id")}), row.get("name")
        if number is None or not isinstance(name, str):
            copy.note("malformed", f"category {row!r} removed: it has no usable id and name")
            continue
        if name in seen:
            copy.note("class-duplicate-name", f"class '{name}' with id {number} merged into the first one")
            continue
        seen.add(name)
        if name not in ids:
            taken = set(ids.values())
            ids[name] = number if number not in taken else max(taken) + 1
        if ids[name] != number:
            copy.note("class-id-differs", f"class '{name}' changes its id from {number} to {ids[name]}")
        copy.categories.append({**without_nan(copy, row), "id": ids[name]})


def _class_changes(copy: Copy) -> dict[int, int | None]:
    """Old category id -> new one; None where an id stands for several classes, so that nobody knows which was meant."""
    ids = {row["name"]: row["id"] for row in copy.categories}
    changes: dict[int, int | None] = {}
    for row in copy.split.categories:
        number, name = category_of({"category_id": row.get("id")}), row.get("name")
        if number is None or not isinstance(name, str):
            continue
        changes[number] = ids[name] if changes.get(number, ids[name]) == ids[name] else None
    return changes


def _share_classes(train: Copy, ids: dict[str, int]) -> None:
    known = {row["name"] for row in train.categories}
    for name, number in ids.items():
        if name not in known:
            train.categories.append({"id": number, "name": name})
            train.note("class-unknown", f"class '{name}' (id {number}) added; it has no object here")


def _repair_annotations(copy: Copy) -> None:
    """Fills `annotations`; images that lose an object are noted in `partial`."""
    changes = _class_changes(copy)
    images = {image["id"]: image for image in copy.images}
    stated = {hashable(image.get("id")) for image in copy.split.images}
    rows = copy.split.annotations
    if rows and all(row.get("iscrowd") for row in rows):
        copy.note("crowd-everything", f"iscrowd set to 0 on all {len(rows)} annotations")
        rows = [{**row, "iscrowd": 0} for row in rows]
    new_ids = _new_ids(copy, rows)
    seen: set[str] = set()
    merged = set(copy.aliases.values())
    for row, annotation_id in zip(rows, new_ids, strict=True):
        image_id = hashable(row.get("image_id"))
        image = images.get(copy.aliases.get(image_id, image_id))
        if image is None:
            copy.outcomes.append((row, None))
            if image_id not in stated:
                copy.note("unknown-image", "removed: its image is not in the file", image_id, annotation_id)
            continue
        row = {**row, "id": annotation_id, "image_id": image["id"]}
        repaired = _repaired(copy, row, image, changes)
        copy.outcomes.append((row, repaired))
        if repaired is None:
            copy.partial.add(image["id"])
        elif image["id"] not in merged or _first_time(copy, repaired, seen):
            copy.annotations.append(repaired)


def _new_ids(copy: Copy, rows: list[Row]) -> list[int]:
    """The rows' own ids, and new ones for ids that cannot be used or are used before."""
    following = max((row["id"] for row in rows if usable_id(row.get("id"))), default=0) + 1
    seen: set[int] = set()
    ids = []
    for row in rows:
        number = row.get("id")
        if not usable_id(number) or number in seen:
            code = "duplicate-annotation-id" if usable_id(number) else "malformed"
            copy.note(code, f"id changed from {number!r} to {following}", row.get("image_id"), following)
            number, following = following, following + 1
        seen.add(number)
        ids.append(number)
    return ids


def _repaired(copy: Copy, row: Row, image: Row, changes: dict[int, int | None]) -> Row | None:
    category, place = category_of(row), (image["id"], row["id"])
    if category is None or category not in changes:
        code = "malformed" if category is None else "unknown-category"
        copy.note(code, f"removed: category id {row.get('category_id')!r} is not among the file's", *place)
        return None
    if changes[category] is None:
        copy.note("class-duplicate-id", f"removed: category id {category} stands for several classes", *place)
        return None
    repaired, done = repair_row({**row, "category_id": changes[category]}, image_size(image))
    for code, sentence in done:
        copy.note(code, sentence, *place)
    if repaired is None:
        copy.note(done[-1][0], "annotation removed: nothing usable is left of it", *place)
    return repaired


def _first_time(copy: Copy, row: Row, seen: set[str]) -> bool:
    # Records of the same file often carry the same objects again.
    content = json.dumps({key: value for key, value in row.items() if key != "id"}, sort_keys=True)
    if content in seen:
        copy.note("duplicate-file", "removed: the merged record has the same object", row["image_id"], row["id"])
        return False
    seen.add(content)
    return True


def _mark_partial(copy: Copy) -> None:
    for position, image in enumerate(copy.images):
        if image["id"] in copy.partial and image.get("exhaustive") is not False:
            copy.images[position] = {**image, "exhaustive": False}
            copy.note("not-exhaustive", "marked exhaustive: false, because an object was left out", image["id"])
