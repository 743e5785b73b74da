"""Child processes that do not outlive the one that started them."""

from __future__ import annotations

import os
import signal
import threading
import time

_CHECK_SECONDS = 1.0


def end_with_parent() -> None:
    """Kill this process soon after its parent has gone, even where it waits for a pipe or catches other signals."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
