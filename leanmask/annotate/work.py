"""A labelling session on disk: what is labelled, the answers about it, and the labels that are written from them."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from leanmask.annotate.desk import Desk
from leanmask.annotate.export import Exported, by_use, export_labels, export_review, join
from leanmask.annotate.queue import read_queue
from leanmask.annotate.source import Source, SourceOptions, open_pseudo, open_source
from leanmask.annotate.statistics import Measured, measure
from leanmask.annotate.store import Store
from leanmask.annotate.tasks import Job, Kind, Unit
from leanmask.data.files import write_atomically, write_json
from leanmask.data.layout import locate
from leanmask.data.views.canvas import Exif
from leanmask.data.withholding.chance import shuffled
from leanmask.errors import ConfigError, DataError
from leanmask.paths import settle_fields


@dataclass(frozen=True)
class AnnotateOptions:
    """What is labelled, by whom, and where the answers go.

    boxes: draw boxes on images that have none, instead of classifying points. review: a file of pseudo-labels to accept
    or reject. queue: what `leanmask suggest` chose. annotators: None = the user's own name. overlap: share (0-1) of the
    objects that two people label. store: None = `labelling/` beside the data. hold_out: share of a plain folder's
    images that become the validation split. seed, points, round: see `Job`.
    """

    split: str = "train"
    points: int = 10
    round: int = 1
    boxes: bool = False
    review: Path | None = None
    queue: Path | None = None
    classes: tuple[str, ...] = ()
    annotators: tuple[str, ...] | None = None
    overlap: float = 0.0
    seed: int = 0
    store: Path | None = None
    exif: Exif | None = None
    hold_out: float = 0.2

    def __post_init__(self) -> None:
        settle_fields(self, texts=("classes", "annotators"), paths=("review", "queue", "store"))


@dataclass(frozen=True)
class AnnotateSummary:
    """What a session left: the labels, and a data set to train on that names them."""

    labels: Path
    data: Path | None
    exported: Exported
    measured: Measured

    def to_json(self) -> dict[str, Any]:
        exported = {**vars(self.exported), "decisions": dict(self.exported.decisions)}
        data = str(self.data) if self.data else None
        return {"labels": str(self.labels), "data": data, "exported": exported, **self.measured.to_json()}

    def to_text(self) -> str:
        lines = [self.measured.to_text(), f"{self.exported.to_text()}: {self.labels}"]
        if self.data:
            lines.append(f"train on it: leanmask train {self.data} --out runs/NAME")
        return "\n".join(lines)


@dataclass(frozen=True)
class Work:
    """A source with its answers, opened. folder: where the labels are written."""

    data: Path
    options: AnnotateOptions
    source: Source
    store: Store
    folder: Path

    @classmethod
    def open(cls, data: str | Path, options: AnnotateOptions) -> Work:
        """Raises DataError, ConfigError or RunError with what the user can do."""
        data = Path(data).expanduser()
        if options.review and (options.boxes or options.queue):
            raise ConfigError("--review looks at pseudo-labels; give --boxes or --queue in a session of their own")
        source = open_source(data, SourceOptions(options.split, options.classes, options.exif))
        folder = labelling_folder(data) if options.store is None else options.store.parent
        name = options.split
        if options.review:
            source, name = open_pseudo(options.review, source.images, options.exif), f"review-{options.review.stem}"
            folder = folder / name if options.store is None else folder
        if not source.pictures:
            raise DataError(f"{source.origin} has no images")
        store = Store.open(options.store or folder / f"{name}.sqlite", source.fingerprint())
        try:
            _require_seed(store, options.seed)
        except ConfigError:
            store.close()
            raise
        return cls(data, options, source, store, folder)

    def desk(self) -> tuple[Desk, int]:
        """The session's desk, and how many masks a queue asks for that are to be drawn elsewhere. Raises DataError when
        there is nothing to do.
        """
        options = self.options
        kind: Kind = "review" if options.review else "boxes" if options.boxes else "points"
        job = Job(kind, options.points, options.round, options.seed, options.overlap)
        units: list[Unit] | None = None
        masks = 0
        if options.queue:
            units, masks = read_queue(options.queue, self.source, job)
        desk = Desk(self.source, self.store, job, options.annotators or (_user(),), units)
        if not desk.dealer.units:
            raise DataError(self._nothing(kind, masks))
        return desk, masks

    def _nothing(self, kind: str, masks: int) -> str:
        if masks:
            return f"{self.options.queue} asks for {masks} masks alone; `leanmask convert` takes them to a drawing tool"
        if kind == "review":
            return f"{self.source.origin} has no objects to review"
        if kind == "boxes":
            return f"every image of {self.source.origin} has annotations, or is said to be empty; no boxes to draw"
        return (
            f"{self.source.origin} has no object with a box and without a mask or points: all are labelled, or have no "
            "boxes yet; then draw boxes first: leanmask annotate DATA --boxes"
        )

    def export(self, out: Path | None = None) -> AnnotateSummary:
        """Write the labels: to the new file `out`, or, as at every stop, into the session's own folder together with a
        data set to train on.
        """
        answers = list(self.store.answers())
        if self.options.review:
            content, exported = export_review(self.source, answers)
        else:
            content, exported = export_labels(self.source, answers, self.options.seed)
        measured = measure(answers)
        if out is not None:
            write_json(out, content)
            return AnnotateSummary(out, None, exported, measured)
        return AnnotateSummary(*self._write(content), exported, measured)

    def _write(self, content: dict[str, Any]) -> tuple[Path, Path]:
        """The labels, and the folder with the data.yaml that names them. They are ours and written again each time."""
        split, images = self.options.split, self.source.images
        labels = self.folder / f"instances_{split}.json"
        files = {split: (labels, content, images)}
        if self.options.review:
            labels = self.folder / "reviewed.json"
            write_json(labels, content, overwrite=True)
            train = open_source(self.data, SourceOptions(split, self.options.classes, self.options.exif))
            known = {row["id"]: row["name"] for row in content["categories"]}
            if not train.plain and known.items() <= train.categories.items():
                whole, _ = export_labels(train, [], self.options.seed)
                before = {thing.id: thing.row for thing in self.source.things}
                merged = join(whole, content, before, (train.images, images))
                files = {split: (self.folder / f"instances_{split}.json", merged, train.images)}
            else:
                files = {split: (labels, content, images)}
        elif self.source.plain:
            order = shuffled(range(len(content["images"])), self.options.seed, "validation")
            parts = by_use(content, self.options.hold_out, order)
            files = {name: (self.folder / f"instances_{name}.json", part, images) for name, part in parts.items()}
        for path, part, _ in files.values():
            write_json(path, part, overwrite=True)
        self._write_yaml({name: (path, folder) for name, (path, _, folder) in files.items()})
        return labels if labels.is_file() else next(iter(files.values()))[0], self.folder

    def _write_yaml(self, written: dict[str, tuple[Path | None, Path]]) -> None:
        others = {} if self.source.plain else locate(self.data)
        named = {name: (found.annotations, found.images) for name, found in others.items()} | written
        place = self.folder.resolve()
        splits: dict[str, dict[str, str]] = {}
        for name, (labels, images) in named.items():
            splits[name] = {"images": os.path.relpath(Path(images).resolve(), place)}
            if labels is not None:
                splits[name]["annotations"] = os.path.relpath(Path(labels).resolve(), place)
        text = yaml.safe_dump({"splits": splits}, sort_keys=True)
        write_atomically(self.folder / "data.yaml", text.encode(), overwrite=True)


def labelling_folder(data: Path) -> Path:
    """Where answers and labels of a data set are kept: a folder of its own inside, or beside the YAML file."""
    return data / "labelling" if data.is_dir() else data.with_name(f"{data.stem}-labelling")


def _require_seed(store: Store, seed: int) -> None:
    known = store.about().get("seed")
    if known is None:
        store.tell("seed", seed)
    elif known != seed:
        raise ConfigError(f"{store.path} has answers about the points of seed {known}, not {seed}; give --seed {known}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without user names
        return "annotator"
