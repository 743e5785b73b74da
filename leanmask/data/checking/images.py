"""Images as they are on disk: readable to the last byte, their size and EXIF orientation, and a hash of the content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from leanmask.data.annotation import Fault, Row, Size
from leanmask.data.checking.rows import image_size
from leanmask.data.files import require_regular, why
from leanmask.data.image_files import open_image

EXIF_ORIENTATION = 0x0112
THREADS = 2


@dataclass(frozen=True)
class Probe:
    """One image file. size: (height, width) as stored, without the rotation that `orientation` (EXIF, 1 = upright)
    asks for. digest: hash of the file's bytes. fault: why it cannot be used.
    """

    size: Size | None
    orientation: int
    digest: str
    fault: Fault | None

    @property
    def turned_size(self) -> Size | None:
        """(height, width) after the EXIF rotation."""
        return self.size[::-1] if self.size and self.orientation >= 5 else self.size

    def allowed_sizes(self, exif: str) -> list[Size]:
        """What the annotation file may state under this `DataConfig.exif`, the better one first."""
        assert self.size is not None
        assert self.turned_size is not None
        if exif == "error" and self.orientation != 1:
            return [self.size, self.turned_size]
        return [self.turned_size if exif == "apply" else self.size]


def probe(path: Path) -> Probe:
    """Read and decode one image."""
    try:
        require_regular(path)
        content = path.read_bytes()
    except FileNotFoundError:
        return Probe(None, 1, "", Fault("image-missing", "file_name", f"{path} does not exist"))
    except OSError as error:
        return Probe(None, 1, "", Fault("image-unreadable", "file_name", f"cannot read {path}: {why(error)}"))
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    try:
        with open_image(content) as image:
            width, height = image.size
            orientation = int(image.getexif().get(EXIF_ORIENTATION, 1))
            # JPEG's decoder still reads every byte but skips most of the arithmetic.
            image.draft(None, (max(width // 8, 1), max(height // 8, 1)))
            image.load()
    except Exception as error:  # Pillow's decoders raise whatever their parsers stumble over
        code = "image-truncated" if "truncated" in str(error) else "image-unreadable"
        return Probe(None, 1, digest, Fault(code, "file_name", f"cannot decode {path}: {error}"))
    return Probe((height, width), orientation if 1 <= orientation <= 8 else 1, digest, None)


def probe_all(paths: Sequence[Path], on_progress: Callable[[int, int], None] | None) -> dict[Path, Probe]:
    """Every file once, in a small pool of threads; `on_progress(done, total)` is called after each."""
    unique = list(dict.fromkeys(paths))
    found: dict[Path, Probe] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for path, result in zip(unique, pool.map(probe, unique), strict=True):
            found[path] = result
            if on_progress is not None:
                on_progress(len(found), len(unique))
    return found


def image_faults(image: Row, found: Probe, exif: str) -> Iterator[Fault]:
    """What contradicts between an image record and its file. exif: "error", "apply" or "ignore", see `DataConfig`."""
    if found.fault is not None:
        yield found.fault
        return
    stated, allowed = image_size(image), found.allowed_sizes(exif)
    if exif == "error" and found.orientation != 1:
        yield Fault("exif-rotation", "file_name", _exif_message(stated, found))
    if stated not in allowed:
        height, width = allowed[0]
        yield Fault(
            "size-mismatch",
            "width",
            f"the file says width x height are {image.get('width')} x {image.get('height')}, the image has "
            f"{width} x {height}",
        )


def _exif_message(stated: Size | None, found: Probe) -> str:
    if found.size == found.turned_size:
        fits = "the sizes do not tell which the annotations follow"
    elif stated == found.size:
        fits = "the annotation file has the size without it, so data.exif=ignore fits"
    elif stated == found.turned_size:
        fits = "the annotation file has the size with it, so data.exif=apply fits"
    else:
        fits = "the annotation file fits neither way"
    return f"the image carries an EXIF rotation ({found.orientation}); {fits}. Choose data.exif=apply or ignore"
