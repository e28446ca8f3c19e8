"""Boxes of other tools, as four numbers in some order or by the names of their sides -> region references."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..mask_codecs_finecaption import BoolArray
from ..polygons_finecaption import box_mask
from ..prompts_finecaption import no_such
from .errors import DataError

BOX_FORMATS = ("xyxy", "xywh", "cxcywh", "xyxyn", "xywhn", "cxcywhn")
"""What four numbers may be: corners, corner and size, centre and size; in pixels, or ("n") in shares of the picture."""

_NAMES = {"coco": "xywh", "pascal_voc": "xyxy", "voc": "xyxy", "yolo": "cxcywhn", "albumentations": "xyxyn"}
# The sides of a box by their names: left, top, right and bottom.
_SIDES = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("left", "top", "right", "bottom"),
)


def as_box_format(name: Any, *, strict: bool = True) -> str | None:
    """One of `BOX_FORMATS`, from it or from what libraries call it, such as "coco"; `None` where it is none.

    Raises:
        DataError: If it is none and `strict`.
    """
    found = _NAMES.get(name, name) if isinstance(name, str) else None
    if found not in BOX_FORMATS:
        if strict:
            raise DataError("boxes", no_such("box format", name, (*BOX_FORMATS, *_NAMES)))
        return None
    return found


@dataclass(frozen=True)
class ShareBox:
    """A box in shares of the picture's width and height, from 0 to 1."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        return box_mask([self.x0 * width, self.y0 * height, self.x1 * width, self.y1 * height], height, width)


def box_region(values: Any, box_format: str, what: str) -> Any:
    """The region reference of four numbers.

    Args:
        values: list or array of four numbers.
        box_format: one of `BOX_FORMATS`.
        what: where they stand, for messages.

    Raises:
        DataError: If they are no box.
    """
    box = four_numbers(values)
    if box is None:
        raise DataError(what, "four numbers are needed.")
    box_format = as_box_format(box_format) or ""
    a, b, c, d = box
    if box_format.startswith("cxcywh"):
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    elif box_format.startswith("xywh"):
        c, d = a + c, b + d
    return ShareBox(a, b, c, d) if box_format.endswith("n") else {"box_xyxy": [a, b, c, d]}


def four_numbers(values: Any) -> list[float] | None:
    """A box's numbers from a list or an array, `None` where it is something else."""
    if not isinstance(values, (list, tuple)):
        values = values.tolist() if hasattr(values, "tolist") else None
    if not isinstance(values, (list, tuple)) or len(values) != 4:
        return None
    are_numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in values)
    return list(values) if are_numbers and all(map(math.isfinite, values)) else None


def named_box(value: Any) -> dict[str, Any] | None:
    """The region reference of an object that names the sides of a box, such as {"xmin", "ymin", "xmax", "ymax"}."""
    if not isinstance(value, Mapping):
        return None
    for sides in _SIDES:
        if (box := four_numbers([value.get(side) for side in sides])) is not None:
            return {"box_xyxy": box}
    return None
