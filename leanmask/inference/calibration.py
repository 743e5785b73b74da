"""The work between the trainings of `better_labels`: hold a part of the labelled images back, and measure on it how far
a teacher's confidence can be trusted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from leanmask.data.coco import AnnotationStore
from leanmask.data.dataset import EvalDataset
from leanmask.data.files import read_json, write_atomically, write_json
from leanmask.data.layout import SplitFiles, locate
from leanmask.data.loader import evaluation_batches
from leanmask.data.withholding.chance import count_of, shuffled
from leanmask.errors import DataError
from leanmask.evaluation.calibration import measure_calibration
from leanmask.evaluation.coco_files import Row
from leanmask.evaluation.predictions import predict_results
from leanmask.inference.predict import Loaded

HELD = "held"  # the split of the images that are held back
DATA_FILE, CALIBRATION_FILE = "data.yaml", "calibration.json"


def hold_back(splits: Mapping[str, SplitFiles], train: str, fraction: float, seed: int, out: Path) -> int:
    """Write a data set into `out` whose split `train` lacks a share of its fully labelled images, which become the
    split "held"; returns how many. A class never loses its last image.

    data.yaml is written last: a folder that has it is complete. Raises DataError when nothing can be held back.
    """
    files = splits[train]
    assert files.annotations is not None, "the training split was opened before"
    content = read_json(files.annotations)
    classes = _classes(content)
    left = Counter(category for own in classes.values() for category in own)
    wanted = count_of(fraction, len(classes))
    held: set[Any] = set()
    for key in shuffled([key for key, own in classes.items() if own], seed, HELD):
        if len(held) < wanted and all(left[category] > 1 for category in classes[key]):
            held.add(key)
            left.subtract(classes[key])
    if not held:
        raise DataError(
            f"no image of {files.annotations} can be held back to calibrate on: every one has masks missing or is the "
            "last of a class; label more images, or set method.calibrate=false"
        )
    out.mkdir(parents=True, exist_ok=True)
    for name, chosen in ((train, [key for key in _ids(content) if key not in held]), (HELD, list(held))):
        write_json(out / f"instances_{name}.json", _part(content, set(chosen)), overwrite=True)
    named = {name: _relative(found, out) for name, found in splits.items()}
    images = named[train]["images"]
    named[train] = {"annotations": f"instances_{train}.json", "images": images}
    named[HELD] = {"annotations": f"instances_{HELD}.json", "images": images}
    text = yaml.safe_dump({"splits": named}, sort_keys=False, allow_unicode=True)
    write_atomically(out / DATA_FILE, text.encode(), overwrite=True)
    return len(held)


def calibrate(loaded: Loaded, data: Path, out: Path, on_progress: Callable[[int, int], None]) -> list[str]:
    """Measure a teacher on the split "held" of `data` and write calibration.json into the folder `out`; returns
    sentences about classes that could not be measured, whose error is 0.
    """
    files = locate(data)[HELD]
    assert files.annotations is not None, "hold_back wrote annotations"
    store = AnnotationStore.open(
        files.annotations, files.images, unannotated=loaded.config.data.unannotated, classes=loaded.classes
    )
    dataset = EvalDataset(store, loaded.config.data)
    done, rows = 0, list[Row]()
    for views in evaluation_batches(dataset, loaded.config.evaluation.batch_size, workers=loaded.config.data.workers):
        rows += predict_results(loaded.model, [views], loaded.classes.ids, loaded.device, loaded.precision)
        done += len(views)
        on_progress(done, len(dataset))
    found = measure_calibration(files.annotations, rows).to_json()
    unseen = [each["name"] for each in found["per_class"] if each["count"] == 0]
    notes = [f"nothing was predicted of {', '.join(unseen)} on held-back images: not corrected"] if unseen else []
    write_json(out / CALIBRATION_FILE, {**found, "notes": notes})
    return notes


def _classes(content: dict[str, Any]) -> dict[Any, set[int]]:
    """Classes on each image; none for images that cannot be measured on: a mask is missing, or not everything is
    labelled.
    """
    classes: dict[Any, set[int]] = {key: set() for key in _ids(content)}
    unfit = {image["id"] for image in content["images"] if image.get("exhaustive") is False}
    for row in content["annotations"]:
        classes[row["image_id"]].add(row["category_id"])
        if not row.get("segmentation") and not row.get("iscrowd"):
            unfit.add(row["image_id"])
    return {key: set() if key in unfit else own for key, own in classes.items()}


def _ids(content: dict[str, Any]) -> list[Any]:
    return [image["id"] for image in content["images"]]


def _part(content: dict[str, Any], chosen: set[Any]) -> dict[str, Any]:
    images = [image for image in content["images"] if image["id"] in chosen]
    return {**content, "images": images, "annotations": [r for r in content["annotations"] if r["image_id"] in chosen]}


def _relative(files: SplitFiles, out: Path) -> dict[str, str]:
    found = {"annotations": files.annotations, "images": files.images, "truth": files.truth}
    return {
        key: Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
        for key, path in found.items()
        if path is not None
    }
