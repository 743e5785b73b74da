"""What the fields of options may hold, checked where they are made: kinds of values as annotated, and ranges."""

from __future__ import annotations

import math
import numbers
from collections.abc import Set
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from leanmask.errors import ConfigError, suggest

# Of a single field; bool is an int to Python and no number to a person.
KINDS: dict[Any, tuple[type, str]] = {
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a text"),
    bool: (bool, "True or False"),
    Path: (Path, "a path"),
    frozenset: (Set, "a set"),
}
FROM_ZERO, FROM_ONE, SHARE = (0, math.inf), (1, math.inf), (0, 1)


def check_fields(options: Any, **ranges: tuple[float, float]) -> None:
    """For `__post_init__` of a dataclass of options: every value is of the kind that its field is annotated with, and
    numbers lie in the closed ranges (least, most), where infinity itself lies in none. None is allowed where the
    annotation has it. Raises ConfigError.
    """
    for name, hint in get_type_hints(type(options)).items():
        require_kind(name, getattr(options, name), hint)
    for name, limits in ranges.items():
        if getattr(options, name) is not None:
            require_range(name, getattr(options, name), *limits)


def require_options(given: Any, kind: type) -> None:
    """Raise ConfigError where something else is given, such as a dict, in the place of options of this class."""
    if not isinstance(given, kind):
        raise ConfigError(f"options must be leanmask.{kind.__name__}(...), found {type(given).__name__} {given!r}")


def require_kind(name: str, value: Any, hint: Any) -> None:
    """Raise ConfigError where a value is not of an annotated kind. Insides of collections are not looked at."""
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and NoneType in choices:
        return
    allowed = [choice for choice in choices if choice is not NoneType]
    for choice in allowed:
        if get_origin(choice) is Literal:
            if value in get_args(choice):
                return
            if isinstance(value, str):
                raise ConfigError(f"{name} is '{value}'{suggest(value, get_args(choice))}")
            continue
        kind, _ = _kind(choice)
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return
    words = [*(_kind(choice)[1] for choice in allowed), *(["None"] if NoneType in choices else [])]
    raise ConfigError(f"{name} is {value!r}; allowed: {' or '.join(words)}")


def require_range(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Raise ConfigError where a number is not from `least` to `most`, or not finite."""
    if not (least <= value <= most and math.isfinite(value)):
        allowed = f"{least:g} or more" if math.isinf(most) else f"{least:g} to {most:g}"
        raise ConfigError(f"{name} is {value}; allowed: {allowed}")


def _kind(hint: Any) -> tuple[type, str]:
    """The class that values of a hint have, and what that is called."""
    if get_origin(hint) is Literal:
        return str, " or ".join(f"'{each}'" for each in get_args(hint))
    kind = get_origin(hint) or hint
    return KINDS.get(kind, (kind, f"a {kind.__name__}"))
