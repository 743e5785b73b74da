"""Parts of images and of masks, in the sizes that screens have. Regions are x, y, width, height in whole pixels of the
image; what is sent is that region exactly, only with fewer pixels where it is larger than asked for.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from leanmask.annotate.source import Source
from leanmask.data.annotation import segmentation_of
from leanmask.data.views.canvas import read_picture
from leanmask.errors import DataError
from leanmask.rle import Region, polygon_crop, rle_crop

MOST_DECODED_BYTES = 512 * 2**20  # of images kept decoded; the newest stays however large it is
READING_LOCKS = 64  # an image is read by one thread at a time; few images share a lock
LARGE_PIXELS = 64_000_000  # images from this size on are decoded one after another, so that memory holds one at a time
LOSSLESS_PIXELS = 160_000  # a part this small is sent without loss, so that single pixels can be judged
FILL_RGBA = (0, 114, 178, 100)  # blue that people with any colour vision tell from the image below
EDGE_PX = 7
EDGE_RGBA, RIM_RGBA = (255, 255, 255, 255), (0, 0, 0, 255)


@dataclass(frozen=True)
class Part:
    """A region of an image, and the longest side in pixels that is of use to whoever asks."""

    region: Region
    longest: int


@dataclass(frozen=True)
class Encoded:
    """A picture as it is sent."""

    content: bytes
    media_type: str


class NotOnImage(DataError):
    """A region that does not lie on its image: a mistake of whoever asks, not of the image."""


class Pictures:
    """Reads the images of a source; for several threads at once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lock = threading.Lock()  # of the decoded images
        self._large = threading.Lock()
        self._reading = tuple(threading.Lock() for _ in range(READING_LOCKS))
        self._decoded: OrderedDict[int, Image.Image] = OrderedDict()

    def part(self, picture: int, part: Part | None = None) -> Encoded:
        """A part of a picture (None: all of it). Raises NotOnImage for a region that does not lie on it, any other
        DataError for a picture that is missing, damaged, or not what its annotations say.
        """
        image = self._image(picture)
        part = part or Part((0, 0, *image.size), max(image.size))
        box = _corners(part.region, image.size)
        size = _fitted((box[2] - box[0], box[3] - box[1]), part.longest)
        # Not cropped first: that would copy the whole of a large image once more.
        cut = image.resize(size, Image.Resampling.BOX, box=box, reducing_gap=2.0)
        return _encode(cut.convert("RGB"))

    def mask(self, thing: int, part: Part) -> Encoded:
        """A part of the mask of the source's `thing`th object: blue inside, an edge in white and black. Raises
        DataError for an object without a usable mask.
        """
        known = self._source.things[thing]
        _, _, w, h = part.region
        try:
            segmentation = segmentation_of(known.row)
            crop = np.zeros((h, w), dtype=np.uint8)
            if isinstance(segmentation, dict):
                crop = rle_crop(segmentation, part.region)
            elif segmentation:
                crop = polygon_crop(segmentation, part.region)
        except (DataError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"annotation {known.id} has a segmentation that cannot be read: {error}") from None
        # Enlarged where it is small, so that the edge is as thin on every screen.
        scale = part.longest / max(w, h)
        size = max(round(w * scale), 1), max(round(h * scale), 1)
        return _encode(_drawn(Image.fromarray(crop * np.uint8(255)).resize(size, Image.Resampling.NEAREST)))

    def _image(self, picture: int) -> Image.Image:
        # The page asks for several parts of an image at once; whoever comes second waits for the first one's reading.
        with self._reading[picture % READING_LOCKS]:
            image = self._kept(picture)
            if image is None:
                image = self._read(picture)
                self._keep(picture, image)
        return image

    def _read(self, picture: int) -> Image.Image:
        source = self._source
        size = source.size_of(picture)
        with self._large if size[0] * size[1] >= LARGE_PIXELS else nullcontext():
            return read_picture(source.pictures[picture].path, size, source.exif)

    def _kept(self, picture: int) -> Image.Image | None:
        with self._lock:
            if picture in self._decoded:
                self._decoded.move_to_end(picture)
            return self._decoded.get(picture)

    def _keep(self, picture: int, image: Image.Image) -> None:
        with self._lock:
            self._decoded[picture] = image
            sizes = {key: kept.width * kept.height * len(kept.getbands()) for key, kept in self._decoded.items()}
            while sum(sizes.values()) > MOST_DECODED_BYTES and len(sizes) > 1:
                oldest, _ = self._decoded.popitem(last=False)
                del sizes[oldest]


def _corners(region: Region, size: tuple[int, int]) -> tuple[int, int, int, int]:
    x, y, w, h = region
    if x < 0 or y < 0 or w <= 0 or h <= 0 or x + w > size[0] or y + h > size[1]:
        raise NotOnImage(f"the region {list(region)} does not lie on an image of {size[0]} x {size[1]} pixels")
    return x, y, x + w, y + h


def _fitted(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """A size of the same shape whose longer side is at most `longest`; nothing is made larger."""
    scale = min(longest / max(size), 1.0)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def _encode(image: Image.Image) -> Encoded:
    file = io.BytesIO()
    if image.mode == "RGBA" or image.width * image.height <= LOSSLESS_PIXELS:
        image.save(file, "PNG", compress_level=1)
        return Encoded(file.getvalue(), "image/png")
    image.save(file, "JPEG", quality=92, subsampling=0)
    return Encoded(file.getvalue(), "image/jpeg")


def _drawn(mask: Image.Image) -> Image.Image:
    """A mask, 0 or 255, as it is laid over the image: filled, with an edge that shows on any colour."""
    out = Image.new("RGBA", mask.size)
    out.paste(RIM_RGBA, mask=mask.filter(ImageFilter.MaxFilter(EDGE_PX)))
    out.paste(EDGE_RGBA, mask=mask)
    # Beyond the picture there is no mask, so the edge is drawn there too.
    framed = Image.new("L", (mask.width + 2 * EDGE_PX, mask.height + 2 * EDGE_PX))
    framed.paste(mask, (EDGE_PX, EDGE_PX))
    core = framed.filter(ImageFilter.MinFilter(EDGE_PX))
    out.paste(FILL_RGBA, mask=core.crop((EDGE_PX, EDGE_PX, EDGE_PX + mask.width, EDGE_PX + mask.height)))
    return out
