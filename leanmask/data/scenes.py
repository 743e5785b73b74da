"""Draws the images of the embedded benchmark: real handwriting (scikit-learn) on real photographs (scikit-image).

The 1,797 handwriting samples and the area of every photograph are divided once and for all among the splits, whatever
the seed, so that no split of any digits data set shares a stroke or a background pixel with another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage
from PIL import Image
from sklearn.datasets import load_digits

from leanmask.data.image_files import open_image
from leanmask.errors import DataError
from leanmask.geometry import FloatArray
from leanmask.rle import ByteArray, Region

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

SPLITS = ("train", "tune", "val", "unlabelled")  # their order gives the split number of the random streams
PHOTOGRAPHS = ("brick.png", "grass.png", "gravel.png", "coffee.png", "chelsea.png", "astronaut.png")
# The k-th sample of each class (in scikit-learn's order) goes to the k-th letter, over and over. Taking turns gives
# every split something of every writer. n = train, u = tune, v = val, l = unlabelled, - = reserved, in no split.
TURNS = "nvnlnunvn-nvnlnunvl-"
LETTERS = {"train": "n", "tune": "u", "val": "v", "unlabelled": "l", "reserved": "-"}
# Part of each photograph, as fractions x0, y0, x1, y1 of its width and height. The parts do not overlap.
PARTS = {
    "train": (0.0, 0.0, 0.45, 1.0),
    "unlabelled": (0.45, 0.0, 1.0, 0.5),
    "val": (0.45, 0.5, 0.725, 1.0),
    "tune": (0.725, 0.5, 1.0, 1.0),
}
CROP_RANGE_PX = (72, 120)  # side of the square cut from a photograph; the largest fits every part
SIDE_RANGE = (0.18, 0.45)  # side of a digit's 8 x 8 cells, as a share of the image side
TURN_RANGE_DEGREES = 20.0
COUNT_RANGE = (2, 6)
MIN_VISIBLE_PX = 20
STROKE_LEVEL = 7.0  # of 16: ink darker than this, after smooth enlargement, belongs to the shape
_PAD = 2  # blank cells around the 8 x 8 grid, so that interpolation and rotation never cut a stroke


@dataclass(frozen=True)
class Glyph:
    """One digit to draw: handwriting sample index, side in pixels, turn in degrees, where its shape's bounds lie in the
    free space of the image (fractions x, y), colour (RGB 0-255), and standard deviation of the grain (same unit).
    """

    sample: int
    side_px: float
    turn_degrees: float
    place: tuple[float, float]
    colour: FloatArray
    grain: float


@dataclass(frozen=True)
class DrawnObject:
    """A drawn digit: handwriting sample, its class 0-9, region (x0, y0, width, height), and the (height, width) bool
    mask of its visible part inside that region.
    """

    sample: int
    digit: int
    region: Region
    visible: BoolArray


@dataclass(frozen=True)
class Scene:
    """One image (size, size, 3) uint8, its visible objects, the photograph behind them and the square (x0, y0, side,
    side) cut from it, pixels of the photograph.
    """

    image: ByteArray
    objects: tuple[DrawnObject, ...]
    photograph: str
    crop: Region


@cache
def handwriting() -> tuple[FloatArray, IntArray]:
    """(1797, 12, 12) grey values 0-16 with two blank cells around the 8 x 8 ones, and the (1797,) digits."""
    digits = load_digits()
    images = np.pad(np.asarray(digits.images, dtype=np.float64), ((0, 0), (_PAD, _PAD), (_PAD, _PAD)))
    return images, np.asarray(digits.target, dtype=np.int64)


@cache
def sample_pools(split: str) -> tuple[IntArray, ...]:
    """Indices of the handwriting samples of each digit 0-9 that `split` (or "reserved") may use."""
    turns = np.array(list(TURNS)) == LETTERS[split]
    pools = []
    for digit in range(10):
        members = np.flatnonzero(handwriting()[1] == digit)
        pools.append(members[turns[np.arange(len(members)) % len(turns)]])
    return tuple(pools)


@cache
def photograph(name: str) -> ByteArray:
    """(H, W, 3) uint8 of a photograph that scikit-image's package carries. Raises DataError when it is missing."""
    path = Path(skimage.__file__).parent / "data" / name
    try:
        with open_image(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError:
        found = f"scikit-image {version('scikit-image')} does not carry {name} (looked for {path})"
        raise DataError(f"{found}; install scikit-image >= 0.24 from a wheel") from None


def part_of(name: str, split: str) -> Region:
    """The part (x0, y0, width, height) of a photograph, whole pixels, that a split's backgrounds are cut from."""
    height, width = photograph(name).shape[:2]
    left, top, right, bottom = PARTS[split]
    x0, y0, x1, y1 = round(left * width), round(top * height), round(right * width), round(bottom * height)
    return x0, y0, x1 - x0, y1 - y0


def background(rng: np.random.Generator, split: str, size_px: int) -> tuple[FloatArray, str, Region]:
    """A (size, size, 3) float background about 0-255, random in contrast and brightness, its photograph and square."""
    name = PHOTOGRAPHS[rng.integers(len(PHOTOGRAPHS))]
    x0, y0, width, height = part_of(name, split)
    side = int(rng.integers(CROP_RANGE_PX[0], CROP_RANGE_PX[1] + 1))
    left, top = int(x0 + rng.integers(width - side + 1)), int(y0 + rng.integers(height - side + 1))
    # Cut before resizing: interpolation must not look at another split's pixels.
    cut = Image.fromarray(photograph(name)[top : top + side, left : left + side])
    pixels = np.asarray(cut.resize((size_px, size_px), Image.Resampling.BICUBIC), dtype=np.float64)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    contrast, brightness = rng.uniform(0.5, 1.3), rng.uniform(-40, 40)
    return (pixels - 128) * contrast + 128 + brightness, name, (left, top, side, side)


def glyph_coverage(sample: int, side_px: float, turn_degrees: float) -> FloatArray:
    """(h, w) share 0-1 of each pixel that an enlarged, turned digit covers, cut to the bounds of its shape (>= 0.5)."""
    cells = 8 + 2 * _PAD
    canvas = int(np.ceil(side_px * cells / 8 * 1.3))
    angle = np.deg2rad(turn_degrees)
    cosine, sine = np.cos(angle) * 8 / side_px, np.sin(angle) * 8 / side_px
    centre = canvas / 2
    shift_x = cells / 2 - cosine * centre - sine * centre
    shift_y = cells / 2 + sine * centre - cosine * centre
    grey = Image.fromarray(handwriting()[0][sample].astype(np.float32))
    matrix = (cosine, sine, shift_x, -sine, cosine, shift_y)
    smooth = grey.transform((canvas, canvas), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    # Ink rises by about 12 levels per cell across an edge, so this makes the edge about one pixel wide.
    coverage = np.clip((np.asarray(smooth, dtype=np.float64) - STROKE_LEVEL) * side_px / (8 * 12) + 0.5, 0, 1)
    rows, columns = np.flatnonzero((coverage >= 0.5).any(axis=1)), np.flatnonzero((coverage >= 0.5).any(axis=0))
    return coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def draw_glyph(rng: np.random.Generator, sample: int, size_px: int) -> Glyph:
    """Random size, turn, place, colour and grain for one handwriting sample."""
    return Glyph(
        sample=sample,
        side_px=rng.uniform(*SIDE_RANGE) * size_px,
        turn_degrees=rng.uniform(-TURN_RANGE_DEGREES, TURN_RANGE_DEGREES),
        place=(rng.random(), rng.random()),
        colour=rng.uniform(0, 255, size=3),
        grain=rng.uniform(4, 20),
    )


def compose(rng: np.random.Generator, split: str, samples: list[int], size_px: int) -> Scene:
    """Draw the samples one over the other on a background of `split`; later ones occlude earlier ones.

    Objects with fewer than 20 visible pixels stay in the picture but not among the objects.
    """
    canvas, name, crop = background(rng, split, size_px)
    owner = np.full((size_px, size_px), -1)
    regions: list[Region] = []
    for order, sample in enumerate(samples):
        glyph = draw_glyph(rng, sample, size_px)
        coverage = glyph_coverage(sample, glyph.side_px, glyph.turn_degrees)
        height, width = coverage.shape
        x0, y0 = (int(f * (size_px - n + 1)) for f, n in zip(glyph.place, (width, height), strict=True))
        window = np.s_[y0 : y0 + height, x0 : x0 + width]
        ink = glyph.colour + rng.normal(0, glyph.grain, size=(height, width, 1))
        canvas[window] += coverage[..., None] * (ink - canvas[window])
        owner[window][coverage >= 0.5] = order
        regions.append((x0, y0, width, height))
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Scene(image, _visible_objects(owner, samples, regions), name, crop)


def _visible_objects(owner: IntArray, samples: list[int], regions: list[Region]) -> tuple[DrawnObject, ...]:
    objects = []
    for order, (sample, region) in enumerate(zip(samples, regions, strict=True)):
        x0, y0, width, height = region
        visible = owner[y0 : y0 + height, x0 : x0 + width] == order
        if visible.sum() >= MIN_VISIBLE_PX:
            objects.append(DrawnObject(sample, int(handwriting()[1][sample]), region, visible))
    return tuple(objects)
