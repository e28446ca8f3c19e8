"""What a checkpoint costs before it is downloaded or trained: parameters, FLOPs, tokens, memory, trainable parameters.

Everything is counted on the meta device, from the configuration alone: no weights are read and none are allocated, so
the full-size model takes seconds on any machine. From Python:

>>> from finecaption_hf.assembly.cost import model_info, read_config
>>> model_info(read_config("owner/checkpoint")).parameters["total"]

What the numbers mean:

- Parameters that are shared (tied embeddings) count once, with the language model.
- FLOPs are those of matrix products and convolutions, two per multiply-add, at the towers' input sizes. Attention
  counts in full, also where a kernel would leave out what causality masks.
- Memory is that of weights and of the prefix's keys and values. Activations, text beyond the prefix and what a
  framework holds come on top; they depend on the batch, the attention kernel and the library.
"""

import copy
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .. import register
from ..branches_finecaption import CACHE_ARGUMENT
from ..configuration_finecaption import FineCaptionConfig
from ..modeling_finecaption import FineCaptionForConditionalGeneration
from ..prompts_finecaption import no_such
from ..training.stages import STAGES, StageError

IMAGE_TOWERS = ("convnext_tower", "sam_tower")
"""Towers that do not see the mask: they run once for an image, whatever its number of regions."""

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2}
SCALE_BYTES = 4  # of a quantised group of weights: a float32
INT4_GROUP = 64  # weights that share a scale, as in bitsandbytes


@dataclass(frozen=True)
class ModelInfo:
    """Counts for one region of one image; `dataclasses.asdict` gives what `finecaption info --json` prints.

    Args:
        parameters: by part (`vision_tower`, `convnext_tower`, `sam_tower`, `adapter`, `language_model`) and `total`.
        flops: forward passes. By part, with `language_model` the prefill of the prefix; `first_region` is their sum,
            one region of a new image; `next_region` is that without `convnext_tower` and `sam_tower`, which run once
            per image; `token` is one decoded token right after the prefix. `None` where the language model's path
            depends on values, which do not exist on the meta device (some scaled positions).
        tokens_per_region: length of the prefix, N.
        weight_bytes: memory of the weights. `int8` and `int4` quantise the linear layers inside the language model, 8
            bits with a 32-bit scale per output channel and 4 bits with a 32-bit scale per 64 weights; all else, towers
            and embeddings included, is bfloat16.
        prefix_cache_bytes: memory of keys and values of one region's prefix.
        trainable_parameters: by training stage.
    """

    parameters: dict[str, int]
    flops: dict[str, int | None]
    tokens_per_region: int
    weight_bytes: dict[str, int]
    prefix_cache_bytes: dict[str, int | None]
    trainable_parameters: dict[str, int]


@dataclass(frozen=True)
class WeightsInfo:
    """What the weights of any image-text-to-text model of transformers take; activations and cache come on top.

    Args:
        parameters: their number.
        weight_bytes: by dtype, as it is held.
    """

    parameters: int
    weight_bytes: dict[str, int]


# --- configurations --------------------------------------------------------------------------------------------------


def read_config(source: str | os.PathLike[str] | None = None, changes: Sequence[str] = ()) -> FineCaptionConfig:
    """Read the configuration of a checkpoint.

    Args:
        source: a folder, a configuration file (.json; fields that it leaves out have their defaults), or the id of a
            Hub repository; `None` means the full-size default.
        changes: `"name=value"` each, with a dotted name such as `text_config.num_hidden_layers` and a JSON value.

    Raises:
        OSError: If there is no such folder, file or repository.
        ValueError: If it holds a model of another kind, a change names no field, or sizes do not fit together.
    """
    config = _read(source)
    if not changes:
        return config
    values = config.to_dict()
    if config.text_config.tie_word_embeddings:
        values["tie_word_embeddings"] = False  # follows text_config, so also one that a change puts in its place
    for change in changes:
        _apply(values, change)
    return FineCaptionConfig.from_dict(values)


def _read(source: str | os.PathLike[str] | None) -> FineCaptionConfig:
    if source is None:
        return FineCaptionConfig()
    name = os.fspath(source)
    if os.path.isfile(name):
        with open(name, encoding="utf-8") as file:
            try:
                values = json.load(file)
            except ValueError as error:
                raise ValueError(f"{name} is no JSON ({error}). Give a configuration file or a checkpoint.") from error
        if not isinstance(values, dict) or values.get("model_type") != FineCaptionConfig.model_type:
            raise ValueError(f'{name} is no FineCaption configuration: it lacks "model_type": "finecaption".')
        return FineCaptionConfig.from_dict(values)
    config = read_any_config(name)
    if not isinstance(config, FineCaptionConfig):
        raise ValueError(
            f"{name} holds a model of type {config.model_type!r}, not 'finecaption'. Give a FineCaption checkpoint."
        )
    return config


def read_any_config(name: str) -> Any:
    """The configuration of a model of any type, from a folder or the Hub.

    Raises:
        OSError: If there is no such folder or repository.
    """
    is_folder = os.path.isdir(name)
    if not is_folder and (name.endswith(".json") or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name)):
        raise FileNotFoundError(f"{name} is neither a folder, a file nor the id of a Hub repository (owner/name).")
    if is_folder and not os.path.isfile(os.path.join(name, "config.json")):
        raise FileNotFoundError(f"{name} has no config.json, so it is no checkpoint. Give the folder of one.")
    register()
    from transformers import AutoConfig

    try:
        # A folder needs no network, and without one the library would wait for it.
        return AutoConfig.from_pretrained(name, local_files_only=is_folder)
    except OSError as error:
        if is_folder:
            raise
        raise FileNotFoundError(
            f"{name} is no folder, is not on this machine, and the Hub has no such repository for you or cannot be "
            "reached. Check the name and the network; for a private one log in (hf auth login)."
        ) from error


def _apply(values: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    *parents, last = name.split(".")
    if not equals:
        raise ValueError(f"--set {change}: give NAME=VALUE, such as text_config.num_hidden_layers=16.")
    for depth, parent in enumerate(parents):
        inner = values.get(parent)
        if not isinstance(inner, dict):
            known = sorted(name for name, value in values.items() if isinstance(value, dict))
            raise ValueError(f"--set {change}: {no_such('part', '.'.join(parents[: depth + 1]), known)}")
        values = inner
    # A misspelt name would be kept as a field that nothing reads, and the printed numbers would be the wrong model's.
    if last not in values:
        raise ValueError(f"--set {change}: {no_such('field', last, sorted(values))}")
    try:
        values[last] = json.loads(text)
    except ValueError:
        values[last] = text
    if last == "num_hidden_layers":
        values.pop("layer_types", None)  # derived, one for each layer; left in place it would contradict the new number


# --- counting --------------------------------------------------------------------------------------------------------


def model_info(config: FineCaptionConfig) -> ModelInfo:
    """Count parameters, FLOPs, tokens and memory of a configuration.

    Raises:
        ValueError: If the configuration does not describe a model that can be built.
    """
    # Both implementations are made of plain matrix products, which the counter sees; faster ones it takes for nothing.
    plain = {"attn_implementation": "eager", "experts_implementation": "batched_mm"}
    with torch.device("meta"):
        model = FineCaptionForConditionalGeneration._from_config(copy.deepcopy(config), **plain)
    model.eval()
    flops, prefix_values = _count_flops(model)
    return ModelInfo(
        parameters=_count_parameters(model),
        flops=flops,
        tokens_per_region=config.image_seq_length,
        weight_bytes=_weight_bytes(model),
        prefix_cache_bytes={
            dtype: None if prefix_values is None else size * prefix_values for dtype, size in BYTES_PER_VALUE.items()
        },
        trainable_parameters={name: _size(chosen) for name, chosen in _stages(model).items()},
    )


def weights_info(source: str | os.PathLike[str]) -> WeightsInfo:
    """Count what the weights of a model of transformers, in a folder or on the Hub, take; none are read.

    Raises:
        OSError: If there is no such folder or repository.
        ValueError: If transformers has no image-text-to-text model of its configuration.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(source, local_files_only=os.path.isdir(source))
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
    except ValueError as error:
        raise ValueError(
            f"transformers has no image-text-to-text model of type {config.model_type!r}. Give a FineCaption "
            "checkpoint, or a model that takes pictures and text."
        ) from error
    number = _size(model.parameters())
    return WeightsInfo(number, {dtype: size * number for dtype, size in BYTES_PER_VALUE.items()})


def _size(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() for parameter in set(parameters))


def _parts(model: FineCaptionForConditionalGeneration) -> dict[str, list[nn.Parameter]]:
    parts = {name: list(part.parameters()) for name, part in model.model.named_children()}
    parts["language_model"] += model.lm_head.parameters()
    return parts


def _count_parameters(model: FineCaptionForConditionalGeneration) -> dict[str, int]:
    counts = {name: _size(parameters) for name, parameters in _parts(model).items()}
    return {**counts, "total": _size(model.parameters())}


def _stages(model: FineCaptionForConditionalGeneration) -> dict[str, list[nn.Parameter]]:
    """What trains in each stage of the paper (arXiv 2411.15411): the adapter, the alpha convolution, everything."""
    parameters = dict(model.named_parameters())
    stages = {}
    for number, stage in STAGES.items():
        try:
            chosen = [parameters[name] for name in stage.select(parameters)]
        except StageError:  # a model without mask input has nothing for stage 2
            chosen = []
        stages[f"stage_{number}_{stage.name}"] = chosen
    return stages


def _weight_bytes(model: FineCaptionForConditionalGeneration) -> dict[str, int]:
    total = _size(model.parameters())
    linear = {module.weight for module in model.model.language_model.modules() if isinstance(module, nn.Linear)} - {
        model.lm_head.weight
    }
    rest = BYTES_PER_VALUE["bfloat16"] * (total - _size(linear))
    return {
        **{dtype: size * total for dtype, size in BYTES_PER_VALUE.items()},
        "int8": rest + sum(weight.numel() + SCALE_BYTES * weight.shape[0] for weight in linear),
        "int4": rest
        + sum((weight.numel() + 1) // 2 + SCALE_BYTES * -(-weight.numel() // INT4_GROUP) for weight in linear),
    }


@torch.no_grad()
def _count_flops(model: FineCaptionForConditionalGeneration) -> tuple[dict[str, int | None], int | None]:
    """FLOPs by part, and the number of values that the language model keeps of a prefix."""
    config, parts = model.config, model.model
    low = torch.empty(1, 3, config.vision_config.image_size, config.vision_config.image_size, device="meta")
    mask = low[:, :1] if config.use_mask else None
    towers = {"vision_tower": _flops(lambda: parts.vision_tower(low, mask_values=mask))}
    high = torch.empty(1, 3, config.high_res_image_size, config.high_res_image_size, device="meta")
    if config.use_convnext:
        towers["convnext_tower"] = _flops(lambda: parts.convnext_tower(high))
    if config.use_sam:
        towers["sam_tower"] = _flops(lambda: parts.sam_tower(high))
    features = torch.empty(1, config.image_seq_length, config.fused_feature_size, device="meta")
    adapter = _flops(lambda: parts.adapter(features))
    prefill, token, prefix_values = _language_model_flops(model)
    next_region = None if prefill is None else towers["vision_tower"] + adapter + prefill
    flops = {
        **towers,
        "adapter": adapter,
        "language_model": prefill,
        "first_region": None if next_region is None else next_region + sum(towers.get(it, 0) for it in IMAGE_TOWERS),
        "next_region": next_region,
        "token": token,
    }
    return flops, prefix_values


def _flops(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _language_model_flops(
    model: FineCaptionForConditionalGeneration,
) -> tuple[int | None, int | None, int | None]:
    """Prefill of one prefix, one token behind it, each with the logits of its last position; cached values."""
    language_model = model.model.language_model
    width = model.config.text_config.hidden_size
    cache: list[Any] = [None]

    def step(length: int) -> None:
        embeddings = torch.empty(1, length, width, device="meta")
        output = language_model(inputs_embeds=embeddings, use_cache=True, **{CACHE_ARGUMENT: cache[0]})
        model.lm_head(output.last_hidden_state[:, -1:])
        cache[0] = output[CACHE_ARGUMENT]

    try:
        prefill = _flops(lambda: step(model.config.image_seq_length))
        values = sum(
            value.numel() for layer in cache[0].layers for value in vars(layer).values() if torch.is_tensor(value)
        )
        return prefill, _flops(lambda: step(1)), values
    except RuntimeError:
        # A path that depends on values, such as positions scaled by the longest one: meta tensors have none.
        return None, None, None
