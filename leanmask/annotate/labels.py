"""Everything that people have said about one data set, and the labels that are written from it: one place for the
answers of every kind of session and of every round, and one data set to train on.

    labelling/train.sqlite            answers; another split's lie in SPLIT.sqlite
    labelling/instances_SPLIT.json    the labels, with the decisions of all reviews; data.yaml names them
    labelling/labels.json             of a folder of images alone: the labels of all splits
    labelling/review-NAME/            one file of pseudo-labels: a copy, the answers, `reviewed.json` with decisions;
                                      of a folder of images alone `photographs.json`: the content each name means
"""

from __future__ import annotations

import dataclasses
import json
import operator
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from leanmask.annotate.export import Exported, by_split, export_labels, is_same, join
from leanmask.annotate.photos import names_of, open_photos, photo_files
from leanmask.annotate.source import Source, SourceOptions, folder_of_pseudo, open_pseudo, open_source
from leanmask.annotate.store import SKIPPED, Photo, Store
from leanmask.annotate.tasks import Job, Unit, units_of
from leanmask.data.annotation import Row
from leanmask.data.files import content_digest, read_json, write_atomically
from leanmask.data.layout import ALL_LABELS, LABELLING, labelled_data, locate, photo_folder
from leanmask.data.views.canvas import Exif
from leanmask.errors import ConfigError, DataError, LeanmaskError
from leanmask.paths import image_path

VAL_SHARE = 0.2
PSEUDO_FILE, REVIEWED_FILE = "pseudo.json", "reviewed.json"
PHOTOGRAPHS_FILE = "photographs.json"  # of a review: the digest of every image by its file name in the review
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
    """labels: the file of all labels, which `exported` counts. data: what to train on. images: of every split. notes:
    sentences.
    """

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
                _know_photographs(folder, photos, store.photos())  # by the names that they had until now
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

    def content(self, without: Path | None = None, notes: list[str] | None = None) -> tuple[dict[str, Any], Exported]:
        """All labels as a COCO file's content: what was there, what people said, and the decisions of all reviews but
        the one in the folder `without`. notes: gets sentences about decisions that do not count now.
        """
        content, exported = export_labels(self.source, list(self.store.answers()), self.seed)
        for folder in self.reviews():
            if folder != without:
                content, told = self._with_review(content, folder)
                if notes is not None:
                    notes.extend(told)
        images, objects = len(content["images"]), len(content["annotations"])
        return content, dataclasses.replace(exported, images=images, objects=objects)

    def accepted(self) -> set[Any]:
        """Ids of the images with objects that a review has brought in."""
        content, _ = self.content()
        rows = (row for row in content["annotations"] if "review" in row and row.get("weight", 1.0) > 0)
        return {row["image_id"] for row in rows}

    def reviews(self) -> list[Path]:
        """The folders of all reviews that have decided something."""
        return sorted(path.parent for path in self.folder.glob(f"review-*/{REVIEWED_FILE}"))

    def _with_review(self, content: dict[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
        reviewed = read_json(folder / REVIEWED_FILE)
        before = folder / PSEUDO_FILE
        rows = {row["id"]: row for row in (read_json(before) if before.is_file() else reviewed)["annotations"]}
        decided = {row["id"] for row in reviewed["annotations"] if "review" in row}
        present, away = self.present(reviewed, folder)
        lost = [row["image_id"] for row in reviewed["annotations"] if row["id"] in decided and row["image_id"] in away]
        notes = []
        if lost:
            told = names_of(sorted({away[number] for number in lost}))
            notes.append(
                f"decisions of {folder} do not count now ({len(lost)} in all), because their photographs are not in "
                f"{self.photos}: {told}; they are kept, and count again when the photographs are back, under any name"
            )
        return self.joined(content, present, rows, decided), notes

    def present(self, reviewed: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[Any, str]]:
        """The content of the review in `folder` with the names that its photographs have now, without the images whose
        photographs are not there; and of those the ids, with the names that they had.
        """
        digests = _digests(folder) if self.photos is not None else {}
        if self.photos is None or not digests:
            return reviewed, {}
        images = folder_of_pseudo(reviewed, self.source.images)
        found = _Present(self.photos, self.store.photos())
        rows, away = [], {}
        for row in reviewed["images"]:
            name = row["file_name"]
            if name not in digests:  # an image from elsewhere
                rows.append(row)
            elif (path := found.path(digests[name], images / name)) is None:
                away[row["id"]] = name
            elif path == images / name:
                rows.append(row)
            else:
                place = os.path.relpath(os.path.realpath(path), os.path.realpath(images))
                rows.append({**row, "file_name": Path(place).as_posix()})
        same = len(rows) == len(reviewed["images"]) and all(map(operator.is_, rows, reviewed["images"]))
        return (reviewed if same else {**reviewed, "images": rows}), away

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
        return {Path(os.path.realpath(self.photos / each.name)) for each in self._there() if each.split == "val"}

    def _there(self) -> list[Photo]:
        """The photographs that are there: under the name of one that is gone another one may lie."""
        return [each for each in self.store.photos() if not each.gone]

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
        content, exported = dataclasses.replace(self, source=source).content(notes=notes)
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
        data = self.data if self.folder == labelling_folder(self.data) else self.folder
        return Written(self.folder / ALL_LABELS, data, counts, exported, (*notes, *told))


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
    made: frozenset[Path] = frozenset()  # files that were written when it was opened

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
        made = frozenset(p for name in (PSEUDO_FILE, PHOTOGRAPHS_FILE) if not (p := folder / name).exists())
        store = Store.open(path, source.fingerprint())
        try:
            _seed(store, labels.options.seed)
            if not (folder / PSEUDO_FILE).is_file():
                write_atomically(folder / PSEUDO_FILE, content)
            units = tuple(units_of(source, job))
            asked = units
            if labels.photos is not None:
                _know_reviewed(folder, source, labels.photos, labels.store.photos())
                source, away = _with_present_names(labels, source, folder)
                there = [unit for unit in units if source.things[source.thing_index[unit.target]].picture not in away]
                asked = _not_labelled(labels, (source, folder), there)
        except BaseException:
            _remove(folder, made)
            store.discard()
            raise
        before = {thing.id: thing.row for thing in source.things}
        return cls(folder, source, store, asked, len(units) - len(asked), before, made)

    def discard(self) -> None:
        """Close the file of answers. One that was begun just now and has no answers leaves nothing."""
        if not self.store.given():
            _remove(self.folder, self.made)
        self.store.discard()

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
            # The folder may have changed while people reviewed.
            now, _ = open_photos(labels.store, labels.photos, SourceOptions("train", (), labels.options.exif))
            labels = dataclasses.replace(labels, source=now)
        whole, _ = labels.content(without=self.folder)
        present, _ = labels.present(content, self.folder)
        merged = labels.joined(whole, present, self.before, kept)
        split = labels.options.split
        path = self.folder / f"instances_{split}.json"
        named = locate(labels.data if labels.photos is None else written.data)
        splits = {name: (each.annotations, each.images) for name, each in named.items()}
        if merged is whole:  # of other classes than the labels
            own = reviewed
            if present is not content:
                there = {row["id"] for row in present["images"]}
                rows = [row for row in present["annotations"] if row["image_id"] in there]
                write_changed(own := path, {**present, "annotations": rows})
            write_splits(self.folder, splits | {split: (own, self.source.images)})
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


@dataclass(frozen=True)
class Skipped:
    """What somebody skipped, which the page serves no more: ids of images in sessions of boxes, of objects in sessions
    of points. notes: sentences.
    """

    images: Set[Any] = frozenset()
    objects: Set[int] = frozenset()
    notes: tuple[str, ...] = ()


def read_skipped(data: str | Path, split: str = "train") -> Skipped:
    """What was skipped of a split; of a folder of images alone, of the whole folder. Where the answers cannot be used a
    note says so.
    """
    split = split if photo_folder(data) is None else "train"
    if not (labelling_folder(labelled_data(data)) / f"{split}.sqlite").is_file():
        return Skipped()
    try:
        labels = Labels.open(data, LabelOptions(split))
        try:
            skips = [answer for answer in labels.store.answers() if answer.value == SKIPPED]
        finally:
            labels.store.close()
    except LeanmaskError as error:
        return Skipped(notes=(f"what was skipped is suggested again: {error}",))
    pictures = labels.source.pictures
    images = {pictures[each.target].id for each in skips if each.kind == "boxes" and each.target < len(pictures)}
    return Skipped(images, {each.target for each in skips if each.kind == "points"})


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


def _remove(folder: Path, made: Iterable[Path]) -> None:
    """Take back the files of a review that were written just now, where nothing was decided in it before."""
    if (folder / REVIEWED_FILE).exists():
        return
    for path in made:
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _digests(folder: Path) -> dict[str, str]:
    """The digest of every photograph of a review by its file name there; "" where nobody knows which one was meant."""
    path = folder / PHOTOGRAPHS_FILE
    return read_json(path) if path.is_file() else {}


def _in_folder(path: Path, photos: Path) -> str | None:
    """The name of a file in the folder of photographs, None for a file elsewhere."""
    real, place = Path(os.path.realpath(path)), Path(os.path.realpath(photos))
    return real.relative_to(place).as_posix() if real.is_relative_to(place) else None


def _know_photographs(folder: Path, photos: Path, known: Sequence[Photo]) -> None:
    """Write down which photographs the reviews of an earlier leanmask are about, which knew them by name alone. known:
    as the folder was looked at last. A name that has come since means nothing to a review.
    """
    older = [path for path in folder.glob("review-*") if not (path / PHOTOGRAPHS_FILE).is_file()]
    digests = {each.name: each.digest for each in sorted(known, key=lambda each: not each.gone)}
    meant = set(digests.values())
    listed = {path.relative_to(photos).as_posix() for path in photo_files(photos)} if older else set()
    for place in older:
        path = next((place / name for name in (PSEUDO_FILE, REVIEWED_FILE) if (place / name).is_file()), None)
        if path is None:
            continue
        content = read_json(path)
        images = folder_of_pseudo(content, photos)
        found = {}
        for row in content["images"]:
            name = _in_folder(images / row["file_name"], photos)
            if name is not None and (name in listed or not (photos / name).is_file()):
                own = digests.get(name) or content_digest(photos / name)
                found[row["file_name"]] = own if own in meant else ""
        write_changed(place / PHOTOGRAPHS_FILE, found)


def _know_reviewed(folder: Path, source: Source, photos: Path, known: Sequence[Photo]) -> None:
    """Write down which photographs a review is about, from the first time that each of them is there."""
    digests = {each.name: each.digest for each in known if not each.gone}
    there = set(digests.values())
    found = _digests(folder)
    for picture, row in zip(source.pictures, source.content["images"], strict=True):
        name = _in_folder(picture.path, photos)
        if name is None or row["file_name"] in found:
            continue
        digest = digests.get(name) or content_digest(picture.path)
        if digest in there:
            found[row["file_name"]] = digest
    write_changed(folder / PHOTOGRAPHS_FILE, found)


class _Present:
    """Where photographs lie now, by their content."""

    def __init__(self, photos: Path, known: Sequence[Photo]) -> None:
        self._paths: dict[str, list[Path]] = {}
        for each in known:
            if not each.gone:
                self._paths.setdefault(each.digest, []).append(photos / each.name)

    def path(self, digest: str, before: Path) -> Path | None:
        """The file of a photograph: `before` where it still lies there, None where it is gone."""
        paths = self._paths.get(digest, [])
        same = [before for path in paths if os.path.realpath(path) == os.path.realpath(before)]
        return next(iter([*same, *paths]), None)


def _with_present_names(labels: Labels, source: Source, folder: Path) -> tuple[Source, set[int]]:
    """The source of a review with its photographs where they lie now, and the positions of those that are gone."""
    rows = [{"id": number, "file_name": row["file_name"]} for number, row in enumerate(source.content["images"])]
    content, away = labels.present({**source.content, "images": rows}, folder)
    pictures = list(source.pictures)
    for row in content["images"]:
        pictures[row["id"]] = dataclasses.replace(pictures[row["id"]], path=source.images / row["file_name"])
    return dataclasses.replace(source, pictures=tuple(pictures)), set(away)


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
