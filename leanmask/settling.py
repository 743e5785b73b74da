"""What a run's settings become before it begins: one that depends on the machine or on the data gets its value, so that
`config.yaml` holds every value, and a run goes on as it began wherever it is resumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from leanmask.config import DataConfig, merge
from leanmask.data.coco import AnnotationStore, Census
from leanmask.data.layout import SplitFiles, locate
from leanmask.devices import channels_last, settle_precision, training_device, use_cpu
from leanmask.errors import ConfigError, DataError, suggest
from leanmask.methods import METHODS
from leanmask.models.spec import is_depthwise
from leanmask.settings import RunConfig, resolve

LENGTHS = ("steps", "epochs")  # of a training: the same thing said in two ways


def settle(config: RunConfig, *, begun: bool = False) -> tuple[RunConfig, tuple[str, ...]]:
    """The settings with nothing left open, and sentences for the user about what was unusual in them. What is settled
    already stays, so a run that goes on can be asked about as well. begun: they are such a run's own: its epochs became
    steps when it began and are not counted again, whatever its data have become.

    Opens the training data where a length in epochs must become steps. Raises ConfigError for what this machine cannot
    do, and when `train.steps` was given beside `train.epochs` and says something else; DataError as opening the data.
    """
    train: dict[str, Any] = {}
    notes: list[str] = []
    if config.train.deterministic is None:
        train["deterministic"] = use_cpu()
    device = training_device()
    depthwise = is_depthwise(config.model.backbone)  # type: ignore[attr-defined]
    train["precision"], note = settle_precision(config.train.precision, device, depthwise)
    notes += [note] if note else []
    if config.train.channels_last == "auto":
        train["channels_last"] = channels_last(train["precision"], device, depthwise)
    name: str = config.method.name  # type: ignore[attr-defined]
    if config.train.unlabelled_batch_size is None and name in METHODS and METHODS[name].uses_unlabelled:
        train["unlabelled_batch_size"] = config.train.batch_size
    if config.train.epochs is not None and not begun:
        train["steps"], sentence = _steps_of_epochs(config, config.train.epochs)
        if "steps" not in config.train.model_fields_set:  # else whoever worked them out, a plan, has said so
            notes.append(sentence)
    return resolve(merge(config.model_dump(mode="json"), {"train": train})), tuple(notes)


def without_replaced_length(settings: dict[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` without the length of training that `later`, which goes on top of them, says anew: its `train.epochs`
    replace their `train.steps`, and the other way round. Raises ConfigError when `later` has both.
    """
    said = [key for key in LENGTHS if _section(later, "train").get(key) is not None]
    if len(said) > 1:
        steps, epochs = (later["train"][key] for key in LENGTHS)
        raise ConfigError(
            f"train.steps={steps} and train.epochs={epochs} are both the length of the training; give one of them"
        )
    if not said or not isinstance(settings.get("train"), Mapping):
        return settings
    kept = {key: value for key, value in settings["train"].items() if key not in LENGTHS}
    return {**settings, "train": kept}


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = settings.get(name)
    return found if isinstance(found, Mapping) else {}


def epoch_steps(epochs: float, images: int, batch_size: int) -> int:
    """Updates of `batch_size` images that show `images` images `epochs` times, rounded up; at least one."""
    # A decimal as it was written: 0.1 epochs of 30 images are 3 images, not one more for the rounding of a float.
    return max(math.ceil(Fraction(str(epochs)) * images / batch_size), 1)


def _steps_of_epochs(config: RunConfig, epochs: float) -> tuple[int, str]:
    """The number of steps, and the sentence that says where it is from."""
    files = annotated(locate(config.data.path), config.data.train_split, config.data)
    assert files.annotations is not None
    images = len(AnnotationStore.open(files.annotations, files.images, unannotated=config.data.unannotated))
    size = config.train.batch_size
    steps = epoch_steps(epochs, images, size)
    if "steps" in config.train.model_fields_set and config.train.steps != steps:
        raise ConfigError(
            f"train.steps={config.train.steps} and train.epochs={epochs:g} are both given, and {epochs:g} epochs of "
            f"{images} images are {steps} steps; give one of them"
        )
    return steps, f"train.steps = {steps}: {epochs:g} epochs of {images} images, {size} a step"


def has_validation(splits: Mapping[str, SplitFiles], data: DataConfig) -> bool:
    """Whether there is a split to measure on. One that is meant is never missing in silence: where the user named
    another than the usual, or the data have one of nearly its name, this is true and `annotated` says what is wrong.
    """
    usual = data.val_split == DataConfig.model_fields["val_split"].default
    return data.val_split in splits or not usual or any(name.lower().startswith("val") for name in splits)


def annotated(splits: Mapping[str, SplitFiles], name: str, data: DataConfig) -> SplitFiles:
    """The files of a split that has annotations. Raises DataError when there is none."""
    if name not in splits:
        raise DataError(f"{data.path} has no split '{name}'{suggest(name, splits)}")
    if splits[name].annotations is None:
        raise DataError(f"split '{name}' of {data.path} has images but no annotation file")
    return splits[name]


def labelled_census(store: AnnotationStore, source: Path | None) -> Census:
    """What the training data have by kind of label. Raises DataError when no object has any label."""
    census = store.census()
    if not any(census.objects.values()):
        raise DataError(f"{source} has no labelled object to learn from")
    return census
