"""What taking the labels' class frequencies out of a network's class probabilities does to its classes.

    python benchmarks/longtail_prior.py RUN DATA [--strengths 0 0.25 0.5 0.75 1 1.25] [--split tune] [--out FILE]

RUN: a run trained on DATA, digits with a long tail. For every object of the split that the network found (box IoU above
0.6) the most confident prediction; per strength (`method.logit_adjustment`): the share with the right class, of all
objects and of rare, common and frequent ones, and of those with a class probability of 0.5 and more, how many there are
and how many are right. The strength of `bench longtail` was read off this, on `tune`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from leanmask.benchmark.commit import commit
from leanmask.data.coco import AnnotationStore
from leanmask.data.files import read_json, write_json
from leanmask.data.layout import locate
from leanmask.devices import machine
from leanmask.inference.predict import load
from leanmask.labels.prior import without_prior

FOUND_IOU, CONFIDENT = 0.6, 0.5


def found_objects(run: Path, store: AnnotationStore) -> tuple[Tensor, Tensor]:
    """Class probabilities (N, C) and true classes (N,) of the objects that were found."""
    model = load(run).model
    rows, classes = [], []
    for index in range(len(store)):
        record = store[index]
        with Image.open(record.path) as picture:
            pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            predicted = model.predict(pixels, [(0.0, 0.0, float(record.width), float(record.height))])[0]
        assert predicted.class_probabilities is not None, "predictions keep their class probabilities"
        truth = torch.tensor(np.array([item.box_xyxy for item in record.objects]), dtype=torch.float32).reshape(-1, 4)
        overlaps = box_iou(truth, predicted.boxes.float())
        for item, overlap in zip(record.objects, overlaps, strict=True):
            near = predicted.class_probabilities[overlap > FOUND_IOU].float()
            if len(near):
                rows.append(near[near.amax(1).argmax()])
                classes.append(item.category)
    return torch.stack(rows), torch.tensor(classes)


def measure(found: tuple[Tensor, Tensor], counts: list[int], frequencies: list[str], strength: float) -> dict[str, Any]:
    """One row."""
    probabilities, classes = found
    adjusted = without_prior(probabilities, counts, strength)
    right, confident = adjusted.argmax(1) == classes, adjusted.amax(1) >= CONFIDENT
    kinds = np.array(frequencies)[classes.numpy()]
    of_kind = {
        f"right_{kind}": round(float(right[torch.from_numpy(kinds == kind)].float().mean()), 4) for kind in "rcf"
    }
    return {
        "strength": strength,
        "objects": len(classes),
        "right": round(float(right.float().mean()), 4),
        **of_kind,
        "confident": round(float(confident.float().mean()), 4),
        "confident_right": round(float(right[confident].float().mean()), 4),
        "commit": commit(),
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1, 1.25])
    parser.add_argument("--split", default="tune")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/longtail_prior.json"))
    options = parser.parse_args()
    files = locate(options.data)
    train, split = (files[name].annotations if name in files else None for name in ("train", options.split))
    if train is None or split is None:
        parser.error(f"{options.data} needs annotations of train and {options.split}; it has {', '.join(files)}")
    categories = read_json(train)["categories"]
    if not all({"instance_count", "frequency"} <= category.keys() for category in categories):
        parser.error(f"the classes of {train} have no frequency; make the data with leanmask digits --longtail")
    counts = [category["instance_count"] for category in categories]
    frequencies = [category["frequency"] for category in categories]
    found = found_objects(options.run, AnnotationStore.open(split, files[options.split].images))
    rows = [measure(found, counts, frequencies, strength) for strength in options.strengths]
    write_json(options.out, rows, overwrite=True)
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
