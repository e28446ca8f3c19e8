"""FineCaption in vLLM: the engine's answers, regions that are told apart, pictures that are encoded once, adapters."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import EXAMPLE_PICTURE
from PIL import Image
from safetensors.torch import save_file
from serving_vllm import MARKS, engine

from finecaption_hf import EMBEDDED_CHECKPOINT, FineCaptionConfig, FineCaptionForConditionalGeneration
from finecaption_hf.asking import FineCaptionDescriber, ask
from finecaption_hf.masks_finecaption import RegionMask
from finecaption_hf.prompts_finecaption import BranchRequest

pytestmark = [*MARKS, pytest.mark.slow]  # starting an engine takes half a minute

BADGE, TOP = {"box_xyxy": [100, 149, 160, 209]}, {"box_xyxy": [178, 25, 249, 96]}
EVERYTHING = ["all", "region", "dense"]


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(EXAMPLE_PICTURE).convert("RGB")


@pytest.fixture(scope="module")
def served() -> Iterator[Any]:
    """The embedded checkpoint in vLLM, which keeps the features of two pictures."""
    options = {"limit_mm_per_prompt": {"image": 3}, "additional_config": {"finecaption_kept_images": 2}}
    with engine(EMBEDDED_CHECKPOINT, **options) as describer:
        yield describer


@pytest.fixture(scope="module")
def own(embedded: Any) -> FineCaptionDescriber:
    return FineCaptionDescriber(*embedded)


def counts(served: Any) -> np.ndarray:
    """Pictures that the high-resolution towers encoded, and that they did not have to."""
    return np.array(served.llm.apply_model(lambda model: (model.kept.encoded, model.kept.found))[0])


def prompt(own: FineCaptionDescriber, *regions: Any, question: str = "region") -> str:
    """A chat with so many pictures, as text."""
    chat = own.processor.conversation(None, question)
    chat[0]["content"] = [{"type": "image"}] * len(regions) + chat[0]["content"][1:]
    return str(own.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))


def said(served: Any, own: FineCaptionDescriber, *items: Any, **more: Any) -> str:
    """The answer to a prompt with these items, by vLLM's own interface."""
    from vllm import SamplingParams

    data = {} if not items else {"multi_modal_data": {"image": list(items)}}
    request = {"prompt": prompt(own, *items), **data, **more}
    (output,) = served.llm.generate(request, SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)
    return str(output.outputs[0].text).strip()


@pytest.fixture(scope="module")
def expected(own: FineCaptionDescriber, picture: Image.Image) -> dict[str, str]:
    """What the engine says of two regions and of the whole picture, which are three texts."""
    found = [record["answers"]["region"] for record in ask(own, picture, [BADGE, TOP, None], max_new_tokens=24)]
    assert len(set(found)) == 3
    return dict(zip(("badge", "top", "whole"), found))


# --- answers ---------------------------------------------------------------------------------------------------------


def test_all_answers_are_those_of_the_engine_and_a_picture_is_encoded_once(
    served: Any, own: FineCaptionDescriber, picture: Image.Image
) -> None:
    """4 regions, 18 questions; then another region of the picture, in another call."""
    regions = [BADGE, TOP, {"box_xyxy": [20, 20, 90, 200]}, None]
    before = counts(served)
    found = ask(served, picture, regions, EVERYTHING, log_probs=True)
    assert (counts(served) - before).tolist() == [1, 3]
    expected = ask(own, picture, regions, EVERYTHING, log_probs=True)
    assert sum(len(record["answers"]) for record in found) == 72
    for one, other in zip(found, expected, strict=True):
        assert one["answers"] == other["answers"] and one["box_xyxy"] == other["box_xyxy"]
        for name, log_probs in other["log_probs"].items():
            np.testing.assert_allclose(one["log_probs"][name], log_probs, atol=1e-3)
    before = counts(served)
    assert ask(served, picture, {"box_xyxy": [0, 0, 50, 50]}) == ask(own, picture, {"box_xyxy": [0, 0, 50, 50]})
    assert (counts(served) - before).tolist() == [0, 1]


def test_more_pictures_than_are_kept_are_answered_right(served: Any, own: FineCaptionDescriber) -> None:
    """Of five pictures in one call, two stay; asked again in that order, each was given up for the one before."""
    pictures = [Image.open(EXAMPLE_PICTURE).convert("RGB").rotate(10 * number) for number in range(1, 6)]
    regions = [[BADGE, None]] * 5
    before = counts(served)
    assert ask(served, pictures, regions, batch_size=5) == ask(own, pictures, regions, batch_size=5)
    first = counts(served)
    assert first[0] - before[0] >= 5 and (first - before).sum() == 10
    features = served.llm.apply_model(lambda model: tuple(model.kept.features.shape))[0]
    assert features[0] == 2
    again = [[TOP]] * 5
    assert ask(served, pictures, again, batch_size=5) == ask(own, pictures, again, batch_size=5)
    assert counts(served)[0] - first[0] >= 3


@pytest.mark.parametrize(
    "decoding",
    [{"stop_strings": ("diamond",)}, {"max_new_tokens": 2}, {"repetition_penalty": 5.0}],
    ids=["stop", "length", "penalty"],
)
def test_decoding_is_the_engines(
    served: Any, own: FineCaptionDescriber, picture: Image.Image, decoding: dict[str, Any]
) -> None:
    questions = ["region", "dense", "color"]
    found, expected = (ask(each, picture, [BADGE, TOP], questions, **decoding) for each in (served, own))
    assert found == expected
    assert expected != ask(own, picture, [BADGE, TOP], questions)


def test_sampling_is_the_same_for_the_same_seed(served: Any, picture: Image.Image) -> None:
    drawn = [ask(served, picture, BADGE, "dense", temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_question_without_room_is_an_error_of_itself(served: Any, picture: Image.Image) -> None:
    (record,) = ask(served, picture, BADGE, ["region", "what is it " * 300])
    assert list(record["answers"]) == ["region"]
    (error,) = record["errors"].values()
    assert "there is room for" in str(error)


def test_several_regions_in_one_prompt_and_none_are_as_with_generate(
    served: Any, own: FineCaptionDescriber, picture: Image.Image
) -> None:
    for regions in ([BADGE, TOP], [TOP, None, BADGE], []):
        text = prompt(own, *regions)
        pictures = {"images": [picture] * len(regions), "masks": [[region] for region in regions]} if regions else {}
        inputs = own.processor(text=[text], return_tensors="pt", **pictures)
        with torch.inference_mode():
            tokens = own.model.generate(**inputs, max_new_tokens=24, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        (expected,) = own.processor.batch_decode(tokens, skip_special_tokens=True)
        items = [{"image": picture, "mask": region} for region in regions]
        assert said(served, own, *items) == expected.strip()


# --- regions ---------------------------------------------------------------------------------------------------------


def test_regions_under_one_uuid_are_told_apart(
    served: Any, own: FineCaptionDescriber, picture: Image.Image, expected: dict[str, str]
) -> None:
    for name, region in (("badge", BADGE), ("top", TOP), ("whole", None), ("badge", BADGE)):
        item = {"image": picture, "mask": region}
        assert said(served, own, item, multi_modal_uuids={"image": ["a"]}) == expected[name]
        masks = {"mm_processor_kwargs": {"masks": [region]}}
        assert said(served, own, picture, multi_modal_uuids={"image": ["b"]}, **masks) == expected[name]


# --- adapters --------------------------------------------------------------------------------------------------------


def test_an_adapter_of_the_language_model_answers_like_the_merged_model(
    embedded: Any, tmp_path: Path, picture: Image.Image
) -> None:
    """The folder that peft writes, for a random model whose heads vLLM takes as they are."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    settings = embedded[0].config.to_dict()
    settings["text_config"] |= {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
    settings["text_config"] |= {"initializer_range": 0.3, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = FineCaptionForConditionalGeneration(FineCaptionConfig(**settings)).eval()
    folder, adapter = tmp_path / "model", tmp_path / "adapter"
    model.save_pretrained(folder)
    embedded[1].save_pretrained(folder)
    merged, tensors = copy.deepcopy(model), {}
    for name, layer in merged.named_modules():
        if "language_model" in name and name.endswith(("q_proj", "v_proj", "down_proj")):
            first, second = torch.randn(8, layer.in_features) * 0.1, torch.randn(layer.out_features, 8) * 0.1
            layer.weight.data += 16 / 8 * second @ first
            tensors |= {
                f"base_model.model.{name}.lora_A.weight": first,
                f"base_model.model.{name}.lora_B.weight": second,
            }
    adapter.mkdir()
    save_file(tensors, adapter / "adapter_model.safetensors")
    kinds = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "r": 8, "lora_alpha": 16}
    kinds |= {"target_modules": ["q_proj", "v_proj", "down_proj"], "base_model_name_or_path": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(kinds))
    with pytest.raises(ValueError, match=r"is an adapter\. Save what load"), engine(adapter):
        pass

    def tokens(each: Any) -> list[int]:
        own = FineCaptionDescriber(each, embedded[1])
        requests = [[BranchRequest("region", max_new_tokens=12)]]
        mask = RegionMask(BADGE, picture.height, picture.width)
        (update,) = [each for each in own.stream([own.prepare(picture, [mask])], requests) if each.answer.finish_reason]
        return list(update.answer.token_ids)

    expected = [tokens(model), tokens(merged)]
    assert expected[0] != expected[1]
    own = FineCaptionDescriber(*embedded)
    with engine(folder, enable_lora=True, max_lora_rank=8) as served:
        request = {
            "prompt": prompt(own, BADGE),
            "multi_modal_data": {"image": {"image": picture, "mask": BADGE}},
        }
        for lora, wanted in zip((None, LoRARequest("tuned", 1, str(adapter)), None), (*expected, expected[0])):
            parameters = SamplingParams(temperature=0, max_tokens=12)
            (output,) = served.llm.generate(request, parameters, lora_request=lora, use_tqdm=False)
            assert list(output.outputs[0].token_ids) == wanted


def test_adapters_on_enlarged_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="Merge the adapter"), engine(EMBEDDED_CHECKPOINT, enable_lora=True):
        pass
