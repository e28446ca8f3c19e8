"""What finecaption-tiny's card says, measured again on scenes that are not the card's."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finecaption_hf import EMBEDDED_CHECKPOINT
from finecaption_hf.captioning import caption_regions
from finecaption_hf.scenes import QUESTIONS, answers, render_scene
from finecaption_hf.scenes.scoring import score_scenes, wilson

REQUIRED = {"color": 0.90, "position": 0.90, "shape": 0.80, "texture": 0.80}


@pytest.fixture(scope="module")
def score(embedded: Any) -> dict[str, Any]:
    """Seeds far from those of the card (0 to 499)."""
    return score_scenes(*embedded, 40, seed=100_000)


def test_held_out_combinations_are_answered_by_free_generation(score: dict[str, Any]) -> None:
    assert score["split"] == "test"
    assert score["regions"] >= 100
    for name, least in REQUIRED.items():
        assert score["accuracy"][name] >= least, name


def test_another_mask_on_the_same_picture_gives_the_other_objects_answer(score: dict[str, Any]) -> None:
    """Both regions of a pair right, over pairs whose truth differs: 0 for a model that does not look at the mask."""
    for name, least in REQUIRED.items():
        assert score["both_of_a_pair"][name] >= least**2, name


def test_answers_follow_the_mask_and_nothing_else(embedded: Any) -> None:
    model, processor = embedded
    scene = render_scene(200_001, split="test", num_objects=3)
    image = Image.fromarray(scene.image)
    order = [2, 0, 1, 0]
    given = caption_regions(model, processor, image, [scene.masks[i] for i in order], QUESTIONS["region"])
    expected = [answers(scene.objects, i)["region"] for i in order]
    assert [texts[0] for texts in given] == expected


def test_texture_is_read_from_the_high_resolution_input_only(embedded: Any) -> None:
    """With that input as coarse as the low-resolution one, textured objects look plain."""
    model, processor = embedded
    right = total = 0
    for seed in range(300_000, 300_012):
        scene = render_scene(seed)
        prompt = processor.conversation(Image.fromarray(scene.image), "texture", scene.masks[0])
        inputs = processor.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        blurred = torch.nn.functional.interpolate(
            torch.nn.functional.interpolate(inputs["high_res_pixel_values"], size=(84, 84), mode="area"),
            size=(256, 256),
            mode="bicubic",
        )
        sharp = answer(model, processor, inputs)
        total += sharp != "plain"
        right += sharp != "plain" and answer(model, processor, {**inputs, "high_res_pixel_values": blurred}) == "plain"
    assert total >= 6
    assert right / total >= 0.8


def answer(model: Any, processor: Any, inputs: Any) -> str:
    output = model.generate(**inputs)
    return processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]


def test_card_states_the_score_that_lies_beside_it_and_says_what_the_model_does_not_know() -> None:
    score = json.loads((EMBEDDED_CHECKPOINT / "score.json").read_text())
    card = (EMBEDDED_CHECKPOINT / "README.md").read_text(encoding="utf-8")
    assert score["scenes"] >= 500
    for name, least in REQUIRED.items():
        assert score["accuracy"][name] >= least
    for name, share in score["accuracy"].items():
        low, high = score["intervals_95"][name]
        assert f"| {name} | {share:.3f} ({low:.3f} to {high:.3f}) |" in card
    assert "knows rendered scenes of coloured shapes only" in card
    assert "does not describe photographs" in card.replace("\n", " ")


def test_every_tower_is_there_at_small_size(embedded: Any) -> None:
    config = embedded[0].config
    assert config.use_mask and config.use_convnext and config.use_sam
    assert config.vision_config.image_size / config.high_res_image_size == 336 / 1024
    assert config.grid_size == 8
    assert embedded[0].model.vision_tower.embeddings.alpha_embedding.weight.abs().max() > 0


def test_scoring_counts_answers_and_pairs(embedded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With answers known beforehand: always the first object's truth, so each first region is right and no pair is."""

    def first_objects_answers(model: Any, processor: Any, image: Any, masks: Any, questions: Any, **_: Any) -> Any:
        scene = next(
            scene
            for scene in (render_scene(seed, split="test") for seed in range(10))
            if np.array_equal(scene.image, np.asarray(image))
        )
        truth = answers(scene.objects, 0)
        return [[f" {truth['color'].upper()}. "]] * len(masks)

    monkeypatch.setattr("finecaption_hf.scenes.scoring.caption_regions", first_objects_answers)
    score = score_scenes(None, None, 10, names=("color",))  # type: ignore[arg-type]
    scenes = [render_scene(seed, split="test") for seed in range(10)]
    same = sum(item.color == scene.objects[0].color for scene in scenes for item in scene.objects)
    regions = sum(len(scene.objects) for scene in scenes)
    assert (score["scenes"], score["regions"]) == (10, regions)
    assert score["accuracy"]["color"] == round(same / regions, 4)
    assert score["both_of_a_pair"]["color"] == 0


@pytest.mark.parametrize(("n", "names", "message"), [(0, ("color",), "n is 0"), (1, ("taste",), r"\['taste'\]")])
def test_scoring_nothing_or_the_unknown_raises(n: int, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_scenes(None, None, n, names=names)  # type: ignore[arg-type]


def test_wilson_interval_equals_published_values() -> None:
    # Newcombe 1998, table I, method 3: 81 of 263, and 0 of 20.
    assert wilson([True] * 81 + [False] * 182) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson([False] * 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
