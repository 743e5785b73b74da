"""One training, put together from the rooms: data, student, teacher, method, loader and measurement."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from leanmask.config import DataConfig, commented_yaml, reasons_in, without_places
from leanmask.data.coco import AnnotationStore, Census
from leanmask.data.dataset import EvalDataset, ImageSource, TrainDataset
from leanmask.data.files import write_atomically
from leanmask.data.layout import SplitFiles, locate
from leanmask.data.loader import BatchSizes, StepLoader, evaluation_batches
from leanmask.data.unlabelled import ImagePool, open_pool, require_apart, unlabelled_sources
from leanmask.engine.checkpoint import CHECKPOINTS, checkpoint_step, weights_metadata
from leanmask.engine.job import Best, Evaluated, Job, TrainResult
from leanmask.engine.teacher import Teacher
from leanmask.engine.trainer import train as run_job
from leanmask.errors import ConfigError, DataError, RunError
from leanmask.evaluation.coco_files import CocoTruth
from leanmask.evaluation.coverage import Measured, measured_by
from leanmask.evaluation.pseudo_quality import PseudoImage, pseudo_quality
from leanmask.evaluation.validator import METRICS_NAME, Validator
from leanmask.methods.base import Method, TrainingFacts
from leanmask.models.base import Model
from leanmask.pace import Pace
from leanmask.paths import image_path
from leanmask.planning.timing import evaluation_steps
from leanmask.records import Instances, Views
from leanmask.reports.evaluation_pictures import FOLDER as PICTURES_FOLDER
from leanmask.reports.evaluation_pictures import EvaluationPictures, spread
from leanmask.reports.pictures import read_truth
from leanmask.settings import CONFIG_FILE, RunConfig, load_config
from leanmask.settling import annotated, has_validation, labelled_census
from leanmask.starting import start_student, start_teacher
from leanmask.summary import BEST_FOLDER, Line, LogLine, OnStep, TrainSummary, score_of
from leanmask.version import __version__

DATA_FILE = "data.json"
FEW_OBJECTS = 20  # of a validation split: one more or less that is found is 5 points of recall
# Pseudo-labels are measured on at most this many training images, spread evenly.
MEASURED_IMAGES = 200
UNLABELLED_SEED = 7919


@dataclass(frozen=True)
class Unlabelled:
    """The unlabelled images of a training, and the file with what is on them where a benchmark has hidden it. by_name:
    the images come from a plain folder, so the truth knows them by their file names only.
    """

    images: ImagePool
    truth: Path | None
    by_name: bool = False


class Session:
    """One training, put together: data, student, teacher, method and measurement."""

    def __init__(self, config: RunConfig, folder: Path, state: PartialState) -> None:
        """Opens the data and builds the networks, without the weights that they start as where `folder` has a
        checkpoint, from which `run` loads them. Raises DataError, ConfigError or CheckpointError.
        """
        self.config, self.folder, self.state = config, folder, state
        splits = locate(config.data.path)
        names = [config.data.train_split, *([config.data.val_split] if has_validation(splits, config.data) else [])]
        self.files = {name: annotated(splits, name, config.data) for name in names}
        train, val = self.files[config.data.train_split], self.files.get(config.data.val_split)
        unannotated = config.data.unannotated
        self.labelled = AnnotationStore.open(train.annotations, train.images, unannotated=unannotated)
        self.classes = self.labelled.classes
        census = labelled_census(self.labelled, train.annotations)
        self.validation: AnnotationStore | None = None
        if val is not None:
            self.validation = AnnotationStore.open(
                val.annotations, val.images, unannotated=unannotated, classes=self.classes
            )
        self.unmeasured = self._why_unmeasured()
        self.measurable = self.unmeasured is None
        self.method: Method = config.build_method(self._facts(census))
        self.unlabelled = self._unlabelled(splits) if self.method.uses_unlabelled else None
        self.loader = self._loader()
        reached = checkpoint_step(folder / CHECKPOINTS)
        start = config.train.student_weights
        self.student: Model = config.build_model(len(self.classes), pretrained=start is None and reached is None)
        if reached is not None:
            self.student.weights_note = f"the run's own, of step {reached}"
            if reached >= config.train.steps:
                self.student.weights_note += ", the last: it is finished (--steps N makes a training longer)"
        elif start is not None:
            self.student.weights_note = start_student(self.student, Path(start), config, self.classes.names)
        if self.student.needs_rough:
            require_rough(self.labelled, train.annotations)
        self.student.tell_image_counts([census.class_images[name] for name in self.classes.names])
        self.teacher = Teacher(self.student)
        if reached is None and config.train.teacher_weights is not None:
            start_teacher(self.teacher.model, Path(config.train.teacher_weights), config)
            self.student.weights_note += f"; the teacher starts as {config.train.teacher_weights}"
        self.metrics: dict[str, dict[str, float]] = {}
        self.data_note: str | None = None
        self.folder_note: str | None = None  # what is unusual about the run folder
        measured = evaluation_steps(config, len(self.validation)) if self.validation and self.measurable else 0.0
        self.pace = Pace(config.train.steps, config.train.eval_every_steps, measured)
        self._pictures: EvaluationPictures | None = None
        self._on_progress: OnStep | None = None
        self._evaluating_seconds = 0.0  # since the last step

    def _why_unmeasured(self) -> str | None:
        """A sentence where nothing of the validation split can be measured. Where it is not masks but boxes that are,
        `measured` says so.
        """
        split, data = self.config.data.val_split, self.config.data.path
        self.measured: Measured | None = None
        if self.validation is None:
            return (
                f"{data} has no split '{split}': nothing is measured, the teacher of the last step is kept; `leanmask "
                f"split {data} NEW --val 20%` makes one"
            )
        if not self.validation.census().exhaustive_images:
            return f"no image of split '{split}' is annotated exhaustively: nothing is measured, the teacher is kept"
        annotations = self.files[split].annotations
        assert annotations is not None
        truth = CocoTruth.open(annotations)
        try:
            self.measured = measured_by(truth)
        except DataError as error:
            return f"{error}: nothing is measured, the teacher is kept"
        return None

    def _few_objects(self) -> str | None:
        """A sentence where the validation split is so small that its AP says little."""
        if self.validation is None or not self.measurable:
            return None
        count = sum(self.validation.census().objects.values())
        if count >= FEW_OBJECTS:
            return None
        objects = f"{count} object{'s' * (count != 1)}"
        return f"split '{self.config.data.val_split}' has {objects} to measure on: APs differ by many points by chance"

    def _facts(self, census: Census) -> TrainingFacts:
        counts = [census.per_class[name] for name in self.classes.names]
        return TrainingFacts(
            total_steps=self.config.train.steps,
            masks_per_class=tuple(kinds["mask"] for kinds in counts),
            objects_per_class=tuple(sum(kinds.values()) for kinds in counts),
            class_names=tuple(self.classes.names),
            labelled_images=census.images - census.unlabelled_images,
            images_per_class=tuple(census.class_images[name] for name in self.classes.names),
        )

    def _unlabelled(self, splits: Mapping[str, SplitFiles]) -> Unlabelled:
        sources = unlabelled_sources(self.config.data.unlabelled, splits)
        pool = open_pool(sources, self.classes)
        if self.state.is_main_process:
            known = {"labelled": self.labelled, "validation": self.validation}
            require_apart(pool, {purpose: store for purpose, store in known.items() if store is not None})
        truth = sources[0].truth if len(sources) == 1 else None
        return Unlabelled(pool, truth, by_name=sources[0].annotations is None)

    def _unlabelled_data(self) -> DataConfig:
        """How unlabelled images are read: all alike often; photographs with an EXIF rotation as they are shown, unless
        the user wants pixels as they are stored, for no annotation can contradict them.
        """
        exif = "apply" if self.config.data.exif == "error" else self.config.data.exif
        return self.config.data.model_copy(update={"repeat_threshold": 0.0, "exif": exif})

    def _loader(self) -> StepLoader:
        data, train, augment = self.config.data, self.config.train, self.config.augment
        if self.unlabelled is None and (data.unlabelled or train.unlabelled_batch_size):
            raise ConfigError(
                f"method '{self.config.method.name}' learns nothing from unlabelled images; "  # type: ignore[attr-defined]
                "remove data.unlabelled and train.unlabelled_batch_size"
            )
        images = TrainDataset(self.labelled, data, augment, train.seed)
        more, count = None, 0
        if self.unlabelled is not None:
            # Another seed, or position n of both streams would be augmented alike; there are no masks to paste.
            bare = augment.model_copy(update={"copy_paste_probability": 0.0})
            more = TrainDataset(self.unlabelled.images, self._unlabelled_data(), bare, train.seed + UNLABELLED_SEED)
            count = train.unlabelled_batch_size or train.batch_size
        return StepLoader(
            images,
            more,
            BatchSizes(train.batch_size, count),
            rank=self.state.process_index,
            world=self.state.num_processes,
            workers=data.workers,
        )

    def write_folder(self, environment: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
        """Make the run folder with `config.yaml`, `env.json` and `data.json`. reasons: why settings have their values,
        by dotted name.
        """
        stores = {self.config.data.train_split: self.labelled}
        if self.validation is not None:
            stores[self.config.data.val_split] = self.validation
        data = {
            "classes": self.classes.to_json(),
            "census": {name: store.census().to_json() for name, store in stores.items()},
            "fingerprints": {  # what scores of two runs can be compared on
                name: store.fingerprint() for name, store in stores.items() if store is self.validation
            },
            "content": {name: store.fingerprint() for name, store in stores.items()},  # what a resume goes on with
            "splits": {
                name: {"annotations": str(files.annotations), "images": str(files.images)}
                for name, files in self.files.items()
            },
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "env.json").write_text(json.dumps(environment, indent=1), encoding="utf-8")
            (self.folder / DATA_FILE).write_text(json.dumps(data, indent=1), encoding="utf-8")
            text = commented_yaml(self.config.model_dump(mode="json"), reasons)
            # The last one, whole: without it a folder is one in which no run has begun.
            write_atomically(self.folder / CONFIG_FILE, text.encode())
        except OSError as error:
            raise RunError(f"cannot write the run folder {self.folder}: {error.strerror}") from None

    def require_same_data(self, accept_new: bool) -> None:
        """Raise RunError where classes, images or labels are others than when the run began, or say so where that is
        accepted. What a run of before this was recorded began with is not known.
        """
        try:
            told = json.loads((self.folder / DATA_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        stores = {self.config.data.train_split: self.labelled, self.config.data.val_split: self.validation}
        changed = [
            f"split '{name}'"
            for name, before in told.get("content", {}).items()
            if (store := stores.get(name)) is None or store.fingerprint() != before
        ]
        if told.get("classes", self.classes.to_json()) != self.classes.to_json():
            changed = ["the classes", *changed]
        self.data_note = f"the data have changed since the run began: {', '.join(changed)}" if changed else None
        if changed and not accept_new:
            raise RunError(
                f"the data of {self.folder} have changed since it began ({', '.join(changed)}): images, labels or "
                "classes are others now. Put them back, train anew (--weights takes this run's weights), or go on all "
                "the same with --accept-new-data"
            )

    def keep_length(self) -> None:
        """Let `config.yaml` of a run that goes on with another number of steps say so."""
        path, before = self.folder / CONFIG_FILE, load_config(self.folder).train.steps
        if before == self.config.train.steps:
            return
        reasons = reasons_in(path.read_text(encoding="utf-8")) | {"train.steps": f"when resumed; {before} before"}
        text = commented_yaml(self.config.model_dump(mode="json"), reasons)
        write_atomically(path, text.encode(), overwrite=True)

    def run(self, *, resume: bool, on_progress: OnStep | None) -> TrainSummary:
        """Train to the end, or from the last checkpoint on."""

        clock = time.perf_counter()

        def report(step: int, total: int, losses: Mapping[str, float]) -> None:
            nonlocal clock
            before, clock = clock, time.perf_counter()
            self.pace.add_step(clock - before - self._evaluating_seconds)
            self._evaluating_seconds = 0.0
            self._tell(step, f"loss {sum(losses.values()):.2f}")
            if (estimate := self.pace.estimate(step)) is not None:
                self._tell(step, Line(estimate))

        def report_log(step: int, losses: Mapping[str, float], seconds_step: float) -> None:
            self._tell(step, LogLine(self.pace.log_line(step, sum(losses.values()), seconds_step)))

        self._on_progress = on_progress
        census = self.labelled.census()
        told = [census.to_text(), census.empty_classes(), f"weights: {self.student.weights_note}", self.method.notice]
        told += [
            self.folder_note,
            self.data_note,
            self.unmeasured,
            self.measured.note if self.measured else None,
            self._few_objects(),
            self._useless_patience(),
        ]
        self._tell(0, Line("; ".join(part for part in told if part)))
        job = Job(
            student=self.student,
            teacher=self.teacher,
            method=self.method,
            batches=self.loader.iterate,
            evaluate=self.evaluate,
            folder=self.folder,
            train=self.config.train,
            optim=self.config.optim,
            describe=self.describe(),
            on_progress=report,
            on_log=report_log,
            on_best=self.keep_evaluation,
        )
        return self.summary(run_job(job, resume))

    def _useless_patience(self) -> str | None:
        """A sentence where `train.patience` is set and can never end the training."""
        train = self.config.train
        before_the_end = self.pace.evaluations_after(0) - 1
        if not train.patience or (self.measurable and before_the_end > train.patience):
            return None
        why = f"evaluations before the end: {before_the_end} (train.eval_every_steps={train.eval_every_steps})"
        return f"train.patience={train.patience} does nothing; {why if self.measurable else 'nothing is measured'}"

    def _tell(self, step: int, note: str) -> None:
        if self._on_progress and self.state.is_main_process:
            self._on_progress(step, self.config.train.steps, note)

    def describe(self) -> dict[str, Any]:
        """What a weights file must say of itself to be used without its run folder: no path of this machine, as the
        file may be shared.
        """
        return {
            "classes": self.classes.to_json(),
            "config": without_places(self.config.model_dump(mode="json")),
            "preprocessing": {
                "image_size": self.config.data.image_size,
                "channels": "RGB",
                "range": [0, 1],
                "mean": self.config.model.image_mean,  # type: ignore[attr-defined]
                "std": self.config.model.image_std,  # type: ignore[attr-defined]
            },
            "leanmask": __version__,
            "licence": "the weights are yours; their licence follows your data and any pretrained weights",
        }

    def summary(self, result: TrainResult) -> TrainSummary:
        """The result with the last metrics, read back where this process did not measure them itself."""
        for who in self.config.evaluation.who:
            path = self.folder / "evaluation" / who / METRICS_NAME
            if who not in self.metrics and path.is_file():
                self.metrics[who] = _numbers(json.loads(path.read_text(encoding="utf-8"))["metrics"])
        return TrainSummary(
            self.folder,
            result.steps,
            result.seconds,
            self.metrics,
            self._best(result.best),
            unreadable=result.unreadable,
            stopped_early=result.stopped_early,
        )

    def keep_evaluation(self, best: Best) -> None:
        """Keep what was measured and drawn of the network that `best.safetensors` holds now, beside the last
        evaluation: in `evaluation/best`. Raises RunError when files cannot be written.
        """
        kept = self.folder / "evaluation" / BEST_FOLDER
        new = kept.with_name(f".{BEST_FOLDER}.new")
        source = self.folder / "evaluation" / best["who"]
        if not (source / METRICS_NAME).is_file():
            return
        try:
            shutil.rmtree(new, ignore_errors=True)  # of a run that was killed here
            shutil.copytree(source, new)
            told = json.loads((new / METRICS_NAME).read_text(encoding="utf-8"))
            (new / METRICS_NAME).write_text(json.dumps({**best, **told}, indent=1), encoding="utf-8")
            shutil.rmtree(kept, ignore_errors=True)
            new.rename(kept)
        except OSError as error:
            raise RunError(f"cannot write {kept}: {error.strerror or error}") from None

    def _best(self, best: Best | None) -> dict[str, Any] | None:
        """Which network `best.safetensors` holds, and what was measured of it, as the files say."""
        path = self.folder / "best.safetensors"
        if best is None or not path.is_file():
            return None if best is None else dict(best)
        # A run that was killed between its best evaluation and its next checkpoint has a better file than it remembers.
        said = weights_metadata(path)
        found: dict[str, Any] = {**best, **{key: said[key] for key in ("who", "iou") if key in said}}
        found |= {key: json.loads(said[key]) for key in ("step", "AP") if key in said}
        try:
            told = json.loads((path.parent / "evaluation" / BEST_FOLDER / METRICS_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # a run of before there was such a folder
            return found
        if (told.get("who"), told.get("step")) == (found["who"], found["step"]):
            found["metrics"] = _numbers(told["metrics"])
        return found

    def evaluate(self, step: int) -> Evaluated:
        """Measure and draw the networks on the validation split, and the pseudo-labels where hidden truth is there."""
        begin = time.perf_counter()
        measured = self._measure(step) if self.measurable else {}
        if self.state.is_main_process and (quality := self.pseudo_quality()):
            measured["pseudo"] = quality
        self._evaluating_seconds += time.perf_counter() - begin
        self.pace.add_evaluation(time.perf_counter() - begin)
        return measured

    def _measure(self, step: int) -> dict[str, dict[str, Any]]:
        """Metrics of the networks on the validation split, by name."""
        truth = self.files[self.config.data.val_split].annotations
        assert truth is not None
        validator = Validator(
            batches=self._validation_batches,
            truth=truth,
            class_ids=self.classes.ids,
            device=self.state.device,
            precision=self.config.train.precision,
            max_detections=self.config.evaluation.max_detections,
            protocol=self.config.evaluation.protocol,
            calibration=self.config.evaluation.calibration,
            iou=self.measured.iou if self.measured else None,
        )
        networks = {"student": self.student, "teacher": self.teacher.model}
        measured: dict[str, dict[str, Any]] = {}
        for who in self.config.evaluation.who:
            self._tell(step, f"evaluating the {who}")
            pictures: dict[str, Any] = {}
            draw = partial(self._draw, pictures, step, who) if self.config.evaluation.pictures else None
            evaluation = validator.measure(networks[who], self.folder / "evaluation" / who, draw)
            if evaluation is not None:
                measured[who] = {**evaluation.metrics, "per_class": evaluation.per_class, "pictures": pictures}
                self.metrics[who] = evaluation.metrics
        if measured:
            scores = {who: score_of(metrics) for who, metrics in measured.items()}
            found = ", ".join(f"{who} {name} {100 * ap:.1f}" for who, (name, ap) in scores.items())
            self._tell(step, Line(f"step {step} of {self.config.train.steps}: {found}"))
        return measured

    def _draw(self, pictures: dict[str, Any], step: int, who: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add pictures of the network's predictions on a few validation images, by name."""
        val = self.files[self.config.data.val_split]
        assert val.annotations is not None
        assert self.validation is not None
        if self._pictures is None:
            shown = spread(len(self.validation), self.config.evaluation.pictures)
            images = [(self.validation[index].id, self.validation[index].path) for index in shown]
            self._pictures = EvaluationPictures(read_truth(val.annotations), images)
        folder = self.folder / "evaluation" / who / PICTURES_FOLDER
        drawn, problems = self._pictures.draw(rows, f"{who}, step {step}", folder)
        pictures.update(drawn)
        for problem in problems:
            self._tell(step, Line(problem))

    def _validation_batches(self) -> Iterator[Views]:
        assert self.validation is not None
        dataset = EvalDataset(self.validation, self.config.data)
        rank, world = self.state.process_index, self.state.num_processes
        size, workers = self.config.evaluation.batch_size, self.config.data.workers
        return evaluation_batches(dataset, size, rank, world, workers)

    def pseudo_quality(self) -> dict[str, Any] | None:
        """The teacher's pseudo-labels on training images (unlabelled ones, where the method learns from them) against
        the hidden truth; None where either is missing.
        """
        free = self.unlabelled is not None
        truth = self.unlabelled.truth if self.unlabelled else self.files[self.config.data.train_split].truth
        if truth is None:
            return None
        source: ImageSource = self.unlabelled.images if self.unlabelled else self.labelled
        data = self._unlabelled_data() if free else self.config.data
        images = EvalDataset(source, data, every=max(1, len(source) // MEASURED_IMAGES))
        found: list[PseudoImage] = []
        files: list[str] = []
        for views in evaluation_batches(images, self.config.evaluation.batch_size, workers=self.config.data.workers):
            bf16 = self.config.train.precision == "bf16"
            with torch.inference_mode(), torch.autocast(self.state.device.type, torch.bfloat16, enabled=bf16):
                labels = self.method.pseudo_labels(self.teacher.model, views.to(self.state.device))
            if labels is None:
                return None
            lacking = [target.instances[~target.instances.has_mask] for target in views.targets]
            found += [
                PseudoImage(image_id, instances, frame, None if free else _ids(asked))
                for image_id, instances, frame, asked in zip(
                    views.image_ids, labels, views.frames, lacking, strict=True
                )
            ]
            files += views.files
        known = CocoTruth.open(truth)  # not before it is sure that there is something to measure: it may be large
        if self.unlabelled is not None and self.unlabelled.by_name:
            names = {image_path(Path(), str(row["file_name"])).name: key for key, row in known.images.items()}
            found = [replace(image, image_id=names[Path(file).name]) for image, file in zip(found, files, strict=True)]
        return pseudo_quality(found, known, self.classes.ids).to_json()


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as JSON has them, where NaN is null."""
    return {name: float("nan") if value is None else value for name, value in metrics.items()}


def _ids(instances: Instances) -> frozenset[int]:
    return frozenset(instances.ids.tolist() if instances.ids is not None else ())


def require_rough(store: AnnotationStore, source: Path | None) -> None:
    """Raise DataError when no object of a store has both a mask and a rough one."""
    for index in range(len(store)):
        if any(item.rough and item.segmentation is not None for item in store[index].objects):
            return
    raise DataError(
        f"{source} has no object with both a mask and a rough one (rough_segmentations), so there is nothing to learn "
        "refinement from"
    )
