"""Geometry and tones from which scenes are drawn.

Signed distances are in pixels, negative inside, exact near the edges, which is all that antialiasing needs.

Legend: h w pixels of a patch, x (w,) and y (h, 1) pixel centres, K corners.
"""

import colorsys
from collections.abc import Callable

import numpy as np

# Full tones at no more than 3/4 of the range: the light tone of a texture must not clip, or its mean would shift.
BASE_RGB: dict[str, tuple[int, int, int]] = {
    "red": (190, 32, 36),
    "orange": (190, 98, 18),
    "yellow": (190, 174, 28),
    "green": (44, 150, 56),
    "cyan": (40, 174, 184),
    "blue": (40, 68, 190),
    "purple": (118, 44, 180),
    "pink": (190, 98, 150),
}
# Pixels of a 256 px picture. Of these periods an antialiased bicubic resize from 256 px to 84 px leaves about 1 % of
# the contrast; of 5.5 px it would leave a third. Stripes and dots are sums of sines without harmonics, which would fold
# back to lower frequencies. Checks lie on the diagonal in frequency and are filtered twice, so theirs may be longer and
# have edges.
TEXTURE_PERIODS: dict[str, float] = {"striped": 3.6, "dotted": 3.6, "checkered": 4.2}
TEXTURE_CONTRAST = 0.22  # standard deviation of the two tones, relative to their mean
_HUE_JITTER = 4.0  # degrees


def jittered_rgb(rng: np.random.Generator, color: str) -> np.ndarray:
    """A shade of a named color, float32 (3,), 0 to 255."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in BASE_RGB[color]))
    hue += rng.uniform(-_HUE_JITTER, _HUE_JITTER) / 360
    rgb = colorsys.hsv_to_rgb(hue % 1, saturation * rng.uniform(0.94, 1), value * rng.uniform(0.92, 1))
    return 255 * np.asarray(rgb, dtype=np.float32)


def tones(
    rng: np.random.Generator, texture: str, x: np.ndarray, y: np.ndarray, scale: float, inside: np.ndarray
) -> np.ndarray:
    """Factors (h, w) on a color: mean 1 inside, and the same contrast whatever the texture."""
    values = _texture(rng, texture, x, y, scale)
    if values is None:
        return np.ones(inside.shape, dtype=np.float32)
    values = values - values[inside].mean()
    return 1 + values * np.float32(TEXTURE_CONTRAST) / values[inside].std()


def _texture(rng: np.random.Generator, texture: str, x: np.ndarray, y: np.ndarray, scale: float) -> np.ndarray | None:
    """Tones (h, w) in any offset and unit, None for plain. Along the axes, where a resize filters best."""
    phase_x, phase_y = (np.float32(v) for v in rng.uniform(0, 2 * np.pi, size=2))
    horizontal = bool(rng.random() < 0.5)
    if texture == "plain":
        return None
    frequency = np.float32(2 * np.pi / (TEXTURE_PERIODS[texture] * scale))
    x, y = frequency * x + phase_x, frequency * y + phase_y
    if texture == "striped":
        return np.broadcast_to(np.sin(y) if horizontal else np.sin(x), (len(y), len(x)))
    if texture == "dotted":  # dark on light: light dots of the same contrast would clip
        return -(1 + np.cos(x)) * (1 + np.cos(y))
    return np.clip(3 * np.sin(x) * np.sin(y), -1, 1)


# Shapes: x and y relative to the centre, the width and height of the shape, its rotation in radians.


def _corners(points: np.ndarray, extent: float, rotation: float) -> np.ndarray:
    """Rotate points (K, 2) and stretch them so that their box is exactly extent x extent, centred on the origin."""
    cos, sin = np.cos(rotation), np.sin(rotation)
    turned = points @ np.array([[cos, sin], [-sin, cos]])
    low, high = turned.min(axis=0), turned.max(axis=0)
    return (turned - (low + high) / 2) * (extent / (high - low))


def _half_plane(x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Signed distance (h, w) to the line through two points, negative on the side of `inner`."""
    edge = end - start
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    if normal @ (inner - start) > 0:
        normal = -normal
    return np.float32(normal[0]) * x + (np.float32(normal[1]) * y - np.float32(normal @ start))


def _convex(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    inner = corners.mean(axis=0)
    planes = [_half_plane(x, y, corners[i - 1], corners[i], inner) for i in range(len(corners))]
    distance = planes[0]
    for plane in planes[1:]:
        np.maximum(distance, plane, out=distance)
    return distance


def disc(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """A disc around the origin."""
    return np.sqrt(x * x + y * y) - np.float32(radius)


def capsule(
    x: np.ndarray, y: np.ndarray, start: tuple[float, float], end: tuple[float, float], radius: float
) -> np.ndarray:
    """All points within `radius` of the segment from `start` to `end`, both (x, y)."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along_x, along_y = x - np.float32(start[0]), y - np.float32(start[1])
    length = dx * dx + dy * dy
    if length == 0:
        return disc(along_x, along_y, radius)
    share = np.clip((along_x * np.float32(dx) + along_y * np.float32(dy)) / np.float32(length), 0, 1)
    return disc(along_x - share * np.float32(dx), along_y - share * np.float32(dy), radius)


def box(x: np.ndarray, y: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """An upright rectangle."""
    horizontal = np.maximum(np.float32(left) - x, x - np.float32(right))
    return np.maximum(horizontal, np.maximum(np.float32(top) - y, y - np.float32(bottom)))


def _circle(x: np.ndarray, y: np.ndarray, extent: float, rotation: float) -> np.ndarray:
    return disc(x, y, extent / 2)


def _square(x: np.ndarray, y: np.ndarray, extent: float, rotation: float) -> np.ndarray:
    return _convex(x, y, _corners(np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]), extent, rotation))


def _diamond(x: np.ndarray, y: np.ndarray, extent: float, rotation: float) -> np.ndarray:
    return _convex(x, y, _corners(np.array([[0.0, -1], [1, 0], [0, 1], [-1, 0]]), extent, rotation))


def _triangle(x: np.ndarray, y: np.ndarray, extent: float, rotation: float) -> np.ndarray:
    return _convex(x, y, _corners(np.array([[0.0, -1], [1, 1], [-1, 1]]), extent, rotation))


def _star(x: np.ndarray, y: np.ndarray, extent: float, rotation: float) -> np.ndarray:
    angles = 2 * np.pi * np.arange(5) / 5 - np.pi / 2
    tips = _corners(np.stack([np.cos(angles), np.sin(angles)], axis=1), extent, rotation)
    inner = tips.mean(axis=0)
    # Inside a pentagram a point is on the outer side of at most one of its five lines: the second largest distance.
    planes = [_half_plane(x, y, tips[i], tips[(i + 2) % 5], inner) for i in range(5)]
    largest, second = np.maximum(planes[0], planes[1]), np.minimum(planes[0], planes[1])
    for plane in planes[2:]:
        np.maximum(second, np.minimum(largest, plane), out=second)
        np.maximum(largest, plane, out=largest)
    return second


def _cross(x: np.ndarray, y: np.ndarray, extent: float, rotation: float) -> np.ndarray:
    arm = 0.38  # width of the arms, relative to their length
    upright = np.array([[-arm, -1], [arm, -1], [arm, 1], [-arm, 1]])
    corners = _corners(np.concatenate([upright, upright[:, ::-1]]), extent, rotation)
    return np.minimum(_convex(x, y, corners[:4]), _convex(x, y, corners[4:]))


SHAPE_DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "diamond": _diamond,
}
