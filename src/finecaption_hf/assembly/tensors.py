"""Tensors in files, one at a time: safetensors, and pickles of which only tensors are read.

A file is mapped, not loaded: what counts as used memory while it is open is at most its own size, and closing it gives
that back. So whoever keeps one file open at a time stays below the largest shard.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from .errors import AssemblyError
from .sources import PICKLES

# Names under which training scripts keep the tensors inside of a larger file.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorInfo(NamedTuple):
    """A tensor in a file: where it is, its shape, its dtype (`None`: none of floating point with 16 bits or more)."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | None


class TensorFile:
    """An open file; `read` gives a tensor that stays valid while the file is open."""

    def __init__(self, path: Path, content: Any) -> None:
        self.path = path
        self._content = content

    def keys(self) -> list[str]:
        return list(self._content.keys())

    def info(self, key: str) -> TensorInfo:
        if isinstance(self._content, Mapping):
            tensor = self._content[key]
            return TensorInfo(self.path, tuple(tensor.shape), _known(tensor.dtype))
        view = self._content.get_slice(key)
        return TensorInfo(self.path, tuple(view.get_shape()), _DTYPES.get(view.get_dtype()))

    def read(self, key: str) -> torch.Tensor:
        if isinstance(self._content, Mapping):
            return self._content[key].detach()
        return self._content.get_tensor(key)


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a file of tensors; nothing in it is executed.

    Raises:
        AssemblyError: If it cannot be read, or a pickle holds anything but tensors and plain containers.
    """
    if path.suffix in PICKLES:
        yield TensorFile(path, _tensors_of_pickle(path))
        return
    try:
        file = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise AssemblyError(f"{path} cannot be read as safetensors: {error}.") from error
    with file as content:
        yield TensorFile(path, content)


def _tensors_of_pickle(path: Path) -> dict[str, torch.Tensor]:
    load: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        try:
            content = torch.load(path, mmap=True, **load)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            content = torch.load(path, **load)  # the format before torch 1.6 cannot be mapped
    except (UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise AssemblyError(
            f"{path} cannot be read as tensors alone: {reason}. Code in a file is never executed; convert it to "
            "safetensors where you trust it."
        ) from error
    while isinstance(content, Mapping):
        inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise AssemblyError(f"{path} holds no tensors by name, but {type(content).__name__}.")
    other = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise AssemblyError(f"{path} holds what is no tensor under {', '.join(other[:8])}. Give its state dict alone.")
    return {str(key): value for key, value in content.items()}


def _known(dtype: torch.dtype) -> torch.dtype | None:
    return dtype if dtype in _DTYPES.values() else None


def list_tensors(files: tuple[Path, ...]) -> dict[str, TensorInfo]:
    """Name -> place, shape and dtype of all tensors of a part.

    Raises:
        AssemblyError: If a name occurs in two files.
    """
    found: dict[str, TensorInfo] = {}
    for path in files:
        with open_tensors(path) as file:
            for key in file.keys():  # noqa: SIM118  (no mapping)
                if key in found:
                    raise AssemblyError(f"The tensor {key} is in {found[key].file.name} and in {path.name}.")
                found[key] = file.info(key)
    return found
