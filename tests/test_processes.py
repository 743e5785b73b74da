"""A child process ends with its parent, whatever it is doing."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

PARENT = """
import multiprocessing, signal, time
from leanmask.processes import end_with_parent

def child(say):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
    say.send("ready")
    time.sleep(600)

if __name__ == "__main__":
    hear, say = multiprocessing.Pipe(False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(say,))
    process.start()
    hear.recv()
    print(process.pid, flush=True)
    time.sleep(600)
"""


def test_a_child_that_ignores_signals_ends_with_its_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)  # it lives
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if _gone(child):
            return
        time.sleep(0.1)
    os.kill(child, 9)
    pytest.fail("the child outlived its parent by 20 seconds")


def _gone(pid: int) -> bool:
    """Ended, perhaps not yet collected by the process that inherited it."""
    try:
        state = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0]  # noqa: PTH123, SIM115
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"
