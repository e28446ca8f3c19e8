"""Whether a picture file is rather a label map or a mask: what its pixels are gives it away, at little cost."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SUFFIXES = (".bmp", ".png", ".tif", ".tiff")
# Label maps and masks are plains of equal pixels, which pack well; photographs and drawings with soft edges are not.
_MAX_BYTES_PER_PIXEL = 0.25
_HEADER_BYTES = 4096
_MIN_EQUAL = 0.9
_MAX_PIXELS = 2**26
_MAX_LABELS = 64
_VOC_COLOURS = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]


def what_it_looks_like(path: Path) -> str | None:
    """What a picture file seems to be in place of a picture: "a label map (..)" or "a mask (..)"; `None` if it is one.

    A file that cannot be read looks like a picture: whoever opens it says what is wrong.
    """
    if path.suffix.lower() not in _SUFFIXES:
        return None
    try:
        with Image.open(path) as picture:
            pixels = picture.width * picture.height
            packed = path.stat().st_size - _HEADER_BYTES < _MAX_BYTES_PER_PIXEL * pixels
            if (not packed and path.suffix.lower() == ".png") or pixels > _MAX_PIXELS:
                return None
            if picture.mode == "P" and (picture.getpalette() or [])[:12] == _VOC_COLOURS:
                return "a label map (its palette is that of Pascal VOC)"
            if picture.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "RGB"):
                return None
            has_greys = picture.mode != "P" or _is_grey(picture.getpalette() or [])
            return _told_by(np.asarray(picture), picture.mode) if has_greys else None
    except Exception:  # decoders of damaged files raise nearly anything
        return None


def _is_grey(palette: list[int]) -> bool:
    return palette[0::3] == palette[1::3] == palette[2::3]


def _told_by(values: NDArray[Any], mode: str) -> str | None:
    if values.ndim == 3:
        if not (np.array_equal(values[..., 0], values[..., 1]) and np.array_equal(values[..., 0], values[..., 2])):
            return None
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
