"""Models quantised by the libraries that people use, on the CPU: they load, answer, and skip what is to be skipped."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EXAMPLE_PICTURE
from tiny import random_pixels, random_prompts, tiny_model
from torch import nn

from finecaption_hf.asking import FineCaptionDescriber, ask, load
from finecaption_hf.modeling_finecaption import FineCaptionForConditionalGeneration, FineCaptionVisionModel

# Layers that bitsandbytes packs anew on CPUs with AVX512-BF16: inputs in blocks of 64 and outputs in blocks of 32.
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


@pytest.mark.parametrize("double", [False, True])
def test_4_bit_weights_of_any_width_answer(embedded: Any, double: bool) -> None:
    """Widths of the embedded checkpoint are no multiples of what a CPU with AVX512-BF16 takes."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes, of the extra train")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
    model, _ = load(device="cpu", dtype="bfloat16", quantization_config=config)
    layer = model.model.language_model.layers[0].mlp.up_proj
    weight = layer.weight
    assert isinstance(layer, bitsandbytes.nn.Linear4bit)
    features = torch.randn(3, layer.in_features, dtype=torch.bfloat16)
    expected = features @ bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).T
    with torch.no_grad():
        assert torch.allclose(layer(features), expected, atol=2**-5, rtol=2**-6)  # one rounding to bfloat16, in sums
    describer = FineCaptionDescriber(model, embedded[1])
    assert ask(describer, EXAMPLE_PICTURE, [[178, 25, 249, 96]], "color")[0]["answers"] == {"Color": "it is pink"}


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


def torchao_config(scheme: str) -> Any:
    """int4 has kernels for GPUs alone; `Intx` holds 4 bit values in bytes, and runs anywhere."""
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao, which no extra has")
    granularity = quantization.PerGroup(32)
    configs = {
        "int8 weights": lambda: quantization.Int8WeightOnlyConfig(),
        "int8 weights and features": lambda: quantization.Int8DynamicActivationInt8WeightConfig(),
        "int4 weights": lambda: quantization.IntxWeightOnlyConfig(torch.int4, granularity),
        "int4 weights, int8 features": lambda: quantization.Int8DynamicActivationIntxWeightConfig(
            torch.int4, granularity
        ),
    }
    return configs[scheme]()


def torchao_weights(model: nn.Module) -> dict[str, Any]:
    return {
        name: value for name, value in model.named_parameters() if type(value).__module__.partition(".")[0] == "torchao"
    }


TORCHAO = ["int8 weights", "int8 weights and features", "int4 weights", "int4 weights, int8 features"]


@pytest.mark.parametrize("scheme", TORCHAO)
def test_torchao_model_answers_like_its_dequantised_weights(folder: Path, scheme: str, tmp_path: Path) -> None:
    config = torchao_config(scheme)
    from transformers import TorchAoConfig

    model = FineCaptionForConditionalGeneration.from_pretrained(
        folder, quantization_config=TorchAoConfig(config), dtype="bfloat16", device_map="cpu"
    )
    weights = torchao_weights(model)
    assert {"model.adapter.linear_1.weight", "model.language_model.layers.0.mlp.up_proj.weight"} < weights.keys()
    plain = FineCaptionForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        for name, weight in weights.items():
            plain.get_parameter(name).copy_(weight.dequantize())
    found = answers(model)
    assert torch.nn.functional.cosine_similarity(found, answers(plain), dim=-1).min() > 0.98
    model.save_pretrained(tmp_path)
    again = FineCaptionForConditionalGeneration.from_pretrained(tmp_path)
    assert torchao_weights(again).keys() == weights.keys()
    assert torch.equal(answers(again), found)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_torchao_skips_modules_named_with_or_without_prefix(folder: Path, prefix: str) -> None:
    config = torchao_config("int8 weights")
    from transformers import TorchAoConfig

    names = [prefix + name for name in ("vision_tower", *TOWERS)]
    model = FineCaptionForConditionalGeneration.from_pretrained(
        folder, quantization_config=TorchAoConfig(config, modules_to_not_convert=[*names, "lm_head"]), device_map="cpu"
    )
    packed = {name.removeprefix("model.").partition(".")[0] for name in torchao_weights(model)}
    assert packed == {"adapter", "language_model"}


def test_torchao_models_are_told_apart_by_their_weights() -> None:
    """Work on data sets is gone on with by the same model only."""
    config = torchao_config("int8 weights")
    from transformers import TorchAoConfig

    fingerprints = set()
    for scale in (1, 1, 2):
        model, processor = load(device="cpu", quantization_config=TorchAoConfig(config))
        weight = model.model.language_model.layers[0].mlp.up_proj.weight
        weight.scale.mul_(scale)
        fingerprints.add(FineCaptionDescriber(model, processor).settings["fingerprint"])
    assert len(fingerprints) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamically_quantised_model_answers(folder: Path) -> None:
    if not {"fbgemm", "onednn", "x86"} & set(torch.backends.quantized.supported_engines):
        pytest.skip("this torch has no quantised products")
    plain = FineCaptionForConditionalGeneration.from_pretrained(folder)
    model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(plain), {nn.Linear}, torch.qint8)
    assert not isinstance(model.model.adapter.linear_1, nn.Linear)
    similarity = torch.nn.functional.cosine_similarity(answers(model), answers(plain), dim=-1)
    assert similarity.min() > 0.98
