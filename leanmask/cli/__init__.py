"""The command line: thin verbs over the Python functions of the same names. Only this room prints and exits.

Exit codes: 0 done; 1 the check found errors or a measurement is incomplete; 2 a mistake the user can mend, said in a
sentence.
"""

from __future__ import annotations

import sys

from leanmask.cli import data, retrieval, runs, trials  # noqa: F401 (each adds its verbs, in the order of --help)
from leanmask.cli.shared import app
from leanmask.console import messages, print_json
from leanmask.errors import LeanmaskError

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: a user's mistake becomes a sentence and exit code 2, never a traceback."""
    try:
        app()
    except LeanmaskError as error:
        _complain(str(error))
        sys.exit(2)


def _complain(message: str) -> None:
    if "--json" in sys.argv:
        print_json({"error": message})
    messages.print(f"error: {message}", style="red", markup=False, soft_wrap=True)
