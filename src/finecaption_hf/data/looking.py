"""Whether a picture file is rather a label map or a mask: what its pixels are gives it away, at little cost."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SUFFIXES = (".bmp", ".png", ".tif", ".tiff")
# Label maps and masks are plains of equal pixels, which pack well; photographs and drawings with soft edges are not.
_MAX_BYTES_PER_PIXEL = 0.25
# Of pictures in colour less, so that not every screenshot is decoded.
_MAX_BYTES_OF_COLOURS = 0.05
_HEADER_BYTES = 4096
_MIN_EQUAL = 0.9
_MAX_PIXELS = 2**26
_MAX_LABELS = 64


def voc_colours() -> NDArray[np.uint8]:
    """The colours by which Pascal VOC shows labels, (256, 3): the bits of a label, in turn, from the highest on."""
    labels = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((labels >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def what_it_looks_like(path: Path, with_colours: bool = False) -> str | None:
    """What a picture file seems to be in place of a picture: "a label map (..)" or "a mask (..)"; `None` if it is one.

    A file that cannot be read looks like a picture: whoever opens it says what is wrong.

    Args:
        path: the file.
        with_colours: whether plains of colours count as labels, which else may be a drawing.
    """
    if path.suffix.lower() not in _SUFFIXES:
        return None
    try:
        with Image.open(path) as picture:
            pixels = picture.width * picture.height
            limit = _MAX_BYTES_OF_COLOURS if picture.mode == "RGB" else _MAX_BYTES_PER_PIXEL
            packed = path.stat().st_size - _HEADER_BYTES < limit * pixels
            if (not packed and path.suffix.lower() == ".png") or pixels > _MAX_PIXELS:
                return None
            if picture.mode == "P" and (picture.getpalette() or [])[:12] == voc_colours()[:4].reshape(-1).tolist():
                return "a label map (its palette is that of Pascal VOC)"
            if picture.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "RGB"):
                return None
            has_greys = picture.mode != "P" or _is_grey(picture.getpalette() or [])
            return _told_by(np.asarray(picture), picture.mode, with_colours) if has_greys else None
    except Exception:  # decoders of damaged files raise nearly anything
        return None


def _is_grey(palette: list[int]) -> bool:
    return palette[0::3] == palette[1::3] == palette[2::3]


def _told_by(values: NDArray[Any], mode: str, with_colours: bool) -> str | None:
    if values.ndim == 3:
        if not (np.array_equal(values[..., 0], values[..., 1]) and np.array_equal(values[..., 0], values[..., 2])):
            same = (
                (values[:, 1:] == values[:, :-1]).all(axis=2) if with_colours and values.shape[1] > 1 else np.zeros(1)
            )
            return "a label map (plains of colours)" if same.mean() >= _MIN_EQUAL else None
        values = values[..., 0]
    if min(values.shape) < 2 or (values[:, 1:] == values[:, :-1]).mean() < _MIN_EQUAL:
        return None
    found = np.unique(values)
    if len(found) < 2:
        return None
    if len(found) == 2 and int(found[0]) == 0 and int(found[1]) in (1, 255):
        return "a mask (it has two values)"
    if mode.startswith("I"):
        return f"a label map (16 bits, {len(found)} values)"
    inner = found[found != 255]
    if len(inner) and len(found) <= _MAX_LABELS and int(inner[-1]) <= _MAX_LABELS:
        return f"a label map ({len(found)} values up to {int(found[-1])})"
    return None
