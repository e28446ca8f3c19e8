"""Any region reference -> a binary (H, W) array, and the two compact codecs (CompositionCap blob, COCO RLE).

H, W: height and width of the image in pixels. Arrays are row-major (H, W), 0 is the top left; coordinates are (x, y) in
pixels, where the pixel in row r and column c covers [c, c + 1) x [r, r + 1) and has its centre at (c + 0.5, r + 0.5).
A pixel belongs to a box or polygon when its centre does; left and top borders are inside, right and bottom ones are
not, so shapes that share a border share no pixel.

References come from files and from strangers. Everything here ends in a region with at least one pixel or in a
`MaskError`, and nothing is allocated on the word of the input: its size is compared with the image's first, and the
work it may cost is bounded by the image.
"""

import base64
import binascii
import itertools
import operator
import re
import struct
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

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

# No image has more pixels; below it, sums of run lengths and pixel indices stay far from the end of int64.
_MAX_PIXELS = 2**40
# decode_rle has no image to compare with, so 20 bytes of hostile text could ask for any allocation (at most 256 MiB).
_MAX_RLE_PIXELS = 2**28
# Farther out, a coordinate is not a pixel position any more, and double precision would soon round it to whole pixels.
_MAX_COORDINATE = 1e9
# Outlines of real regions have some thousand vertices; these bound what one hostile reference can cost in time.
_MAX_VERTICES = 1_000_000
_MAX_RINGS = 10_000
_BASE_WORK = 2**26
_WORK_PER_PIXEL = 64
_WORK_PER_CROSSING = 16
# Crossings of edges and pixel rows handled at once: bounds the temporary arrays to some tens of MiB.
_CROSSINGS_PER_CHUNK = 2**18
# Points count as lying on one line when they leave it by less than this, relative to the largest coordinate.
_FLATNESS = 1e-12

# A run in COCO's compressed text takes at most this many characters: 12 x 5 bits hold any number up to 2**59.
_MAX_RLE_CHUNKS = 12

# Magic number, deflate, no flags, no time: the same mask gives the same text on every day and machine.
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
# The base64 text of the first three bytes of any gzip stream.
_BLOB_START = "H4sI"
# A gzip header may hold a file name and a comment; more than this is padding.
_GZIP_SLACK = 1024

_PATH = re.compile(r"^(https?:|file:|data:|[.~/\\]|[A-Za-z]:[\\/])|\.[A-Za-z][A-Za-z0-9]{1,4}$")
_IMAGE_FILE_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "SUkq", "TU0A", "Qk")

_GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_COLOUR_MODES = ("LA", "RGB", "RGBA")
_PALETTE_MODES = ("P", "PA")

_BoolArray = NDArray[np.bool_]
_FloatArray = NDArray[np.float64]
_Size = tuple[int, int]


class MaskError(ValueError):
    """A region reference that cannot be turned into a region; the message says what to do about it."""


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


def as_mask(reference: Any, height: int, width: int) -> _BoolArray:
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
        height (`int`): Height of the image in pixels.
        width (`int`): Width of the image in pixels.

    Returns:
        `np.ndarray` of shape `(H, W)`, bool, C-contiguous, with at least one True; shares no memory with `reference`,
        unless that is a `RegionMask`.

    Raises:
        MaskError: If the reference has another form, size or value range, or holds no pixel of the image.

    Coordinates may be fractions. Boxes and polygons that reach over the border are clipped, those wholly outside or
    without area are refused. A shape so small that it covers no pixel's centre still marks pixels: a box the pixel
    under its middle (per axis), a polygon all that it reaches into. Polygons follow the even-odd rule and may cross
    themselves. Coordinates that look like fractions of the image are taken as pixels too, with a `UserWarning`.
    """
    height, width = _check_size(height, width)
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
        return _dict_region(reference, height, width)
    if isinstance(reference, (list, tuple)):
        return _list_region(reference, height, width)
    return _array_region(reference, (height, width))


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


def encode_mask(mask: Any) -> str:
    """Encode a mask as CompositionCap does: base64(gzip(uint8 H x W)), row-major, values 0 and 1.

    Args:
        mask: Array, tensor or PIL image of shape (H, W): bool, {0, 1} or {0, 255}.

    Returns:
        `str`: ASCII text without line breaks, the same for the same mask (no time stamp). It does not hold the shape.

    Raises:
        MaskError: If the mask is empty, not 2-D or not binary.
    """
    pixels = _array_region(mask, None).data  # its bytes are 0 and 1, see _binary
    deflate = zlib.compressobj(level=6, wbits=-15)
    body = deflate.compress(pixels) + deflate.flush()
    trailer = struct.pack("<II", zlib.crc32(pixels), pixels.nbytes & 0xFFFFFFFF)
    return base64.b64encode(_GZIP_HEADER + body + trailer).decode("ascii")


def decode_mask(blob: str, height: int, width: int) -> _BoolArray:
    """Decode a CompositionCap blob, the inverse of `encode_mask`.

    Args:
        blob (`str`): base64(gzip(uint8 H x W)), row-major, values {0, 1} or {0, 255}. Standard base64 alphabet with
            padding; white space and line breaks are refused.
        height (`int`): Height of the image in pixels.
        width (`int`): Width of the image in pixels.

    Returns:
        `np.ndarray` of shape `(H, W)`, bool, with at least one True.

    Raises:
        MaskError: If the text is not canonical base64, not exactly one intact gzip member (checksum and length
            included), or does not hold H x W bytes; if values are not binary or the mask is empty.

    Never more than H x W + 1 bytes are decompressed, and text longer than any sensible encoding of H x W bytes is
    refused before it is decoded.
    """
    height, width = _check_size(height, width)
    if not isinstance(blob, str):
        raise MaskError(
            f"{_describe(blob)} arrived where a blob, the str base64(gzip(uint8 H x W)), is needed. Make one with "
            "encode_mask; decode ASCII bytes with .decode('ascii')."
        )
    if not blob.startswith(_BLOB_START):
        raise MaskError(
            f"{_describe(blob)} is no mask blob: base64 of a gzip stream starts with {_BLOB_START!r}. "
            f"{_string_hint(blob)}"
        )
    num_pixels = height * width
    raw = _decode_base64(blob, num_pixels)
    inflate = zlib.decompressobj(wbits=31)
    try:
        pixels = inflate.decompress(raw, num_pixels + 1)
    except zlib.error as error:
        raise MaskError(
            f"The blob is no intact gzip stream ({error}). Needed is base64(gzip(uint8 {height}x{width})); make it "
            "anew with encode_mask."
        ) from error
    if len(pixels) > num_pixels:
        raise MaskError(
            f"The blob holds more than the {num_pixels} bytes of a {height}x{width} mask. Give the mask at the "
            "image's size."
        )
    if not inflate.eof:
        raise MaskError(
            f"The gzip stream in the blob is truncated after {len(pixels)} of {num_pixels} bytes of pixels. Give the "
            "whole blob."
        )
    if len(pixels) < num_pixels:
        raise MaskError(
            f"The blob holds {len(pixels)} bytes but a {height}x{width} mask has {num_pixels}. Give the mask at the "
            "image's size."
        )
    if inflate.unused_data:
        raise MaskError(
            f"{len(inflate.unused_data)} bytes follow the gzip stream in the blob, which has to be exactly one gzip "
            "member. Cut them off, or make the blob anew with encode_mask."
        )
    return _binary(np.frombuffer(pixels, dtype=np.uint8).reshape(height, width), "blob")


def encode_rle(mask: Any) -> dict[str, Any]:
    """Encode a mask as COCO's compressed run-length encoding.

    Args:
        mask: Array, tensor or PIL image of shape (H, W): bool, {0, 1} or {0, 255}.

    Returns:
        `dict`: `{"size": [H, W], "counts": str}`, as pycocotools writes it (there `counts` holds the same as bytes).

    Raises:
        MaskError: If the mask is empty, not 2-D or not binary.

    The format: lengths of alternating runs of 0 and 1 down the columns (column-major), starting with 0. From the fourth
    run on, the difference to the run two before is stored. A number is cut into chunks of 5 bits, lowest first, the
    last one carrying the sign; bit 5 says that another chunk follows, and adding 48 makes it a printable character.
    Source: the COCO API (github.com/cocodataset/cocoapi), common/maskApi.c.
    """
    region = _array_region(mask, None)
    height, width = region.shape
    columns = region.T.ravel()
    changes = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    starts_inside = [0] if columns[0] else []  # runs start with 0, so a region that starts at once has a run of none
    borders = np.concatenate([starts_inside, [0], changes, [columns.size]]).astype(np.int64)
    return {"size": [height, width], "counts": _compress_counts(borders[1:] - borders[:-1])}


def decode_rle(rle: Any) -> _BoolArray:
    """Decode a COCO run-length encoding, the inverse of `encode_rle`.

    Args:
        rle (`dict`): `{"size": [H, W], "counts": ...}` with counts compressed (str, bytes) or as a list of run lengths
            (whole numbers; JSON's 3.0 counts as 3). The format is described at `encode_rle`.

    Returns:
        `np.ndarray` of shape `(H, W)`, bool, C-contiguous, with at least one True.

    Raises:
        MaskError: If keys are missing, counts are malformed, negative or do not sum to H x W, or the mask is empty.
            Without an image to compare with, more than 2**28 pixels are refused; `as_mask` has no such limit.
    """
    if not isinstance(rle, dict):
        raise MaskError(f"{_describe(rle)} arrived where COCO RLE is needed: a dict {{'size': [H, W], 'counts': ...}}.")
    height, width = _rle_size(rle)
    if height * width > _MAX_RLE_PIXELS:
        raise MaskError(
            f"The RLE claims a size of {height}x{width}, more than the {_MAX_RLE_PIXELS} pixels that are decoded "
            "unasked. Use as_mask with the image's height and width."
        )
    return _runs_region(rle["counts"], height, width)


def mask_to_box(mask: Any) -> tuple[int, int, int, int]:
    """The smallest box around a mask.

    Args:
        mask: Array, tensor or PIL image of shape (H, W): bool, {0, 1} or {0, 255}.

    Returns:
        `tuple[int, int, int, int]`: box_xyxy `(x0, y0, x1, y1)` in pixels, x1 and y1 exclusive.

    Raises:
        MaskError: If the mask is empty, not 2-D or not binary.
    """
    return _box(_array_region(mask, None))


def _box(region: _BoolArray) -> tuple[int, int, int, int]:
    columns = np.flatnonzero(region.any(axis=0))
    rows = np.flatnonzero(region.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


# --- What arrived ----------------------------------------------------------------------------------------------------


def _describe(value: Any) -> str:
    """Name a hostile value in an error. Never repr() it: deep lists recurse, huge integers raise, long texts flood."""
    if value is None or isinstance(value, (bool, float)):
        return f"The value {value!r}"
    if isinstance(value, int):
        return f"The number {value}" if value.bit_length() <= 64 else f"An integer of {value.bit_length()} bits"
    if isinstance(value, str):
        return f"The str {value[:32]!a}" + (f"... of {len(value)} characters" if len(value) > 32 else "")
    if isinstance(value, (list, tuple)):
        return f"A {'list' if isinstance(value, list) else 'tuple'} of {len(value)} entries"
    if isinstance(value, dict):
        keys = [ascii(key[:32]) for key in itertools.islice(value, 8) if isinstance(key, str)]
        return f"A dict with the keys [{', '.join(keys)}]"
    if isinstance(value, np.ndarray):
        return f"An array of shape {value.shape} and dtype {value.dtype}"
    return f"An object of type {type(value).__name__}"


def _string_hint(blob: str) -> str:
    if blob.startswith(_IMAGE_FILE_STARTS):
        return "This is an image file in base64: decode it, open it with PIL.Image.open, then pass the image."
    if blob.startswith(("{", "[")):
        return "This looks like JSON: parse it with json.loads, then pass the result."
    if _PATH.search(blob[-4096:] if len(blob) > 4096 else blob):
        return "This looks like a path or URL, not a region: open the file (PIL.Image.open), then pass its content."
    return "Make blobs with encode_mask."


def _check_size(height: Any, width: Any) -> _Size:
    size = []
    for name, value in (("height", height), ("width", width)):
        try:
            number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
        except (TypeError, ValueError, RuntimeError):  # RuntimeError: tensors without data
            number = None
        if number is None or number < 1:
            raise MaskError(f"{_describe(value)} is no {name}: give the image's {name} in pixels, a positive int.")
        size.append(number)
    if size[0] * size[1] > _MAX_PIXELS:
        raise MaskError("The image would have more than 2**40 pixels. Give its height and width in pixels.")
    return size[0], size[1]


# --- Arrays, tensors, images -----------------------------------------------------------------------------------------


def _array_region(value: Any, size: _Size | None) -> _BoolArray:
    """Array-like -> region of `size`, or of its own two dimensions where size is None."""
    if isinstance(value, Image.Image):
        array = _image_array(value, size)
    elif isinstance(value, torch.Tensor):
        if not value.is_nested:  # those have no shape, and are refused below
            _check_shape(tuple(value.shape), size)  # before copying: expanded tensors look small and are not
        array = _tensor_array(value)
    else:
        array = _foreign_array(value)
    return _binary(array.reshape(_check_shape(array.shape, size)), "mask")


def _check_shape(shape: tuple[int, ...], size: _Size | None) -> tuple[int, ...]:
    plane = shape if size is None else size
    if len(plane) != 2 or shape not in (plane, (1, *plane), (*plane, 1)):
        raise MaskError(_shape_message(shape, size))
    return plane


def _tensor_array(tensor: torch.Tensor) -> NDArray[Any]:
    try:
        plain = tensor.detach()
        if plain.is_floating_point() and plain.dtype not in (torch.float16, torch.float32, torch.float64):
            plain = plain.to(torch.float32)  # bfloat16 and float8 have no numpy type; widening is exact
        # A view with the lazy negative bit (the imaginary part of a conjugate) has no numpy form.
        return plain.cpu().resolve_neg().numpy()
    except (RuntimeError, TypeError) as error:
        raise MaskError(
            f"A tensor of dtype {tensor.dtype} and layout {tensor.layout} on {tensor.device} has no readable pixels "
            f"({str(error)[:100]}). Give a dense bool, integer or float tensor."
        ) from error


def _foreign_array(value: Any) -> NDArray[Any]:
    if not hasattr(value, "__array__"):
        hint = "Give an array, a tensor, a PIL image, COCO RLE, a box, a polygon, a blob made by encode_mask, or None."
        if isinstance(value, (bytes, bytearray, memoryview)):
            hint = "Bytes are ambiguous: pass a blob as str (.decode('ascii')), pixels as an array (np.frombuffer)."
        elif hasattr(value, "__fspath__"):
            hint = "A path is no region reference: open the file (PIL.Image.open), then pass its content."
        raise MaskError(f"{_describe(value)} is no region reference. {hint}")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise MaskError("A masked array with hidden entries is no region reference. Decide them with .filled(0) first.")
    try:
        return np.asarray(value)
    except Exception as error:  # whatever a foreign __array__ raises
        raise MaskError(
            f"{_describe(value)} gave no array ({type(error).__name__}). Pass a numpy array of shape (H, W)."
        ) from error


def _image_array(image: Image.Image, size: _Size | None) -> NDArray[Any]:
    """PIL image -> (H, W) grey values. The size is compared before any pixel is decoded."""
    shape = (image.height, image.width)
    if size is not None and sorted(shape) != sorted(size):  # sorted: an EXIF orientation may turn it
        raise MaskError(_shape_message(shape, size))
    mode = image.mode
    if mode not in _GREY_MODES + _COLOUR_MODES + _PALETTE_MODES:
        raise MaskError(f"A PIL image of mode {mode!r} is no mask. Convert it to mode 'L' with values 0 and 255.")
    try:
        upright = ImageOps.exif_transpose(image)
        array = np.asarray(upright.convert("RGBA") if mode in _PALETTE_MODES else upright)
    except Exception as error:  # image decoders raise nearly anything on broken files
        raise MaskError(
            f"The PIL image could not be decoded ({type(error).__name__}). Give an intact image or an array."
        ) from error
    if mode in _GREY_MODES:
        return array
    return _grey(array, mode)


def _grey(channels: NDArray[Any], mode: str) -> NDArray[Any]:
    """(H, W, C) channels -> (H, W), where all colours are the same and transparency says nothing else."""
    has_alpha = mode != "RGB"
    colours = channels[..., :-1] if has_alpha else channels
    grey: NDArray[Any] = colours[..., 0]
    if not all(np.array_equal(grey, colours[..., i]) for i in range(1, colours.shape[-1])):
        raise MaskError(
            f"The PIL image of mode {mode!r} is coloured, so it does not say which pixels are the region. Pick them, "
            "for a label image with np.asarray(image) == label."
        )
    if has_alpha:
        alpha = channels[..., -1]
        if not (np.all(alpha == 255) or np.array_equal(alpha, grey)):
            raise MaskError(
                f"Colour and transparency of the PIL image of mode {mode!r} say different things. Give the one that "
                "is the mask: image.getchannel('A') or image.convert('L')."
            )
    return grey


def _shape_message(shape: tuple[int, ...], size: _Size | None) -> str:
    arrived = "x".join(map(str, shape)) if shape else "a single number"
    if size is None:
        return f"The mask is {arrived} but has to be two-dimensional (H, W). Give the mask of one region."
    height, width = size
    remedy = "Give the mask at the image's size, or a polygon or box in its pixels."
    if shape == (width, height):
        remedy = "It seems to be transposed: masks are (height, width); PIL's size is (width, height)."
    elif len(shape) == 3 and shape[1:] == size:
        remedy = "These are several regions: pass them one at a time."
    elif len(shape) == 1 or (len(shape) == 2 and shape[1] == 2):
        remedy = "If these are coordinates, pass {'box_xyxy': ...} or {'polygon': ...}."
    return f"The mask is {arrived} but the image is {height}x{width}. {remedy}"


def _binary(array: NDArray[Any], what: str) -> _BoolArray:
    """(H, W) of bool, {0, 1} or {0, 255} -> a new bool array with at least one True."""
    kind = array.dtype.kind
    if kind not in "buif":
        raise MaskError(
            f"The {what} has dtype {array.dtype}, but pixels have to be bool, integer or float. Convert it."
        )
    if kind == "b":
        # Not a copy: a bool array made by frombuffer or view can hold bytes above 1, which would leak into blobs.
        region = np.not_equal(array.view(np.uint8), 0)
    else:
        with np.errstate(invalid="ignore"):
            region = np.not_equal(array, 0)
            top = array.max() if array.size else 0
            binary = (top == 1 or top == 255) and np.array_equal(region, array == top)
        if region.any() and not binary:
            raise MaskError(_values_message(array, what))
    if not region.any():
        height, width = region.shape
        raise MaskError(
            f"The {what} is empty: none of its {height}x{width} pixels is in the region. Give a region with at least "
            "one pixel, or None for the whole image."
        )
    return np.ascontiguousarray(region)


def _values_message(array: NDArray[Any], what: str) -> str:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return f"The {what} holds NaN or infinite values, but has to be binary: bool, 0/1 or 0/255. Replace them first."
    low, high = array.min(), array.max()
    odd = array[(array != 0) & (array != (255 if high == 255 else 1))]
    arrived = f"The {what} holds values such as {odd.flat[0]} (range {low} to {high})"
    remedy = "Threshold it (mask > 0.5)" if array.dtype.kind == "f" else "Pick one label (labels == 3) or threshold it"
    return f"{arrived}, but has to be binary: bool, 0/1 or 0/255. {remedy}."


# --- Blobs -----------------------------------------------------------------------------------------------------------


def _decode_base64(blob: str, num_pixels: int) -> bytes:
    # Deflate grows data by an eighth at worst (9-bit literals); base64 makes 4 characters of 3 bytes.
    limit = (num_pixels + num_pixels // 8 + num_pixels // 64 + _GZIP_SLACK + 2) // 3 * 4
    if len(blob) > limit:
        raise MaskError(
            f"The blob has {len(blob)} characters, but no encoding of {num_pixels} pixels needs more than {limit}. "
            "Give the mask at the image's size, without padding."
        )
    try:
        text = blob.encode("ascii")
        raw = base64.b64decode(text, validate=True)
    except UnicodeEncodeError as error:
        raise MaskError(
            "The blob holds characters that are not ASCII, so it is no base64. Make it anew with encode_mask."
        ) from error
    except binascii.Error as error:
        raise MaskError(
            f"The blob is no intact base64 ({error}). It may be truncated, hold white space (remove it with "
            "''.join(blob.split())) or use another alphabet."
        ) from error
    # Python releases differ in what they let pass (surplus padding, stray last bits): one content, one text.
    if base64.b64encode(raw) != text:
        raise MaskError(
            "The blob is no canonical base64: its padding or last character is wrong. Make it anew with encode_mask."
        )
    return raw


# --- COCO RLE --------------------------------------------------------------------------------------------------------


def _rle_size(rle: dict[Any, Any]) -> _Size:
    for key in ("size", "counts"):
        if key not in rle:
            raise MaskError(
                f"{_describe(rle)} is no COCO RLE: {key!r} is missing. Give {{'size': [H, W], 'counts': ...}}."
            )
    size = rle["size"]
    if not _is_sequence(size) or len(size) != 2:
        raise MaskError(f"{_describe(size)} is no RLE size. Give [height, width] in pixels.")
    # JSON does not tell 480 from 480.0.
    height, width = (int(side) if isinstance(side, float) and side.is_integer() else side for side in size)
    return _check_size(height, width)


def _runs_region(counts: Any, height: int, width: int) -> _BoolArray:
    num_pixels = height * width
    if isinstance(counts, (str, bytes, bytearray)):
        runs = _decompress_counts(counts, num_pixels)
    else:
        runs = _plain_counts(counts, num_pixels)
    if runs.size and (runs.min() < 0 or runs.max() > num_pixels):
        wrong = runs[(runs < 0) | (runs > num_pixels)][0]
        raise MaskError(
            f"The RLE has a run of {wrong} pixels, but runs lie between 0 and the {num_pixels} pixels of "
            f"{height}x{width}. Give the counts as COCO writes them."
        )
    ends = np.cumsum(runs)
    # A sum beyond int64 shows as a negative end, since no single run can step over that half of the range.
    total = int(ends[-1]) if runs.size and ends.min() >= 0 else 0
    if total != num_pixels:
        raise MaskError(
            f"The RLE's counts do not sum to the {num_pixels} pixels of its size {height}x{width} but to {total}. "
            "Give counts and size of the same mask."
        )
    inside = np.arange(runs.size) % 2 == 1
    # Runs go down the columns; the transpose is made row-major by _binary.
    return _binary(np.repeat(inside, runs).reshape(width, height).T, "RLE")


def _plain_counts(counts: Any, num_pixels: int) -> NDArray[np.int64]:
    needed = "Give a str of COCO's compressed counts or a list of whole run lengths."
    if isinstance(counts, torch.Tensor):
        counts = _tensor_array(counts)
    if isinstance(counts, (list, tuple)):
        _check_num_runs(len(counts), num_pixels)
        for kind in set(map(type, counts)):
            if issubclass(kind, bool) or not issubclass(kind, (int, float, np.integer, np.floating)):
                raise MaskError(f"The RLE's counts hold an entry of type {kind.__name__}. {needed}")
        try:
            numbers = np.array(counts) if len(counts) else np.zeros(0, dtype=np.int64)
        except (OverflowError, TypeError, ValueError) as error:
            raise MaskError(f"The RLE's counts could not be read ({type(error).__name__}). {needed}") from error
    elif isinstance(counts, np.ndarray):
        numbers = np.asarray(counts)
    else:
        raise MaskError(f"{_describe(counts)} arrived as the RLE's counts. {needed}")
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf":  # integers beyond 64 bits become objects
        raise MaskError(
            f"The RLE's counts are of shape {numbers.shape} and dtype {numbers.dtype}, or hold numbers beyond 64 "
            f"bits. {needed}"
        )
    _check_num_runs(numbers.size, num_pixels)
    with np.errstate(invalid="ignore"):
        # As floats for the comparison, since uint64 above 2**63 would turn negative in int64.
        floats = numbers.astype(np.float64)
        if not (np.abs(floats) <= 2.0**62).all() or not (floats == np.floor(floats)).all():
            raise MaskError(
                f"The RLE's counts hold a number that is not whole, not finite or beyond all sizes. {needed}"
            )
        return numbers.astype(np.int64)


def _check_num_runs(num_runs: int, num_pixels: int) -> None:
    if num_runs > num_pixels + 1:
        raise MaskError(
            f"The RLE has {num_runs} runs, more than {num_pixels} pixels can have. Give counts and size of the same "
            "mask."
        )


def _decompress_counts(counts: str | bytes | bytearray, num_pixels: int) -> NDArray[np.int64]:
    """COCO's compressed text -> run lengths; the reverse of `_compress_counts`, for all runs at once."""
    # Characters of a number d: at most 1 + |d| / 16. Over all runs, |d| sums to at most twice the pixels.
    if len(counts) > 2 * num_pixels + 16:
        raise MaskError(
            f"The RLE's counts have {len(counts)} characters, more than {num_pixels} pixels can need. Give counts and "
            "size of the same mask."
        )
    try:
        text = counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
    except UnicodeEncodeError as error:
        raise MaskError(
            "The RLE's counts hold characters that are not ASCII. Give the counts as COCO writes them."
        ) from error
    chunks = np.frombuffer(text, dtype=np.uint8) - np.uint8(48)  # characters below '0' wrap to above 63
    if (chunks > 63).any():
        wrong = text[int(np.flatnonzero(chunks > 63)[0])]
        raise MaskError(
            f"The RLE's counts hold the character {chr(wrong)!a}, but COCO uses '0' to 'o' only. Give the counts "
            "as COCO writes them (not zlib- or base64-packed)."
        )
    last = np.flatnonzero((chunks & 0x20) == 0)
    if chunks.size and (not last.size or last[-1] != chunks.size - 1):
        raise MaskError("The RLE's counts end in the middle of a number: they are truncated. Give the whole text.")
    _check_num_runs(last.size, num_pixels)
    if not last.size:
        return np.zeros(0, dtype=np.int64)
    lengths = np.diff(last, prepend=-1)
    if lengths.max() > _MAX_RLE_CHUNKS:
        raise MaskError(
            f"The RLE's counts hold a number of {lengths.max()} characters, beyond all sizes. Give the counts as COCO "
            "writes them."
        )
    first = last - lengths + 1
    shifts = 5 * (np.arange(chunks.size) - np.repeat(first, lengths))
    values = np.add.reduceat((chunks & 0x1F).astype(np.int64) << shifts, first)
    negative = (chunks[last] & 0x10) != 0
    values -= negative * (np.int64(1) << (5 * lengths))
    # A sum beyond int64 may wrap, but only after a run that the caller sees to be beyond all sizes.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _compress_counts(counts: NDArray[np.int64]) -> str:
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    open_ = np.ones(rest.size, dtype=np.bool_)  # runs of which chunks are still to be written
    table = np.zeros((rest.size, _MAX_RLE_CHUNKS), dtype=np.uint8)  # 0 where a run has no such chunk
    for i in range(_MAX_RLE_CHUNKS):
        chunk = rest & 0x1F
        rest >>= 5  # arithmetic: -1 is what remains of a negative number
        more = rest != np.where(chunk & 0x10, -1, 0)
        table[open_, i] = (chunk + np.where(more, 0x20, 0) + 48)[open_]
        open_ &= more
        if not open_.any():
            break
    return str(table[table != 0].tobytes(), "ascii")


# --- Boxes and polygons ----------------------------------------------------------------------------------------------


def _dict_region(reference: dict[Any, Any], height: int, width: int) -> _BoolArray:
    kinds = [key for key in ("counts", "box_xyxy", "polygon", "coordinates") if key in reference]
    if len(kinds) != 1:
        hint = "Give exactly one of: size and counts (COCO RLE), box_xyxy, polygon, type and coordinates (GeoJSON)."
        if "bbox" in reference:
            hint = "A COCO bbox is [x, y, width, height]: give {'box_xyxy': [x, y, x + width, y + height]}."
        if "segmentation" in reference:
            hint = "This looks like a COCO annotation: pass its 'segmentation'."
        if "geometry" in reference:
            hint = "This looks like a GeoJSON feature: pass its 'geometry'."
        raise MaskError(f"{_describe(reference)} describes {'no' if not kinds else 'more than one'} region. {hint}")
    if kinds == ["counts"]:
        size = _rle_size(reference)
        if size != (height, width):
            swapped = " They are swapped: RLE sizes are [height, width]." if size == (width, height) else ""
            raise MaskError(
                f"The RLE is {size[0]}x{size[1]} but the image is {height}x{width}.{swapped} Give the RLE at the "
                "image's size."
            )
        return _runs_region(reference["counts"], height, width)
    if kinds == ["box_xyxy"]:
        return _box_region(reference["box_xyxy"], height, width)
    if kinds == ["polygon"]:
        return _polygons_region([[ring] for ring in _rings(reference["polygon"])], height, width)
    return _polygons_region(_geojson_polygons(reference), height, width)


def _list_region(reference: Sequence[Any], height: int, width: int) -> _BoolArray:
    if len(reference) == height and _is_nested_mask(reference, width):
        raise MaskError("A nested list of pixels arrived, which reads as polygons. Pass an array: np.array(mask).")
    others = (str, dict, Image.Image, type(None))
    kinds = {kind.__name__ for kind in set(map(type, reference)) if issubclass(kind, others)}
    if kinds:
        raise MaskError(
            f"{_describe(reference)} ({', '.join(sorted(kinds))}) arrived, but as_mask takes one region. Pass its "
            "entries one at a time."
        )
    if len(reference) == 4 and not any(_is_sequence(entry) for entry in reference):
        return _box_region(reference, height, width)
    return _polygons_region([[ring] for ring in _rings(reference)], height, width)


def _is_nested_mask(rows: Sequence[Any], width: int) -> bool:
    """Whether rows of `width` pixels of 0 and 1 (or 255) arrived: as polygons they would give one odd pixel."""
    if width < 6:  # too short for a polygon, refused anyway or taken as points
        return False
    return all(isinstance(row, (list, tuple)) and len(row) == width for row in rows) and all(
        isinstance(pixel, (int, float)) and pixel in (0, 1, 255) for row in rows for pixel in row
    )


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim > 0)


def _coordinates(values: Any, what: str) -> _FloatArray:
    """Numbers in a list, array or tensor -> float64 in one dimension; finite, and near enough to be pixels."""
    array: NDArray[Any]
    if isinstance(values, (np.ndarray, torch.Tensor)):
        array = _tensor_array(values) if isinstance(values, torch.Tensor) else np.asarray(values)
        if array.dtype.kind not in "iuf":
            raise MaskError(f"{what} has coordinates of dtype {array.dtype}. Give numbers, x before y, in pixels.")
    else:
        # list(tensor) is a list of tensors without dimensions.
        values = [_tensor_array(v)[()] if isinstance(v, torch.Tensor) and v.ndim == 0 else v for v in values]
        for kind in set(map(type, values)):
            if issubclass(kind, bool) or not issubclass(kind, (int, float, np.integer, np.floating)):
                raise MaskError(
                    f"{what} has an entry of type {kind.__name__} among its coordinates. Give numbers in pixels."
                )
        try:
            array = np.array(values, dtype=np.float64)
        except (OverflowError, TypeError, ValueError) as error:
            raise MaskError(f"{what} has a coordinate that is too large for any image. Give pixels.") from error
    numbers: _FloatArray = array.astype(np.float64).reshape(-1)
    if not np.isfinite(numbers).all():
        raise MaskError(f"{what} has a coordinate that is NaN or infinite. Give finite numbers in pixels.")
    if (np.abs(numbers) > _MAX_COORDINATE).any():
        raise MaskError(
            f"{what} has a coordinate beyond {_MAX_COORDINATE:.0e} pixels. Give the coordinates in the image's pixels."
        )
    return numbers


def _warn_if_normalised(numbers: _FloatArray, what: str, height: int, width: int) -> None:
    if height > 1 and width > 1 and (numbers >= 0).all() and (numbers <= 1).all() and (numbers % 1 != 0).any():
        warnings.warn(
            f"All coordinates of the {what} lie between 0 and 1, so the region is one pixel of {height}x{width}. If "
            "they are fractions of the image, multiply x by its width and y by its height.",
            UserWarning,
            stacklevel=5,
        )


def _box_region(values: Any, height: int, width: int) -> _BoolArray:
    if not _is_sequence(values) or len(values) != 4:
        raise MaskError(f"{_describe(values)} is no box. Give box_xyxy = [x0, y0, x1, y1] in pixels.")
    box = _coordinates(values, "The box")
    if box.size != 4:
        raise MaskError(f"{_describe(values)} holds more than one box. Give box_xyxy = [x0, y0, x1, y1] of one region.")
    x0, y0, x1, y1 = box.tolist()
    if x1 <= x0 or y1 <= y0:
        raise MaskError(
            f"The box [{x0:g}, {y0:g}, {x1:g}, {y1:g}] is degenerate: x0 < x1 and y0 < y1 are needed. Boxes are "
            "box_xyxy; from [x, y, width, height] make [x, y, x + width, y + height]."
        )
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise MaskError(
            f"The box [{x0:g}, {y0:g}, {x1:g}, {y1:g}] lies outside the image of {height}x{width} (height x width). "
            "Give it as box_xyxy in the image's pixels."
        )
    _warn_if_normalised(box, "box", height, width)
    region = np.zeros((height, width), dtype=np.bool_)
    region[_covered(y0, y1, height), _covered(x0, x1, width)] = True
    return region


def _covered(start: float, stop: float, size: int) -> slice:
    """The pixels along one axis with their centre in [start, stop), or the one under its middle where there is none."""
    start, stop = max(start, 0.0), min(stop, float(size))
    first, end = int(np.ceil(start - 0.5)), int(np.ceil(stop - 0.5))
    if first >= end:
        first = min(int((start + stop) / 2), size - 1)
        end = first + 1
    return slice(first, end)


def _rings(values: Any) -> list[_FloatArray]:
    """`[x, y, x, y, ...]`, `[[x, y], ...]` or `[[x, y, ...], [x, y, ...]]` -> rings of shape (N, 2)."""
    needed = "Give [x, y, x, y, ...], [[x, y], ...], or a list of such flat lists for several polygons."
    if not _is_sequence(values) or len(values) == 0:
        raise MaskError(f"{_describe(values)} is no polygon. {needed}")
    _check_num_vertices(len(values) // 2, "The polygon")
    if not isinstance(values, (list, tuple)):
        if values.ndim > 2 or (values.ndim == 2 and values.shape[1] != 2):
            raise MaskError(
                f"A polygon of shape {tuple(values.shape)} arrived. Give an array of shape (N, 2), x before y."
            )
        return [_ring(values, "The polygon")]
    nested = [_is_sequence(entry) for entry in values]
    if not any(nested):
        return [_ring(values, "The polygon")]
    if not all(nested):
        raise MaskError(f"{_describe(values)} mixes lists with other entries. as_mask takes one region. {needed}")
    if all(len(entry) == 2 for entry in values):
        return [_ring_of_pairs(values, "The polygon")]
    if len(values) > _MAX_RINGS:
        raise MaskError(f"{len(values)} polygons are too many for one region (limit {_MAX_RINGS}). Give a mask or RLE.")
    if all(len(entry) == 4 for entry in values):
        raise MaskError(
            f"{_describe(values)} with 4 numbers each looks like boxes. as_mask takes one region: pass one box."
        )
    for entry in values:
        if any(_is_sequence(number) for number in itertools.islice(entry, 1)):
            raise MaskError(
                "Lists of points inside a list arrived: several polygons, or holes? Give several as flat lists [[x, "
                "y, ...], ...], holes as GeoJSON {'type': 'Polygon', 'coordinates': [outline, hole, ...]}."
            )
    return [_ring(entry, f"Polygon {i + 1} of {len(values)}") for i, entry in enumerate(values)]


def _ring_of_pairs(points: Any, what: str) -> _FloatArray:
    needed = "Give its points as [[x, y], [x, y], ...]."
    if not isinstance(points, (list, tuple)):
        if isinstance(points, (np.ndarray, torch.Tensor)) and points.ndim == 2 and points.shape[1] == 2:
            return _ring(points, what)
        raise MaskError(f"{_describe(points)} arrived as {what[0].lower() + what[1:]}. {needed}")
    _check_num_vertices(len(points), what)
    if not all(_is_sequence(point) and len(point) == 2 for point in points):
        raise MaskError(f"{what} has a point that is not a pair. {needed}")
    return _ring(list(itertools.chain.from_iterable(points)), what)


def _ring(numbers: Any, what: str) -> _FloatArray:
    """Coordinates x, y, x, y, ... -> (N, 2), checked to span an area. The last point may repeat the first."""
    _check_num_vertices(len(numbers) // 2, what)
    flat = _coordinates(numbers, what)
    if flat.size % 2 or flat.size < 6:
        raise MaskError(f"{what} has {flat.size} coordinates. Give at least three points, x and y of each.")
    ring = flat.reshape(-1, 2)
    # The farthest point gives the line that all others would have to leave.
    offsets = ring - ring[0]
    far = offsets[np.argmax(np.square(offsets).sum(axis=1))]
    cross = offsets[:, 0] * far[1] - offsets[:, 1] * far[0]
    if np.abs(cross).max() <= _FLATNESS * np.square(np.abs(ring).max()):
        raise MaskError(
            f"{what} is degenerate: its {len(ring)} points lie on one line and span no area. Give an outline with "
            "area, or a box or mask for the pixels that are meant."
        )
    return ring


def _check_num_vertices(num_vertices: int, what: str) -> None:
    if num_vertices > _MAX_VERTICES:
        raise MaskError(
            f"{what} has {num_vertices} points, more than {_MAX_VERTICES}. Simplify it, or give a mask or RLE."
        )


def _geojson_polygons(reference: dict[Any, Any]) -> list[list[_FloatArray]]:
    kind, coordinates = reference.get("type"), reference["coordinates"]
    if not isinstance(kind, str) or kind not in ("Polygon", "MultiPolygon"):
        raise MaskError(
            f"{_describe(kind)} is no GeoJSON type of a region. Give a Polygon or a MultiPolygon in pixels."
        )
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(polygons, (list, tuple)) or not polygons:
        raise MaskError(f"{_describe(polygons)} arrived as coordinates of a MultiPolygon. Give a list of polygons.")
    result = []
    num_rings = 0
    for i, rings in enumerate(polygons):
        if not isinstance(rings, (list, tuple)) or not rings:
            raise MaskError(
                f"{_describe(rings)} arrived as a GeoJSON polygon. Give a list of rings: the outline, then holes."
            )
        num_rings += len(rings)
        if num_rings > _MAX_RINGS:
            raise MaskError(f"More than {_MAX_RINGS} rings are too many for one region. Give a mask or RLE.")
        result.append([_ring_of_pairs(ring, f"Ring {j + 1} of polygon {i + 1}") for j, ring in enumerate(rings)])
    return result


class _Work:
    """Counts the steps of filling polygons, so that no reference costs more than its image allows."""

    def __init__(self, height: int, width: int) -> None:
        self.left = _BASE_WORK + _WORK_PER_PIXEL * height * width

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise MaskError("The polygons are too complex for their image. Simplify them, or give a mask or RLE.")


def _polygons_region(polygons: list[list[_FloatArray]], height: int, width: int) -> _BoolArray:
    """The union of polygons, each an outline followed by its holes."""
    _check_num_vertices(sum(len(ring) for rings in polygons for ring in rings), "The region")
    work = _Work(height, width)
    region = np.zeros((height, width), dtype=np.bool_)
    for outline, *holes in polygons:
        top, bottom, left, right = window = _window(outline, (0, height, 0, width))
        part = _filled(outline, window, work)
        for hole in holes:
            hole_window = _window(hole, window)
            in_part = (
                slice(hole_window[0] - top, hole_window[1] - top),
                slice(hole_window[2] - left, hole_window[3] - left),
            )
            part[in_part] &= ~_filled(hole, hole_window, work)
        if part.any():
            region[top:bottom, left:right] |= part
            continue
        if holes and _area(outline) - sum(map(_area, holes)) <= _FLATNESS * np.square(np.abs(outline).max()):
            raise MaskError("The holes leave nothing of their polygon. Give an outline that is larger than its holes.")
        # No pixel's centre is inside: without this, thin and tiny regions would vanish.
        reached = _reached(outline, height, width, work)
        if holes:
            work.spend(height * width)
            within = np.zeros((height, width), dtype=np.bool_)
            within[top:bottom, left:right] = _filled(outline, window, work)
            within[reached] = True
            for hole in holes:
                rows, columns = _reached(hole, height, width, work)
                region[rows, columns] |= within[rows, columns]
        region[reached] = True
    if not region.any():
        low = np.min([rings[0].min(axis=0) for rings in polygons], axis=0)
        high = np.max([rings[0].max(axis=0) for rings in polygons], axis=0)
        raise MaskError(
            f"The polygon (x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}) covers no pixel of the image of "
            f"{height}x{width} (height x width): it lies outside, or doubles back and cancels itself. Give its "
            "points in the image's pixels, x before y."
        )
    _warn_if_normalised(np.concatenate([rings[0] for rings in polygons]).reshape(-1), "polygon", height, width)
    return region


def _area(ring: _FloatArray) -> float:
    x, y = (ring - ring[0]).T  # shifted, since large coordinates would cancel badly
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def _window(ring: _FloatArray, bounds: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) within bounds of the pixels whose centres the ring can cover; ends are exclusive."""
    top, bottom, left, right = bounds
    first_x, first_y = np.ceil(ring.min(axis=0) - 0.5).astype(np.int64).tolist()
    end_x, end_y = np.ceil(ring.max(axis=0) - 0.5).astype(np.int64).tolist()
    top, left = min(max(top, first_y), bottom), min(max(left, first_x), right)
    return top, max(top, min(bottom, end_y)), left, max(left, min(right, end_x))


def _filled(ring: _FloatArray, window: tuple[int, int, int, int], work: _Work) -> _BoolArray:
    """Even-odd filling of one ring by pixel centres, for the pixels of a window.

    Every edge flips, in each row whose centre line it crosses, all pixels to the right of the crossing. It is enough to
    flip the first of them and to sum along the rows at the end. Sums in uint8 wrap, but their lowest bit stays right.
    """
    top, bottom, left, right = window
    stride = right - left + 1  # one column more takes the flips to the right of the window
    work.spend((bottom - top) * stride)
    flips = np.zeros((bottom - top, stride), dtype=np.uint8)
    if bottom == top or right == left:
        return flips[:, :-1].view(np.bool_)
    start, end = ring, np.roll(ring, -1, axis=0)
    # Always from the upper to the lower end: an edge shared by two polygons then crosses at bit-identical places.
    upward = (start[:, 1] > end[:, 1])[:, None]
    upper, lower = np.where(upward, end, start), np.where(upward, start, end)
    # Half open like the pixels of a box, so that a vertex on a centre line counts once, for one of its two edges.
    first_row = np.maximum(np.ceil(upper[:, 1] - 0.5), top)
    num_rows = np.minimum(np.ceil(lower[:, 1] - 0.5), bottom) - first_row
    crossing = num_rows > 0
    upper, lower, first_row = upper[crossing], lower[crossing], first_row[crossing]
    num_rows = num_rows[crossing].astype(np.int64)
    totals = np.cumsum(num_rows)
    before = totals - num_rows
    if totals.size:
        work.spend(_WORK_PER_CROSSING * int(totals[-1]))
    i = 0
    while i < totals.size:
        j = max(i + 1, int(np.searchsorted(totals, before[i] + _CROSSINGS_PER_CHUNK, side="right")))
        edges = np.repeat(np.arange(i, j), num_rows[i:j])
        rows = first_row[edges] + np.arange(before[i], totals[j - 1]) - before[edges]
        run = lower[edges] - upper[edges]
        x = upper[edges, 0] + (rows + 0.5 - upper[edges, 1]) * run[:, 0] / run[:, 1]
        columns = np.clip(np.ceil(x - 0.5), left, right) - left
        np.add.at(flips.reshape(-1), ((rows - top) * stride + columns).astype(np.int64), np.uint8(1))
        i = j
    np.cumsum(flips, axis=1, dtype=np.uint8, out=flips)
    flips &= 1
    return flips[:, :-1].view(np.bool_)


def _reached(ring: _FloatArray, height: int, width: int, work: _Work) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the pixels of the image whose inside the outline of a ring runs through.

    For a ring that holds no pixel's centre these are all pixels that it reaches into.
    """
    start, end = ring, np.roll(ring, -1, axis=0)
    size = np.array([width, height], dtype=np.float64)
    # Cut each edge to the image (Liang-Barsky): what is outside must cost nothing.
    run = end - start
    still = run == 0
    with np.errstate(all="ignore"):  # standing still divides by zero; those entries are replaced
        at_low, at_high = (0.0 - start) / run, (size - start) / run
        within = (start > 0) & (start < size)
        enter = np.where(still, np.where(within, 0.0, 2.0), np.fmin(at_low, at_high)).max(axis=1, initial=0.0)
        leave = np.where(still, np.where(within, 1.0, -1.0), np.fmax(at_low, at_high)).min(axis=1, initial=1.0)
        a = np.clip(start + enter[:, None] * run, 0, size)
        b = np.clip(start + leave[:, None] * run, 0, size)
    # An edge along a grid line is in no pixel, nor is one that only touches a corner of the image (up to rounding).
    along_line = (still & (start == np.floor(start))).any(axis=1) | still.all(axis=1)
    seen = (leave - enter > _FLATNESS) & ~along_line
    a, b = a[seen], b[seen]
    # Grid lines cut an edge into pieces of one pixel each; the middle of a piece says which pixel.
    low, high = np.floor(np.minimum(a, b)) + 1, np.ceil(np.maximum(a, b)) - 1
    num_cuts = np.maximum(high - low + 1, 0).astype(np.int64)
    work.spend(_WORK_PER_CROSSING * (int(num_cuts.sum()) + 2 * len(a)))
    edges = [np.arange(len(a)), np.arange(len(a))]
    places = [np.zeros(len(a)), np.ones(len(a))]
    for axis in (0, 1):
        edge = np.repeat(np.arange(len(a)), num_cuts[:, axis])
        before = np.cumsum(num_cuts[:, axis]) - num_cuts[:, axis]
        lines = low[edge, axis] + np.arange(edge.size) - before[edge]
        edges.append(edge)
        places.append((lines - a[edge, axis]) / (b[edge, axis] - a[edge, axis]))
    edge, place = np.concatenate(edges), np.concatenate(places)
    order = np.lexsort((place, edge))
    edge, place = edge[order], place[order]
    piece = (edge[1:] == edge[:-1]) & (place[1:] > place[:-1])  # through a grid point an edge is cut twice
    middle = ((place[1:] + place[:-1]) / 2)[piece]
    edge = edge[1:][piece]
    cells = np.floor(a[edge] + middle[:, None] * (b - a)[edge]).astype(np.int64)
    cells = np.minimum(cells, [width - 1, height - 1])  # rounding only: middles lie inside the image
    return cells[:, 1], cells[:, 0]
