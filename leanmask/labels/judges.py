"""Who corrects categories, by name: CLIP, or any function of yours."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leanmask.errors import ConfigError, suggest
from leanmask.labels.clip import clip_judge, open_clip_judge
from leanmask.labels.correct import CategoryJudge

FORMS = "clip:MODEL, open_clip:MODEL/WEIGHTS or python:module:function"


def load_judge(name: str, class_names: Sequence[str], descriptions: str | None = None) -> CategoryJudge:
    """The judge that `name` asks for, for these classes.

    clip: and open_clip: take a hub id or a local folder (see labels/clip.py) and, optionally, a file of descriptions
    per class. python:module:function calls your function with the class names. Raises ConfigError.
    """
    kind, _, rest = name.partition(":")
    if kind not in BUILDERS or not rest:
        near = suggest(kind, BUILDERS) if kind not in BUILDERS else ""
        raise ConfigError(f"judge '{name}' is none{near}; write {FORMS}")
    return BUILDERS[kind](rest, class_names, Path(descriptions) if descriptions else None)


def _python(rest: str, class_names: Sequence[str], descriptions: Path | None) -> CategoryJudge:
    module, _, function = rest.partition(":")
    try:
        build: Callable[[Sequence[str]], Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"judge 'python:{rest}' cannot be imported: {error}; write python:module:function") from None
    return build(class_names)


BUILDERS: dict[str, Callable[[str, Sequence[str], Path | None], CategoryJudge]] = {
    "clip": clip_judge,
    "open_clip": open_clip_judge,
    "python": _python,
}
