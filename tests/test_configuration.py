"""What a configuration promises: the full-size model, its ablations, and refusals of sizes that do not fit."""

import logging as std_logging
from collections.abc import Iterator

import pytest
import torch
from fresh import OURS
from tiny import tiny_config, tiny_model
from transformers import AutoConfig, Qwen2Config
from transformers.utils import logging

from finecaption_hf import configuration_finecaption
from finecaption_hf.configuration_finecaption import FineCaptionConfig, check_transformers_version
from finecaption_hf.modeling_finecaption import FineCaptionForConditionalGeneration

pytestmark = pytest.mark.hub


@pytest.fixture(scope="module")
def full_size() -> FineCaptionForConditionalGeneration:
    with torch.device("meta"):
        return FineCaptionForConditionalGeneration(FineCaptionConfig())


def millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_full_size_model_has_the_parameters_of_its_parts(full_size):
    parts = full_size.model
    # Published sizes: Llama-3.1-8B 8,030.26 M without the image token; SAM ViT-L image encoder 308.28 M.
    language = millions(parts.language_model) + millions(full_size.lm_head)
    assert language - 2 * 4096 / 1e6 == pytest.approx(8030.26, abs=0.01)
    assert millions(parts.sam_tower) == pytest.approx(308.28, abs=0.01)
    # ConvNeXt-XXL without classifier, 843.4 M (timm counts 846.5 M with a head of 1,024 classes and its norm).
    assert millions(parts.convnext_tower) == pytest.approx(843.4, abs=0.1)
    # CLIP ViT-L/14@336 has 303.5 M; its last layer (12.6 M) and final norm are not built, the alpha convolution is.
    layer = 4 * 1024 * 1025 + 1024 * 4097 + 4096 * 1025 + 4 * 1024
    assert millions(parts.vision_tower) == pytest.approx(303.508 - (layer + 2048 - 1024 * 196) / 1e6, abs=0.01)
    assert millions(parts.adapter) == pytest.approx((5120 * 4096 + 4096 + 4096 * 4096 + 4096) / 1e6, abs=1e-3)
    assert millions(full_size) == pytest.approx(9510.8, abs=0.1)


def test_full_size_model_fuses_5120_channels_into_1024_tokens(full_size):
    config = full_size.config
    assert (config.image_seq_length, config.fused_feature_size) == (1024, 1024 + 3072 + 1024)
    assert full_size.model.adapter.linear_1.in_features == 5120
    assert full_size.model.vision_tower.embeddings.alpha_embedding.weight.shape == (1024, 1, 14, 14)
    assert len(full_size.model.vision_tower.encoder.layers) == 23


def test_each_tower_keeps_its_own_statistics_by_default():
    config = FineCaptionConfig()
    clip = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    assert (config.image_mean, config.image_std) == clip
    assert (config.convnext_image_mean, config.convnext_image_std) == clip
    assert (config.sam_image_mean, config.sam_image_std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    ("switches", "absent"),
    [
        (
            {"use_convnext": False, "use_sam": False, "use_mask": False},
            {"convnext_tower", "sam_tower", "alpha_embedding"},
        ),
        ({"use_convnext": False, "use_sam": False}, {"convnext_tower", "sam_tower"}),
        ({"use_sam": False}, {"sam_tower"}),
        ({"use_convnext": False}, {"convnext_tower"}),
        ({}, set()),
    ],
)
def test_ablation_switches_leave_out_exactly_their_parameters(switches, absent):
    complete = dict(tiny_model().named_parameters())
    ablated = dict(tiny_model(**switches).named_parameters())
    expected = {name for name in complete if not any(part in name for part in absent)}
    assert set(ablated) == expected
    changed = {name for name in ablated if ablated[name].shape != complete[name].shape}
    assert changed == ({"model.adapter.linear_1.weight"} if absent & {"convnext_tower", "sam_tower"} else set())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config": {"patch_size": 16}}, "84 is no multiple of its patch size 16"),
        ({"vision_feature_layer": 4}, "vision_feature_layer 4 .* 3 layers"),
        ({"vision_feature_layer": -4}, "vision_feature_layer -4 .* 3 layers"),
        ({"high_res_image_size": 240, "use_sam": False}, "high_res_image_size 240 .* stride 32"),
        ({"high_res_image_size": 512}, "SAM tower takes 256 px but high_res_image_size is 512"),
        ({"grid_size": 6}, "ConvNeXt tower gives a 8x8 grid, .* 6x6"),
        ({"grid_size": 5, "use_convnext": False}, "SAM tower gives a 16x16 grid, .* 5x5"),
        ({"sam_feature_layer": 2}, "sam_feature_layer 2 .* 2 blocks"),
        ({"image_token_id": 100}, "image_token_id 100 .* 100"),
        ({"sam_image_mean": [0.5]}, "sam_image_mean has 1 values for 3 channels"),
        ({"grid_size": 0}, "grid_size is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_both_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 40}, "hidden_size is 40 but stage 3 of convnext_atto has 32"),
        ({"feature_stage": 4}, "feature_stage is 4 but convnext_atto has 4 stages"),
    ],
)
def test_a_convnext_of_other_sizes_than_declared_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(convnext_config=changes)


def test_configuration_survives_a_round_trip(tmp_path):
    config = tiny_config(use_sam=False, grid_size=4, sam_image_mean=[0.1, 0.2, 0.3])
    config.save_pretrained(tmp_path)
    again = FineCaptionConfig.from_pretrained(tmp_path)
    assert again.to_diff_dict() == config.to_diff_dict()
    assert (again.use_sam, again.grid_size, again.sam_image_mean) == (False, 4, [0.1, 0.2, 0.3])


def test_any_causal_language_model_of_the_library_fits(tmp_path):
    qwen = Qwen2Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = tiny_model(text_config=qwen)
    assert model.lm_head.weight is model.get_input_embeddings().weight  # follows text_config
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, trust_remote_code=True).text_config.model_type == "qwen2"


def test_image_processor_arguments_follow_the_towers():
    arguments = FineCaptionConfig().image_processor_kwargs()
    assert arguments["size"] == {"height": 336, "width": 336}
    assert arguments["high_res_size"] == {"height": 1024, "width": 1024}
    assert (arguments["mask_mean"], arguments["mask_std"], arguments["do_mask"]) == (0.5, 0.26, True)
    clip_only = FineCaptionConfig(use_convnext=False, use_sam=False, use_mask=False).image_processor_kwargs()
    assert (clip_only["high_res_size"], clip_only["do_mask"]) == (None, False)


@pytest.fixture
def remarks() -> Iterator[list[str]]:
    """What the library's logger is told, as users see it."""
    told: list[str] = []
    handler = std_logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logging.add_handler(handler)
    type(configuration_finecaption.logger).warning_once.cache_clear()
    yield told
    logging.remove_handler(handler)


@pytest.mark.parametrize("version", ["5.19.0", "5.19.0.dev0", "5.23.0", "5.24.0.dev0", "5.24.0", "5.24.7"])
def test_transformers_inside_the_tested_range_are_accepted_in_silence(remarks, version):
    check_transformers_version(version)
    assert remarks == []


@pytest.mark.parametrize("version", ["4.57.1", "5.18.9", "5.18.9.dev0"])
def test_transformers_below_the_range_are_refused_by_name(version):
    with pytest.raises(ImportError, match=rf"transformers>=5\.19 .*5\.24.*, but transformers {version} is"):
        check_transformers_version(version)


@pytest.mark.parametrize("version", ["5.25.0.dev0", "5.25.0", "5.100.1", "6.0.0", "6.1.0.dev0"])
def test_transformers_above_the_tested_range_are_remarked_on_once_and_can_be_silenced(remarks, version):
    for _ in range(2):
        check_transformers_version(version)
    (line,) = remarks
    assert "\n" not in line and f"tested up to transformers 5.24 and runs on {version}." in line
    assert "docs/compatibility.md" in line and "finecaption renew" in line
    type(configuration_finecaption.logger).warning_once.cache_clear()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        check_transformers_version(version)
    finally:
        logging.set_verbosity(verbosity)
    assert len(remarks) == 1


@pytest.mark.parametrize("module", ["modeling", "processing", "image_processing", "configuration", "pipeline"])
def test_every_hub_file_checks_the_version_before_it_needs_it(module, tmp_path):
    code = f"import transformers; transformers.__version__ = '5.18.0'; import finecaption_hf.{module}_finecaption"
    result = OURS.run(code, work=tmp_path)
    assert result.returncode == 1
    assert "but transformers 5.18.0 is installed" in result.stderr.splitlines()[-1]
