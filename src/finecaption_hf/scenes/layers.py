"""Regions drawn on layers of their own: objects, and people made of simple shapes.

Lengths are in pixels of a 256 px picture, times `scale`. Legend: h w pixels of a layer.
"""

from collections.abc import Callable, Mapping

import numpy as np

from .shapes import SHAPE_DISTANCES, box, capsule, disc, jittered_rgb, tones

PERSON_HEIGHTS: dict[str, float] = {"child": 150.0, "adult": 212.0, "elderly": 206.0}
PERSON_HALF_WIDTH = 43.0  # the widest pose, and the cane

_INK = np.array([24, 22, 26], dtype=np.float32)
_PAPER = np.array([244, 244, 240], dtype=np.float32)
_WOOD = np.array([104, 62, 28], dtype=np.float32)
_SKIN_RGB = {"light": (238, 198, 168), "tan": (192, 134, 88), "dark": (112, 72, 48)}
_HAIR_RGB = {"black": (28, 24, 26), "brown": (104, 58, 22), "blond": (226, 188, 84), "grey": (150, 150, 156)}
_TROUSERS_RGB = {"black": (38, 38, 46), "brown": (124, 84, 48), "grey": (132, 136, 144)}
_MAX_ROTATION = {"square": 8.0, "triangle": 8.0, "star": 12.0, "cross": 8.0, "diamond": 6.0}  # degrees


class Layer:
    """A drawing with transparency that covers part of a picture.

    Attributes:
        color: premultiplied, float32 (h, w, 3), 0 to 255.
        alpha: float32 (h, w), 0 to 1.
        left, top: where the layer lies in the picture.
    """

    def __init__(self, bounds: tuple[float, float, float, float], size: int) -> None:
        left, top, right, bottom = bounds
        self.left, self.top = max(int(left), 0), max(int(top), 0)
        width, height = min(int(right) + 1, size) - self.left, min(int(bottom) + 1, size) - self.top
        self.x = np.arange(self.left, self.left + width, dtype=np.float32) + np.float32(0.5)
        self.y = (np.arange(self.top, self.top + height, dtype=np.float32) + np.float32(0.5))[:, None]
        self.color = np.zeros((height, width, 3), dtype=np.float32)
        self.alpha = np.zeros((height, width), dtype=np.float32)

    def paint(self, distance: np.ndarray, rgb: np.ndarray) -> None:
        """Cover what lies inside of a signed distance (h, w) with a color (3,) or a picture (h, w, 3)."""
        coverage = np.clip(0.5 - distance, 0, 1)
        self.color *= 1 - coverage[..., None]
        self.color += coverage[..., None] * rgb
        self.alpha += coverage * (1 - self.alpha)

    def put(self, picture: np.ndarray) -> None:
        """Lay the drawing over a picture (H, W, 3), in place."""
        patch = picture[self.top : self.top + self.alpha.shape[0], self.left : self.left + self.alpha.shape[1]]
        patch *= 1 - self.alpha[..., None]
        patch += self.color

    def mask(self, size: int) -> np.ndarray:
        """Bool (size, size): what the drawing covers."""
        region = np.zeros((size, size), dtype=bool)
        rows, columns = self.alpha.shape
        region[self.top : self.top + rows, self.left : self.left + columns] = self.alpha >= 0.5
        return region


def draw_object(
    rng: np.random.Generator,
    facets: Mapping[str, str],
    center_xy: tuple[float, float],
    extent: float,
    scale: float,
    size: int,
) -> Layer:
    """A shape in its color and texture, with the marks of its kind in the middle.

    Args:
        center_xy, extent: in pixels of the picture: centre, width and height of the shape's box.
    """
    center_x, center_y = center_xy
    reach = extent / 2 + 1
    layer = Layer((center_x - reach, center_y - reach, center_x + reach, center_y + reach), size)
    rotation = np.deg2rad(rng.uniform(-1, 1) * _MAX_ROTATION.get(facets["shape"], 0.0))
    x, y = layer.x - np.float32(center_x), layer.y - np.float32(center_y)
    distance = SHAPE_DISTANCES[facets["shape"]](x, y, extent, rotation)
    fill = tones(rng, facets["texture"], layer.x, layer.y, scale, distance < 0)
    layer.paint(distance, fill[..., None] * jittered_rgb(rng, facets["color"]))
    # The middle of a star is the narrowest place: all marks fit a disc of 0.17 of the extent. A triangle's and a
    # star's mass lies a little off the middle of their boxes.
    if facets["shape"] == "triangle":
        y = y - np.float32(0.14 * extent)
    if facets["kind"] == "button":
        for along_x, along_y in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
            hole_x, hole_y = np.float32(0.085 * extent * along_x), np.float32(0.085 * extent * along_y)
            layer.paint(disc(x - hole_x, y - hole_y, 0.058 * extent), _INK)
    elif facets["kind"] == "clock":
        for end in ((0.0, -0.17 * extent), (0.15 * extent, 0.05 * extent)):
            layer.paint(capsule(x, y, (0.0, 0.0), end, 0.032 * extent), _INK)
    elif facets["kind"] == "badge":
        layer.paint(disc(x, y, 0.15 * extent), _PAPER)
    return layer


def draw_person(
    rng: np.random.Generator,
    facets: Mapping[str, str],
    center_x: float,
    feet_y: float,
    scale: float,
    size: int,
) -> Layer:
    """A person who faces the viewer, seen from head to feet.

    Args:
        center_x, feet_y: in pixels of the picture: the body's axis, and where it stands.
    """
    height = PERSON_HEIGHTS[facets["age"]]
    reach = (PERSON_HALF_WIDTH + 2) * scale
    layer = Layer((center_x - reach, feet_y - (height + 4) * scale, center_x + reach, feet_y + 2 * scale), size)
    # From here on in pixels of a 256 px picture: x from the axis, y from the feet upwards being negative.
    x, y = (layer.x - np.float32(center_x)) / np.float32(scale), (layer.y - np.float32(feet_y)) / np.float32(scale)

    def paint(distance: np.ndarray, rgb: np.ndarray) -> None:
        layer.paint(distance * np.float32(scale), rgb)

    child = facets["age"] == "child"
    head = 23.0 if child else 26.0
    # Raised hands reach as high as the hair.
    head_y = -height + head + 5
    shoulder = head_y + head + 4
    hip = shoulder + (45 if child else 68)
    half = {"slim": 11.0, "stocky": 21.0}[facets["build"]] * (0.88 if child else 1)
    limb = {"slim": 4.0, "stocky": 6.5}[facets["build"]]

    shade = np.float32(rng.uniform(0.95, 1.03))
    skin = np.array(_SKIN_RGB[facets["skin_tone"]], dtype=np.float32) * shade
    hair = np.array(_HAIR_RGB[facets["hair_color"]], dtype=np.float32) * np.float32(rng.uniform(0.95, 1.03))
    shirt = jittered_rgb(rng, facets["shirt"])
    trousers = np.array(_TROUSERS_RGB[facets["trousers"]], dtype=np.float32)

    if facets["age"] == "elderly":
        paint(capsule(x, y, (PERSON_HALF_WIDTH - 5, -3.0), (PERSON_HALF_WIDTH - 5, hip - 14), 3.0), _WOOD)
        paint(capsule(x, y, (PERSON_HALF_WIDTH - 15, hip - 14), (PERSON_HALF_WIDTH - 5, hip - 14), 3.0), _WOOD)
    if facets["hair_style"] == "long":
        paint(box(x, y, -head - 4, head_y, head + 4, shoulder + 20), hair)

    for side in (-1, 1):
        leg = half / 2 + 1
        paint(capsule(x, y, (side * leg, hip), (side * leg, -6.0), limb + 1.5), trousers)
        paint(capsule(x, y, (side * leg, -4.0), (side * (leg + 4), -4.0), 3.8), _INK)
    paint(box(x, y, -half, hip - 10, half, hip + 5), trousers)
    paint(box(x, y, -half - 1, shoulder - 1, half + 1, hip), shirt)

    waving = int(rng.choice((-1, 1)))
    length = 33.0 if child else 44.0
    for side in (-1, 1):
        start = (side * (half - 1), shoulder + 6)
        raised = facets["pose"] == "raised" or (facets["pose"] == "waving" and side == waving)
        if raised:
            end = (side * (PERSON_HALF_WIDTH - 6), head_y - 6)
        elif facets["pose"] == "out":
            end = (side * (PERSON_HALF_WIDTH - 6), shoulder + 9)
        else:
            end = (side * (half + 7), shoulder + length)
        paint(capsule(x, y, start, end, limb), shirt)
        paint(disc(x - np.float32(end[0]), y - np.float32(end[1]), limb + 1), skin)

    paint(box(x, y, -6, head_y + head - 6, 6, shoulder + 3), skin)
    face = disc(x, y - np.float32(head_y), head)
    if facets["skin_texture"] == "freckled":
        paint(face, tones(rng, "dotted", layer.x, layer.y, scale, face < 0)[..., None] * skin)
    else:
        paint(face, skin)
    _draw_face(paint, x, y - np.float32(head_y), facets["expression"], head)
    if facets["accessory"] == "glasses":
        for side in (-1, 1):
            ring = np.abs(disc(x - np.float32(side * 10), y - np.float32(head_y - 2), 8.0)) - np.float32(1.6)
            paint(ring, _INK)
        paint(capsule(x, y, (-3.0, head_y - 3), (3.0, head_y - 3), 1.5), _INK)
    cap = np.maximum(disc(x, y - np.float32(head_y), head + 3.5), y - np.float32(head_y - 0.42 * head))
    paint(cap, hair)
    if facets["hair_style"] == "curly":
        for angle in np.linspace(-0.06, np.pi + 0.06, 9):
            at_x, at_y = -np.cos(angle) * (head + 1), -np.sin(angle) * (head - 1)
            paint(disc(x - np.float32(at_x), y - np.float32(head_y + at_y), 6.2), hair)
    if facets["accessory"] == "scarf":
        paint(box(x, y, -15, shoulder - 6, 15, shoulder + 5), _INK)
        paint(box(x, y, 4, shoulder, 13, shoulder + 26), _INK)
    return layer


def _draw_face(
    paint: Callable[[np.ndarray, np.ndarray], None], x: np.ndarray, y: np.ndarray, expression: str, head: float
) -> None:
    """Eyes and mouth; x and y from the middle of the head."""
    for side in (-1, 1):
        paint(disc(x - np.float32(side * 10), y + np.float32(2), 2.8), _INK)
    mouth_y, half, thick = 0.48 * head, 12.0, 2.7
    if expression == "surprised":
        paint(disc(x, y - np.float32(mouth_y), 7.5), _INK)
    elif expression == "neutral":
        paint(capsule(x, y, (-half, mouth_y), (half, mouth_y), thick), _INK)
    else:
        bend = 9.0 if expression == "smiling" else -9.0
        for side in (-1, 1):
            end = (side * half, mouth_y - bend / 2)
            paint(capsule(x, y, (side * 3.0, mouth_y + bend / 2), end, thick), _INK)
        paint(capsule(x, y, (-3.0, mouth_y + bend / 2), (3.0, mouth_y + bend / 2), thick), _INK)
