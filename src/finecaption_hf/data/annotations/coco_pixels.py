"""COCO's polygons and boxes -> pixels, as COCO's own tools draw them.

H, W: height and width in pixels. Coordinates are (x, y) in pixels. `as_mask` takes a pixel where its centre is inside;
COCO's library rounds corners to fifths of a pixel and walks along the edges, so that its masks differ in some pixels of
nearly every outline (1 to 5 in 100 pixels of a region). Files of COCO's family mean the latter.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...mask_codecs_finecaption import BoolArray, MaskError, numbers
from ...masks_finecaption import as_mask
from .shapes import check_picture

# COCO draws at five times the size of the picture.
_SCALE = 5
_MAX_COORDINATE = 1e8
# Real outlines cross some thousand columns and have few parts; these bound what a hostile one can cost.
_MAX_CROSSINGS = 2**21
_MAX_AREA = 2**26
_MAX_PARTS = 10_000


@dataclass(frozen=True)
class CocoRegion:
    """A region in the pixels of a picture whose size its file states: a `SizedRegion`.

    Attributes:
        size (`tuple[int, int]`, *optional*): (H, W) that the file gives its picture.
        polygons: COCO's `segmentation`, flat lists `[x, y, x, y, ...]` whose union is the region.
    """

    size: tuple[int, int] | None
    polygons: tuple[Any, ...]

    def __region_mask__(self, height: int, width: int) -> BoolArray:
        """As `SizedRegion` says.

        Raises:
            MaskError: If the picture is of another size than the file states, or the region has no pixel.
        """
        check_picture(self.size, height, width)
        drawn = coco_polygons(self.polygons, height, width)
        # What is too thin for COCO's library still marks a pixel, or there is an error that says why not.
        return drawn if drawn.any() else as_mask({"polygon": list(self.polygons)}, height, width)


def coco_polygons(parts: Any, height: int, width: int) -> BoolArray:
    """The union of polygons as `annToMask` of COCO's API draws it.

    Args:
        parts: flat lists `[x, y, x, y, ...]`.
        height, width (`int`): of the picture.

    Returns:
        bool, of shape (H, W); empty where COCO's library draws nothing.

    Raises:
        MaskError: If coordinates are no finite numbers, or drawing would cost more than any outline of a picture.

    Source of the rule: the COCO API (github.com/cocodataset/cocoapi), common/maskApi.c, `rleFrPoly`.
    """
    if len(parts) > _MAX_PARTS:
        raise MaskError(f"The region has {len(parts)} polygons, more than {_MAX_PARTS}. Give it as RLE.")
    region = np.zeros((height, width), np.bool_)
    crossings = area = 0
    for part in parts:
        corners = _corners(part)
        edges = _edges(corners, width)
        crossings += int(edges.counts.sum())
        if crossings > _MAX_CROSSINGS:
            raise MaskError("The polygons are too complex for their image. Simplify them, or give the region as RLE.")
        columns, rows = edges.crossings(height)
        if not columns.size:
            continue
        left, top = int(columns.min()), int(rows.min())
        span = int(columns.max()) - left + 1, int(rows.max()) - top + 1
        area += span[0] * span[1]
        if area > _MAX_AREA + 64 * height * width:
            raise MaskError("The polygons are too complex for their image. Simplify them, or give the region as RLE.")
        # In each column every crossing flips all that is below it; only the lowest bit of the sums counts.
        flips = np.zeros(span, np.uint8)
        np.add.at(flips.reshape(-1), (columns - left) * span[1] + rows - top, np.uint8(1))
        np.cumsum(flips, axis=1, dtype=np.uint8, out=flips)
        flips &= 1
        region[top : top + span[1], left : left + span[0]] |= flips[:, : height - top].view(np.bool_).T
    return region


@dataclass(frozen=True)
class _Edges:
    """The edges of a polygon between corners in fifths of a pixel, and the columns of pixels in which each counts."""

    start: NDArray[np.int64]  # (N, 2)
    stop: NDArray[np.int64]
    first_column: NDArray[np.int64]
    counts: NDArray[np.int64]

    def crossings(self, height: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Column and first row below of each crossing; rows end at the height of the picture."""
        chosen = np.repeat(np.arange(self.counts.size), self.counts)
        before = np.cumsum(self.counts) - self.counts
        columns = self.first_column[chosen] + np.arange(chosen.size) - before[chosen]
        x0, y0, x1, y1 = (ends[chosen, axis] for ends in (self.start, self.stop) for axis in (0, 1))
        # COCO walks along the longer side of an edge in whole steps, from its lower end, and rounds the other one. A
        # crossing is the step between the third and the fourth fifth of a column, and the lesser y of its two ends.
        is_flat = np.abs(x1 - x0) >= np.abs(y1 - y0)
        wanted = _SCALE * columns + _SCALE // 2
        along = wanted - np.minimum(x0, x1)
        lesser = np.minimum(*(_rounded(x0, y0, x1, y1, along + step) for step in (0, 1)))
        lesser = np.where(is_flat, lesser, _steps_to(wanted + 1, y0, x0, y1, x1))
        rows = np.ceil(np.clip((lesser + 0.5) / _SCALE - 0.5, 0, height))
        return columns, rows.astype(np.int64)


def _corners(part: Any) -> NDArray[np.int64]:
    """Corners in fifths of a pixel; an odd number at the end is dropped, as COCO's library does."""
    needed = "Give finite numbers in the image's pixels."
    flat = numbers(part, "The polygon has a coordinate", needed).astype(np.float64).reshape(-1)
    if not (np.abs(flat) <= _MAX_COORDINATE).all():
        raise MaskError(f"The polygon has a coordinate that is no position of a pixel. {needed}")
    points = flat[: flat.size // 2 * 2].reshape(-1, 2)
    return np.trunc(_SCALE * points + 0.5).astype(np.int64)


def _edges(corners: NDArray[np.int64], width: int) -> _Edges:
    stop = np.roll(corners, -1, axis=0)
    low, high = np.minimum(corners[:, 0], stop[:, 0]), np.maximum(corners[:, 0], stop[:, 0])
    # Column c counts where the edge goes from fifth 5 c + 2 to the next one.
    middle = _SCALE // 2
    first = np.maximum(-((middle - low) // _SCALE), 0)
    last = np.minimum((high - 1 - middle) // _SCALE, width - 1)
    return _Edges(corners, stop, first, np.maximum(last - first + 1, 0))


def _rounded(
    a0: NDArray[np.int64],
    b0: NDArray[np.int64],
    a1: NDArray[np.int64],
    b1: NDArray[np.int64],
    along: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Along the longer axis a, so many whole steps from the lower end: the other axis, rounded as in C."""
    swap = a0 > a1
    start, end = np.where(swap, b1, b0), np.where(swap, b0, b1)
    with np.errstate(divide="ignore", invalid="ignore"):  # edges that are a point have no crossing
        slope = (end - start) / np.abs(a1 - a0)
        return np.trunc(start + slope * along + 0.5)


def _steps_to(
    wanted: NDArray[np.int64],
    a0: NDArray[np.int64],
    b0: NDArray[np.int64],
    a1: NDArray[np.int64],
    b1: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Along the longer axis a: the last step before the rounded other axis reaches or leaves a value."""
    swap = a0 > a1
    start, end = np.where(swap, b1, b0), np.where(swap, b0, b1)
    length = np.abs(a1 - a0)
    with np.errstate(divide="ignore", invalid="ignore"):
        guess = np.floor((wanted - 0.5 - start) / (end - start) * length)
    guess = np.nan_to_num(guess)
    rises = end > start
    found = np.full(wanted.shape, np.inf)
    # The guess is a step off at most; what counts is where the sum, as C computes it, passes the value.
    for step in (guess + 2, guess + 1, guess, guess - 1):
        is_past = (_rounded(a0, b0, a1, b1, step.astype(np.int64)) >= wanted) == rises
        found = np.where(is_past & (step <= length), step, found)
    return np.minimum(a0, a1) + found - 1
