"""Load what answers questions about regions."""

import os
import re
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache

from .. import EMBEDDED_CHECKPOINT, register
from .finecaption import FineCaptionDescriber

if TYPE_CHECKING:
    from ..modeling_finecaption import FineCaptionForConditionalGeneration
    from ..processing_finecaption import FineCaptionProcessor


def load_describer(
    model: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    max_batch_tokens: int | None = None,
    max_new_tokens: int | None = None,
    **options: Any,
) -> FineCaptionDescriber:
    """Load a model that answers questions about regions.

    Args:
        model: a FineCaption checkpoint, see `load`.
        name: of the model, for reports; `None` means that of the folder or repository.
        max_batch_tokens, max_new_tokens: see `FineCaptionDescriber`.
        **options: further ones of `load`.

    Raises:
        ImportError, OSError, ValueError: As `load`.
    """
    loaded, processor = load(model, **options)
    called = EMBEDDED_CHECKPOINT.name if model is None else os.fspath(model)
    return FineCaptionDescriber(
        loaded, processor, name=name or called, max_batch_tokens=max_batch_tokens, max_new_tokens=max_new_tokens
    )


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    **options: Any,
) -> "tuple[FineCaptionForConditionalGeneration, FineCaptionProcessor]":
    """Load a FineCaption checkpoint with the classes of this package; code that lies beside the weights is not run.

    Args:
        model: a folder or the id of a Hub repository; `None` means the checkpoint that comes with the package.
        device: where the model goes; `None` means CUDA where there is one, else the CPU.
        dtype: such as `"bfloat16"`; `None` means the one in which the weights were saved.
        revision: branch, tag or commit of a Hub repository.
        attn_implementation: such as `"eager"`; `None` means what the library takes.
        **options: further ones of the model's `from_pretrained`.

    Returns:
        The model in evaluation mode and its processor.

    Raises:
        ImportError: If the installed transformers is outside the supported range.
        OSError: If there is no such folder or repository.
        ValueError: If it holds a model of another kind, or the device cannot be used.
    """
    register()
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    name = os.fspath(EMBEDDED_CHECKPOINT if model is None else model)
    # A folder needs no network, and without one the library would wait for it.
    source: dict[str, Any] = {"revision": revision, "local_files_only": os.path.isdir(name)}
    if not os.path.isdir(name) and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise FileNotFoundError(f"{name} is neither a folder nor the id of a Hub repository (owner/name).")
    config = AutoConfig.from_pretrained(name, **source)
    if config.model_type != "finecaption":
        raise ValueError(
            f"{name} holds a model of type {config.model_type!r}, not 'finecaption'. Give a FineCaption checkpoint."
        )
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"The device {str(device)!r} cannot be used ({reason}). Give another, such as 'cpu'."
        ) from error
    # All of one commit, also where another arrives meanwhile.
    cached = None if os.path.isdir(name) else try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        source["revision"] = os.path.basename(os.path.dirname(cached))
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    loaded = AutoModelForImageTextToText.from_pretrained(
        name, config=config, dtype=dtype or "auto", device_map={"": device}, **source, **options
    )
    return loaded.eval(), AutoProcessor.from_pretrained(name, **source)
