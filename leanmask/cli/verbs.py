"""Which file has which verb. A file is imported when one of its verbs is asked for: most need torch, which takes
seconds to load, and labelling, checking and splitting do not need it.
"""

from __future__ import annotations

import importlib
from typing import Any

import typer.main
from typer.core import TyperGroup

# In the order of --help.
VERBS: dict[str, tuple[str, ...]] = {
    "leanmask.cli.data": ("digits", "check", "split", "budget"),
    "leanmask.cli.collect": ("annotate", "convert"),
    "leanmask.cli.plans": ("suggest",),
    "leanmask.cli.retrieval": ("retrieve",),
    "leanmask.cli.runs": ("train", "evaluate", "predict", "pseudo", "refine", "quality", "report"),
    "leanmask.cli.trials": ("bench", "demo", "doctor"),
}
_FILE_OF = {verb: module for module, verbs in VERBS.items() for verb in verbs}


class Verbs(TyperGroup):
    """The app's verbs, each loaded with its file on first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All verbs, loaded or not."""
        return list(_FILE_OF)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The verb, None for a name that is none."""
        if cmd_name not in _FILE_OF:
            return None
        if cmd_name not in self.commands:
            app = importlib.import_module(_FILE_OF[cmd_name]).app
            loaded = typer.main.get_group(app).commands
            for name, command in loaded.items():
                self.commands.setdefault(name, command)
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As Typer does it; for an unknown verb, Typer's suggestion needs to know them all."""
        if args and args[0] not in _FILE_OF and not args[0].startswith("-"):
            for verb in _FILE_OF:
                self.get_command(ctx, verb)
        return super().resolve_command(ctx, args)
