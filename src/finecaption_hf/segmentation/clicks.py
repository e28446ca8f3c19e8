"""What a user points at: points and a box in a picture's pixels, checked before anything is computed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..prompts_finecaption import FineCaptionError


class SegmentationError(FineCaptionError, ValueError):
    """Points, a box or a segmenter that cannot be used; the message says what to give instead."""


class Clicks(NamedTuple):
    """Points (P, 2) as (x, y), labels (P,), 1 in the region and 0 outside of it, and a box_xyxy (4,) or `None`."""

    points: np.ndarray
    labels: np.ndarray
    box_xyxy: np.ndarray | None


def checked_clicks(
    points: Sequence[Any] | None, labels: Sequence[Any] | None, box_xyxy: Sequence[Any] | None, height: int, width: int
) -> Clicks:
    """Check what was pointed at in a picture of `height` x `width` pixels; the box is cut at the picture's border.

    Raises:
        SegmentationError: If there is neither a positive point nor a box, a point lies outside of the picture, a box is
            empty or outside, or labels do not go with the points.
    """
    points = [] if points is None else list(points)
    places = _numbers(points, (len(points), 2), "points", "[(x, y), ...]")
    for x, y in places.tolist():
        if not (0 <= x < width and 0 <= y < height):
            raise SegmentationError(
                f"The point ({x:g}, {y:g}) lies outside of the picture, which is {width} wide and {height} high. "
                "Points are (x, y) in its pixels, counted from the top left."
            )
    if labels is None:
        labels = [1] * len(points)
    if len(labels) != len(points):
        raise SegmentationError(f"There are {len(labels)} labels for {len(points)} points; give one per point.")
    if any(label not in (0, 1) for label in labels):
        raise SegmentationError(f"The labels {list(labels)!r} arrived; a label is 1 (in the region) or 0 (outside).")
    box = None
    if box_xyxy is not None:
        box = _numbers(box_xyxy, (4,), "box_xyxy", "[x0, y0, x1, y1]")
        shown = "[{:g}, {:g}, {:g}, {:g}]".format(*box.tolist())
        if not (box[0] < box[2] and box[1] < box[3]):
            raise SegmentationError(f"The box {shown} is empty: x0 < x1 and y0 < y1 are needed.")
        box = np.clip(box, 0, [width, height, width, height])
        if not (box[0] < box[2] and box[1] < box[3]):
            raise SegmentationError(
                f"The box {shown} lies outside of the picture, which is {width} wide and {height} high."
            )
    elif 1 not in labels:
        raise SegmentationError(
            f"{len(points)} points arrived, none of them positive, and no box. Give a point of the region with label "
            "1, or a box_xyxy."
        )
    return Clicks(places, np.array(labels, dtype=np.int64), box)


def _numbers(values: Any, shape: tuple[int, ...], what: str, needed: str) -> np.ndarray:
    try:
        numbers = np.asarray(values, dtype=np.float64).reshape(shape)
    except (TypeError, ValueError, OverflowError) as error:
        raise SegmentationError(f"{what} must be {needed} in pixels, but {values!r:.80} arrived.") from error
    if not np.isfinite(numbers).all():
        raise SegmentationError(f"{what} hold a number that is not finite: {values!r:.80}. Give {needed} in pixels.")
    return numbers
