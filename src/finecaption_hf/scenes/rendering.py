"""Scenes of coloured, textured shapes, drawn with exact masks and exact attributes.

The pictures are made for a captioner with two eyes: colour, shape, size and position survive a resize from 256 px to
84 px, texture does not. So a model names the texture only if its high-resolution towers work, and names the right
object only if the mask reaches it.

Legend: H W pixels of the picture, h w pixels of one object's patch, R regions (objects), A layout attempts, K corners.
Lengths and positions in the constants are in pixels of a 256 px picture; everything scales with the size.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

REFERENCE_SIZE = 256
MIN_SIZE, MAX_SIZE = 192, 1024  # pixels; in a smaller picture the textures' period would near two pixels

# Full tones at no more than 3/4 of the range: the light tone of a texture must not clip, or its mean would shift.
_BASE_RGB: dict[str, tuple[int, int, int]] = {
    "red": (190, 32, 36),
    "orange": (190, 98, 18),
    "yellow": (190, 174, 28),
    "green": (44, 150, 56),
    "cyan": (40, 174, 184),
    "blue": (40, 68, 190),
    "purple": (118, 44, 180),
    "pink": (190, 98, 150),
}
COLORS: tuple[str, ...] = tuple(_BASE_RGB)
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted", "checkered")
POSITIONS: tuple[str, ...] = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
# Widths of an object. The lower bound leaves room for sharp tips that cover no pixel centre: boxes stay above 64 px,
# two 32 px cells, on both sides.
EXTENTS: dict[str, tuple[float, float]] = {"small": (68.0, 76.0), "large": (98.0, 120.0)}
SIZES: tuple[str, ...] = tuple(EXTENTS)
MAX_OBJECTS = len(POSITIONS)

# Periods of which an antialiased bicubic resize from 256 px to 84 px leaves about 1 % of the contrast; of 5.5 px it
# would leave a third. Stripes and dots are sums of sines without harmonics, which would fold back to lower frequencies.
# Checks lie on the diagonal in frequency and are filtered twice, so theirs may be longer and have edges.
TEXTURE_PERIODS: dict[str, float] = {"striped": 3.6, "dotted": 3.6, "checkered": 4.2}
TEXTURE_CONTRAST = 0.22  # standard deviation of the two tones, relative to their mean

_EDGE_MARGIN = 2.0  # between an object and the picture's border
_GAP = 5.0  # between two objects
_CELL_MARGIN = 5.0  # between an object's centre and the borders of the 3x3 grid
_MAX_ROTATION = {"square": 8.0, "triangle": 8.0, "star": 12.0, "cross": 8.0}  # degrees; the shape keeps its name
_ATTEMPTS = 128
_LARGE_SHARE = 0.8  # more than half, because layouts with large objects fit more rarely
_HUE_JITTER = 4.0  # degrees
_NOISE = 4  # grey levels

Triple = tuple[str, str, str]


@dataclass(frozen=True)
class SceneObject:
    """One object: its attributes in words and its geometry in pixels.

    Attributes:
        box_xyxy: the mask's box in pixels, exclusive end.
        center_xy: the centre of the drawn shape's box in pixels; `position` says in which of 3x3 cells it lies.
        extent: width and height of the drawn shape in pixels.
        rotation: in degrees.
    """

    color: str
    shape: str
    texture: str
    size: str
    position: str
    box_xyxy: tuple[int, int, int, int]
    center_xy: tuple[float, float]
    extent: float
    rotation: float

    @property
    def triple(self) -> Triple:
        """(color, shape, texture): what the split holds out."""
        return self.color, self.shape, self.texture


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture with its regions; `masks[r]` is the visible part of `objects[r]`.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        masks: bool (R, H, W), disjoint.
    """

    image: np.ndarray
    masks: np.ndarray
    objects: tuple[SceneObject, ...]
    seed: int
    split: Split


def is_held_out(color: str, shape: str, texture: str) -> bool:
    """Whether the combination is kept for the test split.

    A Latin-square rule: with two of the three attributes fixed, at most two values of the third are held out, so the
    training split shows every pair of values.
    """
    return (COLORS.index(color) + 2 * SHAPES.index(shape) + 3 * TEXTURES.index(texture)) % 5 == 0


HELD_OUT: frozenset[Triple] = frozenset(t for t in product(COLORS, SHAPES, TEXTURES) if is_held_out(*t))
_TRIPLES: dict[Split, tuple[Triple, ...]] = {
    "train": tuple(t for t in product(COLORS, SHAPES, TEXTURES) if t not in HELD_OUT),
    "test": tuple(t for t in product(COLORS, SHAPES, TEXTURES) if t in HELD_OUT),
}


def triples(split: Split) -> tuple[Triple, ...]:
    """The (color, shape, texture) combinations of a split, in a fixed order."""
    _check_split(split)
    return _TRIPLES[split]


def render_scene(
    seed: int, *, size: int = REFERENCE_SIZE, split: Split = "train", num_objects: int | None = None
) -> Scene:
    """Draw the scene of a seed.

    The same arguments give the same bytes. The two splits share no combination of color, shape and texture and no
    random stream; `size` changes the resolution, not the content.

    Args:
        seed: 0 or greater.
        size: height and width in pixels, 192 to 1024.
        num_objects: 1 to 9; by default 2 to 4, drawn from the seed.

    Raises:
        ValueError: If an argument is out of range.
    """
    _check_split(split)
    if seed < 0:
        raise ValueError(f"The seed is {seed}. Give an integer of 0 or more.")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"The size is {size} px. Give {MIN_SIZE} to {MAX_SIZE} px.")
    if num_objects is not None and not 1 <= num_objects <= MAX_OBJECTS:
        raise ValueError(f"num_objects is {num_objects}. Give 1 to {MAX_OBJECTS}: one for each position at most.")
    rng = np.random.default_rng([SPLITS.index(split), seed])
    drawn = int(rng.integers(2, 5))
    count = drawn if num_objects is None else num_objects

    chosen = _choose_triples(rng, _TRIPLES[split], count)
    sizes, extents, centers, positions = _place(rng, count)
    scale = size / REFERENCE_SIZE
    picture = _background(rng, size)
    masks = np.zeros((count, size, size), dtype=bool)
    objects = []
    for index, (color, shape, texture) in enumerate(chosen):
        center_x, center_y = (float(v) * scale for v in centers[index])
        extent = float(extents[index]) * scale
        rotation = float(rng.uniform(-1, 1)) * _MAX_ROTATION.get(shape, 0.0)
        box = _draw(rng, picture, masks[index], (center_x, center_y), extent, rotation, color, shape, texture, scale)
        objects.append(
            SceneObject(
                color=color,
                shape=shape,
                texture=texture,
                size=sizes[index],
                position=positions[index],
                box_xyxy=box,
                center_xy=(center_x, center_y),
                extent=extent,
                rotation=rotation,
            )
        )
    # Noise comes last, so that the layout does not depend on the number of pixels.
    picture += rng.integers(-_NOISE, _NOISE + 1, size=(size, size, 1), dtype=np.int8)
    image = np.clip(picture, 0, 255, out=picture).astype(np.uint8)
    return Scene(image=image, masks=masks, objects=tuple(objects), seed=seed, split=split)


def render_swatches(seed: int, *, cells: int = 2, side: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a board of colour and texture swatches, a denser lesson for an image encoder than scenes are.

    Args:
        seed: 0 or greater; apart from the random streams of `render_scene`.
        cells: swatches a side.
        side: pixels a side of one swatch. Textures are those of a 256 px scene.

    Returns:
        The board, uint8 (cells * side, cells * side, 3), and two int64 arrays (cells, cells): indices into `COLORS` and
        `TEXTURES`.

    Raises:
        ValueError: If an argument is out of range.
    """
    if seed < 0 or cells < 1 or side < 8:
        raise ValueError(
            f"Seed {seed}, {cells} swatches of {side} px a side. Give a seed of 0 or more, one swatch of 8 px."
        )
    rng = np.random.default_rng([len(SPLITS), seed])
    colors, textures = rng.integers(len(COLORS), size=(cells, cells)), rng.integers(len(TEXTURES), size=(cells, cells))
    size = cells * side
    board = np.empty((size, size, 3), dtype=np.float32)
    xs = np.arange(side, dtype=np.float32) + np.float32(0.5)
    inside = np.ones((side, side), dtype=bool)
    for row, column in product(range(cells), repeat=2):
        tones = _tones(rng, TEXTURES[textures[row, column]], xs, xs[:, None], 1.0, inside)
        swatch = tones[..., None] * _jittered_rgb(rng, COLORS[colors[row, column]])
        board[row * side : (row + 1) * side, column * side : (column + 1) * side] = swatch
    board += rng.integers(-_NOISE, _NOISE + 1, size=(size, size, 1), dtype=np.int8)
    return np.clip(board, 0, 255, out=board).astype(np.uint8), colors, textures


def position_of(center_x: float, center_y: float, width: float, height: float) -> str:
    """The word for the 3x3 cell in which a point lies."""
    column, row = (min(max(int(3 * v / side), 0), 2) for v, side in ((center_x, width), (center_y, height)))
    return POSITIONS[3 * row + column]


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}. Choose one of: {', '.join(SPLITS)}.")


def _choose_triples(rng: np.random.Generator, pool: tuple[Triple, ...], count: int) -> list[Triple]:
    """Combinations that differ in color or shape, so that no two objects of a scene share a name."""
    chosen: dict[tuple[str, str], Triple] = {}
    while len(chosen) < count:
        triple = pool[int(rng.integers(len(pool)))]
        chosen.setdefault(triple[:2], triple)
    return list(chosen.values())


def _place(rng: np.random.Generator, count: int) -> tuple[list[str], np.ndarray, np.ndarray, list[str]]:
    """Sizes, extents (R,), centres (R, 2) as x, y, and positions of objects whose boxes keep a gap.

    The positions are drawn first and kept, so that all are equally frequent, and so are wishes for sizes. Sizes and
    offsets are drawn many times at once; of the layouts that fit, the one that grants most wishes is taken.
    """
    low, high = (np.array([EXTENTS[name][end] for name in SIZES]) for end in (0, 1))
    cell = REFERENCE_SIZE / 3
    cells = rng.permutation(len(POSITIONS))[:count]
    grid = np.stack([cells % 3, cells // 3], axis=-1)  # (R, 2): column, row
    positions = [POSITIONS[i] for i in cells]
    wanted = rng.random(count) < _LARGE_SHARE
    # From anything goes to small objects in the middle of their cells, which fit whatever the cells.
    freedom = np.linspace(1, 0, _ATTEMPTS)[:, None]  # (A, 1)
    size_index = (rng.random((_ATTEMPTS, count)) < _LARGE_SHARE * freedom).astype(np.int64)  # (A, R)
    extents = low[size_index] + rng.random((_ATTEMPTS, count)) * (high - low)[size_index]
    border = (extents / 2 + _EDGE_MARGIN)[..., None]
    start = np.maximum(grid * cell + _CELL_MARGIN, border)
    stop = np.minimum((grid + 1) * cell - _CELL_MARGIN, REFERENCE_SIZE - border)
    middle = np.clip((grid + 0.5) * cell, start, stop)
    centers = start + rng.random((_ATTEMPTS, count, 2)) * (stop - start)
    centers = middle + freedom[..., None] * (centers - middle)
    first, second = np.triu_indices(count, 1)
    distance = np.abs(centers[:, first] - centers[:, second]).max(axis=-1)
    fits = (distance >= (extents[:, first] + extents[:, second]) / 2 + _GAP).all(axis=1)
    attempt = int(np.where(fits, (size_index == wanted).sum(axis=1), -1).argmax())
    return [SIZES[i] for i in size_index[attempt]], extents[attempt], centers[attempt], positions


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A light or dark gradient of low saturation, float32 (H, W, 3), brighter or darker than every object."""
    bounds = (206, 246) if rng.random() < 0.5 else (12, 58)
    ends = rng.uniform(*bounds, size=(2, 1)) + rng.uniform(-7, 7, size=(2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    slope_x, slope_y = np.cos(angle), np.sin(angle)
    t = (ramp * slope_x + ramp[:, None] * slope_y) / (abs(slope_x) + abs(slope_y)) + 0.5
    return ends[0].astype(np.float32) + t.astype(np.float32)[..., None] * (ends[1] - ends[0]).astype(np.float32)


def _draw(
    rng: np.random.Generator,
    picture: np.ndarray,
    mask: np.ndarray,
    center_xy: tuple[float, float],
    extent: float,
    rotation: float,
    color: str,
    shape: str,
    texture: str,
    scale: float,
) -> tuple[int, int, int, int]:
    """Draw one object into `picture` (H, W, 3) and `mask` (H, W), in place; return the mask's box."""
    center_x, center_y = center_xy
    reach = extent / 2 + 1
    left, right = max(int(center_x - reach), 0), min(int(center_x + reach) + 1, picture.shape[1])
    top, bottom = max(int(center_y - reach), 0), min(int(center_y + reach) + 1, picture.shape[0])
    xs = np.arange(left, right, dtype=np.float32) + np.float32(0.5)
    ys = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5))[:, None]
    distance = _SHAPE_DISTANCES[shape](
        xs - np.float32(center_x), ys - np.float32(center_y), extent, np.deg2rad(rotation)
    )
    inside = distance < 0
    mask[top:bottom, left:right] = inside

    fill = _tones(rng, texture, xs, ys, scale, inside)
    coverage = np.clip(0.5 - distance, 0, 1)[..., None]
    patch = picture[top:bottom, left:right]
    patch += coverage * (fill[..., None] * _jittered_rgb(rng, color) - patch)

    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1


def _tones(
    rng: np.random.Generator, texture: str, xs: np.ndarray, ys: np.ndarray, scale: float, inside: np.ndarray
) -> np.ndarray:
    """Factors (h, w) on a colour: mean 1 inside, and the same contrast whatever the texture."""
    tones = _texture(rng, texture, xs, ys, scale)
    if tones is None:
        return np.ones(inside.shape, dtype=np.float32)
    tones = tones - tones[inside].mean()
    return 1 + tones * np.float32(TEXTURE_CONTRAST) / tones[inside].std()


def _jittered_rgb(rng: np.random.Generator, color: str) -> np.ndarray:
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in _BASE_RGB[color]))
    hue += rng.uniform(-_HUE_JITTER, _HUE_JITTER) / 360
    rgb = colorsys.hsv_to_rgb(hue % 1, saturation * rng.uniform(0.94, 1), value * rng.uniform(0.92, 1))
    return 255 * np.asarray(rgb, dtype=np.float32)


def _texture(rng: np.random.Generator, texture: str, xs: np.ndarray, ys: np.ndarray, scale: float) -> np.ndarray | None:
    """Tones (h, w) in any offset and unit, None for plain. Along the axes, where a resize filters best."""
    phase_x, phase_y = (np.float32(v) for v in rng.uniform(0, 2 * np.pi, size=2))
    horizontal = bool(rng.random() < 0.5)
    if texture == "plain":
        return None
    frequency = np.float32(2 * np.pi / (TEXTURE_PERIODS[texture] * scale))
    x, y = frequency * xs + phase_x, frequency * ys + phase_y
    if texture == "striped":
        return np.broadcast_to(np.sin(y) if horizontal else np.sin(x), (len(ys), len(xs)))
    if texture == "dotted":  # dark on light: light dots of the same contrast would clip
        return -(1 + np.cos(x)) * (1 + np.cos(y))
    return np.clip(3 * np.sin(x) * np.sin(y), -1, 1)


# Signed distances in pixels, negative inside: x (w,), y (h, 1) relative to the centre, the width and height of the
# shape, its rotation in radians. Exact near the edges, which is all that antialiasing needs.


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


def _circle(x: np.ndarray, y: np.ndarray, extent: float, rotation: float) -> np.ndarray:
    return np.sqrt(x * x + y * y) - np.float32(extent / 2)


def _ring(x: np.ndarray, y: np.ndarray, extent: float, rotation: float) -> np.ndarray:
    middle, half_width = np.float32(0.39 * extent), np.float32(0.11 * extent)
    return np.abs(np.sqrt(x * x + y * y) - middle) - half_width


def _square(x: np.ndarray, y: np.ndarray, extent: float, rotation: float) -> np.ndarray:
    return _convex(x, y, _corners(np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]), extent, rotation))


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
    arm = 0.34  # width of the arms, relative to their length
    upright = np.array([[-arm, -1], [arm, -1], [arm, 1], [-arm, 1]])
    corners = _corners(np.concatenate([upright, upright[:, ::-1]]), extent, rotation)
    return np.minimum(_convex(x, y, corners[:4]), _convex(x, y, corners[4:]))


_SHAPE_DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
