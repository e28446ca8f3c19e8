"""A checkpoint whose language model holds its weights in 8 or 4 bits, as bitsandbytes quantises and serialises them."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, BitsAndBytesConfig

from .. import install_hint, register
from ..hub.card import model_card
from ..hub.checkpoint import LICENCE_TEXT, checkpoint_files, read_json
from ..hub.provenance import FILE, read_provenance
from ..modeling_finecaption import FineCaptionForConditionalGeneration
from .errors import AssemblyError
from .writer import atomic_folder

SCHEMES: dict[str, dict[str, Any]] = {
    "int8": {"load_in_8bit": True},
    "int4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    },
}
KEPT = ["lm_head", "vision_tower", "convnext_tower", "sam_tower", "adapter"]


def quantise(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    scheme: str,
    *,
    measure: Callable[[Path], Mapping[str, Any]] | None = None,
) -> Path:
    """Write a checkpoint with the linear layers of its language model quantised and all else in bfloat16.

    Args:
        folder: a checkpoint.
        out: the new folder, which gets its name when all of it is there.
        scheme: `"int8"` (LLM.int8) or `"int4"` (NF4).
        measure: gets the folder of the new checkpoint, and gives the report of its evaluation for the card.

    Returns:
        `out`.

    Raises:
        AssemblyError: If the checkpoint is quantised already, or `out` exists.
        HubError: If `folder` is no whole checkpoint.
        ImportError: If bitsandbytes is missing.
    """
    source, target = Path(folder), Path(out)
    try:
        import bitsandbytes  # noqa: F401  (what transformers quantises with)
    except ImportError as error:
        raise ImportError(f"bitsandbytes is not installed. {install_hint('train')}.") from error
    names = checkpoint_files(source)
    if "quantization_config" in read_json(source / "config.json", AssemblyError):
        raise AssemblyError(f"{source} is quantised already. Give the checkpoint that it was made from.")
    register()
    with atomic_folder(target) as partial:
        config = BitsAndBytesConfig(**SCHEMES[scheme], llm_int8_skip_modules=KEPT)
        model = FineCaptionForConditionalGeneration.from_pretrained(
            source, quantization_config=config, dtype=torch.bfloat16, device_map="cpu", local_files_only=True
        )
        model.save_pretrained(partial)
        del model
        AutoProcessor.from_pretrained(source, local_files_only=True).save_pretrained(partial)
        for name in filter(LICENCE_TEXT.fullmatch, names):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, partial / name)
        provenance = read_provenance(source)
        (partial / FILE).write_text(provenance.to_json(), encoding="utf-8")
        report = None if measure is None else measure(partial)
        card = model_card(partial, target.name, provenance, evaluation=report)
        (partial / "README.md").write_text(card, encoding="utf-8")
        checkpoint_files(partial)  # all of it is there
    return target
