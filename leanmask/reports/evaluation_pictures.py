"""What a network predicts on a few validation images beside the truth, drawn at every evaluation of a training."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from leanmask.errors import LeanmaskError, RunError
from leanmask.reports.overlays import draw_overlay, open_upright, readable_scale
from leanmask.reports.pictures import JPEG_QUALITY, Picture, Rows, Truth

FOLDER = "pictures"  # in evaluation/student and evaluation/teacher of a run
SIDE_PX = 384  # longer side of each half
GAP_PX = 6
HEAD_PX = 20
SCORE = 0.5  # predictions below it are not drawn, but on an image that has no others
BEST = 3  # so many of them are drawn there: early in a training it shows what a network is about to find


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` positions, in order and as far from each other as from the ends, the same ones every
    time."""
    shown = min(wanted, count)
    return [(2 * number + 1) * count // (2 * shown) for number in range(shown)]


@dataclass(frozen=True)
class ShownImage:
    """A validation image that is drawn. key: its id. truth: its objects as COCO rows. number: its place among the shown
    ones, so that two files of one name differ.
    """

    key: Any
    path: Path
    size: tuple[int, int]
    truth: Rows
    number: int

    @property
    def name(self) -> str:
        """A name for a file, and for TensorBoard."""
        return f"{self.number}-{re.sub(r'[^A-Za-z0-9._-]', '_', self.path.stem)}"


class EvaluationPictures:
    """Draws the same validation images at every evaluation."""

    def __init__(self, truth: Truth, images: Sequence[tuple[Any, Path]]) -> None:
        """truth: of the split. images: (id, file) of those to draw; only their part of the truth is kept."""
        self.names = truth.names
        self.images: list[ShownImage] = []
        for number, (key, path) in enumerate(images):
            record = truth.images[key]
            size = int(record["width"]), int(record["height"])
            self.images.append(ShownImage(key, path, size, truth.objects.get(key, []), number))

    def draw(self, rows: Iterable[Mapping[str, Any]], title: str, folder: Path) -> tuple[dict[str, Any], list[str]]:
        """Draw the images with predictions, and write each as a JPEG into `folder`.

        rows: COCO result rows of the whole split. title: of the predictions' half. Returns (H, W, 3) uint8 pixels by
        name, and a sentence for every image that could not be drawn. Raises RunError when files cannot be written.
        """
        predicted: dict[Any, list[Mapping[str, Any]]] = {image.key: [] for image in self.images}
        for row in rows:
            if row["image_id"] in predicted:
                predicted[row["image_id"]].append(row)
        drawn: dict[str, Any] = {}
        problems = []
        for shown in self.images:
            try:
                picture = self._beside(shown, predicted[shown.key], title)
            except LeanmaskError as error:
                problems.append(f"no picture of {shown.path}: {error}")
                continue
            try:
                folder.mkdir(parents=True, exist_ok=True)
                picture.save(folder / f"{shown.name}.jpg", "JPEG", quality=JPEG_QUALITY)
            except OSError as error:
                raise RunError(f"cannot write a picture in {folder}: {error.strerror or error}") from None
            drawn[shown.name] = np.asarray(picture)
        return drawn, problems

    def _beside(self, shown: ShownImage, rows: Sequence[Mapping[str, Any]], title: str) -> Image.Image:
        """Predictions on the left, truth on the right, a line of text above each."""
        found = [row for row in rows if row["score"] >= SCORE]
        title += f", scores from {SCORE} on"
        if rows and not found:
            found = sorted(rows, key=lambda row: -row["score"])[:BEST]
            title += f": none; the best {len(found)}"
        image = open_upright(shown.path, shown.size)
        scale = min(SIDE_PX / max(image.size), 1.0) * readable_scale(image.size, SIDE_PX)
        halves = [draw_overlay(image, each, self.names, 0.0, scale=scale) for each in (found, shown.truth)]
        width, height = halves[0].size
        picture = Image.new("RGB", (2 * width + GAP_PX, height + HEAD_PX), "white")
        pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
        for left, half, text in zip((0, width + GAP_PX), halves, (title, "truth"), strict=True):
            picture.paste(half, (left, HEAD_PX))
            pen.text((left + 3, 2), _cut(text, width - 6, font), fill="black", font=font)
        return picture


def _cut(text: str, width_px: int, font: Any) -> str:
    """As much of a text as fits."""
    while text and font.getlength(text) > width_px:
        text = text[:-1]
    return text


def read_pictures(folder: Path) -> list[Picture]:
    """The pictures of a network's last evaluation, for a page; none where none were drawn. A file that cannot
    be read is left out.
    """
    found = []
    for path in sorted(folder.glob("*.jpg"), key=lambda path: (int(path.stem.split("-")[0]), path.name)):
        try:
            content = path.read_bytes()
            with Image.open(path) as opened:
                size = opened.size
        except OSError:
            continue
        uri = "data:image/jpeg;base64," + base64.b64encode(content).decode()
        name = path.stem.split("-", 1)[1]
        found.append(Picture(name, uri, f"{name}: predicted on the left, truth on the right", *size))
    return found
