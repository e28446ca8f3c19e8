"""The numbers of regions in a picture: where they go, and the disc with a digit that each is.

Legend: H W height and width of the picture in pixels. Points are (x, y).
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

_WHITE = (255, 255, 255)
_DEPTH_GRID = 96  # a region is looked at this coarsely to find a place for its number
_RINGS, _RING_COST = 24, 0.05  # how far a number may move away, in its radii; what each step costs in hidden regions


def number_regions(
    picture: Image.Image,
    masks: Sequence[np.ndarray],
    colors: Sequence[Color],
    largest_first: list[int],
    font_size: int,
    numbers: Sequence[int] | None = None,
) -> None:
    """Put each region's number where the region is widest and no smaller region covers it, or beside a small region.

    Numbers do not cover each other as long as the picture has room; one that had to move away has a line to its region.
    """
    radius = round(font_size * 0.8)
    taken: list[tuple[int, int]] = []
    leaders: list[tuple[tuple[int, int], tuple[int, int], Color]] = []
    covered = np.zeros(masks[0].shape, dtype=bool)
    # How much of its region each pixel is: hiding all of a small region counts as 1, a bit of a large one as nothing.
    weights = np.zeros(masks[0].shape, dtype=np.float32)
    for mask in masks:
        if mask.any() and not mask.all():
            weights[mask] += 1 / mask.sum()
    for index in reversed(largest_first):
        for free in (masks[index] & ~covered, masks[index].copy()):
            for point in taken:
                _erase_disc(free, point, 2 * radius)
            has_room = free.any()
            if has_room:
                break
        covered |= masks[index]
        middle, depth = _deepest(free if has_room else masks[index])
        center = middle
        if depth < radius or not has_room:
            near = round(depth + 1.4 * radius)
            center = _beside(weights, middle, near, radius, taken)
            if math.dist(center, middle) > 1.5 * near:
                leaders.append((middle, center, colors[index]))
        taken.append(center)
    draw = ImageDraw.Draw(picture)
    width = max(2, radius // 6)
    for middle, center, _ in leaders:
        draw.line((*middle, *center), fill=_WHITE, width=2 * width)
    for middle, center, color in leaders:
        draw.line((*middle, *center), fill=color, width=width)
    for index, center in zip(reversed(largest_first), taken, strict=True):
        badge(picture, center, numbers[index] if numbers else index + 1, colors[index], font_size)


def _erase_disc(mask: np.ndarray, center: tuple[int, int], radius: int) -> None:
    x, y = center
    top, left = max(0, y - radius), max(0, x - radius)
    window = mask[top : y + radius + 1, left : x + radius + 1]
    rows, columns = np.ogrid[top : top + window.shape[0], left : left + window.shape[1]]
    window[(columns - x) ** 2 + (rows - y) ** 2 <= radius * radius] = False


def _deepest(mask: np.ndarray) -> tuple[tuple[int, int], float]:
    """The point of a mask that is farthest from its edge, and how far that is in pixels, both roughly."""
    pixels = Image.fromarray(mask.astype(np.uint8) * 255)
    left, top, right, bottom = pixels.getbbox() or (0, 0, 1, 1)
    scale = max(1.0, max(bottom - top, right - left) / _DEPTH_GRID)
    size = (max(1, round((right - left) / scale)), max(1, round((bottom - top) / scale)))
    coverage = np.asarray(pixels.crop((left, top, right, bottom)).resize(size, Image.Resampling.BOX))
    layer = np.pad(coverage >= min(128, int(coverage.max())), 1)
    depth = np.zeros(layer.shape)
    while layer.any():
        depth += layer
        inner = layer[1:-1, 1:-1] & layer[:-2, 1:-1] & layer[2:, 1:-1] & layer[1:-1, :-2] & layer[1:-1, 2:]
        layer = np.pad(inner, 1)
    ys, xs = np.nonzero(depth == depth.max())
    # Among equals, the one nearest to their middle: a bar gets its number in the centre, not at one end.
    nearest = int(np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2))
    x = left + (xs[nearest] - 0.5) * (right - left) / size[0]
    y = top + (ys[nearest] - 0.5) * (bottom - top) / size[1]
    return (int(x), int(y)), float(depth.max() - 0.5) * scale


def _beside(
    weights: np.ndarray, center: tuple[int, int], distance: int, radius: int, taken: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """A place for the number of a region that is too small to hold it: near it, free of other numbers, hiding little.

    Args:
        weights: (H, W), what hiding each pixel costs.
        center: of the region.
        distance: from it, in pixels, to the nearest places.
        radius: of a number, in pixels.
        taken: where numbers are already.
    """
    height, width = weights.shape
    best, lowest = center, (math.inf, math.inf)
    for ring in range(_RINGS):
        reach = distance + ring * radius
        count = 8 * (1 + ring // 2)
        for step in range(count):
            # From the top clockwise, the four main directions before the slanted ones.
            angle = 2 * math.pi * ((step * 2) % count + (step * 2) // count) / count
            x = min(max(center[0] + round(reach * math.sin(angle)), radius), max(radius, width - 1 - radius))
            y = min(max(center[1] - round(reach * math.cos(angle)), radius), max(radius, height - 1 - radius))
            numbers = sum(math.dist((x, y), other) < 2 * radius + 1 for other in taken)
            hidden = float(weights[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1].sum())
            cost = (numbers, hidden + ring * _RING_COST)
            if cost < lowest:
                best, lowest = (x, y), cost
        if lowest[0] == 0 and lowest[1] <= (ring + 1) * _RING_COST:
            break  # places farther away cannot be better
    return best


def ink(color: Color) -> str:
    """Black or white, whichever is read better on an RGB color: with a contrast of at least 4.5."""
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (part / 255 for part in color)
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"  # WCAG 2.2, contrast ratio


def badge(picture: Image.Image, center: tuple[int, int], number: int, color: Color, font_size: int) -> None:
    """A disc with a white rim and a number; drawn larger and scaled down, because PIL's own edges are jagged."""
    fine = 4
    radius = round(font_size * 0.8)
    size = (2 * radius + 1) * fine
    rim = max(2, radius // 7) * fine
    disc, inside = Image.new("RGB", (size, size), _WHITE), Image.new("L", (size, size))
    ImageDraw.Draw(inside).ellipse((0, 0, size - 1, size - 1), fill=255)
    draw = ImageDraw.Draw(disc)
    draw.ellipse((rim, rim, size - 1 - rim, size - 1 - rim), fill=color)
    text, font = str(number), ImageFont.load_default(size=(font_size if number < 100 else font_size * 0.7) * fine)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    draw.text(((size - left - right) / 2, (size - top - bottom) / 2), text, fill=_WHITE, font=font)
    small = (2 * radius + 1, 2 * radius + 1)
    corner = (center[0] - radius, center[1] - radius)
    picture.paste(disc.resize(small, Image.Resampling.BOX), corner, inside.resize(small, Image.Resampling.BOX))
