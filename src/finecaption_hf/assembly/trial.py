"""Whether a language model can stand behind image tokens: tried on a two-layer version of it, before a weight is read.

Its configuration decides, not its name: the version is built in memory from random weights, as a whole and inside of a
small FineCaption, and both must compute the same.
"""

import copy
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from ..branches_finecaption import branch_support
from ..configuration_finecaption import FineCaptionConfig
from ..modeling_finecaption import FineCaptionForConditionalGeneration

# What is made smaller, to which size: heads stay as wide as they are, so that positions are turned as in the whole.
_HEADS, _TOKENS = 4, 128
_SMALLER = {
    "intermediate_size": 256,
    "intermediate_size_mlp": 256,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}
_IMAGE_TOKEN = 5
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
# As large as two layers of the published models of 70 billion parameters are.
_MOST_PARAMETERS = 3_000_000_000
_MOVED = 1_000_000


class Trial(NamedTuple):
    """Why a language model cannot be used (`None`: it can), and why it answers questions one by one, if it does."""

    refusal: str | None
    one_by_one: str | None = None


def try_language_model(config: PreTrainedConfig) -> Trial:
    """Forward with embeddings, cache step and branches of a small version of a language model.

    Args:
        config (`PreTrainedConfig`): of a causal language model, not changed.
    """
    reason = ""
    # Not every configuration can be made narrower; two layers of full width are still quick.
    for narrow in (True, False):
        try:
            small = _small_version(config, narrow)
            with torch.device("meta"):
                size = AutoModelForCausalLM.from_config(small).num_parameters()
            if size > _MOST_PARAMETERS:
                return Trial(f"two layers of it have {size:,} parameters, too many to try it in memory")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return _tried(small)
        except Exception as error:  # whatever a model of the library raises is what the user is to read
            reason = f"two layers of it cannot be run ({type(error).__name__}: {_first_line(error)})"
    return Trial(reason)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def _small_version(config: PreTrainedConfig, narrow: bool) -> PreTrainedConfig:
    """Two layers, or one of each kind; with `narrow` fewer heads, and feed-forward layers and vocabulary to match."""
    values = copy.deepcopy(config.to_dict())
    depth = config.num_hidden_layers
    if isinstance(values.get("per_layer_config"), dict):  # what single layers have of their own
        own = {int(layer): fields for layer, fields in values["per_layer_config"].items()}
        values["per_layer_config"] = [own.get(layer, {}) for layer in range(depth)]
    kinds = next(
        (list(found) for name in ("layer_types", "layers_block_type") if (found := getattr(config, name, None))),
        ["attention"] * depth,
    )
    layers = sorted({kinds.index(kind) for kind in kinds})
    layers = layers if len(layers) > 1 else [0, min(1, depth - 1)]
    for name, value in values.items():
        if isinstance(value, list) and len(value) == depth:
            values[name] = [value[layer] for layer in layers]
        elif isinstance(value, list) and ("layer_ind" in name or "layer_ids" in name):
            values[name] = [new for new, layer in enumerate(layers) if layer in value]
    if isinstance(values.get("per_layer_config"), list):
        values["per_layer_config"] = {n: fields for n, fields in enumerate(values["per_layer_config"]) if fields}
    values["num_hidden_layers"] = len(layers)
    values |= {name: None for name in ("pad_token_id", "eos_token_id", "bos_token_id") if name in values}
    values["vocab_size"] = _TOKENS
    heads = values.get("num_attention_heads")
    if narrow and isinstance(heads, int) and heads > _HEADS and config.hidden_size % heads == 0:
        values["hidden_size"] = config.hidden_size // heads * _HEADS
        shared = values.get("num_key_value_heads")
        if isinstance(shared, int):
            values["num_key_value_heads"] = max(1, shared * _HEADS // heads)
        values["num_attention_heads"] = _HEADS
    if narrow:
        for name, value in values.items():
            most = next((size for end, size in _SMALLER.items() if name.endswith(end)), None)
            if most is not None and isinstance(value, int) and not isinstance(value, bool):
                values[name] = min(value, most)
    for name in ("transformers_version", "architectures", "_name_or_path", "dtype", "torch_dtype"):
        values.pop(name, None)
    return type(config)(**{name: value for name, value in values.items() if name != "model_type"})


@torch.no_grad()
def _tried(config: PreTrainedConfig) -> Trial:
    model = FineCaptionForConditionalGeneration(
        FineCaptionConfig(
            vision_config=_VISION,
            vision_feature_layer=-1,
            text_config=copy.deepcopy(config),
            grid_size=2,
            use_convnext=False,
            use_sam=False,
            image_token_id=_IMAGE_TOKEN,
        )
    )
    model = model.float().eval()
    for parameter in model.parameters():
        if parameter.numel() < _MOVED:  # norms and biases, too; matrices of full width are random and large enough
            parameter.add_(torch.randn_like(parameter) * 0.1)
    with no_init_weights():
        whole = AutoModelForCausalLM.from_config(config).float().eval()
    body: PreTrainedModel = getattr(whole, whole.base_model_prefix)
    body.load_state_dict(model.model.language_model.state_dict(), assign=True)
    whole.get_output_embeddings().weight = model.lm_head.weight

    text = torch.arange(10, 18)[None]
    wanted, found = whole(input_ids=text).logits, model(input_ids=text).logits
    if not _equal(found, wanted):
        return Trial("it changes its logits behind the output layer, or its embeddings before the first layer")

    prompt = torch.cat([text[:, :2], torch.full((1, 4), _IMAGE_TOKEN), text[:, 2:]], dim=1)
    picture = {"pixel_values": torch.randn(1, 3, 28, 28)}
    made = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), **picture,
        max_new_tokens=2, min_new_tokens=2, do_sample=False, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    alone = model(input_ids=made.sequences[:, :-1], **picture).logits[:, -1]
    if not _equal(made.logits[1], alone):
        return Trial("its cache gives other logits than the whole sequence does, where tokens are images")
    return Trial(None, branch_support(model).obstacle)


def _equal(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Up to the order of sums: a wrong mask, scale or position changes logits by some hundredths at the least."""
    return bool((found - wanted).abs().max() <= 1e-3 * wanted.abs().max())
