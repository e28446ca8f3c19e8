"""Points and boxes of the picker -> masks; each picture is encoded once, and the last ones are kept."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from PIL import Image

from ..masks_finecaption import encode_rle

_KEPT = 4
_MAX_POINTS = 100


class PointMasks:
    """Masks for points of users.

    Args:
        segmenter: `encode(image)` gives what has `masks(points=, labels=, box_xyxy=)`, and `name` says what it is.
        read: path of an upload -> its picture; raises ValueError for others.
    """

    def __init__(self, segmenter: Any, read: Callable[[Any], Image.Image]) -> None:
        self.segmenter = segmenter
        self._read = read
        self._encoded: OrderedDict[str, Any] = OrderedDict()
        # One at a time: the encoder is what takes memory.
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
            with self._turn:
                picture = self._picture(path)
                found = picture.masks(points=points or None, labels=labels or None, box_xyxy=box)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return {"error": str(error) if isinstance(error, ValueError) else "This is no request for masks."}
        return {"candidates": [{"segmentation": encode_rle(mask), "score": float(score)} for mask, score in found]}

    def _picture(self, path: Any) -> Any:
        image = self._read(path)  # every time: whether a path may be read is not remembered
        if path not in self._encoded:
            self._encoded[path] = self.segmenter.encode(image)
            if len(self._encoded) > _KEPT:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(path)
        return self._encoded[path]
