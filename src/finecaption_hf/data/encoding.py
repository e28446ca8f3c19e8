"""A mask -> text, as data sets hold it: CompositionCap's blob and COCO's run lengths (RLE). `as_mask` reads both."""

import base64
import struct
import zlib
from typing import Any

import numpy as np

from ..mask_codecs_finecaption import array_mask

# Magic number, deflate, no flags, no time: the same mask gives the same text on every day and machine.
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


def encode_mask(mask: Any) -> str:
    """Encode a mask, as `array_mask` takes it, as CompositionCap does: base64(gzip(uint8 H x W)), values 0 and 1.

    Returns:
        `str`: ASCII text without line breaks, the same for the same mask (no time stamp). It does not hold the shape.
    """
    pixels = array_mask(mask).data  # its bytes are 0 and 1
    deflate = zlib.compressobj(level=6, wbits=-15)
    body = deflate.compress(pixels) + deflate.flush()
    trailer = struct.pack("<II", zlib.crc32(pixels), pixels.nbytes & 0xFFFFFFFF)
    return base64.b64encode(_GZIP_HEADER + body + trailer).decode("ascii")


def encode_rle(mask: Any) -> dict[str, Any]:
    """Encode a mask, as `array_mask` takes it, as COCO's compressed run-length encoding.

    Returns:
        `dict`: `{"size": [H, W], "counts": str}`, as pycocotools writes it (there `counts` holds the same as bytes).

    The format is described at `decode_rle`.
    """
    region = array_mask(mask)
    columns = region.T.ravel()
    changes = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    borders = np.concatenate([[0], changes, [columns.size]]).astype(np.int64)
    starts = [0] if columns[0] else []  # runs start with 0, so a region that starts at once has a run of none
    runs = [*starts, *np.diff(borders).tolist()]
    return {"size": list(region.shape), "counts": _compress_counts(runs)}


def _compress_counts(counts: list[int]) -> str:
    text = bytearray()
    for i, run in enumerate(counts):
        rest = run - counts[i - 2] if i > 2 else run
        more = True
        while more:
            chunk = rest & 0x1F
            rest >>= 5  # arithmetic: -1 is what remains of a negative number
            more = rest != (-1 if chunk & 0x10 else 0)
            text.append(chunk + (0x20 if more else 0) + 48)
    return text.decode("ascii")
