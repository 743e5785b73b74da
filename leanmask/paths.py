"""What a person may hand over where one or several things are meant: one of them, a list, a generator."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from leanmask.errors import ConfigError

PathLike = str | os.PathLike[str]
OneOrMorePaths = PathLike | Iterable[PathLike]
OneOrMoreTexts = str | Iterable[str]


def as_path(given: PathLike) -> Path:
    """One path. Raises ConfigError for an empty text, which would mean the current folder, and for what is no path."""
    if isinstance(given, os.PathLike):
        return Path(given)
    if not isinstance(given, str):
        raise ConfigError(f"{given!r} is no path; give a text or a pathlib.Path")
    if not given.strip():
        raise ConfigError("a path is empty; write . for the current folder")
    return Path(given)


def image_path(folder: Path, name: str) -> Path:
    """Where an image lies that a file of annotations calls `name`: with \\ between folders, as tools on
    Windows write it, where nothing has the name as it stands.
    """
    path = folder / name
    return folder / name.replace("\\", "/") if "\\" in name and not path.exists() else path


def as_paths(given: OneOrMorePaths) -> list[Path]:
    """One path or several, in order; what a generator raises is passed on. Raises ConfigError as `as_path` does."""
    if isinstance(given, str | os.PathLike):
        return [as_path(given)]
    return [as_path(each) for each in _several(given, "paths")]


def as_texts(given: OneOrMoreTexts) -> list[str]:
    """One text or several, in order. Raises ConfigError for what is none."""
    texts = [given] if isinstance(given, str) else list(_several(given, "texts"))
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(f"{text!r} is no text")
    return texts


def settle_fields(options: Any, *, texts: Iterable[str] = (), paths: Iterable[str] = ()) -> None:
    """For `__post_init__` of frozen options: fields that hold several texts become tuples, those of one path a `Path`.
    None stays None. Raises ConfigError.
    """
    for name in (name for name in texts if getattr(options, name) is not None):
        object.__setattr__(options, name, tuple(as_texts(getattr(options, name))))
    for name in (name for name in paths if getattr(options, name) is not None):
        object.__setattr__(options, name, as_path(getattr(options, name)))


def _several(given: Any, what: str) -> Iterable[Any]:
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise ConfigError(f"{given!r} is neither one nor several {what}")
    return given
