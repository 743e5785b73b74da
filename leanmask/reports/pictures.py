"""Runs against runs against truth: which validation images to show, and the pictures of them."""

from __future__ import annotations

import base64
import io
import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from leanmask.errors import DataError, LeanmaskError
from leanmask.paths import image_path
from leanmask.reports.collect import AnnotatedImages
from leanmask.reports.overlays import draw_overlay, open_upright, readable_scale, to_rle

MOST_CANDIDATES = 500
PANEL_PX = 440
JPEG_QUALITY = 82
# Base64 characters; keeps the page well below 5 MB whatever the images are.
MOST_CHARACTERS = 2_800_000
TRUTH = "truth"
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Choice:
    """How many validation images to show, of which a quarter by chance, and how many training images of a data set;
    objects below the score are not drawn.
    """

    count: int = 8
    training: int = 6
    seed: int = 0
    score_threshold: float = 0.5


@dataclass(frozen=True)
class Picture:
    """One drawn image, width and height in pixels. uri: JPEG as a data URI. alt: what is on it, in words."""

    caption: str
    uri: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class PictureRow:
    """One validation image as every run sees it, and the truth last."""

    title: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Truth:
    """A COCO file by image. crowds are kept apart: they excuse predictions and are not drawn."""

    images: dict[Any, dict[str, Any]]
    objects: dict[Any, Rows]
    crowds: dict[Any, Rows]
    names: dict[int, str]


@dataclass(frozen=True)
class Comparison:
    """The rows, and sentences about what could not be shown."""

    rows: list[PictureRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare(results: Mapping[str, Path], files: AnnotatedImages, choice: Choice = Choice()) -> Comparison:
    """Draw the images on which the runs differ most (for one run: its weakest), and a quarter of random ones.

    results: run name -> COCO results file. "Differ" is by `panoptic_quality` of each image, measured on at most
    MOST_CANDIDATES images. The same files and choice give the same pictures. Files that cannot be read become notes.
    """
    try:
        truth = read_truth(files.annotations)
    except DataError as error:
        return Comparison(notes=[f"no pictures: {error}"])
    found: dict[str, dict[Any, Rows]] = {}
    notes = []
    for name, path in results.items():
        try:
            found[name] = _read_results(path, choice.score_threshold, truth)
        except DataError as error:
            notes.append(f"no pictures of {name}: {error}")
    if not found:
        return Comparison(notes=notes)
    rows: list[PictureRow] = []
    characters = 0
    for image_id, why in _choose(found, truth, choice, notes):
        try:
            row = _row(image_id, why, found, truth, files.images)
        except LeanmaskError as error:
            notes.append(f"image {image_id} left out: {error}")
            continue
        characters += sum(len(picture.uri) for picture in row.pictures)
        if rows and characters > MOST_CHARACTERS:
            break
        rows.append(row)
    return Comparison(rows, notes)


def panoptic_quality(predicted: Rows, truth: Rows, crowds: Rows, width: int, height: int) -> float:
    """Panoptic quality of one image (Kirillov et al. 2019, Eq. 1): mean IoU of matches times F1, in [0, 1].

    A match is a prediction and an object of the same class with mask IoU above 0.5. Predictions that lie mostly in a
    crowd region are excused. An image without objects and predictions scores 1. Where an object has a box and no mask,
    all count by their boxes.
    """
    if not all(row.get("segmentation") for row in truth):
        predicted, truth = ([_boxed(row) for row in rows] for rows in (predicted, truth))
    wrong, missed, matched = 0, 0, []
    for category in {row["category_id"] for row in (*predicted, *truth)}:
        mine, real, excuse = (
            [
                rle
                for row in rows
                if row["category_id"] == category and (rle := to_rle(row["segmentation"], width, height))
            ]
            for rows in (predicted, truth, crowds)
        )
        overlaps = _overlaps(mine, real)
        hits = overlaps > 0.5
        # An object may be hit twice by overlapping predictions: the best one counts, the others are wrong.
        best = np.where(hits.any(axis=0), overlaps.max(axis=0, initial=0.0), 0.0)
        excused = (~hits.any(axis=1)) & (_overlaps(mine, excuse, crowd=True) > 0.5).any(axis=1)
        matched += best[best > 0].tolist()
        missed += int((best == 0).sum())
        used = {int(at) for at in overlaps.argmax(axis=0)[best > 0]} if best.any() else set()
        wrong += len(mine) - len(used) - int(excused.sum())
    total = len(matched) + 0.5 * (wrong + missed)
    return sum(matched) / total if total else 1.0


def _boxed(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its box as its mask; without any where it has no box."""
    if not row.get("bbox"):
        return dict(row)
    x, y, width, height = row["bbox"]
    return {**row, "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]]}


def read_truth(path: Path) -> Truth:
    """Read a COCO file. Raises DataError when it is none."""
    content = read_json(path)
    try:
        images = {image["id"]: image for image in content["images"]}
        names = {int(category["id"]): str(category["name"]) for category in content.get("categories", [])}
        objects: dict[Any, Rows] = defaultdict(list)
        crowds: dict[Any, Rows] = defaultdict(list)
        for row in content.get("annotations", []):
            kept = {"segmentation": None} | row
            (crowds if row.get("iscrowd") else objects)[row["image_id"]].append(kept)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path} is no COCO file: {type(error).__name__} {error}") from None
    return Truth(images, objects, crowds, names)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises DataError."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None


def _read_results(path: Path, threshold: float, truth: Truth) -> dict[Any, Rows]:
    rows = read_json(path)
    by_image: dict[Any, Rows] = defaultdict(list)
    known = not rows
    try:
        for row in rows:
            known = known or row["image_id"] in truth.images
            if row["score"] >= threshold:
                by_image[row["image_id"]].append({"segmentation": None, "category_id": 0} | row)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is no list of COCO results: {type(error).__name__} {error}") from None
    if not known:
        raise DataError(f"{path} is about other images than the truth file")
    return by_image


def _choose(
    found: Mapping[str, Mapping[Any, Rows]], truth: Truth, choice: Choice, notes: list[str]
) -> list[tuple[Any, str]]:
    """(image id, reason) of the images to show."""
    chance = random.Random(choice.seed)
    candidates = sorted((key for key in truth.images if truth.objects.get(key)), key=str)
    candidates = sorted(chance.sample(candidates, min(MOST_CANDIDATES, len(candidates))), key=str)
    measured: dict[Any, list[float]] = {}
    for key in candidates:
        try:
            measured[key] = [_quality(by_image.get(key, []), key, truth) for by_image in found.values()]
        except DataError as error:
            notes.append(f"image {key} left out: {error}")
    worth = {key: max(scores) - min(scores) if len(found) > 1 else 1 - scores[0] for key, scores in measured.items()}
    ranked = sorted(worth, key=lambda key: (-worth[key], str(key)))
    by_worth = ranked[: choice.count - choice.count // 4]
    rest = [key for key in ranked if key not in set(by_worth)]
    drawn = chance.sample(rest, min(choice.count - len(by_worth), len(rest)))
    why = "the runs differ most here" if len(found) > 1 else "among the weakest"
    return [(key, why) for key in by_worth] + [(key, "by chance") for key in drawn]


def _quality(predicted: Rows, image_id: Any, truth: Truth) -> float:
    image = truth.images[image_id]
    objects, crowds = truth.objects.get(image_id, []), truth.crowds.get(image_id, [])
    return panoptic_quality(predicted, objects, crowds, image["width"], image["height"])


def _overlaps(mine: Sequence[Any], others: Sequence[Any], crowd: bool = False) -> np.ndarray:
    """(M, N) mask IoU; towards crowds the share of the prediction that lies inside."""
    if not mine or not others:
        return np.zeros((len(mine), len(others)))
    return np.asarray(coco_mask.iou(mine, others, [int(crowd)] * len(others)))


def _row(image_id: Any, why: str, found: Mapping[str, Mapping[Any, Rows]], truth: Truth, folder: Path) -> PictureRow:
    record = truth.images[image_id]
    image = open_upright(image_path(folder, record["file_name"]), (record["width"], record["height"]))
    pictures = []
    for name, by_image in found.items():
        rows = by_image.get(image_id, [])
        pictures.append(
            draw_picture(f"{name} (PQ {100 * _quality(rows, image_id, truth):.0f})", image, rows, truth.names)
        )
    pictures.append(draw_picture(TRUTH, image, truth.objects.get(image_id, []), truth.names))
    return PictureRow(f"{record['file_name']} – {why}", pictures)


def draw_picture(caption: str, image: Image.Image, rows: Rows, names: Mapping[int, str]) -> Picture:
    """`draw_overlay` at a panel's size, as JPEG. rows: COCO rows in the frame of `image`; all of them are drawn."""
    shrink = min(PANEL_PX / max(image.size), 1.0)
    drawn = draw_overlay(image, rows, names, 0.0, scale=shrink * readable_scale(image.size, PANEL_PX))
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    counts = Counter(names.get(row["category_id"], str(row["category_id"])) for row in rows)
    what = ", ".join(f"{count} x {name}" for name, count in counts.most_common()) or "no objects"
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(caption, uri, f"{caption}: {what}", *drawn.size)
