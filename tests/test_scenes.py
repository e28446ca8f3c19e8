"""Rendered scenes: what the facets say must be what the pixels show, read here without the code that drew them."""

import colorsys
import hashlib
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from finecaption_hf.scenes import (
    ATTRIBUTE_NAMES,
    COLORS,
    FACETS,
    QUESTIONS,
    SPLITS,
    TEXTURES,
    VIEWPOINTS,
    Scene,
    SceneRegion,
    accepted,
    answers,
    describe_scene,
    is_held_out,
    is_right,
    normalize_answer,
    render_scene,
    render_swatches,
    triples,
    vocabulary,
)
from finecaption_hf.scenes.attributes import OBJECT_FACETS, PERSON_FACETS, RELATIONS, SPLIT_FACETS
from finecaption_hf.scenes.layers import draw_person

HUES = {"red": 0, "orange": 30, "yellow": 54, "green": 127, "cyan": 184, "blue": 229, "purple": 273, "pink": 326}
SKINS = {"light": (238, 198, 168), "tan": (192, 134, 88), "dark": (112, 72, 48)}
HAIRS = {"black": (28, 24, 26), "brown": (104, 58, 22), "blond": (226, 188, 84), "grey": (150, 150, 156)}
TROUSERS = {"black": (38, 38, 46), "brown": (124, 84, 48), "grey": (132, 136, 144)}
CANE = (104, 62, 28)
ROPE = (120, 84, 40)
# The middle of the two rows: a person stands for a whole column, however tall.
COLUMN_MIDDLE = 121 / 256

Item = tuple[Scene, SceneRegion, np.ndarray]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(seed, split=split) for split in SPLITS for seed in range(60)]


def regions(scenes: list[Scene], sort: str | None = None) -> list[Item]:
    return [
        (scene, region, mask)
        for scene in scenes
        for region, mask in zip(scene.regions, scene.masks, strict=True)
        if sort in (None, region.sort)
    ]


def resized(array: np.ndarray, side: int = 84) -> np.ndarray:
    return np.asarray(Image.fromarray(array).resize((side, side), Image.Resampling.BICUBIC))


def eroded(mask: np.ndarray, side: int = 5) -> np.ndarray:
    """Pixels whose side x side neighbourhood lies in the mask; what is outside the picture counts as inside."""
    return ndimage.minimum_filter(mask, side, mode="constant", cval=True)


def dilated(mask: np.ndarray, side: int = 5) -> np.ndarray:
    return ~eroded(~mask, side)


def shifted(mask: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """The mask moved to the right and down; what comes from outside is False."""
    return ndimage.shift(mask, (dy, dx), order=0)


def chroma(image: np.ndarray) -> np.ndarray:
    return image.max(axis=-1).astype(int) - image.min(axis=-1)


def nearest_rgb(rgb: np.ndarray, named: dict[str, tuple[int, int, int]]) -> str:
    return min(named, key=lambda name: float(np.abs(rgb - named[name]).sum()))


def named_color(pixels: np.ndarray) -> str:
    """The name of the hue of the mean of pixels (..., 3). Edges blend with the wall, shades differ by 4 degrees."""
    red, green, blue = pixels.reshape(-1, 3).mean(axis=0) / 255
    hue = 360 * colorsys.rgb_to_hsv(red, green, blue)[0]
    distance = {name: abs((hue - truth + 180) % 360 - 180) for name, truth in HUES.items()}
    name = min(distance, key=lambda key: distance[key])
    assert distance[name] < 8
    return name


def centroid(mask: np.ndarray) -> tuple[float, float]:
    ys, xs = np.nonzero(mask)
    return float(xs.mean()), float(ys.mean())


def digest(scene: Scene) -> str:
    said = repr(scene.regions) + repr([answers(scene, index) for index in range(len(scene.regions))])
    return hashlib.sha256(scene.image.tobytes() + scene.masks.tobytes() + said.encode()).hexdigest()


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_scene_in_any_process_and_another_seed_or_split_another() -> None:
    code = (
        "from finecaption_hf.scenes import render_scene; from test_scenes import digest;"
        "print(digest(render_scene(11, split='test')))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONHASHSEED": "5"}
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=120
    )
    here = digest(render_scene(11, split="test"))
    assert output.stdout.strip() == here
    assert len({here, digest(render_scene(11)), digest(render_scene(12, split="test"))}) == 3


def test_masks_are_disjoint_and_boxes_fit_them(scenes: list[Scene]) -> None:
    # In the last two a raised hand touches an object.
    for scene in [*scenes, render_scene(12000), render_scene(35733)]:
        assert scene.image.shape == (256, 256, 3) and scene.image.dtype == np.uint8
        assert scene.masks.shape == (len(scene.regions), 256, 256) and scene.masks.dtype == np.bool_
        assert scene.masks.sum(axis=0).max() == 1
        assert 2 <= len(scene.regions) <= 3
    for _, region, mask in regions(scenes):
        ys, xs = np.nonzero(mask)
        assert region.box_xyxy == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert len(ys) >= 900  # of 65,536: even a small star is plain to see


def test_nothing_but_shadow_reflection_and_rope_lies_outside_the_masks(scenes: list[Scene]) -> None:
    for scene in scenes:
        if any(region.linked or region.facets["effect"] == "reflection" for region in scene.regions):
            continue
        assert chroma(scene.image)[eroded(~scene.masks.any(axis=0), 9)].max() <= 24


@pytest.mark.parametrize("with_person", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_many_regions_and_people_are_drawn_as_asked(count: int, with_person: bool) -> None:
    for seed in range(5):
        scene = render_scene(seed, num_regions=count, with_person=with_person, split="test")
        assert len(scene.regions) == count == len(scene.masks)
        assert [region.sort for region in scene.regions].count("person") == with_person
        if count == 1:
            assert (scene.regions[0].neighbor, scene.regions[0].relation, scene.regions[0].linked) == (
                None,
                None,
                False,
            )


@pytest.mark.parametrize(
    ("render", "arguments", "message"),
    [
        (render_scene, {"seed": -1}, "Give an integer of 0 or more"),
        (render_scene, {"seed": 0, "size": 2048}, "Give 192 to 1024 px"),
        (render_scene, {"seed": 0, "size": 84}, "Give 192 to 1024 px"),
        (render_scene, {"seed": 0, "num_regions": 0}, "Give 1 to 3"),
        (render_scene, {"seed": 0, "num_regions": 4}, "Give 1 to 3"),
        (render_scene, {"seed": 0, "split": "validation"}, "no split 'validation'. There are: train, test"),
        (render_swatches, {"seed": -1}, "Seed -1"),
        (render_swatches, {"seed": 0, "cells": 0}, "0 swatches"),
        (render_swatches, {"seed": 0, "side": 4}, "of 4 px a side"),
    ],
)
def test_arguments_out_of_range_raise(render: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(**arguments)


@pytest.mark.parametrize("size", [192, 640, 1024])
@pytest.mark.parametrize("seed", [5, 1])  # objects only, and a person
def test_size_changes_the_resolution_and_not_the_content(seed: int, size: int) -> None:
    reference, scene = render_scene(seed), render_scene(seed, size=size)
    scale = size / 256
    assert scene.image.shape == (size, size, 3) and scene.masks.shape[1:] == (size, size)
    assert scene.viewpoint == reference.viewpoint
    for index, (before, after) in enumerate(zip(reference.regions, scene.regions, strict=True)):
        same = ("sort", "facets", "neighbor", "relation", "linked")
        assert all(getattr(before, name) == getattr(after, name) for name in same)
        assert answers(reference, index) == answers(scene, index)
        assert np.allclose(np.array(before.box_xyxy) * scale, after.box_xyxy, atol=2 * max(scale, 1))
        assert np.allclose(np.array(before.center_xy) * scale, after.center_xy)
        assert scene.masks[index].mean() == pytest.approx(reference.masks[index].mean(), rel=0.03)
    small, small_reference = (resized(s.image, 64).astype(int) for s in (scene, reference))
    assert np.abs(small - small_reference).mean() < 3


# --- objects ---------------------------------------------------------------------------------------------------------


def test_color_of_an_object_is_its_hue(scenes: list[Scene]) -> None:
    for scene, region, mask in regions(scenes, "object"):
        inside = scene.image[eroded(mask, 3)]
        assert named_color(inside[chroma(inside) > 25]) == region.facets["color"], (scene.split, scene.seed)


def polygon_template(points: list[tuple[float, float]], degrees: float) -> np.ndarray:
    """Bool (64, 64): a polygon, turned and stretched to its box."""
    turned = np.array(points) @ np.array(
        [
            [np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))],
            [-np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))],
        ]
    )
    low, high = turned.min(axis=0), turned.max(axis=0)
    canvas = Image.new("1", (256, 256))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in (turned - low) / (high - low) * 255], fill=1)
    return np.asarray(canvas.convert("L").resize((64, 64), Image.Resampling.BOX)) > 127


@pytest.fixture(scope="module")
def templates() -> dict[str, np.ndarray]:
    """Shape -> (angles, 64, 64)."""
    tips = [(np.sin(2 * np.pi * i / 5), -np.cos(2 * np.pi * i / 5)) for i in range(5)]
    inner = 0.381966  # of a pentagram's inner to its outer corners
    dents = [(inner * np.sin(np.pi * (2 * i + 1) / 5), -inner * np.cos(np.pi * (2 * i + 1) / 5)) for i in range(5)]
    arm = 0.38
    bars = [(-1, -arm), (-arm, -arm), (-arm, -1), (arm, -1), (arm, -arm), (1, -arm)]
    outlines = {
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "diamond": [(0, -1), (1, 0), (0, 1), (-1, 0)],
        "triangle": [(0, -1), (1, 1), (-1, 1)],
        "star": [corner for pair in zip(tips, dents, strict=True) for corner in pair],
        "cross": bars + [(-x, -y) for x, y in bars],
        "circle": [(np.cos(angle), np.sin(angle)) for angle in np.linspace(0, 2 * np.pi, 60)],
    }
    assert set(outlines) == set(FACETS["shape"])
    return {
        name: np.stack([polygon_template(points, degrees) for degrees in range(-12, 13, 2)])
        for name, points in outlines.items()
    }


def test_mask_of_an_object_has_its_shape(scenes: list[Scene], templates: dict[str, np.ndarray]) -> None:
    """By the largest overlap with outlines drawn by another library."""
    for scene, region, mask in regions(scenes, "object"):
        x0, y0, x1, y1 = region.box_xyxy
        crop = Image.fromarray(mask[y0:y1, x0:x1]).convert("L").resize((64, 64), Image.Resampling.BILINEAR)
        shape = np.asarray(crop) > 127
        overlap = {
            name: ((shape & turned).sum(axis=(1, 2)) / (shape | turned).sum(axis=(1, 2))).max()
            for name, turned in templates.items()
        }
        first, second = sorted(overlap, key=lambda name: -overlap[name])[:2]
        assert first == region.facets["shape"], (scene.split, scene.seed)
        assert overlap[first] > 0.88 and overlap[first] - overlap[second] > 0.1


def ink(pixels: np.ndarray) -> np.ndarray:
    """Darker than any other tone of a scene, the dots of a dark skin included."""
    return pixels.max(axis=-1) < 38


def middle_patch(scene: Scene, region: SceneRegion, dx: float, dy: float) -> np.ndarray:
    """Four pixels beside the middle of an object, where its marks are; dx and dy are relative to its width."""
    x0, y0, x1, y1 = region.box_xyxy
    extent = x1 - x0
    x, y = (x0 + x1) / 2, (y0 + y1) / 2 + (0.14 * extent if region.facets["shape"] == "triangle" else 0)
    left, top = round(x + dx * extent), round(y + dy * extent)
    return scene.image[top - 1 : top + 1, left - 1 : left + 1]


def test_marks_of_an_object_tell_its_kind(scenes: list[Scene]) -> None:
    for scene, region, _ in regions(scenes, "object"):
        patch = partial(middle_patch, scene, region)
        if patch(0, 0).min() > 225:
            kind = "badge"
        elif ink(patch(0, 0)).all():
            kind = "clock"
        elif all(ink(patch(0.085 * i, 0.085 * j)).all() for i in (-1, 1) for j in (-1, 1)):
            kind = "button"
        else:
            kind = "tile"
        assert kind == region.facets["kind"], (scene.split, scene.seed)


def plain_part(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An object without its edge and without its marks, which are grey."""
    inside = eroded(mask, 3)
    return inside & ~dilated(inside & (chroma(image) < 22), 5)


@pytest.fixture(scope="module")
def plain_parts(scenes: list[Scene]) -> list[Item]:
    """Of each object the part without edge and marks, in place of its mask."""
    return [(scene, region, plain_part(scene.image, mask)) for scene, region, mask in regions(scenes, "object")]


def test_textures_differ_from_each_other(plain_parts: list[Item]) -> None:
    """Along which axes neighbouring pixels change, and to which side the tones are skewed, names the texture."""
    for scene, region, part in plain_parts:
        inside = eroded(part, 3)
        tones = scene.image.astype(np.float32).mean(axis=-1)
        tones = np.where(inside, tones - tones[inside].mean(), 0)
        along_x, along_y = (
            (tones * np.roll(tones, 1, axis))[inside].mean() / tones[inside].var() for axis in (1, 0)
        )  # correlation with the next pixel: 1 along a stripe
        skewness = (tones[inside] ** 3).mean() / tones[inside].std() ** 3
        if tones[inside].std() < 6:
            guess = "plain"
        elif abs(along_x - along_y) > 0.5:
            guess = "striped"
        else:
            guess = "dotted" if skewness < -0.6 else "checkered"
        assert guess == region.facets["texture"], (scene.split, scene.seed, along_x, along_y, skewness)


def contrasts(plain_parts: list[Item]) -> dict[str, np.ndarray]:
    """Texture -> (number of objects, 2): standard deviation over mean inside the objects, at 256 and 84 px."""
    found = defaultdict(list)
    for scene, region, part in plain_parts:
        grey = scene.image.astype(np.float32).mean(axis=-1)
        small = resized(scene.image).astype(np.float32).mean(axis=-1)
        inside = eroded(part)
        # A bicubic filter reaches two pixels of 84 px.
        inside_small = resized(eroded(inside, 11).astype(np.float32)) > 0.9999
        if inside_small.sum() < 12:  # thin arms
            continue
        pairs = ((grey, inside), (small, inside_small))
        found[region.facets["texture"]].append(
            [picture[where].std() / picture[where].mean() for picture, where in pairs]
        )
    return {texture: np.array(values) for texture, values in found.items()}


def test_texture_is_visible_at_256_and_gone_at_84(plain_parts: list[Item]) -> None:
    measured = contrasts(plain_parts)
    assert set(measured) == set(TEXTURES)
    assert all(len(values) >= 10 for values in measured.values())
    plain = measured["plain"]  # nothing but noise
    assert plain[:, 0].max() < 0.05
    for texture in set(TEXTURES) - {"plain"}:
        assert measured[texture][:, 0].min() > 0.17
        assert measured[texture][:, 1].max() < 0.02
        # Not only small: within the noise that a plain object shows too.
        assert measured[texture][:, 1].mean() < 1.4 * plain[:, 1].mean()


def test_texture_does_not_show_in_the_mean_brightness(plain_parts: list[Item]) -> None:
    # One object is lighter or darker than another by up to 8 %; the textures must not differ on average.
    values = defaultdict(list)
    for scene, region, inside in plain_parts:
        values[region.facets["texture"]].append(scene.image[inside].mean(axis=0).max() / 190)
    # The green and purple tones are darker than the others, so that the mean varies with the draw too.
    spread = [np.mean(v) for v in values.values()]
    assert max(spread) - min(spread) < 0.05


def test_swatches_show_their_colours_and_textures() -> None:
    board, colors, textures = render_swatches(5, cells=4, side=32)
    again, _, _ = render_swatches(5, cells=4, side=32)
    np.testing.assert_array_equal(board, again)
    assert (board.shape, colors.shape, textures.shape) == ((128, 128, 3), (4, 4), (4, 4))
    swatches = board.reshape(4, 32, 4, 32, 3).transpose(0, 2, 1, 3, 4).astype(float)
    contrast = swatches.mean(axis=-1).std(axis=(2, 3)) / swatches.mean(axis=(2, 3, 4))
    plain = textures == TEXTURES.index("plain")
    assert plain.any() and not plain.all()
    # The noise alone is +-2 levels, the pattern 22 % of the mean.
    assert contrast[plain].max() < 0.06 < 0.18 < contrast[~plain].min()
    for row, column in product(range(4), range(4)):
        assert named_color(swatches[row, column]) == COLORS[colors[row, column]]


# --- people ----------------------------------------------------------------------------------------------------------


def read_person(scene: Scene, region: SceneRegion, mask: np.ndarray) -> dict[str, str]:
    """Every facet but the effect, from the pixels of a 256 px picture; places follow from the top of the hair."""
    image = scene.image
    _, top, _, bottom = region.box_xyxy
    axis = region.center_xy[0]
    child = bottom - top < 175
    head = 23 if child else 26
    head_y = top + head + 4
    shoulder = head_y + head + 4
    hip = shoulder + (45 if child else 68)
    ys, xs = np.mgrid[: len(image), : len(image)] + 0.5
    xs = xs - axis

    def window(x0: float, x1: float, y0: float, y1: float) -> np.ndarray:
        """Pixels inside the mask, in a window relative to the axis."""
        return mask & (xs >= x0) & (xs <= x1) & (ys >= y0) & (ys <= y1)

    def at(x: float, y: float) -> np.ndarray:
        return image[round(y - 1) : round(y + 1), round(axis + x - 1) : round(axis + x + 1)].reshape(-1, 3)

    def covered(x: float, y: float) -> bool:
        row, column = round(y), round(axis + x)
        return bool(mask[row - 1 : row + 2, max(column - 1, 0) : column + 2].mean() > 0.9)

    found: dict[str, str] = {}
    up = [covered(side * 37, head_y - 6) for side in (-1, 1)]
    out = [covered(side * 37, shoulder + 9) for side in (-1, 1)]
    found["pose"] = "raised" if all(up) else "waving" if any(up) else "out" if all(out) else "down"
    waist = mask[round(hip + 2), round(axis) : round(axis) + 30]
    found["build"] = "slim" if np.argmin(waist) < 14 else "stocky"
    cheeks = window(-18.5, -15.5, head_y + 8, head_y + 13) | window(15.5, 18.5, head_y + 8, head_y + 13)
    found["skin_tone"] = nearest_rgb(image[cheeks].mean(axis=0), SKINS)
    tones = image[cheeks].astype(float).mean(axis=-1)
    found["skin_texture"] = "freckled" if tones.std() / tones.mean() > 0.1 else "smooth"
    found["hair_color"] = nearest_rgb(at(0, head_y - 0.75 * head).mean(axis=0), HAIRS)
    hair = np.abs(image.astype(int) - at(0, head_y - 0.75 * head).mean(axis=0)).sum(axis=-1) < 24
    falling = window(-31, -20, head_y + 2, shoulder + 18) | window(20, 31, head_y + 2, shoulder + 18)
    falling &= ys > head_y + 9  # curls end at the ears
    curls = window(-head - 6, -head - 3.5, head_y - 8, head_y - 1.5)
    curls |= window(head + 3.5, head + 6, head_y - 8, head_y - 1.5)
    if (hair & falling).sum() > 40:
        found["hair_style"] = "long"
    else:
        found["hair_style"] = "curly" if (hair & curls).sum() > 6 else "short"
    # Left of the end of a scarf.
    found["shirt"] = named_color(image[window(-7, -2, hip - 18, hip - 8)])
    leg = (10.5 if found["build"] == "stocky" else 5.5) * (0.88 if child else 1) + 1
    found["trousers"] = nearest_rgb(at(-leg, (hip + bottom) / 2).mean(axis=0), TROUSERS)
    ring = [at(side * 18, head_y - 2) for side in (-1, 1)]
    if all(ink(pixels).any() for pixels in ring):
        found["accessory"] = "glasses"
    else:
        found["accessory"] = "scarf" if ink(at(-8, shoulder + 1)).all() else "none"
    cane = np.abs(at(38, bottom - 20).astype(int) - CANE).max() < 12
    found["age"] = "child" if child else "elderly" if cane else "adult"

    # The middle of the mouth, between the rims of glasses and a scarf; its corners may touch the rims.
    mouth = ys[ink(image) & window(-2, 2, head_y + 5, head_y + head - 4)]
    bend = mouth.mean() - (head_y + 0.48 * head)
    if np.ptp(mouth) > 10:
        found["expression"] = "surprised"
    else:
        found["expression"] = "smiling" if bend > 2.2 else "sad" if bend < -2.2 else "neutral"
    return found


def test_everything_about_a_person_can_be_read_from_the_picture(scenes: list[Scene]) -> None:
    people = regions(scenes, "person")
    assert len(people) > 50
    for scene, region, mask in people:
        read = read_person(scene, region, mask)
        assert read == {name: region.facets[name] for name in PERSON_FACETS}, (scene.split, scene.seed)


@pytest.mark.parametrize("tone", FACETS["skin_tone"])
@pytest.mark.parametrize("age", ["child", "adult"])
def test_freckles_are_visible_at_256_and_gone_at_84(tone: str, age: str) -> None:
    """By the difference to the same person without them, over the face."""
    facets = {name: values[0] for name, values in PERSON_FACETS.items()} | {"skin_tone": tone, "age": age}
    pictures = []
    for texture in ("smooth", "freckled"):
        layer = draw_person(np.random.default_rng(3), {**facets, "skin_texture": texture}, 128.0, 246.0, 1.0, 256)
        picture = np.full((256, 256, 3), 230, dtype=np.float32)
        layer.put(picture)
        pictures.append(picture)
    face = np.abs(pictures[1] - pictures[0]).max(axis=-1) > 1
    assert face.sum() > 500
    grey = [np.clip(picture, 0, 255).astype(np.uint8).mean(axis=-1, dtype=np.float32) for picture in pictures]
    level = grey[0][face].mean()
    assert (grey[1] - grey[0])[face].std() / level > 0.15
    small = resized(grey[1]) - resized(grey[0])
    inside = resized(dilated(face, 9).astype(np.float32)) > 0.5
    assert inside.sum() > 80
    # The rim of the face keeps a little more than its middle.
    assert small[inside].std() / level < 0.03
    assert abs(small[inside].mean()) / level < 0.01


# --- the picture -----------------------------------------------------------------------------------------------------


def background(scene: Scene) -> np.ndarray:
    """Brightness of wall and floor by row (H,): shadows, reflections and ropes are darker."""
    hidden = scene.masks.any(axis=0)
    grey = np.sort(np.where(hidden, -1, scene.image.mean(axis=-1, dtype=np.float32)), axis=1)
    upper_quarter = grey.shape[1] - 1 - (~hidden).sum(axis=1) // 4
    return np.take_along_axis(grey, upper_quarter[:, None], axis=1)[:, 0]


def test_viewpoint_is_where_the_horizon_lies(scenes: list[Scene]) -> None:
    for scene in scenes:
        rows = background(scene)
        steps = rows[:-4] - rows[4:]
        share = (int(np.argmax(steps)) + 2) / len(rows)
        assert steps.max() > 25
        viewpoint = "above" if share < 0.3 else "below" if share > 0.7 else "level"
        assert viewpoint == scene.viewpoint, (scene.split, scene.seed)
        assert min(abs(share - border) for border in (0.3, 0.7)) > 0.08


def test_shadow_or_reflection_lies_beside_the_region(scenes: list[Scene]) -> None:
    for scene in scenes:
        rope = np.abs(scene.image.astype(int) - ROPE).max(axis=-1) < 10
        free = ~dilated(scene.masks.any(axis=0) | rope, 3)
        dark = scene.image.mean(axis=-1, dtype=np.float32) < 0.72 * background(scene)[:, None]
        for region, mask in zip(scene.regions, scene.masks, strict=True):
            sides = {"shadow left": -13, "shadow right": 13}
            share = {name: float(dark[shifted(mask, dx, 7) & free].mean()) for name, dx in sides.items()}
            found = max(share, key=share.__getitem__)
            if share[found] < 0.85:
                bottom = region.box_xyxy[3]
                depth = min(10, len(mask) - bottom)
                mirrored = np.zeros_like(mask)
                mirrored[bottom : bottom + depth] = mask[bottom - depth : bottom][::-1]
                reflected = region.sort == "object" and chroma(scene.image)[mirrored & free].mean() > 24
                found = "reflection" if reflected else "none"
            assert found == region.facets["effect"], (scene.split, scene.seed, share)


def test_rope_joins_linked_regions_and_no_others(scenes: list[Scene]) -> None:
    for scene in scenes:
        free = ~dilated(scene.masks.any(axis=0), 3)
        rope = np.abs(scene.image.astype(int) - ROPE).max(axis=-1) < 10
        for first, second in combinations(range(len(scene.regions)), 2):
            a, b = scene.regions[first], scene.regions[second]
            points = np.linspace(a.center_xy, b.center_xy, 400).astype(int)
            third = np.delete(scene.masks, [first, second], axis=0).any(axis=0)
            if third[points[:, 1], points[:, 0]].any():
                continue  # a rope from there to one of the two would lie on the same line
            between = free[points[:, 1], points[:, 0]]
            seen = rope[points[:, 1], points[:, 0]][between]
            linked = a.linked and b.linked
            assert not linked or (a.neighbor, b.neighbor) == (second, first)
            assert len(seen) > 10
            assert seen.mean() > 0.9 if linked else seen.mean() < 0.4, (scene.split, scene.seed)
        assert sum(region.linked for region in scene.regions) in (0, 2)


def test_neighbor_is_the_nearest_and_the_relation_follows_from_the_masks(scenes: list[Scene]) -> None:
    for scene in scenes:
        places = [
            (x, COLUMN_MIDDLE * len(mask) if region.sort == "person" else y)
            for region, mask in zip(scene.regions, scene.masks, strict=True)
            for x, y in [centroid(mask)]
        ]
        for index, region in enumerate(scene.regions):
            offsets = {
                other: np.subtract(places[index], places[other]) for other in range(len(places)) if other != index
            }
            nearest = sorted(offsets, key=lambda other: float(np.hypot(*offsets[other])))
            assert region.neighbor == nearest[0], (scene.split, scene.seed)
            distances = [float(np.hypot(*offsets[other])) for other in nearest]
            assert len(distances) == 1 or distances[1] > 1.05 * distances[0]
            dx, dy = offsets[nearest[0]]
            assert max(abs(dx), abs(dy)) > 1.05 * min(abs(dx), abs(dy))
            beside = "left" if dx < 0 else "right"
            assert region.relation == (beside if abs(dx) > abs(dy) else "above" if dy < 0 else "below")


# --- facets and splits -----------------------------------------------------------------------------------------------


def test_all_values_are_drawn_in_both_splits(scenes: list[Scene]) -> None:
    for split in SPLITS:
        of_split = [scene for scene in scenes if scene.split == split]
        of_split += [render_scene(seed, split=split, size=192) for seed in range(100, 160)]
        for sort, names in (("object", OBJECT_FACETS), ("person", PERSON_FACETS)):
            assert {frozenset(region.facets) for _, region, _ in regions(of_split, sort)} == {
                frozenset({*names, "effect"})
            }
            for name, values in names.items():
                counts = Counter(region.facets[name] for _, region, _ in regions(of_split, sort))
                assert set(counts) == set(values), (split, name)
                assert max(counts.values()) < 8 * min(counts.values()), (split, name)
        assert {region.facets["effect"] for _, region, _ in regions(of_split, "object")} == set(FACETS["effect"])
        assert {scene.viewpoint for scene in of_split} == set(VIEWPOINTS)
        assert {region.relation for _, region, _ in regions(of_split)} == set(RELATIONS)
        assert {region.linked for _, region, _ in regions(of_split)} == {True, False}


@pytest.mark.parametrize("sort", SPLIT_FACETS)
def test_splits_share_no_combination(sort: str, scenes: list[Scene]) -> None:
    train, test = triples(sort, "train"), triples(sort, "test")
    assert not set(train) & set(test)
    assert set(train) | set(test) == set(product(*(FACETS[name] for name in SPLIT_FACETS[sort])))
    assert 0.15 < len(test) / (len(train) + len(test)) < 0.25
    assert all(is_held_out(sort, triple) for triple in test)
    for scene, region, _ in regions(scenes, sort):
        assert region.triple in triples(sort, scene.split)


@pytest.mark.parametrize("sort", SPLIT_FACETS)
def test_training_split_keeps_every_pair_and_test_split_every_value(sort: str) -> None:
    values = [FACETS[name] for name in SPLIT_FACETS[sort]]
    for first, second in combinations(range(3), 2):
        seen = {(triple[first], triple[second]) for triple in triples(sort, "train")}
        assert seen == set(product(values[first], values[second]))
    for axis in range(3):
        assert {triple[axis] for triple in triples(sort, "test")} == set(values[axis])


def test_objects_of_a_scene_differ_in_name(scenes: list[Scene]) -> None:
    for scene in scenes:
        names = [(r.facets.get("color"), r.facets.get("kind")) for r in scene.regions]
        assert len(set(names)) == len(names)  # a picture has one person at most


# --- language --------------------------------------------------------------------------------------------------------

_SUMMARY = ("sort", "color", "kind", "shape", "age", "shirt", "pose")
_DETAIL = ("viewpoint", "texture", "build", "expression", "hair_style", "hair_color", "trousers", "accessory")
# What a right answer must settle. Two scenes that agree in this must have the same answers, others none in common.
SETTLES = {
    "Category Name": ("sort", "kind"),
    "Body Pose/Gesture": ("pose",),
    "Body Shape": ("build",),
    "Facial Expression": ("expression",),
    "Skin Texture and Color": ("skin_tone", "skin_texture"),
    "Hair": ("hair_color", "hair_style"),
    "Clothing, Shoes and Accessories": ("shirt", "trousers", "accessory"),
    "Age Range": ("age",),
    "Color": ("color",),
    "Materials/Texture": ("texture",),
    "Shape": ("shape",),
    "Camera Viewpoint": ("viewpoint",),
    "Associative Visual Effect": ("effect",),
    "One-Sentence Description": _SUMMARY,
    "region": _SUMMARY,
    "dense": (*_SUMMARY, *_DETAIL),
}
# Questions that speak of facets of people alone, and of objects alone.
OF_PEOPLE = {name for name, facets in SETTLES.items() if set(facets) <= PERSON_FACETS.keys()}
OF_OBJECTS = {name for name, facets in SETTLES.items() if set(facets) <= OBJECT_FACETS.keys()}


def random_region(rng: np.random.Generator, sort: str, x: float) -> SceneRegion:
    names = {**(PERSON_FACETS if sort == "person" else OBJECT_FACETS), "effect": FACETS["effect"]}
    facets = {name: values[int(rng.integers(len(values)))] for name, values in names.items()}
    return SceneRegion(sort, facets, (0, 0, 1, 1), (x, 0.5), None, None, False)


def random_scene(rng: np.random.Generator, sorts: tuple[str, str]) -> Scene:
    """Two regions side by side, with any facets: splits and layouts do not matter to the wording."""
    first, second = (random_region(rng, sort, x) for sort, x in zip(sorts, (0.1, 0.9), strict=True))
    linked = bool(rng.random() < 0.5)
    relation = RELATIONS[int(rng.integers(4))]
    first = replace(first, neighbor=1, relation=relation, linked=linked)
    second = replace(second, neighbor=0, relation=RELATIONS[RELATIONS.index(relation) ^ 1], linked=linked)
    picture = np.zeros((1, 1, 3), dtype=np.uint8)
    viewpoint = VIEWPOINTS[int(rng.integers(3))]
    return Scene(
        picture, np.ones((2, 1, 1), dtype=bool), (first, second), viewpoint, int(rng.integers(1 << 30)), "train"
    )


@pytest.fixture(scope="module")
def worded() -> list[Scene]:
    rng = np.random.default_rng(0)
    sorts = [("object", "object"), ("object", "person"), ("person", "object")]
    return [random_scene(rng, sorts[number % 3]) for number in range(3000)]


def name_of(region: SceneRegion) -> tuple[str, ...]:
    return ("person",) if region.sort == "person" else (region.facets["color"], region.facets["kind"])


def truth_of(scene: Scene, index: int, question: str) -> Any:
    region = scene.regions[index]
    other = scene.regions[1 - index]
    if question == "global":
        return (scene.viewpoint, *(name_of(r) for r in scene.regions))
    if question == "Interaction with Other Objects":
        return (region.linked, region.linked and (region.sort, name_of(other)))
    if question == "Relative Location with Other Objects":
        return (region.relation, name_of(other))
    known = {**region.facets, "sort": region.sort, "viewpoint": scene.viewpoint}
    return tuple(known.get(name) for name in SETTLES[question])


def test_no_wording_of_one_truth_is_right_for_another(worded: list[Scene]) -> None:
    owner: dict[tuple[str, str], Any] = {}
    right: dict[tuple[str, Any], tuple[str, ...]] = {}
    for scene in worded:
        for index in range(2):
            for question, wordings in accepted(scene, index).items():
                truth = truth_of(scene, index, question)
                assert right.setdefault((question, truth), wordings) == wordings
                for wording in wordings:
                    assert owner.setdefault((question, normalize_answer(wording)), truth) == truth
    assert {question for question, _ in right} == set(QUESTIONS)
    # Truths of every question that has few enough of them were all seen.
    for question in ATTRIBUTE_NAMES:
        seen = sum(key[0] == question for key in right)
        if all(name in FACETS for name in SETTLES.get(question, ("none",))):
            assert seen == np.prod([len(FACETS[name]) for name in SETTLES[question]]), question


def test_every_question_has_wordings_and_those_that_do_not_apply_are_absent(scenes: list[Scene]) -> None:
    assert len(ATTRIBUTE_NAMES) == 16
    for scene in scenes:
        for index, region in enumerate(scene.regions):
            told = accepted(scene, index)
            absent = OF_PEOPLE if region.sort == "object" else OF_OBJECTS
            assert list(told) == [name for name in QUESTIONS if name not in absent]
            for wordings in told.values():
                assert len(set(wordings)) == len(wordings) >= 2
    alone = render_scene(3, num_regions=1)
    assert "Relative Location with Other Objects" not in accepted(alone, 0)
    assert is_right("On its own.", accepted(alone, 0)["Interaction with Other Objects"])


def test_answers_are_accepted_and_every_wording_is_used(scenes: list[Scene]) -> None:
    used: dict[str, Counter[int]] = defaultdict(Counter)
    for scene in scenes:
        for index in range(len(scene.regions)):
            told, right = answers(scene, index), accepted(scene, index)
            assert list(told) == list(right)
            for name, answer in told.items():
                assert is_right(answer, right[name])
                used[name][right[name].index(answer)] += 1
    for name, counts in used.items():
        assert set(counts) >= {0, 1}, name
        assert min(counts.values()) > 0.6 * sum(counts.values()) / len(counts), name


def test_answers_say_what_the_facets_are() -> None:
    rng = np.random.default_rng(1)
    scene = random_scene(rng, ("person", "object"))
    person = {
        **{"pose": "waving", "build": "slim", "expression": "sad", "skin_tone": "tan", "skin_texture": "freckled"},
        **{"hair_color": "blond", "hair_style": "curly", "shirt": "orange", "trousers": "grey", "accessory": "scarf"},
        **{"age": "elderly", "effect": "shadow left"},
    }
    thing = {"kind": "badge", "color": "red", "shape": "star", "texture": "dotted", "effect": "none"}
    scene = replace(
        scene,
        viewpoint="level",
        regions=(
            replace(scene.regions[0], facets=person, linked=True, relation="left"),
            replace(scene.regions[1], facets=thing, linked=True, relation="right"),
        ),
    )
    told = {name: wordings[0] for name, wordings in accepted(scene, 0).items()}
    assert told == {
        "region": "a senior in an orange shirt with one arm raised",
        "dense": "a slim sad senior with curly blond hair in an orange shirt and grey trousers with a scarf, "
        "one arm raised, seen at eye level",
        "global": "a person and a red badge, seen at eye level",
        "Category Name": "person",
        "One-Sentence Description": "a senior in an orange shirt with one arm raised",
        "Body Pose/Gesture": "one arm raised",
        "Body Shape": "slim",
        "Facial Expression": "sad",
        "Skin Texture and Color": "freckled tan skin",
        "Hair": "curly blond hair",
        "Clothing, Shoes and Accessories": "an orange shirt and grey trousers with a scarf",
        "Age Range": "senior",
        "Camera Viewpoint": "at eye level",
        "Associative Visual Effect": "a shadow to the left",
        "Interaction with Other Objects": "holding the red badge by a rope",
        "Relative Location with Other Objects": "left of the red badge",
    }
    told = {name: wordings[0] for name, wordings in accepted(scene, 1).items()}
    assert told["dense"] == "a red badge of dotted metal shaped like a star, seen at eye level"
    assert told["Materials/Texture"] == "dotted metal"
    assert told["Associative Visual Effect"] == "no shadow or reflection"
    assert told["Interaction with Other Objects"] == "held by the person"
    assert told["Relative Location with Other Objects"] == "right of the person"


def test_scene_description_names_the_regions_from_left_to_right(scenes: list[Scene]) -> None:
    for scene in scenes:
        plain, turned = describe_scene(scene)
        listed, _, viewpoint = plain.rpartition(", ")
        assert turned == f"{viewpoint}: {listed}"
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", plain)
        said = re.split(r", | and ", listed)
        places = {}
        for region, mask in zip(scene.regions, scene.masks, strict=True):
            x, y = centroid(mask)
            name = " ".join(name_of(region))
            places[f"{'an' if name[0] in 'aeiou' else 'a'} {name}"] = (int(3 * x / len(mask)), y)
        assert said == sorted(places, key=lambda name: places[name])


def test_vocabulary_holds_every_word(worded: list[Scene]) -> None:
    def words(texts: Any) -> set[str]:
        return {word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)}

    said = [text for s in worded for i in range(2) for texts in accepted(s, i).values() for text in texts]
    assert words([*said, *QUESTIONS.values()]) <= words(vocabulary())


def test_right_answers_may_differ_in_case_spacing_and_full_stop() -> None:
    assert is_right(" At  eye Level.\n", ("at eye level", "seen at eye level"))
    assert not is_right("at eye", ("at eye level", "seen at eye level"))
    assert not is_right("", ("red",))
    assert normalize_answer("A Red\tcircle .") == "a red circle"
