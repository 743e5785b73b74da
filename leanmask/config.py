"""Configuration as checked, frozen values: YAML plus dotted `key=value` overrides, and errors that offer the nearest
valid name.

Every model and method declares its own config class beside its code; `run.py` puts them together. Units stand in the
names (`_steps`, `_px`, `_fraction`).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from leanmask.errors import ConfigError, suggest
from leanmask.paths import OneOrMoreTexts, as_path, as_paths, as_texts

END = "...\n"  # of a YAML document that is a single value


class Frozen(BaseModel):
    """Base of all configs: immutable, unknown keys are errors, descriptions end up in the configuration reference."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class DataConfig(Frozen):
    """Which images, and how they become the network's input."""

    path: str = Field(description="data set: a folder, or a YAML file naming annotation files and image folders")
    train_split: str = Field("train", description="split to train on")
    val_split: str = Field("val", description="split to evaluate on")
    unlabelled: tuple[str, ...] = Field(
        (),
        description="folders or COCO files of unlabelled images, whose annotations are never read; none = the data "
        "set's split 'unlabelled', where the method wants some",
    )
    unannotated: Literal["error", "negative", "unlabelled"] = Field(
        "error",
        description="what an image without annotations means: nothing is there (negative), nobody looked (unlabelled)",
    )
    exif: Literal["error", "apply", "ignore"] = Field(
        "error", description="what to do with images that carry an EXIF rotation"
    )
    image_size: int = Field(512, ge=32, multiple_of=32, description="side of the square network input, pixels")
    repeat_threshold: float = Field(
        0.0,
        ge=0,
        description="images of classes in fewer than this share of the images are shown more often, by the square root "
        "(repeat-factor sampling; LVIS: 0.001; guided distillation: 10, all classes balanced); 0 = all alike",
    )
    workers: int = Field(2, ge=0, description="loader processes per training process")

    @field_validator("unlabelled", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return tuple(map(str, as_paths(value)))


class AugmentConfig(Frozen):
    """Geometry is shared by the weak and the strong view; photometric strength is not (reference: PL-DC, Unbiased
    Teacher).
    """

    flip_probability: float = Field(0.5, ge=0, le=1, description="horizontal mirror, both views")
    scale_jitter: tuple[float, float] = Field(
        (0.8, 1.25), description="range of the random scale, 1 = image fits the canvas"
    )
    strong: bool = Field(True, description="photometric strong view for the student; False: it sees the weak view")
    colour_probability: float = Field(0.8, ge=0, le=1, description="colour jitter")
    brightness: float = Field(0.4, ge=0, description="colour jitter, factor 1 +- this")
    contrast: float = Field(0.4, ge=0, description="colour jitter, factor 1 +- this")
    saturation: float = Field(0.4, ge=0, description="colour jitter, factor 1 +- this")
    hue: float = Field(0.1, ge=0, le=0.5, description="colour jitter, turns of the colour circle")
    grey_probability: float = Field(0.2, ge=0, le=1, description="grey image")
    blur_probability: float = Field(0.5, ge=0, le=1, description="Gaussian blur")
    blur_radius_px: tuple[float, float] = Field(
        (0.1, 2.0),
        description="range of the blur's radius; 2 px suits images of about 800 px, take less for small ones",
    )
    erase: bool = Field(False, description="three random erasings (areas and aspect ratios as PL-DC's code has them)")
    copy_paste_probability: float = Field(0, ge=0, le=1, description="paste objects with true masks from another image")
    copy_paste_box_covered: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of a box without a mask that a paste hides from which on the object is neither object nor "
        "background",
    )


class OptimConfig(Frozen):
    """Optimiser and learning-rate schedule."""

    optimiser: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(1e-4, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD only")
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    step_fractions: tuple[float, ...] = Field(
        (0.78, 0.93), description="schedule=step: where the rate drops to a tenth"
    )
    warmup_steps: int = Field(100, ge=0)
    warmup_factor: float = Field(0.01, gt=0, le=1, description="rate at step 0, as a share of the peak")
    backbone_lr_factor: float | None = Field(
        None,
        ge=0,
        description="the backbone's learning rate over lr; 0 freezes it; null = 0.3 for lite0 to lite2 and timm's with "
        "weights, else 1",
    )
    clip_norm: float | None = Field(5.0, description="largest gradient norm; null = no clipping")


class TrainConfig(Frozen):
    """Length, size and safety of a training run."""

    steps: int = Field(3000, ge=1, description="student updates")
    epochs: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="length as passes over the labelled training images, instead of `steps`: epochs * images / "
        "batch_size updates, rounded up; of images that are shown more often each counts once; null = `steps` counts",
    )
    batch_size: int = Field(
        8, ge=1, description="labelled images per update, over all processes and accumulation steps"
    )
    unlabelled_batch_size: int | None = Field(
        None, ge=1, description="unlabelled images per update of methods that want them; null = as many as labelled"
    )
    teacher_weights: str | None = Field(
        None, description="weights file (.safetensors) that the teacher starts as; null = a copy of the student"
    )
    student_weights: str | None = Field(
        None,
        description="run folder or weights file (.safetensors) of the same network that the student starts as: classes "
        "of the same name are kept, others start fresh; null = as `model` says",
    )
    keep_weights_fractions: tuple[float, ...] = Field(
        (), description="shares of the training after which the teacher's weights are kept in weights/, too"
    )
    accumulate: int = Field(1, ge=1, description="gradient accumulation: forward passes per update")
    seed: int = Field(0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="auto = bf16 (autocast) where the processor or GPU computes it natively, else fp32; a trained "
        "network is used in bf16 only where it was trained so and the device computes it natively",
    )
    channels_last: bool | Literal["auto"] = Field(
        "auto", description="memory order of images and maps in training; auto = where it is measured to be faster"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of a process; null = torch's choice")
    deterministic: bool | None = Field(
        None, description="repeatable kernels; null = on CPUs, bit for bit, and not on GPUs, where they are slower"
    )
    eval_every_steps: int = Field(0, ge=0, description="0 = only at the end")
    patience: int = Field(
        0,
        ge=0,
        description="evaluations in a row without a better AP (of masks, or of boxes where an object of the validation "
        "split has no mask) that end the training early, `best` kept; 0 = never",
    )
    checkpoint_every_steps: int = Field(200, ge=1)
    log_every_steps: int = Field(10, ge=1)
    collapse_stop_windows: int = Field(
        0,
        ge=0,
        description="windows (50 steps) in a row with collapsed pseudo-labels that end the run; 0 = only say it",
    )
    max_bad_steps: int = Field(5, ge=1, description="non-finite steps in a row before the run stops")
    trackers: tuple[str, ...] = Field((), description="further Accelerate trackers: wandb, mlflow, ...")


class EvaluationConfig(Frozen):
    """How a model is measured."""

    batch_size: int = Field(8, ge=1)
    protocol: Literal["coco", "lvis"] = Field(
        "coco", description="lvis: APr, APc and APf, each class only where somebody looked for it, 300 detections"
    )
    calibration: bool = Field(False, description="also measure how far scores can be trusted (ECE, reliability)")
    max_detections: int | None = Field(
        None,
        ge=1,
        description="per image and class; null = 100, raised for dense images and said so (lvis: 300 over all classes)",
    )
    who: tuple[Literal["student", "teacher"], ...] = Field(
        ("student", "teacher"), description="which networks to evaluate"
    )
    pictures: int = Field(
        4,
        ge=0,
        description="validation images, spread over the split, that every evaluation draws: what was predicted beside "
        "the truth, in evaluation/*/pictures, TensorBoard and the report",
    )


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises ConfigError when the file is missing, is not YAML or is not a mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, found {type(content).__name__}")
    return content


def as_overrides(given: Mapping[str, Any] | OneOrMoreTexts) -> list[str]:
    """Overrides as a caller of the library gives them, as texts such as "train.steps=300": one, several, or a mapping
    of dotted names such as {"train.steps": 300}. Raises ConfigError.
    """
    if not isinstance(given, Mapping):
        return as_texts(given)
    try:
        return [f"{name}={json.dumps(_plain(value))}" for name, value in given.items()]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"overrides hold a value that no setting has: {error}") from None


def as_settings(given: Mapping[str, Any] | str | os.PathLike[str] | None) -> dict[str, Any]:
    """A copy of the settings that a caller of the library gives, a mapping or a YAML file, with paths as texts and
    generators as lists. Raises ConfigError.
    """
    if isinstance(given, str | os.PathLike):
        return load_yaml(as_path(given))
    if not isinstance(given, Mapping | None):
        raise ConfigError(f"settings must be a mapping or a YAML file, found {type(given).__name__}")
    return {key: _plain(value) for key, value in (given or {}).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, Iterable) and not isinstance(value, str) else value


def merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`base` with `extra` on top; nested mappings are merged key by key."""
    result = dict(base)
    for key, value in extra.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def apply_overrides(settings: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `settings` with dotted overrides such as `train.steps=500`; values are read as YAML."""
    result = _copy(settings)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"'{override}' is not an override; write dotted.key=value, for example train.steps=500")
        *parents, leaf = key.strip().split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"'{key}': '{parent}' is a single value and has no parts")
        try:
            place[leaf] = yaml.safe_load(text)
        except yaml.YAMLError:
            place[leaf] = text
    return result


def get_setting(settings: Mapping[str, Any], dotted: str, default: Any = None) -> Any:
    """The value of a dotted setting such as "train.steps"; `default` where nothing is said of it."""
    place: Any = settings
    for part in dotted.split("."):
        if not isinstance(place, Mapping) or part not in place:
            return default
        place = place[part]
    return place


def set_setting(settings: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """A copy of `settings` in which one dotted setting has this value."""
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return merge(settings, value)


def without_places(settings: Any) -> Any:
    """Settings in which every path of this machine is its last part alone: "/home/me/data" is "data", "clip:/home/me/x"
    is "clip:x". Other texts stay as they are.
    """
    if isinstance(settings, Mapping):
        return {key: without_places(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [without_places(value) for value in settings]
    if not isinstance(settings, str):
        return settings
    kind, path = re.fullmatch(r"((?:[a-z_]{2,}:)?)(.*)", settings, re.DOTALL).groups()  # type: ignore[union-attr]
    for flavour in (PurePosixPath, PureWindowsPath):
        if flavour(path).is_absolute() or path.startswith("~"):
            return f"{kind}{flavour(path).name or '.'}"
    return settings


def commented_yaml(settings: Mapping[str, Any], reasons: Mapping[str, str], prefix: str = "") -> str:
    """Nested settings as YAML, a line each; behind a value its reason, where there is one (by dotted name)."""
    lines = []
    depth = "  " * (prefix.count(".") if prefix else 0)
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            lines.append(f"{depth}{_inline(key)}:\n{commented_yaml(value, reasons, f'{name}.')}")
            continue
        reason = f"  # {' '.join(reasons[name].split())}" if name in reasons else ""
        lines.append(f"{depth}{_inline(key)}: {_inline(value)}{reason}\n")
    return "".join(lines)


_COMMENTED_LINE = re.compile(r"( *)([^\s:]+):.*?(?:  # (.+))?")


def reasons_in(text: str) -> dict[str, str]:
    """What `commented_yaml` wrote behind the values, by dotted name."""
    reasons: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        if (match := _COMMENTED_LINE.fullmatch(line)) is None:
            continue
        indent, name, reason = match.groups()
        names[len(indent) // 2 :] = [name]
        if reason and _says_the_same(line, line.removesuffix(f"  # {reason}")):
            reasons[".".join(names)] = reason
    return reasons


def _says_the_same(line: str, other: str) -> bool:
    """Whether two lines of YAML hold one value: a # inside quotes begins no comment."""
    try:
        return bool(yaml.safe_load(line) == yaml.safe_load(other))
    except yaml.YAMLError:
        return False


def _inline(value: Any) -> str:
    """YAML on one line."""
    for style in (None, '"'):  # in double quotes line breaks are escaped
        text: str = yaml.safe_dump(value, default_flow_style=True, default_style=style, width=math.inf, sort_keys=False)
        text = text.removesuffix(END).strip()
        if "\n" not in text:
            break
    return text


def _copy(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in settings.items()}


def explain(error: ValidationError, config: type[BaseModel], where: str = "") -> ConfigError:
    """Turn pydantic's error into one sentence per mistake, with the nearest valid name for unknown keys."""
    sentences = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        dotted = ".".join([where, *path] if where else path)
        if problem["type"] == "extra_forbidden":
            owner = _owner(config, path[:-1])
            hint = suggest(path[-1], owner.model_fields) if owner else ""
            sentences.append(f"unknown setting '{dotted}'{hint}")
        elif problem["type"] == "missing":
            sentences.append(f"setting '{dotted}' is missing")
        else:
            message = problem["msg"][:1].lower() + problem["msg"][1:]
            sentences.append(f"setting '{dotted}' is {problem['input']!r}: {message}")
    return ConfigError("; ".join(sentences))


def _owner(config: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    owner: Any = config
    for part in path:
        field = getattr(owner, "model_fields", {}).get(part)
        owner = field.annotation if field else None
    return owner if isinstance(owner, type) and issubclass(owner, BaseModel) else None
