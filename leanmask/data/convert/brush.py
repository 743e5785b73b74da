"""Label Studio's run lengths of brush masks: the bit stream of thi.ng's rle-pack over the picture's RGBA bytes.

A header (32 bits: how many words; 5: bits per word - 1; four times 4: the four widths of lengths - 1) is followed by
records: a bit (1: one word repeated, 0: single words), two bits (which width), the length - 1, and the word or words.
A pixel is four words; Label Studio reads its alpha.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from leanmask.data.convert.shapes import row_runs
from leanmask.errors import DataError
from leanmask.rle import ByteArray

CHANNELS, WORD_BITS, WIDTHS = 4, 8, (3, 4, 8, 16)
_LONGEST = 1 << WIDTHS[-1]


def encode_brush(mask: ByteArray) -> list[int]:
    """The bytes of an (H, W) mask of a whole image."""
    bits = [f"{mask.size * CHANNELS:032b}", f"{WORD_BITS - 1:05b}", *(f"{width - 1:04b}" for width in WIDTHS)]
    for place, run in enumerate(row_runs(mask)):
        words, value = run * CHANNELS, 255 * (place % 2)
        while words > 0:
            length = min(words, _LONGEST)
            index = next(i for i, width in enumerate(WIDTHS) if length <= 1 << width)
            bits.append(f"1{index:02b}{length - 1:0{WIDTHS[index]}b}{value:0{WORD_BITS}b}")
            words -= length
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return list(int(stream, 2).to_bytes(len(stream) // 8))


def decode_brush(data: Sequence[int], size: tuple[int, int], where: str) -> ByteArray:
    """The (H, W) mask of an image of `size` from its bytes. Raises DataError for bytes that are none."""
    try:
        words = _words(_Bits(bytes(data)))
    except (ValueError, IndexError):
        raise DataError(f"{where}: the brush mask is damaged") from None
    if words.size != size[0] * size[1] * CHANNELS:
        raise DataError(
            f"{where}: the brush mask has {words.size // CHANNELS} pixels, the image {size[0] * size[1]} "
            f"({size[1]} x {size[0]})"
        )
    return (words.reshape(*size, CHANNELS)[:, :, -1] > 0).astype(np.uint8)


class _Bits:
    """Reads numbers of any width from bytes, the highest bit first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def read(self, width: int) -> int:
        first, last = self._at // 8, (self._at + width + 7) // 8
        if last > len(self._data):
            raise IndexError("the stream ends too early")
        value = int.from_bytes(self._data[first:last])
        self._at += width
        return (value >> (8 * last - self._at)) & ((1 << width) - 1)


def _words(bits: _Bits) -> np.ndarray:
    total, width = bits.read(32), bits.read(5) + 1
    widths = [bits.read(4) + 1 for _ in range(4)]
    values: list[int] = []
    lengths: list[int] = []
    done = 0
    while done < total:
        repeated = bits.read(1)
        length = bits.read(widths[bits.read(2)]) + 1
        values += [bits.read(width)] if repeated else [bits.read(width) for _ in range(length)]
        lengths += [length] if repeated else [1] * length
        done += length
    return np.repeat(np.asarray(values, dtype=np.int64), lengths)[:total]
