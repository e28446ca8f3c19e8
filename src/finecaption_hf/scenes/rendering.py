"""Scenes of objects and people, drawn with exact masks and exact facets.

The pictures are made for a captioner with two eyes: color, shape, pose and place survive a resize from 256 px to 84 px,
the texture of a material and of skin does not. So a model names the texture only if its high-resolution towers work,
and names the right region only if the mask reaches it.

Legend: H W pixels of the picture, R regions. Lengths and positions in the constants are in pixels of a 256 px picture;
everything scales with the size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np

from .attributes import (
    COLORS,
    EFFECTS,
    FACETS,
    OBJECT_FACETS,
    PERSON_FACETS,
    SPLIT_FACETS,
    SPLITS,
    TEXTURES,
    VIEWPOINTS,
    Split,
    check_split,
    triples,
)
from .layers import PERSON_HEIGHTS, Layer, draw_object, draw_person
from .shapes import capsule, disc, jittered_rgb, tones

REFERENCE_SIZE = 256
MIN_SIZE, MAX_SIZE = 192, 1024  # pixels; in a smaller picture the textures' period would near two pixels
MAX_REGIONS = 3

# A picture has three columns of two cells. An object takes a cell, a person a column.
_COLUMNS = (43.0, 128.0, 213.0)
_ROWS = (62.0, 180.0)
_FEET = 246.0
_JITTER = 3.0
_EXTENTS = (58.0, 76.0)
_PERSON_SHARE = 0.62  # of the pictures; people have more facets than objects
_LINK_SHARE = 0.4  # of the pictures with two regions or more
# A layout is admitted where every region has one nearest neighbour and lies clearly beside, above or below it.
_NEAREST_RATIO, _AXIS_RATIO = 1.15, 1.25
_SKIRTING, _SKIRTING_TONE = 5.0, 96.0  # height in pixels, grey level
_HORIZONS = {"above": 0.16, "level": 0.5, "below": 0.84}  # share of the picture's height
_SHADOW_XY, _SHADOW_TONE = (13.0, 7.0), 0.58
_REFLECTION = (0.34, 0.55)  # share of the region's height, opacity at its upper end
_ROPE = np.array([120, 84, 40], dtype=np.float32)
_ROPE_RADIUS, _KNOT_RADIUS = 5.0, 13.0
_NOISE = 2  # grey levels

Cell = tuple[int, int | None]
"""Column, and row of an object or None for a person."""


@dataclass(frozen=True)
class SceneRegion:
    """One object or person.

    Attributes:
        sort: "object" or "person".
        facets: value of each facet that the region has; see `attributes.FACETS`.
        box_xyxy: the mask's box in pixels, exclusive end.
        center_xy: middle of the drawn object, or of the person's column, in pixels.
        neighbor: the nearest other region, None where there is none.
        relation: where this region lies as seen from its neighbor: "left", "right", "above" or "below".
        linked: whether a rope leads to the neighbor.
    """

    sort: str
    facets: Mapping[str, str]
    box_xyxy: tuple[int, int, int, int]
    center_xy: tuple[float, float]
    neighbor: int | None
    relation: str | None
    linked: bool

    @property
    def triple(self) -> tuple[str, ...]:
        """The facets that the split holds out together."""
        return tuple(self.facets[name] for name in SPLIT_FACETS[self.sort])


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture with its regions; `masks[r]` is the visible part of `regions[r]`.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        masks: bool (R, H, W), disjoint.
        viewpoint: "above", "level" or "below": how high the camera stands, which the horizon shows.
    """

    image: np.ndarray
    masks: np.ndarray
    regions: tuple[SceneRegion, ...]
    viewpoint: str
    seed: int
    split: Split


def render_scene(
    seed: int,
    *,
    size: int = REFERENCE_SIZE,
    split: Split = "train",
    num_regions: int | None = None,
    with_person: bool | None = None,
) -> Scene:
    """Draw the scene of a seed.

    The same arguments give the same bytes. The two splits share no combination of the `SPLIT_FACETS` and no random
    stream; `size` changes the resolution, not the content.

    Args:
        seed: 0 or greater.
        size: height and width in pixels, 192 to 1024.
        num_regions: 1 to 3; by default 2 or 3, drawn from the seed.
        with_person: whether one of the regions is a person; by default drawn from the seed.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_arguments(seed, size, split, num_regions)
    rng = np.random.default_rng([SPLITS.index(split), seed])
    drawn = int(rng.integers(2, MAX_REGIONS + 1))
    count = drawn if num_regions is None else num_regions
    drawn_person = bool(rng.random() < _PERSON_SHARE)
    layouts = _layouts(count, drawn_person if with_person is None else with_person)
    cells = layouts[int(rng.integers(len(layouts)))]
    facets = _choose_facets(rng, split, cells)
    neighbors = _neighbors(cells)
    pairs = [(a, b) for a, b in combinations(range(count), 2) if neighbors[a][0] == b and neighbors[b][0] == a]
    linked = pairs[int(rng.integers(len(pairs)))] if pairs and rng.random() < _LINK_SHARE else ()
    viewpoint = VIEWPOINTS[int(rng.integers(len(VIEWPOINTS)))]

    scale = size / REFERENCE_SIZE
    picture = _background(rng, size, viewpoint)
    layers, centers = [], []
    for (column, row), chosen in zip(cells, facets):
        x = (_COLUMNS[column] + rng.uniform(-_JITTER, _JITTER)) * scale
        if row is None:
            feet = (_FEET + rng.uniform(-_JITTER, _JITTER)) * scale
            layers.append(draw_person(rng, chosen, x, feet, scale, size))
            centers.append((x, feet - PERSON_HEIGHTS[chosen["age"]] / 2 * scale))
        else:
            y, extent = (_ROWS[row] + rng.uniform(-_JITTER, _JITTER)) * scale, rng.uniform(*_EXTENTS) * scale
            layers.append(draw_object(rng, chosen, (x, y), extent, scale, size))
            centers.append((x, y))
    for layer, chosen in zip(layers, facets):
        _draw_effect(picture, layer, chosen["effect"], scale)
    if linked:
        _draw_rope(picture, centers[linked[0]], centers[linked[1]], scale)
    for layer in layers:
        layer.put(picture)
    # Noise comes last, so that the layout does not depend on the number of pixels.
    picture += rng.integers(-_NOISE, _NOISE + 1, size=(size, size, 1), dtype=np.int8)
    image = np.clip(picture, 0, 255, out=picture).astype(np.uint8)

    masks = np.stack([layer.mask(size) for layer in layers])
    # At the ends of their ranges a raised hand reaches under an object drawn later.
    for number in range(1, count):
        masks[:number] &= ~masks[number]
    regions = tuple(
        SceneRegion(
            sort="person" if row is None else "object",
            facets=facets[index],
            box_xyxy=_box(masks[index]),
            center_xy=centers[index],
            neighbor=neighbors[index][0],
            relation=neighbors[index][1],
            linked=index in linked,
        )
        for index, (_, row) in enumerate(cells)
    )
    return Scene(image=image, masks=masks, regions=regions, viewpoint=viewpoint, seed=seed, split=split)


def check_arguments(seed: int, size: int, split: str, num_regions: int | None) -> None:
    """What `render_scene` demands of its arguments.

    Raises:
        ValueError: If one is out of range.
    """
    check_split(split)
    if seed < 0:
        raise ValueError(f"The seed is {seed}. Give an integer of 0 or more.")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"The size is {size} px. Give {MIN_SIZE} to {MAX_SIZE} px.")
    if num_regions is not None and not 1 <= num_regions <= MAX_REGIONS:
        raise ValueError(f"num_regions is {num_regions}. Give 1 to {MAX_REGIONS}.")


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
    for row in range(cells):
        for column in range(cells):
            values = tones(rng, TEXTURES[textures[row, column]], xs, xs[:, None], 1.0, inside)
            swatch = values[..., None] * jittered_rgb(rng, COLORS[colors[row, column]])
            board[row * side : (row + 1) * side, column * side : (column + 1) * side] = swatch
    board += rng.integers(-_NOISE, _NOISE + 1, size=(size, size, 1), dtype=np.int8)
    return np.clip(board, 0, 255, out=board).astype(np.uint8), colors, textures


def _center(cell: Cell) -> tuple[float, float]:
    column, row = cell
    return _COLUMNS[column], sum(_ROWS) / 2 if row is None else _ROWS[row]


def _neighbors(cells: tuple[Cell, ...]) -> list[tuple[int | None, str | None]]:
    """The nearest other region of each, and the side of it on which the region lies."""
    found: list[tuple[int | None, str | None]] = []
    for index, cell in enumerate(cells):
        x, y = _center(cell)
        others = [(other, _center(cells[other])) for other in range(len(cells)) if other != index]
        if not others:
            found.append((None, None))
            continue
        nearest, (other_x, other_y) = min(others, key=lambda item: np.hypot(item[1][0] - x, item[1][1] - y))
        dx, dy = x - other_x, y - other_y
        if abs(dx) > abs(dy):
            found.append((nearest, "left" if dx < 0 else "right"))
        else:
            found.append((nearest, "above" if dy < 0 else "below"))
    return found


@cache
def _layouts(count: int, with_person: bool) -> tuple[tuple[Cell, ...], ...]:
    """All places for `count` regions, one of them a person if wanted, whose relations are plain to see."""
    objects = [(column, row) for column in range(3) for row in range(2)]
    candidates: list[tuple[Cell, ...]] = []
    if with_person:
        for column in range(3):
            free = [cell for cell in objects if cell[0] != column]
            candidates += [((column, None), *rest) for rest in combinations(free, count - 1)]
    else:
        candidates += list(combinations(objects, count))
    return tuple(cells for cells in candidates if _is_plain(cells))


def _is_plain(cells: tuple[Cell, ...]) -> bool:
    for index, cell in enumerate(cells):
        x, y = _center(cell)
        offsets = [
            (abs(x - other_x), abs(y - other_y))
            for other_x, other_y in map(_center, cells[:index] + cells[index + 1 :])
        ]
        if not offsets:
            continue
        offsets.sort(key=lambda offset: np.hypot(*offset))
        if len(offsets) > 1 and np.hypot(*offsets[1]) < _NEAREST_RATIO * np.hypot(*offsets[0]):
            return False
        small, large = sorted(offsets[0])
        if large < _AXIS_RATIO * small:
            return False
    return True


def _choose_facets(rng: np.random.Generator, split: Split, cells: tuple[Cell, ...]) -> list[dict[str, str]]:
    """Facets for each region; no two objects of a picture share color and kind, by which neighbors are named."""
    chosen: list[dict[str, str]] = []
    while len(chosen) < len(cells):
        sort = "person" if cells[len(chosen)][1] is None else "object"
        names = PERSON_FACETS if sort == "person" else OBJECT_FACETS
        facets = {name: FACETS[name][int(rng.integers(len(FACETS[name])))] for name in names}
        pool = triples(sort, split)
        facets.update(zip(SPLIT_FACETS[sort], pool[int(rng.integers(len(pool)))]))
        facets["effect"] = EFFECTS[int(rng.integers(len(EFFECTS)))]
        if sort == "person" and facets["effect"] == "reflection":
            facets["effect"] = "none"  # the feet are at the border of the picture
        if sort == "person" or all(
            (facets["color"], facets["kind"]) != (other.get("color"), other.get("kind")) for other in chosen
        ):
            chosen.append(facets)
    return chosen


def _background(rng: np.random.Generator, size: int, viewpoint: str) -> np.ndarray:
    """A wall and a darker floor of low saturation with a dark skirting board between them, float32 (H, W, 3)."""
    wall = rng.uniform(226, 246) + rng.uniform(-6, 6, size=3)
    floor = wall - rng.uniform(34, 46) + rng.uniform(-5, 5, size=3)
    horizon = (_HORIZONS[viewpoint] + rng.uniform(-0.03, 0.03)) * size
    rows = np.arange(size, dtype=np.float32) + np.float32(0.5)
    share = np.clip(rows - np.float32(horizon) + np.float32(0.5), 0, 1)[:, None]
    # Light falls off a little from left to right or the other way.
    slope = np.float32(rng.uniform(-8, 8)) * np.linspace(-0.5, 0.5, size, dtype=np.float32)
    column = wall.astype(np.float32) * (1 - share) + floor.astype(np.float32) * share
    # Two even surfaces alone look alike to an encoder that normalises their brightness away.
    board = np.clip(np.float32(_SKIRTING / 2 * size / REFERENCE_SIZE + 0.5) - np.abs(rows - np.float32(horizon)), 0, 1)
    column += board[:, None] * (np.float32(_SKIRTING_TONE) - column)
    return column[:, None, :] + slope[None, :, None]


def _draw_effect(picture: np.ndarray, layer: Layer, effect: str, scale: float) -> None:
    """A shadow beside a region or a reflection below it, into the picture (H, W, 3)."""
    size = picture.shape[0]
    rows, columns = layer.alpha.shape
    if effect.startswith("shadow"):
        dx = round(_SHADOW_XY[0] * scale) * (-1 if effect == "shadow left" else 1)
        top, left = layer.top + round(_SHADOW_XY[1] * scale), layer.left + dx
        y0, y1, x0, x1 = max(top, 0), min(top + rows, size), max(left, 0), min(left + columns, size)
        shadow = layer.alpha[y0 - top : y1 - top, x0 - left : x1 - left, None]
        picture[y0:y1, x0:x1] *= 1 - (1 - np.float32(_SHADOW_TONE)) * shadow
    elif effect == "reflection":
        covered = np.flatnonzero((layer.alpha >= 0.5).any(axis=1))
        bottom = int(covered[-1]) + 1
        depth = round(_REFLECTION[0] * (bottom - int(covered[0])))
        depth = min(depth, size - layer.top - bottom)
        fade = np.linspace(_REFLECTION[1], 0.1, depth, dtype=np.float32)[:, None, None]
        mirrored = slice(bottom - depth, bottom)
        alpha, color = layer.alpha[mirrored][::-1, :, None] * fade, layer.color[mirrored][::-1] * fade
        patch = picture[layer.top + bottom : layer.top + bottom + depth, layer.left : layer.left + columns]
        patch *= 1 - alpha
        patch += color


def _draw_rope(picture: np.ndarray, start: tuple[float, float], end: tuple[float, float], scale: float) -> None:
    """A rope between two centres, with a knot in the middle that shows in the narrow gap beside two wide objects."""
    margin = (_KNOT_RADIUS + 1) * scale
    (x0, x1), (y0, y1) = sorted((start[0], end[0])), sorted((start[1], end[1]))
    layer = Layer((x0 - margin, y0 - margin, x1 + margin, y1 + margin), picture.shape[0])
    layer.paint(capsule(layer.x, layer.y, start, end, _ROPE_RADIUS * scale), _ROPE)
    middle_x, middle_y = np.float32((start[0] + end[0]) / 2), np.float32((start[1] + end[1]) / 2)
    layer.paint(disc(layer.x - middle_x, layer.y - middle_y, _KNOT_RADIUS * scale), _ROPE)
    layer.put(picture)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
