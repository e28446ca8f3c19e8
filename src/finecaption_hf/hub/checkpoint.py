"""The files that a checkpoint on the Hub is made of."""

import hashlib
import json
import mmap
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .errors import HubError

PICTURE = re.compile(r"[\w-]+\.(png|jpg|jpeg|webp|svg)")
LICENCE_TEXT = re.compile(r"(licences/[\w.-]+/)?(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)([._-][\w.-]+)?")
"""Beside the weights, or where an earlier push put those of parts."""

CODE = "*_finecaption.py"
_WEIGHTS = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")
_PROCESSOR = ("processor_config.json", "tokenizer_config.json")
# What else lies in the folder stays: optimizer states, pickled training arguments (which can hold a token), logs.
_TRAVELS = (
    *_WEIGHTS,
    *_PROCESSOR,
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "assembly.json",
    "score.json",
    CODE,
)
_CLASS = "FineCaptionForConditionalGeneration"


def _is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in patterns)


def _travels(name: str) -> bool:
    return bool(_is_one_of(name, _TRAVELS) or PICTURE.fullmatch(name) or LICENCE_TEXT.fullmatch(name))


def is_replaced(name: str) -> bool:
    """Whether a file of a repository is weights or code, which go with the checkpoint that they belong to."""
    return _is_one_of(name, (*_WEIGHTS, CODE, "pytorch_model*.bin", "pytorch_model*.index.json"))


def checkpoint_files(folder: Path) -> list[str]:
    """Names of the files that make up a checkpoint; `licences/` holds the texts of its parts.

    Raises:
        HubError: If one is missing or cut short, or the checkpoint is of another model.
    """
    if not (folder / "config.json").is_file():
        inside = _checkpoints_in(folder)
        if inside:
            listed = ", ".join(map(str, inside[:6])) + (f" and {len(inside) - 6} more" if len(inside) > 6 else "")
            raise HubError(f"{folder} is no checkpoint, but there are some in it: {listed}. Give one of them.")
        raise HubError(f"{folder} is no checkpoint: it has no config.json. Give the folder that holds the weights.")
    config = read_json(folder / "config.json")
    if config.get("model_type") != "finecaption":
        raise HubError(f"{folder} holds a model of type {config.get('model_type')!r}. Give a FineCaption checkpoint.")
    classes = config.get("architectures") or [_CLASS]
    if classes != [_CLASS]:
        raise HubError(
            f"{folder} holds a {classes[0]}, which cannot describe anything by itself. Push the {_CLASS} that it "
            "belongs to."
        )
    paths = [*folder.glob("*"), *folder.glob("licences/*/*")]
    names = sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())
    names = [name for name in names if _travels(name)]
    index = folder / "model.safetensors.index.json"
    needed = {*_PROCESSOR, *(_shards(index) if index.is_file() else ["model.safetensors"]), *_code(folder, config)}
    missing = sorted(needed - set(names))
    if missing:
        raise HubError(
            f"{folder} lacks {', '.join(missing)}. Save model and processor into one folder with save_pretrained."
        )
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "np") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise HubError(
                f"{path} is damaged or was not written to its end ({error}). Save the checkpoint again."
            ) from error
    return names


def _shards(index: Path) -> list[str]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise HubError(f"{index} names no files of weights. Save the checkpoint again.")
    return list(files.values())


def _checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a training run, the one to be preferred first: the last stage's final one."""

    def rank(path: Path) -> tuple[bool, int, int]:
        names = path.relative_to(folder).parts
        stage, step = (re.match(r"(?:checkpoint-)?(\d+)", name) for name in (names[0], names[-1]))
        return path.name != "final", -int(stage[1]) if stage and len(names) > 1 else 0, -int(step[1]) if step else 0

    found = [path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/config.json")]
    return sorted((path for path in found if not path.name.endswith(".partial")), key=rank)


def _code(folder: Path, config: dict[str, Any]) -> set[str]:
    """Files of code that the Auto classes and the pipeline need, with what those import."""
    references = list((config.get("auto_map") or {}).values())
    references += [entry["impl"] for entry in (config.get("custom_pipelines") or {}).values()]
    if (folder / "processor_config.json").is_file():
        references += list((read_json(folder / "processor_config.json").get("auto_map") or {}).values())
    if not references:
        raise HubError(f"{folder}/config.json names no code (auto_map). Save the model with save_pretrained.")
    needed: set[str] = set()
    queue = []
    for reference in references:
        if "--" in reference:
            raise HubError(
                f"{folder} takes its code from the repository {reference.partition('--')[0]}, which may change or go. "
                f"`finecaption renew {folder}` lays the code beside it."
            )
        queue.append(f"{reference.partition('.')[0]}.py")
    while queue:
        name = queue.pop()
        if name not in needed:
            needed.add(name)
            if (folder / name).is_file():
                text = (folder / name).read_text(encoding="utf-8")
                queue += [f"{module}.py" for module in re.findall(r"^\s*from \.(\w+) import", text, re.MULTILINE)]
    return needed


def weights_digest(folder: Path, names: Iterable[str]) -> str:
    """Tells weights apart: names, types, shapes and values of all tensors, in however many files they lie.

    Args:
        folder: of the checkpoint.
        names: of its files, as `checkpoint_files` gives them.
    """
    found = {}
    for path in (folder / name for name in names if name.endswith(".safetensors")):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            start = 8 + int.from_bytes(mapped[:8], "little")
            for name, entry in json.loads(mapped[8:start]).items():
                if name != "__metadata__":
                    begin, end = (start + offset for offset in entry["data_offsets"])
                    with memoryview(mapped) as whole, whole[begin:end] as values:
                        found[name] = [entry["dtype"], entry["shape"], hashlib.sha256(values).hexdigest()]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def read_json(path: Path, refusal: type[ValueError] = HubError) -> dict[str, Any]:
    """The object in a file of JSON; what holds none ends in an error of the class `refusal`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise refusal(f"{path} is no JSON ({error}). Save it again, or fetch it anew.") from error
    if not isinstance(values, dict):
        raise refusal(f"{path} holds no JSON object. Save it again, or fetch it anew.")
    return values


def read_text(path: Path) -> str:
    """A text file without the mark that some editors begin it with."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise HubError(f"{path} is no text in UTF-8 ({error}). Save it as that.") from error
