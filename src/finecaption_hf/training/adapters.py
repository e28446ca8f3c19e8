"""LoRA in a stage: adapters put into the model in place, saved beside the merged weights.

A checkpoint holds the merged weights, so that it loads like any other, and the adapters under `adapter/`, from which
training continues: what was merged cannot be taken apart again.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..resuming import ResumeError
from .stages import LANGUAGE_MODEL_LINEAR, Stage, StageError

ADAPTER_FOLDER = "adapter"
_WEIGHTS = "adapter_model.safetensors"


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise StageError("A stage with adapters needs the package peft. Run: pip install peft") from error
    return peft


def add_adapters(model: nn.Module, stage: Stage) -> None:
    """Put LoRA layers into the model, in place.

    Raises:
        StageError: If peft is missing, a field is unknown to it, or `target_modules` matches no layer.
    """
    assert stage.peft is not None
    peft = _peft()
    fields = {"target_modules": LANGUAGE_MODEL_LINEAR, **stage.peft}
    try:
        config = peft.LoraConfig(**fields)
        peft.inject_adapter_in_model(config, model)
    except (TypeError, ValueError) as error:
        raise StageError(f"Stage {stage.name!r}: peft cannot be applied with {fields}: {error}") from error


def has_adapters(model: nn.Module) -> bool:
    return any(".lora_" in name for name, _ in model.named_parameters())


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The adapters' own tensors, by parameter name."""
    return {name: value.detach().contiguous() for name, value in model.named_parameters() if ".lora_" in name}


def save_adapters(model: nn.Module, stage: Stage, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(adapter_state(model), folder / _WEIGHTS, metadata={"format": "pt", "stage": stage.name})


def load_adapters(model: nn.Module, folder: Path) -> None:
    """Continue from saved adapters.

    Raises:
        ResumeError: If the file is missing or holds other tensors than the model's.
    """
    path = folder / _WEIGHTS
    if not path.is_file():
        raise ResumeError(f"{path} is missing, so the adapters cannot be continued.")
    saved, own = load_file(path), dict(model.named_parameters())
    wanted = set(adapter_state(model))
    if saved.keys() != wanted:
        raise ResumeError(
            f"{path} holds {len(saved)} tensors and the stage {len(wanted)}, or others. Was target_modules changed?"
        )
    with torch.no_grad():
        for name, value in saved.items():
            own[name].copy_(value)


def merged_state(model: Any) -> dict[str, torch.Tensor]:
    """All weights under their names without adapters, adapters merged, quantised ones in the model's precision."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_bnb_weight, get_bnb_param_type

    modules = dict(model.named_modules())
    quantised = {name for name, module in modules.items() if get_bnb_param_type(getattr(module, "weight", None))}
    scales = tuple(f"{name}." for name in quantised)
    kept = {f"{name}.{leaf}" for name in quantised for leaf in ("weight", "bias")}
    merged: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if ".lora_" in name or (name.startswith(scales) and name not in kept):
            continue
        owner, _, leaf = name.rpartition(".")
        plain = owner.removesuffix(".base_layer")
        if leaf == "weight" and owner in quantised:
            # peft's function for whole modules makes the weight of an 8 bit one anew, without scales to train on with.
            module = modules[owner]
            value = dequantize_bnb_weight(module.weight, state=getattr(module, "state", None)).to(model.dtype)
        layer = modules.get(plain)
        if leaf == "weight" and plain != owner and isinstance(layer, LoraLayer):
            with torch.no_grad():
                deltas = [layer.get_delta_weight(adapter) for adapter in layer.active_adapters]
                value = value + torch.stack(deltas).sum(0).to(value.dtype)
        merged[f"{plain}.{leaf}" if plain else leaf] = value
    return merged


def save_merged(model: Any, folder: Path) -> None:
    """Write the merged weights as a model without adapters and quantisation."""
    values = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
    with torch.device("meta"):  # it only lends its form
        plain = type(model)._from_config(type(model.config).from_dict(values))
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder, state_dict=merged_state(model))
