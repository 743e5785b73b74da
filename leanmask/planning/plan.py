"""A plan: the settings that fit a data set and a machine, each with its reason, to look at, to edit and to train with.

The idea is nnU-Net's (Isensee et al. 2021): a fingerprint of the data, fixed rules, and a file in which a person can
change what the rules chose. The rules are in rules.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leanmask.config import apply_overrides, as_overrides, as_settings, commented_yaml, get_setting, merge, set_setting
from leanmask.data.files import write_atomically
from leanmask.data.layout import locate
from leanmask.errors import ConfigError
from leanmask.options import require_kind
from leanmask.paths import OneOrMoreTexts, PathLike, as_path
from leanmask.planning.fingerprint import Fingerprint, Machine, fingerprint
from leanmask.planning.published import coco_weights
from leanmask.planning.rules import LEAST_STEPS, RULES, Choice, Known, remarks
from leanmask.planning.timing import evaluation_steps, seconds_per_step
from leanmask.reports.layout import duration
from leanmask.settings import RunConfig, resolve
from leanmask.settling import epoch_steps, settle, without_replaced_length
from leanmask.starting import STUDENT_WEIGHTS, with_model_of_start

PLANNED_FOR = "planned_for"
USUAL_MINUTES = 20.0  # of a training on a processor, where the user names none
SHORTEST_STEPS = 20
UNSET = object()
SAME = 2.0  # factor between two data sets' object sizes beyond which a plan does not fit


@dataclass(frozen=True)
class Plan:
    """choices: in the order of the rules. settings: all of them and what the user gave, nested. remarks: sentences
    about the data that no setting mends. seconds: of the whole training here with its evaluations, None = not measured.
    """

    data: Fingerprint
    machine: Machine
    choices: tuple[Choice, ...]
    settings: dict[str, Any]
    remarks: tuple[str, ...]
    seconds: float | None

    @property
    def reasons(self) -> dict[str, str]:
        """Why each setting has its value, by dotted name."""
        return {choice.setting: choice.why for choice in self.choices}

    def to_lines(self) -> list[str]:
        """One line per setting that was chosen, after what it was chosen from."""
        took = (
            []
            if self.seconds is None
            else [f"the training will take about {duration(self.seconds)}, evaluations included"]
        )
        return [
            f"data: {self.data.to_text()}",
            f"machine: {self.machine.to_text()}",
            *(choice.to_text() for choice in self.choices if not choice.given),
            *took,
            *(f"note: {remark}" for remark in self.remarks),
        ]

    def to_text(self) -> str:
        return "\n".join(self.to_lines())

    def to_json(self) -> dict[str, Any]:
        return {
            "data": self.data.to_json(),
            "machine": {"cores": self.machine.cores, "memory_gb": self.machine.memory_gb, "gpu": self.machine.gpu},
            "settings": self.settings,
            "reasons": self.reasons,
            "remarks": list(self.remarks),
            "seconds": self.seconds,
        }

    def to_yaml(self) -> str:
        """What `train --config` takes: every chosen setting with its reason behind it."""
        settings = {key: value for key, value in self.settings.items() if key != "data"}
        settings["data"] = {key: value for key, value in self.settings.get("data", {}).items() if key != "path"}
        told = {
            PLANNED_FOR: {
                "classes": list(self.data.classes),
                "images": self.data.images,
                "labels": self.data.labels,
                "object_side": self.data.object_side.p50,
                "image_side": self.data.image_side.p50,
            }
        }
        head = "# Made by `leanmask plan`; edit what you like, then: leanmask train DATA --config THIS --out RUN\n"
        return head + commented_yaml(told | settings, self.reasons)

    def write(self, path: Path) -> None:
        """Write `to_yaml`; raises DataError where the file exists already or cannot be written."""
        write_atomically(path, self.to_yaml().encode())


def plan(
    data: str | Path,
    *,
    settings: Mapping[str, Any] | str | Path | None = None,
    overrides: Mapping[str, Any] | OneOrMoreTexts = (),
    weights: PathLike | None = None,
    minutes: float | None = None,
) -> Plan:
    """Choose every setting that the user has not: from the data, its labels and the machine.

    settings, overrides, weights: the user's own, as for `train`; they are kept, and what depends on them follows them.
    minutes: the longest that the training may take; without it 20 on a processor, no limit on a GPU. Raises ConfigError
    for settings that cannot be, DataError for data that cannot be used.
    """
    told, overrides = as_settings(settings), as_overrides(overrides)
    if weights is not None:
        told = set_setting(told, STUDENT_WEIGHTS, str(as_path(weights)))
    made_for = told.pop(PLANNED_FOR, None)
    own = merge(told, {"data": {"path": str(as_path(data).absolute())}})
    own = apply_overrides(without_replaced_length(own, apply_overrides({}, overrides)), overrides)
    given = with_model_of_start(own)
    require_kind("minutes", minutes, float | None)
    if minutes is not None and not minutes > 0:
        raise ConfigError(f"minutes is {minutes}; a training takes more than 0")
    config = resolve(merge({"model": {"name": "mask_rcnn"}, "method": {"name": "supervised"}}, _shared(given))).data
    found, machine = fingerprint(locate(data), config), Machine.here()
    require_fitting(made_for, found)
    made = choose(found, machine, given, minutes)
    if given is own:
        return made
    return replace(made, choices=tuple(_of_start(choice, own) for choice in made.choices))


def _of_start(choice: Choice, own: Mapping[str, Any]) -> Choice:
    """A choice as it is told where the network is that of other weights. own: what the user has set."""
    if not choice.setting.startswith("model.") or get_setting(own, choice.setting, UNSET) is not UNSET:
        return choice
    if choice.setting == "model.weights":  # not read, so not worth a line
        return replace(choice, why=f"{STUDENT_WEIGHTS} takes their place")
    return replace(choice, why="that of the weights it starts as", given=False)


def choose(found: Fingerprint, machine: Machine, given: Mapping[str, Any], minutes: float | None) -> Plan:
    """Ask the rules in order. given: the user's settings, nested, with the data's path."""
    settings, choices = dict(given), []
    seconds: float | None = None
    weights: str | None = None
    for name, rule in RULES:
        if name == "model.backbone":  # method and model are known: what the user set is checked before rules look at it
            resolve(settings)
        if (own := get_setting(given, name, UNSET)) is not UNSET:
            choices.append(Choice(name, own, "set by you", given=True))
            continue
        if name == "model.backbone" and machine.gpu:
            weights = coco_weights(str(get_setting(settings, "model.name")))
        answer = rule(Known(found, machine, settings, weights))
        if name == "train.steps" and (epochs := get_setting(given, "train.epochs")) is not None:
            answer = (
                epoch_steps(epochs, found.images, settings["train"]["batch_size"]),
                f"{epochs:g} epochs, as you set",
            )
        elif name == "train.steps" and answer is not None:
            answer, seconds = _in_time(answer, settings, machine, minutes)
        if answer is not None:
            choices.append(Choice(name, *answer))
            settings = set_setting(settings, name, answer[0])
    known = Known(found, machine, settings, weights)
    if seconds is not None and found.val_images:
        seconds = _with_evaluations(seconds, settle(resolve(settings))[0], found.val_images)
    return Plan(found, machine, tuple(choices), settings, remarks(known), seconds)


def _in_time(
    answer: tuple[Any, str], settings: dict[str, Any], machine: Machine, minutes: float | None
) -> tuple[tuple[Any, str], float | None]:
    """The number of steps that the minutes allow, and the seconds that they take."""
    if machine.gpu and minutes is None:
        return answer, None
    each = seconds_per_step(settle(resolve(settings))[0])
    limit, (steps, why) = 60 * (minutes or USUAL_MINUTES), answer
    allowed = int(limit / each)
    if steps <= allowed:
        return (steps, f"{why}, about {duration(steps * each)} here"), steps * each
    nice = max(allowed // 50 * 50 if allowed >= LEAST_STEPS // 2 else allowed // 10 * 10, SHORTEST_STEPS)
    named = f"the {minutes:g} minutes that you gave" if minutes else f"{USUAL_MINUTES:.0f} minutes on this machine"
    return (nice, f"what {named} allow at {each:.2f} s a step; {steps} would be {why}"), nice * each


def _with_evaluations(seconds: float, config: RunConfig, images: int) -> float:
    """The seconds of a training's steps, and those that its evaluations are reckoned to take."""
    train = config.train
    count = 1 + ((train.steps - 1) // train.eval_every_steps if train.eval_every_steps else 0)
    return seconds * (1 + count * evaluation_steps(config, images) / train.steps)


def require_fitting(made_for: Any, found: Fingerprint) -> None:
    """Raise ConfigError when a plan's file was made for other data. made_for: its section `planned_for`, or None."""
    if made_for is None:
        return
    if not isinstance(made_for, dict):
        raise ConfigError(f"'{PLANNED_FOR}' of the plan must be what `leanmask plan` wrote, found {made_for!r}")
    differences = []
    classes = made_for.get("classes", list(found.classes))
    if sorted(map(str, classes)) != sorted(found.classes):
        differences.append(f"it has the classes {_few(classes)}, this data {_few(found.classes)}")
    for key, now, what in (
        ("object_side", found.object_side.p50, "objects"),
        ("image_side", found.image_side.p50, "images"),
    ):
        then = made_for.get(key)
        if isinstance(then, int | float) and then > 0 and now > 0 and not 1 / SAME <= now / then <= SAME:
            differences.append(
                f"its {what} are {max(now / then, then / now):.1f} times as {'small' if now > then else 'large'}"
            )
    if differences:
        raise ConfigError(
            f"the plan was made for other data: {'; '.join(differences)}. Make one for this data (leanmask plan), or "
            f"take '{PLANNED_FOR}' out of the file to use its settings all the same"
        )


def _few(names: Sequence[Any]) -> str:
    shown = ", ".join(str(name) for name in names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def _shared(given: Mapping[str, Any]) -> dict[str, Any]:
    """The user's settings without those of model and method, whose names are not known yet."""
    return {key: value for key, value in given.items() if key not in ("model", "method")}
