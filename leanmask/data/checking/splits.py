"""What can be wrong with a whole annotation file and with the splits of a data set against each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanmask.data.annotation import Fault, Row, finite_faults, is_number, is_object
from leanmask.data.checking.images import Probe, image_faults
from leanmask.data.checking.rows import WARNINGS, category_of, image_size, row_faults
from leanmask.data.coco import Census
from leanmask.data.files import image_files
from leanmask.data.formats import LISTS, read_instances
from leanmask.data.grouping import PARTIAL, Totals, image_flag, rows_of
from leanmask.data.layout import SplitFiles
from leanmask.paths import image_path

WARNING_CODES = WARNINGS | {"unannotated", "same-content", "class-empty", "unread"}


@dataclass(frozen=True)
class Problem:
    """One thing found. severity: "error" or "warning". file: the annotation file, or the image where that is at fault.
    The codes stand in docs/data-format.md.
    """

    severity: str
    code: str
    message: str
    split: str
    file: str
    image_id: int | str | None = None
    annotation_id: int | str | None = None


@dataclass(frozen=True)
class Loaded:
    """A split's rows as they stand in its file; `content` holds the very same lists."""

    name: str
    files: SplitFiles
    content: dict[str, Any]

    @property
    def images(self) -> list[Row]:
        return self.content["images"]

    @property
    def annotations(self) -> list[Row]:
        return self.content["annotations"]

    @property
    def categories(self) -> list[Row]:
        return self.content["categories"]

    @property
    def file(self) -> str:
        return str(self.files.annotations or self.files.images)

    def path_of(self, image: Row) -> Path | None:
        """Where the image of a record is; None when it has no file name."""
        name = image.get("file_name")
        return image_path(self.files.images, name) if isinstance(name, str) and name else None

    def problem(self, fault: Fault, image: Row | None = None, row: Row | None = None) -> Problem:
        """A fault with the place where it was found."""
        severity = "warning" if fault.code in WARNING_CODES else "error"
        image_id = (image or {}).get("id", (row or {}).get("image_id"))
        path = self.path_of(image) if image is not None and fault.field == "file_name" else None
        file = self.file if path is None else str(path)
        return Problem(severity, fault.code, fault.message, self.name, file, image_id, (row or {}).get("id"))


def load(name: str, files: SplitFiles) -> Loaded:
    """Read a split's file; a plain folder becomes images without annotations. Raises DataError when it is no COCO."""
    if files.annotations is not None:
        content = read_instances(files.annotations)
        for key in LISTS:
            rows_of(content, key, files.annotations)
        return Loaded(name, files, content)
    names = [path.relative_to(files.images).as_posix() for path in image_files(files.images, recursive=True)]
    images = [{"id": i, "file_name": name, "exhaustive": False} for i, name in enumerate(names, start=1)]
    return Loaded(name, files, {"images": images, "annotations": [], "categories": []})


def hashable(value: Any) -> Any:
    """Ids as they should be; anything else as text, so that broken files can be counted too."""
    return value if isinstance(value, int | str) else repr(value)


def file_problems(split: Loaded) -> Iterator[Problem]:
    """Of the file as a whole: stray NaN, crowds only, images without annotations."""
    rest = {key: value for key, value in split.content.items() if key not in LISTS}
    for row in (rest, *split.categories):
        yield from (split.problem(fault) for fault in finite_faults(row))
    count = len(split.annotations)
    if count and all(row.get("iscrowd") for row in split.annotations):
        message = f"all {count} annotations are iscrowd=1, so that nothing would be learnt or counted; export them as 0"
        yield split.problem(Fault("crowd-everything", "iscrowd", message))
    annotated = {hashable(row.get("image_id")) for row in split.annotations}
    bare = [
        image
        for image in split.images
        if image.get("exhaustive") not in (True, False) and hashable(image.get("id")) not in annotated
    ]
    if bare:
        first = ", ".join(str(image.get("id")) for image in bare[:5]) + (", ..." if len(bare) > 5 else "")
        message = f"{len(bare)} images have no annotations (ids {first}); say data.unannotated=negative or =unlabelled"
        yield split.problem(Fault("unannotated", "id", message))


def label_problems(split: Loaded, counted: Census) -> Iterator[Problem]:
    """Of what is labelled, as a whole: classes without an object, and labels that nothing reads."""
    empty = counted.empty_classes() if any(counted.objects.values()) else None  # no object at all is said elsewhere
    if empty is not None:
        yield split.problem(Fault("class-empty", "categories", empty))
    count = sum(bool(row.get("keypoints")) for row in split.annotations)
    if count:
        message = f"{count} annotations have keypoints, which leanmask does not read; their boxes and masks it does"
        yield split.problem(Fault("unread", "keypoints", message))


def class_problems(split: Loaded, reference: dict[str, int], reference_name: str) -> Iterator[Problem]:
    """Of the categories, by themselves and against the training split's (name -> id)."""
    ids: dict[int, str] = {}
    names: set[str] = set()
    for row in split.categories:
        number, name = category_of({"category_id": row.get("id")}), row.get("name")
        if number is None or not isinstance(name, str):
            yield split.problem(Fault("malformed", "id", f"a category needs an `id` and a `name`, found {row!r}"))
            continue
        if number in ids:
            message = f"category id {number} stands for '{ids[number]}' and for '{name}'"
            yield split.problem(Fault("class-duplicate-id", "id", message))
        if name in names:
            yield split.problem(Fault("class-duplicate-name", "name", f"class '{name}' is listed twice (id {number})"))
        elif name not in reference:
            message = f"class '{name}' (id {number}) is not in split '{reference_name}'"
            yield split.problem(Fault("class-unknown", "name", message))
        elif reference[name] != number:
            message = f"class '{name}' has id {number} here and {reference[name]} in split '{reference_name}'"
            yield split.problem(Fault("class-id-differs", "id", message))
        ids.setdefault(number, name)
        names.add(name)


def image_problems(split: Loaded, probes: dict[Path, Probe], exif: str) -> Iterator[Problem]:
    """Of every image record, alone and against its file and the other records."""
    ids: dict[Any, Row] = {}
    files: dict[Path, Row] = {}
    for image in split.images:
        path, number = split.path_of(image), image.get("id")
        yield from (split.problem(fault, image) for fault in finite_faults(image))
        if image.get("exhaustive") not in (None, True, False):
            message = f"exhaustive is {image['exhaustive']!r}; allowed: true and false"
            yield split.problem(Fault("malformed", "exhaustive", message), image)
        if path is None or not isinstance(number, int | str):
            yield split.problem(Fault("malformed", "id", "an image needs an `id` and a `file_name`"), image)
            continue
        if number in ids:
            message = f"image id {number!r} is used twice, for {ids[number]['file_name']} and {image['file_name']}"
            yield split.problem(Fault("duplicate-image-id", "id", message), image)
        elif path in files:
            message = f"images {files[path]['id']!r} and {number!r} are the same file {image['file_name']}"
            yield split.problem(Fault("duplicate-file", "file_name", message), image)
        ids.setdefault(number, image)
        files.setdefault(path, image)
        if split.files.annotations is None and probes[path].fault is None:
            image["height"], image["width"] = probes[path].allowed_sizes(exif)[0]
        yield from (split.problem(fault, image) for fault in image_faults(image, probes[path], exif))


def annotation_problems(split: Loaded) -> Iterator[Problem]:
    """Of every annotation."""
    images = {hashable(image.get("id")): image for image in reversed(split.images)}
    known = {category_of({"category_id": row.get("id")}) for row in split.categories}
    seen: set[Any] = set()
    for row in split.annotations:
        image, number = images.get(hashable(row.get("image_id"))), hashable(row.get("id"))
        if image is None:
            message = f"image {row.get('image_id')!r} is not in the file"
            yield split.problem(Fault("unknown-image", "image_id", message), None, row)
        if number in seen:
            message = f"annotation id {number} is used twice"
            yield split.problem(Fault("duplicate-annotation-id", "id", message), image, row)
        seen.add(number)
        category = category_of(row)
        if category is not None and category not in known:
            message = f"category id {category} is not among the file's categories"
            yield split.problem(Fault("unknown-category", "category_id", message), image, row)
        for fault in row_faults(row, image_size(image) if image else None):
            yield split.problem(fault, image, row)


def same_content_problems(splits: list[Loaded], probes: dict[Path, Probe]) -> Iterator[Problem]:
    """Images with the same bytes: in two splits they leak, in one they count twice."""
    first: dict[str, tuple[Loaded, Path]] = {}
    for split in splits:
        for image in split.images:
            path = split.path_of(image)
            if path is None or not (digest := probes[path].digest):
                continue
            other, other_path = first.setdefault(digest, (split, path))
            if other is split and other_path == path:
                continue
            leak = "" if other is split else ": what is learnt in one is measured in the other"
            message = f"the image has the same content as {other_path} of split '{other.name}'{leak}"
            yield split.problem(Fault("same-content", "file_name", message), image)


def census(split: Loaded) -> Census:
    """As `AnnotationStore.census`, of what can be read; undeclared images without annotations are undecided."""
    totals = Totals()
    annotated = {hashable(row.get("image_id")) for row in split.annotations}
    countable = [row for row in split.annotations if _countable(row)]
    for row in countable:
        totals.add(row)
    on_image = {(hashable(row.get("image_id")), row["category_id"]) for row in countable if is_object(row)}
    totals.images.update(category for _, category in on_image)
    flags = [_flag(image, hashable(image.get("id")) in annotated) for image in split.images]
    names = {row["id"]: str(row.get("name")) for row in split.categories if type(row.get("id")) is int}
    return Census.count(np.asarray(flags, dtype=np.uint8), "error", names, totals.to_json())


def _countable(row: Row) -> bool:
    labels = row.get("point_labels")
    readable = isinstance(labels, list) and all(map(is_number, labels))
    return category_of(row) is not None and (readable or not row.get("point_coords"))


def _flag(image: Row, annotated: bool) -> int:
    if image.get("exhaustive") not in (None, True, False):
        return PARTIAL
    return image_flag(image, annotated)
