"""Runs methods that consist of several trainings: one folder per stage inside the run's, each the next one's input.

Every stage can be killed and resumed; finished ones are not repeated.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from leanmask.config import commented_yaml, merge
from leanmask.data.coco import AnnotationStore
from leanmask.data.files import write_atomically
from leanmask.data.layout import locate
from leanmask.data.unlabelled import unlabelled_sources
from leanmask.engine.distributed import start_processes
from leanmask.engine.lock import alone_in
from leanmask.errors import ConfigError, DataError, LeanmaskError, RunError, RunInterrupted, Stopped
from leanmask.inference import calibration
from leanmask.inference.predict import load
from leanmask.inference.pseudo_masks import PseudoJob, finish_pseudo_masks, make_pseudo_masks
from leanmask.inference.strong_weak import (
    Work,
    is_done,
    point_masks,
    read_split,
    refined_masks,
    rough_masks,
    split_labels,
)
from leanmask.methods import METHODS
from leanmask.methods.base import (
    CalibrateStage,
    HoldBackStage,
    LabelSplitStage,
    PointMaskStage,
    PseudoMaskStage,
    RefineStage,
    RoughMaskStage,
    Stage,
    TrainStage,
)
from leanmask.models import MODELS
from leanmask.reports.folders import STAGES_FILE
from leanmask.settings import CONFIG_FILE, RunConfig, resolve
from leanmask.summary import OnStep, TrainSummary

# Starts a training in a new folder, or goes on with the one that is there. The last argument is called when nothing in
# settings and data is wrong, just before the folder is made.
TrainOne = Callable[[RunConfig, Path, OnStep | None, Callable[[], None]], TrainSummary]


class StagedRun:
    """One run of several stages, done up to the one named `until`. Its folder holds `config.yaml`, `stages.json`, the
    stages' folders and, at the end, the last training's `best.safetensors`.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        until: str,
        train_one: TrainOne,
        on_progress: OnStep | None,
        reasons: Mapping[str, str],
    ) -> None:
        self.config, self.folder, self.train_one, self.on_progress = config, folder, train_one, on_progress
        self.reasons = reasons
        self.stages = config.stages()
        names = [stage.name for stage in self.stages]
        done = names.index(until) + 1
        self.wanted, self.left = self.stages[:done], names[done:]
        self.again = f"leanmask train --resume {folder}" + (f" --until {until}" if self.left else "")
        self.state = start_processes()
        self.trained: list[TrainSummary] = []
        self.held = ExitStack()  # while it runs, the folder

    def run(self) -> TrainSummary:
        """The wanted stages in order; returns the last training's summary with the steps and seconds of all of them."""
        with self.held:
            return self._run()

    def _run(self) -> TrainSummary:
        if (self.folder / CONFIG_FILE).is_file() and self.state.is_main_process:
            self.held.enter_context(alone_in(self.folder))
        self.state.wait_for_everyone()
        self._require_something_to_learn()
        for stage in self.wanted:
            if isinstance(stage, TrainStage):
                self.trained.append(self._train(stage))
            else:
                self._work(stage)
        best = self.folder / "best.safetensors"  # a finished run has it
        if not self.left and self.state.is_main_process:
            _copy(self.trained[-1].folder / "best.safetensors", best)
        self.state.wait_for_everyone()
        return TrainSummary.of_stages(self.folder, self.trained, left=() if best.is_file() else self.left)

    def stage_folder(self, name: str) -> Path:
        """`1-labels`, `2-pseudo`, ... in the run's folder."""
        number = [stage.name for stage in self.stages].index(name) + 1
        return self.folder / f"{number}-{name}"

    def settings_of(self, stage: TrainStage) -> RunConfig:
        """What a training stage is trained with. Raises ConfigError."""
        settings, own = self.config.model_dump(mode="json"), dict(stage.settings)
        settings["method"] = {}
        if "name" in own.get("model", {}):  # another model than the run's
            own["model"] = _with_backbone(own["model"], settings["model"])
            settings["model"], settings["train"]["student_weights"] = {}, None
        data = self.config.data.path if stage.data is None else str(self.stage_folder(stage.data).absolute())
        settings = merge(merge(settings, own), {"data": {"path": data}, "train": self._length_of(stage)})
        settings = merge(settings, {"optim": {"lr": settings["optim"]["lr"] * stage.lr_fraction}})
        if not METHODS[settings["method"]["name"]].uses_unlabelled:
            settings = merge(settings, {"data": {"unlabelled": []}, "train": {"unlabelled_batch_size": None}})
        if stage.teacher is not None:
            settings = merge(settings, {"train": {"teacher_weights": self._weights_of(stage.teacher)}})
        if stage.student is not None:
            settings = merge(settings, {"train": {"student_weights": self._weights_of(stage.student)}})
        if stage.calibration is not None:
            path = self.stage_folder(stage.calibration).absolute() / calibration.CALIBRATION_FILE
            settings = merge(settings, {"method": {"calibration": str(path)}})
        same = settings["model"].get("backbone") == getattr(self.config.model, "backbone", None)
        if stage.encoder is not None and same and "weights" not in stage.settings.get("model", {}):
            settings = merge(settings, {"model": {"weights": self._weights_of(stage.encoder)}})
        return resolve(settings)

    def _length_of(self, stage: TrainStage) -> dict[str, Any]:
        steps = max(round(self.config.train.steps * stage.steps_fraction), 1)
        often = {"eval_every_steps": max(steps // stage.evaluations, 1)} if stage.evaluations else {}
        return {"steps": steps, "epochs": None, **often}  # a stage's data are others, and so would its epochs be

    def _weights_of(self, name: str) -> str:
        return str(self.stage_folder(name).absolute() / "best.safetensors")

    def _train(self, stage: TrainStage) -> TrainSummary:
        folder, report = self.stage_folder(stage.name), self._reporter(stage)
        try:
            return self.train_one(self.settings_of(stage), folder, report, self._write_folder)
        except Stopped as stopped:  # it is the whole run that the user goes on with
            raise type(stopped)(stopped.what, self.again) from None

    def _work(self, stage: Stage) -> None:
        """A stage that is no training; what it writes last says that it is done."""
        out = self.stage_folder(stage.name)
        if is_done(out):
            return
        report = self._reporter(stage)
        work = Work(
            config=self.config,
            run=self.folder,
            out=out,
            report=lambda done, total: report(0, 1, f"image {done} of {total}"),
            tell=lambda note: report(0, 1, note),
        )
        try:
            self._do(stage, work)
        except KeyboardInterrupt:
            raise RunInterrupted(f"stopped at stage {stage.name}", self.again) from None

    def _do(self, stage: Stage, work: Work) -> None:
        folder = self.stage_folder
        if isinstance(stage, LabelSplitStage):
            self._split_labels(stage, work)
        elif isinstance(stage, RoughMaskStage):
            rough_masks(work, folder(stage.teacher), folder(stage.data), stage.held_fraction)
        elif isinstance(stage, PointMaskStage):
            point_masks(work, folder(stage.teacher), folder(stage.data), stage.rule)
        elif isinstance(stage, RefineStage):
            refined_masks(work, folder(stage.refiner), folder(stage.data))
        elif isinstance(stage, PseudoMaskStage):
            self._label(stage, work)
        elif isinstance(stage, HoldBackStage):
            self._hold_back(stage, work)
        elif isinstance(stage, CalibrateStage):
            self._calibrate(stage, work)

    def _split_labels(self, stage: LabelSplitStage, work: Work) -> None:
        if self.state.is_main_process:
            name = self.config.model.name  # type: ignore[attr-defined]
            if not MODELS[name].takes_points:
                able = ", ".join(key for key, model in MODELS.items() if model.takes_points)
                raise ConfigError(f"model {name} takes no points, which this method asks for masks at; models: {able}")
            labels = read_split(work)  # mistakes in data and settings show before anything is written
            for each in self.stages:
                if isinstance(each, TrainStage):
                    self.settings_of(each)
            self._write_folder()
            split_labels(work, labels, stage.point_at)
        self.state.wait_for_everyone()

    def _hold_back(self, stage: HoldBackStage, work: Work) -> None:
        if self.state.is_main_process:
            data = self.config.data
            splits = locate(data.path)
            if data.train_split in splits and splits[data.train_split].annotations is not None:
                unlabelled_sources(data.unlabelled, splits)  # better said before anything is written
                self._write_folder()
                seed = self.config.train.seed
                count = calibration.hold_back(splits, data.train_split, stage.fraction, seed, work.out)
                work.tell(f"{count} images held back")
        self.state.wait_for_everyone()

    def _calibrate(self, stage: CalibrateStage, work: Work) -> None:
        if self.state.is_main_process:
            loaded = load(self.stage_folder(stage.teacher), device=str(self.state.device))
            for note in calibration.calibrate(loaded, self.stage_folder(stage.data), work.out, work.report):
                work.tell(note)
        self.state.wait_for_everyone()

    def _label(self, stage: PseudoMaskStage, work: Work) -> None:
        out = work.out
        loaded = load(self.stage_folder(stage.teacher), device=str(self.state.device))
        job = PseudoJob(
            splits=locate(self.config.data.path),
            train=self.config.data.train_split,
            provenance=f"leanmask {self.folder.name}/{self.stage_folder(stage.teacher).name}",
            rank=self.state.process_index,
            world=self.state.num_processes,
        )
        make_pseudo_masks(loaded, job, out, work.report)
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            finish_pseudo_masks(loaded, job, out)
        self.state.wait_for_everyone()

    def _reporter(self, stage: Stage) -> OnStep:
        """Progress of one stage as progress of the whole run."""
        lengths = [self._length_of(each)["steps"] for each in self.wanted if isinstance(each, TrainStage)]
        before, total_steps = sum(lengths[: len(self.trained)]), max(sum(lengths), 1)  # the first stage trains nothing

        def report(step: int, total: int, note: str) -> None:
            if self.on_progress:
                kind = type(note)  # a line stays one
                self.on_progress(before + step, total_steps, kind(f"{stage.name}: {note}"))

        return report

    def _require_something_to_learn(self) -> None:
        """Masks can only be learned from masks or classified points; better said before hours of training."""
        if not any(isinstance(stage, PseudoMaskStage) for stage in self.stages):
            return
        data = self.config.data
        files = locate(data.path).get(data.train_split)
        if files is None or files.annotations is None:
            return  # the first stage says what is wrong
        census = AnnotationStore.open(files.annotations, files.images, unannotated=data.unannotated).census()
        if not census.objects.get("mask") and not census.objects.get("points"):
            raise DataError(
                f"{files.annotations} has neither a mask nor classified points, so no network could learn masks to "
                "label the boxes with; add points (leanmask split --points, or by hand) or a few masks"
            )

    def _write_folder(self) -> None:
        if (self.folder / CONFIG_FILE).is_file():
            return
        self.held.enter_context(alone_in(self.folder))
        stages: list[dict[str, Any]] = [
            {"name": stage.name, "folder": self.stage_folder(stage.name).name, "trains": isinstance(stage, TrainStage)}
            for stage in self.stages
        ]
        text = commented_yaml(self.config.model_dump(mode="json"), self.reasons)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            written = json.dumps({"stages": stages}, indent=1)
            write_atomically(self.folder / STAGES_FILE, written.encode(), overwrite=True)
            write_atomically(self.folder / CONFIG_FILE, text.encode())  # the last one: see Session.write_folder
        except (OSError, LeanmaskError) as error:
            raise RunError(f"cannot write the run folder {self.folder}: {error}") from None


# What a stage with another model takes of the run's: the same network, which sees the same numbers.
BACKBONE_SETTINGS = ("backbone_options", "window", "global_blocks", "weights", "norm", "image_mean", "image_std")


def _with_backbone(own: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """A stage's settings of its model, with the run's backbone where it names none or the same."""
    backbone = own.get("backbone", run["backbone"])
    if backbone != run["backbone"]:
        return own
    return {"backbone": backbone, **{name: run[name] for name in BACKBONE_SETTINGS}, **own}


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.partial")
    try:
        shutil.copyfile(source, temporary)
        temporary.replace(target)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror}") from None
