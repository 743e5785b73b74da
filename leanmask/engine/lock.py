"""One training at a time in a run folder: two would write over each other's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from leanmask.errors import RunError

LOCK_FILE = ".lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[str | None]:
    """Keep other processes from training in a run folder, which is made where it is not there yet; the system gives the
    folder free when this process ends, however it does. Yields a sentence where the file system has no locks, so that
    nobody can be kept away; else None. Raises RunError when another one trains there.
    """
    note = None
    lock = FileLock(folder / LOCK_FILE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"{folder} is being trained by another process; wait for its end, or stop it (Ctrl-C saves everything)"
        ) from None
    except NotImplementedError:
        note = f"the file system of {folder} has no locks: take care that nothing else trains this run meanwhile"
    except OSError as error:
        raise RunError(f"cannot write the run folder {folder}: {error.strerror}") from None
    try:
        yield note
    finally:
        lock.release()
