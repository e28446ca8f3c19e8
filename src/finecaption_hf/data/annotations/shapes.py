"""What regions of annotation tools share: the size of their picture, points, and masks that lie somewhere in it.

H, W: height and width of a picture in pixels. Everything comes from strangers: a size is compared with the picture's
before anything is allocated.
"""

import base64
import binascii
from collections.abc import Sequence
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


@dataclass(frozen=True)
class Ellipse:
    """The pixels whose centres are in an ellipse; of one that holds none, the pixel under its middle.

    Attributes:
        middle, radii (`tuple[float, float]`): (x, y) in pixels, along its own axes.
        degrees (`float`): how far it is turned, clockwise.
        size (`tuple[int, int]`, *optional*): (H, W) of the picture in the file.
    """

    middle: tuple[Any, Any]
    radii: tuple[Any, Any]
    degrees: Any = 0.0
    size: Size | None = None

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        check_picture(self.size, height, width)
        (x, y), (radius_x, radius_y) = as_points([list(self.middle), list(self.radii)], "an ellipse").tolist()
        if radius_x <= 0 or radius_y <= 0:
            raise MaskError(f"The ellipse has the radii {radius_x:g} and {radius_y:g}: both have to be above 0.")
        turn = np.radians(as_number(self.degrees, "The rotation"))
        region = np.zeros((height, width), dtype=np.bool_)
        reach = np.hypot(
            radius_x * np.array([np.cos(turn), np.sin(turn)]), radius_y * np.array([-np.sin(turn), np.cos(turn)])
        )
        left, top = (max(int(np.floor(each)), 0) for each in (x - reach[0], y - reach[1]))
        right, bottom = min(int(np.ceil(x + reach[0])), width), min(int(np.ceil(y + reach[1])), height)
        if left < right and top < bottom:
            right_of, below = np.arange(left, right) + 0.5 - x, (np.arange(top, bottom) + 0.5 - y)[:, None]
            along = (np.cos(turn) * right_of + np.sin(turn) * below) / radius_x
            across = (np.cos(turn) * below - np.sin(turn) * right_of) / radius_y
            region[top:bottom, left:right] = along**2 + across**2 <= 1
        if not region.any() and 0 <= x < width and 0 <= y < height:
            region[int(y), int(x)] = True
        return region


def turned_box(x: float, y: float, width: float, height: float, degrees: float, about: tuple[float, float]) -> Any:
    """The region reference of a box in pixels that is turned clockwise about a point.

    Raises:
        MaskError: If it has no area.
    """
    if width <= 0 or height <= 0:
        raise MaskError(f"The box is {height:g} high and {width:g} wide: both have to be above 0.")
    if degrees % 360 == 0:
        return {"box_xyxy": [x, y, x + width, y + height]}
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    corners = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]]) - about
    turned = corners @ np.array([[cosine, sine], [-sine, cosine]]) + about
    return {"polygon": turned.tolist()}


def as_number(value: Any, what: str) -> float:
    """A number of a file.

    Raises:
        MaskError: If it is none, or too large for a measure in pixels.
    """
    (number,) = numbers([value], f"{what} is", "A number is needed.").astype(np.float64).tolist()
    if not abs(number) <= _MAX_COORDINATE:
        raise MaskError(f"{what} is {number:g}, which is no measure in pixels.")
    return float(number)


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


# --- polygons whose corners are pixels -------------------------------------------------------------------------------

# What drawing one outline may cost: steps along its edges and crossings of rows.
_MAX_STEPS = 2**24


def pixel_polygons(rings: Sequence[NDArray[np.int64]], height: int, width: int) -> BoolArray:
    """The pixels of polygons with their outlines, as OpenCV fills them: corners are pixels, and belong to them.

    Args:
        rings: each int64 of shape (N, 2), x before y; where two overlap is outside (even-odd).
        height, width (`int`): of the picture.

    Returns:
        bool, of shape (H, W); as by `cv2.fillPoly` where all corners are in the picture.

    Raises:
        MaskError: If they are too complex.
    """
    start = np.concatenate([np.zeros((0, 2), np.int64), *rings])
    end = np.concatenate([np.zeros((0, 2), np.int64), *(np.roll(ring, -1, axis=0) for ring in rings)])
    steps = np.abs(end - start).max(axis=1)
    if steps.sum() + len(start) > _MAX_STEPS:
        raise MaskError("The polygon is too complex for its picture. Simplify it, or give a mask.")
    # Even-odd along the rows through the corners' middles: each edge flips what lies right of where it crosses a row.
    upward = start[:, 1] > end[:, 1]
    upper, lower = np.where(upward[:, None], end, start), np.where(upward[:, None], start, end)
    first = np.maximum(upper[:, 1], 0)
    edges, after = _counted(np.maximum(np.minimum(lower[:, 1], height) - first, 0))
    rows = first[edges] + after
    run = (lower - upper)[edges]
    # The first column that is not left of the crossing.
    columns = upper[edges, 0] - (upper[edges, 1] - rows) * run[:, 0] // run[:, 1]
    flips = np.zeros((height, width + 1), dtype=np.uint8)
    np.add.at(flips, (rows, np.clip(columns, 0, width)), np.uint8(1))
    region: BoolArray = (np.cumsum(flips, axis=1, dtype=np.uint8)[:, :-1] & 1).astype(np.bool_)
    # Its edges by Bresenham, from the left end on; where a step lies half way, the side is the one of that end.
    leftward = start[:, 0] > end[:, 0]
    left, right = np.where(leftward[:, None], end, start), np.where(leftward[:, None], start, end)
    edges, after = _counted(steps + 1)
    delta = (right - left)[edges]
    size, longest = np.abs(delta), np.maximum(steps, 1)[edges, None]
    moved = -((longest - 2 * size * after[:, None]) // (2 * longest)) * np.sign(delta)
    x, y = (left[edges] + moved).T
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    region[y[inside], x[inside]] = True
    return region


def _counted(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each index as often as its number says, and how often it came before: [2, 1] -> [0, 0, 1], [0, 1, 0]."""
    index = np.repeat(np.arange(len(numbers)), numbers)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
