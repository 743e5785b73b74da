"""Work on many images that any number of processes share and that a kill cannot lose: every process appends one line
per image to a file of its own, in order, and a later start goes on after the last complete line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmask.data.files import why
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
