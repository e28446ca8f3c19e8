"""Pictures that are shown turned, by their EXIF orientation, and regions in the pixels as they are stored."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from ..mask_codecs_finecaption import BoolArray
from ..masks_finecaption import MaskError, as_mask

# What is done with the stored pixels, by EXIF orientation: swap rows and columns, then turn upside down, then mirror.
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
_NOTE = "finecaption_orientation"


def orientation_of(picture: Image.Image) -> int:
    """The EXIF orientation of a picture that was opened, 1 to 8; of what is none, 1."""
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF data may be damaged; then the picture is taken as it is, or fails when it is decoded
        return 1
    return found if found in _TURNS else 1


def stored_orientation_of(path: Path) -> int:
    """The EXIF orientation of a picture file, 1 to 8.

    Raises:
        OSError: If it is no picture.
    """
    with Image.open(path) as picture:
        return orientation_of(picture)


def note_orientation(picture: Image.Image, orientation: int) -> Image.Image:
    """The same upright picture, which knows how its stored pixels were turned; `regions_of` reads it."""
    if orientation != 1:
        picture.info[_NOTE] = orientation
    return picture


def turned(mask: BoolArray, orientation: int) -> BoolArray:
    """A mask (H, W) of the stored pixels -> that of the picture as it is displayed, (H, W) or (W, H)."""
    swap, upside_down, mirror = _TURNS[orientation]
    mask = mask.T if swap else mask
    return mask[:: -1 if upside_down else 1, :: -1 if mirror else 1]


def turned_point(x: float, y: float, orientation: int, height: int, width: int) -> tuple[float, float]:
    """A pixel (x, y) of the stored picture -> the same in the displayed one, which has (height, width)."""
    swap, upside_down, mirror = _TURNS[orientation]
    x, y = (y, x) if swap else (x, y)
    return (max(width - 1 - x, 0.0) if mirror else x), (max(height - 1 - y, 0.0) if upside_down else y)


def turned_region(reference: Any, picture: Any, stored: bool = False) -> Any:
    """The reference of a region, of a picture that may have been turned.

    Args:
        reference: for `as_mask`.
        picture: as `to_rgb` gave it; or an error in its place.
        stored (`bool`): whether the region is in the pixels as they are stored, rather than as they are displayed.

    Returns:
        A reference in the pixels of the picture as it is displayed.
    """
    orientation = picture.info.get(_NOTE, 1) if isinstance(picture, Image.Image) else 1
    if reference is None or orientation == 1 or isinstance(reference, Exception):
        return reference
    return TurnedRegion(reference, orientation, stored)


@dataclass(frozen=True)
class TurnedRegion:
    """A region of a picture that its EXIF orientation turns. A region reference.

    Attributes:
        reference: for `as_mask`.
        orientation (`int`): 2 to 8.
        stored (`bool`): whether it is in the pixels as they are stored.
    """

    reference: Any
    orientation: int
    stored: bool = False

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        """The region in the picture as it is displayed, of shape (H, W).

        Raises:
            MaskError: If it is none; where it fits the stored pixels only, the message says so.
        """
        swaps = _TURNS[self.orientation][0]
        stored_size = (width, height) if swaps else (height, width)
        if self.stored:
            return np.ascontiguousarray(turned(as_mask(self.reference, *stored_size), self.orientation))
        try:
            return as_mask(self.reference, height, width)
        except MaskError as error:
            if not swaps or not self._fits(*stored_size):
                raise
            raise MaskError(
                f"The region fits the picture's {width}x{height} pixels (height x width) as they are stored, but its "
                f"EXIF orientation {self.orientation} shows it as {height}x{width}. If regions are in the stored "
                "pixels, give --stored-orientation (from Python: stored_orientation=True); to transpose the mask would "
                "be wrong."
            ) from error

    def _fits(self, height: int, width: int) -> bool:
        try:
            as_mask(self.reference, height, width)
        except MaskError:
            return False
        return True


__all__ = [
    "TurnedRegion",
    "note_orientation",
    "orientation_of",
    "stored_orientation_of",
    "turned",
    "turned_point",
    "turned_region",
]
