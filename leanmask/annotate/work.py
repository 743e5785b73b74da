"""A labelling session: what is labelled, the answers about it, and the labels that are written from them."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanmask.annotate.desk import Desk
from leanmask.annotate.export import Exported, export_review
from leanmask.annotate.labels import LabelOptions, Labels, Review
from leanmask.annotate.queue import read_queue
from leanmask.annotate.source import Source
from leanmask.annotate.statistics import Measured, measure
from leanmask.annotate.store import Store
from leanmask.annotate.tasks import Job, Kind, Unit, drawn_things, units_of
from leanmask.data.files import write_json
from leanmask.data.views.canvas import Exif
from leanmask.errors import ConfigError, DataError
from leanmask.options import FROM_ONE, FROM_ZERO, SHARE, check_fields, require_options
from leanmask.paths import settle_fields


@dataclass(frozen=True)
class AnnotateOptions:
    """What is labelled, by whom, and where the answers go.

    boxes: draw boxes on images that have none, instead of classifying points. review: a file of pseudo-labels to accept
    or reject. queue: what `leanmask suggest` chose. annotators: None = the user's own name. overlap: share (0-1) of the
    objects that two people label. store: None = `labelling/` in the data. val_share: share (0-1) of names of images; of
    a folder of images alone, those whose objects are all labelled are for validation. None = as before, at first a
    fifth. seed: None = as before, at first 0. points, round: see `Job`. Raises ConfigError for values that cannot be.
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
    seed: int | None = None
    store: Path | None = None
    exif: Exif | None = None
    val_share: float | None = None

    def __post_init__(self) -> None:
        settle_fields(self, texts=("classes", "annotators"), paths=("review", "queue", "store"))
        check_fields(self, points=FROM_ONE, round=FROM_ONE, overlap=SHARE, seed=FROM_ZERO)


@dataclass(frozen=True)
class AnnotateSummary:
    """What a session left: the labels, and a data set to train on. images: of every split, where they were written.
    review: of a review, its own data set, which also has the pseudo-labels that nobody has looked at. notes: sentences.
    """

    labels: Path
    data: Path | None
    exported: Exported
    measured: Measured
    images: Mapping[str, int] = field(default_factory=dict)
    review: Path | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        exported = {**vars(self.exported), "decisions": dict(self.exported.decisions)}
        data, review = (str(path) if path else None for path in (self.data, self.review))
        about = {"labels": str(self.labels), "data": data, "review": review, "images": dict(self.images)}
        return {**about, "notes": list(self.notes), "exported": exported, **self.measured.to_json()}

    def to_text(self) -> str:
        lines = [self.measured.to_text(), f"{self.exported.to_text()}: {self.labels}", *self.notes]
        if self.images:
            lines.append(f"images: {', '.join(f'{number} {name}' for name, number in sorted(self.images.items()))}")
        if self.data and "train" in (self.images or ("train",)):
            lines.append(f"train on it: leanmask train {self.data} --out runs/NAME")
        if self.review:
            lines.append(f"with the pseudo-labels that nobody looked at: leanmask train {self.review} --out runs/NAME")
        return "\n".join(lines)


@dataclass(frozen=True)
class Work:
    """A session, opened. labels: of the whole data set. review: where the session is one."""

    options: AnnotateOptions
    labels: Labels
    review: Review | None

    @classmethod
    def open(cls, data: str | Path, options: AnnotateOptions) -> Work:
        """To be closed. Raises DataError, ConfigError or RunError with what the user can do."""
        require_options(options, AnnotateOptions)
        if options.review and (options.boxes or options.queue):
            raise ConfigError("--review looks at pseudo-labels; give --boxes or --queue in a session of their own")
        own = options.store
        if own is not None and options.review:  # of the decisions alone; the labels are where they are
            own = own.with_name(f"{options.split}.sqlite")
            own = own if own.is_file() else None
        wanted = LabelOptions(options.split, options.classes, options.exif, options.seed, options.val_share, own)
        labels = Labels.open(data, wanted)
        if options.review is None:
            return cls(options, labels, None)
        try:
            review = Review.open(labels, options.review, cls._job("review", options, labels), options.store)
        except BaseException:
            labels.store.discard()
            raise
        return cls(options, labels, review)

    @property
    def source(self) -> Source:
        return self.review.source if self.review else self.labels.source

    @property
    def store(self) -> Store:
        return self.review.store if self.review else self.labels.store

    def close(self) -> None:
        """Close the files of answers."""
        if self.review:
            self.review.store.close()
        self.labels.store.close()

    def discard(self) -> None:
        """Close the files of answers of a session with nothing to do; files that were made for it are removed. A folder
        of images alone remembers its classes, unless they were named for a review.
        """
        if self.review:
            self.review.discard()
        if self.review or self.labels.photos is None:
            self.labels.store.discard()
        else:
            self.labels.store.close()

    @staticmethod
    def _job(kind: Kind, options: AnnotateOptions, labels: Labels) -> Job:
        return Job(kind, options.points, options.round, labels.seed, options.overlap)

    def desk(self) -> tuple[Desk, int]:
        """The session's desk, and how many masks a queue asks for that are to be drawn elsewhere. Raises DataError when
        there is nothing to do.
        """
        options = self.options
        kind: Kind = "review" if self.review else "boxes" if options.boxes else "points"
        job = self._job(kind, options, self.labels)
        units: list[Unit] | None = None
        masks = 0
        if options.queue:
            answers = list(self.store.answers())
            answered: dict[int, int] = {}
            for answer in answers:
                if answer.kind == "points":
                    answered[answer.target] = max(answered.get(answer.target, 0), answer.position + 1)
            units, masks = read_queue(options.queue, self.source, job, drawn_things(self.source, answers), answered)
        elif self.review:
            units = list(self.review.units)
        elif kind == "boxes" and self.labels.photos is not None:
            # Who draws boxes on an image draws all of its objects, also those that a review has brought in.
            some = self.labels.accepted()
            units = [unit for unit in units_of(self.source, job) if self.source.pictures[unit.target].id not in some]
        desk = Desk(self.source, self.store, job, options.annotators or (_user(),), units)
        if not desk.dealer.units:
            raise DataError(self._nothing(kind, masks))
        return desk, masks

    def _nothing(self, kind: str, masks: int) -> str:
        if masks:
            return f"{self.options.queue} asks for {masks} masks alone; `leanmask convert` takes them to a drawing tool"
        if self.review:
            if self.review.left_out:
                return (
                    f"{self.source.origin} has no objects to review: all {self.review.left_out} are on images that are "
                    "gone or held out for validation, or of objects that have labels"
                )
            return f"{self.source.origin} has no objects to review"
        if kind == "boxes":
            return f"every image of {self.source.origin} has annotations, or is said to be empty; no boxes to draw"
        return (
            f"{self.source.origin} has no object with a box and without a mask or points: all are labelled, or have no "
            "boxes yet; then draw boxes first: leanmask annotate DATA --boxes"
        )

    def export(self, out: Path | None = None) -> AnnotateSummary:
        """Write the labels: to the new file `out`, or, as at every stop, into the labelling folder, where they are the
        data set to train on.
        """
        measured = measure(answers := list(self.store.answers()))
        if self.review:
            content, exported = export_review(self.source, answers)
            if out is None:
                reviewed, written = self.review.write(self.labels, content)
                data = written.data if self.labels.photos is not None else self.review.folder
                own = self.review.folder if self.labels.photos is not None else None
                notes = self._new(written.notes)
                return AnnotateSummary(reviewed, data, exported, measured, written.images, own, notes)
        elif out is None:
            done = self.labels.write()
            notes = self._new(done.notes)
            return AnnotateSummary(done.labels, done.data, done.exported, measured, done.images, notes=notes)
        else:
            content, exported = self.labels.content()
        write_json(out, content)
        return AnnotateSummary(out, None, exported, measured, notes=self.labels.notes)

    def _new(self, notes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(note for note in notes if note not in self.labels.notes)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without user names
        return "annotator"
