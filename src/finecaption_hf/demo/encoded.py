"""What the encoders said of the last pictures, so that each is encoded once for all that is asked about it."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..asking import FineCaptionDescriber
from ..segmentation.shared import SharedSegmenter
from .answering import pixel_digest

# Pixels of the longer side.
_MASK_SIDE = 2048


class EncodedPictures:
    """Features for captions, and encodings for masks of points. They are kept by the pixels, never by name or user.

    Args:
        segmenter (*optional*): its encoding gives the features as well where it is over the model's own tower.
        max_bytes: how much is kept at the most, but for the last picture.
    """

    def __init__(self, segmenter: Any = None, max_bytes: int = 500_000_000) -> None:
        self._segmenter, self._max_bytes = segmenter, max_bytes
        self._kept: OrderedDict[tuple[str, str], tuple[Any, int]] = OrderedDict()
        # One at a time: encoders are what takes memory.
        self._turn = threading.Lock()

    def features(self, describer: FineCaptionDescriber, picture: Image.Image, name: str = "") -> torch.Tensor | None:
        """`high_res_features` (1, C, h, w) of a picture in RGB for a model, kept by a name that tells it from others;
        `None` where it has none."""
        if isinstance(self._segmenter, SharedSegmenter):
            features: torch.Tensor = self.for_masks(picture).high_res_features
            return features
        return self._once(f"features {name}", describer.encode, picture)

    def for_masks(self, picture: Image.Image) -> Any:
        """The segmenter's encoding of a picture in RGB, which has `masks(points=, labels=, box_xyxy=)`."""
        return self._once("for masks", self._segmenter.encode, picture)

    def masks(
        self, picture: Image.Image, points: Sequence[tuple[float, float]], labels: Sequence[int], box_xyxy: Any
    ) -> list[tuple[np.ndarray, float]]:
        """Masks bool (H, W) of a picture in RGB for points and a box in its pixels, with scores, best first.

        Segmenters look at a few hundred pixels a side, so that a large picture, whose pixels would take them seconds,
        goes to them smaller; not to the model's own tower, which sees for captions too.

        Raises:
            ValueError: If the points and the box cannot be.
        """
        side = max(picture.size)
        if side <= _MASK_SIDE or isinstance(self._segmenter, SharedSegmenter):
            found = self.for_masks(picture).masks(points=points or None, labels=labels or None, box_xyxy=box_xyxy)
            return [(mask, score) for mask, score in found]
        small = picture.resize([max(1, round(length * _MASK_SIDE / side)) for length in picture.size])
        across, down = small.width / picture.width, small.height / picture.height
        found = self.for_masks(small).masks(
            points=[(x * across, y * down) for x, y in points] or None,
            labels=labels or None,
            box_xyxy=None if box_xyxy is None else [value * by for value, by in zip(box_xyxy, (across, down) * 2)],
        )
        return [
            (np.asarray(Image.fromarray(mask).convert("L").resize(picture.size)) > 127, score) for mask, score in found
        ]

    def _once(self, kind: str, encode: Callable[[Image.Image], Any], picture: Image.Image) -> Any:
        key = (kind, pixel_digest(picture))
        with self._turn:
            if key not in self._kept:
                found = encode(picture)
                features = found if isinstance(found, torch.Tensor) else getattr(found, "high_res_features", None)
                # A segmenter may hold the picture itself, and embeddings that are small beside it.
                size = 3 * picture.width * picture.height + (0 if features is None else features.nbytes)
                self._kept[key] = found, size
                while len(self._kept) > 1 and sum(kept for _, kept in self._kept.values()) > self._max_bytes:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key][0]
