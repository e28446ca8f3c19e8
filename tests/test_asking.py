"""One asker: what a describer gets, and what becomes of its answers, whichever door they come through."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import EXAMPLE_MASK, EXAMPLE_PICTURE, RealRegion
from describers import StubDescriber
from PIL import Image
from test_cli import NUM_REGIONS, by_picture, python_box_forms, python_forms

import finecaption_hf
from finecaption_hf import caption_regions, masks_finecaption
from finecaption_hf.asking import FineCaptionDescriber, ask, load, load_describer, stream
from finecaption_hf.pipeline_finecaption import AskedImage, AskedRegion, answer_all, requests_about
from finecaption_hf.prompts_finecaption import BranchAnswer, BranchRequest

BOX, OUTSIDE = {"box_xyxy": [2, 3, 6, 9]}, {"box_xyxy": [300, 300, 320, 320]}
PICTURE = Image.new("RGB", (16, 12))
QUESTIONS = {"color": "Which color?", "global": "What is in the picture?"}


@pytest.fixture(scope="module")
def describer(embedded: Any) -> FineCaptionDescriber:
    return FineCaptionDescriber(*embedded)


# --- what a describer gets -------------------------------------------------------------------------------------------


def test_describer_gets_checked_regions_and_questions_in_words_with_their_names() -> None:
    stub = StubDescriber(questions=QUESTIONS)
    records = ask(stub, PICTURE, [BOX, None], ["Color", "Is it new?"], max_new_tokens=7, temperature=0.5)
    assert [(it.area, it.box_xyxy, it.is_whole) for it, _ in stub.asked[::2]] == [
        (24, (2, 3, 6, 9), False),
        (192, (0, 0, 16, 12), True),
    ]
    assert {it.pixels.shape for it, _ in stub.asked} == {(12, 16)}
    requests = [request for _, request in stub.asked]
    assert [(it.name, it.question) for it in requests[:2]] == [
        ("color", "Which color?"),
        ("Is it new?", "Is it new?"),
    ]
    assert {(it.max_new_tokens, it.temperature) for it in requests} == {(7, 0.5)}
    assert len({it.seed for it in requests}) == 4
    assert records == [
        {
            "region_index": 0,
            "box_xyxy": [2, 3, 6, 9],
            "area": 24,
            "answers": {"color": "Which color? 24", "Is it new?": "Is it new? 24"},
        },
        {
            "region_index": 1,
            "box_xyxy": [0, 0, 16, 12],
            "area": 192,
            "answers": {"color": "Which color? all", "Is it new?": "Is it new? all"},
        },
    ]


def test_global_question_is_asked_once_a_picture_about_all_of_it() -> None:
    stub = StubDescriber(questions=QUESTIONS)
    found = ask(stub, [PICTURE] * 2, [[BOX, BOX], [BOX, None]], ["global", "color"], batch_size=2)
    assert len(stub.calls) == 1
    whole = [region for region, request in stub.asked if request.name == "global"]
    assert [region.is_whole for region in whole] == [True, True]
    assert len(stub.asked) == 2 + 4
    assert {record["answers"]["global"] for of_picture in found for record in of_picture} == {
        "What is in the picture? all"
    }
    # A region that is the whole picture has the same prefix: the describer gets two regions of the second picture.
    assert len({id(region) for region, _ in stub.asked}) == 3 + 2


def test_what_is_answered_is_not_asked_again() -> None:
    stub = StubDescriber(questions=QUESTIONS)
    questions = requests_about([("color", "Which color?"), (None, "Is it new?")], (0,), (None,))
    regions = [AskedRegion(questions), AskedRegion(questions)]
    image = AskedImage.prepare(stub.prepare, PICTURE, [BOX, None], regions)
    regions[0].answers[0] = BranchAnswer("red", finish_reason="kept")
    regions[1].answers[1] = BranchAnswer("half of i")  # the answer did not come to its end
    answer_all(stub, [image])
    assert len(stub.asked) == 3
    assert [region.text(number) for region in regions for number in (0, 1)] == [
        "red",
        "Is it new? 24",
        "Which color? all",
        "Is it new? all",
    ]
    answer_all(stub, [image])
    assert len(stub.calls) == 1


def test_draws_follow_seed_picture_region_and_question() -> None:
    def seeds(**options: Any) -> list[int]:
        stub = StubDescriber(questions=QUESTIONS)
        ask(stub, [PICTURE] * 2, [[BOX, BOX]] * 2, ["global", "color", "Color?"], **options)
        return [request.seed for _, request in stub.asked]

    first = seeds(seed=1)
    assert len(set(first)) == len(first) == 2 * 5
    assert seeds(seed=1, batch_size=2) == first
    assert not set(seeds(seed=2)) & set(first)


# --- what becomes of the answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4])
def test_nothing_that_fails_is_lost(tmp_path: Path, batch_size: int) -> None:
    items = [
        {"image": PICTURE, "regions": [OUTSIDE, BOX, np.zeros((12, 16))]},
        {"image": tmp_path / "none.png", "regions": [BOX, None]},
        {"image": PICTURE, "regions": BOX, "questions": ["refuse", "What <image>?", "color"]},
        {"image": PICTURE, "regions": []},
    ]
    first, absent, partly, nothing = ask(
        StubDescriber(questions=QUESTIONS), items, questions="color", batch_size=batch_size
    )
    assert [record.get("error", {}).get("type") for record in first] == ["MaskError", None, "MaskError"]
    assert first[1]["answers"] == {"color": "Which color? 24"}
    assert [record["error"]["type"] for record in absent] == ["ImageError"] * 2
    assert "no such file" in absent[0]["error"]["message"]
    assert partly == [
        {
            "region_index": 0,
            "box_xyxy": [2, 3, 6, 9],
            "area": 24,
            "answers": {"color": "Which color? 24"},
            "errors": {
                "refuse": {"type": "NotAnswered", "message": "it refused"},
                "What <image>?": {"type": "NotAnswered", "message": "a special token"},
            },
        }
    ]
    assert nothing == []
    # A stream says the same.
    pieces = list(stream(StubDescriber(questions=QUESTIONS), items, questions="color", batch_size=batch_size))
    assert sorted((it["image_index"], it["region_index"]) for it in pieces if "error" in it and "text" not in it) == [
        (0, 0),
        (0, 2),
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 0),
    ]
    assert [it["text"] for it in pieces if "text" in it] == ["Which color? 24"] * 2


def test_questions_that_cannot_be_asked_are_refused_before_any_work() -> None:
    for questions, options, message in (
        ([], {}, "No question was given"),
        ("What is <image>?", {}, "special token"),
        ("color", {"temperature": -1}, "temperature is -1"),
    ):
        for door in (ask, stream):
            stub = StubDescriber(questions=QUESTIONS)
            with pytest.raises(ValueError, match=message):
                door(stub, PICTURE, BOX, questions, **options)  # type: ignore[operator]
            assert not stub.calls
    with pytest.raises(ValueError, match="several arrived"):
        ask(StubDescriber(questions=QUESTIONS), [PICTURE], None, high_res_features=torch.zeros(1))


def test_describer_that_leaves_a_question_out_is_found_out() -> None:
    class Short(StubDescriber):
        def stream(self, *args: Any, **options: Any) -> Iterator[Any]:
            yield from list(super().stream(*args, **options))[:-1]

    with pytest.raises(RuntimeError, match="1 of 2 questions were not answered"):
        ask(Short(), PICTURE, [BOX, None], "color")


# --- FineCaption -----------------------------------------------------------------------------------------------------


@pytest.mark.hub
def test_every_real_region_in_every_form(describer: Any, real_regions: list[RealRegion]) -> None:
    assert len(real_regions) == NUM_REGIONS
    for path, regions in by_picture(real_regions).items():
        for region in regions:
            for forms in (python_forms(region), python_box_forms(region)):
                # One batch, so that rows with equal inputs are computed alike.
                records = ask(describer, path, forms, "region", max_new_tokens=8)
                answers = [record["answers"]["region"] for record in records]
                assert answers[0]
                assert answers == [answers[0]] * len(forms), path


@pytest.mark.hub
def test_asker_and_pipeline_say_the_same(describer: Any, embedded: Any) -> None:
    pipeline = embedded[0].as_pipeline(embedded[1])
    regions = [Image.open(EXAMPLE_MASK), OUTSIDE, None, [5, 5, 90, 90]]
    questions = ["color", "global", "What is this?"]
    options: dict[str, Any] = {"temperature": 2.0, "seed": 3, "max_new_tokens": 6, "log_probs": True}
    expected = pipeline(EXAMPLE_PICTURE, regions, questions, **options)
    assert ask(describer, EXAMPLE_PICTURE, regions, questions, **options) == expected
    features = describer.encode(Image.open(EXAMPLE_PICTURE))
    given = ask(describer, EXAMPLE_PICTURE, regions, questions, high_res_features=features, **options)
    assert given == expected
    assert list(stream(describer, EXAMPLE_PICTURE, regions, questions, **options)) == list(
        pipeline.stream(EXAMPLE_PICTURE, regions, questions, **options)
    )


@pytest.mark.hub
def test_tokens_at_once_leave_answers_unchanged(embedded: Any, describer: Any) -> None:
    regions = [Image.open(EXAMPLE_MASK), None, [5, 5, 90, 90]]
    questions = ["color", "region", "What is this?"]
    alone = FineCaptionDescriber(*embedded, max_batch_tokens=1)
    together = ask(describer, EXAMPLE_PICTURE, regions, questions)
    assert [len(record["answers"]) for record in together] == [3, 3, 3]
    assert ask(alone, EXAMPLE_PICTURE, regions, questions) == together


def test_one_call_says_what_asking_says_whatever_stands_for_the_model(
    describer: Any, embedded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions, asked = [{"box_xyxy": [100, 149, 160, 209]}, {"box_xyxy": [178, 25, 249, 96]}], ["color", "region"]
    expected = ask(describer, EXAMPLE_PICTURE, regions, asked)
    assert len(expected) == 2 and expected[0]["answers"]
    loaded: list[Any] = []
    monkeypatch.setattr("finecaption_hf.asking.loading.load", lambda model, **_: loaded.append(model) or embedded)
    for model in (describer, embedded, None, str(finecaption_hf.EMBEDDED_CHECKPOINT)):
        assert caption_regions(str(EXAMPLE_PICTURE), regions, asked, model=model) == expected
    assert loaded == [None, str(finecaption_hf.EMBEDDED_CHECKPOINT)]
    with pytest.raises(ValueError, match="2 pictures arrived"):
        caption_regions([EXAMPLE_PICTURE] * 2, model=describer)


def test_one_reference_is_one_region(describer: Any) -> None:
    reference = {"box_xyxy": [5, 5, 90, 90]}
    alone = ask(describer, EXAMPLE_PICTURE, reference, ["color"])
    assert alone == ask(describer, EXAMPLE_PICTURE, [reference], "color")


def test_length_of_answers_has_one_default(embedded: Any) -> None:
    """The checkpoint's own; a describer or a request may say another."""
    model, processor = embedded
    assert FineCaptionDescriber(model, processor).max_new_tokens == model.generation_config.max_new_tokens == 64
    short = FineCaptionDescriber(model, processor, max_new_tokens=2)
    (record,) = ask(short, EXAMPLE_PICTURE, None, "dense", log_probs=True)
    assert len(record["log_probs"]["dense"]) == 2
    assert short.settings["decoding"] == {"max_new_tokens": 2}
    (longer,) = ask(short, EXAMPLE_PICTURE, None, "dense", log_probs=True, max_new_tokens=5)
    assert len(longer["log_probs"]["dense"]) == 5
    given = model.generation_config.max_new_tokens
    try:
        model.generation_config.max_new_tokens = None
        assert FineCaptionDescriber(model, processor).max_new_tokens == 64
    finally:
        model.generation_config.max_new_tokens = given


def test_region_is_checked_once_on_its_way(describer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    read = masks_finecaption.read_region
    monkeypatch.setattr(masks_finecaption, "read_region", lambda *args: calls.append(args) or read(*args))
    monkeypatch.setattr(masks_finecaption, "array_mask", lambda *args: pytest.fail("a mask was checked again"))
    ask(describer, EXAMPLE_PICTURE, [{"box_xyxy": [5, 5, 90, 90]}], ["color", "global"], max_new_tokens=2)
    assert len(calls) == 1


def test_name_and_settings_say_which_model_it_is(tmp_path: Path) -> None:
    describer = load_describer(device="cpu", max_batch_tokens=500)
    assert describer.name == "finecaption-tiny"
    settings = json.loads(json.dumps(describer.settings))
    assert (settings["dtype"], settings["referral"], settings["max_batch_tokens"]) == ("float32", "mask", 500)
    describer.max_batch_tokens = 250  # memory ran out
    assert describer.settings["max_batch_tokens"] == 500


def test_model_of_another_kind_raises(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="type 'llama', not 'finecaption'"):
        load(tmp_path)


def test_decoding_has_no_default_of_its_own() -> None:
    stub = StubDescriber(questions=QUESTIONS)
    ask(stub, PICTURE, BOX, "color")
    ((_, request),) = stub.asked
    assert BranchRequest(request.question, seed=request.seed, name="color") == request
