"""Questions about a region of a picture: together or one by one, behind one prefix or each with its own, as asked."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from more_models import MORE, any_model
from other_models import FAMILIES
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor

from finecaption_hf.asking import ask
from finecaption_hf.asking.describers import PromptTemplates, Referral, TransformersDescriber, transformers_models
from finecaption_hf.asking.describers.shared_prefix import Prefix, Row, group
from finecaption_hf.masks_finecaption import RegionMask
from finecaption_hf.prompts_finecaption import BranchAnswer, BranchRequest

# PaliGemma's processor makes an array of a tensor in a way that numpy will not take.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

QUESTIONS = ("Why?", "What is it, and of what is it made?", "Color?", "Is it new, seen from the left or from behind?")
SHARING = {"llava", "llava_next", "vipllava", "qwen2_vl", "qwen2_5_vl", "internvl"}
SHARING |= {"qwen3_vl", "gemma3", "idefics3", "smolvlm", "llava_onevision", "perception_lm"}
# The others: cross-attention, an encoder, a picture that attends to the question, positions that count padding.


def picture(height: int, width: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def describer(model: Any, processor: Any, referral: str = "box_text", **options: Any) -> TransformersDescriber:
    return TransformersDescriber(model, processor, Referral(referral), **{"name": "it", "max_new_tokens": 5, **options})


def answers(
    asked: TransformersDescriber, *rows: list[BranchRequest], seed: int = 0
) -> dict[tuple[int, int], BranchAnswer]:
    """Of each row of requests about a region of a picture of its own, of alternating forms."""
    sizes = ((60, 90), (80, 50))
    pictures = [picture(*sizes[number % 2], seed=seed + number) for number in range(len(rows))]
    regions = [RegionMask({"box_xyxy": [5 + number, 5, 40, 40]}, *it.size[::-1]) for number, it in enumerate(pictures)]
    prepared = [asked.prepare(picture, [region]) for picture, region in zip(pictures, regions, strict=True)]
    return {(it.region, it.branch): it.answer for it in asked.stream(prepared, rows)}


def requests(*questions: str, **decoding: Any) -> list[BranchRequest]:
    return [BranchRequest(question, **decoding) for question in questions]


def tokens(found: dict[tuple[int, int], BranchAnswer]) -> dict[tuple[int, int], tuple[int, ...]]:
    assert all(answer.error is None for answer in found.values()), found
    return {place: answer.token_ids for place, answer in found.items()}


def needs_num2words(family: str) -> None:
    if family == "smolvlm" and find_spec("num2words") is None:
        pytest.skip("the processor of SmolVLM needs num2words")


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_questions_together_get_the_answers_of_questions_alone(family: str) -> None:
    needs_num2words(family)
    model, processor = any_model(family)
    # Three regions, one of them with a single question, so that a batch is of both kinds; then what is left of one.
    rows = [requests(*QUESTIONS), requests(QUESTIONS[0]), requests(*QUESTIONS[1:], QUESTIONS[1] + " Of all?")]
    together = describer(model, processor, batch_size=6)
    alone = describer(model, processor, batch_size=1)
    alone.shares_prefixes = False
    found, expected = answers(together, *rows), answers(alone, *rows)
    assert together.shares_prefixes is (family in SHARING)
    assert tokens(found) == tokens(expected)
    assert len(set(tokens(found).values())) > 1
    for place, answer in found.items():
        assert answer.log_probs == pytest.approx(expected[place].log_probs, abs=1e-4)
        assert answer.log_probs is not None and len(answer.log_probs) == len(answer.token_ids) == 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("family", sorted(SHARING))
def test_questions_together_get_the_answers_of_questions_alone_again(family: str, seed: int) -> None:
    needs_num2words(family)
    model, processor = any_model(family, seed)
    generator = np.random.default_rng(seed)
    rows = [
        requests(*("x" * int(length) for length in generator.integers(1, 70, size=count)))
        for count in generator.integers(1, 7, size=4)
    ]
    together = describer(model, processor, batch_size=int(generator.integers(2, 9)), max_new_tokens=12)
    alone = describer(model, processor, batch_size=1, max_new_tokens=12)
    alone.shares_prefixes = False
    assert tokens(answers(together, *rows, seed=seed)) == tokens(answers(alone, *rows, seed=seed))
    assert together.shares_prefixes


class Counted:
    """An image processor that counts its pictures."""

    def __init__(self, image_processor: BaseImageProcessor) -> None:
        self.image_processor, self.pictures = image_processor, 0

    def __call__(self, images: Any, *arguments: Any, **options: Any) -> Any:
        self.pictures += len(images)
        return self.image_processor(images, *arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.image_processor, name)


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "paligemma"])
def test_picture_is_prepared_once_for_all_questions_about_a_region(family: str) -> None:
    model, processor = any_model(family)
    processor.image_processor = counted = Counted(processor.image_processor)
    asked = describer(model, processor, batch_size=3)
    answers(asked, requests(*QUESTIONS), requests(*QUESTIONS[1:]))
    counted.pictures = 0  # one more for the first question of a describer
    answers(asked, requests(*QUESTIONS), requests(*QUESTIONS[1:]))
    assert counted.pictures == 2


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_picture_goes_through_the_model_once_per_region(batch_size: int) -> None:
    model, processor = any_model("llava")
    asked = describer(model, processor, batch_size=batch_size)
    asked.shares_prefixes = True
    seen: list[int] = []
    handle = model.model.vision_tower.register_forward_pre_hook(
        lambda module, given, named: seen.append(len(named.get("pixel_values", given[0] if given else None))),
        with_kwargs=True,
    )
    answers(asked, requests(*QUESTIONS), requests(*QUESTIONS))
    handle.remove()
    assert seen == [1, 1]


@pytest.mark.parametrize("family", ["paligemma", "gemma3"])
def test_sharing_that_would_change_answers_is_found_out(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of PaliGemma by the trial alone; of Gemma by positions that are wrong on purpose."""
    monkeypatch.setattr(transformers_models, "_SEES_AHEAD", ())
    if family == "gemma3":
        go_on = transformers_models.go_on

        def shifted(model: Any, rows: Any, pad_token_id: int) -> Any:
            inputs = go_on(model, rows, pad_token_id)
            return {**inputs, "position_ids": inputs["attention_mask"].cumsum(dim=-1)}

        monkeypatch.setattr(transformers_models, "go_on", shifted)
    asked = describer(*any_model(family))
    answers(asked, requests(*QUESTIONS))
    assert asked.shares_prefixes is False


def test_template_that_puts_the_question_first_shares_nothing() -> None:
    model, processor = any_model("llava")
    processor.chat_template = None
    prompts = PromptTemplates("{question} {referral} <image> Answer:")
    asked = describer(model, processor, templates=prompts)
    alone = describer(model, processor, templates=prompts, batch_size=1)
    assert tokens(answers(asked, requests(*QUESTIONS))) == tokens(answers(alone, requests(*QUESTIONS)))
    assert asked.shares_prefixes is False


def test_rows_go_together_where_all_can_have_as_many_new_tokens() -> None:
    """The prefix: 6 tokens of a picture, then 4 that all have in common."""
    model, _ = any_model("llava")
    image = model.config.image_token_id
    ids = [image] * 6 + [10, 11, 12, 13]

    def prompt(*after: int) -> dict[str, Any]:
        found = torch.tensor([[*ids, *after]])
        return {"input_ids": found, "attention_mask": torch.ones_like(found)}

    prefix = Prefix.__new__(Prefix)
    prefix.ids, prefix.image_end, prefix.others = torch.tensor([*ids, 20, 21]), 6, {}
    rows = [Row(prefix, prompt(*range(30, 30 + count))) for count in (7, 1, 5, 2, 12)]
    assert [(row.fewest, row.most) for row in rows] == [(7, 11), (1, 5), (5, 9), (2, 6), (12, 16)]
    assert list(group(rows)) == [[1, 3, 2], [0], [4]]
    other = torch.tensor([[image] * 5 + [9] * 7])
    assert list(group([Row(prefix, {"input_ids": other, "attention_mask": other})])) == []
    longer = Row(prefix, {**prompt(20, 21, 22), "pixel_values": torch.zeros(1, 3)})
    assert list(group([longer])) == []  # of another picture


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "mllama"])
def test_memory_that_runs_out_halves_what_is_asked_at_once(
    family: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = any_model(family)
    rows = [requests(*QUESTIONS), requests(QUESTIONS[0]), requests(*QUESTIONS)]
    expected = tokens(answers(describer(model, processor, batch_size=1), *rows))
    asked = describer(model, processor, batch_size=7)
    sizes: list[int] = []

    def generate(**inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        return type(model).generate(model, **inputs)

    monkeypatch.setattr(model, "generate", generate)
    monkeypatch.setattr(transformers_models.logger, "propagate", True, raising=False)
    assert tokens(answers(asked, *rows)) == expected
    assert asked.settings["questions_at_once"] == 7  # what was asked for: settings of a run do not change in it
    sizes.clear()
    assert tokens(answers(asked, *rows)) == expected
    assert max(sizes) <= 2  # it stays for later calls


def test_question_that_is_too_large_alone_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = any_model("llava")

    def generate(**inputs: Any) -> Any:
        if inputs["input_ids"].shape[1] > 150:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return type(model).generate(model, **inputs)

    expected = answers(describer(model, processor), requests(*QUESTIONS))
    monkeypatch.setattr(model, "generate", generate)
    found = answers(describer(model, processor), requests(*QUESTIONS, "x" * 150))
    assert found.pop((0, 4)).error == "RuntimeError: DefaultCPUAllocator: can't allocate memory"
    assert tokens(found) == tokens(expected)


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava() -> Iterator[tuple[Any, Any]]:
    yield any_model("llava")


def test_each_request_is_decoded_as_it_says_whatever_is_beside_it(llava: tuple[Any, Any]) -> None:
    asked = [
        BranchRequest("Why?", max_new_tokens=3),
        BranchRequest("Why?", max_new_tokens=9),
        BranchRequest("Why?", max_new_tokens=9, repetition_penalty=3.0),
        BranchRequest("Why?", max_new_tokens=9, temperature=1.0, seed=1),
        BranchRequest("Why?", max_new_tokens=9, temperature=1.0, seed=2),
        BranchRequest("Why?", max_new_tokens=9, temperature=5.0, top_p=1e-6, seed=3),
    ]
    together = answers(describer(*llava), asked)
    for number, request in enumerate(asked):
        assert answers(describer(*llava), [request])[0, 0].token_ids == together[0, number].token_ids
    found = [together[0, number].token_ids for number in range(len(asked))]
    assert found[0] == found[1][:3] and [len(it) for it in found] == [3, 9, 9, 9, 9, 9]
    assert found[5] == found[1] and len({*found}) == 5  # of the likeliest tokens alone, the likeliest one
    assert {together[0, number].finish_reason for number in range(len(asked))} == {"length"}


def test_repetition_penalty_and_log_probabilities_are_those_of_the_library(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    penalty = {"repetition_penalty": 1.7}
    found = answers(describer(model, processor), requests("Why?", **penalty))[0, 0]
    assert answers(describer(model, processor, generation=penalty), requests("Why?"))[0, 0] == found
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}]
    image = picture(56, 56, seed=3)
    inputs = processor(
        images=[image],
        text=[processor.apply_chat_template(chat, add_generation_prompt=True)],
        return_tensors="pt",
    )
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    made = model.generate(**inputs, **options, **penalty)
    record = ask(describer(model, processor, "crop"), image, None, "Why?", log_probs=True, **penalty)[0]
    new = made.sequences[0, inputs["input_ids"].shape[1] :]
    expected = torch.stack(made.logits)[:, 0].log_softmax(dim=-1).gather(1, new[:, None])[:, 0].tolist()
    assert record["log_probs"]["Why?"] == pytest.approx(expected, abs=1e-4)
    assert record["answers"]["Why?"] == processor.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_answer_ends_at_an_end_token_or_before_a_stop_string(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    whole = answers(describer(model, processor, max_new_tokens=30), requests("Why?", "Color?"))
    printable = re.search(r"[!-~]", whole[0, 0].text[1:])
    assert printable is not None
    stop = printable.group()
    stopped = answers(
        describer(model, processor, max_new_tokens=30), requests("Why?", stop_strings=(stop,)) + requests("Color?")
    )
    assert stopped[0, 0].finish_reason == "stop_string" and stop not in stopped[0, 0].text
    assert stopped[0, 0].token_ids == whole[0, 0].token_ids[: len(stopped[0, 0].token_ids)]
    assert stopped[0, 1] == whole[0, 1]
    end = whole[0, 0].token_ids[4]
    asked = describer(model, processor, max_new_tokens=30, generation={"eos_token_id": end})
    found = answers(asked, requests("Why?", "Color?"))
    first = whole[0, 0].token_ids.index(end)
    assert found[0, 0].token_ids == whole[0, 0].token_ids[: first + 1] and found[0, 0].finish_reason == "end"


def test_beams_are_the_librarys_own_and_requests_have_no_say(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    asked = describer(model, processor, generation={"num_beams": 3})
    found = answers(asked, requests(*QUESTIONS))
    assert {answer.log_probs for answer in found.values()} == {None}
    alone = describer(model, processor, generation={"num_beams": 3}, batch_size=1)
    assert {place: it.text for place, it in found.items()} == {
        place: it.text for place, it in answers(alone, requests(*QUESTIONS)).items()
    }
    refused = answers(asked, requests("Why?", temperature=0.5, max_new_tokens=3))[0, 0]
    assert refused.error == "max_new_tokens, temperature, top_p, seed: no effect with it. Leave that out."
