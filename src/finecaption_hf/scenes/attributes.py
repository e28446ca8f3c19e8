"""What a rendered scene can show: the facets of its objects, its people and the picture, and which are held out.

A facet is one thing that varies, such as the color of an object or the style of a person's hair; an attribute of the
paper may speak of several facets. All facets of a picture are drawn independently unless this file says otherwise.
"""

from collections.abc import Mapping
from itertools import product
from typing import Literal, get_args

from ..prompts_finecaption import no_such

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

COLORS: tuple[str, ...] = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "diamond")
KINDS: tuple[str, ...] = ("tile", "button", "clock", "badge")
# Each material has its texture, which is what shows: plain, stripes, dots, checks.
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted", "checkered")
MATERIALS: Mapping[str, str] = {
    "plain": "smooth plastic",
    "striped": "striped fabric",
    "dotted": "dotted metal",
    "checkered": "checkered wood",
}
POSES: tuple[str, ...] = ("down", "raised", "out", "waving")
BUILDS: tuple[str, ...] = ("slim", "stocky")
EXPRESSIONS: tuple[str, ...] = ("smiling", "sad", "surprised", "neutral")
SKIN_TONES: tuple[str, ...] = ("light", "tan", "dark")
SKIN_TEXTURES: tuple[str, ...] = ("smooth", "freckled")
HAIR_COLORS: tuple[str, ...] = ("black", "brown", "blond", "grey")
HAIR_STYLES: tuple[str, ...] = ("short", "long", "curly")
TROUSERS: tuple[str, ...] = ("black", "brown", "grey")
ACCESSORIES: tuple[str, ...] = ("none", "glasses", "scarf")
AGES: tuple[str, ...] = ("child", "adult", "elderly")
EFFECTS: tuple[str, ...] = ("none", "shadow left", "shadow right", "reflection")
VIEWPOINTS: tuple[str, ...] = ("above", "level", "below")
RELATIONS: tuple[str, ...] = ("left", "right", "above", "below")

OBJECT_FACETS: Mapping[str, tuple[str, ...]] = {
    "kind": KINDS,
    "color": COLORS,
    "shape": SHAPES,
    "texture": TEXTURES,
}
PERSON_FACETS: Mapping[str, tuple[str, ...]] = {
    "pose": POSES,
    "build": BUILDS,
    "expression": EXPRESSIONS,
    "skin_tone": SKIN_TONES,
    "skin_texture": SKIN_TEXTURES,
    "hair_color": HAIR_COLORS,
    "hair_style": HAIR_STYLES,
    "shirt": COLORS,
    "trousers": TROUSERS,
    "accessory": ACCESSORIES,
    "age": AGES,
}
FACETS: Mapping[str, tuple[str, ...]] = {**OBJECT_FACETS, **PERSON_FACETS, "effect": EFFECTS}
"""Facets of one region. Those of the other sort of region are absent: an object has no age."""

SPLIT_FACETS: Mapping[str, tuple[str, str, str]] = {
    "object": ("color", "shape", "texture"),
    "person": ("shirt", "hair_style", "pose"),
}
"""The three facets whose combinations a split holds out, for objects and for people."""

Triple = tuple[str, str, str]


def is_held_out(sort: str, triple: Triple) -> bool:
    """Whether a combination of the `SPLIT_FACETS` of "object" or "person" is kept for the test split.

    A Latin-square rule: with two of the three facets fixed, at most two values of the third are held out, so the
    training split shows every pair of values.
    """
    first, second, third = (FACETS[name].index(value) for name, value in zip(SPLIT_FACETS[sort], triple, strict=True))
    return (first + 2 * second + 3 * third) % 5 == 0


def triples(sort: str, split: Split) -> tuple[Triple, ...]:
    """The combinations of "object" or "person" that a split shows, in a fixed order."""
    return _TRIPLES[sort, check_split(split)]


def check_split(split: str) -> Split:
    """`split` itself.

    Raises:
        ValueError: If there is no such split.
    """
    for known in SPLITS:
        if split == known:
            return known
    raise ValueError(no_such("split", split, SPLITS))


def _combinations(sort: str, split: Split) -> tuple[Triple, ...]:
    first, second, third = (FACETS[name] for name in SPLIT_FACETS[sort])
    return tuple(t for t in product(first, second, third) if is_held_out(sort, t) == (split == "test"))


_TRIPLES = {(sort, split): _combinations(sort, split) for sort in SPLIT_FACETS for split in SPLITS}
