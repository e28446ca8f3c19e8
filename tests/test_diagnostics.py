"""Diagnostics against references: plain forward passes, models that cannot see the mask, answers known beforehand."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from describers import StubDescriber
from PIL import Image
from typer.testing import CliRunner

from finecaption_hf.asking import FineCaptionDescriber
from finecaption_hf.cli import app
from finecaption_hf.data.examples import Branch, Example, Region
from finecaption_hf.evaluation.diagnostics import (
    AnswerScorer,
    attribute_accuracy,
    attribute_consistency,
    mask_sensitivity,
    run_diagnostics,
    score_answers,
)
from finecaption_hf.evaluation.diagnostics.consistency import said
from finecaption_hf.evaluation.diagnostics.sensitivity import SWAPS, shuffle_patches
from finecaption_hf.evaluation.diagnostics.tables import plain_text
from finecaption_hf.evaluation.predictions import Prediction
from finecaption_hf.modeling_finecaption import FineCaptionForConditionalGeneration
from finecaption_hf.scenes import (
    Scene,
    accepted,
    answers,
    known_answers,
    known_values,
    normalize_answer,
    render_scene,
    write_scenes,
)

SEED = 400_000  # far from the scenes of training and of the card


def scene_example(scene: Scene, *, names: Sequence[str] | None = None, whole: bool = False) -> Example:
    regions = []
    for index, mask in enumerate(scene.masks):
        told = answers(scene, index)
        asked = [name for name in told if name != "global" and (names is None or name in names)]
        regions.append(Region(mask, tuple(Branch(told[name], name) for name in asked), str(index)))
    if whole:
        regions.append(Region(None, (Branch(answers(scene, 0)["global"], "global"),), "image"))
    return Example(Image.fromarray(scene.image), tuple(regions), f"{scene.split}-{scene.seed}")


def scene_examples(number: int, **options: Any) -> list[Example]:
    return [scene_example(render_scene(SEED + seed, split="test"), **options) for seed in range(number)]


@pytest.fixture
def blind(embedded: Any) -> Any:
    """The embedded model with its alpha convolution at zero: the mask makes no difference."""
    model = copy.deepcopy(embedded[0])
    torch.nn.init.zeros_(model.model.vision_tower.embeddings.alpha_embedding.weight)
    return model


# --- likelihoods -----------------------------------------------------------------------------------------------------

QUESTIONS = [("Color", "red"), ("Which shape?", "shaped like a star"), ("Materials/Texture", "made of dotted metal")]


def plain_score(model: Any, processor: Any, picture: Image.Image, mask: Any, question: str, answer: str) -> float:
    """One question and its answer as a sequence of their own, through the processor and the public forward."""
    inputs = processor.apply_chat_template(
        processor.conversation(picture, question, mask),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    _, ids = AnswerScorer(model, processor).encode(question, answer)
    assert processor.tokenizer.decode(ids, skip_special_tokens=True).strip() == answer
    prompt = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        log_probs = model(**inputs).logits[0].log_softmax(dim=-1)
    return sum(float(log_probs[prompt + place - 1, token]) for place, token in enumerate(ids))


@pytest.mark.parametrize("way", ["packed", "short sequences", "one sequence per branch"])
def test_scores_are_those_of_plain_forward_passes(embedded: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = embedded
    scene = render_scene(SEED, split="test", num_regions=2)
    picture = Image.fromarray(scene.image)
    branches = [QUESTIONS, QUESTIONS[:2]]
    vision = processor.image_processor([picture], masks=list(scene.masks), image_indices=[0, 0], return_tensors="pt")
    if way == "one sequence per branch":
        monkeypatch.setattr(AnswerScorer, "_can_pack", lambda self, branches: False)
    if way == "short sequences":
        scorer = AnswerScorer(model, processor, branch_tokens=1, tokens_at_once=100)
        encoded = [[scorer.encode(*branch) for branch in row] for row in branches]
        scores = scorer.score(scorer.image_tokens(vision), encoded)
    else:
        scores = score_answers(model, processor, vision, branches)
    for mask, row, of_row in zip(scene.masks, branches, scores, strict=True):
        for (question, answer), score in zip(row, of_row, strict=True):
            # Sums in another order; the values are around -10.
            assert score.log_prob == pytest.approx(
                plain_score(model, processor, picture, mask, question, answer), abs=1e-3
            )
            tokens = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
            assert score.num_tokens == len(tokens) + 1  # and the end
            assert score.per_token == score.log_prob / score.num_tokens


def test_scores_need_branches_of_every_region_and_answers_that_are_not_empty(embedded: Any) -> None:
    scorer = AnswerScorer(*embedded)
    with pytest.raises(ValueError, match="1 regions arrived for 2"):
        scorer.score(torch.zeros(2, 64, 8), [[]])
    with pytest.raises(ValueError, match="is empty"):
        scorer.encode("Color", "  ")


# --- is the mask used? -----------------------------------------------------------------------------------------------


def test_model_that_cannot_see_the_mask_changes_by_exactly_nothing(embedded: Any, blind: Any) -> None:
    found = mask_sensitivity(FineCaptionDescriber(blind, embedded[1]), scene_examples(3), truth=known_answers)["values"]
    for part in (found["all"], *found["by_question"].values()):
        for swap in SWAPS:
            if part[swap] is not None:
                assert part[swap]["value"] == 0 and set(part[swap]["interval_95"] or [0]) == {0}
        for best in ("best", "best_of_differing"):
            if part[best] is not None:
                assert part[best]["value"] == pytest.approx(part[f"{best}_by_chance"], abs=1e-4)
    assert all(found["all"][swap] is not None for swap in SWAPS)


def test_model_without_mask_input_changes_by_exactly_nothing(embedded: Any) -> None:
    config = type(embedded[0].config).from_dict({**embedded[0].config.to_dict(), "use_mask": False})
    torch.manual_seed(0)
    model = FineCaptionForConditionalGeneration(config).eval()
    processor = copy.copy(embedded[1])
    processor.image_processor = type(processor.image_processor)(**config.image_processor_kwargs())
    found = mask_sensitivity(FineCaptionDescriber(model, processor), scene_examples(1))["values"]["all"]
    assert [found[swap]["value"] for swap in SWAPS] == [0] * len(SWAPS)


@pytest.fixture(scope="module")
def sensitivity(embedded: Any) -> dict[str, Any]:
    return mask_sensitivity(FineCaptionDescriber(*embedded), scene_examples(8, whole=True), truth=known_answers)


def test_embedded_checkpoint_uses_the_mask(sensitivity: dict[str, Any]) -> None:
    """A change of 1 is a factor of e for every token: far from anything that rounding or chance does."""
    for name in ("Color", "Shape", "Relative Location with Other Objects", "region"):
        part = sensitivity["values"]["by_question"][name]
        assert part["other_answer"]["interval_95"][0] > 1, name
        assert part["other_region"]["value"] <= part["other_answer"]["value"] + 1e-9
        for swap in ("complement", "whole_image", "shuffled"):
            assert part[swap]["interval_95"][0] > 0.3, (name, swap)
        assert part["best_of_differing"]["value"] > 0.95
        assert part["best_of_differing_by_chance"] <= 0.5


def test_mask_does_not_matter_to_what_is_the_same_in_the_whole_picture(sensitivity: dict[str, Any]) -> None:
    part = sensitivity["values"]["by_question"]["Camera Viewpoint"]
    assert abs(part["other_region"]["value"]) < 0.05
    # All regions have the same viewpoint in any wording: there is no other answer to compare with.
    assert part["other_answer"] is None
    assert sum(part["other_answer_not_applicable"].values()) == part["branches"]


def test_table_says_what_the_values_say(sensitivity: dict[str, Any]) -> None:
    table, values = sensitivity["table"], sensitivity["values"]
    assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    assert [row[0] for row in table["rows"]] == ["all", *values["by_question"]]
    color = next(row for row in table["rows"] if row[0] == "Color")
    part = values["by_question"]["Color"]
    assert color[1] == str(part["branches"])
    column = table["columns"].index("complement")
    assert float(color[column].split()[0]) == pytest.approx(part["complement"]["value"], abs=6e-4)
    assert values["left_out"] == {"the region is the whole image": 8}
    assert any("8 because the region is the whole image" in note for note in sensitivity["notes"])
    assert any("seed 0" in note for note in sensitivity["notes"])


def test_what_a_swap_does_not_apply_to_is_counted(embedded: Any) -> None:
    alone = scene_example(render_scene(SEED, split="test", num_regions=1), names=["Color", "Shape", "Category Name"])
    everything = np.ones((256, 256), bool)
    odd = Example(
        alone.image,
        (
            Region(everything, (Branch("red", "Color"),)),  # its complement is empty
            Region(
                {"box_xyxy": [0, 0, 9, 9]},
                (Branch("red", "taste"), Branch("red", question="<image>?"), Branch("<image>", "Color")),
            ),
            Region({"box_xyxy": [300, 0, 309, 9]}, (Branch("red", "Color"),)),
        ),
        "odd",
    )
    lost = Example("lost.png", alone.regions[:1], "lost")
    found = mask_sensitivity(FineCaptionDescriber(*embedded), [alone, odd, lost])["values"]
    branches = len(alone.regions[0].branches)
    assert found["all"]["branches"] == branches
    for name in ("other_region", "best"):
        assert found["all"][name] is None
        assert found["all"][f"{name}_not_applicable"] == {"there is no other region in the example": branches}
    assert found["all"]["complement"]["segments"] == branches
    assert found["left_out"] == {
        "the region is the whole image": 1,
        "the model knows no question of that name": 1,
        "the question holds a special token": 1,
        "the answer is empty or holds a special token": 1,
        "the mask cannot be used (MaskError)": 1,
        "the picture cannot be read (DataError)": branches,
    }
    own = mask_sensitivity(FineCaptionDescriber(*embedded), [alone, odd], answers="own")["values"]
    assert own["left_out"]["the question holds a special token"] == 1
    with pytest.raises(ValueError, match=r"No answer could be scored .* picture cannot be read"):
        mask_sensitivity(FineCaptionDescriber(*embedded), [lost])


def test_image_is_encoded_once_for_all_masks(embedded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = type(embedded[0]).get_high_res_features
    monkeypatch.setattr(
        type(embedded[0]),
        "get_high_res_features",
        lambda self, pixels: calls.append(len(pixels)) or encode(self, pixels),
    )
    mask_sensitivity(FineCaptionDescriber(*embedded), scene_examples(2, names=["Color", "Category Name"]))
    assert calls == [1, 1]


def test_seed_decides_what_is_drawn(embedded: Any) -> None:
    examples = scene_examples(2, names=["Category Name"])
    boxes = [{"box_xyxy": [x, 40, x + 50, 140]} for x in (0, 60, 120, 180)]
    examples = [Example(r.image, tuple(Region(box, r.regions[0].branches) for box in boxes), r.id) for r in examples]

    def measure(seed: int, max_others: int) -> dict[str, float]:
        found = mask_sensitivity(FineCaptionDescriber(*embedded), examples, seed=seed, max_others=max_others)["values"][
            "all"
        ]
        return {swap: found[swap]["value"] for swap in ("other_region", "complement", "shuffled")}

    first, again, other = measure(0, 1), measure(0, 1), measure(1, 1)
    assert first == again
    assert first["complement"] == other["complement"]
    assert first["shuffled"] != other["shuffled"] and first["other_region"] != other["other_region"]
    assert measure(0, 3)["other_region"] == measure(1, 8)["other_region"] != first["other_region"]


def test_own_answers_can_be_scored_in_place_of_references(embedded: Any) -> None:
    """Where the references are wrong, the model's own answers are likelier under every region's own mask."""
    examples = [
        Example(r.image, tuple(Region(x.mask, (Branch("pink cross", "Category Name"),)) for x in r.regions), r.id)
        for r in scene_examples(2)
    ]
    wrong, own = (
        mask_sensitivity(FineCaptionDescriber(*embedded), examples, answers=kind)["values"]["all"]
        for kind in ("reference", "own")
    )
    assert own["log_likelihood_per_token"]["value"] > -0.5 > wrong["log_likelihood_per_token"]["value"] + 1


@pytest.mark.parametrize(
    ("options", "message"), [({"answers": "greedy"}, "'greedy'"), ({"max_others": 0}, "max_others is 0")]
)
def test_wrong_options_raise(options: dict[str, Any], message: str, embedded: Any) -> None:
    with pytest.raises(ValueError, match=message):
        mask_sensitivity(FineCaptionDescriber(*embedded), [], **options)


def patches_of(values: torch.Tensor) -> list[bytes]:
    cut = values[0, :84, :84].reshape(6, 14, 6, 14).transpose(1, 2).reshape(36, -1)
    return [row.numpy().tobytes() for row in cut]


def test_shuffled_mask_has_the_same_patches_in_other_places_of_the_picture() -> None:
    whole = torch.zeros(1, 84, 84)
    whole[:, 20:64] = 1  # padded above and below: patches of rows 2 and 3 lie wholly in the picture
    region = torch.zeros(1, 84, 84)
    region[:, 24:50, 10:47] = torch.rand(26, 37, generator=torch.Generator().manual_seed(0))
    moved = shuffle_patches(region, whole, 14, np.random.default_rng(5))
    assert moved is not None and not torch.equal(moved, region)
    assert sorted(patches_of(moved)) == sorted(patches_of(region))
    assert moved.double().sum() == pytest.approx(float(region.double().sum()))
    assert torch.equal(moved[:, :28], region[:, :28]) and torch.equal(moved[:, 56:], region[:, 56:])
    again = shuffle_patches(region, whole, 14, np.random.default_rng(5))
    assert torch.equal(moved, again)


def test_mask_that_is_the_same_in_all_patches_cannot_be_shuffled() -> None:
    whole = torch.ones(1, 84, 84)
    assert shuffle_patches(whole, whole, 14, np.random.default_rng(0)) is None
    assert (
        shuffle_patches(whole, torch.zeros(1, 84, 84).index_fill(1, torch.arange(14), 1), 84, np.random.default_rng(0))
        is None
    )


# --- do answers agree? -----------------------------------------------------------------------------------------------


def test_said_values_are_whole_words_and_the_longest() -> None:
    clothes = [["red shirt and grey trousers"], ["red shirt and grey trousers with glasses"], ["red"]]
    assert said("in a red shirt, and grey trousers with glasses", clothes) == {1}
    assert said("A Red shirt and grey trousers.", clothes) == {0}
    assert said("a red-haired, hundred reddish things", clothes) == set()
    assert said("red, then a red shirt and grey trousers", clothes) == {0, 2}
    assert said("", clothes) == set()


@pytest.mark.parametrize("seed", range(SEED, SEED + 40))
def test_every_wording_of_a_scene_says_its_value_and_captions_say_no_other(seed: int) -> None:
    values = known_values()
    scene = render_scene(seed)
    for index in range(len(scene.regions)):
        truth = accepted(scene, index)
        assert set(truth) - set(values) == {"One-Sentence Description", "region", "dense", "global"}
        for name in truth.keys() & values.keys():
            told = [said(wording, values[name]) for wording in truth[name]]
            assert len(told[0]) == 1 and all(it == told[0] for it in told), (name, truth[name])
            for caption in (*truth["dense"], *truth["region"]):
                assert said(caption, values[name]) in (set(), told[0]), (name, caption)


def scripted(told: dict[str, str]) -> StubDescriber:
    """A describer with answers to known questions."""
    questions = {"region": "R?", "dense": "D?", "Color": "C?", "Shape": "S?", "Hair": "H?"}
    return StubDescriber(lambda picture, region, request: told[request.question], questions=questions)


def three_attributes() -> Example:
    branches = tuple(Branch(answer, name) for name, answer in (("Color", "red"), ("Shape", "star"), ("Hair", "none")))
    regions = (Region({"box_xyxy": [0, 0, 9, 9]}, (*branches, Branch("a star", "dense")), "0"),)
    return Example(Image.new("RGB", (20, 20)), regions, "r")


VALUES = {"Color": [["red"], ["blue"]], "Shape": [["star"], ["cross"]]}


def test_conflicts_are_found_and_judged() -> None:
    told = {"C?": "It is red", "S?": "star", "R?": "a thing", "D?": "a blue star", "C? S?": "red"}
    describer = scripted(told)
    found = attribute_consistency(
        describer, [three_attributes()], values=VALUES, truth=lambda *_: {"Color": ["red", "it is red"]}
    )
    asked = [request.question for _, request in describer.asked]
    assert asked == ["C?", "S?", "R?", "D?", "C? S?"]  # Hair has no values, the sentence no question
    values = found["values"]
    forms = ("region", "dense", "2 at once")
    counts = {form: [values["all"][form][status] for status in ("agree", "conflict", "silent")] for form in forms}
    assert counts == {"region": [0, 0, 2], "dense": [1, 1, 0], "2 at once": [1, 0, 1]}
    dense = values["by_question"]["Color"]["dense"]
    assert (dense["judged_conflicts"], dense["separate_right"], dense["joint_right"]) == (1, 1, 0)
    assert values["examples"] == [
        {"image": "r", "region_index": 0, "question": "Color", "alone": "It is red", "dense": "a blue star"}
    ]
    assert values["left_out"] == {"the values of the attribute are not known": 1}
    rows = {row[0]: row for row in found["table"]["rows"]}
    assert {len(row) for row in rows.values()} == {len(found["table"]["columns"])}
    at = found["table"]["columns"].index("dense: agrees")
    assert [rows[name][at].split()[0] for name in ("all", "Color", "Shape")] == ["0.500", "0.000", "1.000"]
    assert any(
        "of 1 conflicts the attribute's own answer is right in 1, the joint one in 0" in x for x in found["notes"]
    )


def test_without_vocabularies_content_words_are_looked_for() -> None:
    told = {
        "C?": "It is red and white",
        "S?": "the",
        "H?": "long hair",
        "R?": "white hair",
        "D?": "red, white, long hair",
    }
    pairs = {"C? S?": "red", "S? H?": "long"}  # the last of an odd number goes with the one before
    found = attribute_consistency(scripted({**told, **pairs}), [three_attributes()])
    by_question = found["values"]["by_question"]
    shares = {
        name: [by_question[name][form]["words"]["value"] for form in ("region", "dense", "2 at once")]
        for name in ("Color", "Hair")
    }
    assert shares == {"Color": [0.5, 1.0, 0.5], "Hair": [0.5, 1.0, 0.5]}
    assert by_question["Shape"]["dense"]["not_applicable"] == {"the separate answer has no content words": 1}
    assert found["values"]["compared_by"] == "words" and "Synonyms" in found["notes"][0]


def test_nothing_to_compare_raises() -> None:
    with pytest.raises(ValueError, match="3 because the values of the attribute are not known"):
        attribute_consistency(scripted({}), [three_attributes()], values={"Age Range": [["old"]]})
    with pytest.raises(ValueError, match="together is 1"):
        attribute_consistency(scripted({}), [], together=1)


def test_embedded_checkpoint_says_the_same_in_captions_and_alone(embedded: Any) -> None:
    found = run_diagnostics(
        FineCaptionDescriber(*embedded), scene_examples(6), ["consistency"], truth=known_answers, values=known_values()
    )["consistency"]["values"]
    for form in ("region", "dense"):
        assert found["all"][form]["agreement"]["value"] > 0.9
    for name in ("Color", "Shape", "Category Name"):
        assert found["by_question"][name]["region"]["says_it"]["value"] > 0.9


def test_command_puts_the_tables_into_the_report(tmp_path: Path) -> None:
    examples = write_scenes(tmp_path / "scenes", 2, seed=SEED, split="test", num_regions=2)
    names = ["accuracy", "mask", "mask-own", "consistency"]
    given = ["--data", str(examples), "--metrics", "rouge_l", "--tokenizer", "python", "--device", "cpu"]
    output = tmp_path / "out"
    found = CliRunner().invoke(app, ["evaluate", *given, "--diagnostics", ",".join(names), "--output", str(output)])
    assert found.exit_code == 0, found.output
    parts = json.loads((output / "report.json").read_text())["diagnostics"]
    titles = [part["title"] for part in parts]
    assert len(set(titles)) == 4 and titles[1] == "Is the mask used?"
    assert parts[0]["values"]["all"]["segments"] == sum(
        len(accepted(scene, index)) - 1 for scene in scenes_of(2) for index in range(2)
    ) + len(scenes_of(2))
    # Closed vocabularies and all wordings are those of the scenes.
    assert parts[3]["values"]["compared_by"] == "values"
    assert parts[1]["values"]["by_question"]["Camera Viewpoint"]["other_answer"] is None
    assert all(title in (output / "report.md").read_text() for title in titles)


def scenes_of(number: int) -> list[Scene]:
    return [render_scene(SEED + seed, split="test", num_regions=2) for seed in range(number)]


def test_unknown_diagnostic_raises(embedded: Any) -> None:
    with pytest.raises(ValueError, match="no diagnostic 'taste'"):
        run_diagnostics(FineCaptionDescriber(*embedded), [], ["taste"])


# --- exact answers ---------------------------------------------------------------------------------------------------


def predicted(key: str, name: str | None, reference: str, text: str | None, **changes: Any) -> Prediction:
    image, region, _ = key.split("|")
    error = {"type": "NotDescribed", "message": "no"} if text is None else None
    given = {"image_id": "test-400000", "region_id": region, "image_size": (256, 256), **changes}
    return Prediction(
        key=key,
        image=image,
        region_index=int(region),
        name=name,
        question="?",
        prediction=text,
        references=(reference,),
        error=error,
        **given,
    )


def test_exact_answers_in_any_wording_count() -> None:
    scene = render_scene(SEED, split="test")
    told = accepted(scene, 0)
    category, effect = told["Category Name"], told["Associative Visual Effect"]
    predictions = [
        predicted("a|0|0", "Category Name", category[0], category[1].upper() + "."),
        predicted("a|0|1", "Associative Visual Effect", effect[0], "a ghost"),
        predicted("a|0|2", "Camera Viewpoint", told["Camera Viewpoint"][0], None),
        predicted("b|0|0", "Category Name", category[0], category[0], image_id="elsewhere"),
    ]
    found = attribute_accuracy(predictions, known_answers)
    assert found["values"]["all"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    assert {name: part["value"] for name, part in found["values"]["by_question"].items()} == {
        "Category Name": 1,
        "Associative Visual Effect": 0,
        "Camera Viewpoint": 0,
    }
    assert any("1 because it was not answered" in note and "1 because no right" in note for note in found["notes"])
    with pytest.raises(ValueError, match="right answer to no prediction"):
        attribute_accuracy(predictions[3:], known_answers)


def test_texts_count_as_the_same_as_in_the_scenes_own_score() -> None:
    for text in (" A  red\ntile. ", "Red...", "a . b .", "", "ÉTÉ"):
        assert plain_text(text) == normalize_answer(text)
