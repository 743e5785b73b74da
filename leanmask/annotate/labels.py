"""Everything that people have said about one data set, and the labels that are written from it: one place for the
answers of every kind of session and of every round, and one data set to train on.

    labelling/train.sqlite            answers; another split's lie in SPLIT.sqlite
    labelling/instances_SPLIT.json    the labels, with the decisions of all reviews; data.yaml names them
    labelling/labels.json             of a folder of images alone: the labels of all splits
    labelling/review-NAME/            one file of pseudo-labels: a copy, the answers, and `reviewed.json` with decisions
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from leanmask.annotate.export import Exported, by_split, export_labels, is_same, join
from leanmask.annotate.photos import open_photos
from leanmask.annotate.source import Source, SourceOptions, folder_of_pseudo, open_pseudo, open_source
from leanmask.annotate.store import Store
from leanmask.annotate.tasks import Job, Unit, units_of
from leanmask.data.annotation import Row
from leanmask.data.files import read_json, write_atomically
from leanmask.data.layout import ALL_LABELS, LABELLING, labelled_data, locate, photo_folder
from leanmask.data.views.canvas import Exif
from leanmask.errors import ConfigError, DataError, LeanmaskError
from leanmask.paths import image_path

VAL_SHARE = 0.2
PSEUDO_FILE, REVIEWED_FILE = "pseudo.json", "reviewed.json"
# Ids of images that lie elsewhere and of objects from reviews, above all that photographs and drawn boxes ever get.
FIRST_IDS = (10**9, 10**12)
SAME_OBJECT_IOU = 0.5


@dataclass(frozen=True)
class LabelOptions:
    """split: of a data set with annotations. classes: see `SourceOptions`. seed, val_share: None = what the store
    remembers, else 0 and `VAL_SHARE`. store: the file of answers, None = in `labelling_folder`.
    """

    split: str = "train"
    classes: tuple[str, ...] = ()
    exif: Exif | None = None
    seed: int | None = None
    val_share: float | None = None
    store: Path | None = None


@dataclass(frozen=True)
class Written:
    """labels: the file of the labels. data: what to train on. images: of every split. notes: sentences."""

    labels: Path
    data: Path
    images: Mapping[str, int]
    exported: Exported
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labels:
    """The labels of a data set, opened. data: the user's, never its labelling folder. photos: where the images are of a
    folder of images alone, None for a data set with annotations. notes: what has changed since the last time.
    """

    data: Path
    photos: Path | None
    folder: Path
    source: Source
    store: Store
    seed: int
    options: LabelOptions
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, data: str | Path, options: LabelOptions = LabelOptions()) -> Labels:
        """To be closed. Raises DataError, ConfigError or RunError with what the user can do."""
        if options.val_share is not None and not 0 <= options.val_share < 1:
            raise ConfigError(f"the share for validation is {options.val_share}; allowed: 0 to below 1")
        data = labelled_data(data)
        photos = photo_folder(data)
        folder = labelling_folder(data) if options.store is None else options.store.parent
        path = options.store or folder / f"{options.split}.sqlite"
        if photos is not None:
            if options.split != "train":
                raise ConfigError(
                    f"{data} is a folder of images, which is labelled as a whole, without --split; "
                    f"'{options.split}' is decided by what is labelled"
                )
            if not path.exists() and not options.classes:
                raise ConfigError(
                    f"{photos} is a folder of images without annotations: name the classes, --classes cat,dog"
                )
            store = Store.open(path, None)
        else:
            source = open_source(data, SourceOptions(options.split, options.classes, options.exif))
            if not source.pictures:
                raise DataError(f"{source.origin} has no images")
            store = Store.open(path, source.fingerprint())
        try:
            notes: list[str] = []
            if photos is not None:
                source, notes = open_photos(store, photos, SourceOptions("train", options.classes, options.exif))
            seed = _seed(store, options.seed)
            if options.val_share is not None:
                store.tell("val_share", options.val_share)
            if (nested := folder / LABELLING).is_dir():
                notes.append(
                    f"{nested} was labelled by an earlier leanmask as a data set of its own and is not part of these "
                    f"labels; leanmask train {nested} still reads it"
                )
        except BaseException:
            store.close()
            raise
        return cls(data, photos, folder, source, store, seed, options, tuple(notes))

    def content(self, without: Path | None = None) -> tuple[dict[str, Any], Exported]:
        """All labels as a COCO file's content: what was there, what people said, and the decisions of all reviews but
        the one in the folder `without`.
        """
        content, exported = export_labels(self.source, list(self.store.answers()), self.seed)
        for folder in self.reviews():
            if folder != without:
                content = self._with_review(content, folder)
        return content, exported

    def accepted(self) -> set[Any]:
        """Ids of the images with objects that a review has brought in."""
        content, _ = self.content()
        rows = (row for row in content["annotations"] if "review" in row and row.get("weight", 1.0) > 0)
        return {row["image_id"] for row in rows}

    def reviews(self) -> list[Path]:
        """The folders of all reviews that have decided something."""
        return sorted(path.parent for path in self.folder.glob(f"review-*/{REVIEWED_FILE}"))

    def _with_review(self, content: dict[str, Any], folder: Path) -> dict[str, Any]:
        reviewed = read_json(folder / REVIEWED_FILE)
        before = folder / PSEUDO_FILE
        rows = {row["id"]: row for row in (read_json(before) if before.is_file() else reviewed)["annotations"]}
        decided = {row["id"] for row in reviewed["annotations"] if "review" in row}
        return self.joined(content, reviewed, rows, decided)

    def joined(
        self, content: dict[str, Any], reviewed: dict[str, Any], before: Mapping[Any, Row], kept: set[Any]
    ) -> dict[str, Any]:
        """The labels with the reviewed pseudo-labels of the ids `kept`, as far as their images are there and not held
        out for validation. before: the pseudo-labels by id as they were reviewed.
        """
        own = {row["id"]: row["name"] for row in content["categories"]}
        if not {row["id"]: row["name"] for row in reviewed["categories"]}.items() <= own.items():
            return content  # of other classes: they stay in the review's own folder
        images = folder_of_pseudo(reviewed, self.source.images)
        held = self.held()
        there = {row["id"]: Path(os.path.realpath(image_path(images, row["file_name"]))) for row in reviewed["images"]}
        usable = {key for key, path in there.items() if path not in held and path.is_file()}
        rows = [row for row in reviewed["annotations"] if row["id"] in kept and row["image_id"] in usable]
        used = {row["image_id"] for row in rows}
        listed = [row for row in reviewed["images"] if row["id"] in used]
        if self.photos is not None:  # nobody has said that all is labelled there
            listed = [{**row, "exhaustive": False} for row in listed]
        part = {**reviewed, "images": listed, "annotations": rows}
        first = FIRST_IDS if self.photos is not None else (1, 1)
        return join(content, part, before, (self.source.images, images), first)

    def held(self) -> set[Path]:
        """The files of the photographs that are held out for validation."""
        if self.photos is None:
            return set()
        return {Path(os.path.realpath(self.photos / each.name)) for each in self.store.photos() if each.split == "val"}

    def write(self) -> Written:
        """Write all labels as they are now, and the data.yaml that names them. They are ours and written again each
        time; files that would stay as they are are not touched.
        """
        if self.photos is None:
            content, exported = self.content()
            split = self.options.split
            labels = self.folder / f"instances_{split}.json"
            write_changed(labels, content)
            others = {name: (f.annotations, f.images) for name, f in locate(self.data).items()}
            write_splits(self.folder, others | {split: (labels, self.source.images)})
            return Written(labels, self.folder, {split: len(content["images"])}, exported)
        # The folder may have changed while people labelled.
        source, notes = open_photos(self.store, self.photos, SourceOptions("train", (), self.options.exif))
        content, exported = dataclasses.replace(self, source=source).content()
        photos = self.store.photos()
        known = {photo.number: photo.split for photo in photos}
        share = self.store.about().get("val_share", VAL_SHARE)
        parts, splits, told = by_split(content, known, share)
        if not any(splits[number] != "unlabelled" for number in splits):
            told = [*told, "nothing is labelled yet"]
        moved = [
            dataclasses.replace(photo, split=splits[photo.number])
            for photo in photos
            if splits.get(photo.number, "unlabelled") != "unlabelled"
        ]
        self.store.keep_photos(moved)
        write_changed(self.folder / ALL_LABELS, content)
        named: dict[str, tuple[Path | None, Path]] = {}
        for name in ("train", "val", "unlabelled"):
            path = self.folder / f"instances_{name}.json"
            if name in parts:
                write_changed(path, parts[name])
                named[name] = (path, self.photos)
            else:
                path.unlink(missing_ok=True)
        write_splits(self.folder, named)
        counts = {name: len(part["images"]) for name, part in parts.items()}
        labels = next(iter(path for path, _ in named.values() if path is not None))
        data = self.data if self.folder == labelling_folder(self.data) else self.folder
        return Written(labels, data, counts, exported, (*notes, *told))


@dataclass(frozen=True)
class Review:
    """One file of pseudo-labels that people look at. units: what is asked about. left_out: how many pseudo-labels are
    not, because their images are held out for validation or their objects labelled already.
    """

    folder: Path
    source: Source
    store: Store
    units: tuple[Unit, ...]
    left_out: int = 0
    before: Mapping[Any, Row] = field(default_factory=dict)

    @classmethod
    def open(cls, labels: Labels, pseudo: Path, job: Job, own: Path | None = None) -> Review:
        """To be closed. own: the file of answers, None = in a folder of the labels. Raises DataError, ConfigError or
        RunError with what the user can do.
        """
        source = open_pseudo(pseudo, labels.source.images, labels.options.exif)
        if not source.pictures:
            raise DataError(f"{source.origin} has no images")
        content = pseudo.read_bytes()
        folder = _review_folder(labels.folder, pseudo.stem, content)
        path = own or folder / f"{folder.name}.sqlite"
        store = Store.open(path, source.fingerprint())
        try:
            _seed(store, labels.options.seed)
            if not (folder / PSEUDO_FILE).is_file():
                write_atomically(folder / PSEUDO_FILE, content)
            units = tuple(units_of(source, job))
            asked = units if labels.photos is None else _not_labelled(labels, (source, folder), units)
        except BaseException:
            store.close()
            raise
        before = {thing.id: thing.row for thing in source.things}
        return cls(folder, source, store, asked, len(units) - len(asked), before)

    def write(self, labels: Labels, content: dict[str, Any]) -> tuple[Path, Written]:
        """Write the pseudo-labels with the decisions, all labels with them, and a data set of its own that also has the
        pseudo-labels that nobody has looked at yet. Returns the file of the pseudo-labels, and what `labels` wrote.
        """
        reviewed = self.folder / REVIEWED_FILE
        write_changed(reviewed, content)
        written = labels.write()
        kept = {row["id"] for row in content["annotations"]}
        if labels.photos is not None:
            kept = {unit.target for unit in self.units}
            kept |= {row["id"] for row in content["annotations"] if "review" in row}
        whole, _ = labels.content(without=self.folder)
        merged = labels.joined(whole, content, self.before, kept)
        split = labels.options.split
        path = self.folder / f"instances_{split}.json"
        named = locate(labels.data if labels.photos is None else written.data)
        splits = {name: (each.annotations, each.images) for name, each in named.items()}
        if merged is whole:  # of other classes than the labels
            write_splits(self.folder, splits | {split: (reviewed, self.source.images)})
            note = f"the pseudo-labels have other classes than {labels.data}, so the decisions are in {reviewed} alone"
            return reviewed, dataclasses.replace(written, notes=(*written.notes, note))
        if labels.photos is not None:
            known = {photo.number: photo.split for photo in labels.store.photos()}
            parts, _, _ = by_split(merged, known, 0.0)
            merged = parts.get("train", merged)
            splits.pop("unlabelled", None)
            if "unlabelled" in parts:
                write_changed(self.folder / "instances_unlabelled.json", parts["unlabelled"])
                splits["unlabelled"] = (self.folder / "instances_unlabelled.json", labels.source.images)
        write_changed(path, merged)
        write_splits(self.folder, splits | {split: (path, labels.source.images)})
        return reviewed, written


def refresh_labels(data: str | Path) -> list[str]:
    """Write the labels of a folder of photographs as they are now: what was answered until now, of the photographs that
    are there now. Returns sentences about what has changed. Does nothing for other data, and where nothing has been
    labelled.
    """
    if photo_folder(data) is None or not (labelling_folder(labelled_data(data)) / "train.sqlite").is_file():
        return []
    try:
        labels = Labels.open(data)
        try:
            return list(dict.fromkeys([*labels.notes, *labels.write().notes]))
        finally:
            labels.store.close()
    except LeanmaskError as error:
        return [f"the labels of {data} are those that were written last: {error}"]


def labelling_folder(data: Path) -> Path:
    """Where answers and labels of a data set are kept: a folder of its own inside, or beside the YAML file."""
    return data / LABELLING if data.is_dir() else data.with_name(f"{data.stem}-{LABELLING}")


def write_changed(path: Path, content: Any) -> None:
    """Write a JSON file of ours; one that holds just this already stays as it is, with its time."""
    text = json.dumps(content, allow_nan=False).encode()
    if not path.is_file() or path.read_bytes() != text:
        write_atomically(path, text, overwrite=True)


def write_splits(folder: Path, named: Mapping[str, tuple[Path | None, Path]]) -> None:
    """Write the data.yaml of a folder. named: by split, the annotation file and the folder of images."""
    place = folder.resolve()
    splits: dict[str, dict[str, str]] = {}
    for name, (labels, images) in named.items():
        splits[name] = {"images": os.path.relpath(Path(images).resolve(), place)}
        if labels is not None:
            splits[name]["annotations"] = os.path.relpath(Path(labels).resolve(), place)
    text = yaml.safe_dump({"splits": splits}, sort_keys=True).encode()
    path = folder / "data.yaml"
    if not path.is_file() or path.read_bytes() != text:
        write_atomically(path, text, overwrite=True)


def _seed(store: Store, wanted: int | None) -> int:
    known = store.about().get("seed")
    if known is None:
        store.tell("seed", wanted or 0)
        return wanted or 0
    if wanted is not None and known != wanted:
        about = f"{store.path} has answers about the points of seed {known}, not {wanted}"
        raise ConfigError(f"{about}; give --seed {known}")
    return int(known)


def _review_folder(folder: Path, name: str, content: bytes) -> Path:
    """The folder of a review of this file. Another file of the same name, from another round, has one of its own."""
    number = 1
    while True:
        place = folder / (f"review-{name}" if number == 1 else f"review-{name}-{number}")
        copy = place / PSEUDO_FILE
        if not copy.is_file() or copy.read_bytes() == content:
            return place
        number += 1


def _not_labelled(labels: Labels, about: tuple[Source, Path], units: Sequence[Unit]) -> tuple[Unit, ...]:
    """The pseudo-labels of photographs that a person may decide about: not those of a photograph that is held out for
    validation, nor those of objects that have labels; but those that give an object of the labels a mask.
    """
    source, folder = about
    content, _ = labels.content(without=folder)  # what this review has brought in is open for a second look
    place = Path(os.path.realpath(labels.source.images))
    images = {os.path.realpath(image_path(place, row["file_name"])): row for row in content["images"]}
    rows: dict[Any, list[Row]] = {row["id"]: [] for row in content["images"]}
    by_id = {row["id"]: row for row in content["annotations"]}
    for row in content["annotations"]:
        rows[row["image_id"]].append(row)
    held = {str(path) for path in labels.held()}

    def is_open(unit: Unit) -> bool:
        thing = source.things[source.thing_index[unit.target]]
        path = os.path.realpath(source.pictures[thing.picture].path)
        if path in held:
            return False
        image = images.get(path)
        if image is None:
            return True
        mine = by_id.get(thing.id)
        if mine is not None and is_same(mine, thing.row, image["id"]):
            return True
        return not image.get("exhaustive") and not any(_overlap(thing.row, row) for row in rows[image["id"]])

    return tuple(unit for unit in units if is_open(unit))


def _overlap(pseudo: Row, row: Row) -> bool:
    """Whether a pseudo-label is, by its box, of an object that has a label: a box of much the same place, or a point in
    it.
    """
    if not pseudo.get("bbox"):
        return False
    x, y, w, h = pseudo["bbox"]
    point = row.get("point")
    if point and not row.get("bbox"):
        return bool(x <= point[0] <= x + w and y <= point[1] <= y + h)
    if not row.get("bbox"):
        return False
    x2, y2, w2, h2 = row["bbox"]
    wide, high = min(x + w, x2 + w2) - max(x, x2), min(y + h, y2 + h2) - max(y, y2)
    common = max(wide, 0.0) * max(high, 0.0)
    return bool(common > SAME_OBJECT_IOU * (w * h + w2 * h2 - common))
