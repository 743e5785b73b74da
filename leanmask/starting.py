"""What a network starts as where it is not what its settings say: the weights of another run, perhaps with other
classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmask.config import get_setting, merge, set_setting
from leanmask.data.coco import ClassMap
from leanmask.engine.checkpoint import fit_weights, load_weights
from leanmask.engine.rng import untouched_rng
from leanmask.errors import ConfigError
from leanmask.inference.predict import weights_path
from leanmask.models.base import Model
from leanmask.models.transfer import transfer_weights
from leanmask.paths import as_path
from leanmask.settings import RunConfig, stored

STUDENT_WEIGHTS = "train.student_weights"
ALIKE = ("name", "backbone", "backbone_options")  # settings of a model without which nothing fits


@dataclass(frozen=True)
class Start:
    """A weights file. config, classes: what it was trained with; None where it does not say."""

    path: Path
    weights: dict[str, Any]
    config: RunConfig | None
    classes: ClassMap | None

    @staticmethod
    def read(path: Path) -> Start:
        """Raises CheckpointError when the file is missing or damaged."""
        weights, metadata = load_weights(path)
        config = stored(json.loads(metadata["config"])) if "config" in metadata else None
        classes = ClassMap.from_json(json.loads(metadata["classes"])) if "classes" in metadata else None
        return Start(path, weights, config, classes)

    def require_normalised_as(self, config: RunConfig) -> None:
        """Raise ConfigError when these weights learned from images that were normalised otherwise than a run's."""
        if self.config is None:
            return
        theirs, ours = (
            (each.model.image_mean, each.model.image_std)  # type: ignore[attr-defined]
            for each in (self.config, config)
        )
        if theirs != ours:
            raise ConfigError(
                f"{self.path} was trained with model.image_mean={list(theirs[0])}, model.image_std={list(theirs[1])}; "
                f"this run has {list(ours[0])}, {list(ours[1])}: set them alike"
            )

    def require_alike(self, model: Mapping[str, Any]) -> None:
        """Raise ConfigError when these weights are of another network than the settings `model` say, as far as these
        say it.
        """
        assert self.config is not None
        own = self.config.model.model_dump(mode="json")
        for key in ALIKE:
            if key in model and model[key] != own[key]:
                raise ConfigError(
                    f"{self.path} has model.{key}={own[key]} and this run model.{key}={model[key]}; a network starts "
                    "as one of its own kind: leave the setting out, or the weights"
                )


def with_model_of_start(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run, with the network of the weights that `train.student_weights` names wherever they say nothing
    of it. A run folder becomes its file of weights. Raises ConfigError for another network, CheckpointError or RunError
    for weights that cannot be read.
    """
    named = get_setting(settings, STUDENT_WEIGHTS)
    if named is None:
        return settings
    start = Start.read(weights_path(as_path(named).expanduser()).absolute())
    settings = set_setting(settings, STUDENT_WEIGHTS, str(start.path))
    if start.config is None:
        return settings
    own = settings.get("model", {})
    own = {"name": own} if isinstance(own, str) else own
    if not isinstance(own, Mapping):
        return settings  # who checks the settings says what is wrong
    start.require_alike(own)
    return {**settings, "model": merge(start.config.model.model_dump(mode="json"), dict(own))}


def start_student(model: Model, path: Path, config: RunConfig, classes: Sequence[str]) -> str:
    """Give a run's student the weights of a file, as far as its classes are known there. Returns what was loaded, as
    the parts of a sentence. Raises ConfigError or CheckpointError for the weights of another network.
    """
    start = Start.read(path)
    start.require_normalised_as(config)
    if start.config is None or start.classes is None:  # not leanmask's own: all of it must fit
        fit_weights(model, start.weights, path)
        return f"loaded {path}"
    start.require_alike(config.model.model_dump(mode="json"))
    with untouched_rng():
        source = start.config.build_model(len(start.classes), pretrained=False)
    fit_weights(source, start.weights, path)
    return f"loaded {path}; {transfer_weights(model, classes, source, start.classes.names).to_text()}"


def start_teacher(model: Model, path: Path, config: RunConfig) -> None:
    """Give a run's teacher all weights of a file. Raises ConfigError or CheckpointError where they do not fit."""
    start = Start.read(path)
    start.require_normalised_as(config)
    fit_weights(model, start.weights, path)
