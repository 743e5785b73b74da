"""Work on many images that any number of processes share and that a kill cannot lose: every process appends one line
per image to a file of its own, in order, and a later start goes on after the last complete line.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmask.data.files import read_json, why, write_json
from leanmask.errors import RunError


@dataclass(frozen=True)
class Shares:
    """The files of all processes in `folder`. rank, world: this process and how many share the work."""

    folder: Path
    rank: int = 0
    world: int = 1

    @property
    def own(self) -> Path:
        return self._path(self.rank)

    def done(self) -> int:
        """How many images this process has finished; what a kill left of a line is cut off."""
        if not self.own.is_file():
            return 0
        content = self.own.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with self.own.open("r+b") as file:
                file.truncate(end)
        return content.count(b"\n")

    def append(self, batches: Iterable[Iterable[Any]]) -> Iterator[int]:
        """Write one line of JSON per item, and yield after every batch how many items it had.

        Raises RunError when the disk is full or permission is missing; what was written stays.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.own.open("a", encoding="utf-8") as file:
                for items in batches:
                    lines = [json.dumps(item, allow_nan=False) + "\n" for item in items]
                    file.writelines(lines)
                    file.flush()
                    yield len(lines)
        except OSError as error:
            raise RunError(
                f"cannot write {self.own}: {why(error)}; what is there is kept, start again when it can be written"
            ) from None

    def read(self) -> Iterator[Any]:
        """Everybody's items, in the order of the images: the first of every process, then the second, ..."""
        files = [self._path(rank).open(encoding="utf-8") for rank in range(self.world)]
        try:
            while lines := [line for file in files if (line := file.readline())]:
                yield from map(json.loads, lines)
        finally:
            for file in files:
                file.close()

    def remove(self) -> None:
        """Delete the files of all processes."""
        for rank in range(self.world):
            self._path(rank).unlink(missing_ok=True)

    def _path(self, rank: int) -> Path:
        return self.folder / f"share-{rank + 1}-of-{self.world}.jsonl"


def file_state(path: Path) -> list[Any]:
    """What changes when a file does: its place, size and time."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def require_same_work(folder: Path, wanted: dict[str, Any]) -> None:
    """Note in `folder` what its unfinished work is about. Raises RunError when it is about something else."""
    path = folder / "work.json"
    if not path.is_file():
        write_json(path, wanted)
        return
    found = read_json(path)
    changed = [name for name in wanted if found.get(name) != json.loads(json.dumps(wanted[name]))]
    if changed:
        raise RunError(
            f"{folder} holds unfinished work for this file, made with other {' and '.join(changed)}; finish it with "
            "the same arguments, or remove that folder to start anew"
        )


def remove_parts(folder: Path) -> None:
    """Delete a folder of unfinished work, when the work is finished."""
    shutil.rmtree(folder)
