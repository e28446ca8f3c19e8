"""Scoring on scenes, with answers that are known beforehand instead of a model's."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from describers import StubDescriber
from PIL import Image

from finecaption_hf.masks_finecaption import RegionMask
from finecaption_hf.prompts_finecaption import BranchRequest
from finecaption_hf.scenes import ATTRIBUTE_NAMES, QUESTIONS, Scene, accepted, render_scene
from finecaption_hf.scenes.scoring import score_scenes, wilson

N = 10


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(seed, split="test") for seed in range(N)]


def scene_of(image: Image.Image, scenes: list[Scene]) -> Scene:
    return next(scene for scene in scenes if np.array_equal(scene.image, np.asarray(image)))


def index_of(region: RegionMask, scene: Scene) -> int:
    if region.is_whole:
        return 0
    return next(i for i, known in enumerate(scene.masks) if np.array_equal(known, region.pixels))


@pytest.fixture
def oracle(scenes: list[Scene]) -> StubDescriber:
    """Its answers are right, in the last wording, in capitals and with a full stop."""

    def say(picture: Image.Image, region: RegionMask, request: BranchRequest) -> str:
        scene = scene_of(picture, scenes)
        noted.append((scene, index_of(region, scene)))
        return accepted(scene, index_of(region, scene))[str(request.name)][-1].upper() + "."

    noted: list[tuple[Scene, int]] = []
    return StubDescriber(say, questions=QUESTIONS, noted=noted)


def score(oracle: StubDescriber, **options: Any) -> dict[str, Any]:
    return score_scenes(oracle, N, **options)


def test_right_answers_in_any_wording_count(scenes: list[Scene], oracle: StubDescriber) -> None:
    done: list[int] = []
    result = score(oracle, names=tuple(QUESTIONS), on_scene=done.append)
    told = [accepted(scene, index) for scene in scenes for index in range(len(scene.regions))]
    assert set(result["accuracy"].values()) == {1.0}
    assert set(result["both_of_a_pair"].values()) == {1.0} and set(result["differing"].values()) == {1.0}
    for name in QUESTIONS:
        assert result["counts"][name] == (N if name == "global" else sum(name in truth for truth in told))
        if name in result["accuracy"]:
            assert result["intervals_95"][name] == [round(b, 4) for b in wilson([True] * result["counts"][name])]
    assert (result["scenes"], result["regions"], result["split"], result["size"]) == (N, len(told), "test", 256)
    assert done[-1] == N
    # The global caption is asked once a scene, about the whole picture, and no other without its mask.
    assert [it.is_whole for it, _ in oracle.asked] == [request.name == "global" for _, request in oracle.asked]
    assert "global" not in result["both_of_a_pair"]


def test_answers_that_ignore_the_mask_are_right_for_no_pair(scenes: list[Scene], oracle: StubDescriber) -> None:
    """Without masks, the answers known here are those of each first region."""
    name = "Associative Visual Effect"
    result = score(oracle, names=(name,), use_mask=False)
    assert all(region.is_whole for region, _ in oracle.asked)
    effects = [[region.facets["effect"] for region in scene.regions] for scene in scenes]
    right = [effect == of_scene[0] for of_scene in effects for effect in of_scene]
    assert result["accuracy"][name] == round(sum(right) / len(right), 4)
    assert any(a != b for of_scene in effects for a, b in combinations(of_scene, 2))
    assert result["both_of_a_pair"][name] == result["differing"][name] == 0


def test_attributes_are_asked_where_they_apply(oracle: StubDescriber, scenes: list[Scene]) -> None:
    score(oracle)
    assert {request.name for _, request in oracle.asked} <= set(ATTRIBUTE_NAMES)
    for (scene, index), (_, request) in zip(oracle.settings["noted"], oracle.asked, strict=True):
        assert request.name in accepted(scene, index)


@pytest.mark.parametrize(
    ("n", "names", "message"),
    [(0, ("Color",), "n is 0"), (1, ("taste",), "no question 'taste'"), (1, (), "Give at least one of")],
)
def test_scoring_nothing_or_the_unknown_raises(n: int, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_scenes(StubDescriber(), n, names=names)


def test_wilson_interval_equals_published_values() -> None:
    # Newcombe 1998, table I, method 3: 81 of 263, and 0 of 20.
    assert wilson([True] * 81 + [False] * 182) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson([False] * 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
