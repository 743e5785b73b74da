"""Masks, boxes, points, names and scores drawn on images."""

from __future__ import annotations

import colorsys
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from pycocotools import mask as coco_mask
from scipy.ndimage import minimum_filter1d

from leanmask.data.image_files import open_image
from leanmask.errors import DataError
from leanmask.reports.marks import Mark, draw_marks, marks_of
from leanmask.rle import decode_counts, rle_crop

FILL = 0.42
GOLDEN = 0.61803398875
# Ends of the range that integer and float images are stretched from; single bright pixels must not darken the rest.
PERCENTILES = (0.5, 99.5)
READABLE_PX = 480
LONGEST_PX = 2000  # longest side of a picture that is drawn for people to look at: more takes long and shows no more
SMALL_PX = 100  # drawn pixels of a mask up to which everything that it touches is painted, so that it stays visible
LEAST_BOX = 3  # least side of a drawn box, in widths of its line
MOST_NAMED = 30  # objects of one class; of more of them, names would hide what they name and say nothing new

# What pycocotools raises when a segmentation is not what it should be.
BROKEN = (TypeError, ValueError, KeyError, IndexError, AttributeError)

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shape:
    """What is drawn of one object beside its mask. box: xyxy pixels of the drawn picture, or None. marks: its points,
    there too.
    """

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
    stay sharp on small images and time and memory do not grow with large ones (`readable_scale`). Masks are read one
    at a time; small ones stay visible. Raises DataError for a segmentation, box or points that are broken, or a mask of
    another image size.
    """
    picture = to_rgb(image)
    if scale != 1.0:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS if scale < 2 else Image.Resampling.BICUBIC)
    shown = [row for row in rows if "score" not in row or row["score"] >= score_threshold]
    shown.sort(key=lambda row: row.get("score", 1.0))
    line_px = max(2, round(max(picture.size) / 250))
    pixels = np.array(picture)
    shapes = []
    for row in shown:
        shape, part = _shape(row, names, image.size, picture.size)
        if part is not None:
            _paint(pixels, part, shape.colour, line_px)
        shapes.append(shape)
    picture = Image.fromarray(pixels)
    _annotate(picture, shapes, line_px)
    return picture


def readable_scale(
    size: tuple[int, int], wanted_px: int = READABLE_PX, most: float = 6.0, longest_px: int | None = LONGEST_PX
) -> float:
    """The enlargement that brings the longer side of `size` to `wanted_px`, or the reduction that brings it to
    `longest_px` (None = no reduction).
    """
    longer = max(size)
    if longest_px is not None and longer > longest_px:
        return longest_px / longer
    return min(max(wanted_px / longer, 1.0), most)


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
        with open_image(Path(path)) as opened:
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


@dataclass(frozen=True)
class _Part:
    """The drawn pixels of a mask. crop: (h, w) bool. left, top: where it lies in the drawn picture."""

    crop: np.ndarray
    left: int
    top: int


def _shape(
    row: Mapping[str, Any], names: Mapping[int, str], size: tuple[int, int], drawn: tuple[int, int]
) -> tuple[Shape, _Part | None]:
    category = int(row.get("category_id", 0))
    text = names.get(category, f"category {category}")
    if "score" in row:
        text = f"{text} {row['score']:.2f}"
    rle = to_rle(row.get("segmentation"), *size)
    across, down = drawn[0] / size[0], drawn[1] / size[1]
    box: Box | None = None
    part: _Part | None = None
    if rle is not None:
        mask, (left, top) = _cut_out(rle)
        if mask.size:
            bottom, right = top + mask.shape[0], left + mask.shape[1]
            box = (left * across, top * down, right * across, bottom * down)
            part = _scaled(mask, (left, top), size, drawn)
    if row.get("bbox"):
        x, y, width, height = _numbers(row["bbox"])
        box = (x * across, y * down, (x + width) * across, (y + height) * down)
    marks = tuple(mark.scaled(across, down) for mark in marks_of(row))
    return Shape(box, marks, class_colour(category), text), part


def _cut_out(rle: dict[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """The (h, w) bool of a compressed RLE inside its bounds, and its left and top; (0, 0) of a mask without pixels. The
    whole image is not decoded. Raises DataError for a broken one.
    """
    height, width = rle["size"]
    runs = decode_counts(rle["counts"])
    if (runs < 0).any() or int(runs.sum()) != height * width:
        raise DataError(f"broken RLE: its runs do not describe {width} x {height} pixels")
    left, top, across, down = (int(side) for side in coco_mask.toBbox(rle))
    return rle_crop(rle, (left, top, across, down)).astype(bool), (left, top)


def _scaled(mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int], drawn: tuple[int, int]) -> _Part:
    """A mask (h, w) whose left and top are `corner` in an image of `size`, as it is in one of the size `drawn`."""
    (left, top), (width, height) = corner, size
    bottom, right = top + mask.shape[0], left + mask.shape[1]
    if drawn == size:
        return _Part(mask, left, top)
    across, down = drawn[0] / width, drawn[1] / height
    x0, y0 = math.floor(left * across), math.floor(top * down)
    x1, y1 = min(math.ceil(right * across), drawn[0]), min(math.ceil(bottom * down), drawn[1])
    # The drawn pixels begin outside the mask, by less than one of them; what is there is no object.
    frame = x0 / across, y0 / down, min(x1 / across, width), min(y1 / down, height)
    near_x, near_y = math.floor(frame[0]), math.floor(frame[1])
    around = ((top - near_y, math.ceil(frame[3]) - bottom), (left - near_x, math.ceil(frame[2]) - right))
    cut = np.pad(mask, np.maximum(around, 0))
    grey = Image.fromarray(cut.astype(np.uint8) * 255).resize(
        (x1 - x0, y1 - y0),
        Image.Resampling.BILINEAR if across > 1 else Image.Resampling.BOX,
        box=(frame[0] - near_x, frame[1] - near_y, frame[2] - near_x, frame[3] - near_y),
    )
    crop = np.asarray(grey) >= 128
    if across < 1 and crop.sum() <= SMALL_PX:
        rows, columns = np.nonzero(mask)
        crop = crop.copy()
        crop[((rows + top) * down).astype(int) - y0, ((columns + left) * across).astype(int) - x0] = True
    return _Part(crop, x0, y0)


def _numbers(bbox: Any) -> Box:
    try:
        x, y, width, height = (float(value) for value in bbox)
    except BROKEN as error:
        raise DataError(f"broken bbox ({type(error).__name__}: {error})") from None
    return x, y, width, height


def _paint(pixels: np.ndarray, part: _Part, colour: tuple[int, int, int], line_px: int) -> None:
    """Fill and outline one mask in place, in the crop around it alone. pixels: (H, W, 3) uint8."""
    crop = part.crop
    height, width = crop.shape
    # A square's erosion is that of its rows, then of its columns. What lies outside the crop is background.
    inner = crop.astype(np.uint8)
    for axis in (0, 1):
        inner = minimum_filter1d(inner, 2 * line_px + 1, axis=axis, mode="constant", cval=0)
    area = pixels[part.top : part.top + height, part.left : part.left + width]
    mixed = (1 - FILL) * area[crop] + FILL * np.array(colour, dtype=np.float32)
    area[crop] = mixed.round().astype(np.uint8)
    area[crop & (inner == 0)] = colour


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
            pen.rectangle(_outline(shape.box, line_px), outline=shape.colour, width=max(1, line_px // 2))
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


def _outline(box: Box, line_px: int) -> Box:
    """Around an object, large enough to be seen. PIL wants corners in order; a broken box must not stop a picture."""
    middle_x, middle_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    least = LEAST_BOX * max(1, line_px // 2)
    half_x, half_y = max(abs(box[2] - box[0]), least) / 2, max(abs(box[3] - box[1]), least) / 2
    return middle_x - half_x, middle_y - half_y, middle_x + half_x, middle_y + half_y


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
