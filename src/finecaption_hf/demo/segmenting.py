"""Points and boxes of the picker -> masks."""

import threading
from collections.abc import Callable
from typing import Any

from PIL import Image

from ..data.encoding import encode_rle
from .encoded import EncodedPictures

_MAX_POINTS = 100


class PointMasks:
    """Masks for points of users.

    Args:
        encoded: pictures, with a segmenter.
        name: says what that is.
        read: path of an upload -> its picture; raises ValueError for others.
    """

    def __init__(self, encoded: EncodedPictures, name: str, read: Callable[[Any], Image.Image]) -> None:
        self.name = name
        self._encoded = encoded
        self._read = read
        # One at a time: what cuts out a region takes a core or the GPU.
        self._turn = threading.Lock()

    def segment(self, request: Any) -> dict[str, Any]:
        """Candidates for a region.

        Args:
            request: `{"path", "points": [[x, y], ..], "labels": [1, 0, ..], "box_xyxy": [..] or None}` of a browser, so
                it may be anything.

        Returns:
            `{"candidates": [{"segmentation": RLE, "score": float}, ..]}`, best first, or `{"error": message}`.
        """
        try:
            path, box = request["path"], request.get("box_xyxy")
            points = [(float(x), float(y)) for x, y in request["points"]]
            labels = [int(bool(label)) for label in request["labels"]]
            if len(points) > _MAX_POINTS or len(points) != len(labels):
                raise ValueError(f"{len(points)} points with {len(labels)} labels; at most {_MAX_POINTS} are taken.")
            picture = self._read(path)
            with self._turn:
                found = self._encoded.masks(picture, points, labels, box)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return {"error": str(error) if isinstance(error, ValueError) else "This is no request for masks."}
        return {"candidates": [{"segmentation": encode_rle(mask), "score": float(score)} for mask, score in found]}
