"""Write docs/configuration.md from the config classes: `python docs/generate.py`. A test keeps it up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from leanmask.config import AugmentConfig, DataConfig, EvaluationConfig, Frozen, OptimConfig, TrainConfig
from leanmask.methods import METHODS
from leanmask.models import MODELS

PAGE = Path(__file__).parent / "configuration.md"

INTRO = """# Configuration reference

Generated from the code by `python docs/generate.py`. Settings come from a YAML file (`--config`), then from dotted
overrides on the command line, later ones winning:

```
leanmask train mydata --out runs/a --config my.yaml train.steps=5000 'augment.scale_jitter=[0.5,1.5]'
```

Unknown keys and wrong values are refused before anything is written, with the nearest valid name. Every run folder
holds its settings, resolved, in `config.yaml`.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [INTRO]
    for name, config in (
        ("data", DataConfig),
        ("augment", AugmentConfig),
        ("optim", OptimConfig),
        ("train", TrainConfig),
        ("evaluation", EvaluationConfig),
    ):
        parts.append(_section(name, config))
    parts += [_section("model", model.Config, name) for name, model in MODELS.items()]
    parts += [_section("method", method.Config, name) for name, method in METHODS.items()]
    return "\n".join(parts)


def _section(prefix: str, config: type[Frozen], name: str | None = None) -> str:
    title = f"## {prefix}" + (f": `{name}`" if name else "")
    meaning = " ".join((config.__doc__ or "").split())
    lines = [title, "", meaning, "", "| setting | type | default | meaning |", "|---|---|---|---|"]
    for key, field in config.model_fields.items():
        description = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{prefix}.{key}` | {_type(field.annotation)} | {_default(field)} | {description} |")
    return "\n".join(lines) + "\n"


def _type(annotation: Any) -> str:
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return " \\| ".join(f"`{value}`" for value in parts)
    if type(None) in parts:
        return " \\| ".join([_type(part) for part in parts if part is not type(None)] + ["`null`"])
    return str(annotation) if parts else str(annotation.__name__)


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "*required*"
    value = field.default
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return "`null`" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
