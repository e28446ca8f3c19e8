"""How files of masks are read: strictly black and white, or by rules that the user gives; several masks in one file.

H, W: height and width of the picture in pixels. Nothing is made on the word of a file: sizes are compared with the
picture's before pixels are.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..mask_codecs_finecaption import BoolArray, MaskError, array_mask
from .errors import DataError

ARRAYS = (".npy", ".npz")
"""Files of masks that are no pictures: numpy's."""

MAX_PARTS = 4096
"""More masks in one file are none of one picture."""

Part = tuple[str | int, ...]
"""Which mask of a file that holds several: the number of a page or of a plane, after the name of its array in .npz."""

# The last side of an array that holds one mask, with or without colours, rather than several.
_CHANNELS = (1, 3, 4)
# Grey written as JPEG: red, green and blue may differ by as much.
_GREY_TOLERANCE = 24
_REMEDY = "If its edges are soft, it is a cut-out, or of another size: --threshold 0.5, --alpha, --resize-masks."


@dataclass(frozen=True)
class MaskRules:
    """What is done with a mask that is not plainly black and white at the picture's size. By default nothing.

    Attributes:
        threshold (`float`, *optional*): pixels above this share of white, 0 to 1, are inside; with `alpha`, those of
            more than this share of opacity.
        alpha (`bool`): what is not transparent is inside, whatever its colour.
        resize (`bool`): a mask of another size is brought to the picture's: each pixel takes the one under its centre.
    """

    threshold: float | None = None
    alpha: bool = False
    resize: bool = False

    def over(self, own: "MaskRules") -> "MaskRules":
        """These rules, and where they say nothing those of a file itself."""
        threshold = own.threshold if self.threshold is None else self.threshold
        return MaskRules(threshold, self.alpha or own.alpha, self.resize or own.resize)

    def region(self, mask: Any, height: int, width: int) -> BoolArray:
        """The region that a mask means.

        Args:
            mask: a PIL image that need not be decoded yet, or an array of shape (h, w), or of colours (h, w, 3 or 4).
            height, width (`int`): of the picture, (H, W).

        Returns:
            bool, of shape (H, W), with at least one True.

        Raises:
            MaskError: If it has another size or other values than the rules allow, or is empty.
        """
        if not isinstance(mask, Image.Image) and mask.ndim == 3:
            mask = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))
        size = (mask.height, mask.width) if isinstance(mask, Image.Image) else tuple(mask.shape)
        fits = sorted(size) == sorted((height, width))  # an EXIF orientation of the mask itself may turn it
        if not (self.alpha or self.threshold is not None) and (fits or not self.resize):
            return array_mask(mask, (height, width))
        if not fits and not self.resize:
            return array_mask(mask, (height, width))  # which says what does not fit, before anything is decoded
        if self.alpha:
            inside = self._opaque(mask)
        elif self.threshold is not None:
            inside = self._bright(mask, self.threshold)
        else:
            inside = array_mask(mask)
        if self.resize:
            inside = nearest(inside, height, width)
        return array_mask(inside, (height, width))

    def _opaque(self, mask: Any) -> BoolArray:
        if not isinstance(mask, Image.Image) or not ("A" in mask.getbands() or "transparency" in mask.info):
            raise MaskError("The mask has no transparency, which --alpha takes for the region. Leave --alpha out.")
        alpha = np.asarray(_decoded(mask, "RGBA"))[..., 3]
        inside: BoolArray = alpha > 255 * (self.threshold or 0.0)
        if (alpha == 255).all():
            raise MaskError(
                "Nothing of the mask is transparent, so with --alpha all of the picture would be the region. Leave "
                "--alpha out."
            )
        return inside

    @staticmethod
    def _bright(mask: Any, threshold: float) -> BoolArray:
        values = _grey(mask) if isinstance(mask, Image.Image) else mask
        if values.dtype.kind == "b":
            return np.asarray(values, dtype=np.bool_)
        if values.dtype.kind not in "uif" or not np.isfinite(values).all() or (values.size and values.min() < 0):
            raise MaskError(f"The mask is of dtype {values.dtype} with values that are no shares of white.")
        top = float(values.max()) if values.size else 0.0
        # A mask of 0 and 1 is as binary as one of 0 and 255.
        white = next((white for white in (1.0, 255.0, 65535.0) if top <= white), None)
        if white is None:
            raise MaskError(
                f"The mask holds values up to {top:g}, so it is not known what is white. Give 8 or 16 bits."
            )
        return np.asarray(values > threshold * white, dtype=np.bool_)


STRICT = MaskRules()


def nearest(mask: BoolArray, height: int, width: int) -> BoolArray:
    """A mask of another size at that of the picture: each pixel takes the one that lies under its centre.

    Raises:
        MaskError: If one is upright and the other lies on its side: that is another picture, or one that was turned.
    """
    own_height, own_width = mask.shape
    if (own_height - own_width) * (height - width) < 0:
        raise MaskError(
            f"The mask is {own_height}x{own_width}, but the image is {height}x{width} (height x width): one of them "
            "lies on its side, so it is not resized."
        )
    resized = Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(resized) > 0


def _grey(picture: Image.Image) -> NDArray[Any]:
    """Values (h, w) of a picture that is grey but for traces of JPEG."""
    if picture.mode not in ("LA", "RGB", "RGBA", "P", "PA", "CMYK", "YCbCr"):
        return np.asarray(_decoded(picture, None))
    colours = np.asarray(_decoded(picture, "RGBA"))
    if (colours[..., 3] != 255).any():
        raise MaskError("Parts of the mask are transparent. If what is not transparent is the region, give --alpha.")
    if (np.ptp(colours[..., :3].astype(np.int16), axis=2) > _GREY_TOLERANCE).any():
        raise MaskError(
            "The mask is coloured, so it does not say which pixels are the region. Give one in black and white; where "
            "each colour is a region, --format label-map."
        )
    return np.asarray(colours[..., 1])


def _decoded(picture: Image.Image, mode: str | None) -> Image.Image:
    try:
        upright = ImageOps.exif_transpose(picture)
        return upright if mode is None else upright.convert(mode)
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise MaskError(f"It cannot be decoded ({type(error).__name__}). Give an intact file.") from error


@dataclass(frozen=True)
class OpenedMask:
    """A mask file that was opened, not decoded yet. A region reference.

    Attributes:
        name (`str`): of the file, for messages.
        mask: PIL image or array of shape (h, w).
        rules (`MaskRules`): how it is read.
        page (`int`, *optional*): of a picture with several.
    """

    name: str
    mask: Any = field(repr=False)
    rules: MaskRules = STRICT
    page: int | None = None

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        """The region, of shape (H, W).

        Raises:
            MaskError: If it is none of a picture of this size.
        """
        try:
            if self.page is not None:
                self.mask.seek(self.page)
            return self.rules.region(self.mask, height, width)
        except MaskError as error:
            hint = f" {_REMEDY}" if self.rules == STRICT else ""
            raise MaskError(f"The file {self.name[:200]!r}: {error}{hint}") from error
        except Exception as error:  # decoders of damaged files raise nearly anything
            raise MaskError(f"The file {self.name[:200]!r}: it cannot be decoded ({error}).") from error


# --- several masks in a file ------------------------------------------------------------------------------------------


def picture_parts(picture: Image.Image, where: str) -> list[Part]:
    """The masks of a picture file: its pages, or itself.

    Raises:
        DataError: If there are too many, or their number cannot be found out.
    """
    try:
        number = getattr(picture, "n_frames", 1)
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise DataError(where, f"its pages cannot be counted ({error}).") from error
    _check_number(number, where)
    return [(page,) for page in range(number)] if number > 1 else [()]


class MaskArrays:
    """The arrays of a .npy or .npz file, of which each plane is a mask.

    Args:
        data (`bytes`): the file.
        where (`str`): what it is called in messages.
        max_bytes (`int`): arrays that have more are refused before they are unpacked.

    Raises:
        DataError: If it is no such file, or holds something else than masks.
    """

    def __init__(self, data: bytes, where: str, max_bytes: int) -> None:
        self.where = where
        self._data = data
        self._kept: tuple[str, Any] = "", None
        self.parts: list[Part] = []
        for name, shape, dtype in self._headers():
            called = f"the array {name!r}" if name else "its array"
            if (
                len(shape) not in (2, 3)
                or min(shape) < 1
                or dtype.kind not in "buif"
                or (len(shape) == 3 and shape[2] in (3, 4) and dtype != np.uint8)
            ):
                raise DataError(
                    where,
                    f"{called} is of shape {shape} and dtype {dtype}; masks are numbers of shape (H, W), or "
                    "(number, H, W) for several.",
                )
            if math.prod(shape) * dtype.itemsize > max_bytes:
                raise DataError(where, f"{called} is of shape {shape}, more than masks of any picture that is taken.")
            start: Part = (name,) if name else ()
            is_one = len(shape) == 2 or shape[2] in _CHANNELS
            number = 1 if is_one else shape[0]
            _check_number(len(self.parts) + number, where)
            self.parts += [start] if is_one else [(*start, plane) for plane in range(number)]
        if not self.parts:
            raise DataError(where, "it holds no array.")

    def mask(self, part: Part) -> NDArray[Any]:
        """One of the masks, of shape (h, w), or with colours (h, w, 3 or 4).

        Raises:
            DataError: If it is damaged.
        """
        name = next((each for each in part if isinstance(each, str)), "")
        if self._kept[1] is None or self._kept[0] != name:
            self._kept = name, self._array(name)
        planes = [each for each in part if isinstance(each, int)]
        array = np.asarray(self._kept[1][planes[0]] if planes else self._kept[1])
        return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array

    def _array(self, name: str) -> NDArray[Any]:
        with self._errors():
            if name:
                with zipfile.ZipFile(BytesIO(self._data)) as archive, archive.open(f"{name}.npy") as member:
                    shape, is_fortran, dtype = _header(member)
                    data: Any = member.read(math.prod(shape) * dtype.itemsize)
            else:
                file = BytesIO(self._data)
                shape, is_fortran, dtype = _header(file)
                data = memoryview(self._data)[file.tell() :]
            flat = np.frombuffer(data, dtype, count=math.prod(shape))
            return flat.reshape(shape, order="F" if is_fortran else "C")

    def _headers(self) -> Iterator[tuple[str, tuple[int, ...], np.dtype[Any]]]:
        """(name, shape, dtype) of the arrays; the one of .npy has no name."""
        with self._errors():
            if not self._data.startswith(b"PK"):
                shape, _, dtype = _header(BytesIO(self._data))
                yield "", shape, dtype
                return
            with zipfile.ZipFile(BytesIO(self._data)) as archive:
                for member in archive.namelist():
                    with archive.open(member) as opened:
                        shape, _, dtype = _header(opened)
                    yield member.removesuffix(".npy"), shape, dtype

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except (ValueError, OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(self.where, f"its numpy arrays cannot be read ({str(error)[:100]}).") from error


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(file)
    return found


def _check_number(number: int, where: str) -> None:
    if number > MAX_PARTS:
        raise DataError(where, f"it holds {number} masks, more than the {MAX_PARTS} that one picture may have.")
