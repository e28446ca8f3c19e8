"""Questions about the regions of a rendered scene, and all answers that are right.

Every question has several wordings of its answer. `answers` draws one by the scene's seed; `accepted` lists them all,
so that an answer counts as right in any of them and in no other.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import product

import numpy as np

from .attributes import (
    ACCESSORIES,
    AGES,
    BUILDS,
    COLORS,
    EFFECTS,
    EXPRESSIONS,
    FACETS,
    HAIR_COLORS,
    HAIR_STYLES,
    KINDS,
    MATERIALS,
    POSES,
    RELATIONS,
    SHAPES,
    SKIN_TEXTURES,
    SKIN_TONES,
    SPLITS,
    TEXTURES,
    TROUSERS,
    VIEWPOINTS,
)
from .rendering import Scene, SceneRegion

# Names are the paper's; the wording is short because the language model that reads it is small.
QUESTIONS: dict[str, str] = {
    "region": "Sum up this region.",
    "dense": "Describe this region.",
    "global": "Describe the image.",
    "Category Name": "What is it?",
    "One-Sentence Description": "In one sentence?",
    "Body Pose/Gesture": "Which pose?",
    "Body Shape": "Which build?",
    "Facial Expression": "Which expression?",
    "Skin Texture and Color": "Which skin?",
    "Hair": "Which hair?",
    "Clothing, Shoes and Accessories": "Which clothes?",
    "Age Range": "How old?",
    "Color": "Which color?",
    "Materials/Texture": "Which material?",
    "Shape": "Which shape?",
    "Camera Viewpoint": "Which viewpoint?",
    "Associative Visual Effect": "Which shadow or reflection?",
    "Interaction with Other Objects": "Which interaction?",
    "Relative Location with Other Objects": "Where is it?",
}
ATTRIBUTE_NAMES: tuple[str, ...] = tuple(name for name in QUESTIONS if name not in ("region", "dense", "global"))

_POSE_WORDS = {"down": "arms down", "raised": "arms raised", "out": "arms out", "waving": "one arm raised"}
_AGE_WORDS = {"child": "child", "adult": "adult", "elderly": "senior"}
_EFFECT_WORDS = {
    "none": "no shadow or reflection",
    "shadow left": "a shadow to the left",
    "shadow right": "a shadow to the right",
    "reflection": "a reflection below",
}
_VIEWPOINT_WORDS = {"above": "from above", "level": "at eye level", "below": "from below"}
_RELATION_WORDS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


def accepted(scene: Scene, index: int) -> dict[str, tuple[str, ...]]:
    """All right answers to each question that a region admits, in a fixed order.

    A question that does not apply is absent: an object has no hair, a region alone in its picture no relative location.
    "global" is about the whole picture, and the same for all of its regions.
    """
    region = scene.regions[index]
    facets = region.facets
    viewpoint = _VIEWPOINT_WORDS[scene.viewpoint]
    effect = _EFFECT_WORDS[facets["effect"]]
    found: dict[str, tuple[str, ...]] = {}
    if region.sort == "object":
        material = MATERIALS[facets["texture"]]
        summary = f"{_article(facets['color'])} {facets['kind']} shaped like a {facets['shape']}"
        detail = f"{_article(facets['color'])} {facets['kind']} of {material} shaped like a {facets['shape']}"
        found["Category Name"] = (facets["kind"], f"a {facets['kind']}")
        found["Color"] = (facets["color"], f"it is {facets['color']}")
        found["Materials/Texture"] = (material, f"made of {material}")
        found["Shape"] = (facets["shape"], f"a {facets['shape']}", f"shaped like a {facets['shape']}")
    else:
        hair = f"{facets['hair_style']} {facets['hair_color']} hair"
        extra = {"none": "", "glasses": " with glasses", "scarf": " with a scarf"}[facets["accessory"]]
        clothes = f"{_article(facets['shirt'])} shirt and {facets['trousers']} trousers{extra}"
        pose, age = _POSE_WORDS[facets["pose"]], _AGE_WORDS[facets["age"]]
        skin = f"{facets['skin_texture']} {facets['skin_tone']} skin"
        summary = f"{_article(age)} in {_article(facets['shirt'])} shirt with {pose}"
        detail = f"{_article(facets['build'])} {facets['expression']} {age} with {hair} in {clothes}, {pose}"
        found["Category Name"] = ("person", "a person")
        found["Body Pose/Gesture"] = (pose, f"standing with {pose}")
        found["Body Shape"] = (facets["build"], f"a {facets['build']} build")
        found["Facial Expression"] = (facets["expression"], f"a {facets['expression']} face")
        found["Skin Texture and Color"] = (skin, f"{facets['skin_tone']} skin, {facets['skin_texture']}")
        found["Hair"] = (hair, f"{facets['hair_color']} hair, {facets['hair_style']}")
        found["Clothing, Shoes and Accessories"] = (clothes, f"wearing {clothes}")
        found["Age Range"] = (age, _article(age))
    found["Camera Viewpoint"] = (viewpoint, f"seen {viewpoint}")
    found["Associative Visual Effect"] = (effect, f"with {effect}")
    interaction, place = _interaction(scene, region), _place(scene, region)
    found["Interaction with Other Objects"] = (interaction, f"it is {interaction}")
    if place is not None:
        found["Relative Location with Other Objects"] = (place, f"it is {place}")
    found["One-Sentence Description"] = (summary, f"this is {summary}")
    found["region"] = found["One-Sentence Description"]
    found["dense"] = (f"{detail}, seen {viewpoint}", f"this is {detail}, seen {viewpoint}")
    found["global"] = describe_scene(scene)
    return {name: found[name] for name in QUESTIONS if name in found}


def answers(scene: Scene, index: int) -> dict[str, str]:
    """One right answer to each question that a region admits, in a wording that the seed draws."""
    rng = np.random.default_rng([len(SPLITS) + 1, SPLITS.index(scene.split), scene.seed, index])
    return {name: options[int(rng.integers(len(options)))] for name, options in accepted(scene, index).items()}


def describe_scene(scene: Scene) -> tuple[str, ...]:
    """All right captions of the whole picture: its regions from left to right, the upper one first."""
    order = sorted(range(len(scene.regions)), key=lambda i: (_column(scene, i), scene.regions[i].center_xy[1]))
    names = [_article(_name(scene.regions[i])) for i in order]
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    viewpoint = _VIEWPOINT_WORDS[scene.viewpoint]
    return f"{listed}, seen {viewpoint}", f"seen {viewpoint}: {listed}"


def is_right(prediction: str, right: tuple[str, ...]) -> bool:
    """Whether an answer is one of those accepted, whatever its case, spacing and closing full stop."""
    return normalize_answer(prediction) in {normalize_answer(answer) for answer in right}


def normalize_answer(text: str) -> str:
    """Lower case, single spaces, no closing full stop."""
    return re.sub(r"\s+", " ", text).strip().rstrip(".").rstrip().lower()


def known_values() -> dict[str, tuple[tuple[str, ...], ...]]:
    """All values of each attribute but the sentence, each with the phrases that say it in answers and captions.

    A caption says one value of an attribute if it holds a phrase of it as whole words, and no longer one of another.
    """
    things = ("person", *(f"{color} {kind}" for color, kind in product(COLORS, KINDS)))
    tied = [f"{words} the {thing}" for words, thing in product(("held by", "tied to"), things)]
    skins = product(SKIN_TEXTURES, SKIN_TONES)
    hairs = product(HAIR_STYLES, HAIR_COLORS)
    extras = ("", " with glasses", " with a scarf")
    clothes = product(COLORS, TROUSERS, extras)
    found: dict[str, list[tuple[str, ...]]] = {
        "Category Name": [*((kind,) for kind in KINDS), ("person", *_AGE_WORDS.values())],
        "Body Pose/Gesture": _alone(_POSE_WORDS.values()),
        "Body Shape": _alone(BUILDS),
        "Facial Expression": _alone(EXPRESSIONS),
        "Skin Texture and Color": [(f"{how} {tone} skin", f"{tone} skin, {how}") for how, tone in skins],
        "Hair": [(f"{style} {color} hair", f"{color} hair, {style}") for style, color in hairs],
        "Clothing, Shoes and Accessories": _alone(
            f"{shirt} shirt and {trousers} trousers{extra}" for shirt, trousers, extra in clothes
        ),
        "Age Range": _alone(_AGE_WORDS.values()),
        "Color": _alone(COLORS),
        "Materials/Texture": _alone(MATERIALS.values()),
        "Shape": _alone(SHAPES),
        "Camera Viewpoint": _alone(_VIEWPOINT_WORDS.values()),
        "Associative Visual Effect": _alone(_EFFECT_WORDS.values()),
        "Interaction with Other Objects": _alone(
            ["on its own", *tied, *(f"holding the {thing} by a rope" for thing in things)]
        ),
        "Relative Location with Other Objects": _alone(
            f"{words} the {thing}" for words, thing in product(_RELATION_WORDS.values(), things)
        ),
    }
    return {name: tuple(values) for name, values in found.items()}


def vocabulary() -> Iterator[str]:
    """Texts that hold every word and every turn of phrase of the questions and answers, to train a tokenizer on."""
    yield from QUESTIONS.values()
    for words in (*FACETS.values(), MATERIALS.values(), RELATIONS, _POSE_WORDS.values(), _AGE_WORDS.values()):
        yield from words
    for words in (_EFFECT_WORDS.values(), _VIEWPOINT_WORDS.values(), _RELATION_WORDS.values()):
        for word in words:
            yield from (word, f"with {word}", f"seen {word}", f"it is {word} the")
    for color, kind in product(COLORS, KINDS):
        yield from (f"{_article(color)} {kind}", f"it is left of the {color} {kind}", f"tied to the {color} {kind}")
    for shape, texture in product(SHAPES, TEXTURES):
        yield f"this is a red tile of {MATERIALS[texture]} shaped like a {shape}, made of {MATERIALS[texture]}"
    for build, expression, age in product(BUILDS, EXPRESSIONS, AGES):
        yield f"a {build} {expression} {_AGE_WORDS[age]}, a {build} build, a {expression} face"
    for style, color in product(HAIR_STYLES, HAIR_COLORS):
        yield from (f"{style} {color} hair in", f"{color} hair, {style}")
    for tone, texture in product(SKIN_TONES, SKIN_TEXTURES):
        yield f"{texture} {tone} skin, {tone} skin, {texture}"
    for color, trousers, extra in product(COLORS, TROUSERS, ACCESSORIES):
        yield f"wearing {_article(color)} shirt and {trousers} trousers with a {extra} with {extra}"
    for pose, effect, viewpoint in product(POSES, EFFECTS, VIEWPOINTS):
        yield f"standing with {_POSE_WORDS[pose]}, {_EFFECT_WORDS[effect]}, seen {_VIEWPOINT_WORDS[viewpoint]}: a"
    yield "it is on its own, holding the red tile by a rope, held by the person, right of the person and an adult"


def _alone(values: Iterable[str]) -> list[tuple[str, ...]]:
    return [(value,) for value in values]


def _name(region: SceneRegion) -> str:
    return "person" if region.sort == "person" else f"{region.facets['color']} {region.facets['kind']}"


def _column(scene: Scene, index: int) -> int:
    return int(3 * scene.regions[index].center_xy[0] / scene.image.shape[1])


def _place(scene: Scene, region: SceneRegion) -> str | None:
    if region.neighbor is None or region.relation is None:
        return None
    return f"{_RELATION_WORDS[region.relation]} the {_name(scene.regions[region.neighbor])}"


def _interaction(scene: Scene, region: SceneRegion) -> str:
    if not region.linked or region.neighbor is None:
        return "on its own"
    neighbor = scene.regions[region.neighbor]
    if region.sort == "person":
        return f"holding the {_name(neighbor)} by a rope"
    return f"held by the {_name(neighbor)}" if neighbor.sort == "person" else f"tied to the {_name(neighbor)}"


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
