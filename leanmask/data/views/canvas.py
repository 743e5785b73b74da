"""Reading an image file straight onto the network's canvas: decoded, cropped and resampled in one go.

Letters: H W rows and columns of the canvas. Pixels are uint8 RGB. The rest of the canvas is padding of one colour.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from leanmask.data.image_files import open_image
from leanmask.errors import DataError
from leanmask.geometry import Frame, transform_boxes
from leanmask.rle import ByteArray

# ImageNet's mean colour: after the usual normalisation of pretrained backbones the padding is about zero.
PADDING_RGB = (124, 116, 104)
_DRAFT_REDUCTION = 2.0  # a JPEG is decoded at a power of two at least this much finer than what is asked for
_ORIENTATION = 0x0112
_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that exchange rows and columns
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BROKEN = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)

Exif = Literal["error", "apply", "ignore"]


class UnreadableImage(DataError):
    """A file that is missing, truncated or not an image. `path` names it."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"image {path} cannot be read: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str]]:
        return UnreadableImage, (self.path, self.reason)


def read_canvas(path: Path, frame: Frame, exif: Exif) -> ByteArray:
    """The image as the network sees it: (H, W, 3) uint8 RGB of `frame.canvas_size`, padded with `PADDING_RGB`.

    Only the part that lies on the canvas is resampled (bilinear, antialiased). 16-bit grey images are read as value /
    256. Raises UnreadableImage for missing and damaged files; DataError where the size contradicts
    `frame.image_size`, and for an EXIF rotation with `exif="error"`.
    """
    pixels, reduction = _read(path, frame, exif)
    return draw_canvas(pixels, frame, reduction)


def read_picture(path: Path, size: tuple[int, int], exif: Exif) -> Image.Image:
    """The whole image in its own resolution, upright, in mode RGB or L; `size` (height, width) is what it must have.

    Raises as `read_canvas` does.
    """
    return _read(path, Frame(size, size, (1.0, 1.0), (0.0, 0.0)), exif)[0]


def _read(path: Path, frame: Frame, exif: Exif) -> tuple[Image.Image, float]:
    """The upright picture, and how many times smaller than the file it was decoded."""
    try:
        with open_image(path) as image:
            orientation = 1 if exif == "ignore" else image.getexif().get(_ORIENTATION, 1)
            _check(path, image, frame, orientation if orientation in _TRANSPOSE else 1, exif)
            reduction = 1 if orientation in _TRANSPOSE else _draft(image, frame)
            pixels = _as_rgb_or_grey(image, path)
    except _BROKEN as error:
        raise UnreadableImage(str(path), _reason(error)) from None
    return pixels.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else pixels, reduction


def image_size(path: Path, exif: Exif) -> tuple[int, int]:
    """(height, width) of an image file as `read_canvas` will see it, without decoding its pixels.

    Raises UnreadableImage for missing and damaged files.
    """
    try:
        with open_image(path) as image:
            orientation = image.getexif().get(_ORIENTATION, 1) if exif == "apply" else 1
            width, height = image.size
    except _BROKEN as error:
        raise UnreadableImage(str(path), _reason(error)) from None
    return (width, height) if orientation in _TRANSPOSED else (height, width)


def _check(path: Path, image: Image.Image, frame: Frame, orientation: int, exif: Exif) -> None:
    if orientation != 1 and exif == "error":
        raise DataError(
            f"image {path} carries an EXIF rotation (orientation {orientation}); "
            "set data.exif to 'apply' or 'ignore', whichever its annotations were drawn on"
        )
    size = image.size if orientation in _TRANSPOSED else image.size[::-1]
    if size != frame.image_size:
        (height, width), (found_height, found_width) = frame.image_size, size
        raise DataError(
            f"image {path} is {found_width} x {found_height} pixels, but its annotations say {width} x {height}"
        )


def _draft(image: Image.Image, frame: Frame) -> float:
    """Ask the JPEG decoder for a smaller picture where that loses nothing; returns how many times smaller it is."""
    (width, height), (scale_x, scale_y) = image.size, frame.scale
    wanted = max(int(width * scale_x * _DRAFT_REDUCTION), 1), max(int(height * scale_y * _DRAFT_REDUCTION), 1)
    drafted = image.draft(None, wanted)
    return 1.0 if drafted is None else width / drafted[1][2]


def _as_rgb_or_grey(image: Image.Image, path: Path) -> Image.Image:
    if image.mode in ("RGB", "L"):
        image.load()
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"image {path} has 32-bit pixels; convert it to 8 or 16 bits per channel")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "it is no image, or of an unknown format"
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def draw_canvas(image: Image.Image, frame: Frame, reduction: float = 1.0) -> ByteArray:
    """A picture as the network sees it, see `read_canvas`: the part of it that is on the canvas, resampled. reduction:
    how many times smaller than `frame.image_size` it was decoded.
    """
    height, width = frame.canvas_size
    canvas = np.empty((height, width, 3), dtype=np.uint8)
    canvas[:] = PADDING_RGB
    upright = dataclasses.replace(frame, flip_width=None)
    x0, y0, x1, y1 = (round(edge) for edge in upright.content_box)
    if x1 <= x0 or y1 <= y0:
        return canvas
    source = transform_boxes(np.array([[x0, y0, x1, y1]], dtype=np.float64), upright.inverse)[0] / reduction
    limit = np.array([*image.size, *image.size], dtype=np.float64)
    left, top, right, bottom = np.clip(source, 0, limit).tolist()
    resized = image.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    content = np.asarray(resized if resized.mode == "RGB" else resized.convert("RGB"))
    if frame.flip_width is not None:
        content, x0 = content[:, ::-1], round(frame.flip_width) - x1
    canvas[y0:y1, x0 : x0 + content.shape[1]] = content
    return canvas
