"""Random geometry that both views share, and the photometric noise of the strong view (reference: PL-DC, Unbiased
Teacher).

All randomness comes from the generator that is passed in. Letters: H W rows and columns of the canvas.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageFilter

from leanmask.config import AugmentConfig
from leanmask.errors import ConfigError
from leanmask.geometry import FloatArray, Frame
from leanmask.rle import ByteArray

# Probability, range of the area as a share of the image, range of height / width. From PL-DC's code; its paper prints
# other aspect ratios for the last two.
ERASINGS = (
    (0.7, (0.05, 0.2), (0.3, 3.3)),
    (0.5, (0.02, 0.2), (0.1, 6.0)),
    (0.3, (0.02, 0.2), (0.05, 8.0)),
)
_ERASE_ATTEMPTS = 10
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, what Pillow calls grey
_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = np.linalg.inv(_YIQ)

Affine = tuple[FloatArray, FloatArray]  # (3, 3) matrix and (3,) shift of a colour


def check_augment(config: AugmentConfig) -> None:
    """Raises ConfigError for ranges that are empty or not positive."""
    low, high = config.scale_jitter
    if not 0 < low <= high:
        raise ConfigError(f"augment.scale_jitter is ({low}, {high}); it must be two positive numbers, smaller first")
    low, high = config.blur_radius_px
    if not 0 <= low <= high:
        raise ConfigError(f"augment.blur_radius_px is ({low}, {high}); it must be two numbers >= 0, smaller first")


def fitted_frame(image_size: tuple[int, int], side_px: int) -> Frame:
    """The whole image, as large as it fits a `side_px` square canvas, in its top left corner. image_size: (H, W)."""
    content = _content_size(image_size, side_px, 1.0)
    return _frame(image_size, side_px, content, (0, 0), flip=False)


def random_frame(image_size: tuple[int, int], side_px: int, config: AugmentConfig, rng: np.random.Generator) -> Frame:
    """Scale jitter, crop and mirror of one image on a `side_px` square canvas (large-scale jitter as in detectron2).

    The image is scaled to fit the canvas, times a number from `config.scale_jitter`. Along each axis by itself, what is
    larger than the canvas is cropped and what is smaller is placed, both at a uniform whole-pixel offset. The content
    has a whole number of canvas pixels, so the two scales of a frame may differ by a fraction of a pixel per side.
    """
    jitter = float(rng.uniform(*config.scale_jitter))
    content = _content_size(image_size, side_px, jitter)
    places = rng.random(2)
    offsets = [_offset(side_px - extent, place) for extent, place in zip(content, places, strict=True)]
    flip = bool(rng.random() < config.flip_probability)
    return _frame(image_size, side_px, content, (offsets[0], offsets[1]), flip)


def _content_size(image_size: tuple[int, int], side_px: int, jitter: float) -> tuple[int, int]:
    """(width, height) of the scaled image, whole canvas pixels."""
    height, width = image_size
    scale = min(side_px / height, side_px / width) * jitter
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _offset(room: int, place: float) -> int:
    """A uniform whole number between 0 and `room` (which is negative when there is something to crop)."""
    steps = min(int(place * (abs(room) + 1)), abs(room))
    return steps if room >= 0 else -steps


def _frame(
    image_size: tuple[int, int], side_px: int, content: tuple[int, int], offset: tuple[int, int], flip: bool
) -> Frame:
    height, width = image_size
    return Frame(
        image_size=(height, width),
        canvas_size=(side_px, side_px),
        scale=(content[0] / width, content[1] / height),
        shift=(float(offset[0]), float(offset[1])),
        flip_width=float(side_px) if flip else None,
    )


def strong_view(pixels: ByteArray, config: AugmentConfig, rng: np.random.Generator) -> ByteArray:
    """A photometrically changed copy of the (H, W, 3) uint8 RGB canvas; nothing moves.

    Colour jitter, grey and blur, then up to three erasings. Brightness, contrast, saturation, hue (in random order) and
    grey are affine in the colour, so they are one matrix and clip once, at the end. Hue turns the chroma plane of YIQ,
    which keeps the luma; turning HSV's hue instead would be eight times as slow.
    """
    image = Image.fromarray(pixels)
    jitter, grey, blur = rng.random(3)
    colour: Affine = (np.eye(3), np.zeros(3))
    if jitter < config.colour_probability:
        colour = _colour_jitter(_mean_colour(image), config, rng)
    if grey < config.grey_probability:
        colour = _then(colour, saturation(0.0))
    if jitter < config.colour_probability or grey < config.grey_probability:
        image = recolour(image, colour)
    if blur < config.blur_probability:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(*config.blur_radius_px))))
    changed = np.array(image)
    if config.erase:
        erase(changed, rng)
    return changed


def _colour_jitter(mean: FloatArray, config: AugmentConfig, rng: np.random.Generator) -> Affine:
    amounts = (config.brightness, config.contrast, config.saturation)
    factors = [float(rng.uniform(max(1 - amount, 0.0), 1 + amount)) for amount in amounts]
    turns = float(rng.uniform(-config.hue, config.hue))
    colour: Affine = (np.eye(3), np.zeros(3))
    for which in rng.permutation(4):
        if which == 0:
            step = brightness(factors[0])
        elif which == 1:
            step = contrast(factors[1], float(_LUMA @ (colour[0] @ mean + colour[1])))
        elif which == 2:
            step = saturation(factors[2])
        else:
            step = hue(turns)
        colour = _then(colour, step)
    return colour


def brightness(factor: float) -> Affine:
    """Colours times `factor`."""
    return np.eye(3) * factor, np.zeros(3)


def contrast(factor: float, mean_grey: float) -> Affine:
    """Colours drawn to (factor < 1) or away from the image's mean grey, 0-255."""
    return np.eye(3) * factor, np.full(3, (1 - factor) * mean_grey)


def saturation(factor: float) -> Affine:
    """Colours drawn to (factor < 1, 0 = grey) or away from their own grey."""
    return np.eye(3) * factor + (1 - factor) * np.tile(_LUMA, (3, 1)), np.zeros(3)


def hue(turns: float) -> Affine:
    """Colours turned around the grey axis by a share of the full circle; red goes to green for small positive turns."""
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    turn = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])
    return _FROM_YIQ @ turn @ _YIQ, np.zeros(3)


def _then(first: Affine, second: Affine) -> Affine:
    return second[0] @ first[0], second[0] @ first[1] + second[1]


def recolour(image: Image.Image, colour: Affine) -> Image.Image:
    """Apply a colour map to every pixel of an RGB image, rounded and clipped to 0-255."""
    return image.convert("RGB", tuple(np.column_stack(colour).ravel().tolist()))


def _mean_colour(image: Image.Image) -> FloatArray:
    return np.asarray(image.resize((1, 1), Image.Resampling.BOX), dtype=np.float64).reshape(3)


def erase(pixels: ByteArray, rng: np.random.Generator) -> None:
    """Overwrite up to three rectangles of (H, W, 3) pixels, in place, with N(0, 1) noise of the [0, 1] range, clipped.

    Sizes are drawn as torchvision's RandomErasing draws them; a rectangle that does not fit in ten attempts is left
    out. PL-DC's code lets noise outside [0, 1] wrap around instead.
    """
    height, width = pixels.shape[:2]
    for probability, areas, aspects in ERASINGS:
        if rng.random() >= probability:
            continue
        for _ in range(_ERASE_ATTEMPTS):
            area = height * width * rng.uniform(*areas)
            aspect = math.exp(rng.uniform(math.log(aspects[0]), math.log(aspects[1])))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < h < height and 0 < w < width:
                top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                noise = np.clip(rng.standard_normal((h, w, 3), dtype=np.float32), 0, 1)
                pixels[top : top + h, left : left + w] = np.rint(noise * 255).astype(np.uint8)
                break
