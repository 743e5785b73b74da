"""Using a trained run: load its best weights, evaluate them or any COCO results file, and segment new images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanmask.data.coco import AnnotationStore, ClassMap
from leanmask.data.dataset import EvalDataset, ReadableOrBlank
from leanmask.data.files import write_json
from leanmask.data.layout import SplitFiles, locate
from leanmask.data.loader import evaluation_batches
from leanmask.data.new_folder import new_folder
from leanmask.data.photos import Photos
from leanmask.data.predictions import IMAGES_NAME, read_predictions
from leanmask.devices import Precision, channels_last, default_device, inference_precision
from leanmask.engine.checkpoint import fit_weights, load_weights
from leanmask.errors import CheckpointError, ConfigError, DataError, RunError, suggest
from leanmask.evaluation.coco_ap import Evaluation
from leanmask.evaluation.coverage import IOUS
from leanmask.evaluation.predictions import image_results, predict_views, write_results
from leanmask.evaluation.validator import PROTOCOLS, Validator, score_results, with_calibration
from leanmask.labels.select import surest
from leanmask.models.base import Model
from leanmask.models.spec import is_depthwise
from leanmask.options import FROM_ONE, FROM_ZERO, SHARE, check_fields, require_options
from leanmask.paths import OneOrMorePaths, as_path
from leanmask.records import Instances, Views
from leanmask.reports.collect import RESULTS_NAME
from leanmask.reports.folders import STAGES_FILE
from leanmask.reports.overlays import LONGEST_PX, draw_overlay, open_upright, readable_scale
from leanmask.settings import RunConfig, stored

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Loaded:
    """A trained network ready to use: on its device, in eval mode, with the class map it was trained with."""

    model: Model
    classes: ClassMap
    config: RunConfig
    device: torch.device

    @property
    def precision(self) -> Precision:
        """In which it is used here: the run's bf16 only where the device computes it natively, else fp32."""
        return inference_precision(self.config.train.precision, self.device, self.depthwise)

    @property
    def depthwise(self) -> bool:
        """As for `devices.bf16_pays`."""
        return is_depthwise(self.config.model.backbone)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class EvaluateOptions:
    """protocol: "coco" or "lvis", None = the run's own, "coco" for a file. calibration: also measure how far scores can
    be trusted. iou: "mask" or "box", what AP compares; None = masks, or boxes where an object of the split has none.
    Raises ConfigError for values that cannot be.
    """

    protocol: str | None = None
    calibration: bool = False
    iou: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise ConfigError(f"protocol is '{self.protocol}'{suggest(self.protocol, PROTOCOLS)}")
        if self.iou is not None and self.iou not in IOUS:
            raise ConfigError(f"iou is '{self.iou}'{suggest(self.iou, IOUS)}")
        if self.iou == "box" and self.calibration:
            raise ConfigError("calibration is measured on masks; leave it out, or iou=box")


@dataclass(frozen=True)
class PredictOptions:
    """score: objects below are neither written nor drawn. overlays: write pictures. batch_size: images at a time.
    overlay_px: longest side of a picture, None or 0 = as large as the image. Raises ConfigError for values that cannot
    be.
    """

    score: float = 0.5
    overlays: bool = True
    batch_size: int = 8
    overlay_px: int | None = LONGEST_PX

    def __post_init__(self) -> None:
        check_fields(self, score=SHARE, batch_size=FROM_ONE, overlay_px=FROM_ZERO)
        if self.overlay_px == 0:
            object.__setattr__(self, "overlay_px", None)


@dataclass(frozen=True)
class PredictSummary:
    """What was written where. skipped: files that could not be read. score: the least that was asked for. best_score:
    the highest that was seen, written or not; 0 where nothing was found. undrawn: why files have no picture. reduced:
    longest side of the pictures of larger images, None where there are none.
    """

    results: Path
    overlays: Path | None
    images: int
    objects: int
    skipped: tuple[str, ...] = ()
    score: float = 0.5
    best_score: float = 0.0
    undrawn: tuple[str, ...] = ()
    reduced: int | None = None

    def to_json(self) -> dict[str, Any]:
        overlays = str(self.overlays) if self.overlays else None
        told = {"results": str(self.results), "overlays": overlays, "images": self.images, "objects": self.objects}
        return told | {"skipped": list(self.skipped), "score": self.score, "best_score": self.best_score}

    def to_text(self) -> str:
        pictures = f", pictures in {self.overlays}" if self.overlays else ""
        if self.reduced is not None:
            pictures += f" (longest side at most {self.reduced} px; --overlay-px 0: as large as the image)"
        lines = [f"{self.objects} objects on {self.images} images: {self.results}{pictures}"]
        if not self.objects and not self.best_score:
            lines.append("the network found no object at all, however unsure")
        elif not self.objects:
            lines.append(
                f"no object has a score of at least {self.score:g} (--score); the best that was seen has "
                f"{self.best_score:.2f}"
            )
        if self.skipped:
            count = len(self.skipped)
            lines.append(f"{count} file{'s' * (count > 1)} could not be read: {few(self.skipped)}")
        lines += [f"no picture: {problem}" for problem in self.undrawn]
        return "\n".join(lines)


def few(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def weights_path(run: Path) -> Path:
    """`best.safetensors` of a run folder, or the weights file itself. Raises RunError or CheckpointError."""
    if run.is_file():
        return run
    if not run.exists():
        raise RunError(f"{run} does not exist; name a run folder or a .safetensors file")
    path = run / "best.safetensors"
    if not path.is_file():
        when = "at the first evaluation of a training run"
        if (run / STAGES_FILE).is_file():
            when = f"when its last stage is done (leanmask train --resume {run}); the stages' folders have their own"
        raise CheckpointError(f"{run} has no best.safetensors yet; it is written {when}")
    return path


def load(run: str | Path, device: str | None = None) -> Loaded:
    """Load a run folder or a weights file. device: "cpu", "cuda", None = what training would take: a GPU
    when there is one, unless ACCELERATE_USE_CPU is set.
    """
    path = weights_path(as_path(run))
    weights, metadata = load_weights(path)
    if not {"config", "classes"} <= metadata.keys():
        raise CheckpointError(f"{path} was not written by leanmask: it does not say which model and classes it is for")
    config = stored(json.loads(metadata["config"]))
    classes = dataclasses.replace(ClassMap.from_json(json.loads(metadata["classes"])), owner=str(run))
    chosen = torch.device(device) if device else default_device()
    model = config.build_model(len(classes), pretrained=False)
    fit_weights(model, weights, path)
    model = model.to(chosen).eval()
    loaded = Loaded(model, classes, config, chosen)
    if channels_last(loaded.precision, chosen, loaded.depthwise):
        model.to(memory_format=torch.channels_last)
    return loaded


def evaluate(
    run: str | Path,
    data: str | Path,
    *,
    split: str = "val",
    out: str | Path | None = None,
    options: EvaluateOptions = EvaluateOptions(),
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Average precision of a run, a weights file or a COCO results file (.json) on a split of `data`.

    Results of a network go to `out`, by default `evaluation/<split>` in the run folder. The images of a results file
    that `predict` wrote are found by their files, others by their ids. Where an object of the split has a box and no
    mask, box AP is measured, and a note says so. Objects of a class that the run does not know count as missed, and a
    note says so. Raises DataError where the run and the data mean different things by one class name or id.
    """
    require_options(options, EvaluateOptions)
    path, files = as_path(run), _split(data, split)
    if files.annotations is None:
        raise DataError(f"split '{split}' of {data} has no annotations to evaluate against")
    if path.suffix == ".json":
        return _score_file(path, files, options)
    loaded = load(path)
    folder = Path(out) if out else (path if path.is_dir() else path.parent) / "evaluation" / split
    dataset, notes = _dataset(files, loaded)
    validator = Validator(
        batches=lambda: _counted(dataset, loaded, loaded.config.evaluation.batch_size, on_progress),
        truth=files.annotations,
        class_ids=loaded.classes.ids,
        device=loaded.device,
        precision=loaded.precision,
        max_detections=loaded.config.evaluation.max_detections,
        protocol=options.protocol or loaded.config.evaluation.protocol,
        calibration=options.calibration or loaded.config.evaluation.calibration,
        iou=options.iou,
        notes=notes,
    )
    evaluation = validator.measure(loaded.model, folder)
    assert evaluation is not None  # one process
    return evaluation


def _score_file(path: Path, files: SplitFiles, options: EvaluateOptions) -> Evaluation:
    """Measure a results file; the images of one that `predict` wrote are found by their files, whatever their ids."""
    assert files.annotations is not None
    results, notes = read_predictions(path), list[str]()
    rows: list[dict[str, Any]] | Path = path
    if results is not None:
        rows, notes = results.in_ids_of(files.annotations, files.images)
    scored = score_results(files.annotations, rows, options.protocol or "coco", iou=options.iou)
    scored = with_calibration(scored, files.annotations, rows) if options.calibration else scored
    return dataclasses.replace(scored, notes=[*notes, *scored.notes])


def _split(data: str | Path, split: str) -> SplitFiles:
    splits = locate(data)
    if split not in splits:
        made = f"; `leanmask split {data} NEW --val 20%` makes one" if split == "val" and "train" in splits else ""
        raise DataError(f"{data} has no split '{split}'{suggest(split, splits)}{made}")
    return splits[split]


def _dataset(files: SplitFiles, loaded: Loaded) -> tuple[EvalDataset, tuple[str, ...]]:
    """The images, and a sentence about objects of classes that the network has never seen."""
    own = AnnotationStore.open(files.annotations, files.images, unannotated="negative")
    classes = loaded.classes.joined(own.classes, str(files.annotations))
    store = AnnotationStore.open(files.annotations, files.images, unannotated="negative", classes=classes)
    counts = {name: sum(kinds.values()) for name, kinds in store.census().per_class.items()}
    unknown = [f"'{name}'" for name in classes.names[len(loaded.classes) :] if counts[name]]
    note = (
        f"{loaded.classes.owner} does not know {few(unknown)}: the objects count as missed, with an AP of 0 in the "
        "mean over classes"
    )
    return EvalDataset(store, loaded.config.data), (note,) if unknown else ()


def _counted(dataset: EvalDataset, loaded: Loaded, batch_size: int, on_progress: OnProgress | None) -> Iterator[Views]:
    done = 0
    for views in evaluation_batches(dataset, batch_size, workers=loaded.config.data.workers):
        yield views
        done += len(views)
        if on_progress:
            on_progress(done, len(dataset))


def predict(
    run: str | Path,
    images: OneOrMorePaths,
    out: str | Path,
    options: PredictOptions = PredictOptions(),
    *,
    on_progress: OnProgress | None = None,
) -> PredictSummary:
    """Segment images and folders of images: COCO results in the user's own category ids, and overlay pictures.

    images: one path or several, as a list or a generator.

    Writes `coco_instances_results.json`, `images.json` (COCO's images and categories: which image id is which file,
    and the size of its picture as shown) and `overlays/` into the new folder `out`. Files that cannot be read are left
    out and listed. Raises DataError where none can be read, RunError when `out` exists.
    """
    require_options(options, PredictOptions)
    loaded = load(run)
    photos = Photos.find(images, loaded.classes, lenient=True)
    with new_folder(as_path(out)) as folder:
        rows: list[dict[str, Any]] = []
        sizes: dict[int, tuple[int, int]] = {}
        skipped: list[str] = []
        undrawn: list[str] = []
        best = 0.0
        reduced = False
        draw = _overlay_writer(photos, folder / "overlays", options.overlay_px) if options.overlays else None
        for number, size, found in _predicted(photos, loaded, options, on_progress):
            if size is None:
                skipped.append(str(photos.paths[number - 1]))
                continue
            sizes[number] = size
            best = max(best, *(row["score"] for row in found), 0.0)
            sure = [row for row in found if row["score"] >= options.score]
            rows += sure
            if draw is not None:
                try:
                    reduced = draw(number, size, sure) or reduced
                except DataError as error:
                    undrawn.append(str(error))
        if not sizes:
            raise DataError(f"none of the {len(photos)} files can be read as an image: {few(skipped)}")
        write_results(rows, folder / RESULTS_NAME)
        told = photos.to_json(sizes)
        write_json(folder / IMAGES_NAME, {**told, "info": {**told["info"], "score": options.score}})
    final = Path(out)
    return PredictSummary(
        final / RESULTS_NAME,
        final / "overlays" if options.overlays else None,
        len(sizes),
        len(rows),
        skipped=tuple(skipped),
        score=options.score,
        best_score=best,
        undrawn=tuple(undrawn),
        reduced=options.overlay_px if reduced else None,
    )


def _predicted(
    photos: Photos, loaded: Loaded, options: PredictOptions, on_progress: OnProgress | None
) -> Iterator[tuple[int, tuple[int, int] | None, list[dict[str, Any]]]]:
    """Of every image its id, (height, width) as shown, and the result rows of what is sure enough and of the surest;
    the size is None where the file cannot be read.
    """

    def confident(found: Instances) -> Tensor:
        assert found.scores is not None, "a prediction has scores"
        return (found.scores >= options.score) | surest(found.scores)

    # People's photographs often carry an EXIF rotation; predictions are for the picture as it is shown.
    data = loaded.config.data.model_copy(update={"exif": "apply"})
    for views in _counted(ReadableOrBlank(photos, data), loaded, options.batch_size, on_progress):
        predicted = predict_views(loaded.model, views, loaded.device, loaded.precision, confident)
        for number, file, frame, found in zip(views.image_ids, views.files, views.frames, predicted, strict=True):
            assert isinstance(number, int), "photos are numbered"
            if file in views.skipped:
                yield number, None, []
            else:
                yield number, frame.image_size, list(image_results(number, frame, found, loaded.classes.ids))


def _overlay_writer(
    photos: Photos, folder: Path, longest_px: int | None
) -> Callable[[int, tuple[int, int], Sequence[dict[str, Any]]], bool]:
    """Draws the rows of one image, given by its id and (height, width) as shown, into the new `folder`; the answer is
    whether the picture is reduced.
    """
    folder.mkdir()
    names = dict(zip(photos.classes.ids, photos.classes.names, strict=True))

    def draw(number: int, size: tuple[int, int], rows: Sequence[dict[str, Any]]) -> bool:
        path = photos.paths[number - 1]
        picture = open_upright(path, size[::-1])
        scale = readable_scale(picture.size, longest_px=longest_px)
        drawn = draw_overlay(picture, rows, names, 0.0, scale=scale)
        drawn.save(folder / f"{number:05d}-{path.stem}.png")
        return scale < 1

    return draw
