"""Pictures and regions as they travel in a request -> what the rest of the package takes.

A region is, in every request, one of: `{"box_xyxy": [x0, y0, x1, y1]}`, `{"polygon": ..}`, `{"size": [H, W], "counts":
..}` (COCO RLE), GeoJSON, `{"mask": ..}` with any of these or a blob, a picture as a data URL, `{"points": [[x, y], ..],
"labels": [..], "box_xyxy": ..}` where there is a segmenter, or `null`, the whole picture. It may also be the picture's
alpha channel.
"""

import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from ..masks_finecaption import MaskError, read_region
from .limits import Limits, RequestError

if TYPE_CHECKING:
    from ..segmentation import Segmenter

_FETCH_S = 10
_POINTED_PIXELS = 2048 * 2048
"""Of a picture with points: segmenters take seconds for larger ones, of which they see no more."""


def split_alpha(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """A picture as it was decoded -> RGB (H, W), upright, and the region in its alpha channel.

    An alpha channel that is opaque everywhere is no region. Colours are taken as they are, also where they are
    transparent; the region is where alpha is 128 or more.
    """
    if not picture.has_transparency_data:
        from ..image_processing_finecaption import upright_rgb  # 16 bit pictures keep their range

        return upright_rgb(picture), None
    *colours, alpha = ImageOps.exif_transpose(picture).convert("RGBA").split()
    is_opaque = alpha.getextrema()[0] == 255
    return Image.merge("RGB", colours), None if is_opaque else alpha.point([0] * 128 + [255] * 128)


def read_picture(url: str, limits: Limits, hosts: Collection[str] = ()) -> tuple[Image.Image, Image.Image | None]:
    """A picture of a request, and the region in its alpha channel: see `split_alpha`.

    Args:
        url: `data:image/..;base64,..`; or an address, whose host with its port must be in `hosts`.
        limits: on bytes and pixels.
        hosts: such as `images.example.com` or `localhost:8080`.

    Raises:
        RequestError: If it is neither, or cannot be read, or is too large.
    """
    picture = _opened(url, limits, hosts, "picture")
    try:
        return split_alpha(picture)
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise RequestError(f"The picture cannot be decoded ({error}). Send a whole PNG or JPEG.") from error


class RegionReader:
    """Regions of one picture of a request.

    Args:
        picture: RGB, (H, W).
        limits: on the pixels of masks.
        segmenter: for points; `None` where there is none.
    """

    def __init__(self, picture: Image.Image, limits: Limits, segmenter: "Segmenter | None" = None) -> None:
        self._picture, self._limits, self._segmenter = picture, limits, segmenter
        self._encoded: Any = None

    def reference(self, region: Any) -> Any:
        """What `as_mask` takes.

        Raises:
            MaskError: If this is no region.
        """
        if isinstance(region, str) and region.startswith("data:"):
            try:
                return split_mask(_opened(region, self._limits, (), "mask"))
            except RequestError as error:
                raise MaskError(str(error)) from error
        if not isinstance(region, Mapping):
            return region
        if "points" in region:
            return self._pointed(region)
        key, found = read_region(region, closed=True)
        inner = isinstance(found, str | Mapping) and key in ("mask", "segmentation", "mask_rle")
        return self.reference(found) if inner else dict(region) if key else None

    def _pointed(self, region: Mapping[str, Any]) -> np.ndarray:
        from ..segmentation import SegmentationError

        if others := set(region) - {"points", "labels", "box_xyxy"}:
            raise MaskError(f"A region of points has points, labels and box_xyxy, but {sorted(others)[0]!r} arrived.")
        if self._segmenter is None:
            raise MaskError("This server has no segmenter, so it takes no points. Send a mask, a box or a polygon.")
        width, height = self._picture.size
        if width * height > _POINTED_PIXELS:
            raise MaskError(
                f"The picture has {width} x {height} pixels; points are taken up to {_POINTED_PIXELS}. Send it smaller."
            )
        try:
            with _SEGMENTING:
                if self._encoded is None:
                    self._encoded = self._segmenter.encode(self._picture)
                found = self._encoded.masks(num_candidates=1, **region)
        except (SegmentationError, TypeError) as error:
            raise MaskError(str(error)) from error
        if not found:
            raise MaskError("Nothing was found at these points. Send others, or a box.")
        mask: np.ndarray = found[0].mask
        return mask


_SEGMENTING = threading.Lock()  # encoders are what takes memory


def split_mask(picture: Image.Image) -> Image.Image:
    """A mask as it was decoded, as `as_mask` takes it; of one with transparent pixels the alpha channel counts."""
    if "A" in picture.getbands():
        _, alpha = split_alpha(picture)
        if alpha is not None:
            return alpha
    return picture


def _opened(url: str, limits: Limits, hosts: Collection[str], what: str) -> Image.Image:
    from ..data.errors import DataError
    from ..data.images import open_picture, read_data_url

    try:
        content = read_data_url(url, what) if url.startswith("data:") else _fetched(url, limits, hosts, what)
        picture = open_picture(content, what)
        if picture.width * picture.height > limits.pixels:
            raise RequestError(
                f"The {what} has {picture.width} x {picture.height} pixels; {limits.pixels} are taken. Shrink it.",
                413,
                "too_many_pixels",
            )
        picture.load()
    except RequestError:
        raise
    except DataError as error:
        raise RequestError(f"The {what} cannot be used: {error.reason}") from error
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise RequestError(f"The {what} cannot be decoded ({error}). Send a whole PNG or JPEG.") from error
    return picture


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # an error: it may lead to a host that is not on the list


def _fetched(url: str, limits: Limits, hosts: Collection[str], what: str) -> bytes:
    try:
        parts = urllib.parse.urlsplit(url)
        is_allowed = parts.scheme in ("http", "https") and parts.netloc in hosts
    except ValueError:
        is_allowed = False
    if not is_allowed:
        raise RequestError(
            f"The {what} is at {url[:80]!r}, which this server does not open. Send data:image/png;base64,..",
            code="address_refused",
        )
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_FETCH_S) as answer:
            content: bytes = answer.read(limits.body_bytes + 1)
    except (OSError, ValueError) as error:
        raise RequestError(f"The {what} cannot be fetched from {parts.netloc} ({error}).") from error
    if len(content) > limits.body_bytes:
        raise RequestError(f"The {what} has more than {limits.body_bytes} bytes.", 413, "too_many_bytes")
    return content
