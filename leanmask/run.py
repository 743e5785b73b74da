"""Train and resume: settings in, a run folder out. Only this file seeds and sets global torch flags."""

from __future__ import annotations

import os
import platform
import random
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import accelerate
import numpy as np
import torch
import torchvision

from leanmask.annotate.labels import refresh_labels
from leanmask.config import TrainConfig, apply_overrides, as_overrides, as_settings, merge, set_setting
from leanmask.devices import capability, training_device, use_cpu
from leanmask.engine.checkpoint import CHECKPOINTS, checkpoint_step
from leanmask.engine.distributed import everyones, start_processes, world_size
from leanmask.engine.lock import LOCK_FILE, alone_in
from leanmask.errors import ConfigError, LeanmaskError, RunError, suggest
from leanmask.options import require_kind
from leanmask.paths import OneOrMoreTexts, as_path
from leanmask.planning.plan import PLANNED_FOR
from leanmask.planning.plan import plan as make_plan
from leanmask.reports.folders import STAGES_FILE
from leanmask.session import Session
from leanmask.settings import CONFIG_FILE, RunConfig, load_config, resolve
from leanmask.settling import settle, without_replaced_length
from leanmask.stages import StagedRun
from leanmask.starting import STUDENT_WEIGHTS, with_model_of_start
from leanmask.summary import OnStep, TrainSummary
from leanmask.version import __version__

BEFORE_CONFIG = {LOCK_FILE, "env.json", "data.json", STAGES_FILE}  # what is written before config.yaml


def train(
    data: str | Path,
    out: str | Path,
    *,
    settings: Mapping[str, Any] | str | Path | None = None,
    overrides: Mapping[str, Any] | OneOrMoreTexts = (),
    weights: str | Path | None = None,
    plan: bool = True,
    minutes: float | None = None,
    until: str | None = None,
    on_progress: OnStep | None = None,
    tell: Callable[[str], None] | None = None,
) -> TrainSummary:
    """Train on `data` into the new folder `out`.

    Settings come from a plan for this data and this machine (see `leanmask.plan`), from `settings`, a mapping or a YAML
    file, and from dotted `overrides`, "train.steps=500", several such, or {"train.steps": 500}, later ones winning;
    docs/configuration.md lists them. weights: a run folder or a weights file of the same network that the student
    starts as (`train.student_weights`); classes of the same name are kept, others start fresh. plan: False = its
    defaults in the place of a plan. minutes: of a plan, the longest that the training may take. until: the last stage
    to do now of a method that has several. tell: called with sentences about the settings, before the first step.
    Raises ConfigError, DataError, RunError (the folder exists already) or TrainingStopped, each with a sentence that
    says what to do.
    """
    data, folder, told, overrides = as_path(data), as_path(out), as_settings(settings), as_overrides(overrides)
    if weights is not None:
        told = set_setting(told, STUDENT_WEIGHTS, str(as_path(weights)))
    if start_processes().is_main_process:
        _require_new(folder)
        _tell_all(tell, refresh_labels(data))
    everyones(None)  # nobody reads the labels before they are written
    reasons: Mapping[str, str] = {}
    if plan:
        made = make_plan(data, settings=told, overrides=overrides, minutes=minutes)
        given, reasons = made.settings, made.reasons
        _tell_all(tell, made.to_lines())
    else:
        if minutes is not None:
            raise ConfigError("minutes shorten a plan; without one, set train.steps or train.epochs")
        told.pop(PLANNED_FOR, None)
        own = apply_overrides(without_replaced_length(told, apply_overrides({}, overrides)), overrides)
        usual = {"model": {"name": "mask_rcnn"}, "method": {"name": "maskbooster"}}
        given = merge(usual, with_model_of_start(own))
    checked = resolve(merge(given, {"data": {"path": str(as_path(data).absolute())}}))
    return _run(_settled(checked, tell), folder, until, on_progress, reasons, _train_one)


def resume(
    run: str | Path,
    *,
    steps: int | None = None,
    until: str | None = None,
    accept_new_data: bool = False,
    on_progress: OnStep | None = None,
    tell: Callable[[str], None] | None = None,
) -> TrainSummary:
    """Go on with an interrupted run in its folder; on CPU to the same weights, bit for bit, as if uninterrupted. It
    keeps the precision that it began with.

    steps: another length of the whole training, also of a finished run: from the step that was reached on, the learning
    rate and whatever else follows the length are those of a run of so many steps. accept_new_data: go on although
    images, labels or classes of its data have changed. until, tell: as in `train`. Raises RunError when `run` is no run
    folder, is being trained by another process, has done `steps` already, has other data now, or has several stages,
    which cannot be made longer.
    """
    folder = as_path(run)
    require_kind("steps", steps, int | None)
    started = load_config(folder)
    start_processes()
    if steps is not None:
        started = _with_length(started, folder, steps, tell)
    train_one = partial(_train_one, accept_new_data=accept_new_data)
    return _run(_settled(started, tell, begun=True), folder, until, on_progress, {}, train_one)


def _with_length(config: RunConfig, folder: Path, steps: int, tell: Callable[[str], None] | None) -> RunConfig:
    """The settings of a run with another number of steps. Raises ConfigError or RunError when they cannot be."""
    if config.stages() or (folder.absolute().parent / STAGES_FILE).is_file():
        whole = folder if config.stages() else folder.absolute().parent
        raise RunError(
            f"{whole} consists of several trainings, each learning from the one before, so none of them gets more "
            f"steps; begin a new run with its weights: leanmask train DATA --weights {whole} --steps {steps} --out RUN"
        )
    longer = resolve(merge(config.model_dump(mode="json"), {"train": {"steps": steps, "epochs": None}}))
    done, before = checkpoint_step(folder / CHECKPOINTS) or 0, config.train.steps
    if steps == before:
        return config
    if steps <= done:
        raise RunError(
            f"{folder} has done {done} of its {before} steps; steps are those of the whole training, so give more than "
            f"{done}"
        )
    _tell_all(
        tell,
        [
            f"train.steps = {steps} instead of {before}: from step {done} on the learning rate is that of a run of "
            f"{steps} steps"
        ],
    )
    return longer


def _settled(config: RunConfig, tell: Callable[[str], None] | None, begun: bool = False) -> RunConfig:
    """The first process's settled settings: machines of several kinds train one network in one precision."""
    found, notes = everyones(settle(config, begun=begun))[0]
    _tell_all(tell, notes)
    return found


def _tell_all(tell: Callable[[str], None] | None, sentences: Sequence[str]) -> None:
    """Once, however many processes there are."""
    if tell is not None and start_processes().is_main_process:
        for sentence in sentences:
            tell(sentence)


def _run(
    config: RunConfig,
    folder: Path,
    until: str | None,
    on_progress: OnStep | None,
    reasons: Mapping[str, str],
    train_one: Callable[..., TrainSummary],
) -> TrainSummary:
    stages = [stage.name for stage in config.stages()]
    if until is not None and until not in stages:
        name: str = config.method.name  # type: ignore[attr-defined]
        allowed = suggest(until, stages) if stages else ": it is a single training"
        raise ConfigError(f"method {name} has no stage '{until}'{allowed}")
    if stages:
        return StagedRun(config, folder, until or stages[-1], train_one, on_progress, reasons).run()
    return train_one(config, folder, on_progress, lambda: None, reasons)


def _train_one(
    config: RunConfig,
    folder: Path,
    on_progress: OnStep | None,
    announce: Callable[[], None],
    reasons: Mapping[str, str] = MappingProxyType({}),
    accept_new_data: bool = False,
) -> TrainSummary:
    """Start a training in a new folder, or go on with the one that is there. See `stages.TrainOne`."""
    state = start_processes()
    begun = (folder / CONFIG_FILE).is_file()
    unlocked: str | None = None
    with ExitStack() as held:
        if state.is_main_process and begun:
            unlocked = held.enter_context(alone_in(folder))
        state.wait_for_everyone()
        seed_everything(config.train)
        session = Session(config, folder, state)  # mistakes in data and settings show before anything is written
        _vary_processes(config.train, state.process_index)
        if state.is_main_process and not begun:
            announce()
            unlocked = held.enter_context(alone_in(folder))
            session.write_folder(environment(), reasons)
        elif state.is_main_process:
            if (checkpoint_step(folder / CHECKPOINTS) or 0) < config.train.steps:
                session.require_same_data(accept_new_data)
            session.keep_length()
        session.folder_note = unlocked
        state.wait_for_everyone()
        try:
            return session.run(resume=begun, on_progress=on_progress)
        except LeanmaskError:
            # Of a run that has learned nothing nothing is kept, so that it can begin under the same name once it can.
            if not begun and state.is_main_process and checkpoint_step(folder / CHECKPOINTS) is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise


def seed_everything(config: TrainConfig) -> None:
    """Seed every generator and set the global torch flags that `config` asks for."""
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)
    torch.manual_seed(config.seed)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    # Kernels without a repeatable form (bilinear sampling's backward pass on GPUs) warn, as docs/running.md says.
    repeatable = use_cpu() if config.deterministic is None else config.deterministic
    torch.use_deterministic_algorithms(repeatable, warn_only=True)
    # With the above torch fills new memory before every use, to make reading it by mistake repeatable.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _vary_processes(config: TrainConfig, rank: int) -> None:
    """Networks were built alike everywhere; from here on processes must not sample alike."""
    if rank:
        torch.manual_seed(config.seed + rank * 1_000_003)


def environment() -> dict[str, Any]:
    """Versions, machine and command of this process, for the run folder and `leanmask doctor`."""
    here = capability(training_device())
    return {
        "leanmask": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "accelerate": accelerate.__version__,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": here.name,
        "capability": str(here),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "processes": world_size(),
        "command": sys.argv,
    }


def _require_new(folder: Path) -> None:
    """Raise RunError where anything lies in the folder but what a run leaves that was killed before it had begun."""
    parts = tuple(f".{name}." for name in (CONFIG_FILE, STAGES_FILE))  # of files that were being written
    if folder.is_dir() and all(p.name in BEFORE_CONFIG or p.name.startswith(parts) for p in folder.iterdir()):
        return
    if folder.exists():
        raise RunError(
            f"{folder} exists already and is never overwritten; choose another folder, or continue the run with "
            f"`leanmask train --resume {folder}`"
        )
