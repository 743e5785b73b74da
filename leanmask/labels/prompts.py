"""What a vision-language model reads about each class: its name in a sentence, or the user's own descriptions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from leanmask.errors import ConfigError, suggest

TEMPLATE = "a photo of a {name}."
Prompts = tuple[tuple[str, ...], ...]  # of each class, in the order of the contiguous index


def prompts_from_names(class_names: Sequence[str]) -> Prompts:
    """One sentence per class. Raises ConfigError for a class without a name."""
    for index, name in enumerate(class_names):
        if not name.strip():
            raise ConfigError(
                f"class {index} has no name, and CLIP needs one: give descriptions, or name it in the data"
            )
    return tuple((TEMPLATE.format(name=name),) for name in class_names)


def prompts_from_file(path: Path, class_names: Sequence[str]) -> Prompts:
    """The descriptions of each class in a YAML or JSON file {class name: [descriptions]}, read as they are written.

    Raises ConfigError when the file cannot be read, names a class that the data does not have, or leaves one without
    text.
    """
    content = _read(path)
    for name in content:
        if name not in class_names:
            raise ConfigError(f"{path} describes '{name}', which is no class of the data{suggest(name, class_names)}")
    return tuple(_texts(content, name, path) for name in class_names)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot read descriptions {path}: {error.strerror}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is no valid YAML or JSON: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold {{class name: [descriptions]}}, found {type(content).__name__}")
    return {str(name): texts for name, texts in content.items()}


def _texts(content: dict[str, Any], name: str, path: Path) -> tuple[str, ...]:
    if name not in content:
        raise ConfigError(f"{path} does not describe class '{name}'{suggest(name, content)}")
    texts = [content[name]] if isinstance(content[name], str) else content[name]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{path}: the descriptions of '{name}' must be a list of sentences")
    if not texts or not all(text.strip() for text in texts):
        raise ConfigError(f"{path} has a description of '{name}' without any text")
    return tuple(texts)


def class_logits(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """(N, C) one logit per class out of one per description (N, T): the sum of logit * softmax(logit) over the class's
    own, which leans to the best of them (as coded by the authors of PL-DC).

    counts: how many descriptions each of the C classes has; those of a class follow one another, T = sum(counts).
    """
    numbers = torch.tensor(list(counts), device=logits.device)
    place = torch.arange(int(numbers.max()), device=logits.device)
    real = place < numbers[:, None]
    index = torch.where(real, (numbers.cumsum(0) - numbers)[:, None] + place, 0)
    table = logits[:, index]
    shares = table.masked_fill(~real, -torch.inf).softmax(2)
    return (table * shares).sum(2)
