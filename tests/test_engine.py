"""The engine's answers are those of one `generate` per question, whatever is computed together and however cut."""

import copy
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import EXAMPLE_PICTURE
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TopPLogitsWarper,
    Trainer,
    TrainingArguments,
)
from transformers.dynamic_module_utils import get_imports
from waiting import at_once

from finecaption_hf import (
    EMBEDDED_CHECKPOINT,
    FineCaptionConfig,
    FineCaptionForConditionalGeneration,
    FineCaptionProcessor,
    engine_finecaption,
)
from finecaption_hf.branches_finecaption import (
    BRANCH_ATTENTION,
    BranchCache,
    branch_attention_forward,
    branch_support,
)
from finecaption_hf.engine_finecaption import BranchEngine
from finecaption_hf.image_processing_finecaption import FineCaptionImageProcessor, join_vision
from finecaption_hf.prompts_finecaption import BranchAnswer, BranchRequest, BranchUpdate

pytestmark = pytest.mark.hub

# Where the two best logits are closer than this, rounding decides, and either token is right.
MARGIN = 1e-4
PICTURES = [Image.open(EXAMPLE_PICTURE).convert("RGB"), Image.effect_noise((90, 130), 90).convert("RGB")]
MASKS: list[Any] = [
    {"box_xyxy": [5, 35, 85, 88]},
    {"polygon": [10, 12, 85, 5, 49, 80]},
    None,
    {"box_xyxy": [0, 0, 3, 2]},
    {"box_xyxy": [40, 20, 80, 90]},
    {"box_xyxy": [1, 1, 89, 20]},
    {"box_xyxy": [60, 60, 90, 90]},
    {"box_xyxy": [0, 45, 90, 50]},
]


def random_model(processor: Any, embedded: Any, seed: int = 0, **changes: Any) -> Any:
    """A random model that fits the embedded checkpoint's processor; `changes` are of its language model."""
    values = copy.deepcopy(embedded[0].config.to_dict())
    values["text_config"] = {
        **values["text_config"],
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        **changes,
    }
    values["tie_word_embeddings"] = False
    torch.manual_seed(seed)
    model = FineCaptionForConditionalGeneration(FineCaptionConfig(**values)).eval()
    torch.nn.init.normal_(model.model.vision_tower.embeddings.alpha_embedding.weight, std=0.1)
    torch.nn.init.normal_(model.model.adapter.linear_2.weight, std=0.3)
    # Many tokens end an answer, so that answers are of all lengths.
    model.generation_config.eos_token_id = list(range(3, 678, 19))
    model.generation_config.pad_token_id = 0
    return model


@pytest.fixture(scope="module")
def small(embedded: Any) -> tuple[Any, Any]:
    """A random model of 64 image tokens, whose heads share keys and values."""
    return random_model(embedded[1], embedded), embedded[1]


@pytest.fixture(scope="module")
def large(embedded: Any) -> tuple[Any, Any]:
    """A random model of 1,024 image tokens."""
    values = copy.deepcopy(embedded[0].config.to_dict())
    values |= {"high_res_image_size": 1024, "grid_size": 32, "use_sam": False}
    values["vision_config"] |= {"image_size": 336, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32}
    values["convnext_config"] |= {"hidden_size": 32}
    values["convnext_config"]["model_args"] |= {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
    values["text_config"] |= {
        "hidden_size": 64,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "initializer_range": 0.3,
        "max_position_embeddings": 2048,
    }
    torch.manual_seed(0)
    config = FineCaptionConfig(**values)
    model = FineCaptionForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.model.vision_tower.embeddings.alpha_embedding.weight, std=0.1)
    model.generation_config.eos_token_id = None
    processor = FineCaptionProcessor(
        FineCaptionImageProcessor(**config.image_processor_kwargs()),
        embedded[1].tokenizer,
        chat_template=embedded[1].chat_template,
        image_seq_length=config.image_seq_length,
        questions=embedded[1].questions,
    )
    assert config.image_seq_length == 1024
    return model, processor


def vision_of(processor: Any, region_images: list[int]) -> dict[str, torch.Tensor]:
    pictures = PICTURES[: max(region_images) + 1]
    return dict(
        processor.image_processor(
            pictures, masks=MASKS[: len(region_images)], image_indices=region_images, return_tensors="pt"
        )
    )


def generate(
    model: Any, processor: Any, vision: dict[str, torch.Tensor], region: int, request: BranchRequest, **options: Any
) -> tuple[list[int], list[float]]:
    """One plain `generate` for one question: its tokens, and how far apart the two best logits were at each."""
    image = int(vision["image_indices"][region])
    chat = processor.conversation(PICTURES[0], request.question)
    prompt = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    output = model.generate(
        input_ids=torch.tensor(prompt["input_ids"]),
        attention_mask=torch.tensor(prompt["attention_mask"]),
        pixel_values=vision["pixel_values"][[image]].to(model.dtype),
        high_res_pixel_values=vision["high_res_pixel_values"][[image]].to(model.dtype),
        mask_values=vision["mask_values"][[region]].to(model.dtype),
        do_sample=False,
        max_new_tokens=request.max_new_tokens or 64,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    best = torch.cat(output.logits).float().topk(2, dim=-1).values
    return output.sequences[0, len(prompt["input_ids"][0]) :].tolist(), (best[:, 0] - best[:, 1]).tolist()


def assert_same(found: BranchAnswer, expected: tuple[list[int], list[float]]) -> int:
    """Token for token, up to where rounding decides; says how many tokens were compared."""
    tokens, margins = expected
    for place, (token, margin) in enumerate(zip(tokens, margins, strict=True)):
        if margin <= MARGIN:
            return place
        assert found.token_ids[place : place + 1] == (token,), (place, margin)
    assert len(found.token_ids) == len(tokens)
    return len(tokens)


def assert_all_same(model: Any, processor: Any, region_images: list[int], requests: Any, **engine: Any) -> BranchEngine:
    vision = vision_of(processor, region_images)
    built = BranchEngine(model, processor, **engine)
    answers = built.answer(vision, requests)
    assert [len(found) for found in answers] == [len(asked) for asked in requests]
    compared = 0
    total = 0
    for region, (asked, found) in enumerate(zip(requests, answers, strict=True)):
        for request, answer in zip(asked, found, strict=True):
            assert answer.text == processor.tokenizer.decode(answer.token_ids, skip_special_tokens=True).strip()
            compared += assert_same(answer, generate(model, processor, vision, region, request))
            total += len(answer.token_ids)
    assert compared >= 0.8 * total
    return built


def names(processor: Any, count: int, offset: int = 0) -> list[str]:
    known = list(processor.questions)
    return [known[(offset + number) % len(known)] for number in range(count)]


# --- equal to plain generation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("region_images", "counts"),
    [([0], [1]), ([0], [18]), ([0, 1, 0], [3, 7, 1]), ([1, 0, 0, 1, 0, 1, 1, 0], [2, 1, 0, 3, 1, 1, 5, 2])],
)
def test_answers_of_the_embedded_checkpoint_are_those_of_generate(
    embedded: Any, region_images: list[int], counts: list[int]
) -> None:
    model, processor = embedded
    requests = [
        [BranchRequest(name) for name in names(processor, count, offset=3 * region)]
        for region, count in enumerate(counts)
    ]
    engine = assert_all_same(model, processor, region_images, requests)
    assert engine.fallback_reason is None


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_answers_of_random_models_are_those_of_generate(small: Any, data: st.DataObject) -> None:
    """Ragged numbers of branches, lengths of questions and of answers, early ends, little or much at once."""
    model, processor = small
    region_images = data.draw(st.permutations([0, *data.draw(st.lists(st.integers(0, 1), max_size=4))]))
    words = processor.tokenizer.decode(range(30, 60))
    requests = [
        [
            BranchRequest(
                question=words[: data.draw(st.integers(1, 60))],
                max_new_tokens=data.draw(st.integers(1, 30)),
            )
            for _ in range(data.draw(st.integers(0, 6)))
        ]
        for _ in region_images
    ]
    budget = data.draw(st.sampled_from([None, 1, 150, 600]))
    if all(image in region_images for image in range(max(region_images) + 1)):
        assert_all_same(model, processor, list(region_images), requests, max_batch_tokens=budget)


def test_answers_over_1024_image_tokens_are_those_of_generate(large: Any) -> None:
    model, processor = large
    requests = [
        [BranchRequest(name, max_new_tokens=length) for name, length in zip(names(processor, count), (14, 3, 9))]
        for count in (3, 2)
    ]
    assert_all_same(model, processor, [0, 0], requests)


LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
    "mistral": {"model_type": "mistral", "sliding_window": 4096},
    "gemma": {"model_type": "gemma"},
    "phi3": {"model_type": "phi3", "original_max_position_embeddings": 1024},
    "olmo2": {"model_type": "olmo2"},
    "granite": {"model_type": "granite"},
    "llama, all heads share": {"num_key_value_heads": 1},
    "llama, no heads share": {"num_key_value_heads": 4},
}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_language_models_decode_branches_as_they_generate(embedded: Any, name: str, attention: str) -> None:
    model = random_model(embedded[1], embedded, **LANGUAGE_MODELS[name])
    model.set_attn_implementation({"text_config": attention})
    requests = [[BranchRequest(text, max_new_tokens=9) for text in ("color", "What is it made of?")]] * 2
    engine = assert_all_same(model, embedded[1], [0, 1], requests)
    assert engine.fallback_reason is None
    assert model.model.language_model.config._attn_implementation == attention


# --- nothing twice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [None, 1, 200])
def test_images_regions_and_prefixes_are_computed_once(small: Any, budget: int | None) -> None:
    model, processor = small
    calls: Counter[str] = Counter()
    tokens = []

    def count(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            calls[name] += 1
            if name == "language model":
                tokens.append(kwargs["inputs_embeds"].shape[:2].numel())

        return hook

    towers = {"convnext": model.model.convnext_tower, "sam": model.model.sam_tower}
    parts = {**towers, "language model": model.model.language_model}
    handles = [part.register_forward_pre_hook(count(name), with_kwargs=True) for name, part in parts.items()]
    try:
        engine = BranchEngine(model, processor, max_batch_tokens=budget)
        tokens.clear()
        requests = [[BranchRequest(name, max_new_tokens=4) for name in names(processor, 7)]] * 4
        engine.answer(vision_of(processor, [0, 1, 1, 0]), requests)
    finally:
        for handle in handles:
            handle.remove()
    assert calls["convnext"] == calls["sam"] == 2
    assert engine.counts["images"] == 2 and engine.counts["regions"] == engine.counts["prefixes"] == 4
    assert engine.counts["branches"] == 28
    # The language model has read each prefix once; the rest are questions and answers, and their padding.
    own = sum(len(engine._branch(0, 0, request, False).question_ids) + 4 for row in requests for request in row)
    assert 4 * len(engine.prefix_ids) + own / 2 <= sum(tokens) <= 4 * len(engine.prefix_ids) + 2 * own


def test_regions_without_requests_are_not_encoded(small: Any) -> None:
    model, processor = small
    engine = BranchEngine(model, processor)
    answers = engine.answer(vision_of(processor, [0, 1, 0]), [[], ["color"], []])
    assert [len(found) for found in answers] == [0, 1, 0]
    assert engine.counts["regions"] == engine.counts["images"] == 1
    assert engine.answer(vision_of(processor, [0]), [[]]) == [[]]


@pytest.mark.parametrize("num_new", [1, 5, 24, 65])
def test_cache_of_18_branches_is_the_prefix_once_and_their_own_tokens(
    large: Any, num_new: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 1.1 times that at every step: measured on what the cache holds, against tokens that are really there."""
    model, processor = large
    engine = BranchEngine(model, processor)
    own = [0]
    ratios = []
    update = BranchCache.update

    def measured(
        cache: BranchCache, keys: torch.Tensor, values: torch.Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> Any:
        result = update(cache, keys, values, layer, *args, **kwargs)
        if layer == 1:  # the last one
            per_token = 2 * sum(part.shape[1] * part.shape[3] for pair in cache.prompts[:1] for part in pair) * 4
            if cache.step >= 0:
                own.append(keys.shape[2])
            held = len(engine.prefix_ids) + sum(map(len, questions)) + sum(own)
            ratios.append(cache.num_bytes / (held * per_token))
        return result

    monkeypatch.setattr(BranchCache, "update", measured)
    asked = names(processor, 18)
    questions = [engine._branch(0, 0, name, False).question_ids for name in asked]
    engine.answer(vision_of(processor, [0]), [[BranchRequest(name, max_new_tokens=num_new) for name in asked]])
    assert len(ratios) == num_new
    assert max(ratios) <= 1.1


def test_finished_branches_leave_the_batch(small: Any) -> None:
    """One long answer among short ones: the steps after these have ended are for that one alone."""
    model, processor = small
    model = copy.deepcopy(model)
    model.generation_config.eos_token_id = None
    widths = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    requests = [[BranchRequest(name, max_new_tokens=3) for name in names(processor, 8)] for _ in range(4)]
    requests[2][5] = BranchRequest("color", max_new_tokens=12)
    assert_all_same(model, processor, [0, 1, 0, 1], requests)
    handle.remove()
    assert (4, 8) in widths and (1, 1) in widths


def test_what_memory_held_before_does_not_matter(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of different lengths leave places that nothing was written to."""
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(float("nan")))
    requests = [[BranchRequest(name, max_new_tokens=6) for name in names(small[1], count)] for count in (1, 6, 3)]
    assert_all_same(*small, [0, 1, 0], requests)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_half_of_the_memory_that_the_system_can_give_is_the_budget(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page cache holds counts, which is most of a machine's memory after it has read weights."""
    model, processor = small
    memory = SimpleNamespace(free=10**6, available=10**9)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    per_token = branch_support(model).bytes_per_token
    assert BranchEngine(model, processor)._tokens_of_free_memory() == 10**9 // 2 // per_token
    # A checkpoint's code loads and runs without it.
    assert "psutil" not in get_imports(engine_finecaption.__file__)
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert BranchEngine(model, processor)._tokens_of_free_memory() == 2**32 // 2 // per_token


@pytest.mark.parametrize("budget", [1, 100, 250, 700, 3000])
def test_tokens_at_once_leave_answers_unchanged(embedded: Any, budget: int) -> None:
    model, processor = embedded
    vision = vision_of(processor, [0, 1, 0])
    requests = [names(processor, count) for count in (9, 2, 5)]
    expected = BranchEngine(model, processor).answer(vision, requests)
    assert BranchEngine(model, processor, max_batch_tokens=budget).answer(vision, requests) == expected


class Memory:
    """Stands for a device whose memory ends: the language model fails where it gets more tokens than that."""

    def __init__(self, model: Any, most: int, error: Callable[[], Exception]) -> None:
        def check(module: Any, args: Any, kwargs: Any) -> None:
            rows, tokens = kwargs["inputs_embeds"].shape[:2]
            if tokens < 60 and rows * tokens > most:  # no prefix
                self.failures += 1
                raise error()

        self.failures = 0
        self.handle = model.model.language_model.register_forward_pre_hook(check, with_kwargs=True)

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *args: Any) -> None:
        self.handle.remove()


def cpu_error() -> Exception:
    return RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, cpu_error])
@pytest.mark.parametrize("plain", [False, True])
def test_running_out_of_memory_halves_the_work_and_goes_on(
    small: Any, error: Callable[[], Exception], plain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = small
    vision = vision_of(processor, [0, 1, 0])
    requests = [[BranchRequest(name, max_new_tokens=12) for name in names(processor, 5)]] * 3
    expected = BranchEngine(model, processor).answer(vision, requests, log_probs=True)
    engine = BranchEngine(model, processor)
    if plain:
        engine._obstacle = "For this test."
    with Memory(model, 9, error) as memory:
        updates = list(engine.stream(vision, requests, log_probs=True))
    assert memory.failures >= 1
    reported: dict[tuple[int, int], int] = {}
    for region, branch, answer in updates:
        # What was computed again is not reported again.
        assert len(answer.token_ids) > reported.get((region, branch), 0)
        reported[region, branch] = len(answer.token_ids)
        if answer.finish_reason:
            assert answer.token_ids == expected[region][branch].token_ids
            assert answer.log_probs == pytest.approx(expected[region][branch].log_probs, abs=1e-4)
    assert sum(answer.finish_reason is not None for _, _, answer in updates) == 15


def test_memory_too_small_for_one_branch_raises(small: Any) -> None:
    model, processor = small
    with Memory(model, 0, torch.OutOfMemoryError), pytest.raises(torch.OutOfMemoryError):
        BranchEngine(model, processor).answer(vision_of(processor, [0]), [["color", "shape"]])


def test_other_errors_are_not_taken_for_a_lack_of_memory(small: Any) -> None:
    model, processor = small
    with Memory(model, 0, lambda: RuntimeError("a defect")), pytest.raises(RuntimeError, match="a defect"):
        BranchEngine(model, processor).answer(vision_of(processor, [0]), [["color", "shape"]])
    assert model.model.language_model.config._attn_implementation == "sdpa"


# --- how a branch is answered -----------------------------------------------------------------------------------------


def drawn(seed: int, **options: Any) -> BranchRequest:
    return BranchRequest("color", max_new_tokens=10, temperature=1.0, seed=seed, **options)


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_draws_follow_the_seed_whatever_else_is_answered(small: Any, top_p: float) -> None:
    model, processor = small
    vision = vision_of(processor, [0, 1, 0])
    engine = BranchEngine(model, processor)
    alone = [engine.answer(vision, [[], [drawn(seed, top_p=top_p)], []])[1][0] for seed in range(6)]
    among = [BranchRequest("shape", temperature=2.0, top_p=1.9 - top_p, seed=3), "Which shape?"]
    row = [drawn(seed, top_p=top_p) for seed in reversed(range(6))]
    together = engine.answer(vision, [among * 3, [among[0], *row, among[1]], among])[1][1:7]
    assert together[::-1] == alone
    assert len({answer.token_ids for answer in alone}) >= 5
    engine._obstacle = "For this test."
    assert engine.answer(vision, [[], row, []])[1][::-1] == alone


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.6)])
def test_draws_have_the_distribution_of_the_model(small: Any, temperature: float, top_p: float) -> None:
    model, processor = small
    vision = vision_of(processor, [0])
    requests = [
        BranchRequest("color", max_new_tokens=1, temperature=temperature, top_p=top_p, seed=seed)
        for seed in range(3000)
    ]
    answers = BranchEngine(model, processor).answer(vision, [requests])[0]
    chat = processor.conversation(PICTURES[0], "color")
    prompt = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(prompt["input_ids"]), **vision).logits[:, -1] / temperature
    if top_p < 1:
        logits = TopPLogitsWarper(top_p)(torch.zeros(1, 0), logits)
    expected = logits.softmax(-1)[0]
    counted = torch.bincount(torch.tensor([answer.token_ids[0] for answer in answers]), minlength=len(expected))
    assert not counted[expected == 0].any()
    # Of 3,000 draws a token of probability p is counted 3000 p times, give or take some standard deviations.
    deviation = (3000 * expected * (1 - expected)).sqrt()
    assert bool(((counted - 3000 * expected).abs() <= 4.5 * deviation + 1).all())


def test_repetition_penalty_is_that_of_generate(small: Any) -> None:
    model, processor = small
    vision = vision_of(processor, [0, 1])
    requests = [
        [BranchRequest("color", max_new_tokens=16, repetition_penalty=penalty) for penalty in (1.7, 1.0, 0.7)]
    ] * 2
    answers = BranchEngine(model, processor).answer(vision, requests)
    differing = 0
    for region in range(2):
        for request, answer in zip(requests[region], answers[region]):
            tokens, _ = generate(
                model, processor, vision, region, request, repetition_penalty=request.repetition_penalty
            )
            assert list(answer.token_ids) == tokens
        differing += len({answer.token_ids for answer in answers[region]})
    assert differing > 2


def test_stop_strings_end_the_answer_before_them(embedded: Any) -> None:
    model, processor = embedded
    vision = vision_of(processor, [0, 0])
    (whole,), _ = BranchEngine(model, processor).answer(vision, [["dense"], []])
    words = whole.text.split()
    stop = f"{words[2]} {words[3]}"
    request = BranchRequest("dense", stop_strings=("not there", stop, words[-1]))
    answers = BranchEngine(model, processor).answer(vision, [[request, "dense"], []])[0]
    assert answers[0].finish_reason == "stop_string" and answers[1] == whole
    assert answers[0].text == whole.text[: whole.text.index(stop)].strip()
    tokens, _ = generate(model, processor, vision, 0, request, stop_strings=[stop], tokenizer=processor.tokenizer)
    assert list(answers[0].token_ids) == tokens


def test_log_probs_are_those_of_the_whole_sequence(small: Any) -> None:
    model, processor = small
    vision = vision_of(processor, [0, 1])
    requests = [["color", drawn(5, repetition_penalty=1.3)]] * 2
    engine = BranchEngine(model, processor)
    answers = engine.answer(vision, requests, log_probs=True)
    for region in range(2):
        for name, answer in zip(("color", "color"), answers[region]):
            ids = [*engine.prefix_ids, *engine._branch(0, 0, name, False).question_ids, *answer.token_ids]
            one = {key: value[[region]] for key, value in vision.items() if key != "image_indices"}
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), **one).logits[0]
            expected = logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids)[1:, None])[:, 0]
            assert answer.log_probs == pytest.approx(expected[-len(answer.token_ids) :].tolist(), abs=1e-4)
    assert engine.answer(vision, requests)[0][0].log_probs is None


def test_limits_come_from_the_generation_configuration(small: Any) -> None:
    model = copy.deepcopy(small[0])
    vision = vision_of(small[1], [0])
    model.generation_config = GenerationConfig(max_new_tokens=5, repetition_penalty=1.5, pad_token_id=0)
    (found,) = BranchEngine(model, small[1]).answer(vision, [["color"]])[0]
    assert list(found.token_ids) == generate(model, small[1], vision, 0, BranchRequest("color", max_new_tokens=5))[0]
    assert len(found.token_ids) == 5 and found.finish_reason == "length"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"question": " "}, "is no question"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
        ({"stop_strings": ("",)}, "stop_strings are"),
    ],
)
def test_requests_that_make_no_sense_raise(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BranchRequest(**{"question": "color", **values})


def test_one_stop_string_may_stand_alone() -> None:
    assert BranchRequest("color", stop_strings="and").stop_strings == ("and",)  # type: ignore[arg-type]


# --- as they come -----------------------------------------------------------------------------------------------------


def test_partial_answers_grow_to_the_whole_ones(embedded: Any) -> None:
    model, processor = embedded
    vision = vision_of(processor, [0, 1])
    requests = [names(processor, 6), names(processor, 2)]
    engine = BranchEngine(model, processor)
    expected = engine.answer(vision, requests)
    last: dict[tuple[int, int], BranchAnswer] = {}
    regions_in_order = []
    for update in engine.stream(vision, requests):
        assert isinstance(update, BranchUpdate)
        before = last.get((update.region, update.branch))
        if before is not None:
            assert before.finish_reason is None
            assert update.answer.token_ids[:-1] == before.token_ids
        last[update.region, update.branch] = update.answer
        regions_in_order.append(update.region)
    assert {place: answer for place, answer in last.items()} == {
        (region, branch): answer for region, row in enumerate(expected) for branch, answer in enumerate(row)
    }
    # Branches advance together: the second region is not left until the first one is done.
    assert regions_in_order.index(1) < len(regions_in_order) - regions_in_order[::-1].index(0) - 1
    whole = list(engine.stream(vision, requests, partial=False))
    assert len(whole) == 8 and all(update.answer.finish_reason for update in whole)


def test_characters_of_several_tokens_are_not_shown_in_part(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = small
    engine = BranchEngine(model, processor)
    monkeypatch.setattr(
        type(processor.tokenizer),
        "decode",
        lambda self, ids, **_: "x" * (len(ids) // 2) + ("\ufffd" if len(ids) % 2 else ""),
    )
    for _, _, answer in engine.stream(vision_of(processor, [0]), [[BranchRequest("color", max_new_tokens=7)]]):
        assert ("\ufffd" in answer.text) == (answer.finish_reason is not None and len(answer.token_ids) % 2 == 1)


def test_a_stream_that_is_left_leaves_the_model_as_it_was(small: Any) -> None:
    model, processor = small
    engine = BranchEngine(model, processor)
    vision = vision_of(processor, [0])
    stream = engine.stream(vision, [["color", "shape"]])
    next(stream)
    assert not torch.is_inference_mode_enabled()
    assert model.model.language_model.config._attn_implementation == "sdpa"
    del stream
    tokens, _ = generate(model, processor, vision, 0, BranchRequest("color"))
    assert list(engine.answer(vision, [["color"]])[0][0].token_ids) == tokens


def test_two_threads_answer_at_once(small: Any) -> None:
    model, processor = small
    visions = [vision_of(processor, [0, 1]), vision_of(processor, [1, 0])]
    requests = [[BranchRequest(name, max_new_tokens=20) for name in names(processor, 6)]] * 2
    expected = [BranchEngine(model, processor).answer(vision, requests) for vision in visions]

    def work(number: int) -> list[Any]:
        return [BranchEngine(model, processor).answer(visions[number], requests) for _ in range(3)]

    assert at_once(work, 2) == [[answers] * 3 for answers in expected]


# --- where a model cannot ---------------------------------------------------------------------------------------------

TEXT_FIRST = (
    "{%- for message in messages %}{%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}"
    "{%- endfor %}{%- for part in message['content'] if part['type'] == 'image' %}<image>{%- endfor %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{%- endif %}"
)


def with_template(processor: Any, template: str) -> Any:
    return FineCaptionProcessor(
        processor.image_processor,
        processor.tokenizer,
        chat_template=template,
        image_seq_length=processor.image_seq_length,
        questions=processor.questions,
    )


@pytest.fixture
def warnings_of_the_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    noted: list[str] = []
    monkeypatch.setattr("finecaption_hf.engine_finecaption.logger.warning_once", lambda text, *_: noted.append(text))
    yield noted


OBSTACLES: dict[str, tuple[dict[str, Any], str]] = {
    "soft caps": ({"model_type": "gemma2"}, "uses softcap"),
    "window": ({"model_type": "mistral", "sliding_window": 72}, "more than the 72 within which"),
    "positions that depend on the length": (
        {"max_position_embeddings": 70, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        "more than the 70 within which",
    ),
    "no position ids": ({"model_type": "bloom", "n_head": 4, "n_layer": 2}, "takes no position_ids"),
    "layers of other kinds": (
        {"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]},
        "layers of other kinds than attention (conv, full_attention)",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_models_that_cannot_are_used_in_the_plain_way(
    embedded: Any, name: str, warnings_of_the_library: list[str]
) -> None:
    changes, reason = OBSTACLES[name]
    model = random_model(embedded[1], embedded, **changes)
    # Of even length, since not all of these models know padding.
    requests = [[BranchRequest(text, max_new_tokens=9) for text in ("Color", "Shape")]] * 2
    engine = assert_all_same(model, embedded[1], [0, 1], requests)
    assert reason in str(engine.fallback_reason)
    assert any(reason in text and "plain way" in text for text in warnings_of_the_library)
    assert engine.counts["images"] == engine.counts["regions"] == 2


def test_streams_that_take_turns_keep_their_ways(embedded: Any) -> None:
    """One is too long for branches; another that begins meanwhile is not."""
    model = random_model(embedded[1], embedded, **OBSTACLES["window"][0])
    long = [[BranchRequest(text, max_new_tokens=9) for text in ("Color", "Shape")]] * 2
    short = [[BranchRequest("a", max_new_tokens=1)]]
    vision, other = vision_of(embedded[1], [0, 1]), vision_of(embedded[1], [0])
    expected = BranchEngine(model, embedded[1]).answer(vision, long)

    engine = BranchEngine(model, embedded[1], max_batch_tokens=1)
    stream = engine.stream(vision, long, partial=False)
    found = [next(stream)]
    engine.answer(other, short)
    assert engine.fallback_reason is None
    before = engine.counts["branches"]
    found += stream
    assert {(region, index): answer.token_ids for region, index, answer in found} == {
        (region, index): answer.token_ids for region, row in enumerate(expected) for index, answer in enumerate(row)
    }
    assert engine.counts["branches"] == before + 3


def test_question_before_the_image_is_answered_in_the_plain_way(small: Any, warnings_of_the_library: list[str]) -> None:
    model, processor = small[0], with_template(small[1], TEXT_FIRST)
    requests = [[BranchRequest(text, max_new_tokens=9) for text in ("color", "What is it made of?")]] * 2
    engine = assert_all_same(model, processor, [0, 1], requests)
    assert "before the image depends on the question" in str(engine.fallback_reason)
    assert warnings_of_the_library


def test_settings_that_only_generate_knows_are_kept(small: Any) -> None:
    model = copy.deepcopy(small[0])
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.eos_token_id = None
    vision = vision_of(small[1], [0])
    request = BranchRequest("color", max_new_tokens=30)
    engine = BranchEngine(model, small[1])
    (found,) = engine.answer(vision, [[request]])[0]
    assert "no_repeat_ngram_size" in str(engine.fallback_reason)
    assert len(set(found.token_ids)) == 30
    assert list(found.token_ids) == generate(model, small[1], vision, 0, request)[0]


def test_settings_that_change_nothing_keep_the_shared_prefix(small: Any) -> None:
    model = copy.deepcopy(small[0])
    for name, neutral in engine_finecaption._ONLY_IN_GENERATE.items():
        setattr(model.generation_config, name, neutral)
    assert BranchEngine(model, small[1]).fallback_reason is None
    implied = GenerationConfig._get_default_generation_params()
    assert not {
        name: (neutral, implied[name])
        for name, neutral in engine_finecaption._ONLY_IN_GENERATE.items()
        if implied.get(name) not in (None, neutral)
    }
    model.generation_config.encoder_repetition_penalty = 1.2
    assert "encoder_repetition_penalty" in str(BranchEngine(model, small[1]).fallback_reason)


def test_a_prediction_loop_leaves_engine_and_checkpoint_as_they_were(small: Any, tmp_path: Path) -> None:
    model, processor = copy.deepcopy(small[0]), small[1]
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(tmp_path / "before")
    chat = processor.conversation(PICTURES[0], "color", mask=MASKS[0])
    inputs = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(
            str(tmp_path / "run"), predict_with_generate=True, remove_unused_columns=False, report_to=[], use_cpu=True
        ),
        data_collator=lambda _: dict(inputs),
    )
    predicted = trainer.predict([0]).predictions
    assert predicted.shape[1] > inputs["input_ids"].shape[1]
    assert model.generation_config.encoder_repetition_penalty == 1.0  # what the loop writes
    assert BranchEngine(model, processor).fallback_reason is None
    model.save_pretrained(tmp_path / "after")
    before, after = (
        json.loads((tmp_path / name / "generation_config.json").read_text()) for name in ("before", "after")
    )
    implied = GenerationConfig._get_default_generation_params()
    lasting = {name: value for name, value in before.items() if value != implied.get(name, object())}
    assert {**after, "_from_model_config": True} == {**lasting, "_from_model_config": True}
    assert model.generation_config.top_k == 50  # in memory nothing changes


def test_an_evaluation_gathers_logits_and_neither_features_nor_caches(small: Any, tmp_path: Path) -> None:
    model, processor = small
    inputs = processor.apply_chat_template(
        processor.conversation(PICTURES[0], "color"), tokenize=True, return_dict=True, return_tensors="pt"
    )
    arguments = TrainingArguments(str(tmp_path), remove_unused_columns=False, report_to=[], use_cpu=True)
    trainer = Trainer(model, arguments, data_collator=lambda _: {**inputs, "labels": inputs["input_ids"]})
    found = trainer.predict([0]).predictions
    assert isinstance(found, np.ndarray) and found.shape[:2] == inputs["input_ids"].shape


def test_the_plain_way_gives_the_answers_of_the_shared_prefix(embedded: Any) -> None:
    model, processor = embedded
    vision = vision_of(processor, [0, 1, 0])
    requests = [
        [*names(processor, 4), BranchRequest("dense", stop_strings=("a",)), drawn(region)] for region in range(3)
    ]
    engine = BranchEngine(model, processor)
    expected = engine.answer(vision, requests, log_probs=True)
    engine._obstacle = "For this test."
    for row, others in zip(engine.answer(vision, requests, log_probs=True), expected, strict=True):
        for answer, other in zip(row, others, strict=True):
            assert answer.token_ids == other.token_ids and answer.text == other.text
            assert answer.finish_reason == other.finish_reason
            assert answer.log_probs == pytest.approx(other.log_probs, abs=1e-4)


def test_a_model_that_ignores_its_attention_is_found_out(embedded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with a language model, two short branches tell."""

    def wrong(*args: Any, branch_cache: Any = None, **kwargs: Any) -> Any:
        branch_cache.mask = torch.ones_like(branch_cache.mask)
        return branch_attention_forward(*args, branch_cache=branch_cache, **kwargs)

    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, BRANCH_ATTENTION, wrong)
    engine = BranchEngine(random_model(embedded[1], embedded, seed=3), embedded[1])
    assert "gives other results with branches" in str(engine.fallback_reason)


# --- what arrives -----------------------------------------------------------------------------------------------------


def test_bfloat16_gives_nearly_the_same_answers(embedded: Any) -> None:
    model, processor = embedded
    vision = vision_of(processor, [0, 0])
    requests = [names(processor, 18)] * 2
    expected = BranchEngine(model, processor).answer(vision, requests)
    half = BranchEngine(copy.deepcopy(model).to(torch.bfloat16), processor)
    assert half.fallback_reason is None
    same = [
        answer.text == other.text
        for row, others in zip(half.answer(vision, requests), expected)
        for answer, other in zip(row, others)
    ]
    assert np.mean(same) >= 0.9


@pytest.mark.parametrize("most", [True, False], ids=["all of it", "all but the CLIP tower"])
def test_a_model_on_disk_answers_as_one_in_memory(embedded: Any, tmp_path: Path, most: bool) -> None:
    places: Any = {"": "disk"}
    if not most:
        parts = ("convnext_tower", "sam_tower", "adapter", "language_model")
        places = {"model.vision_tower": "cpu", "lm_head": "disk"} | {f"model.{name}": "disk" for name in parts}
    model = FineCaptionForConditionalGeneration.from_pretrained(
        EMBEDDED_CHECKPOINT, device_map=places, offload_folder=tmp_path
    ).eval()
    vision = vision_of(embedded[1], [0, 1])
    requests = [names(embedded[1], 2)] * 2
    engine = BranchEngine(model, embedded[1])
    assert engine.fallback_reason is None
    assert engine.answer(vision, requests) == BranchEngine(*embedded).answer(vision, requests)


def test_requests_for_another_number_of_regions_raise(small: Any) -> None:
    model, processor = small
    with pytest.raises(ValueError, match="requests for 1 regions, but vision holds 2"):
        BranchEngine(model, processor).answer(vision_of(processor, [0, 1]), [["color"]])


def test_inputs_that_were_merely_concatenated_raise(small: Any) -> None:
    model, processor = small
    vision = vision_of(processor, [0, 1])
    with pytest.raises(ValueError, match="join_vision"):
        BranchEngine(model, processor).answer({**vision, "image_indices": torch.tensor([0, 2])}, [["color"]] * 2)


def test_questions_with_special_tokens_raise(small: Any) -> None:
    model, processor = small
    with pytest.raises(ValueError, match="a special token of the tokenizer"):
        BranchEngine(model, processor).answer(vision_of(processor, [0]), [["What is <image>?"]])


@pytest.mark.parametrize("template", [None, TEXT_FIRST], ids=["shared prefix", "plain"])
def test_questions_longer_than_the_context_are_errors_among_answers(
    small: Any, embedded: Any, template: str | None
) -> None:
    processor = small[1] if template is None else with_template(small[1], template)
    model = random_model(processor, embedded, max_position_embeddings=120)
    engine = BranchEngine(model, processor)
    assert (engine.fallback_reason is None) == (template is None)
    used = len(engine.prefix_ids) + len(engine.question_ids("color"))
    fits, too_long = (BranchRequest("color", max_new_tokens=120 - used + more) for more in (0, 1))
    words = BranchRequest("is it red " * 40, max_new_tokens=3)
    row = engine.answer(vision_of(processor, [0]), [[words, "color", fits, too_long]], log_probs=True)[0]
    # The second one's answer may have 64 tokens, behind as many of the image.
    assert [answer.finish_reason == "error" for answer in row] == [True, True, False, True]
    for answer in (*row[:2], row[3]):
        assert answer.text == "" and answer.token_ids == ()
        assert "room for" in str(answer.error) and "max_new_tokens" in str(answer.error)
    assert row[2].text and row[2].error is None
    describer = model.as_pipeline(processor)
    (record,) = describer(PICTURES[0], MASKS[0], ["color", "is it red " * 40], max_new_tokens=120 - used)
    assert list(record["answers"]) == ["Color"] and list(record["errors"]) == ["is it red " * 40]


def test_joined_images_are_answered_as_those_of_one_call(embedded: Any) -> None:
    _, processor = embedded
    prepare = processor.image_processor
    parts = [
        dict(prepare([picture], masks=masks, image_indices=[0] * len(masks), return_tensors="pt"))
        for picture, masks in ((PICTURES[0], MASKS[:3]), (PICTURES[1], MASKS[3:5]))
    ]
    joined = join_vision(parts)
    together = prepare(PICTURES, masks=MASKS[:5], image_indices=[0, 0, 0, 1, 1], return_tensors="pt")
    assert joined.keys() == together.keys()
    for name, values in together.items():
        torch.testing.assert_close(joined[name], values, atol=0, rtol=0)
    with pytest.raises(ValueError, match="cannot be joined"):
        join_vision([])
    with pytest.raises(ValueError, match="cannot be joined"):
        join_vision([parts[0], {"pixel_values": parts[1]["pixel_values"]}])
