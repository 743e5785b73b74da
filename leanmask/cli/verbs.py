"""Which file has which verb. A file is imported when one of its verbs is asked for: most need torch, which takes
seconds to load, and labelling, checking and splitting do not need it, nor does the list of verbs.
"""

from __future__ import annotations

import copy
import importlib
from typing import Any

import typer.main
from typer.core import TyperCommand, TyperGroup

# File -> verb -> what it does, in the order of --help.
VERBS: dict[str, dict[str, str]] = {
    "leanmask.cli.data": {
        "digits": "Write the embedded benchmark, handwritten digits in photographs, as a COCO data set.",
        "check": "Validate a data set and count what is labelled how. Exit code 1 when it "
        "has errors; with --fix, the copy.",
        "split": "Make a validation split, or a partly labelled data set from a fully labelled one; what is "
        "taken away is kept.",
        "budget": "What labels cost: those that are there, those of every object under each scheme, and "
        "what hours of work buy.",
    },
    "leanmask.cli.collect": {
        "annotate": "Label in the browser: classify points, draw boxes, or review pseudo-labels. Ctrl-C "
        "writes the labels.",
        "convert": "Convert labels to and from Label Studio and CVAT, and from COCO panoptic; what a format cannot "
        "say is counted.",
    },
    "leanmask.cli.plans": {
        "plan": "The settings that `train` would choose for these data on this machine, each with its reason.",
        "suggest": "What to label next: objects and images by expected gain per second, each with its "
        "reason in a sentence.",
    },
    "leanmask.cli.retrieval": {
        "retrieve": "Find unlabelled images that look like the objects of rare classes.",
    },
    "leanmask.cli.runs": {
        "train": "Train a model. The same command under torchrun uses many GPUs or machines.",
        "evaluate": "Average precision, with a table per class.",
        "predict": "Segment images: COCO results in your own category ids, and overlay pictures.",
        "pseudo": "Label images nobody labelled, or objects that have a point: a COCO file, accepted as training data.",
        "refine": "Improve rough masks, whoever made them, around their points or mass centres.",
        "quality": "How good pseudo-labels are, and how far class and mask quality can be trusted.",
        "report": "Write one HTML page: census, curves, per-class AP, pictures, pseudo-label quality.",
    },
    "leanmask.cli.trials": {
        "bench": "A protocol's whole table; rows that are there already are skipped, so it can be built in pieces.",
        "demo": "The main job on the embedded benchmark: data, sparse split, baseline and MaskBooster, "
        "table and report.",
        "doctor": "Versions, devices, optional extras, and a tiny forward and backward pass.",
    },
}
_FILE_OF = {verb: module for module, verbs in VERBS.items() for verb in verbs}


class Verbs(TyperGroup):
    """The app's verbs, each loaded with its file on first use."""

    def listing(self) -> Verbs:
        """The same group with nothing but names and sentences: enough to show them, or to know which was meant."""
        names = copy.copy(self)
        names.commands = {
            verb: TyperCommand(verb, help=does) for verbs in VERBS.values() for verb, does in verbs.items()
        }
        return names

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The list of all verbs."""
        super(Verbs, self.listing()).format_help(ctx, formatter)

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
        """As Typer does it, which suggests what an unknown verb may have been."""
        known = not args or args[0] in _FILE_OF or args[0].startswith("-")
        return super(Verbs, self if known else self.listing()).resolve_command(ctx, args)
