"""Using a trained run: load its best weights, evaluate them or any COCO results file, and segment new images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanmask.data.coco import AnnotationStore, ClassMap
from leanmask.data.dataset import EvalDataset
from leanmask.data.files import write_json
from leanmask.data.layout import SplitFiles, locate
from leanmask.data.loader import evaluation_batches
from leanmask.data.new_folder import new_folder
from leanmask.data.photos import Photos
from leanmask.devices import Precision, channels_last, default_device, inference_precision
from leanmask.engine.checkpoint import fit_weights, load_weights
from leanmask.errors import CheckpointError, DataError, RunError, suggest
from leanmask.evaluation.coco_ap import Evaluation
from leanmask.evaluation.predictions import predict_results, write_results
from leanmask.evaluation.validator import Validator, score_results, with_calibration
from leanmask.models.base import Model
from leanmask.models.spec import is_depthwise
from leanmask.paths import OneOrMorePaths, as_path
from leanmask.records import Instances, Views
from leanmask.reports.folders import STAGES_FILE
from leanmask.reports.overlays import draw_overlay, open_upright, readable_scale
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
    be trusted.
    """

    protocol: str | None = None
    calibration: bool = False


@dataclass(frozen=True)
class PredictOptions:
    """score: objects below are neither written nor drawn. overlays: write pictures. batch_size: images at a time."""

    score: float = 0.5
    overlays: bool = True
    batch_size: int = 8


@dataclass(frozen=True)
class PredictSummary:
    """What was written where."""

    results: Path
    overlays: Path | None
    images: int
    objects: int

    def to_json(self) -> dict[str, Any]:
        overlays = str(self.overlays) if self.overlays else None
        return {"results": str(self.results), "overlays": overlays, "images": self.images, "objects": self.objects}

    def to_text(self) -> str:
        pictures = f", pictures in {self.overlays}" if self.overlays else ""
        return f"{self.objects} objects on {self.images} images: {self.results}{pictures}"


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
    classes = ClassMap.from_json(json.loads(metadata["classes"]))
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

    Results of a network go to `out`, by default `evaluation/<split>` in the run folder.
    """
    path, files = as_path(run), _split(data, split)
    if files.annotations is None:
        raise DataError(f"split '{split}' of {data} has no annotations to evaluate against")
    if path.suffix == ".json":
        scored = score_results(files.annotations, path, options.protocol or "coco")
        return with_calibration(scored, files.annotations, path) if options.calibration else scored
    loaded = load(path)
    folder = Path(out) if out else (path if path.is_dir() else path.parent) / "evaluation" / split
    dataset = _dataset(files, loaded)
    validator = Validator(
        batches=lambda: _counted(dataset, loaded, loaded.config.evaluation.batch_size, on_progress),
        truth=files.annotations,
        class_ids=loaded.classes.ids,
        device=loaded.device,
        precision=loaded.precision,
        max_detections=loaded.config.evaluation.max_detections,
        protocol=options.protocol or loaded.config.evaluation.protocol,
        calibration=options.calibration or loaded.config.evaluation.calibration,
    )
    evaluation = validator.measure(loaded.model, folder)
    assert evaluation is not None  # one process
    return evaluation


def _split(data: str | Path, split: str) -> SplitFiles:
    splits = locate(data)
    if split not in splits:
        raise DataError(f"{data} has no split '{split}'{suggest(split, splits)}")
    return splits[split]


def _dataset(files: SplitFiles, loaded: Loaded) -> EvalDataset:
    store = AnnotationStore.open(files.annotations, files.images, unannotated="negative", classes=loaded.classes)
    return EvalDataset(store, loaded.config.data)


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

    Writes `coco_instances_results.json`, `images.json` (COCO's images and categories: which image id is which file)
    and `overlays/` into the new folder `out`. Raises DataError for files that are no images, RunError when `out`
    exists.
    """
    loaded = load(run)
    photos = Photos.find(images, loaded.classes)
    with new_folder(as_path(out)) as folder:
        rows = list(_confident_rows(photos, loaded, options, on_progress))
        write_results(rows, folder / "coco_instances_results.json")
        write_json(folder / "images.json", photos.to_json())
        if options.overlays:
            _draw_overlays(photos, rows, folder / "overlays")
    final = Path(out)
    pictures = final / "overlays" if options.overlays else None
    return PredictSummary(final / "coco_instances_results.json", pictures, len(photos), len(rows))


def _confident_rows(
    photos: Photos, loaded: Loaded, options: PredictOptions, on_progress: OnProgress | None
) -> Iterator[dict[str, Any]]:
    def confident(found: Instances) -> Tensor:
        assert found.scores is not None, "a prediction has scores"
        return found.scores >= options.score

    # People's photographs often carry an EXIF rotation; predictions are for the picture as it is shown.
    data = loaded.config.data.model_copy(update={"exif": "apply"})
    batches = _counted(EvalDataset(photos, data), loaded, options.batch_size, on_progress)
    return predict_results(loaded.model, batches, loaded.classes.ids, loaded.device, loaded.precision, confident)


def _draw_overlays(photos: Photos, rows: Sequence[dict[str, Any]], folder: Path) -> None:
    folder.mkdir()
    names = dict(zip(photos.classes.ids, photos.classes.names, strict=True))
    per_image: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        per_image.setdefault(row["image_id"], []).append(row)
    for number, path in enumerate(photos.paths, start=1):
        picture = open_upright(path, None)
        drawn = draw_overlay(picture, per_image.get(number, []), names, 0.0, scale=readable_scale(picture.size))
        drawn.save(folder / f"{number:05d}-{path.stem}.png")
