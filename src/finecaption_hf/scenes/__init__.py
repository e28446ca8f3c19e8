"""Rendered scenes with exact masks, attributes and captions: the data that needs no download."""

from .attributes import COLORS, FACETS, MATERIALS, SPLITS, TEXTURES, VIEWPOINTS, Split, is_held_out, triples
from .language import (
    ATTRIBUTE_NAMES,
    QUESTIONS,
    accepted,
    answers,
    describe_scene,
    is_right,
    known_values,
    normalize_answer,
    vocabulary,
)
from .rendering import Scene, SceneRegion, render_scene, render_swatches
from .writing import known_answers, scene_example, shows_scene, write_scenes

__all__ = [
    "ATTRIBUTE_NAMES",
    "COLORS",
    "FACETS",
    "MATERIALS",
    "QUESTIONS",
    "SPLITS",
    "TEXTURES",
    "VIEWPOINTS",
    "Scene",
    "SceneRegion",
    "Split",
    "accepted",
    "answers",
    "describe_scene",
    "is_held_out",
    "is_right",
    "known_answers",
    "known_values",
    "normalize_answer",
    "render_scene",
    "render_swatches",
    "scene_example",
    "shows_scene",
    "triples",
    "vocabulary",
    "write_scenes",
]
