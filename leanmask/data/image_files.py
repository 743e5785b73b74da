"""Opening image files: of known formats and regular files alone, so that a file's name starts no other program and no
device is waited for.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from leanmask.data.files import require_regular

# Of the formats that Pillow knows, those that pictures come in and that it decodes itself: an EPS file, whatever its
# name says, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")


def open_image(source: Path | bytes) -> Image.Image:
    """The image in a file, or in bytes that were read from one, not decoded yet; to be closed by the caller. Raises
    OSError when it is missing, no regular file, or of no known format, and what Pillow raises.
    """
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source), formats=FORMATS)
    require_regular(source)
    return Image.open(source, formats=FORMATS)
