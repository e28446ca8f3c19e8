"""The form of a region's outline in a word, by comparison with simple figures.

A region is turned into a picture in polar coordinates around its middle, stretched so that its second moments are those
of a disc. Every ellipse then is a disc, every triangle an equilateral one and every parallelogram a square, so that
five figures, turned, are enough. How well one fits is their intersection over union.

Legend: h w pixels of the region's box, R rings, S spokes, T figures in all their turns.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

RINGS, SPOKES = 36, 120
_REACH = 3.6  # of the outermost ring, in standard deviations: a star's tips lie at 3
_REGULAR = 1.15  # ratio of the axes up to which an ellipse is a circle and a rectangle a square


class Outline(NamedTuple):
    """What the outline looks like most: the figure's name, and how well it fits (intersection over union, 0 to 1)."""

    name: str
    fit: float


def read_outline(region: np.ndarray) -> Outline:
    """Compare a region with circle, ellipse, square, rectangle, diamond, parallelogram, triangle, star and cross.

    Args:
        region: bool (h, w), with at least one True.
    """
    polar, axes, direction = _polar(region)
    figures, areas, names, turns = _figures()
    ring_areas = np.repeat(np.arange(RINGS) + 0.5, SPOKES)
    weighted = polar.ravel() * ring_areas
    common = figures @ weighted
    fits = common / (areas + weighted.sum() - common)
    best = int(fits.argmax())
    is_regular = axes[0] <= _REGULAR * axes[1]
    name = names[best]
    if name == "ellipse" and is_regular:
        name = "circle"
    elif name == "rectangle":
        # Degrees from a corner to the nearest of the axes, or of the picture's sides where no axis is the longer one.
        corner = (45 + turns[best] - (0.0 if is_regular else math.degrees(direction))) % 90
        tilt = min(corner, 90 - corner)
        if tilt < 15 or (is_regular and tilt < 22.5):
            name = "diamond"
        elif is_regular:
            name = "square"
        elif tilt < 30:
            name = "parallelogram"
    return Outline(name, float(fits[best]))


def _polar(region: np.ndarray) -> tuple[np.ndarray, tuple[float, float], float]:
    """A region on rings and spokes, float32 (R, S); its axes' standard deviations in pixels, the longer one first; and
    the longer one's direction in radians, from x to y."""
    values = region.astype(np.float32)
    columns, rows = values.sum(axis=0), values.sum(axis=1)
    area = float(rows.sum())
    x, y = np.arange(len(columns)), np.arange(len(rows))
    middle_x, middle_y = float(columns @ x) / area, float(rows @ y) / area
    x, y = (x - middle_x).astype(np.float32), (y - middle_y).astype(np.float32)
    across = float(y @ values @ x) / area
    spread = np.array([[columns @ (x * x) / area + 1 / 12, across], [across, rows @ (y * y) / area + 1 / 12]])
    variances, directions = np.linalg.eigh(spread)
    deviations = np.sqrt(variances)
    stretch = directions @ np.diag(deviations) @ directions.T
    radii = (np.arange(RINGS) + 0.5) * _REACH / RINGS
    angles = np.arange(SPOKES) * 2 * math.pi / SPOKES
    unit = np.stack([np.cos(angles), np.sin(angles)])
    points = np.rint((stretch @ unit)[:, None] * radii[:, None] + np.array([middle_x, middle_y])[:, None, None])
    at_x, at_y = points.astype(int)
    is_within = (at_x >= 0) & (at_x < region.shape[1]) & (at_y >= 0) & (at_y < region.shape[0])
    polar = np.zeros((RINGS, SPOKES), dtype=np.float32)
    polar[is_within] = region[at_y[is_within], at_x[is_within]]
    return polar, (float(deviations[1]), float(deviations[0])), math.atan2(directions[1, 1], directions[0, 1])


@cache
def _figures() -> tuple[np.ndarray, np.ndarray, list[str], list[float]]:
    """All figures in all turns: float32 (T, R * S); their areas (T,), names, and turns in degrees."""
    ring_areas = np.repeat(np.arange(RINGS) + 0.5, SPOKES)
    rows, names, turns = [], [], []
    for name, (corners, symmetry) in _corners().items():
        side = 400
        canvas = Image.new("1", (side, side))
        ImageDraw.Draw(canvas).polygon([(side / 2 + x * 180, side / 2 + y * 180) for x, y in corners], fill=1)
        polar, _, _ = _polar(np.asarray(canvas))
        for shift in range(1 if name == "ellipse" else SPOKES // symmetry):
            rows.append(np.roll(polar, shift, axis=1).ravel())
            names.append(name)
            turns.append(shift * 360 / SPOKES)
    figures = np.stack(rows)
    return figures, figures @ ring_areas, names, turns


def _corners() -> dict[str, tuple[list[tuple[float, float]], int]]:
    """Corners (x, y) of each figure within the unit circle, and how many turns bring it onto itself."""

    def ring(count: int, radius: float = 1.0, first: float = 0.0) -> list[tuple[float, float]]:
        angles = [first + 2 * math.pi * number / count for number in range(count)]
        return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]

    tips, notches = ring(5), ring(5, (3 - math.sqrt(5)) / 2, math.pi / 5)  # of a pentagram
    arm = 0.36
    quarter = [(0.93, -arm), (0.93, arm), (arm, arm)]
    cross = [
        (x * round(math.cos(turn)) - y * round(math.sin(turn)), x * round(math.sin(turn)) + y * round(math.cos(turn)))
        for turn in (0, math.pi / 2, math.pi, 3 * math.pi / 2)
        for x, y in quarter
    ]
    return {
        "ellipse": (ring(180), SPOKES),
        "rectangle": (ring(4, 1.0, math.pi / 4), 4),
        "triangle": (ring(3), 3),
        "star": ([point for pair in zip(tips, notches) for point in pair], 5),
        "cross": (cross, 4),
    }
