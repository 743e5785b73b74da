"""Which images show nearly the same: copies, other sizes and exposures, mirrored or turned ones, bursts, and tiles or
crops that overlap. Pictures are compared, and the names that tools give to copies.

Of the whole picture: the low frequencies of its grey values (a discrete cosine transform), each weighted by its
frequency, because natural pictures are alike in the lowest ones. Mirroring and turning by 90 degrees only change signs
and order. Of its parts: small patches around its blobs, of which a handful must agree with one displacement.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from scipy.fft import dctn

from leanmask.data.image_files import open_image
from leanmask.geometry import FloatArray

SIDE, FREQUENCIES = 32, 12
# Unrelated photographs, facades and microscope images reach 0.62; a burst, or a picture cropped by 3 %, has about 0.9.
ALIKE = 0.75
PICTURE_SIDE = 256  # longest side that the median picture is reduced to
MOST_PATCHES, PATCH, PATCH_FREQUENCIES = 80, 12, 6  # PATCH: half the side of a patch, pixels of the reduced picture
BLUR, LEAST_CONTRAST = 1.6, 3.0
PATCH_ALIKE, LEAST_SHARED, DISPLACEMENT_BIN = 0.95, 6, 4  # so many patches must agree, within so many pixels
MOST_PATCHED_IMAGES = 3000  # every picture's patches are compared with every other's
CHUNK = 512

# What tools append to the names of copies: Roboflow's hash, numbered and named augmentations, and the places of tiles.
COPY_ENDING = re.compile(
    r"(\.rf\.[0-9a-f]{8,}|[-_. ]?\(\d+\)|[-_. ](aug|augmented|flip|flipped|fliplr|flipud|hflip|vflip|mirror|rot|"
    r"rotated|copy|tile|patch|crop)[-_. ]?\d*|[-_. ][xyrc]\d+[-_. ]?[xyrc]\d+|[-_. ]row\d+[-_. ]?col(umn)?\d+)+$",
    re.IGNORECASE,
)

OnProgress = Callable[[int, int], None]
Spectra = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Parts:
    """places_xy: (P, 2) pixels of the reduced picture. spectra: (P, D) one row per patch."""

    places_xy: npt.NDArray[np.int64]
    spectra: Spectra


@dataclass(frozen=True)
class Groups:
    """labels: (N,) one group per image, numbered from 0 in the images' order. unreadable: those that are no picture,
    and are alone in their group unless a name says more. by_parts: parts were compared, too.
    """

    labels: npt.NDArray[np.int64]
    unreadable: tuple[Path, ...]
    by_parts: bool


def group_near_duplicates(paths: Sequence[Path], on_progress: OnProgress | None = None) -> Groups:
    """Images that are nearly the same, or joined by others that are, in one group. The same images give the same
    groups, in any order.
    """
    parent = list(range(len(paths)))
    wholes: list[Spectra] = []
    parts: dict[int, Parts] = {}
    unreadable: list[Path] = []
    reduction = _reduction(paths)
    by_parts = len(paths) <= MOST_PATCHED_IMAGES
    for number, path in enumerate(paths):
        grey = _grey(path, reduction)
        if grey is None:
            unreadable.append(path)
        elif by_parts:
            parts[number] = _parts(grey)
        wholes.append(np.zeros(FREQUENCIES**2, np.float32) if grey is None else _whole(grey))
        if on_progress:
            on_progress(number + 1, len(paths))
    pairs = itertools.chain(_same_names(paths), _alike(np.array(wholes)) if wholes else (), _sharing_parts(parts))
    for first, second in pairs:
        parent[_root(parent, first)] = _root(parent, second)
    roots = [_root(parent, number) for number in range(len(paths))]
    numbers = {root: number for number, root in enumerate(dict.fromkeys(roots))}
    return Groups(np.array([numbers[root] for root in roots], dtype=np.int64), tuple(unreadable), by_parts)


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


def _same_names(paths: Sequence[Path]) -> Iterator[tuple[int, int]]:
    """Pairs of files in one folder whose names are those of copies or tiles of one picture."""
    first: dict[Path, int] = {}
    for number, path in enumerate(paths):
        other = first.setdefault(path.with_name(COPY_ENDING.sub("", path.stem) or path.stem), number)
        if other != number:
            yield other, number


def _reduction(paths: Sequence[Path]) -> float:
    """By how much every picture is reduced, all alike, so that tiles keep one scale."""
    sides = []
    for path in paths[:: max(1, len(paths) // 200)]:
        try:
            with open_image(path) as picture:
                sides.append(max(picture.size))
        except Exception:  # Pillow's decoders raise whatever their parsers stumble over
            continue
    return max(float(np.median(sides)) / PICTURE_SIDE, 1.0) if sides else 1.0


def _grey(path: Path, reduction: float) -> FloatArray | None:
    """(h, w) grey values of the reduced picture; None when it is no picture."""
    try:
        with open_image(path) as picture:
            size = max(round(picture.width / reduction), 1), max(round(picture.height / reduction), 1)
            picture.draft("L", size)  # JPEG's decoder does most of the work then
            deep = picture.mode.startswith(("I", "F"))
            grey = np.asarray(picture.convert("F" if deep else "L").resize(size, Image.Resampling.BOX), np.float64)
    except Exception:  # as above
        return None
    return grey * (255 / max(float(np.abs(grey).max()), 1e-9)) if deep else grey


def _spectra(squares: FloatArray, frequencies: int) -> Spectra:
    """(N, frequencies^2) low frequencies of (N, s, s) squares, each weighted by its frequency, of length 1; zeros where
    a square is even.
    """
    order = np.add.outer(np.arange(frequencies), np.arange(frequencies))
    found = dctn(squares, axes=(1, 2), norm="ortho")[:, :frequencies, :frequencies]
    found = (found * np.where(order < frequencies, order, 0)).reshape(len(squares), -1)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(np.where(length > 1, found / np.maximum(length, 1), 0), dtype=np.float32)


def _whole(grey: FloatArray) -> Spectra:
    small = Image.fromarray(grey.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX)
    return _spectra(np.asarray(small, dtype=np.float64)[None], FREQUENCIES)[0]


def _alike(wholes: Spectra) -> Iterator[tuple[int, int]]:
    """Pairs of pictures that are alike in any of the eight positions of a square."""
    signs = (-1.0) ** np.arange(FREQUENCIES, dtype=np.float32)
    for start in range(0, len(wholes), CHUNK):
        part = wholes[start : start + CHUNK].reshape(-1, FREQUENCIES, FREQUENCIES)
        best = np.full((len(part), len(wholes)), -1.0, dtype=np.float32)
        for turned in (part, part.transpose(0, 2, 1)):
            for down, across in itertools.product((np.ones_like(signs), signs), repeat=2):
                moved = (turned * down[:, None] * across).reshape(len(part), -1)
                np.maximum(best, moved @ wholes.T, out=best)
        for row, column in zip(*np.nonzero(best > ALIKE), strict=True):
            if start + row < column:
                yield int(start + row), int(column)


def _parts(grey: FloatArray) -> Parts:
    """Patches around the strongest blobs of a picture."""
    base = ndimage.gaussian_filter(grey, BLUR)
    blobs = np.abs(base - ndimage.gaussian_filter(grey, 2 * BLUR))
    edge = np.zeros(grey.shape, dtype=bool)
    edge[PATCH:-PATCH, PATCH:-PATCH] = True
    peaks = (ndimage.maximum_filter(blobs, 7) == blobs) & (blobs > LEAST_CONTRAST) & edge
    ys, xs = np.nonzero(peaks)
    strongest = np.argsort(-blobs[ys, xs], kind="stable")[:MOST_PATCHES]
    ys, xs = ys[strongest], xs[strongest]
    offsets = np.arange(-PATCH, PATCH, 2)
    squares = base[ys[:, None, None] + offsets[:, None], xs[:, None, None] + offsets]
    found = _spectra(squares, PATCH_FREQUENCIES) if len(ys) else np.zeros((0, PATCH_FREQUENCIES**2), np.float32)
    return Parts(np.stack([xs, ys], axis=1), found)


def _sharing_parts(parts: Mapping[int, Parts]) -> Iterator[tuple[int, int]]:
    """Pairs of pictures of which several patches agree, all displaced alike."""
    numbers = np.repeat(list(parts), [len(each.spectra) for each in parts.values()])
    if not len(numbers):
        return
    spectra = np.concatenate([each.spectra for each in parts.values()])
    places = np.concatenate([each.places_xy for each in parts.values()])
    ends = np.cumsum([len(each.spectra) for each in parts.values()])
    for (number, own), end in zip(parts.items(), ends, strict=True):
        rows, columns = np.nonzero(own.spectra @ spectra[end:].T > PATCH_ALIKE)
        if len(rows) < LEAST_SHARED:
            continue
        columns += end
        displaced = places[columns] - own.places_xy[rows]
        for shift in (0.0, 0.5):  # what lies on the border of two bins lies within one of the others
            bins = np.floor(displaced / DISPLACEMENT_BIN + shift).astype(np.int64)
            votes = np.unique(np.column_stack([numbers[columns], bins, rows]), axis=0)  # a patch votes once
            found, counts = np.unique(votes[:, :3], axis=0, return_counts=True)
            for other in set(found[counts >= LEAST_SHARED, 0].tolist()):
                yield number, other
