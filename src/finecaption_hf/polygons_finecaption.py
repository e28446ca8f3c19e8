"""Outlines -> pixels: boxes and polygons, safe on hostile input.

H, W: height and width of the image in pixels. Coordinates are (x, y) in pixels, where the pixel in row r and column c
covers [c, c + 1) x [r, r + 1) and has its centre at (c + 0.5, r + 0.5). A pixel belongs to a shape when its centre
does; left and top borders are inside, right and bottom ones are not, so shapes that share a border share no pixel. A
shape that holds no centre marks the pixels under its middle.
"""

import itertools
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .mask_codecs_finecaption import BoolArray, MaskError, arrived, is_sequence, numbers

_FloatArray = NDArray[np.float64]
_Window = tuple[int, int, int, int]  # top, bottom, left, right; ends are exclusive

# Farther out, a coordinate is not a pixel position any more, and double precision would soon round it to whole pixels.
_MAX_COORDINATE = 1e9
# Outlines of real regions have some thousand points; these bound what one hostile reference can cost in time.
_MAX_POINTS = 1_000_000
_MAX_RINGS = 10_000
_MAX_AREA = 2**26
_MAX_CROSSINGS = 2**22
# Crossings of edges and centre lines handled at once: bounds the temporary arrays to some tens of MiB.
_CROSSINGS_PER_CHUNK = 2**18
# What is narrower than this, relative to the largest coordinate, is a line up to rounding.
_FLATNESS = 1e-12

logger = logging.getLogger(__name__)


def box_mask(values: Any, height: int, width: int) -> BoolArray:
    """The pixels of box_xyxy `[x0, y0, x1, y1]`; of one thinner than a pixel, per axis the one under its middle."""
    needed = "Give box_xyxy = [x0, y0, x1, y1] of one region, in pixels."
    if not is_sequence(values) or len(values) != 4:
        raise MaskError(f"{arrived(values)} is no box. {needed}")
    box = _coordinates(values, "The box")
    if box.size != 4:
        raise MaskError(f"{arrived(values)} holds more than one box. {needed}")
    x0, y0, x1, y1 = box.tolist()
    shown = f"The box [{x0:g}, {y0:g}, {x1:g}, {y1:g}]"
    if x1 <= x0 or y1 <= y0:
        raise MaskError(
            f"{shown} is degenerate: x0 < x1 and y0 < y1 are needed. Boxes are box_xyxy; from [x, y, width, height] "
            "make [x, y, x + width, y + height]."
        )
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise MaskError(f"{shown} lies outside the image of {height}x{width} (height x width). {needed}")
    _warn_if_normalised(box, "box", height, width, stacklevel=5)
    region = np.zeros((height, width), dtype=np.bool_)
    region[_covered(y0, y1, height), _covered(x0, x1, width)] = True
    return region


def _covered(start: float, stop: float, size: int) -> slice:
    start, stop = max(start, 0.0), min(stop, float(size))
    first, end = int(np.ceil(start - 0.5)), int(np.ceil(stop - 0.5))
    if first >= end:
        first = min(int((start + stop) / 2), size - 1)
        end = first + 1
    return slice(first, end)


def polygon_mask(values: Any, height: int, width: int) -> BoolArray:
    """The pixels of `[x, y, x, y, ...]`, of `[[x, y], ...]`, or of the union of `[[x, y, ...], [x, y, ...]]`."""
    needed = "Give [x, y, x, y, ...], [[x, y], ...], or a list of such flat lists for several polygons."
    if not is_sequence(values) or len(values) == 0:
        raise MaskError(f"{arrived(values)} is no polygon. {needed}")
    nested = [isinstance(values, (list, tuple)) and is_sequence(entry) for entry in values]
    if not any(nested) or (all(nested) and all(len(entry) == 2 for entry in values)):
        return _fill([[_ring(values, "The polygon")]], height, width)
    if not all(nested):
        raise MaskError(f"{arrived(values)} mixes lists with other entries. as_mask takes one region. {needed}")
    if all(len(entry) == 4 for entry in values):
        raise MaskError(
            f"{arrived(values)} with 4 numbers each looks like boxes. as_mask takes one region: pass one box."
        )
    if any(is_sequence(number) for entry in values for number in itertools.islice(entry, 1)):
        raise MaskError(
            "Lists of points inside a list arrived: several polygons, or holes? Give several as flat lists [[x, y, "
            "...], ...], holes as GeoJSON {'type': 'Polygon', 'coordinates': [outline, hole, ...]}."
        )
    _check_number(len(values), _MAX_RINGS, "polygons")
    return _fill([[_ring(entry, f"Polygon {i + 1}")] for i, entry in enumerate(values)], height, width)


def geojson_mask(kind: Any, coordinates: Any, height: int, width: int) -> BoolArray:
    """The pixels of a GeoJSON Polygon or MultiPolygon: rings after the first of a polygon are holes."""
    if not isinstance(kind, str) or kind not in ("Polygon", "MultiPolygon"):
        raise MaskError(f"{arrived(kind)} is no GeoJSON type of a region. Give a Polygon or a MultiPolygon in pixels.")
    given = [coordinates] if kind == "Polygon" else coordinates
    for polygon in [given, *given] if isinstance(given, (list, tuple)) else [given]:
        if not isinstance(polygon, (list, tuple)) or not polygon:
            raise MaskError(
                f"{arrived(polygon)} arrived in a GeoJSON {kind}. Give a list of rings for each polygon: its outline, "
                "then its holes."
            )
    _check_number(sum(map(len, given)), _MAX_RINGS, "rings")
    rings = [[_ring(ring, f"Ring {j + 1} of polygon {i + 1}") for j, ring in enumerate(p)] for i, p in enumerate(given)]
    return _fill(rings, height, width)


# --- Coordinates -----------------------------------------------------------------------------------------------------


def _ring(values: Any, what: str) -> _FloatArray:
    """`[x, y, x, y, ...]`, `[[x, y], ...]` or an array of shape (N, 2) -> (N, 2)."""
    needed = "Give its points as [x, y, x, y, ...] or [[x, y], ...], x before y."
    if not is_sequence(values):
        raise MaskError(f"{arrived(values)} arrived as {what[0].lower()}{what[1:]}. {needed}")
    _check_number(len(values) // 2, _MAX_POINTS, "points")
    if isinstance(values, (list, tuple)) and any(map(is_sequence, values)):
        if not all(is_sequence(point) and len(point) == 2 for point in values):
            raise MaskError(f"{what} has a point that is not a pair. {needed}")
        values = list(itertools.chain.from_iterable(values))
    elif not isinstance(values, (list, tuple)) and values.shape[1:] not in ((), (2,)):
        raise MaskError(f"{what} is of shape {tuple(values.shape)}. {needed}")
    flat = _coordinates(values, what)
    if flat.size % 2 or not flat.size:
        raise MaskError(f"{what} has {flat.size} coordinates. {needed}")
    return flat.reshape(-1, 2)


def _coordinates(values: Any, what: str) -> _FloatArray:
    """Numbers in a list, array or tensor -> float64 in one dimension; finite, and near enough to be pixels."""
    needed = "Give finite numbers in the image's pixels."
    flat: _FloatArray = numbers(values, f"{what} has a coordinate", needed).astype(np.float64).reshape(-1)
    if not (np.abs(flat) <= _MAX_COORDINATE).all():
        wrong = f"beyond {_MAX_COORDINATE:.0e} pixels" if np.isfinite(flat).all() else "NaN or infinite"
        raise MaskError(f"{what} has a coordinate that is {wrong}. {needed}")
    return flat


def _check_number(number: int, limit: int, what: str) -> None:
    if number > limit:
        raise MaskError(f"The region has {number} {what}, more than {limit}. Simplify it, or give a mask or RLE.")


def _warn_if_normalised(values: _FloatArray, what: str, height: int, width: int, stacklevel: int) -> None:
    if height > 1 and width > 1 and (values >= 0).all() and (values <= 1).all() and (values % 1 != 0).any():
        warnings.warn(
            f"All coordinates of the {what} lie between 0 and 1, so the region is one pixel of {height}x{width}. If "
            "they are fractions of the image, multiply x by its width and y by its height.",
            UserWarning,
            stacklevel=stacklevel,
        )


# --- Pixels ----------------------------------------------------------------------------------------------------------


def _fill(polygons: list[list[_FloatArray]], height: int, width: int) -> BoolArray:
    """The union of polygons, each an outline followed by its holes."""
    _check_work(list(itertools.chain.from_iterable(polygons)), height, width)
    region = np.zeros((height, width), dtype=np.bool_)
    num_empty = 0
    for outline, *holes in polygons:
        top, bottom, left, right = window = _window(outline, (0, height, 0, width))
        part = _filled(outline, window)
        for hole in holes:
            inner = _window(hole, window)
            part[inner[0] - top : inner[1] - top, inner[2] - left : inner[3] - left] &= ~_filled(hole, inner)
        region[top:bottom, left:right] |= part
        if not part.any():  # without this, thin and tiny regions would vanish
            rows, columns = _middles([outline, *holes], height, width)
            region[rows, columns] = True
            num_empty += rows.size == 0
    points = np.concatenate([rings[0] for rings in polygons])
    if num_empty == len(polygons):
        low, high = points.min(axis=0), points.max(axis=0)
        raise MaskError(
            f"The polygon of {len(points)} points (x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}) covers no "
            f"pixel of the image of {height}x{width} (height x width): it lies on one line or outside, cancels itself "
            "or is all hole. Give at least three points that span an area, in the image's pixels, x before y."
        )
    if num_empty:  # tools that trace masks write parts of one or two points
        logger.warning("Left out %d of %d parts of a region, which cover no pixel.", num_empty, len(polygons))
    _warn_if_normalised(points, "polygon", height, width, stacklevel=6)
    return region


def _check_work(rings: list[_FloatArray], height: int, width: int) -> None:
    """Refuse, before any pixel is made, what would cost more time or memory than its image allows."""
    _check_number(sum(map(len, rings)), _MAX_POINTS, "points")
    inside = [np.clip(ring, 0, (width, height)) for ring in rings]
    area = sum(np.prod(np.ptp(ring, axis=0) + 1) for ring in inside)
    crossings = sum(np.abs(ring - np.roll(ring, -1, axis=0)).sum() for ring in inside)
    if area > _MAX_AREA + 64 * height * width or crossings > _MAX_CROSSINGS + height * width / 8:
        raise MaskError("The polygons are too complex for their image. Simplify them, or give a mask or RLE.")


def _window(ring: _FloatArray, bounds: _Window) -> _Window:
    """The part of bounds whose pixels have their centres where the ring can cover them."""
    top, bottom, left, right = bounds
    first_x, first_y = np.ceil(ring.min(axis=0) - 0.5).astype(np.int64).tolist()
    end_x, end_y = np.ceil(ring.max(axis=0) - 0.5).astype(np.int64).tolist()
    top, left = min(max(top, first_y), bottom), min(max(left, first_x), right)
    return top, max(top, min(bottom, end_y)), left, max(left, min(right, end_x))


def _filled(ring: _FloatArray, window: _Window) -> BoolArray:
    """Even-odd filling of one ring by pixel centres, for the pixels of a window.

    Every edge flips, in each row whose centre line it crosses, all pixels to the right of the crossing. It is enough to
    flip the first of them and to sum along the rows at the end. Sums in uint8 wrap, but their lowest bit stays right.
    """
    top, bottom, left, right = window
    stride = right - left + 1  # one column more takes the flips to the right of the window
    flips = np.zeros((bottom - top, stride), dtype=np.uint8)
    for rows, x in _crossings(ring, top, bottom):
        columns = np.clip(np.ceil(x - 0.5), left, right) - left
        np.add.at(flips.reshape(-1), ((rows - top) * stride + columns).astype(np.int64), np.uint8(1))
    np.cumsum(flips, axis=1, dtype=np.uint8, out=flips)
    flips &= 1
    return flips[:, :-1].view(np.bool_)


def _crossings(ring: _FloatArray, top: int, bottom: int) -> Iterator[tuple[_FloatArray, _FloatArray]]:
    """Where the edges of a ring cross the centre lines of the rows from top to bottom: rows and x, in chunks."""
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
    i = 0
    while i < totals.size:
        j = max(i + 1, int(np.searchsorted(totals, before[i] + _CROSSINGS_PER_CHUNK, side="right")))
        edges = np.repeat(np.arange(i, j), num_rows[i:j])
        rows = first_row[edges] + np.arange(before[i], totals[j - 1]) - before[edges]
        run = lower[edges] - upper[edges]
        yield rows, upper[edges, 0] + (rows + 0.5 - upper[edges, 1]) * run[:, 0] / run[:, 1]
        i = j


def _middles(rings: list[_FloatArray], height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the pixels that stand for a polygon without a pixel's centre.

    On each centre line that it crosses, along rows and along columns, the pixel under the middle of what is inside, so
    that a thin line has no gaps; of a shape between centre lines, the one under the mean of its corners.
    """
    outline, size, flat = rings[0], np.array([width, height]), _FLATNESS * np.abs(rings[0]).max()
    crosses, cells = False, [np.zeros((0, 2))]
    for turn in (1, -1):  # x along rows, then y along columns
        length, num_lines = size[::turn]
        found = [each for ring in rings for each in _crossings(ring[:, ::turn], 0, num_lines)]
        crosses = crosses or bool(found)
        lines, places = (np.concatenate(part) for part in zip((np.zeros(0),) * 2, *found))
        order = np.lexsort((places, lines))
        low, high = np.clip(places[order].reshape(-1, 2), 0, length).T
        middles = np.minimum((low + high) / 2, length - 1)
        wide = high - low > flat
        cells.append(np.stack([middles, lines[order][::2]], axis=1)[wide, ::turn])
    if not any(map(len, cells)) and (not crosses or (np.ptp(outline, axis=0) <= 1).all()):
        inside = ((outline > 0) & (outline < size)).all(axis=1)
        x, y = (outline - outline[0]).T
        if inside.any() and abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) > flat:
            cells.append(outline[inside].mean(axis=0, keepdims=True))
    pixels = np.floor(np.concatenate(cells))
    # A hole that reaches over its outline adds nothing there.
    pixels = pixels[((pixels > outline.min(axis=0) - 1) & (pixels < outline.max(axis=0))).all(axis=1)]
    columns, rows = pixels.astype(np.int64).T
    return rows, columns
