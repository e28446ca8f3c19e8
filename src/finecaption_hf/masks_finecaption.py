"""Any form of a region -> one binary (H, W) mask, and the keys under which a region may stand in a row, for every door.

The forms themselves are in the two files that are imported here.

H, W: height and width of the image in pixels. Arrays are row-major (H, W), 0 is the top left; coordinates are (x, y) in
pixels.

References come from files and from strangers. Everything here ends in a region with at least one pixel or in a
`MaskError`, and nothing is allocated on the word of the input: its size is compared with the image's first, and the
work it may cost is bounded by the image.
"""

from collections.abc import Collection, Mapping, Sequence
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
    is_coloured,
    is_sequence,
)
from .polygons_finecaption import box_mask, geojson_mask, polygon_mask

REGION_KEYS = ("mask", "segmentation", "mask_rle", "mask_file", "polygon", "box_xyxy", "counts", "coordinates")
"""What a region may stand under in a row. The first three hold any region reference; the last two have a partner."""
_HOLDERS = REGION_KEYS[:3]
_PARTNERS = {"counts": "size", "coordinates": "type"}
_NEEDED = (
    "A region is one of mask, segmentation or mask_rle (any reference), polygon, box_xyxy, mask_file, size and counts "
    "(COCO RLE), type and coordinates (GeoJSON)."
)
# Other tools' words, in small letters without marks and plural, by what is probably meant.
_MEANT = {
    "box_xyxy = [x0, y0, x1, y1] in pixels": "box boxe xyxy bboxxyxy boundingbox rect rectangle",
    "box_xyxy = [x, y, x + width, y + height], since a bbox is [x, y, width, height]": "bbox bboxe xywh bboxxywh roi",
    "mask_file, the name of a mask picture": "maskpath maskfilename maskname maskurl maskimage segmentationfile",
    "mask": "region rle cocorle rlemask segm seg segmentationmask maskb64 binarymask alpha bitmap geometry",
    "polygon, an outline in pixels": "point contour outline vertice vertex poly",
    "regions, a list of such rows": "annotation object shape instance entity entitie detection segment",
}


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
        self.box_xyxy = box_around(self.pixels)
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
              (H, W, 1): bool, {0, 1} or {0, 255}. A palette or colour image, or an array of its colours, is taken
              where these are grey; an EXIF orientation is applied.
            - `{"size": [H, W], "counts": ...}`: COCO RLE, compressed (str, bytes) or uncompressed (list of runs).
            - `{"box_xyxy": [x0, y0, x1, y1]}` or a bare list of 4 numbers: a box.
            - `{"polygon": ...}` or a bare list: one polygon `[x, y, x, y, ...]` or `[[x, y], ...]`; or several,
              `[[x, y, ...], [x, y, ...]]`, whose union is the region (COCO's `segmentation`).
            - GeoJSON `{"type": "Polygon" | "MultiPolygon", "coordinates": ...}`: rings after the first of a polygon are
              holes.
            - `{"mask": ...}`, and in its place `segmentation` or `mask_rle`: any of these.
            - str: a CompositionCap blob, see `decode_mask`. A str is never a path.
            - object with `__region_mask__(height, width)`: it makes the mask itself, such as a region whose file has
              shares of width and height.
            - `RegionMask`: one that was checked before.

            Other keys of a dict may be there as well, see `read_region`.
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
    if hasattr(reference, "__region_mask__"):
        return array_mask(reference.__region_mask__(height, width), (height, width))
    return array_mask(reference, (height, width))


def is_region_reference(x: Any) -> bool:
    """Whether `x` has the form of exactly one region reference, as opposed to a container of references.

    Args:
        x: Anything. Only its form is looked at; `as_mask` judges the content.

    Returns:
        `bool`: True for `None`, str, dict, PIL images, `RegionMask`s, objects with `__region_mask__`, and arrays or
        tensors of shape (H, W), (1, H, W), (H, W, 1) or, of bytes, (H, W, 3 or 4). False for everything else, lists
        and tuples among it: a bare box or polygon is a reference for `as_mask` only, since where several regions are
        given a list is a container.
    """
    if x is None or isinstance(x, (str, dict, Image.Image)) or _is_checked(x):
        return True
    if isinstance(x, (list, tuple)) or not hasattr(x, "__array__"):
        return hasattr(x, "__region_mask__")
    try:
        array = x if isinstance(getattr(x, "shape", None), tuple) else np.asarray(x)  # torch.Size is a tuple
        shape, dtype = array.shape, array.dtype
    except Exception:  # whatever a foreign __array__ raises: it is no reference
        return False
    return len(shape) == 2 or (len(shape) == 3 and (1 in (shape[0], shape[2]) or is_coloured(shape, dtype)))


def box_around(region: BoolArray) -> tuple[int, int, int, int]:
    """The smallest box_xyxy around a mask bool (H, W) with at least one True: in pixels, x1 and y1 exclusive."""
    columns = np.flatnonzero(region.any(axis=0))
    rows = np.flatnonzero(region.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def read_region(row: Mapping[Any, Any], own: Collection[str] = (), *, closed: bool = False) -> tuple[str | None, Any]:
    """Find the region in a row. The same keys mean the same in files, data sets, chats and `as_mask`.

    Args:
        row: one of `REGION_KEYS`, beside other keys. `None` under a key counts as absent.
        own: keys that are known not to be a region, whatever they hold.
        closed (`bool`): whether other keys are errors. If not, they are the user's, unless they look like a region.

    Returns:
        The key and the reference for `as_mask`; for `mask_file`, `{"mask_file": name}`, which only the reader of a data
        set can open. `(None, None)` is the whole image.

    Raises:
        MaskError: If there are two regions, a key is a misspelt one or another tool's word for one, or, where no region
            was given nor `None` under one of its keys, any other key holds a list or an object.
    """
    given = [key for key in REGION_KEYS if row.get(key) is not None]
    if len(given) > 1:
        raise MaskError(f"{arrived(row)} has more than one region: {', '.join(given)}. Give one of them.")
    partner = _PARTNERS.get(given[0]) if given else None
    for key, value in row.items():
        if value is None or key in REGION_KEYS or key in own or key == partner:
            continue
        meant, is_misspelt = _meant(key, value)
        shown = f"The key {key[:32]!a}" if isinstance(key, str) else arrived(key)
        if meant is not None and (is_misspelt or not given or closed):
            is_open = meant.startswith("box_xyxy =") and "xy" not in key.casefold()  # whether the word says the order
            if is_open and (box := _four_numbers(value)) is not None:
                raise MaskError(_both_readings(shown, box))
            raise MaskError(f"{shown} is none of a region's; probably meant is {meant}. {_NEEDED}")
        if closed:
            raise MaskError(f"{shown} means nothing here. {_NEEDED}")
        if not given and _is_nested(value) and not any(name in row for name in REGION_KEYS):
            raise MaskError(
                f"{shown} holds a list or an object, and there is no region. {_NEEDED} If the whole image is meant, "
                "say so: 'mask': null."
            )
    if not given:
        return None, None
    if given[0] in _HOLDERS:
        return given[0], row[given[0]]
    return given[0], {name: row.get(name) for name in (partner, given[0]) if name is not None}


def _four_numbers(value: Any) -> list[float] | None:
    """The numbers of what may be a box, `None` where it is something else."""
    if not is_sequence(value) or len(value) != 4:
        return None
    numbers = [each for each in value if isinstance(each, (int, float)) and not isinstance(each, bool)]
    return numbers if len(numbers) == 4 and all(abs(each) < 1e9 for each in numbers) else None


def _both_readings(shown: str, box: list[float]) -> str:
    """What four numbers may be of which nobody said whether they are corners, or a corner and a size."""
    x, y, width, height = box
    readings = []
    for form, corners in (("x, y, width, height", [x, y, x + width, y + height]), ("corners", box)):
        is_box = corners[0] < corners[2] and corners[1] < corners[3]
        readings.append(f"{form}, which is {f'box_xyxy {_listed(corners)}' if is_box else 'no box here'}")
    return (
        f"{shown} holds {_listed(box)}. They may be {readings[0]}, or {readings[1]}. Say which: --box-format xywh or "
        "xyxy, or the key box_xyxy."
    )


def _listed(numbers: Sequence[float]) -> str:
    return f"[{', '.join(f'{number:g}' for number in numbers)}]"


def _is_nested(value: Any) -> bool:
    return is_sequence(value) or isinstance(value, Mapping)


def _meant(key: Any, value: Any) -> tuple[str | None, bool]:
    """What a key probably means that looks like a region's, and whether it is a misspelt one of `REGION_KEYS`."""
    word = "".join(filter(str.isalnum, key[:64].casefold() if isinstance(key, str) else "")).removesuffix("s")
    if isinstance(value, (bool, int, float)) or (
        isinstance(value, str) and not word.startswith(("mask", "seg", "rle"))
    ):
        return None, False  # a number is no region, and a text only as a blob or the name of a file
    misspelt = next((known for known in REGION_KEYS if word == known.replace("_", "").removesuffix("s")), None)
    return misspelt or next((meant for meant, words in _MEANT.items() if word in words.split()), None), bool(misspelt)


def _dict_mask(reference: dict[Any, Any], height: int, width: int) -> BoolArray:
    key, region = read_region(reference)
    for _ in range(2):
        if key in _HOLDERS and isinstance(region, dict):  # such as an annotation of COCO under 'mask'
            key, region = read_region(region)
    if key is None or (key in _HOLDERS and isinstance(region, dict)):
        raise MaskError(f"{arrived(reference)} describes no region, or one within others. {_NEEDED}")
    if key in _HOLDERS:
        return as_mask(region, height, width)
    if key == "mask_file":
        raise MaskError(
            f"{arrived(region[key])} under 'mask_file' names a file, which only readers of data sets open, beside the "
            "pictures. Open it (PIL.Image.open), then pass its content."
        )
    if key == "counts":
        return decode_rle(region, height, width)
    if key == "coordinates":
        return geojson_mask(region["type"], region[key], height, width)
    return (box_mask if key == "box_xyxy" else polygon_mask)(region[key], height, width)


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
    "REGION_KEYS",
    "MaskError",
    "RegionMask",
    "as_mask",
    "box_around",
    "decode_mask",
    "decode_rle",
    "is_region_reference",
    "read_region",
]
