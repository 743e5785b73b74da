"""The command line: thin verbs over the Python functions of the same names. Only this room prints and exits.

Exit codes: 0 done; 1 the check found errors or a measurement is incomplete; 2 a mistake the user can mend, said in a
sentence; 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys

# torch's threads wait asleep, not spinning, unless the user says otherwise; OpenMP reads it when torch is loaded. On
# cores that other programs use as well, a thread that spins keeps from work the one it waits for.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from leanmask.cli.shared import app
from leanmask.console import messages, print_json
from leanmask.errors import ConfigError, LeanmaskError

__all__ = ["app", "main"]


INTERRUPTED = 130  # what typer exits with, without a word, at Ctrl-C


def main() -> None:
    """Entry point: a mistake becomes a sentence and exit code 2, never a traceback; so does Ctrl-C, with code 130,
    where no verb has more to say of it.
    """
    try:
        if "" in sys.argv[1:]:  # a variable of the shell that is not set would be read as the current folder
            raise ConfigError(
                f"argument {sys.argv.index('', 1)} of the command is empty; write . for the current folder"
            )
        app()
    except LeanmaskError as error:
        _complain(str(error))
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            _complain("stopped by Ctrl-C")
        raise


def _complain(message: str) -> None:
    if "--json" in sys.argv:
        print_json({"error": message})
    messages.print(f"error: {message}", style="red", markup=False, soft_wrap=True)
