"""What the model must look like for its parts to fit: each part's configuration, read or derived from its tensors."""

import re
from collections.abc import Collection
from typing import Any, NamedTuple

import timm
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from ..configuration_finecaption import FineCaptionConvNextConfig
from ..hub.checkpoint import read_json
from .errors import AssemblyError
from .key_maps import alpha_clip_name
from .sources import Source
from .tensors import TensorInfo
from .trial import try_language_model
from .writer import DTYPES

Tensors = dict[str, TensorInfo]

# Models that change their logits behind the output layer, which a FineCaption does not: field -> value without effect.
_LOGIT_FIELDS = {
    "final_logit_softcapping": None,
    "logits_soft_cap": None,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "lm_head_multiplier": 1.0,
}
_OTHERS = "Give a dense language model such as Llama, Qwen2, Qwen3, Mistral or SmolLM."


def clip_config(source: Source) -> PreTrainedConfig:
    """Vision configuration of a CLIP of the Hub."""
    config = source.config
    if config.get("model_type") == "clip":
        config = config.get("vision_config") or {}
    elif config.get("model_type") != "clip_vision_model":
        raise AssemblyError(f"--clip {source.name} is a model of type {config.get('model_type')!r}, not CLIP.")
    return AutoConfig.for_model("clip_vision_model", **model_values(config))


def alpha_clip_config(source: Source, tensors: Tensors) -> PreTrainedConfig:
    """Vision configuration of an Alpha-CLIP file, whose heads are 64 wide like those of all published ones."""
    shapes = {alpha_clip_name(key).removeprefix("visual."): info.shape for key, info in tensors.items()}
    where = f"--alpha-clip {source.name}"
    width, channels, _, patch = _shape(shapes, "conv1.weight", 4, where)
    positions = _shape(shapes, "positional_embedding", 2, where)[0]
    inner = _shape(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 2, where)[0]
    if width % 64:
        raise AssemblyError(
            f"{where} is {width} wide, which does not tell its heads. Give --clip for its configuration."
        )
    return AutoConfig.for_model(
        "clip_vision_model",
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=_count(shapes, r"transformer\.resblocks\.(\d+)\."),
        num_attention_heads=width // 64,
        num_channels=channels,
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        hidden_act="quick_gelu",
    )


def convnext_config(source: Source, base: dict[str, Any]) -> dict[str, Any]:
    """Fields of `FineCaptionConfig` that a timm ConvNeXt decides: its configuration and its statistics.

    Args:
        source (`Source`): timm's config.json names the architecture; for a bare file `base` must.
        base (`dict`): the user's `convnext_config`.
    """
    fields = dict(base)
    found: dict[str, Any] = {}
    if source.has_config and "architecture" in source.config:
        if "architecture" in base and base["architecture"] != source.config["architecture"]:
            raise AssemblyError(
                f"--convnext {source.name} is a {source.config['architecture']}, but convnext_config says "
                f"{base['architecture']}."
            )
        fields["architecture"] = source.config["architecture"]
        model_args = {**(source.config.get("model_args") or {}), **(base.get("model_args") or {})}
        if model_args:
            fields["model_args"] = model_args
        pretrained = source.config.get("pretrained_cfg") or {}
        for ours, theirs in (("convnext_image_mean", "mean"), ("convnext_image_std", "std")):
            if pretrained.get(theirs):
                found[ours] = list(pretrained[theirs])
    elif "architecture" not in fields:
        raise AssemblyError(
            f"--convnext {source.name} does not say which model of timm it is. Put its config.json beside it, or give "
            'a configuration with {"convnext_config": {"architecture": ...}}.'
        )
    stages = convnext_stages(fields["architecture"], fields.get("model_args"))
    stage = fields.get("feature_stage", -1)
    if not -len(stages) <= stage < len(stages):
        raise AssemblyError(f"convnext_config.feature_stage is {stage}, but there are {len(stages)} stages.")
    fields["hidden_size"], fields["stride"] = stages[stage]["num_chs"], stages[stage]["reduction"]
    return {"convnext_config": FineCaptionConvNextConfig(**fields), **found}


def convnext_stages(architecture: str, model_args: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Channels and stride of each stage of a timm model."""
    if not architecture.startswith("convnext"):
        raise AssemblyError(f"{architecture} is no ConvNeXt.")
    try:
        with torch.device("meta"):
            model = timm.create_model(architecture, pretrained=False, num_classes=0, **(model_args or {}))
    except (RuntimeError, TypeError) as error:
        raise AssemblyError(
            f"timm cannot build {architecture} with {model_args or 'no arguments'}: {error}."
        ) from error
    return list(model.feature_info)


def sam_config(source: Source, tensors: Tensors) -> PreTrainedConfig:
    """Vision configuration of a SAM of the Hub, or of one as its authors published it."""
    if any(key.startswith("image_encoder.") for key in tensors):
        config = _original_sam_config(source, tensors)
    else:
        config = source.config
        if config.get("model_type") == "sam":
            config = config.get("vision_config") or {}
        elif config.get("model_type") != "sam_vision_model":
            raise AssemblyError(f"--sam {source.name} is a model of type {config.get('model_type')!r}, not SAM.")
    # The library's own initializer_range of SAM, 1e-10, is none from which anything could train.
    return AutoConfig.for_model("sam_vision_model", **{**model_values(config), "initializer_range": 0.02})


def _original_sam_config(source: Source, tensors: Tensors) -> dict[str, Any]:
    prefix, where = "image_encoder.", f"--sam {source.name}"
    shapes = {key.removeprefix(prefix): info.shape for key, info in tensors.items() if key.startswith(prefix)}
    _, cells, _, width = _shape(shapes, "pos_embed", 4, where)
    patch = _shape(shapes, "patch_embed.proj.weight", 4, where)[-1]
    layers = _count(shapes, r"blocks\.(\d+)\.")
    tables = [_shape(shapes, f"blocks.{layer}.attn.rel_pos_h", 2, where) for layer in range(layers)]
    windows = {(rows + 1) // 2 for rows, _ in tables} - {cells}
    if len(windows) > 1:
        raise AssemblyError(f"{where} has windows of several sizes: {sorted(windows)}.")
    inner = _shape(shapes, "blocks.0.mlp.lin1.weight", 2, where)[0]
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // tables[0][1],
        "image_size": cells * patch,
        "patch_size": patch,
        "output_channels": _shape(shapes, "neck.0.weight", 4, where)[0],
        "window_size": next(iter(windows), 0),
        "global_attn_indexes": [layer for layer, (rows, _) in enumerate(tables) if (rows + 1) // 2 == cells],
        "mlp_dim": inner,
        "mlp_ratio": inner / width,
        "num_pos_feats": _shape(shapes, "neck.0.weight", 4, where)[0] // 2,
    }


class Language(NamedTuple):
    """A causal language model: its configuration, the prefix of its body's tensors, the name of its output layer.

    `is_inside` says that it is the language model of a multimodal checkpoint, `note` what it cannot do.
    """

    config: PreTrainedConfig
    base: str
    head: str
    is_inside: bool = False
    note: str | None = None


def language_config(source: Source, tensors: Collection[str] = ()) -> Language:
    """Find out whether a FineCaption can hold a language model; see `try_language_model`.

    Args:
        source (`Source`): of a causal language model, or of a multimodal model that has one.
        tensors: names in its files, by which the language model of a multimodal checkpoint is found.

    Raises:
        AssemblyError: If it is none that a FineCaption can hold.
    """
    where = f"--llm {source.name}"
    values = source.config
    for name in ("quantization_config", "compression_config"):
        if values.get(name):
            raise AssemblyError(f"{where} is quantised ({name}). Give the original weights.")
    try:
        config = AutoConfig.for_model(values.get("model_type") or "", **model_values(values))
    except ValueError as error:
        kind = values.get("model_type")
        raise AssemblyError(f"{where} is a model of type {kind!r}, which transformers does not know.") from error
    except (TypeError, AttributeError, KeyError) as error:
        raise AssemblyError(f"{where} has a configuration that transformers cannot read: {error}.") from error
    whole = config
    try:
        config = whole.get_text_config(decoder=True)
    except ValueError as error:
        raise AssemblyError(f"{where} ({whole.model_type}) has several language models: {error}.") from error
    is_inside = config is not whole
    if is_inside:
        config.tie_word_embeddings = bool(
            getattr(config, "tie_word_embeddings", False) or values.get("tie_word_embeddings")
        )
        where = f"{where}: the language model ({config.model_type}) of this {whole.model_type}"
        values = config.to_dict()
    for name, without in _LOGIT_FIELDS.items():
        if values.get(name, getattr(config, name, without)) not in (None, without):
            raise AssemblyError(f"{where} changes its logits ({name}), which a FineCaption does not. {_OTHERS}")
    if getattr(config, "hidden_size_per_layer_input", None):
        raise AssemblyError(
            f"{where} has embeddings per layer, which it looks up by token (hidden_size_per_layer_input); image tokens "
            f"have none. {_OTHERS}"
        )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise AssemblyError(f"{where} is no causal language model: {str(error).splitlines()[0]} {_OTHERS}") from error
    except Exception as error:  # the library's own code, on whatever the configuration says
        raise AssemblyError(
            f"{where} cannot be built by transformers {transformers.__version__} ({type(error).__name__}: {error}). "
            f"{_OTHERS}"
        ) from error
    if any(isinstance(step, WeightConverter) for step in get_model_conversion_mapping(model)):
        raise AssemblyError(
            f"{where} ({config.model_type}) keeps its weights in pieces that transformers joins when it loads them, as "
            f"mixtures of experts do. Assembling moves tensors as they are. {_OTHERS}"
        )
    names = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    head = model.get_output_embeddings()
    body = f"{model.base_model_prefix}."
    embeddings = next(
        (n for n, p in model.named_parameters() if p is model.get_input_embeddings().weight), ""
    )  # of tied weights, the first name
    if head is None or head.bias is not None or embeddings != f"{body}embed_tokens.weight":
        raise AssemblyError(
            f"{where} ({config.model_type}) is built differently: needed are embeddings called embed_tokens and an "
            f"output layer without bias. {_OTHERS}"
        )
    trial = try_language_model(config)
    if trial.refusal is not None:
        raise AssemblyError(
            f"{where} ({config.model_type}) cannot stand behind image tokens: {trial.refusal}. {_OTHERS}"
        )
    note = None
    if trial.one_by_one is not None:
        note = f"{where} {trial.one_by_one}: questions about a region are answered one by one, not in one pass."
    tied = model.get_input_embeddings().weight is head.weight or config.tie_word_embeddings
    if not is_inside:
        name = "lm_head.weight" if tied else names[id(head.weight)]
        return Language(config, model.base_model_prefix, name, note=note)
    bodies = [name.removesuffix(".embed_tokens.weight") for name in tensors if name.endswith(".embed_tokens.weight")]
    if len(bodies) != 1:
        raise AssemblyError(
            f"{where} cannot be told by its tensors: {len(bodies)} are called embed_tokens.weight. Save its language "
            "model in a folder of its own, and give that."
        )
    heads = [name for name in tensors if name.endswith("lm_head.weight")]
    if not heads:
        config.tie_word_embeddings = True
    return Language(config, bodies[0], heads[0] if heads else "lm_head.weight", True, note)


def model_values(config: dict[str, Any]) -> dict[str, Any]:
    """What a configuration says about the model, without what says where it came from."""
    own = ("model_type", "transformers_version", "_name_or_path", "architectures", "auto_map", "torch_dtype", "dtype")
    return {name: _number_of(value) for name, value in config.items() if name not in own}


def _number_of(value: Any) -> Any:
    """Infinity and the like as numbers: transformers 5 writes `{"__float__": "Infinity"}`, which JSON can hold."""
    if isinstance(value, dict):
        return (
            float(value["__float__"]) if set(value) == {"__float__"} else {k: _number_of(v) for k, v in value.items()}
        )
    return [_number_of(item) for item in value] if isinstance(value, list) else value


def _shape(shapes: dict[str, tuple[int, ...]], key: str, dimensions: int, where: str) -> tuple[int, ...]:
    shape = shapes.get(key)
    if shape is None or len(shape) != dimensions:
        found = "missing" if shape is None else list(shape)
        raise AssemblyError(f"{where}: {key} is {found}; needed is a tensor of {dimensions} dimensions.")
    return shape


def _count(shapes: dict[str, tuple[int, ...]], pattern: str) -> int:
    numbers = [int(match[1]) for key in shapes if (match := re.match(pattern, key))]
    return max(numbers, default=-1) + 1


def image_statistics(source: Source, prefix: str) -> dict[str, list[float]]:
    """Mean and standard deviation that a part's own image processor uses, where it says so."""
    values = image_processor_values(source)
    found = {}
    for name in ("mean", "std"):
        value = values.get(f"image_{name}")
        if value is not None:
            found[f"{prefix}_{name}"] = [value] * 3 if isinstance(value, (int, float)) else list(value)
    return found


def image_processor_values(source: Source) -> dict[str, Any]:
    """Settings of a part's image processor: inside of its processor's, as transformers 5 saves them and prefers them,
    or in a file of their own; empty without either."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = None if source.folder is None else source.folder / name
        if path is None or not path.is_file():
            continue
        values = read_json(path, AssemblyError)
        if name == "processor_config.json":
            values = values.get("image_processor") or {}
        if values:
            return values
    return {}


def part_dtype(values: dict[str, Any]) -> str | None:
    """The precision that a configuration states, where it is one of those that can be written."""
    stated = (
        values.get("dtype")
        or values.get("torch_dtype")
        or next(
            (
                text[name]
                for text in [values.get("text_config") or {}]
                for name in ("dtype", "torch_dtype")
                if text.get(name)
            ),
            None,
        )
    )
    return stated if stated in DTYPES else None
