"""What regions of annotation tools share: the size of their picture, points, and masks that lie somewhere in it.

H, W: height and width of a picture in pixels. Everything comes from strangers: a size is compared with the picture's
before anything is allocated.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...mask_codecs_finecaption import BoolArray, MaskError, arrived, numbers
from ...masks_finecaption import as_mask
from ..errors import DataError
from ..images import open_picture

Size = tuple[int, int]
FloatArray = NDArray[np.float64]

# Farther out than this a coordinate is no pixel of any picture.
_MAX_COORDINATE = 1e6


def as_size(height: Any, width: Any) -> Size | None:
    """The size (H, W) that a file states for its picture; `None` where it states none that can be one."""
    sides = [side for side in (height, width) if isinstance(side, (int, float)) and not isinstance(side, bool)]
    whole = [int(side) for side in sides if 0 < side < 2**31 and side == int(side)]
    return (whole[0], whole[1]) if len(whole) == 2 else None


def check_picture(stated: Size | None, height: int, width: int) -> None:
    """Refuse a picture of another size than the file's regions are of.

    Raises:
        MaskError: If the sizes differ.
    """
    if stated is None or stated == (height, width):
        return
    remedy = "Give the pictures that were annotated, or export the annotations anew."
    if stated == (width, height):
        remedy = (
            "Its sides are swapped: where the regions were drawn on the pixels as they are stored, before the EXIF "
            "orientation, give --stored-orientation."
        )
    raise MaskError(
        f"The file has the region in a picture of {stated[0]}x{stated[1]} (height x width), but the picture is "
        f"{height}x{width}. {remedy}"
    )


@dataclass(frozen=True)
class OfPicture:
    """A region reference in the pixels of a picture whose size the file states.

    Attributes:
        reference: what `as_mask` takes.
        size (`tuple[int, int]`): (H, W) of that picture.
    """

    reference: Any
    size: Size

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        check_picture(self.size, height, width)
        return as_mask(self.reference, height, width)


def as_points(values: Any, what: str) -> FloatArray:
    """Points `[[x, y], ...]` of a file -> (N, 2) in float64.

    Raises:
        MaskError: If they are none, or too far out to be pixels.
    """
    needed = "Points [[x, y], ...] in pixels are needed."
    if not isinstance(values, list) or not all(isinstance(point, list) and len(point) == 2 for point in values):
        raise MaskError(f"{arrived(values)} arrived as points of {what}. {needed}")
    flat = [number for point in values for number in point]
    points: FloatArray = numbers(flat, f"A point of {what} is", needed).astype(np.float64).reshape(-1, 2)
    if not (np.abs(points) <= _MAX_COORDINATE).all():
        raise MaskError(f"A point of {what} is NaN, infinite or beyond {_MAX_COORDINATE:.0e} pixels. {needed}")
    return points


def from_base64(text: Any, what: str) -> bytes:
    """The bytes of a base64 text; line breaks in it are passed over.

    Raises:
        MaskError: If it is none.
    """
    try:
        if not isinstance(text, str):
            raise ValueError(arrived(text))
        return base64.b64decode("".join(text.split()).encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MaskError(f"{what} is no intact base64 ({error}). Export it anew.") from error


def open_crop(data: bytes, height: int, width: int, what: str) -> Image.Image:
    """The picture of a mask that is a part of a picture of H x W, not decoded yet.

    Raises:
        MaskError: If it is no picture or larger than the one that it is a part of.
    """
    try:
        crop = open_picture(data, what)
    except DataError as error:
        raise MaskError(f"{error} Export it anew.") from error
    check_crop(crop.height, crop.width, height, width, what)
    return crop


def check_crop(crop_height: int, crop_width: int, height: int, width: int, what: str) -> None:
    """Refuse a part that is larger than its picture.

    Raises:
        MaskError: If it is.
    """
    if crop_height > height or crop_width > width:
        raise MaskError(
            f"{what} is {crop_height}x{crop_width} (height x width), larger than the picture of {height}x{width}. "
            "Give the picture that was annotated."
        )


def pixels_of(crop: Image.Image, what: str) -> NDArray[Any]:
    """The values of a picture as they are stored: of a palette its indices.

    Raises:
        MaskError: If it is damaged.
    """
    try:
        return np.asarray(crop)
    except Exception as error:  # decoders raise nearly anything
        raise MaskError(f"{what} cannot be decoded ({error}). Export it anew.") from error


def paste(region: BoolArray, crop: BoolArray, top: int, left: int) -> None:
    """Add a part to a region at its place; what lies outside of the picture is cut off."""
    height, width = region.shape
    rows, columns = slice(max(top, 0), min(top + crop.shape[0], height)), slice(max(left, 0), left + crop.shape[1])
    columns = slice(columns.start, min(columns.stop, width))
    if rows.start < rows.stop and columns.start < columns.stop:
        region[rows, columns] |= crop[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
