"""`leanmask suggest`: which objects or images to label next, with which kind of label, within hours of work."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from leanmask.annotate.labels import Skipped, labelling_folder, read_skipped, refresh_labels
from leanmask.costs import LabelCosts
from leanmask.data.appearance import looks
from leanmask.data.coco import AnnotationStore, ClassMap, ImageRecord, ObjectRecord
from leanmask.data.dataset import ImageSource
from leanmask.data.files import write_json
from leanmask.data.layout import labelled_data, locate, photo_folder
from leanmask.data.unlabelled import SPLIT as UNLABELLED
from leanmask.data.unlabelled import ImagePool
from leanmask.data.views.canvas import Exif
from leanmask.errors import ConfigError, DataError, counted
from leanmask.errors import suggest as nearest
from leanmask.inference.doubt import Doubts, is_bare, measure_doubt, networks
from leanmask.inference.predict import few, load
from leanmask.labels.budget import seconds_of
from leanmask.labels.worth import Candidate, Choice, Doubt, Shelf, Shopping, choose, share_of_mask
from leanmask.options import check_fields, require_options
from leanmask.paths import as_path, settle_fields
from leanmask.reports.layout import Table, count
from leanmask.supervision import Supervision

QUEUE_FORMAT = 1
GUESSED_OBJECTS = 1  # on an image that nobody and no network has looked at
SHOWN = 10

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class SuggestOptions:
    """hours: of labelling. run: whose doubts count; None = rarity and diversity alone. points: per object, those it has
    included. split: None = "train"; of a folder of images alone, all but "val". masks: whether masks are for sale; the
    annotation page has none, another tool draws them. expected_objects: per image, for images without labels where no
    run tells or sees anything; None = the mean of the labelled images. exif: None = "apply" for a folder of images
    alone, as they are labelled, else "error". Raises ConfigError for values that cannot be.
    """

    hours: float
    run: Path | None = None
    split: str | None = None
    points: int = 10
    masks: bool = True
    costs: LabelCosts = field(default_factory=LabelCosts)
    expected_objects: float | None = None
    exif: Exif | None = None

    def __post_init__(self) -> None:
        settle_fields(self, paths=("run",))
        check_fields(self)
        self.shopping()
        if self.expected_objects is not None and not 0 < self.expected_objects < math.inf:
            raise ConfigError(f"{self.expected_objects} objects expected on an image; allowed: above 0")

    def shopping(self) -> Shopping:
        """What can be bought. Raises ConfigError for hours or points that cannot be."""
        return Shopping(seconds_of(self.hours), self.points, self.masks, self.costs)


@dataclass(frozen=True)
class Suggestion:
    """One label to buy. points_before: how many the object has already. why: a sentence."""

    kind: str
    image_id: int | str
    annotation_id: int | None
    points: int
    seconds: float
    gain: float
    why: str
    points_before: int = 0

    def to_json(self) -> dict[str, Any]:
        item: dict[str, Any] = {"kind": self.kind, "image_id": self.image_id}
        item |= {} if self.annotation_id is None else {"annotation_id": self.annotation_id}
        item |= {"points": self.points, "points_before": self.points_before} if self.kind == "points" else {}
        return {**item, "seconds": round(self.seconds, 3), "gain": round(self.gain, 6), "why": self.why}


@dataclass(frozen=True)
class Suggested:
    """The labels to buy, best first. notes: what has changed in the data, and what was not looked at, as sentences."""

    data: str
    split: str
    run: str | None
    hours: float
    items: tuple[Suggestion, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What `leanmask annotate --queue` reads."""
        about = {"leanmask_queue": QUEUE_FORMAT, "data": self.data, "split": self.split, "run": self.run}
        return {**about, "hours": self.hours, "items": [item.to_json() for item in self.items]}

    def to_text(self) -> str:
        kinds = Counter(item.kind for item in self.items)
        spent = sum(item.seconds for item in self.items) / 3600
        told = ", ".join(_bought(kind, number) for kind, number in kinds.most_common()) or "nothing"
        lines = [f"{told}: {spent:.2f} of {counted(self.hours, 'hour')}"]
        lines += self.notes
        return "\n".join([*lines, *(f"{place}. {item.why}" for place, item in enumerate(self.items[:SHOWN], start=1))])

    def table(self) -> Table:
        """Labels and seconds by kind."""
        kinds = Counter(item.kind for item in self.items)
        rows = [
            [kind, count(kinds[kind]), f"{sum(i.seconds for i in self.items if i.kind == kind) / 3600:,.2f}"]
            for kind in sorted(kinds)
        ]
        return Table(f"What to label in {counted(self.hours, 'hour')}", ("label", "how many", "hours"), rows)


def _bought(kind: str, number: int) -> str:
    return {
        "boxes": f"boxes on {counted(number, 'image')}",
        "points": f"points on {counted(number, 'object')}",
        "mask": counted(number, "mask"),
    }[kind]


def suggest(
    data: str | Path, options: SuggestOptions, *, out: str | Path | None = None, on_progress: OnProgress | None = None
) -> Suggested:
    """Rank what is not labelled yet, and was not skipped, by expected gain per second, and write the queue file `out`.

    Raises DataError when the data cannot be used, RunError for a run that is none, ConfigError for data
    without classes, DataError where the run and the data mean different things by one class name or id. Objects of
    classes that the run does not know are in full doubt, and a note says so.
    """
    require_options(options, SuggestOptions)
    data = as_path(data)
    if out is not None and as_path(out).exists():
        raise DataError(f"{out} exists already and is never overwritten; give another name")
    notes = refresh_labels(data)
    store, classes, told = _images(data, options.split)
    if not len(classes):
        raise ConfigError(f"{data} names no classes; label a few images first: leanmask annotate DATA --boxes")
    doubts = _doubts(store, classes, options, told, on_progress)
    records = [store[index] for index in range(len(store))]
    exif = options.exif or ("error" if photo_folder(data) is None else "apply")
    skipped = read_skipped(data, options.split or "train")
    candidates, shelf = _candidates(records, doubts, (options, exif, skipped), on_progress)
    chosen = choose([candidate for candidate, _ in candidates], options.shopping(), shelf)
    where = {candidate.target: record for candidate, record in candidates}
    names = classes.names
    items = tuple(_suggestion(choice, where[choice.candidate.target], names, options) for choice in chosen)
    run = str(options.run) if options.run else None
    found = Suggested(str(data), options.split or "train", run, options.hours, items, (*notes, *told, *skipped.notes))
    if out is not None:
        write_json(out, found.to_json())
    return found


def free_queue(data: str | Path) -> Path:
    """Where the next queue of a data set goes: queue.json, queue-2.json, ... beside the labels that it leads to."""
    folder = labelling_folder(labelled_data(data))
    names = itertools.chain(["queue.json"], (f"queue-{number}.json" for number in itertools.count(2)))
    return next(folder / name for name in names if not (folder / name).exists())


def _images(data: str | Path, split: str | None) -> tuple[ImageSource, ClassMap, list[str]]:
    """The images to choose among, the classes, and what is not looked at, as sentences."""
    photos = photo_folder(data)
    if photos is not None and not (labelling_folder(labelled_data(data)) / "data.yaml").is_file():
        first = f"leanmask annotate {data} --boxes --classes NAME,NAME"
        raise DataError(f"{data} has no labels yet; label a few images first: {first}")
    splits = locate(data)
    if photos is not None and split == "val":
        raise DataError(f"the images of split 'val' of {data} are for measuring; nothing is suggested there")
    if photos is not None and split is None:
        names = [name for name in ("train", UNLABELLED) if name in splits]
    else:
        names = [split or "train"]
    if not names or names[0] not in splits:
        raise DataError(f"{data} has no split '{split or 'train'}'{nearest(split or 'train', splits)}")
    # Images of another split than `train`, such as a folder of unlabelled ones, are of the training data's classes.
    classes: ClassMap | None = None
    train = splits.get("train")
    if train is not None and names != ["train"]:
        classes = AnnotationStore.open(train.annotations, train.images, unannotated="unlabelled").classes
    stores = tuple(
        AnnotationStore.open(splits[name].annotations, splits[name].images, unannotated="unlabelled", classes=classes)
        for name in names
    )
    told = []
    if split is None and UNLABELLED in splits and UNLABELLED not in names:
        told.append(f"the images of the split '{UNLABELLED}' were not looked at; --split {UNLABELLED} does that")
    return (stores[0] if len(stores) == 1 else ImagePool(stores)), stores[0].classes, told


def _doubts(
    store: ImageSource, classes: ClassMap, options: SuggestOptions, told: list[str], on_progress: OnProgress | None
) -> Doubts | None:
    if options.run is None:
        return None
    loaded = load(options.run)
    everything = loaded.classes.joined(classes, "the data")
    unseen = everything.names[len(loaded.classes) :]
    if unseen:
        shown = few([f"'{name}'" for name in unseen])
        told.append(f"{options.run} does not know {shown}: the masks of such objects are in full doubt")
    source = _AsRunKnows(store, tuple(map(everything.names.index, classes.names)), len(loaded.classes))
    doubts = measure_doubt(networks(loaded, options.run), source, on_progress)
    for index in range(len(store)):
        doubts.objects |= {
            item.id: Doubt(0.0, 1.0) for item in store[index].counted if classes.names[item.category] in unseen
        }
    back = [classes.names.index(name) if name in classes.names else None for name in loaded.classes.names]
    doubts.expected = {
        image_id: [(None if category is None else back[category], doubt) for category, doubt in seen]
        for image_id, seen in doubts.expected.items()
    }
    return doubts


@dataclass(frozen=True)
class _AsRunKnows:
    """Images with the class indices of a run, by the data's own. A class from `known` on is none that it has learned:
    what is asked about such an object is thrown away.
    """

    source: ImageSource
    indices: tuple[int, ...]
    known: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> ImageRecord:
        record = self.source[index]
        objects = tuple(replace(item, category=self._category(item)) for item in record.objects)
        known = None
        if record.known_categories is not None:
            known = tuple(own for each in record.known_categories if (own := self.indices[each]) < self.known)
        return replace(record, objects=objects, known_categories=known)

    def _category(self, item: ObjectRecord) -> int:
        own = self.indices[item.category]
        return own if own < self.known else 0


def _candidates(
    records: Sequence[ImageRecord],
    doubts: Doubts | None,
    how: tuple[SuggestOptions, Exif, Skipped],
    on_progress: OnProgress | None,
) -> tuple[list[tuple[Candidate, ImageRecord]], Shelf]:
    """What could be labelled, with its image, and what is labelled already."""
    options, exif, skipped = how
    bare = [is_bare(record) for record in records]
    boxes = [_boxes(record, empty) for record, empty in zip(records, bare, strict=True)]
    groups = looks(records, boxes, exif, on_progress)
    expected = options.expected_objects or _mean_objects(records)
    shelf, found = Shelf(), []
    for record, empty, own in zip(records, bare, groups, strict=True):
        if empty:
            objects = _expected(record, doubts, expected)
            look, typical = int(own.group[0]), float(own.typical[0])
            if look >= 0 and record.id not in skipped.images:  # one that cannot be read cannot be labelled
                found.append((Candidate(("image", record.id), "image", objects, look, 0.0, typical), record))
            continue
        for item, look, typical in zip(_boxed(record), own.group.tolist(), own.typical.tolist(), strict=True):
            doubt = None if doubts is None else doubts.objects.get(item.id)
            points = None if item.supervision == Supervision.MASK else len(item.point_labels)
            about = ((item.category, doubt),)
            candidate = Candidate(("object", item.id), "object", about, look, _worth(item), typical, points)
            shelf.add("box", candidate, 1.0)
            if candidate.has > share_of_mask(0):
                shelf.add("mask", candidate, candidate.has)
            if candidate.has < 1 and look >= 0 and item.id not in skipped.objects:
                found.append((candidate, record))
    return found, shelf


def _boxed(record: ImageRecord) -> list[ObjectRecord]:
    """The objects with a box. Those of weight 0 are left out: somebody has rejected them."""
    return [item for item in record.counted if np.isfinite(item.box_xyxy).all()]


def _boxes(record: ImageRecord, empty: bool) -> np.ndarray:
    if empty:
        return np.array([[0.0, 0.0, record.width, record.height]])
    return np.asarray([item.box_xyxy for item in _boxed(record)], dtype=np.float64).reshape(-1, 4)


def _worth(item: ObjectRecord) -> float:
    """What an object's label is worth now, as a share of a mask. Pseudo-masks count as the box that they may be."""
    if item.supervision == Supervision.MASK:
        return 1.0 if item.provenance == "human" else share_of_mask(0)
    return share_of_mask(len(item.point_labels))


def _mean_objects(records: Iterable[ImageRecord]) -> float:
    counts = [len(record.counted) for record in records if record.counted or record.exhaustive]
    return sum(counts) / len(counts) if counts else float(GUESSED_OBJECTS)


def _expected(record: ImageRecord, doubts: Doubts | None, mean: float) -> tuple[tuple[int | None, Doubt | None], ...]:
    """What a run sees on an image; where none is asked, or it sees nothing, so many objects as are usual."""
    seen = doubts.expected.get(record.id) if doubts is not None else None
    return tuple(seen) if seen else ((None, None),) * max(round(mean), 1)


def _suggestion(choice: Choice, record: ImageRecord, names: Sequence[str], options: SuggestOptions) -> Suggestion:
    candidate = choice.candidate
    number = candidate.target[1] if candidate.kind == "object" else None  # type: ignore[index]
    why = _sentence(choice, record, names, options.run is not None)
    before = candidate.points or 0 if choice.kind == "points" else 0
    return Suggestion(choice.kind, record.id, number, choice.points, choice.seconds, choice.gain, why, before)


def _sentence(choice: Choice, record: ImageRecord, names: Sequence[str], with_run: bool) -> str:
    """Why a label was chosen: what it is for, how rare and typical that is, how unsure the run is, and the price."""
    candidate, seconds = choice.candidate, f"{choice.seconds:.0f} s"
    rare = f"rarity {choice.rarity:.2f} (1 = nothing of its class and look is labelled)"
    rare += f", typical {candidate.typical:.2f} (1 = the middle of the commonest look)"
    if candidate.kind == "image":
        about = f"; {_seen(candidate)}" if with_run else ""
        return f"Boxes on image {record.id} ({record.path.name}), {seconds}: {rare}{about}."
    category, doubt = candidate.objects[0]
    label = f"{counted(choice.points, 'point')} on" if choice.kind == "points" else "A mask of"
    name = names[category] if category is not None else "object"
    about = ""
    if with_run and doubt is not None:
        about = f"; the run doubts the masks of objects like it by {doubt.mask:.0%}"
        if doubt.disagreement is not None:
            about += f", student and teacher differ by {doubt.disagreement:.0%}"
    share = f"worth {choice.share:.0%} of a mask more"
    return f"{label} '{name}' {candidate.target[1]} in image {record.id}, {seconds}, {share}: {rare}{about}."  # type: ignore[index]


def _seen(candidate: Candidate) -> str:
    doubts = [doubt for _, doubt in candidate.objects if doubt is not None]
    if not doubts:
        usual = counted(len(candidate.objects), "object")
        return f"the run sees nothing there, {usual} {'is' if len(candidate.objects) == 1 else 'are'} usual"
    mean = sum(doubt.total for doubt in doubts) / len(doubts)
    return f"the run expects {counted(len(doubts), 'object')} there, in doubt by {mean:.0%}"
