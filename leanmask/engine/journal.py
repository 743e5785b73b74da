"""The run's diary: one JSON object per line, TensorBoard beside it; resuming drops what will be played again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from leanmask.errors import RunError

NAME = "journal.jsonl"


class Journal:
    """Writes `journal.jsonl` and `tensorboard/` of a run folder. One that is not `active` (other processes) is silent.

    keep_steps: the step that the run goes on from; lines of later steps are dropped, as they will be written again.
    Steps count finished updates. Raises RunError when the disk is full or may not be written.
    """

    def __init__(self, folder: Path, keep_steps: int = 0, active: bool = True) -> None:
        self._path = folder / NAME
        self._active = active
        if not active:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                _drop_later_lines(self._path, keep_steps)
            self._file = self._path.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=keep_steps + 1)
        except OSError as error:
            raise _cannot_write(self._path, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            self._file.close()
            self._board.close()

    def write(self, kind: str, step: int, content: Mapping[str, Any]) -> None:
        """Append one line; numbers and the AP of each class become TensorBoard curves. NaN and infinity become null."""
        if not self._active:
            return
        line = json.dumps(_finite({"kind": kind, "step": step, **content}), ensure_ascii=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
            for tag, value in _curves(kind, content):
                self._board.add_scalar(tag, value, step)
        except OSError as error:
            raise _cannot_write(self._path, error) from None

    def event(self, step: int, message: str, **more: Any) -> None:
        """Something a person should know. more: the same for programs."""
        self.write("event", step, {"message": message, **more})

    def pictures(self, who: str, step: int, pictures: Mapping[str, Any]) -> None:
        """Pictures for TensorBoard alone: (H, W, 3) uint8 arrays by name."""
        if not self._active:
            return
        try:
            for name, pixels in pictures.items():
                self._board.add_image(f"pictures/{who}/{name}", pixels, step, dataformats="HWC")
        except OSError as error:
            raise _cannot_write(self._path, error) from None

    def sync(self) -> None:
        """Wait until everything is on the disk; a checkpoint must never know more than the journal."""
        if not self._active:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._board.flush()
        except OSError as error:
            raise _cannot_write(self._path, error) from None


def _drop_later_lines(path: Path, keep_steps: int) -> None:
    """Rewrite the journal without lines of later steps and without a line that a kill left half-written."""
    kept = [line for line in path.read_bytes().splitlines() if (step := _step(line)) is not None and step <= keep_steps]
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(b"".join(line + b"\n" for line in kept))
    temporary.replace(path)


def _step(line: bytes) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _curves(kind: str, content: Mapping[str, Any]) -> list[tuple[str, float]]:
    prefix = f"{kind}/{content['who']}" if "who" in content else kind
    curves = []
    for key, value in content.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            curves.append((f"{prefix}/{key}", float(value)))
        elif isinstance(value, Mapping):
            numbers = {name: item for name, item in value.items() if isinstance(item, int | float)}
            curves += [(f"{prefix}/{key}/{name}", float(number)) for name, number in numbers.items()]
        elif key == "per_class":
            known = {row["name"]: row.get("AP") for row in value}  # NaN: no object of the class
            curves += [
                (f"per_class_AP/{content['who']}/{name}", ap)
                for name, ap in known.items()
                if isinstance(ap, float) and math.isfinite(ap)
            ]
    return curves


def _cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write {path}: {error.strerror or error}; go on from the last checkpoint when there is room"
    )
