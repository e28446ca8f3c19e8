"""Questions about the objects of a rendered scene, and their only right answers."""

import re
from collections.abc import Iterator, Sequence
from itertools import product

from .rendering import COLORS, POSITIONS, SHAPES, SIZES, TEXTURES, SceneObject

QUESTIONS: dict[str, str] = {
    "color": "What color is this region?",
    "shape": "What shape is this region?",
    "texture": "What texture does this region have?",
    "size": "How large is this region?",
    "position": "Where is this region?",
    "region": "Describe this region.",
    "dense": "Describe this region in detail.",
    "global": "Describe the whole image.",
}
ATTRIBUTE_NAMES: tuple[str, ...] = ("color", "shape", "texture", "size", "position")

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# "at the top left", but "in the center" and "on the left".
_PREPOSITIONS = {"center": "in", "left": "on", "right": "on"}


def answers(objects: Sequence[SceneObject], index: int) -> dict[str, str]:
    """The answer to each of `QUESTIONS` about one object of a scene.

    "global" is the same for all objects of a scene: it lists them by color and shape in reading order of their
    positions, rows from top to bottom and each row from left to right. No two objects share a position.
    """
    item = objects[index]
    region = f"{item.texture} {item.color} {item.shape}"
    return {
        "color": item.color,
        "shape": item.shape,
        "texture": item.texture,
        "size": item.size,
        "position": item.position,
        "region": _with_article(region),
        "dense": f"{_with_article(f'{item.size} {region}')} {_place_phrase(item.position)}",
        "global": describe_scene(objects),
    }


def describe_scene(objects: Sequence[SceneObject]) -> str:
    """For example "three objects: a red circle, a blue star and an orange square"."""
    ordered = sorted(objects, key=lambda item: (POSITIONS.index(item.position), item.center_xy[0]))
    names = [_with_article(f"{item.color} {item.shape}") for item in ordered]
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"{_NUMBERS[len(names)]} object{'' if len(names) == 1 else 's'}: {listed}"


def exact_match(name: str, prediction: str, truth: str) -> bool:
    """Whether two answers to a question agree, whatever their case, spacing and closing full stop.

    Raises:
        ValueError: If `name` is not one of `QUESTIONS`.
    """
    if name not in QUESTIONS:
        raise ValueError(f"Unknown question {name!r}. Choose one of: {', '.join(QUESTIONS)}.")
    return normalize_answer(prediction) == normalize_answer(truth)


def normalize_answer(text: str) -> str:
    """Lower case, single spaces, no closing full stop."""
    return re.sub(r"\s+", " ", text).strip().rstrip(".").rstrip().lower()


def vocabulary() -> Iterator[str]:
    """Texts that hold every word and every turn of phrase of the questions and answers, to train a tokenizer on."""
    yield from QUESTIONS.values()
    for words in (COLORS, SHAPES, TEXTURES, SIZES, POSITIONS):
        yield from words
    for texture, color, shape in product(TEXTURES, COLORS, SHAPES):
        yield _with_article(f"{texture} {color} {shape}")
    for size, texture, position in product(SIZES, TEXTURES, POSITIONS):
        yield f"{_with_article(f'{size} {texture}')} {COLORS[0]} {SHAPES[0]} {_place_phrase(position)}"
    names = [_with_article(f"{color} {shape}") for color, shape in product(COLORS, SHAPES)]
    for first, second in zip(names, reversed(names), strict=True):
        yield f"{first}, {second} and {first}"
    for count, number in enumerate(_NUMBERS[1:], start=1):
        yield f"{number} object{'' if count == 1 else 's'}: {names[0]}"


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _place_phrase(position: str) -> str:
    return f"{_PREPOSITIONS.get(position, 'at')} the {position}"
