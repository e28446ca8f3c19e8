"""What `finecaption info` counts, against parameters of real models and against formulas written out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from other_models import random_model
from tiny import tiny_config, tiny_model
from transformers import LlamaConfig, MixtralConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaMLP
from typer.testing import CliRunner

from finecaption_hf.assembly.cost import ModelInfo, model_info, read_config
from finecaption_hf.cli import app
from finecaption_hf.configuration_finecaption import FineCaptionConfig

pytestmark = pytest.mark.hub

# Depths and widths of the ConvNeXts, which timm knows by name (arXiv 2201.03545; the XXL one is OpenCLIP's).
CONVNEXT = {
    "convnext_xxlarge": ([3, 4, 30, 3], [384, 768, 1536, 3072]),
    "convnext_atto": ([1, 1, 2, 1], [8, 16, 24, 32]),  # with the tiny configuration's arguments
}


def run_info(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["info", *map(str, arguments)])


@pytest.fixture(scope="module")
def full_size() -> ModelInfo:
    return model_info(FineCaptionConfig())


@pytest.fixture(scope="module")
def tiny() -> ModelInfo:
    return model_info(tiny_config())


# --- formulas: two FLOPs per multiply-add of every matrix product and convolution -------------------------------------


def transformer_layer(tokens: int, width: int, hidden: int) -> int:
    """Four projections, scores and weighted sum, two linear layers."""
    return 2 * tokens * (4 * width**2 + 2 * width * hidden) + 4 * tokens**2 * width


def clip_flops(config: FineCaptionConfig) -> int:
    clip = config.vision_config
    patches = (clip.image_size // clip.patch_size) ** 2
    inputs = 3 + config.use_mask  # the alpha convolution is one more input channel
    embedding = 2 * patches * clip.hidden_size * inputs * clip.patch_size**2
    layer = transformer_layer(patches + 1, clip.hidden_size, clip.intermediate_size)
    return embedding + config.vision_num_layers * layer


def sam_flops(config: FineCaptionConfig) -> int:
    """Blocks with windows pad the grid to whole windows, and project the padding too; relative positions cost two
    products of every query with the positions of its row and of its column."""
    sam = config.sam_config
    side, width = sam.image_size // sam.patch_size, sam.hidden_size

    def block(window: int) -> int:
        windows = (-(-side // window)) ** 2
        attention = transformer_layer(window**2, width, 0) + 2 * 2 * window**2 * width * window
        return windows * attention + 2 * side**2 * 2 * width * sam.mlp_dim

    whole = len(sam.global_attn_indexes)
    blocks = whole * block(side) + (sam.num_hidden_layers - whole) * block(sam.window_size)
    embedding = 2 * side**2 * width * 3 * sam.patch_size**2
    neck = 2 * side**2 * (width * sam.output_channels + 9 * sam.output_channels**2)
    return embedding + blocks + neck


def convnext_flops(config: FineCaptionConfig) -> int:
    depths, widths = CONVNEXT[config.convnext_config.architecture]
    side = config.high_res_image_size // 4
    flops = 2 * side**2 * widths[0] * 3 * 4**2
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        if stage:
            side //= 2
            flops += 2 * side**2 * width * widths[stage - 1] * 2**2
        flops += depth * 2 * side**2 * (width * 7**2 + 2 * width * 4 * width)
    return flops


def llama_flops(config: FineCaptionConfig, tokens: int, cached: int = 0) -> int:
    """Projections, attention over all positions, gated layers; logits of one position."""
    text = config.text_config
    head = text.hidden_size // text.num_attention_heads
    projections = text.hidden_size * head * (2 * text.num_attention_heads + 2 * text.num_key_value_heads)
    linear = 2 * tokens * (projections + 3 * text.hidden_size * text.intermediate_size)
    attention = 4 * tokens * (tokens + cached) * text.num_attention_heads * head
    return text.num_hidden_layers * (linear + attention) + 2 * text.hidden_size * text.vocab_size


@pytest.mark.parametrize("size", ["tiny", "full_size"])
def test_flops_are_those_of_the_formulas(size: str, request: pytest.FixtureRequest) -> None:
    flops = request.getfixturevalue(size).flops
    config = FineCaptionConfig() if size == "full_size" else tiny_config()
    tokens, width = config.image_seq_length, config.text_config.hidden_size
    expected = {
        "vision_tower": clip_flops(config),
        "convnext_tower": convnext_flops(config),
        "sam_tower": sam_flops(config),
        "adapter": 2 * tokens * (config.fused_feature_size * width + width**2),
        "language_model": llama_flops(config, tokens),
    }
    assert {name: flops[name] for name in expected} == expected
    assert flops["token"] == llama_flops(config, 1, cached=tokens)
    assert flops["first_region"] == sum(expected.values())
    assert flops["next_region"] == flops["first_region"] - expected["convnext_tower"] - expected["sam_tower"]


# --- parameters and memory -------------------------------------------------------------------------------------------


def test_full_size_memory_is_parameters_times_bytes(full_size: ModelInfo) -> None:
    assert full_size.tokens_per_region == 1024
    total = full_size.parameters["total"]
    head = 128
    linear = 32 * (4096 * head * (2 * 32 + 2 * 8) + 3 * 4096 * 14336)
    outputs = 32 * (head * (32 + 2 * 8) + 4096 + 2 * 14336 + 4096)
    assert full_size.weight_bytes == {
        "float32": 4 * total,
        "bfloat16": 2 * total,
        "int8": 2 * (total - linear) + linear + 4 * outputs,
        "int4": 2 * (total - linear) + linear // 2 + 4 * linear // 64,
    }
    values = 1024 * 32 * 2 * 8 * head
    assert full_size.prefix_cache_bytes == {"float32": 4 * values, "bfloat16": 2 * values}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_mask": False, "use_sam": False},
        {"use_convnext": False, "sam_feature_layer": 0},
        {"text_config": {"tie_word_embeddings": True}},
    ],
)
def test_parameters_are_those_of_the_model_that_is_built(changes: dict[str, Any]) -> None:
    found = model_info(tiny_config(**changes))
    model = tiny_model(**changes)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    parts: dict[str, int] = {}
    for name, size in sizes.items():
        part = "language_model" if name.startswith("lm_head.") else name.split(".")[1]
        parts[part] = parts.get(part, 0) + size
    assert found.parameters == {**parts, "total": sum(sizes.values())}
    assert found.trainable_parameters == {
        "stage_1_adapter": parts["adapter"],
        "stage_2_alpha_convolution": sizes.get("model.vision_tower.embeddings.alpha_embedding.weight", 0),
        "stage_3_everything": sum(sizes.values()),
    }
    assert found.weight_bytes["float32"] == sum(p.numel() * p.element_size() for p in model.parameters())
    assert set(parts) & {"convnext_tower", "sam_tower"} == set(found.flops) & {"convnext_tower", "sam_tower"}


SMALL = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}


def test_a_mixture_of_experts_counts_the_experts_that_run() -> None:
    text = MixtralConfig(**SMALL, intermediate_size=64, num_key_value_heads=2, num_local_experts=4)
    config = tiny_config(text_config=text)
    found = model_info(config)
    one, router = 3 * 32 * 64, 32 * 4
    dense = llama_flops(config, 1, cached=64)
    assert found.flops["token"] == dense + 2 * one + 2 * router  # two of the four run, where a dense model has one
    assert found.parameters["language_model"] > 4 * one


def test_a_path_that_depends_on_values_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    found = model_info(tiny_config())
    assert found.flops["vision_tower"] == clip_flops(tiny_config())
    assert {found.flops[name] for name in ("language_model", "first_region", "next_region", "token")} == {None}
    assert found.prefix_cache_bytes == {"float32": None, "bfloat16": None}
    assert found.weight_bytes["float32"] == 4 * found.parameters["total"]


# --- reading configurations ------------------------------------------------------------------------------------------


def test_changes_reach_fields_of_parts_and_replace_parts() -> None:
    config = read_config(changes=["text_config.num_hidden_layers=16", "use_sam=false", "adapter_hidden_act=relu"])
    assert (config.text_config.num_hidden_layers, config.use_sam, config.adapter_hidden_act) == (16, False, "relu")
    assert config.text_config.hidden_size == 4096
    config = read_config(changes=['text_config={"model_type": "qwen2", "tie_word_embeddings": true}'])
    assert (config.text_config.model_type, config.tie_word_embeddings) == ("qwen2", True)


def test_a_changed_depth_drops_the_layer_types_of_the_old_one(tmp_path: Any) -> None:
    tied = Qwen2Config(vocab_size=100, num_hidden_layers=4, tie_word_embeddings=True)
    tiny_config(text_config=tied).save_pretrained(tmp_path)
    config = read_config(tmp_path, ["text_config.num_hidden_layers=2"])
    assert len(config.text_config.layer_types) == 2 and config.tie_word_embeddings
    assert not read_config(tmp_path, ["text_config.tie_word_embeddings=false"]).tie_word_embeddings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("text_config.num_layers=2", "no field 'num_layers'.*num_hidden_layers"),
        ("txt.num_hidden_layers=2", "no part 'txt'.*text_config"),
        ("text_config.num_hidden_layers", "give NAME=VALUE"),
        ("grid_size=48", "cannot be folded into grid_size 48x48"),
    ],
)
def test_changes_that_name_nothing_are_refused(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(changes=[change])


def test_what_is_no_finecaption_configuration_is_refused(tmp_path: Any) -> None:
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model of type 'llama', not 'finecaption'"):
        read_config(tmp_path)
    with pytest.raises(ValueError, match='lacks "model_type": "finecaption"'):
        read_config(tmp_path / "config.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is no JSON"):
        read_config(tmp_path / "broken.json")
    with pytest.raises(FileNotFoundError, match="neither a folder, a file nor the id"):
        read_config(tmp_path / "absent" / "folder")


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_one_model_as_json_from_folder_and_file(tmp_path: Any, tiny: ModelInfo) -> None:
    tiny_config().save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "config.json"):
        result = run_info(source, "--json")
        assert result.exit_code == 0, result.output
        assert ModelInfo(**json.loads(result.stdout)) == tiny


def test_the_command_prints_tables(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    tiny_config().save_pretrained(tmp_path)
    result = run_info(tmp_path, "--set", "use_sam=false")
    assert result.exit_code == 0, result.output
    for expected in ("vision_tower", "convnext_tower", "each decoded token", "64 tokens", "int4", "stage_1_adapter"):
        assert expected in result.stdout
    assert "sam_tower" not in result.stdout


def test_the_command_ends_with_one_line_for_what_the_user_can_mend(tmp_path: Any) -> None:
    result = run_info(tmp_path / "absent")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "neither a folder" in result.stderr


# --- models beside FineCaption ---------------------------------------------------------------------------------------


def test_weights_of_another_model_are_counted_without_reading_them(tmp_path: Path) -> None:
    model = random_model("llava")[0]
    model.config.save_pretrained(tmp_path)
    result = run_info(tmp_path, "--json")
    assert result.exit_code == 0, result.output
    number = sum(parameter.numel() for parameter in model.parameters())
    found = json.loads(result.output)
    assert found["parameters"] == number
    assert found["weight_bytes"] == {"float32": 4 * number, "bfloat16": 2 * number}
    assert "float32" in run_info(tmp_path).output
    refused = run_info(tmp_path, "--set", "use_sam=false")
    assert refused.exit_code == 2 and "--set changes fields of FineCaption alone" in refused.output


def test_model_that_takes_no_pictures_is_refused(tmp_path: Path) -> None:
    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    result = run_info(tmp_path)
    assert result.exit_code == 2 and "no image-text-to-text model of type 'llama'" in result.output
