"""Reading and writing files so that nothing is half written or overwritten, and failures are one sentence."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from leanmask.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your disk quota is used up",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "the disk is read-only",
}


def why(error: OSError) -> str:
    """The reason of a failed read or write in plain words."""
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


def require_regular(path: Path) -> None:
    """Raise OSError when there is no file, or something else than a file of bytes: a pipe or device would be waited for
    without end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def read_json(path: Path | str) -> dict[str, Any]:
    """The JSON object in a file. Raises DataError when it is missing, unreadable, broken or not an object."""
    content = read_any_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object, found {type(content).__name__}")
    return content


def read_any_json(path: Path | str) -> Any:
    """The JSON in a file, whatever it is. Raises DataError when it is missing, unreadable or broken."""
    path = Path(path)
    try:
        require_regular(path)
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {why(error)}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except (UnicodeDecodeError, RecursionError):
        raise DataError(f"{path} is not valid JSON: it is no text, or nested without end") from None


def write_json(path: Path | str, content: Any, *, overwrite: bool = False) -> None:
    """Write a file at once or not at all; numpy values and bytes (RLE counts) become plain JSON.

    Raises DataError when the file exists (unless `overwrite`), when content holds NaN or infinity, when the disk is
    full or permission is missing.
    """
    path = Path(path)
    try:
        text = json.dumps(content, allow_nan=False, default=_plain)
    except ValueError:
        raise DataError(f"cannot write {path}: the content holds NaN or infinity, which JSON does not have") from None
    write_atomically(path, text.encode(), overwrite=overwrite)


def write_atomically(path: Path, content: bytes, *, overwrite: bool = False) -> None:
    """Write bytes into a temporary file beside `path` and move it there. Raises DataError as `write_json` does."""
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists already and is never overwritten; give another name")
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {why(error)}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def content_digest(path: Path) -> str:
    """Hash of a file's bytes; empty when it cannot be read."""
    try:
        require_regular(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return ""


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("ascii")
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def image_files(folder: Path, recursive: bool = False) -> list[Path]:
    """The images that lie in a folder itself, or with `recursive` anywhere below it, sorted by name. Raises DataError
    when a folder cannot be read.
    """
    found: list[Path] = []
    try:
        for root, _, names in os.walk(folder, onerror=_fail):
            found += [Path(root, name) for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
            if not recursive:
                break
    except OSError as error:
        raise DataError(f"cannot read the image folder {error.filename or folder}: {why(error)}") from None
    return sorted(found)


def _fail(error: OSError) -> None:
    raise error
