"""Shards of a checkpoint, written tensor by tensor, in a folder that gets its name only when it is complete."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .errors import AssemblyError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
INDEX = "model.safetensors.index.json"


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` on leaving without an error.

    It lies beside `out` under a name that begins with a dot and ends in `.unfinished`, and is removed after an error;
    a killed process leaves it there. `out` itself never holds half a checkpoint.

    Raises:
        AssemblyError: If `out` exists and is not an empty folder.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise AssemblyError(f"{out} exists already. Give another folder, or remove it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", suffix=".unfinished", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o777 & ~_umask())  # mkdtemp's is for its owner alone
        for path in folder.iterdir():
            _sync(path)
        _sync(folder)
        os.replace(folder, out)  # over an empty folder, too
        _sync(out.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    """Bring a file or folder to disk, so that the rename never overtakes its content."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder, on Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ShardWriter:
    """Writes tensors of known shapes in a known order, as `save_pretrained` names them.

    Headers are written first, so no more than one tensor is in memory.

    Args:
        folder (`Path`): where to.
        shapes (`dict[str, tuple[int, ...]]`): name -> shape, in the order in which tensors will come.
        dtype (`torch.dtype`): of all tensors.
        max_shard_bytes (`int`): tensors of one file; a larger tensor has a file of its own.
    """

    def __init__(
        self, folder: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, max_shard_bytes: int
    ) -> None:
        self.folder, self.dtype = folder, dtype
        self.sizes = {name: torch.Size(shape).numel() * dtype.itemsize for name, shape in shapes.items()}
        self.shapes = shapes
        shards: list[list[str]] = [[]]
        filled = 0
        for name, size in self.sizes.items():
            if shards[-1] and filled + size > max_shard_bytes:
                shards.append([])
                filled = 0
            shards[-1].append(name)
            filled += size
        self.shards = dict(zip(_shard_names(len(shards)), shards, strict=True))

    def write(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Write all tensors, given in the planned order.

        Raises:
            ValueError: If another tensor comes than the planned one.
        """
        stream = iter(tensors)
        for file_name, names in self.shards.items():
            with (self.folder / file_name).open("wb") as file:
                file.write(self._header(names))
                for name in names:
                    arrived, tensor = next(stream, ("the end", torch.empty(0)))
                    if arrived != name or tuple(tensor.shape) != self.shapes[name]:
                        raise ValueError(
                            f"{name} of shape {self.shapes[name]} was planned, but {arrived} of shape "
                            f"{tuple(tensor.shape)} came."
                        )
                    data = tensor.to(dtype=self.dtype).contiguous()
                    file.write(memoryview(data.flatten().view(torch.uint8).numpy()))
                    del tensor, data
        if len(self.shards) > 1:
            index = {
                "metadata": {
                    "total_parameters": sum(self.sizes.values()) // self.dtype.itemsize,
                    "total_size": sum(self.sizes.values()),
                },
                "weight_map": {name: file_name for file_name, names in self.shards.items() for name in names},
            }
            (self.folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _header(self, names: list[str]) -> bytes:
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for name in names:
            end = position + self.sizes[name]
            shape = list(self.shapes[name])
            entries[name] = {"dtype": _CODES[self.dtype], "shape": shape, "data_offsets": [position, end]}
            position = end
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def parse_size(text: str) -> int:
    """`"5GB"` -> bytes, with decimal units.

    Raises:
        AssemblyError: If it is no size.
    """
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = text.strip()[:-2], text.strip()[-2:].upper()
    try:
        size = int(float(number) * units[unit])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size < 1:
        raise AssemblyError(f"{text!r} is no size of a shard. Give a number with KB, MB or GB, such as 5GB.")
    return size
