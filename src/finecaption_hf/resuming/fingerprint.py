"""Which model it is, for work that may only be gone on with by the same one."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SAMPLES = 16
_FILE_SAMPLES = 4096
_VOLATILE = ("transformers_version", "auto_map", "custom_pipelines", "dtype", "torch_dtype", "device", "use_cache")


def model_fingerprint(model: Any, processor: Any) -> str:
    """Tells models apart by their settings and by a few values of every tensor, without reading all of them."""
    digest = hashlib.sha256()
    settings = [
        model.config.to_dict(),
        model.generation_config.to_dict(),
        processor.image_processor.to_dict(),
        processor.chat_template,
        dict(processor.questions),
        processor.tokenizer(list(processor.questions.values()))["input_ids"],
    ]
    digest.update(json.dumps(_lasting(settings), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if type(tensor).__module__.startswith("torchao."):  # which has no views
            tensor = tensor.dequantize()
        flat = tensor.detach().reshape(-1)
        values = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].float().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode() + values.numpy().tobytes())
    return digest.hexdigest()


def _lasting(value: Any) -> Any:
    """Settings without what differs between machines and library versions."""
    if isinstance(value, Mapping):
        return {
            str(key): _lasting(entry)
            for key, entry in value.items()
            if not str(key).startswith("_") and key not in _VOLATILE
        }
    return [_lasting(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def files_fingerprint(folder: Path) -> str:
    """Tells checkpoints apart by their settings, and by names, places and a few bytes of their tensors."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".model", ".txt"):
            digest.update(f"{path.name} ".encode() + path.read_bytes())
        elif path.suffix == ".safetensors":
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                digest.update(f"{path.name} ".encode() + file.read(length))
                size = path.stat().st_size
                for number in range(_FILE_SAMPLES):
                    file.seek(8 + length + (size - 8 - length) * number // _FILE_SAMPLES)
                    digest.update(file.read(64))
    return digest.hexdigest()
