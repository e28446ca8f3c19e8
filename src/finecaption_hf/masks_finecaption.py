"""Any form of a region -> one binary (H, W) mask. The forms themselves are in the two files that are imported here.

H, W: height and width of the image in pixels. Arrays are row-major (H, W), 0 is the top left; coordinates are (x, y) in
pixels.

References come from files and from strangers. Everything here ends in a region with at least one pixel or in a
`MaskError`, and nothing is allocated on the word of the input: its size is compared with the image's first, and the
work it may cost is bounded by the image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from .mask_codecs_finecaption import (
    BoolArray,
    MaskError,
    array_mask,
    arrived,
    check_size,
    decode_mask,
    decode_rle,
    encode_mask,
    encode_rle,
    is_sequence,
)
from .polygons_finecaption import box_mask, geojson_mask, polygon_mask


class RegionMask:
    """A region of an image that was checked once. Whatever takes a reference takes it as it is.

    Args:
        reference: as for `as_mask`; a `RegionMask` of that size is shared, not copied.
        height, width (`int`): size of the image, (H, W) in pixels.

    Attributes:
        pixels (`np.ndarray` of shape `(H, W)`): bool, with at least one True.
        is_whole (`bool`): whether the whole image was meant: the reference was `None`.
        box_xyxy (`tuple[int, int, int, int]`): the smallest box around it, in pixels, right and lower end exclusive.
        area (`int`): its number of pixels.

    Raises:
        MaskError: As `as_mask`.
    """

    def __init__(self, reference: Any, height: int, width: int) -> None:
        self.is_whole: bool = reference is None or (_is_checked(reference) and reference.is_whole)
        self.pixels = as_mask(reference, height, width)
        self.box_xyxy = _box(self.pixels)
        self.area = int(np.count_nonzero(self.pixels))


def _is_checked(reference: Any) -> bool:
    # By name: of code that lies beside weights the library may load this file twice, with two classes.
    return type(reference).__name__ == RegionMask.__name__


def as_mask(reference: Any, height: int, width: int) -> BoolArray:
    """Turn one region reference into a binary mask at the image's size.

    Args:
        reference: What describes the region, in the pixels of the image:

            - `None`: the whole image.
            - Array, tensor (any device and dtype), PIL image or object with `__array__` of shape (H, W), (1, H, W) or
              (H, W, 1): bool, {0, 1} or {0, 255}. A palette or colour image is taken where its colours are grey; an
              EXIF orientation is applied.
            - `{"size": [H, W], "counts": ...}`: COCO RLE, compressed (str, bytes) or uncompressed (list of runs).
            - `{"box_xyxy": [x0, y0, x1, y1]}` or a bare list of 4 numbers: a box.
            - `{"polygon": ...}` or a bare list: one polygon `[x, y, x, y, ...]` or `[[x, y], ...]`; or several,
              `[[x, y, ...], [x, y, ...]]`, whose union is the region (COCO's `segmentation`).
            - GeoJSON `{"type": "Polygon" | "MultiPolygon", "coordinates": ...}`: rings after the first of a polygon are
              holes.
            - str: a CompositionCap blob, see `decode_mask`. A str is never a path.
            - `RegionMask`: one that was checked before.

            Keys of a dict that hold `None` count as absent.
        height (`int`): Height of the image in pixels.
        width (`int`): Width of the image in pixels.

    Returns:
        `np.ndarray` of shape `(H, W)`, bool, C-contiguous, with at least one True; shares no memory with `reference`,
        unless that is a `RegionMask`.

    Raises:
        MaskError: If the reference has another form, size or value range, or holds no pixel of the image.

    Coordinates may be fractions. Boxes and polygons that reach over the border are clipped, those wholly outside or
    without area are refused; a part of several polygons that covers no pixel is left out, with a logged warning. A
    shape so small that it covers no pixel's centre still marks the pixels under its middle. Polygons follow the
    even-odd rule and may cross themselves. Coordinates that look like fractions of the image are taken as pixels too,
    with a `UserWarning`.
    """
    height, width = check_size(height, width)
    if reference is None:
        return np.ones((height, width), dtype=np.bool_)
    if _is_checked(reference):
        if reference.pixels.shape != (height, width):
            raise MaskError(
                f"The region is one of an image of {'x'.join(map(str, reference.pixels.shape))}, but this one is "
                f"{height}x{width} (height x width). Read its reference for this image."
            )
        return reference.pixels
    if isinstance(reference, str):
        return decode_mask(reference, height, width)
    if isinstance(reference, dict):
        return _dict_mask(reference, height, width)
    if isinstance(reference, (list, tuple)):
        return _list_mask(reference, height, width)
    return array_mask(reference, (height, width))


def is_region_reference(x: Any) -> bool:
    """Whether `x` has the form of exactly one region reference, as opposed to a container of references.

    Args:
        x: Anything. Only its form is looked at; `as_mask` judges the content.

    Returns:
        `bool`: True for `None`, str, dict, PIL images, `RegionMask`s, and arrays or tensors of shape (H, W), (1, H, W)
        or (H, W, 1). False for everything else, lists and tuples among it: a bare box or polygon is a reference for
        `as_mask` only, since where several regions are given a list is a container.
    """
    if x is None or isinstance(x, (str, dict, Image.Image)) or _is_checked(x):
        return True
    if isinstance(x, (list, tuple)) or not hasattr(x, "__array__"):
        return False
    try:
        shape = getattr(x, "shape", None)
        if not isinstance(shape, tuple):  # torch.Size is a tuple
            shape = np.asarray(x).shape
    except Exception:  # whatever a foreign __array__ raises: it is no reference
        return False
    return len(shape) == 2 or (len(shape) == 3 and 1 in (shape[0], shape[2]))


def mask_to_box(mask: Any) -> tuple[int, int, int, int]:
    """The smallest box around a mask.

    Args:
        mask: Array, tensor or PIL image of shape (H, W): bool, {0, 1} or {0, 255}.

    Returns:
        `tuple[int, int, int, int]`: box_xyxy `(x0, y0, x1, y1)` in pixels, x1 and y1 exclusive.

    Raises:
        MaskError: If the mask is empty, not 2-D or not binary.
    """
    return _box(array_mask(mask))


def _box(region: BoolArray) -> tuple[int, int, int, int]:
    columns = np.flatnonzero(region.any(axis=0))
    rows = np.flatnonzero(region.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _dict_mask(reference: dict[Any, Any], height: int, width: int) -> BoolArray:
    kinds = [key for key in ("counts", "box_xyxy", "polygon", "coordinates") if reference.get(key) is not None]
    if len(kinds) != 1:
        hint = "Give exactly one of: size and counts (COCO RLE), box_xyxy, polygon, type and coordinates (GeoJSON)."
        if "bbox" in reference:
            hint = "A COCO bbox is [x, y, width, height]: give {'box_xyxy': [x, y, x + width, y + height]}."
        if "segmentation" in reference:
            hint = "This looks like a COCO annotation: pass its 'segmentation'."
        if "geometry" in reference:
            hint = "This looks like a GeoJSON feature: pass its 'geometry'."
        raise MaskError(f"{arrived(reference)} describes {'no' if not kinds else 'more than one'} region. {hint}")
    value = reference[kinds[0]]
    if kinds == ["counts"]:
        return decode_rle(reference, (height, width))
    if kinds == ["box_xyxy"]:
        return box_mask(value, height, width)
    if kinds == ["polygon"]:
        return polygon_mask(value, height, width)
    return geojson_mask(reference.get("type"), value, height, width)


def _list_mask(reference: Sequence[Any], height: int, width: int) -> BoolArray:
    if len(reference) == height and _is_nested_mask(reference, width):
        raise MaskError("A nested list of pixels arrived, which reads as polygons. Pass an array: np.array(mask).")
    others = (str, dict, Image.Image, type(None))
    kinds = {kind.__name__ for kind in set(map(type, reference)) if issubclass(kind, others)}
    if kinds:
        raise MaskError(
            f"{arrived(reference)} ({', '.join(sorted(kinds))}) arrived, but as_mask takes one region. Pass its "
            "entries one at a time."
        )
    if len(reference) == 4 and not any(map(is_sequence, reference)):
        return box_mask(reference, height, width)
    return polygon_mask(reference, height, width)


def _is_nested_mask(rows: Sequence[Any], width: int) -> bool:
    """Whether rows of `width` pixels of 0 and 1 (or 255) arrived: as polygons they would give one odd pixel."""
    if width < 6:  # too short for a polygon, refused anyway or taken as points
        return False
    return all(isinstance(row, (list, tuple)) and len(row) == width for row in rows) and all(
        isinstance(pixel, (int, float)) and pixel in (0, 1, 255) for row in rows for pixel in row
    )


__all__ = [
    "MaskError",
    "RegionMask",
    "as_mask",
    "decode_mask",
    "decode_rle",
    "encode_mask",
    "encode_rle",
    "is_region_reference",
    "mask_to_box",
]
