"""One training at a time in a run folder: two would write over each other's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from leanmask.errors import RunError

LOCK_FILE = ".lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a run folder, which is made where it is not there yet; the system gives the
    folder free when this process ends, however it does. Raises RunError when another one trains there.
    """
    lock = FileLock(folder / LOCK_FILE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"{folder} is being trained by another process; wait for its end, or stop it (Ctrl-C saves everything)"
        ) from None
    except NotImplementedError:
        pass  # a file system without locks: nobody can be kept away there
    except OSError as error:
        raise RunError(f"cannot write the run folder {folder}: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()
