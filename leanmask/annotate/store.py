"""The answers that people gave, and who is working on what: one SQLite file in WAL mode, through SQLAlchemy.

One row per answer, never changed but for the time at which it was taken back. An answer is with the operating system
when a call returns, so a kill at any moment loses at most the answer in flight; only when the machine itself loses
power can the last few be lost (see `_SYNC_PAGES`). Knows nothing of COCO or HTTP. Times are seconds since 1970.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError

from leanmask.errors import DataError, RunError

VERSION = 3  # of the tables; raise it with an entry in _MIGRATIONS
SKIPPED, FINISHED = "skip", "done"
# The log is forced onto the disk after so many pages, a few dozen answers. Forcing every answer would make a busy disk
# the measure of how fast twenty people can work.
_SYNC_PAGES = 100

_metadata = sa.MetaData()
_about = sa.Table("about", _metadata, sa.Column("key", sa.String, primary_key=True), sa.Column("value", sa.String))
_answers = sa.Table(
    "answers",
    _metadata,
    sa.Column("id", sa.String, primary_key=True),  # made by the page, so that an answer sent twice is saved once
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("target", sa.Integer, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("value", sa.String, nullable=False),
    sa.Column("annotator", sa.String, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("answered_at", sa.Float, nullable=False),
    sa.Column("undone_at", sa.Float),
    sa.Column("detail", sa.String),  # JSON: the box that was drawn, the class that was meant
)
_once = sa.Index(
    "one_answer_each",
    *(_answers.c[name] for name in ("kind", "target", "position", "annotator")),
    unique=True,
    sqlite_where=_answers.c.undone_at.is_(None),
)
_leases = sa.Table(
    "leases",
    _metadata,
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("target", sa.Integer, primary_key=True),
    sa.Column("annotator", sa.String, primary_key=True),
    sa.Column("tab", sa.String, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
)

_photos = sa.Table(
    "photos",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("modified_ns", sa.BigInteger, nullable=False),
    sa.Column("split", sa.String, nullable=False),
    sa.Column("gone", sa.Boolean, nullable=False),
)

# From a version to the next one. Version 1 collected points alone, so an answer had no detail; version 2 knew the
# images of a folder by their place in it alone, see photos.py.
_MIGRATIONS: dict[int, tuple[str, ...]] = {1: ("ALTER TABLE answers ADD COLUMN detail VARCHAR",), 2: ()}


# What every answer takes, built once: building a statement costs as much as running it.
_SAME = sa.select(_answers.c.id).where(_answers.c.id == sa.bindparam("same"))
_SAVE = sa.insert(_answers).prefix_with("OR IGNORE")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. kind: "points", "boxes" or "review". target: id of the object, or position of the image. position:
    which point or box, -1 for the unit as a whole. seconds: that the person took.
    """

    id: str
    kind: str
    target: int
    position: int
    value: str
    annotator: str
    seconds: float
    answered_at: float = 0.0
    detail: dict[str, Any] | None = None

    def provenance(self) -> dict[str, Any]:
        """Who gave the answer, when (UTC), and how many seconds it took."""
        when = datetime.fromtimestamp(self.answered_at, UTC).isoformat(timespec="milliseconds")
        return {"annotator": self.annotator, "time": when, "seconds": round(self.seconds, 3)}


@dataclass(frozen=True, slots=True)
class Photo:
    """An image of a folder of images alone. number: from 1, never given to another one. name: its path in the folder.
    digest: of its content. modified_ns: when it was read. split: "train" or "val" for ever, "" while it has no labels.
    gone: it was not there when the folder was looked at last.
    """

    number: int
    name: str
    digest: str
    size_bytes: int
    modified_ns: int
    split: str = ""
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """A unit that one tab of one annotator works on until `expires_at`."""

    kind: str
    target: int
    annotator: str
    tab: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class Given:
    """What an annotator has said about a unit: how many of its answers, and whether it is finished as a whole."""

    unit: tuple[str, int]
    annotator: str
    answers: int
    whole: bool


class Store:
    """One file of answers. Use `Store.open`; every call is one transaction. Not for several threads at once."""

    def __init__(self, path: Path, connection: sa.Connection, made: tuple[bool, bool] = (False, False)) -> None:
        self.path = path
        self._connection = connection
        self._made = made  # the file and its folder, just now

    @classmethod
    def open(cls, path: Path, fingerprint: dict[str, str] | None) -> Store:
        """Open or create a store for the source of this fingerprint; an older version is migrated. None: the caller
        looks at whose store it is.

        Raises DataError for a store of another source, of a newer version, or for a file that is no store; RunError
        where it cannot be written or another server has it open.
        """
        made = not path.exists(), not path.parent.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = _connect(path)
        except (OSError, OperationalError) as error:
            raise RunError(f"cannot open the answers {path}: {_reason(error)}; --store names another file") from None
        except DBAPIError as error:
            raise DataError(f"{path} holds no answers of leanmask: {_reason(error)}") from None
        try:
            store = cls(path, connection, made)
            store._prepare(fingerprint)
        except BaseException:
            connection.close()
            connection.engine.dispose()
            raise
        return store

    def close(self) -> None:
        """Close the file; what the write-ahead log holds goes into it."""
        self._connection.close()
        self._connection.engine.dispose()

    def discard(self) -> None:
        """Close the file. One that was made when it was opened, and in which nobody has answered, is removed, and its
        folder where that was made too and holds nothing else.
        """
        file, folder = self._made
        unused = file and not self.given()
        self.close()
        if unused:
            beside = [self.path.with_name(self.path.name + end) for end in ("-wal", "-shm")]
            for path in (self.path, self.path.with_suffix(".lock"), *beside):
                path.unlink(missing_ok=True)
        if unused and folder and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()

    def _prepare(self, fingerprint: dict[str, str] | None) -> None:
        try:
            with self._connection.begin():
                version = int(self._connection.exec_driver_sql("PRAGMA user_version").scalar_one())
                self._bring_up_to_date(version)
            known = self.about()
            if fingerprint is not None and not known.get("fingerprint"):
                self.tell("fingerprint", fingerprint)
        except DBAPIError as error:
            raise DataError(f"{self.path} holds no answers of leanmask: {_reason(error)}") from None
        if fingerprint is None:
            return
        before = known.get("fingerprint", fingerprint)
        differs = [name for name, digest in before.items() if fingerprint.get(name) != digest]
        if differs:
            raise DataError(
                f"{self.path} has answers about another data set: the {' and the '.join(differs)} differ. Nothing was "
                "changed; name another file with --store, or label the data set that it belongs to"
            )

    def _bring_up_to_date(self, version: int) -> None:
        if version > VERSION:
            raise DataError(f"{self.path} is of version {version}, from a newer leanmask; this one reads {VERSION}")
        if version == 0 and sa.inspect(self._connection).get_table_names():
            raise DataError(f"{self.path} is a database of something else; --store names another file")
        for old in range(version, VERSION) if version else ():
            for statement in _MIGRATIONS[old]:
                self._connection.exec_driver_sql(statement)
        _metadata.create_all(self._connection)
        self._connection.exec_driver_sql(f"PRAGMA user_version = {VERSION}")

    def about(self) -> dict[str, Any]:
        """What the store remembers of its source and settings."""
        with self._connection.begin():
            return {key: json.loads(value) for key, value in self._connection.execute(sa.select(_about))}

    def tell(self, key: str, value: Any) -> None:
        """Remember a JSON value under a key."""
        with self._connection.begin():
            row = {"key": key, "value": json.dumps(value)}
            self._connection.execute(sa.insert(_about).prefix_with("OR REPLACE").values(row))

    def photos(self) -> list[Photo]:
        """The images of a folder of images alone, by number."""
        with self._connection.begin():
            rows = self._connection.execute(sa.select(_photos).order_by(_photos.c.number)).all()
        return [Photo(*row) for row in rows]

    def keep_photos(self, photos: Sequence[Photo]) -> None:
        """Write images down, new ones and changed ones."""
        rows = [{name: getattr(photo, name) for name in Photo.__slots__} for photo in photos]
        if rows:
            with self._connection.begin():
                self._connection.execute(sa.insert(_photos).prefix_with("OR REPLACE"), rows)

    def save(self, answer: Answer) -> str:
        """Save one answer: "saved"; "known" when this very answer is there already, also if it was taken back since;
        "conflict" when the annotator has answered the same question already, which then stands.
        """
        values = {name: getattr(answer, name) for name in Answer.__slots__}
        values["detail"] = None if answer.detail is None else json.dumps(answer.detail)
        values["answered_at"] = answer.answered_at or time.time()
        with self._connection.begin():
            if self._connection.execute(_SAME, {"same": answer.id}).first():
                return "known"
            done = self._connection.execute(_SAVE, values)
            return "saved" if done.rowcount else "conflict"

    def undo(self, answer_id: str, annotator: str) -> Answer | None:
        """Take an answer of one's own back; None when there is no such answer. Doing it twice is doing it once."""
        mine = (_answers.c.id == answer_id) & (_answers.c.annotator == annotator)
        with self._connection.begin():
            row = self._connection.execute(sa.select(_answers).where(mine)).first()
            if row is not None and row.undone_at is None:
                self._connection.execute(sa.update(_answers).where(mine).values(undone_at=time.time()))
        return None if row is None else _answer(row)

    def stands(self, answer_id: str) -> bool:
        """Whether an answer is there and was not taken back."""
        query = sa.select(_answers.c.undone_at).where(_answers.c.id == answer_id)
        with self._connection.begin():
            row = self._connection.execute(query).first()
        return row is not None and row.undone_at is None

    def answers(self) -> Iterator[Answer]:
        """The answers that stand, in the order of kind, target, position and annotator."""
        order = [_answers.c[name] for name in ("kind", "target", "position", "annotator")]
        query = sa.select(_answers).where(_answers.c.undone_at.is_(None)).order_by(*order)
        with self._connection.begin():
            for row in self._connection.execute(query):
                yield _answer(row)

    def given(self) -> list[Given]:
        """What every annotator has said so far about every unit, in numbers."""
        what = (_answers.c.kind, _answers.c.target, _answers.c.annotator)
        pieces = sa.func.sum(sa.case((_answers.c.position >= 0, 1), else_=0))
        query = sa.select(*what, pieces, sa.func.min(_answers.c.position)).where(_answers.c.undone_at.is_(None))
        with self._connection.begin():
            rows = self._connection.execute(query.group_by(*what)).all()
        return [Given((kind, target), who, count, least < 0) for kind, target, who, count, least in rows]

    def about_unit(self, kind: str, target: int, annotator: str) -> list[Answer]:
        """What an annotator has said about one unit, by position."""
        same = (_answers.c.kind == kind) & (_answers.c.target == target) & (_answers.c.annotator == annotator)
        query = sa.select(_answers).where(same & _answers.c.undone_at.is_(None)).order_by(_answers.c.position)
        with self._connection.begin():
            return [_answer(row) for row in self._connection.execute(query)]

    def leases(self, now: float) -> list[Lease]:
        """The leases that have not expired."""
        query = sa.select(_leases).where(_leases.c.expires_at > now)
        with self._connection.begin():
            return [Lease(*row) for row in self._connection.execute(query)]

    def lend(self, leases: Sequence[Lease]) -> None:
        """Write leases down, or prolong them."""
        rows = [{name: getattr(lease, name) for name in Lease.__slots__} for lease in leases]
        if rows:
            with self._connection.begin():
                self._connection.execute(sa.insert(_leases).prefix_with("OR REPLACE"), rows)


def _connect(path: Path) -> sa.Connection:
    if not path.exists():
        path.touch(mode=0o600)  # it holds the token of its page
    # The desk has a lock of its own, so one connection may be used by whichever thread holds it.
    engine = sa.create_engine(
        f"sqlite:///{path}", connect_args={"check_same_thread": False, "timeout": 5}, poolclass=sa.pool.StaticPool
    )
    connection = engine.connect()
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", f"wal_autocheckpoint = {_SYNC_PAGES}"):
        connection.exec_driver_sql(f"PRAGMA {pragma}")
    connection.rollback()
    return connection


def _answer(row: Any) -> Answer:
    values = {name: getattr(row, name) for name in Answer.__slots__}
    return Answer(**{**values, "detail": None if row.detail is None else json.loads(row.detail)})


def _reason(error: Exception) -> str:
    original = getattr(error, "orig", None)
    if isinstance(original, sqlite3.Error):
        return str(original)
    return str(getattr(error, "strerror", None) or error)
