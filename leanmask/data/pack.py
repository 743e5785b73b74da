"""A COCO file cut into one piece of JSON per image, on disk and memory-mapped, so that loader processes share it.

A pack is a folder: images.bin (the pieces end to end), offsets.npy ((n + 1,) int64 byte positions), flags.npy ((n,)
uint8), meta.json and digest (a hash of the others). It is written once per content of the annotation file and read by
every process.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from leanmask.data.files import content_digest, require_regular, why
from leanmask.errors import DataError

FILES = ("images.bin", "offsets.npy", "flags.npy", "meta.json")
DIGEST = "digest"
DAYS_KEPT = 90  # of a pack that nobody opens
FORMAT = 7  # part of every key: raise it when the pieces change


@dataclass(frozen=True)
class Piece:
    """One image of a pack: its JSON, and a small number that can be read without it."""

    content: dict[str, Any]
    flag: int


class Pack:
    """The pieces of one annotation file. Pickling it sends the folder's name only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open()

    def _open(self) -> None:
        self.offsets: npt.NDArray[np.int64] = np.load(self.folder / "offsets.npy", mmap_mode="r")
        self.flags: npt.NDArray[np.uint8] = np.load(self.folder / "flags.npy", mmap_mode="r")
        path = self.folder / "images.bin"
        if path.stat().st_size != self.offsets[-1]:
            raise ValueError(f"{path} is cut off")
        empty = np.zeros(0, dtype=np.uint8)  # an empty file cannot be mapped
        self._blob: npt.NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r") if self.offsets[-1] else empty

    def __len__(self) -> int:
        return len(self.flags)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        content: dict[str, Any] = json.loads(self._blob[start:end].tobytes())
        return content

    def meta(self) -> dict[str, Any]:
        """What was written beside the pieces."""
        content: dict[str, Any] = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
        return content

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder = state["folder"]
        self._open()


def cache_key(path: Path, variant: str) -> str:
    """Name of the pack of a file's present content. Raises DataError when the file cannot be read."""
    try:
        require_regular(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {why(error)}") from None
    return f"v{FORMAT}-{variant}-{digest.hexdigest()}"


def text_key(text: str, variant: str) -> str:
    """As `cache_key`, for content that is no file."""
    return f"v{FORMAT}-{variant}-{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def find_pack(key: str) -> Pack | None:
    """The pack written before under this key, in any of the cache folders that are the user's alone."""
    for folder in filter(_trusted, _cache_folders()):
        try:
            found = _open_whole(folder / key)
        except (OSError, ValueError, EOFError):
            continue  # not there, or damaged: it is written anew
        with suppress(OSError):  # somebody else's cache; then it is theirs to forget
            os.utime(folder / key)
        return found
    return None


def write_pack(key: str, pieces: Iterable[Piece], meta: Callable[[], dict[str, Any]]) -> Pack:
    """Write a pack; several processes may do so at once, the first one wins. `meta` is called after the last
    piece.

    Raises DataError when no cache folder can be written.
    """
    target, reason = _writable_target(key)
    if target is None:
        raise DataError(f"no folder for the annotation cache can be written ({reason}); set LEANMASK_CACHE to one")
    working = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{key}."))
    try:
        _write_files(working, pieces, meta)
        _publish(working, target)
        _forget_unused(target.parent)
        return Pack(target)
    except OSError as error:
        raise DataError(f"cannot write the annotation cache in {target.parent}: {why(error)}") from None
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _write_files(folder: Path, pieces: Iterable[Piece], meta: Callable[[], dict[str, Any]]) -> None:
    lengths, flags = [0], []
    with (folder / "images.bin").open("wb") as file:
        for piece in pieces:
            lengths.append(file.write(json.dumps(piece.content, separators=(",", ":")).encode()))
            flags.append(piece.flag)
    np.save(folder / "offsets.npy", np.cumsum(np.asarray(lengths, dtype=np.int64)))
    np.save(folder / "flags.npy", np.asarray(flags, dtype=np.uint8))
    (folder / "meta.json").write_text(json.dumps(meta()), encoding="utf-8")
    (folder / DIGEST).write_text(_digest(folder))


def _open_whole(folder: Path) -> Pack:
    """Raises OSError, ValueError or EOFError where the pack is not there or not as it was written."""
    if (folder / DIGEST).read_text() != _digest(folder):
        raise ValueError(f"{folder} is damaged")
    return Pack(folder)


def _digest(folder: Path) -> str:
    parts = " ".join(content_digest(folder / name) for name in FILES)
    return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


def _publish(working: Path, target: Path) -> None:
    try:
        working.rename(target)
    except OSError:
        try:
            _open_whole(target)  # another process was first
        except (OSError, ValueError, EOFError):
            shutil.rmtree(target, ignore_errors=True)  # our own cache, damaged
            working.rename(target)


def _forget_unused(folder: Path) -> None:
    """Remove packs that were opened last long ago: the files that they were made of have changed since, or are gone."""
    oldest = time.time() - DAYS_KEPT * 24 * 3600
    for pack in [*folder.glob("v*-*"), *folder.glob(".v*-*")]:  # the dotted ones were never finished
        with suppress(OSError):
            if pack.stat().st_mtime < oldest:
                shutil.rmtree(pack, ignore_errors=True)


def _cache_folders() -> list[Path]:
    chosen = os.environ.get("LEANMASK_CACHE")
    user = os.getuid() if hasattr(os, "getuid") else 0
    usual = Path(chosen) if chosen else Path("~/.cache/leanmask").expanduser()
    return [usual / "annotations", Path(tempfile.gettempdir()) / f"leanmask-{user}" / "annotations"]


def _trusted(folder: Path) -> bool:
    """Whether nobody but this user can have written there: what lies in a shared temporary folder may be anybody's. A
    folder that the user names is trusted, such as a team's.
    """
    chosen = os.environ.get("LEANMASK_CACHE")
    if not hasattr(os, "getuid") or (chosen and folder.parent == Path(chosen)):
        return True
    return all(_only_mine(part) for part in (folder.parent, folder))


def _only_mine(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


def _writable_target(key: str) -> tuple[Path | None, str]:
    reason = ""
    for folder in _cache_folders():
        try:
            for part in (folder.parent, folder):
                part.mkdir(parents=True, exist_ok=True, mode=0o700)
                if not _trusted(folder):
                    part.chmod(0o700)  # made by an older version, in a group's mode; another user's cannot be changed
            if not _trusted(folder):
                reason = reason or f"{folder} is another user's, or others may write there"
                continue
            with tempfile.TemporaryFile(dir=folder):
                return folder / key, ""
        except OSError as error:
            reason = reason or f"{folder}: {why(error)}"
    return None, reason


def return_memory() -> None:
    """Give what a large JSON file left behind back to the system, before loader processes are forked."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return  # another C library; nothing to do
