"""Models quantised by the libraries that people use, on the CPU: they load, answer, and skip what is to be skipped."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import random_pixels, random_prompts, tiny_model
from torch import nn

from finecaption_hf.modeling_finecaption import FineCaptionForConditionalGeneration, FineCaptionVisionModel

# bitsandbytes computes on the CPU with inputs in blocks of 64 and outputs in blocks of 32.
PARTS: dict[str, Any] = {
    "vision_config": {"hidden_size": 64, "intermediate_size": 128},
    "convnext_config": {"model_args": {"depths": [1, 1, 1, 1], "dims": [64, 64, 64, 64]}, "hidden_size": 64},
    "sam_config": {"hidden_size": 64},
    "text_config": {"hidden_size": 64, "intermediate_size": 128},
}
# Its 8 bit product takes no features of four dimensions on the CPU, which these towers have.
TOWERS = ["convnext_tower", "sam_tower"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(**PARTS).save_pretrained(folder)
    return folder


def answers(model: Any) -> torch.Tensor:
    """Logits of a prompt about each of two regions; that it generates is checked, too."""
    inputs = {"input_ids": random_prompts(2), **random_pixels(1, [0, 0])}
    assert model.generate(**inputs, max_new_tokens=3, min_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3
    with torch.no_grad():
        return model(**inputs).logits.float()


def packed_layers(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if type(module).__name__ in ("Linear4bit", "Linear8bitLt")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_model_answers_like_its_dequantised_weights(folder: Path, bits: int, dtype: str) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes, of the extra train")
    from peft.utils.integrations import dequantize_bnb_weight
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True) if bits == 4 else BitsAndBytesConfig(load_in_8bit=True)
    if bits == 8:
        config.llm_int8_skip_modules = [*TOWERS, "lm_head"]
    model = FineCaptionForConditionalGeneration.from_pretrained(
        folder, quantization_config=config, dtype=dtype, device_map="cpu"
    )
    packed = packed_layers(model)
    assert {"model.adapter.linear_1", "model.language_model.layers.0.mlp.up_proj"} < packed
    plain = FineCaptionForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        for name in packed:
            layer: Any = model.get_submodule(name)
            weight = dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None))
            plain.get_submodule(name).weight.copy_(weight)
    found, expected = answers(model), answers(plain)
    # What is left is the rounding of features, to bfloat16 or to 8 bit; features as integers give no likeness at all.
    assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).min() > 0.98


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("kind", [FineCaptionForConditionalGeneration, FineCaptionVisionModel])
def test_skipped_modules_are_named_with_or_without_prefix(folder: Path, prefix: str, kind: Any) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes, of the extra train")
    from transformers import BitsAndBytesConfig

    names = [prefix + name for name in ("vision_tower", *TOWERS)]
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=[*names, "lm_head"])
    model = kind.from_pretrained(folder, quantization_config=config, device_map="cpu")
    packed = {name.removeprefix("model.").partition(".")[0] for name in packed_layers(model)}
    assert packed == {"adapter"} | ({"language_model"} if kind is FineCaptionForConditionalGeneration else set())
    assert config.llm_int8_skip_modules == [*names, "lm_head"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamically_quantised_model_answers(folder: Path) -> None:
    if not {"fbgemm", "onednn", "x86"} & set(torch.backends.quantized.supported_engines):
        pytest.skip("this torch has no quantised products")
    plain = FineCaptionForConditionalGeneration.from_pretrained(folder)
    model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(plain), {nn.Linear}, torch.qint8)
    assert not isinstance(model.model.adapter.linear_1, nn.Linear)
    similarity = torch.nn.functional.cosine_similarity(answers(model), answers(plain), dim=-1)
    assert similarity.min() > 0.98
