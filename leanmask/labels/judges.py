"""Who corrects categories, by name: CLIP, or any function of yours."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmask.errors import ConfigError, suggest
from leanmask.labels.clip import Look, clip_judge, open_clip_judge
from leanmask.labels.correct import CategoryJudge

FORMS = "clip:MODEL, open_clip:MODEL/WEIGHTS or python:module:function"

USUAL_LOOK: dict[str, Look] = {"clip": "boxes", "open_clip": "masks"}  # what suits the library's networks


@dataclass(frozen=True)
class JudgeOptions:
    """For CLIP. descriptions: file of sentences per class, None = the names. look: at cut-outs of the boxes or inside
    the masks, None = what suits the library's networks.
    """

    descriptions: str | None = None
    look: Look | None = None


def load_judge(name: str, class_names: Sequence[str], options: JudgeOptions = JudgeOptions()) -> CategoryJudge:
    """The judge that `name` asks for, for these classes.

    clip: and open_clip: take a hub id or a local folder (see labels/clip.py) and, optionally, a file of descriptions
    per class. python:module:function calls your function with the class names. Raises ConfigError.
    """
    kind, _, rest = name.partition(":")
    if kind not in BUILDERS or not rest:
        near = suggest(kind, BUILDERS) if kind not in BUILDERS else ""
        raise ConfigError(f"judge '{name}' is none{near}; write {FORMS}")
    if kind == "python" and (options.look or options.descriptions):
        setting = "judge_look" if options.look else "judge_descriptions"
        raise ConfigError(f"method.{setting} is for clip: and open_clip:; judge '{name}' is a function, which has none")
    return BUILDERS[kind](rest, class_names, options)


def _clip(rest: str, class_names: Sequence[str], options: JudgeOptions) -> CategoryJudge:
    return clip_judge(rest, class_names, _file(options), options.look or USUAL_LOOK["clip"])


def _open_clip(rest: str, class_names: Sequence[str], options: JudgeOptions) -> CategoryJudge:
    return open_clip_judge(rest, class_names, _file(options), options.look or USUAL_LOOK["open_clip"])


def _file(options: JudgeOptions) -> Path | None:
    return Path(options.descriptions) if options.descriptions else None


def _python(rest: str, class_names: Sequence[str], options: JudgeOptions) -> CategoryJudge:
    module, _, function = rest.partition(":")
    try:
        build: Callable[[Sequence[str]], Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"judge 'python:{rest}' cannot be imported: {error}; write python:module:function") from None
    return build(class_names)


BUILDERS: dict[str, Callable[[str, Sequence[str], JudgeOptions], CategoryJudge]] = {
    "clip": _clip,
    "open_clip": _open_clip,
    "python": _python,
}
