"""What holds the pixels of a mask -> the mask: arrays and pictures, CompositionCap's blob, COCO's run lengths (RLE).

H, W: height and width in pixels. Sizes are (height, width). All of this comes from files and from strangers: nothing is
allocated on the word of the input, whose size is compared with the image's before it is copied, decoded or unpacked,
and messages never repeat a value at length.
"""

import base64
import itertools
import operator
import re
import sys
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .prompts_finecaption import FineCaptionError

BoolArray = NDArray[np.bool_]
_Size = tuple[int, int]

# No image has more pixels; below, sums of run lengths and pixel indices stay far from the end of int64.
_MAX_PIXELS = 2**40

_GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_COLOUR_MODES = ("LA", "RGB", "RGBA", "P", "PA")

# A number in COCO's compressed text has at most so many bits, which is more than any run needs.
_MAX_RLE_BITS = 50

# The base64 text of the first three bytes of any gzip stream.
_BLOB_START = "H4sI"
# A gzip header may hold a file name and a comment; more than this is padding.
_GZIP_SLACK = 1024

_PATH = re.compile(r"^(https?:|file:|data:|[.~/\\]|[A-Za-z]:[\\/])|\.[A-Za-z][A-Za-z0-9]{1,4}$")
_IMAGE_FILE_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "SUkq", "TU0A", "Qk")

_AT_SIZE = "Give the mask at the image's size"
_ANEW = "Make it anew with encode_mask."
_SAME_MASK = "Give counts and size of the same mask."


class MaskError(FineCaptionError, ValueError):
    """A region reference that cannot be turned into a region; the message says what to do about it."""


def arrived(value: Any) -> str:
    """Name a hostile value in an error. Never repr() it: deep lists recurse, huge integers raise, long texts flood."""
    if value is None or isinstance(value, (bool, float)):
        return f"The value {value!r}"
    if isinstance(value, int):
        return f"The number {value}" if value.bit_length() <= 64 else f"An integer of {value.bit_length()} bits"
    if isinstance(value, str):
        return f"The str {value[:32]!a}" + (f"... of {len(value)} characters" if len(value) > 32 else "")
    if isinstance(value, (list, tuple)):
        return f"A {type(value).__name__} of {len(value)} entries"
    if isinstance(value, dict):
        keys = [ascii(key[:32]) for key in itertools.islice(value, 8) if isinstance(key, str)]
        return f"A dict with the keys [{', '.join(keys)}]"
    if isinstance(value, np.ndarray):
        return f"An array of shape {value.shape} and dtype {value.dtype}"
    return f"An object of type {type(value).__name__}"


def check_size(height: Any, width: Any) -> _Size:
    """The size of an image as two positive `int`."""
    try:
        size = operator.index(height), operator.index(width)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: tensors without data
        size = 0, 0
    if min(size) < 1 or isinstance(height, bool) or isinstance(width, bool) or size[0] * size[1] > _MAX_PIXELS:
        raise MaskError(
            f"{arrived(height)} arrived for the height of an image. {arrived(width)} arrived for its width. Give both "
            "in pixels: positive int, of which the product is at most 2**40."
        )
    return size


def array_mask(value: Any, size: _Size | None = None) -> BoolArray:
    """What holds a mask's pixels -> the mask.

    Args:
        value: array, tensor (any device and dtype), PIL image or object with `__array__` of shape (H, W), (1, H, W) or
            (H, W, 1): bool, {0, 1} or {0, 255}; or of shape (H, W, 3 or 4), taken as the PIL image of these colours.
        size (`tuple[int, int]`, *optional*): the (H, W) that it has to have.

    Returns:
        `np.ndarray` of shape `(H, W)`, bool, C-contiguous, with at least one True; shares no memory with `value`.

    Raises:
        MaskError: If it has another form, size or value range, or is empty.
    """
    if isinstance(value, Image.Image):
        array = _image_array(value, size)
    elif is_tensor(value):
        # Nested ones have no shape, and are refused below. Before copying: expanded tensors look small and are not.
        if not value.is_nested and not is_coloured(value.shape, value.dtype, size):
            _check_shape(tuple(value.shape), size)
        array = _tensor_array(value)
    else:
        array = _foreign_array(value)
    if is_coloured(array.shape, array.dtype, size):
        array = _image_array(Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8)), size)
    return _binary(array.reshape(_check_shape(array.shape, size)), "mask")


def is_coloured(shape: Any, dtype: Any, size: _Size | None = None) -> bool:
    """Whether an array holds the colours of a mask picture, (H, W, 3 or 4) of bytes, rather than several masks."""
    if len(shape) != 3 or shape[2] not in (3, 4) or str(dtype).removeprefix("torch.") not in ("uint8", "bool"):
        return False
    # Where the size is not known, so narrow masks are rarer than colours of at least so many pixels.
    return min(shape[:2]) > 4 if size is None else tuple(shape[:2]) == size


def is_tensor(value: Any) -> bool:
    """Whether this is a tensor. Masks are read without torch as well: where nobody imported it, there is none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _tensor_array(tensor: Any) -> NDArray[Any]:
    """The values of a tensor of any device and dtype."""
    import torch

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


def is_sequence(value: Any) -> bool:
    """Whether this is a list, a tuple, or an array or tensor with at least one dimension."""
    return isinstance(value, (list, tuple)) or ((isinstance(value, np.ndarray) or is_tensor(value)) and value.ndim > 0)


def numbers(values: Any, what: str, needed: str) -> NDArray[Any]:
    """The numbers of a list, array or tensor, bool excluded; errors begin with `what` and end with `needed`."""
    if isinstance(values, (list, tuple)):
        # list(tensor) is a list of tensors without dimensions.
        values = [_tensor_array(v)[()] if is_tensor(v) and v.ndim == 0 else v for v in values]
        for kind in set(map(type, values)):
            if issubclass(kind, bool) or not issubclass(kind, (int, float, np.integer, np.floating)):
                raise MaskError(f"{what} of type {kind.__name__}. {needed}")
        values = np.array(values) if values else np.zeros(0, dtype=np.int64)
    array = _tensor_array(values) if is_tensor(values) else np.asarray(values)
    if array.dtype.kind not in "iuf":
        reason = "beyond 64 bits, too large" if array.dtype.kind == "O" else f"of dtype {array.dtype}"
        raise MaskError(f"{what} {reason}. {needed}")
    return array


def _binary(array: NDArray[Any], what: str) -> BoolArray:
    """(H, W) of bool, {0, 1} or {0, 255} -> a new bool array with at least one True."""
    if array.dtype.kind not in "buif":
        raise MaskError(
            f"The {what} has dtype {array.dtype}, but pixels have to be bool, integer or float. Convert it."
        )
    if array.dtype.kind == "b":
        # Not a copy: a bool array made by frombuffer or view can hold bytes above 1, which would leak into blobs.
        region = np.not_equal(array.view(np.uint8), 0)
    else:
        with np.errstate(invalid="ignore"):
            region = np.not_equal(array, 0)
            top = array.max() if array.size else 0
            if region.any() and not (top in (1, 255) and np.array_equal(region, array == top)):
                raise MaskError(f"The {what} holds {_values(array)}")
    if not region.any():
        height, width = region.shape
        raise MaskError(
            f"The {what} is empty: none of its {height}x{width} pixels is in the region. Give a region with at least "
            "one pixel, or None for the whole image."
        )
    return np.ascontiguousarray(region)


def _values(array: NDArray[Any]) -> str:
    needed = "but has to be binary: bool, 0/1 or 0/255."
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return f"NaN or infinite values, {needed} Replace them first."
    odd = array[(array != 0) & (array != (255 if array.max() == 255 else 1))]
    remedy = "Threshold it (mask > 0.5)" if array.dtype.kind == "f" else "Pick one label (labels == 3) or threshold it"
    return f"values such as {odd.flat[0]} (range {array.min()} to {array.max()}), {needed} {remedy}."


def _check_shape(shape: tuple[int, ...], size: _Size | None) -> tuple[int, ...]:
    plane = shape if size is None else size
    if len(plane) != 2 or shape not in (plane, (1, *plane), (*plane, 1)):
        raise MaskError(_shape_message(shape, size))
    return plane


def _shape_message(shape: tuple[int, ...], size: _Size | None) -> str:
    given = "x".join(map(str, shape)) if shape else "a single number"
    if size is None:
        return f"The mask is {given} but has to be two-dimensional (H, W). Give the mask of one region."
    height, width = size
    remedy = "Give the mask at the image's size, or a polygon or box in its pixels."
    if shape == (width, height):
        # Transposing would be wrong where the mask was drawn on the stored pixels of a picture that is shown turned.
        remedy = (
            "Its sides are swapped: a mask is (height, width), as the image is displayed, after its EXIF orientation; "
            "PIL's size is (width, height). Draw it on the displayed image: ImageOps.exif_transpose(image)."
        )
    elif len(shape) == 3 and shape[1:] == size:
        remedy = "These are several regions: pass them one at a time."
    elif len(shape) == 1 or (len(shape) == 2 and shape[1] == 2):
        remedy = "If these are coordinates, pass {'box_xyxy': ...} or {'polygon': ...}."
    return f"The mask is {given} but the image is {height}x{width}. {remedy}"


def _foreign_array(value: Any) -> NDArray[Any]:
    if not hasattr(value, "__array__"):
        hint = "Give an array, a tensor, a PIL image, COCO RLE, a box, a polygon, a blob made by encode_mask, or None."
        if isinstance(value, (bytes, bytearray, memoryview)):
            hint = "Bytes are ambiguous: pass a blob as str (.decode('ascii')), pixels as an array (np.frombuffer)."
        elif hasattr(value, "__fspath__"):
            hint = "A path is no region reference: open the file (PIL.Image.open), then pass its content."
        raise MaskError(f"{arrived(value)} is no region reference. {hint}")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise MaskError("A masked array with hidden entries is no region reference. Decide them with .filled(0) first.")
    try:
        return np.asarray(value)
    except MaskError:  # of an object that reads its mask when it is asked for
        raise
    except Exception as error:  # whatever a foreign __array__ raises
        raise MaskError(
            f"{arrived(value)} gave no array ({type(error).__name__}). Pass a numpy array of shape (H, W)."
        ) from error


def _image_array(image: Image.Image, size: _Size | None) -> NDArray[Any]:
    """PIL image -> (H, W) grey values, upright. The size is compared before any pixel is decoded."""
    shape = (image.height, image.width)
    if size is not None and sorted(shape) != sorted(size):  # sorted: an EXIF orientation may turn it
        raise MaskError(_shape_message(shape, size))
    if image.mode not in _GREY_MODES + _COLOUR_MODES:
        raise MaskError(f"A PIL image of mode {image.mode!r} is no mask. Convert it to mode 'L' with values 0 and 255.")
    try:
        upright = ImageOps.exif_transpose(image)
        array = np.asarray(upright.convert("RGBA") if image.mode in _COLOUR_MODES else upright)
    except Exception as error:  # image decoders raise nearly anything on broken files
        raise MaskError(
            f"The PIL image could not be decoded ({type(error).__name__}). Give an intact image or an array."
        ) from error
    if image.mode in _GREY_MODES:
        return array
    grey, alpha = array[..., 0], array[..., 3]
    if (array[..., 1:3] != grey[..., None]).any():
        raise MaskError(
            f"The PIL image of mode {image.mode!r} is coloured, so it does not say which pixels are the region. Pick "
            "them, for a label image with np.asarray(image) == label."
        )
    if (alpha != 255).any() and (alpha != grey).any():
        raise MaskError(
            f"Colour and transparency of the PIL image of mode {image.mode!r} say different things. Give the one that "
            "is the mask: image.getchannel('A') or image.convert('L')."
        )
    return grey


# --- Blobs ------------------------------------------------------------------------------------------------------------


def decode_mask(blob: str, height: int, width: int) -> BoolArray:
    """Decode a CompositionCap blob, the inverse of `finecaption_hf.encode_mask`.

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
    height, width = check_size(height, width)
    if not isinstance(blob, str):
        raise MaskError(
            f"{arrived(blob)} arrived where a blob, the str base64(gzip(uint8 H x W)), is needed. Make one with "
            "encode_mask; decode ASCII bytes with .decode('ascii')."
        )
    if not blob.startswith(_BLOB_START):
        raise MaskError(
            f"{arrived(blob)} is no mask blob: base64 of a gzip stream starts with {_BLOB_START!r}. "
            f"{_string_hint(blob)}"
        )
    num_pixels = height * width
    raw = _decode_base64(blob, num_pixels)
    inflate = zlib.decompressobj(wbits=31)
    try:
        pixels = inflate.decompress(raw, num_pixels + 1)
    except zlib.error as error:
        raise MaskError(
            f"The blob is no intact gzip stream ({error}). Needed is base64(gzip(uint8 {height}x{width})). {_ANEW}"
        ) from error
    problem = None
    if len(pixels) > num_pixels:
        problem = f"The blob holds more than the {num_pixels} bytes of a {height}x{width} mask. {_AT_SIZE}."
    elif not inflate.eof:
        done = f"{len(pixels)} of {num_pixels} bytes of pixels"
        problem = f"The gzip stream in the blob is truncated after {done}. Give the whole blob."
    elif len(pixels) < num_pixels:
        problem = f"The blob holds {len(pixels)} bytes but a {height}x{width} mask has {num_pixels}. {_AT_SIZE}."
    elif inflate.unused_data:
        problem = f"{len(inflate.unused_data)} bytes follow the blob's gzip stream, which has to be its end. {_ANEW}"
    if problem is not None:
        raise MaskError(problem)
    return _binary(np.frombuffer(pixels, dtype=np.uint8).reshape(height, width), "blob")


def _string_hint(blob: str) -> str:
    if blob.startswith(_IMAGE_FILE_STARTS):
        return "This is an image file in base64: decode it, open it with PIL.Image.open, then pass the image."
    if blob.startswith(("{", "[")):
        return "This looks like JSON: parse it with json.loads, then pass the result."
    if _PATH.search(blob[-4096:] if len(blob) > 4096 else blob):
        return "This looks like a path or URL, not a region: open the file (PIL.Image.open), then pass its content."
    return "Make blobs with encode_mask."


def _decode_base64(blob: str, num_pixels: int) -> bytes:
    # Deflate grows data by an eighth at worst (9-bit literals); base64 makes 4 characters of 3 bytes.
    limit = (num_pixels + num_pixels // 8 + num_pixels // 64 + _GZIP_SLACK + 2) // 3 * 4
    if len(blob) > limit:
        raise MaskError(
            f"The blob has {len(blob)} characters, but no encoding of {num_pixels} pixels needs more than {limit}. "
            f"{_AT_SIZE}, without padding."
        )
    try:
        text = blob.encode("ascii")
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:  # of either
        raise MaskError(
            f"The blob is no intact base64 ({error}). It may be truncated, hold white space (remove it with "
            "''.join(blob.split())) or use another alphabet."
        ) from error
    # Python releases differ in what they let pass (surplus padding, stray last bits): one content, one text.
    if base64.b64encode(raw) != text:
        raise MaskError(f"The blob is no canonical base64: its padding or last character is wrong. {_ANEW}")
    return raw


# --- Run lengths ------------------------------------------------------------------------------------------------------


def decode_rle(rle: Any, height: int, width: int) -> BoolArray:
    """Decode a COCO run-length encoding.

    Args:
        rle (`dict`): `{"size": [H, W], "counts": ...}` with counts compressed (str, bytes) or as a list of run lengths
            (whole numbers; JSON's 3.0 counts as 3).
        height (`int`): Height of the image in pixels, which has to be that of the RLE.
        width (`int`): Width of the image in pixels, likewise.

    Returns:
        `np.ndarray` of shape `(H, W)`, bool, C-contiguous, with at least one True.

    Raises:
        MaskError: If keys are missing, counts are malformed, negative or do not sum to H x W, or the mask is empty or
            of another size.

    The format: lengths of alternating runs of 0 and 1 down the columns (column-major), starting with 0. From the fourth
    run on, the difference to the run two before is stored. A number is cut into chunks of 5 bits, lowest first, the
    last one carrying the sign; bit 5 says that another chunk follows, and adding 48 makes it a printable character.
    Source: the COCO API (github.com/cocodataset/cocoapi), common/maskApi.c.
    """
    if not isinstance(rle, dict):
        raise MaskError(f"{arrived(rle)} arrived where COCO RLE is needed: a dict {{'size': [H, W], 'counts': ...}}.")
    size, own = check_size(height, width), _rle_size(rle)
    if own != size:
        swapped = " Its sides are swapped: sizes are [height, width] of the image as displayed, after EXIF orientation."
        raise MaskError(
            f"The RLE is {own[0]}x{own[1]} but the image is {height}x{width}.{swapped if own == size[::-1] else ''} "
            "Give the RLE of a mask at the image's size."
        )
    num_pixels, counts = height * width, rle["counts"]
    is_text = isinstance(counts, (str, bytes, bytearray))
    runs = (_decompress_counts if is_text else _plain_counts)(counts, num_pixels)
    low, high, total = (int(runs.min()), int(runs.max()), int(runs.sum())) if runs.size else (0, 0, 0)
    # A sum beyond int64 may wrap, but only where a single run is beyond all sizes.
    if low < 0 or high > num_pixels or total != num_pixels:
        raise MaskError(
            f"The RLE's counts do not sum to the {num_pixels} pixels of its size {height}x{width} but to {total}, in "
            f"runs of {low} to {high}. {_SAME_MASK}"
        )
    inside = np.arange(runs.size) % 2 == 1
    # Runs go down the columns; the transpose is made row-major by `_binary`.
    return _binary(np.repeat(inside, runs).reshape(width, height).T, "RLE")


def _rle_size(rle: dict[Any, Any]) -> _Size:
    needed = "Give {'size': [H, W], 'counts': ...}."
    for key in ("size", "counts"):
        if rle.get(key) is None:
            raise MaskError(f"{arrived(rle)} is no COCO RLE: {key!r} is missing. {needed}")
    size = rle["size"]
    if not is_sequence(size) or len(size) != 2:
        raise MaskError(f"{arrived(size)} is no RLE size. {needed}")
    # JSON does not tell 480 from 480.0.
    return check_size(*(int(side) if isinstance(side, float) and side.is_integer() else side for side in size))


def _plain_counts(counts: Any, num_pixels: int) -> NDArray[np.int64]:
    needed = "Give a str of COCO's compressed counts or a list of whole run lengths."
    if not is_sequence(counts):
        raise MaskError(f"{arrived(counts)} arrived as the RLE's counts. {needed}")
    _check_num_runs(len(counts), num_pixels)
    runs = numbers(counts, "The RLE's counts hold an entry", needed)
    with np.errstate(invalid="ignore"):
        # As floats for the comparison, since uint64 above 2**63 would turn negative in int64.
        floats = runs.astype(np.float64)
        if runs.ndim != 1 or not (np.abs(floats) <= 2.0**62).all() or not (floats == np.floor(floats)).all():
            raise MaskError(
                f"The RLE's counts, of shape {runs.shape}, are no list, or hold a number that is not whole, not finite "
                f"or beyond all sizes. {needed}"
            )
        return runs.astype(np.int64)


def _check_num_runs(num_runs: int, num_pixels: int) -> None:
    if num_runs > num_pixels + 1:
        raise MaskError(f"The RLE has {num_runs} runs, more than {num_pixels} pixels can have. {_SAME_MASK}")


def _decompress_counts(counts: str | bytes | bytearray, num_pixels: int) -> NDArray[np.int64]:
    """COCO's compressed text -> run lengths; see `decode_rle`."""
    # Characters of a number d: at most 1 + |d| / 16. Over all runs, |d| sums to at most twice the pixels.
    if len(counts) > 2 * num_pixels + 16:
        raise MaskError(
            f"The RLE's counts have {len(counts)} characters, more than {num_pixels} pixels can need. {_SAME_MASK}"
        )
    # What is no ASCII becomes bytes that COCO does not use.
    text = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else bytes(counts)
    runs: list[int] = []
    value = shift = 0
    for character in text:
        chunk = character - 48
        if not 0 <= chunk < 64 or shift >= _MAX_RLE_BITS:
            wrong = "a number beyond all sizes" if 0 <= chunk < 64 else f"the character {chr(character)!a}"
            raise MaskError(
                f"The RLE's counts hold {wrong}; COCO uses '0' to 'o' only. Give the counts as COCO writes them (not "
                "zlib- or base64-packed)."
            )
        value |= (chunk & 0x1F) << shift
        shift += 5
        if not chunk & 0x20:
            if chunk & 0x10:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            if not 0 <= runs[-1] <= num_pixels:
                return np.array(runs[-1:])  # which the caller refuses
            value = shift = 0
    if shift:
        raise MaskError("The RLE's counts end in the middle of a number: they are truncated. Give the whole text.")
    _check_num_runs(len(runs), num_pixels)
    return np.array(runs, dtype=np.int64)
