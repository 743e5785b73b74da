"""Masks, boxes, points, names and scores drawn on images."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from pycocotools import mask as coco_mask

from leanmask.errors import DataError
from leanmask.reports.marks import Mark, draw_marks, marks_of

FILL = 0.42
GOLDEN = 0.61803398875
# Ends of the range that integer and float images are stretched from; single bright pixels must not darken the rest.
PERCENTILES = (0.5, 99.5)
READABLE_PX = 480
MOST_NAMED = 30  # objects of one class; of more of them, names would hide what they name and say nothing new

# What pycocotools raises when a segmentation is not what it should be.
BROKEN = (TypeError, ValueError, KeyError, IndexError, AttributeError)

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shape:
    """One object to draw. mask: (H, W) bool in the drawn picture, or None. box: xyxy pixels of the same, or None.
    marks: its points, there too.
    """

    mask: np.ndarray | None
    box: Box | None
    marks: tuple[Mark, ...]
    colour: tuple[int, int, int]
    text: str

    def named_at(self, radius_px: int) -> Box | None:
        """What the name belongs to: the box, else the first point."""
        if self.box is not None or not self.marks:
            return self.box
        x, y, reach = self.marks[0].x, self.marks[0].y, 2 * radius_px
        return x - reach, y - reach, x + reach, y + reach


def draw_overlay(
    image: Image.Image,
    rows: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
    score_threshold: float = 0.5,
    *,
    scale: float = 1.0,
) -> Image.Image:
    """A copy of `image` with the objects of COCO rows drawn on it: filled mask, outline, box, points, name and score.

    rows: COCO result rows (with `score`; those below the threshold are left out) or annotations (without). Their
    segmentation is RLE or polygons in the frame of `image`; points are drawn as `marks_of` reads them. names: category
    id -> text. scale: size of the result over that of `image`; drawing happens after scaling, so that lines and text
    stay sharp on small images (`readable_scale`). Raises DataError for a segmentation, box or points that are broken,
    or a mask of another image size.
    """
    picture = to_rgb(image)
    if scale != 1.0:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS if scale < 2 else Image.Resampling.BICUBIC)
    shown = [row for row in rows if "score" not in row or row["score"] >= score_threshold]
    shown.sort(key=lambda row: row.get("score", 1.0))
    shapes = [_shape(row, names, image.size, picture.size) for row in shown]
    line_px = max(2, round(max(picture.size) / 250))
    pixels = np.asarray(picture, dtype=np.float32).copy()
    for shape in shapes:
        _paint(pixels, shape, line_px)
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    _annotate(picture, shapes, line_px)
    return picture


def readable_scale(size: tuple[int, int], wanted_px: int = READABLE_PX, most: float = 6.0) -> float:
    """The enlargement (never a reduction) that brings the longer side of `size` to `wanted_px`."""
    return min(max(wanted_px / max(size), 1.0), most)


def class_colour(category_id: int) -> tuple[int, int, int]:
    """A colour that depends on the category id alone; neighbouring ids get hues far from each other."""
    hue = (0.07 + category_id * GOLDEN) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 if category_id % 2 else 0.65, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB for drawing; 16-bit, integer and float images are stretched to 8 bit instead of being clipped to white."""
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        values = np.asarray(image, dtype=np.float64)
        low, high = np.percentile(values, PERCENTILES)
        stretched = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
        return Image.fromarray((255 * stretched).round().astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def open_upright(path: Any, size: tuple[int, int] | None) -> Image.Image:
    """Open an image; when it is not of `size` (width, height) but its EXIF-rotated form is, return that.

    Raises DataError when the file cannot be read or fits neither way.
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            image: Image.Image = opened.copy()
            upright = ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"cannot read image {path}: {error}") from None
    if size is None or image.size == size:
        return image
    if upright.size != size:
        raise DataError(f"image {path} is {image.width} x {image.height}, the annotations say {size[0]} x {size[1]}")
    return upright


def to_rle(segmentation: Any, width: int, height: int) -> dict[str, Any] | None:
    """Compressed RLE of polygons or RLE; None for an empty segmentation. Raises DataError for one that is broken."""
    if not segmentation:
        return None
    try:
        if isinstance(segmentation, list):
            if any(len(part) < 6 or len(part) % 2 for part in segmentation):
                raise DataError("a polygon needs an even count of at least 6 numbers")
            return dict(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))
        size, counts = [int(side) for side in segmentation["size"]], segmentation["counts"]
        if size != [height, width]:
            found = " x ".join(str(side) for side in reversed(size))
            raise DataError(f"a mask is {found}, its image is {width} x {height}")
        if isinstance(counts, list):
            return dict(coco_mask.frPyObjects(segmentation, height, width))
        return {"size": size, "counts": counts.encode() if isinstance(counts, str) else counts}
    except BROKEN as error:
        raise DataError(f"broken segmentation ({type(error).__name__}: {error})") from None


def decode(rle: dict[str, Any]) -> np.ndarray:
    """(H, W) bool of a compressed RLE. Raises DataError for a broken one."""
    try:
        return coco_mask.decode(rle).astype(bool)
    except BROKEN as error:
        raise DataError(f"broken RLE ({type(error).__name__}: {error})") from None


def _shape(row: Mapping[str, Any], names: Mapping[int, str], size: tuple[int, int], drawn: tuple[int, int]) -> Shape:
    category = int(row.get("category_id", 0))
    text = names.get(category, f"category {category}")
    if "score" in row:
        text = f"{text} {row['score']:.2f}"
    rle = to_rle(row.get("segmentation"), *size)
    mask = None
    box: Box | None = None
    if rle is not None:
        mask = decode(rle)
        if drawn != size:
            grown = Image.fromarray(mask.astype(np.uint8) * 255).resize(drawn, Image.Resampling.BILINEAR)
            mask = np.asarray(grown) >= 128
    across, down = drawn[0] / size[0], drawn[1] / size[1]
    if row.get("bbox"):
        x, y, width, height = _numbers(row["bbox"])
        box = (x * across, y * down, (x + width) * across, (y + height) * down)
    elif mask is not None and mask.any():
        box = _box_of(mask)
    marks = tuple(mark.scaled(across, down) for mark in marks_of(row))
    return Shape(mask, box, marks, class_colour(category), text)


def _numbers(bbox: Any) -> Box:
    try:
        x, y, width, height = (float(value) for value in bbox)
    except BROKEN as error:
        raise DataError(f"broken bbox ({type(error).__name__}: {error})") from None
    return x, y, width, height


def _box_of(mask: np.ndarray) -> Box:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _paint(pixels: np.ndarray, shape: Shape, line_px: int) -> None:
    """Fill and outline one mask in place, in the crop around it alone. pixels: (H, W, 3) float32 in [0, 255]."""
    if shape.mask is None or not shape.mask.any():
        return
    left, top, right, bottom = (int(value) for value in _box_of(shape.mask))
    crop = shape.mask[top:bottom, left:right]
    # A rim of background, so that a mask that ends at the crop's edge is outlined there too.
    padded = Image.fromarray(np.pad(crop, line_px).astype(np.uint8) * 255)
    inner = np.asarray(padded.filter(ImageFilter.MinFilter(2 * line_px + 1)))[line_px:-line_px, line_px:-line_px] > 0
    colour = np.array(shape.colour, dtype=np.float32)
    area = pixels[top:bottom, left:right]
    area[crop] += FILL * (colour - area[crop])
    area[crop & ~inner] = colour


def _annotate(picture: Image.Image, shapes: Sequence[Shape], line_px: int) -> None:
    """Boxes, then names, then points. A name stands where it covers no other name and no other object's middle; where
    there is no such place it is left out, and so it is among hundreds of cells: the colour says the class.
    """
    pen = ImageDraw.Draw(picture)
    radius_px = max(4, round(max(picture.size) / 100))
    font = ImageFont.load_default(size=max(11, round(max(picture.size) / 36)))
    taken: list[Box] = []
    alike = Counter(shape.colour for shape in shapes)
    for shape in shapes:
        if shape.box is not None:
            pen.rectangle(_ordered(shape.box), outline=shape.colour, width=max(1, line_px // 2))
    for shape in reversed(shapes):
        anchor = shape.named_at(radius_px)
        if anchor is None or alike[shape.colour] > MOST_NAMED:
            continue
        left, top, right, bottom = pen.textbbox((0, 0), shape.text, font=font)
        others = [other for each in shapes if each is not shape and (other := each.named_at(radius_px)) is not None]
        place = _place(anchor, (right - left + 6, bottom - top + 6), picture.size, [*taken, *map(_middle, others)])
        if place is None:
            continue
        taken.append(place)
        pen.rectangle(place, fill=shape.colour)
        dark = sum(weight * part for weight, part in zip((0.299, 0.587, 0.114), shape.colour, strict=True)) > 130
        pen.text((place[0] + 3 - left, place[1] + 3 - top), shape.text, fill="black" if dark else "white", font=font)
    for shape in shapes:
        draw_marks(picture, shape.marks, radius_px)


def _ordered(box: Box) -> Box:
    """PIL wants corners in order; a broken box must not stop a picture."""
    return min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])


def _middle(box: Box) -> Box:
    """The pixel in the middle of a box."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return x - 0.5, y - 0.5, x + 0.5, y + 0.5


def _place(box: Box, size: tuple[float, float], picture: tuple[int, int], taken: Sequence[Box]) -> Box | None:
    width, height = size
    tried = [(box[0], box[1] - height), (box[0], box[3]), (box[0], box[1]), (box[2] - width, box[3] - height)]
    places = []
    for x, y in tried:
        left = min(max(x, 0.0), max(picture[0] - width, 0.0))
        top = min(max(y, 0.0), max(picture[1] - height, 0.0))
        places.append((left, top, left + width, top + height))
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), None)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
