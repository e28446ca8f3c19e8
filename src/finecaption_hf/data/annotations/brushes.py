"""Label Studio's brushes: a bit stream of runs -> the mask.

The stream (rle-pack by thi.ng, which Label Studio uses), most significant bits first: 32 bits for the number of values;
5 bits for the size of a word, less 1; four times 4 bits for the size of a run's length, less 1. Then runs: 1 bit that
says whether one word is repeated; 2 bits that choose the size of the length; the length less 1; the word, or as many
words as the run is long. Values are RGBA, row by row, and alpha is the mask.
"""

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...mask_codecs_finecaption import BoolArray, MaskError, arrived
from .shapes import Size, check_picture

_HEADER_BITS = 53
# Bytes in which a run's kind, length and word lie wherever they begin: 7 + 3 + 16 + 8 bits. Below the kind lie so many.
_WINDOW = 5
_LOW = 8 * _WINDOW - 3
# So many words are looked at one by one; numpy would take longer.
_FEW = 8
_REMEDY = "Export the annotations anew."


@dataclass(frozen=True)
class Brush:
    """A brush: what is not wholly transparent is in it.

    Attributes:
        rle: list of bytes as the file has it.
        size (`tuple[int, int]`, *optional*): (H, W) of the picture in the file.
    """

    rle: Any
    size: Size | None = None

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        check_picture(self.size, height, width)
        return decode_brush(self.rle, height, width)


def decode_brush(rle: Any, height: int, width: int) -> BoolArray:
    """Decode a brush.

    Args:
        rle: list of whole numbers of 0 to 255.
        height, width (`int`): of the picture.

    Returns:
        bool, of shape (H, W).

    Raises:
        MaskError: If the stream is broken or is not one of a picture of that size. Its claim is compared with the
            picture before anything is allocated, and work is bounded by the length of the stream and by the picture.
    """
    try:
        data = bytes(rle) if isinstance(rle, list) else b""
    except (TypeError, ValueError):
        data = b""
    if len(data) < 8:
        raise MaskError(f"{arrived(rle)} arrived as a brush, which is a list of numbers from 0 to 255. {_REMEDY}")
    num_values = int.from_bytes(data[:4], "big")
    if num_values != 4 * height * width:
        raise MaskError(
            f"The brush has {num_values} values, but a picture of {height}x{width} (height x width) has "
            f"{4 * height * width}. Give the picture that was annotated."
        )
    header = int.from_bytes(data[4:8], "big") >> (64 - _HEADER_BITS)
    if (header >> 16) + 1 != 8:
        raise MaskError(f"The brush has words of {(header >> 16) + 1} bits, but Label Studio writes 8. {_REMEDY}")
    length_bits = [(header >> shift & 15) + 1 for shift in (12, 8, 4, 0)]
    values = np.frombuffer(_walked(data, num_values, length_bits), np.int64)
    # Value i belongs to pixel i // 4, and is its alpha where i % 4 is 3: values from i on, up to j, hold the alpha of
    # the pixels from i // 4 on, up to j // 4.
    borders = np.minimum(values, num_values) >> 2
    runs = np.diff(np.concatenate([[0], borders, [height * width]]))
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)


def _walked(data: bytes, num_values: int, length_bits: list[int]) -> "array[int]":
    """The borders of runs of values that are not 0, those between alphas left out: start, end, start, end, .."""
    # By the three bits that a run begins with: where its length and its word lie in the window, and where both end.
    fields = [(_LOW - bits, (1 << bits) - 1, _LOW - bits - 8, 3 + bits) for bits in length_bits * 2]
    end, at, value = len(data) * 8, _HEADER_BITS, 0
    data += bytes(_WINDOW)
    as_number = int.from_bytes
    borders = array("q")
    add = borders.append
    while value < num_values and at <= end:  # this loop is what decoding costs
        start = at >> 3
        window = as_number(data[start : start + _WINDOW], "big") << (at & 7)
        kind = window >> _LOW & 7
        shift, mask, word_shift, passed = fields[kind]
        stop = value + (window >> shift & mask) + 1
        at += passed + 8
        if kind > 3:
            if window >> word_shift & 255:
                add(value)
                add(stop)
        elif stop - value == 1:
            if value & 3 == 3 and window >> word_shift & 255:
                add(value)
                add(stop)
        else:
            first = value | 3
            for place in _inside(data, at - 8 + 8 * (first - value), (stop - first + 3) // 4):
                add(first + 4 * place)
                add(first + 4 * place + 1)
            at += 8 * (stop - value - 1)
        value = stop
    if at > end:
        raise MaskError(f"The brush ends before value {value} of {num_values}. {_REMEDY}")
    return borders


def _inside(data: bytes, at: int, number: int) -> list[int]:
    """Which of the words that lie four words apart, from a bit on, are not 0."""
    start, shift = at >> 3, at & 7
    if number <= _FEW:
        places = range(start, start + 4 * number, 4)
        return [k for k, j in enumerate(places) if int.from_bytes(data[j : j + 2], "big") >> (8 - shift) & 255]
    part = np.frombuffer(data, np.uint8)[start : start + 4 * number].astype(np.uint16)
    words = (part[::4][: len(part[1::4])] << 8 | part[1::4]) >> (8 - shift) & 255
    found: list[int] = np.flatnonzero(words).tolist()
    return found
