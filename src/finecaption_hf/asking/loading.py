"""Load a FineCaption checkpoint."""

import json
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from .. import EMBEDDED_CHECKPOINT, register
from ..prompts_finecaption import no_such

if TYPE_CHECKING:
    from ..modeling_finecaption import FineCaptionForConditionalGeneration
    from ..processing_finecaption import FineCaptionProcessor

_DEVICES = ("cpu", "cuda", "mps", "xpu")  # those that people name; torch knows more


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    **options: Any,
) -> "tuple[FineCaptionForConditionalGeneration, FineCaptionProcessor]":
    """Load a FineCaption checkpoint with the classes of this package; code that lies beside the weights is not run.

    Args:
        model: a folder or the id of a Hub repository, of a checkpoint or of an adapter (LoRA, DoRA, ..) that peft saved
            and whose configuration names its checkpoint; `None` means the checkpoint that comes with the package.
        device: where the model goes; `None` means CUDA where there is one, else the CPU.
        dtype: such as `"bfloat16"`; `None` means the one in which the weights were saved.
        revision: branch, tag or commit of a Hub repository.
        attn_implementation: such as `"eager"`; `None` means what the library takes.
        adapter: a folder or Hub id of an adapter for this checkpoint. It is merged into the weights; to switch between
            several, ask a `PeftModel` instead, see docs/engine.md.
        **options: further ones of the model's `from_pretrained`.

    Returns:
        The model in evaluation mode and its processor, the adapter's where that brings one.

    Raises:
        ImportError: If the installed transformers is outside the supported range, or peft is needed and missing.
        OSError: If there is no such folder or repository.
        ValueError: If it holds a model of another kind, or the device cannot be used.
    """
    register()
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.integrations import is_deepspeed_zero3_enabled

    name = os.fspath(EMBEDDED_CHECKPOINT if model is None else model)
    # A folder needs no network, and without one the library would wait for it.
    source: dict[str, Any] = {"revision": revision, "local_files_only": os.path.isdir(name)}
    _check_name(name)
    if (base := _base_of(name, source)) is not None:
        options |= {"device": device, "dtype": dtype, "attn_implementation": attn_implementation}
        parts = _with_adapter(*load(base[0], revision=base[1], **options), name, source)
        return parts if adapter is None else _with_adapter(*parts, os.fspath(adapter), {})
    config = AutoConfig.from_pretrained(name, **source)
    if config.model_type != "finecaption":
        raise ValueError(
            f"{name} holds a model of type {config.model_type!r}, not 'finecaption'. Give a FineCaption checkpoint."
        )
    device = usable_device(device)
    # All of one commit, also where another arrives meanwhile.
    cached = None if os.path.isdir(name) else try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        source["revision"] = os.path.basename(os.path.dirname(cached))
    zero3 = is_deepspeed_zero3_enabled()
    if not zero3:  # which deals the weights out to its processes as they are loaded
        options["device_map"] = {"": device}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    loaded = AutoModelForImageTextToText.from_pretrained(
        name, config=config, dtype=dtype or "auto", **source, **options
    )
    if zero3:
        # Here the library also keeps rules for names that this checkpoint did not need. It would apply them in reverse
        # when it saves, and write model.language_model.model.layers.
        loaded._weight_conversions = [rule for rule in loaded._weight_conversions if rule.was_used()]
    if getattr(loaded, "is_loaded_in_8bit", False):  # else a line for every layer and step: bfloat16 becomes float16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    parts = loaded.eval(), AutoProcessor.from_pretrained(name, **source)
    return parts if adapter is None else _with_adapter(*parts, os.fspath(adapter), {})


def usable_device(device: str | torch.device | None) -> str | torch.device:
    """`device` itself; for `None`, CUDA where there is one, else the CPU.

    Raises:
        ValueError: If there is no such device, or none on this machine.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        if "device string" in reason:
            if str(device) == "gpu":
                raise ValueError(
                    "There is no device 'gpu'. A GPU is cuda (of NVIDIA or AMD), mps (of Apple) or xpu (of Intel)."
                ) from error
            raise ValueError(no_such("device", str(device), _DEVICES)) from error
        raise ValueError(
            f"The device {str(device)!r} cannot be used ({reason}). Give another, such as 'cpu'."
        ) from error
    return device


def load_processor(model: str | os.PathLike[str] | None = None) -> Any:
    """The processor alone, of what `load` takes as a model."""
    register()
    from transformers import AutoProcessor

    name = os.fspath(EMBEDDED_CHECKPOINT if model is None else model)
    base = None if _has(name, "processor_config.json", {}) else _base_of(name, {})
    return AutoProcessor.from_pretrained(name) if base is None else load_processor(base[0])


def read_config(model: str | os.PathLike[str], revision: str | None = None) -> dict[str, Any]:
    """What the config.json of a checkpoint says; for an adapter, that of its checkpoint. No code is run.

    Raises:
        OSError: If there is no such folder or repository, or no config.json in it.
    """
    from transformers import PretrainedConfig

    name = os.fspath(model)
    _check_name(name)
    source: dict[str, Any] = {"revision": revision, "local_files_only": os.path.isdir(name)}
    if (base := _base_of(name, source)) is not None:
        return read_config(*base)
    config = PretrainedConfig.get_config_dict(name, **source)[0]
    if "model_type" not in config and "auto_map" not in config:
        raise FileNotFoundError(f"{name} has no config.json that tells the type of its model. Give the folder of one.")
    return config


def _check_name(name: str) -> None:
    if os.path.isfile(name):
        raise FileNotFoundError(f"{name} is a file. Give the folder of a checkpoint, or the id of a Hub repository.")
    if not os.path.isdir(name) and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise FileNotFoundError(f"{name} is neither a folder nor the id of a Hub repository (owner/name).")


def _has(name: str, file: str, source: dict[str, Any]) -> bool:
    return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **source) is not None


def _base_of(name: str, source: dict[str, Any]) -> tuple[str, str | None] | None:
    """The checkpoint that an adapter belongs to, and its revision; `None` where there is no adapter.

    Raises:
        FileNotFoundError: If it is not there.
    """
    path = find_adapter_config_file(name, **source)
    if path is None:
        return None
    described = json.loads(Path(path).read_text(encoding="utf-8"))
    base = described.get("base_model_name_or_path")
    if not base or (os.path.isabs(base) and not os.path.isdir(base)):
        raise FileNotFoundError(
            f"{name} is an adapter of {base or 'a checkpoint that it does not name'}, which is not there. Put the "
            "folder or Hub id of its checkpoint into adapter_config.json, as base_model_name_or_path."
        )
    return base, described.get("revision")


def _with_adapter(model: Any, processor: Any, name: str, source: dict[str, Any]) -> tuple[Any, Any]:
    """The model with an adapter merged into it, and the processor saved with the adapter where there is one.

    Raises:
        ImportError: If peft is missing.
        ValueError: If the adapter cannot be merged, or is one of another model.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ImportError(f"{name} is an adapter, which needs the package peft. Run: pip install peft") from error
    from transformers import AutoProcessor

    revision = {"revision": source.get("revision")}
    if PeftConfig.from_pretrained(name, **revision).is_prompt_learning:
        raise ValueError(f"{name} is an adapter of learned prompts, which cannot be merged. Give one of LoRA's kind.")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        merged = PeftModel.from_pretrained(model, name, **revision).merge_and_unload()
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{name} is an adapter that does not fit this checkpoint: {reason}") from error
    for parameter_name, parameter in merged.named_parameters():
        parameter.requires_grad_(parameter_name in trained)
    if _has(name, "processor_config.json", source):
        processor = AutoProcessor.from_pretrained(name, **source)
    return merged.eval(), processor
