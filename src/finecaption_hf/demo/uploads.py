"""What browsers and scripts send: pictures and masks in the app's own store, and nothing else of this machine."""

import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.examples import DataError
from ..data.images import decode_image
from ..prompts_finecaption import FineCaptionError

MAX_FILE_BYTES = 50_000_000
MAX_PICTURE_PIXELS = 40_000_000
"""Of a picture in the demo: far below what files of data may have, because strangers share the memory."""
MAX_REGIONS = 32
MAX_QUESTIONS = 40
MAX_QUESTION_LENGTH = 500


class UploadError(FineCaptionError, ValueError):
    """What was sent cannot be used; the message is for whoever sent it, and names nothing of this machine."""


def read_upload(path: Any, store: str | os.PathLike[str]) -> bytes:
    """The content of an uploaded file.

    Args:
        path: as the request names it.
        store: the folder that holds uploads.

    Raises:
        UploadError: If this is no file in the store, links followed, or it is too large.
    """
    if not isinstance(path, str) or not path or "\0" in path:
        raise UploadError("A file is named by the path that the upload gave it. Upload the file first.")
    found, root = Path(os.path.realpath(path)), Path(os.path.realpath(store))
    if not found.is_relative_to(root) or not found.is_file():
        raise UploadError("This file was not uploaded here, so it is not opened. Upload it first.")
    size = found.stat().st_size
    if size > MAX_FILE_BYTES:
        raise UploadError(f"The file has {size} bytes; at most {MAX_FILE_BYTES} are taken. Make it smaller.")
    return found.read_bytes()


def read_picture(path: Any, store: str | os.PathLike[str]) -> Image.Image:
    """An uploaded picture in RGB, upright, what is transparent on white.

    Raises:
        UploadError: As `read_upload`, and if it is no picture or has too many pixels.
    """
    return decode_picture(read_upload(path, store))


def decode_picture(data: bytes) -> Image.Image:
    """The content of a file -> a picture in RGB, upright, what is transparent on white.

    Raises:
        UploadError: If it is no picture or has too many pixels.
    """
    try:
        return decode_image(data, "picture", MAX_PICTURE_PIXELS)
    except DataError as error:
        raise UploadError(f"This picture cannot be used: {error.reason}") from error


def read_mask(mask: Any, store: str | os.PathLike[str]) -> Any:
    """What a script sends as a mask -> a region reference for `as_mask`; an uploaded file is opened.

    Raises:
        UploadError: As `read_upload`, and if the file is no picture, or has too many pixels.
    """
    if not isinstance(mask, Mapping) or "path" not in mask:
        return mask
    return decode_mask_file(read_upload(mask["path"], store))


def decode_mask_file(data: bytes) -> Image.Image:
    """The content of a file -> a picture of a mask for `as_mask`.

    Raises:
        UploadError: If it is no picture or has too many pixels.
    """
    try:
        picture = Image.open(BytesIO(data))
        if picture.width * picture.height > MAX_PICTURE_PIXELS:
            raise UploadError(
                f"The mask has {picture.width} x {picture.height} pixels, more than {MAX_PICTURE_PIXELS}. Give it at "
                "the picture's size."
            )
        picture.load()
    except UploadError:
        raise
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise UploadError("The mask cannot be read as a picture. Give a PNG, COCO RLE, a box or a blob.") from error
    return picture
