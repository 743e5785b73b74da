"""Pseudo-labels for images that nobody labelled: objects that pass both thresholds, as a COCO file with qualities.

Streams over any number of images with the memory of one batch, shared by any number of processes; killed and started
again with the same arguments it goes on without loss or repetition.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from leanmask.data.dataset import ReadableOrBlank
from leanmask.data.files import why
from leanmask.data.loader import evaluation_batches
from leanmask.data.photos import Photos
from leanmask.engine.distributed import start_processes
from leanmask.errors import RunError
from leanmask.evaluation.predictions import image_results, predict_views
from leanmask.inference.polygons import to_polygons
from leanmask.inference.predict import Loaded, few, load, weights_path
from leanmask.inference.shares import Shares, file_state, remove_parts, require_same_work
from leanmask.labels.select import Qualities, Thresholds, class_quality, decoupled, measure, surest
from leanmask.models.base import Worth
from leanmask.options import FROM_ONE, FROM_ZERO, SHARE, check_fields, require_options
from leanmask.paths import OneOrMorePaths, as_path
from leanmask.records import Instances, Views

OnProgress = Callable[[int, int], None]
QUALITIES = ("class_quality", "mask_quality")


@dataclass(frozen=True)
class PseudoOptions:
    """Which predictions become pseudo-labels: least class_quality (probability of the class) and mask_quality (mean
    probability inside the mask), both 0 to 1, and more than area_px pixels of the network's input. polygons: write
    masks as polygons instead of RLE, for tools that want them. batch_size: images at a time. Raises
    ConfigError for values that cannot be.
    """

    class_quality: float = 0.5
    mask_quality: float = 0.8
    area_px: int = 5
    polygons: bool = False
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_fields(self, class_quality=SHARE, mask_quality=SHARE, area_px=FROM_ZERO, batch_size=FROM_ONE)


@dataclass(frozen=True)
class PseudoSummary:
    """What was written. per_class: pseudo-objects by class name. skipped: files that could not be read. best: the
    highest qualities, kept or not, among what is sure enough of its class and the surest of every image; 0 where
    nothing was found.
    """

    out: Path
    images: int
    objects: int
    per_class: dict[str, int]
    skipped: tuple[str, ...]
    best: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "out": str(self.out), "skipped": list(self.skipped)}

    def to_text(self) -> str:
        found = ", ".join(f"{count} {name}" for name, count in self.per_class.items() if count)
        lines = [f"{self.objects} pseudo-objects on {self.images} images ({found or 'none'}): {self.out}"]
        if not self.objects and not any(self.best.values()):
            lines.append("the network found no object at all, however unsure")
        elif not self.objects:
            seen = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in self.best.items())
            lines.append(
                f"nothing passed the thresholds (--class-quality, --mask-quality); the best that was seen: {seen}"
            )
        if self.skipped:
            count = len(self.skipped)
            lines.append(f"{count} file{'s' * (count > 1)} could not be read: {few(self.skipped)}")
        return "\n".join(lines)


def pseudo(
    run: str | Path,
    images: OneOrMorePaths,
    out: str | Path,
    options: PseudoOptions = PseudoOptions(),
    *,
    on_progress: OnProgress | None = None,
) -> PseudoSummary:
    """Label images and folders of images with the best network of a run; writes the COCO file `out`.

    images: one path or several, as a list or a generator.

    Every object has score, class_quality, mask_quality and provenance; every image says `exhaustive: false`, so that in
    training what was not found is no background, and an object counts as much as its score. Files that cannot be read
    are left out and listed. Killed and called again with the same arguments, it goes on. Raises DataError for no images
    at all, RunError when `out` exists or when unfinished work for `out` came from other arguments.
    """
    require_options(options, PseudoOptions)
    out, state = as_path(out), start_processes()
    if out.exists():
        raise RunError(f"{out} exists already and is never overwritten; choose another name")
    loaded = load(run, device=str(state.device))
    photos = Photos.find(images, loaded.classes, lenient=True)
    folder = out.with_name(f".{out.name}.parts")
    if state.is_main_process:
        require_same_work(folder, _fingerprint(weights_path(Path(run)), photos, options))
    state.wait_for_everyone()
    shares = Shares(folder, state.process_index, state.num_processes)
    try:
        _label(loaded, photos, options, shares, on_progress)
    except KeyboardInterrupt:
        raise RunError(f"stopped; {folder} keeps what is done, and the same command goes on from there") from None
    state.wait_for_everyone()
    summary = PseudoSummary(out, len(photos), 0, {}, (), {})
    if state.is_main_process:
        try:
            summary = _join(loaded, photos, shares, out, f"leanmask {Path(run).resolve().name}")
        except OSError as error:
            raise RunError(f"cannot write {out}: {why(error)}; the same command tries again") from None
    state.wait_for_everyone()
    return summary


def _label(
    loaded: Loaded, photos: Photos, options: PseudoOptions, shares: Shares, on_progress: OnProgress | None
) -> None:
    # People's photographs often carry an EXIF rotation; labels are for the picture as it is shown.
    dataset = ReadableOrBlank(photos, loaded.config.data.model_copy(update={"exif": "apply"}))
    done, workers = shares.done(), loaded.config.data.workers
    batches = evaluation_batches(dataset, options.batch_size, shares.rank, shares.world, workers, skip=done)
    for count in shares.append(_label_batch(loaded, views, options) for views in batches):
        done += count
        if on_progress:
            on_progress(min(done * shares.world, len(photos)), len(photos))


def _label_batch(loaded: Loaded, views: Views, options: PseudoOptions) -> Iterator[dict[str, Any]]:
    """One item per image: its rows, or the file that could not be read."""

    sure = sure_of_class(options.class_quality)
    found = predict_views(loaded.model, views, loaded.device, loaded.precision, sure)
    thresholds = Thresholds(options.class_quality, options.mask_quality, options.area_px)
    for image_id, file, frame, instances in zip(views.image_ids, views.files, views.frames, found, strict=True):
        if file in views.skipped:
            yield {"skipped": file}
            continue
        qualities = measure(instances)
        kept = torch.nonzero(decoupled(qualities, thresholds))[:, 0]
        rows = []
        for index in kept:
            own = {name: getattr(qualities, name)[index] for name in QUALITIES}
            for row in image_results(image_id, frame, instances[index[None]], loaded.classes.ids):
                area = int(coco_mask.area(row["segmentation"]))
                mask = to_polygons(row["segmentation"]) if options.polygons else row["segmentation"]
                told = {name: round(float(value), 4) for name, value in own.items()}
                rows.append({**row, "segmentation": mask, "area": area, **told})
        yield {"rows": rows, "size": list(frame.image_size), "best": _best(qualities)}


def sure_of_class(quality: float) -> Worth:
    """Which predictions may pass the class threshold, whatever their masks; and the surest of every image."""

    def worth(found: Instances) -> Tensor:
        qualities = class_quality(found)
        return (qualities >= quality) | surest(qualities)

    return worth


def _best(qualities: Qualities) -> dict[str, float]:
    found = {name: getattr(qualities, name) for name in QUALITIES}
    return {name: round(float(values.max()), 4) if len(values) else 0.0 for name, values in found.items()}


def _join(loaded: Loaded, photos: Photos, shares: Shares, out: Path, provenance: str) -> PseudoSummary:
    """Write the COCO file from everybody's lines, one image in memory at a time, and remove them."""
    root = photos.root
    names = dict(zip(loaded.classes.ids, loaded.classes.names, strict=True))
    counts, skipped, images, number = dict.fromkeys(names.values(), 0), [], [], 0
    best = dict.fromkeys(QUALITIES, 0.0)
    temporary = out.with_name(f".{out.name}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write('{"annotations": [')
        for path, image_id, item in zip(photos.paths, range(1, len(photos) + 1), shares.read(), strict=True):
            if "skipped" in item:
                skipped.append(str(path))
                continue
            best = {name: max(value, item.get("best", best)[name]) for name, value in best.items()}  # not in old parts
            height, width = item["size"]
            name = path.absolute().relative_to(root).as_posix()
            images.append({"id": image_id, "file_name": name, "width": width, "height": height, "exhaustive": False})
            for row in item["rows"]:
                number += 1
                counts[names[row["category_id"]]] += 1
                row = {"id": number, **row, "iscrowd": 0, "provenance": provenance}
                file.write((",\n" if number > 1 else "\n") + json.dumps(row))
        rest = {
            "images": images,
            "categories": photos.categories(),
            "info": {"description": "pseudo-labels", "provenance": provenance, "image_folder": str(root)},
        }
        file.write("\n],\n" + json.dumps(rest)[1:] + "\n")
    temporary.replace(out)
    remove_parts(shares.folder)
    return PseudoSummary(out, len(images), number, counts, tuple(skipped), best)


def _fingerprint(weights: Path, photos: Photos, options: PseudoOptions) -> dict[str, Any]:
    paths = hashlib.blake2b("\n".join(map(str, photos.paths)).encode(), digest_size=16).hexdigest()
    return {
        "weights": file_state(weights),
        "images": [len(photos), paths],
        "options": dataclasses.asdict(options),
    }
