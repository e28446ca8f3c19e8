"""Rendered scenes: what the attributes say must be what the pixels show."""

import colorsys
import hashlib
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import combinations, product

import numpy as np
import pytest
from PIL import Image

from finecaption_hf.scenes import (
    COLORS,
    HELD_OUT,
    POSITIONS,
    QUESTIONS,
    SHAPES,
    SPLITS,
    TEXTURES,
    Scene,
    answers,
    describe_scene,
    exact_match,
    is_held_out,
    normalize_answer,
    position_of,
    render_scene,
    render_swatches,
    triples,
    vocabulary,
)

HUES = {"red": 0, "orange": 30, "yellow": 54, "green": 127, "cyan": 184, "blue": 229, "purple": 273, "pink": 326}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(seed, split=split) for split in SPLITS for seed in range(80)]


def regions(scenes):
    return [(s, item, mask) for s in scenes for item, mask in zip(s.objects, s.masks)]


def resized(array: np.ndarray, side: int = 84) -> np.ndarray:
    return np.asarray(Image.fromarray(array).resize((side, side), Image.Resampling.BICUBIC))


def eroded(mask: np.ndarray, side: int = 5) -> np.ndarray:
    """Pixels whose side x side neighbourhood lies in the mask; what is outside the picture counts as inside."""
    margin = side // 2
    for _ in range(2):  # rows, then columns
        padded = np.pad(mask, ((margin, margin), (0, 0)), constant_values=True)
        mask = np.logical_and.reduce([padded[i : i + len(mask)] for i in range(side)]).T
    return mask


def chroma(image: np.ndarray) -> np.ndarray:
    return image.max(axis=-1).astype(int) - image.min(axis=-1)


def digest(scene: Scene) -> str:
    return hashlib.sha256(scene.image.tobytes() + scene.masks.tobytes() + repr(scene.objects).encode()).hexdigest()


def test_same_seed_gives_same_scene():
    assert digest(render_scene(7)) == digest(render_scene(7))
    assert digest(render_scene(7)) != digest(render_scene(8))


def test_another_process_gives_the_same_scene():
    code = (
        "import hashlib; from finecaption_hf.scenes import render_scene; s = render_scene(11, split='test');"
        "d = s.image.tobytes() + s.masks.tobytes() + repr(s.objects).encode(); print(hashlib.sha256(d).hexdigest())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONHASHSEED": "5"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == digest(render_scene(11, split="test"))


def test_splits_share_no_random_stream():
    # The split's name goes into the seed: the same number does not even give the same layout.
    train, test = ([render_scene(seed, split=split) for seed in range(20)] for split in SPLITS)
    assert not {s.objects[0].center_xy for s in train} & {s.objects[0].center_xy for s in test}


def test_splits_share_no_combination(scenes):
    assert not set(triples("train")) & set(triples("test"))
    assert set(triples("test")) == HELD_OUT
    assert len(triples("train")) + len(triples("test")) == len(COLORS) * len(SHAPES) * len(TEXTURES)
    for scene in scenes:
        assert {item.triple for item in scene.objects} <= set(triples(scene.split))
        assert all(is_held_out(*item.triple) == (scene.split == "test") for item in scene.objects)


def test_a_fifth_of_the_combinations_is_held_out():
    assert 0.18 < len(HELD_OUT) / (len(COLORS) * len(SHAPES) * len(TEXTURES)) < 0.22


@pytest.mark.parametrize("pair", list(combinations(range(3), 2)))
def test_training_split_keeps_every_pair_of_values(pair):
    values = (COLORS, SHAPES, TEXTURES)
    seen = {tuple(triple[i] for i in pair) for triple in triples("train")}
    assert seen == set(product(*(values[i] for i in pair)))


def test_test_split_keeps_every_single_value():
    for axis, values in enumerate((COLORS, SHAPES, TEXTURES)):
        assert {triple[axis] for triple in HELD_OUT} == set(values)


def test_arrays_have_the_stated_form(scenes):
    for scene in scenes:
        assert scene.image.shape == (256, 256, 3) and scene.image.dtype == np.uint8
        assert scene.masks.shape == (len(scene.objects), 256, 256) and scene.masks.dtype == np.bool_
        assert 2 <= len(scene.objects) <= 4


def test_masks_are_disjoint_and_boxes_fit_them(scenes):
    for scene in scenes:
        assert scene.masks.sum(axis=0).max() == 1
    for _, item, mask in regions(scenes):
        ys, xs = np.nonzero(mask)
        assert item.box_xyxy == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_every_box_spans_two_cells_of_the_grid(scenes):
    # 64 px of 256: wherever the box lies, it then covers at least one whole 32 px cell of the high-resolution grid.
    for _, item, _ in regions(scenes):
        x0, y0, x1, y1 = item.box_xyxy
        assert min(x1 - x0, y1 - y0) >= 64


def test_position_and_size_follow_from_the_mask(scenes):
    for _, item, mask in regions(scenes):
        ys, xs = np.nonzero(mask)
        assert item.position == position_of((xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2, 256, 256)
        width = xs.max() + 1 - xs.min()
        assert 64 <= width <= 77 if item.size == "small" else 94 <= width <= 121


def test_positions_keep_away_from_the_borders_of_the_cells(scenes):
    for _, item, _ in regions(scenes):
        offsets = [abs(v - border) for v in item.center_xy for border in (256 / 3, 512 / 3)]
        assert min(offsets) >= 4.99


def test_color_is_exactly_inside_the_masks(scenes):
    # Pixels at the edge are blended, and a sharp tip fades over up to three pixels whose centres it does not cover.
    for scene in scenes:
        background = eroded(~scene.masks.any(axis=0), 9)
        assert chroma(scene.image)[background].max() <= 20
        assert chroma(scene.image)[np.any([eroded(m, 3) for m in scene.masks], axis=0)].min() > 25


def test_hue_inside_the_mask_is_the_named_color(scenes):
    for scene, item, mask in regions(scenes):
        red, green, blue = scene.image[mask].mean(axis=0) / 255
        hue = 360 * colorsys.rgb_to_hsv(red, green, blue)[0]
        distance = {name: abs((hue - truth + 180) % 360 - 180) for name, truth in HUES.items()}
        assert min(distance, key=distance.get) == item.color
        assert distance[item.color] < 8  # jitter of 4 degrees, and edges blended with the background


@pytest.mark.parametrize(
    ("shape", "share"),
    # The area's share of the box: pi/4; pi/4 less the hole; half; the pentagram's in its box; two bars of 0.34.
    [("circle", 0.785), ("ring", 0.785 * (1 - 0.56**2)), ("triangle", 0.5), ("star", 0.31), ("cross", 0.564)],
)
def test_mask_area_is_that_of_the_shape(scenes, shape, share):
    shares = [mask.sum() / item.extent**2 for _, item, mask in regions(scenes) if item.shape == shape]
    assert shares
    assert np.allclose(shares, share, rtol=0.1)  # a rotated shape fills its box a little differently


def contrasts(scenes) -> dict[str, np.ndarray]:
    """Texture -> (number of objects, 2): standard deviation over mean inside the objects, at 256 and 84 px."""
    found = defaultdict(list)
    for scene in scenes:
        grey = scene.image.astype(np.float32).mean(axis=-1)
        small = resized(scene.image).astype(np.float32).mean(axis=-1)
        for item, mask in zip(scene.objects, scene.masks):
            inside, inside_small = eroded(mask), eroded(resized(mask.astype(np.float32)) > 0.9999)
            if inside_small.sum() < 20:  # thin arms
                continue
            pairs = ((grey, inside), (small, inside_small))
            found[item.texture].append([picture[where].std() / picture[where].mean() for picture, where in pairs])
    return {texture: np.array(values) for texture, values in found.items()}


def test_texture_is_visible_at_256_and_gone_at_84(scenes):
    measured = contrasts(scenes)
    assert set(measured) == set(TEXTURES)
    plain = measured["plain"]  # nothing but noise
    assert plain[:, 0].max() < 0.05
    for texture in set(TEXTURES) - {"plain"}:
        assert measured[texture][:, 0].min() > 0.2
        assert measured[texture][:, 1].max() < 0.015
        # Not only small: within the noise that a plain object shows too.
        assert measured[texture][:, 1].mean() < 1.3 * plain[:, 1].mean()


def test_texture_does_not_show_in_the_mean_brightness(scenes):
    # One object is lighter or darker than another by up to 8 %; the textures must not differ on average.
    values = defaultdict(list)
    for scene, item, mask in regions(scenes):
        values[item.texture].append(scene.image[eroded(mask)].mean(axis=0).max() / 190)
    spread = [np.mean(v) for v in values.values()]
    assert max(spread) - min(spread) < 0.03


def test_textures_differ_from_each_other(scenes):
    """Along which axes neighbouring pixels change, and to which side the tones are skewed, names the texture."""
    for scene, item, mask in regions(scenes):
        inside = eroded(mask)
        tones = scene.image.astype(np.float32).mean(axis=-1)
        tones = np.where(inside, tones - tones[inside].mean(), 0)
        along_x, along_y = (
            (tones * np.roll(tones, 1, axis))[inside].mean() / tones[inside].var() for axis in (1, 0)
        )  # correlation with the next pixel: 1 along a stripe
        skewness = (tones[inside] ** 3).mean() / tones[inside].std() ** 3
        if item.texture == "plain":
            guess = tones[inside].std() < 6
        elif item.texture == "striped":
            guess = max(along_x, along_y) > 0.75 and min(along_x, along_y) < 0
        elif item.texture == "dotted":
            guess = skewness < -0.8
        else:
            guess = abs(skewness) < 0.5 and max(along_x, along_y) < 0.5
        assert guess, (scene.split, scene.seed, item)


@pytest.mark.parametrize("size", [192, 512, 1024])
def test_size_changes_the_resolution_and_not_the_content(size):
    reference, scene = render_scene(5), render_scene(5, size=size)
    scale = size / 256
    assert scene.image.shape == (size, size, 3)
    for before, after, mask in zip(reference.objects, scene.objects, scene.masks):
        assert (before.triple, before.size, before.position) == (after.triple, after.size, after.position)
        assert np.allclose(np.array(before.box_xyxy) * scale, after.box_xyxy, atol=2 * max(scale, 1))
        assert after.extent == pytest.approx(before.extent * scale)
        assert mask.any()
    small, small_reference = (resized(s.image, 84).astype(int) for s in (scene, reference))
    assert np.abs(small - small_reference).mean() < 3


def test_objects_of_a_scene_differ_in_name_and_position(scenes):
    for scene in scenes:
        assert len({(item.color, item.shape) for item in scene.objects}) == len(scene.objects)
        assert len({item.position for item in scene.objects}) == len(scene.objects)


def test_all_values_are_drawn(scenes):
    for name, values in {"position": POSITIONS, "color": COLORS, "shape": SHAPES, "texture": TEXTURES}.items():
        counts = Counter(getattr(item, name) for _, item, _ in regions(scenes))
        assert set(counts) == set(values)
        assert max(counts.values()) < 2.5 * min(counts.values())
    assert Counter(item.size for _, item, _ in regions(scenes))["large"] > 0.2 * len(regions(scenes))


@pytest.mark.parametrize("count", range(1, 10))
def test_the_asked_number_of_objects_is_drawn(count):
    for seed in range(3):
        scene = render_scene(seed, num_objects=count, split="test")
        assert len(scene.objects) == count
        assert scene.masks.sum(axis=0).max() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "Give an integer of 0 or more"),
        ({"seed": 0, "size": 2048}, "Give 192 to 1024 px"),
        ({"seed": 0, "size": 84}, "Give 192 to 1024 px"),
        ({"seed": 0, "num_objects": 0}, "Give 1 to 9"),
        ({"seed": 0, "num_objects": 10}, "Give 1 to 9"),
        ({"seed": 0, "split": "validation"}, "Choose one of: train, test"),
    ],
)
def test_arguments_out_of_range_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        render_scene(**arguments)


def test_answers_are_the_attributes(scenes):
    for scene in scenes:
        for index, item in enumerate(scene.objects):
            given = answers(scene.objects, index)
            assert list(given) == list(QUESTIONS)
            for name in ("color", "shape", "texture", "size", "position"):
                assert given[name] == getattr(item, name)
            assert given["region"] == f"a {item.texture} {item.color} {item.shape}"
            place = {"center": "in the center", "left": "on the left", "right": "on the right"}
            where = place.get(item.position, f"at the {item.position}")
            assert given["dense"] == f"a {item.size} {item.texture} {item.color} {item.shape} {where}"
            assert given["global"] == describe_scene(scene.objects)


def test_scene_description_is_in_reading_order():
    scene = render_scene(2, num_objects=9)
    names = re.findall(r"an? (\w+) (\w+)", describe_scene(scene.objects))
    by_position = {item.position: (item.color, item.shape) for item in scene.objects}
    assert names == [by_position[position] for position in POSITIONS]


def test_scene_description_is_grammatical():
    one = next(s for s in (render_scene(seed, num_objects=1) for seed in range(99)) if s.objects[0].color == "orange")
    assert describe_scene(one.objects) == f"one object: an orange {one.objects[0].shape}"
    for count, pattern in {
        2: r"two objects: an? \w+ \w+ and an? \w+ \w+",
        3: r"three objects: an? \w+ \w+, an? \w+ \w+ and an? \w+ \w+",
    }.items():
        for seed in range(10):
            text = describe_scene(render_scene(seed, num_objects=count).objects)
            assert re.fullmatch(pattern, text)
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)


def test_exact_match_ignores_case_spacing_and_full_stop():
    assert exact_match("position", " Top  Left.\n", "top left")
    assert not exact_match("position", "top", "top left")
    assert not exact_match("color", "", "red")
    assert normalize_answer("A Red\tcircle .") == "a red circle"
    with pytest.raises(ValueError, match="Choose one of: color, shape"):
        exact_match("material", "wood", "wood")


def test_vocabulary_holds_every_word(scenes):
    def words(texts):
        return {w for text in texts for w in re.findall(r"\w+|[^\w\s]", text)}

    said = [text for s in scenes for i in range(len(s.objects)) for text in answers(s.objects, i).values()]
    assert words([*said, *QUESTIONS.values()]) <= words(vocabulary())


def test_swatches_show_their_colours_and_textures() -> None:
    board, colors, textures = render_swatches(5, cells=4, side=32)
    again, _, _ = render_swatches(5, cells=4, side=32)
    np.testing.assert_array_equal(board, again)
    assert (board.shape, colors.shape, textures.shape) == ((128, 128, 3), (4, 4), (4, 4))
    swatches = board.reshape(4, 32, 4, 32, 3).transpose(0, 2, 1, 3, 4).astype(float)
    contrast = swatches.mean(axis=-1).std(axis=(2, 3)) / swatches.mean(axis=(2, 3, 4))
    plain = textures == TEXTURES.index("plain")
    assert plain.any() and not plain.all()
    # The noise alone is +-4 levels, the pattern 22 % of the mean.
    assert contrast[plain].max() < 0.06 < 0.18 < contrast[~plain].min()
    mean = swatches.mean(axis=(2, 3))
    for color in range(len(COLORS)):
        same = mean[colors == color]
        assert same.size == 0 or np.ptp(same, axis=0).max() < 40


@pytest.mark.parametrize("arguments", [{"seed": -1}, {"seed": 0, "cells": 0}, {"seed": 0, "side": 4}])
def test_impossible_swatches_raise(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="swatches"):
        render_swatches(**arguments)
