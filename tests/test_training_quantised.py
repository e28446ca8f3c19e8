"""Adapters on a language model in 4 or 8 bit, as QLoRA trains them, with bitsandbytes on the CPU."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_training_runner import assert_equal, start, weights
from training_data import write_checkpoint, write_records
from waiting import exit_code

from finecaption_hf.asking import load
from finecaption_hf.training.recipes import Recipe, read_recipe
from finecaption_hf.training.runner import train
from finecaption_hf.training.stages import STAGES, StageError

bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes, of the extra train")

RECIPE = read_recipe("finecaption-8b-24gb-lora-4bit")
KEPT = RECIPE.model_options["quantization_config"]["llm_int8_skip_modules"]
SCHEMES = {
    "nf4": RECIPE.model_options,
    "int8": {"dtype": "bfloat16", "quantization_config": {"load_in_8bit": True, "llm_int8_skip_modules": KEPT}},
}
OPTIONS = {"max_steps": 3, "save_steps": 2, "learning_rate": 1e-2, "bf16": True}


@pytest.fixture(scope="module", params=SCHEMES)
def setting(request: Any, tmp_path_factory: pytest.TempPathFactory, embedded: Any) -> Recipe:
    """The shipped recipe on a random tiny model, with a batch of four."""
    folder = tmp_path_factory.mktemp(request.param)
    model = write_checkpoint(folder / "model", embedded[1])
    data = write_records(folder / "data", 8)
    stage = replace(RECIPE.stages[0], global_batch_size=4)
    options = SCHEMES[request.param]
    return replace(RECIPE, stages=(stage,), model=str(model), data={"records": str(data)}, model_options=options)


@pytest.fixture(scope="module")
def trained(setting: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    assert exit_code(start(setting, output, OPTIONS)) == 0
    return output


def dequantised(value: torch.Tensor, setting: Recipe) -> torch.Tensor:
    """What bitsandbytes itself makes of a weight."""
    functional = bitsandbytes.functional
    if "load_in_4bit" in setting.model_options["quantization_config"]:
        packed = functional.quantize_4bit(value, quant_type="nf4", compress_statistics=True)
        return functional.dequantize_4bit(*packed).float()
    whole, scales, _ = functional.int8_vectorwise_quant(value.half())
    return functional.int8_vectorwise_dequant(whole, scales).float()


@pytest.mark.parametrize("setting", ["nf4", pytest.param("int8", marks=pytest.mark.slow)], indirect=True)
def test_quantised_training_continues_to_the_same_weights(setting: Recipe, trained: Path, tmp_path: Path) -> None:
    process = start(setting, tmp_path, OPTIONS, kill="step", number=3)
    assert exit_code(process) == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert exit_code(start(setting, tmp_path, OPTIONS)) == 0
    assert_equal(weights(tmp_path), weights(trained))


def test_quantised_training_ends_with_plain_merged_weights(setting: Recipe, trained: Path) -> None:
    assert setting.model is not None
    before = load_file(Path(setting.model) / "model.safetensors")
    after = weights(trained)
    assert before.keys() == after.keys()
    adapters = load_file(trained / "final" / "adapter" / "adapter_model.safetensors")
    assert any("lora_B" in name and bool(value.any()) for name, value in adapters.items())
    for name, value in before.items():
        assert after[name].is_floating_point(), name
        found, rounded = after[name].float(), value.bfloat16().float()
        if "adapter." in name or "alpha_embedding" in name:
            assert not torch.equal(found, rounded), name
        elif name.startswith("model.language_model.layers.") and name.endswith("_proj.weight"):
            layer = name.removesuffix(".weight")
            a, b = (adapters[f"{layer}.lora_{part}.default.weight"].float() for part in "AB")
            expected = dequantised(value.bfloat16(), setting) + 2 * b @ a  # 2 is lora_alpha / r
            # bfloat16 rounds the values here, which are below 2, by at most 2 ** -9 and 2 ** -8.
            assert (found - expected).abs().max() < 2**-7, name
        else:
            assert torch.equal(found, rounded), name
    model, _ = load(trained / "final", device="cpu")
    assert not getattr(model, "is_quantized", False)
    assert "quantization_config" not in model.config.to_dict()


def test_quantised_model_without_adapters_is_refused(setting: Recipe, tmp_path: Path) -> None:
    recipe = replace(setting, stages=(replace(STAGES[1], global_batch_size=4),))
    with pytest.raises(StageError, match="Train adapters"):
        train(recipe, tmp_path / "out", options={"use_cpu": True, "max_steps": 1})
