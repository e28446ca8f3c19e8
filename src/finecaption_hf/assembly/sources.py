"""Where a part comes from: a Hub id, a local folder or a file, at a revision -> files with hashes and a licence."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import OfflineModeIsEnabled

from ..hub.checkpoint import read_json
from ..hub.front_matter import card_fields, stated_licence
from .errors import AssemblyError

SAFETENSORS = (".safetensors",)
PICKLES = (".bin", ".pth", ".pt")
# Well-known weight files, the preferred first: no pickle where there is another choice.
_WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
# What a folder is read for besides weights. Python files are not among them: nothing of a part is executed.
_SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "README.md")


@dataclass(frozen=True)
class Source:
    """The files of one part.

    Args:
        name (`str`): as it is shown: the Hub id, or the last part of a local path.
        revision (`str`, *optional*): the commit of a Hub repository.
        folder (`Path`, *optional*): where its configuration lies; `None` for a bare file.
        weights (`tuple[Path, ...]`): the files with tensors.
        licence (`str`, *optional*): as its card states it.
        is_hub (`bool`): whether it came from the Hub.
    """

    name: str
    revision: str | None
    folder: Path | None
    weights: tuple[Path, ...]
    licence: str | None
    is_hub: bool
    _config: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """Content of its config.json.

        Raises:
            AssemblyError: If there is none.
        """
        if not self._config:
            if self.folder is None or not (self.folder / "config.json").is_file():
                raise AssemblyError(f"{self.name} has no config.json. Give the folder or Hub id that has one.")
            self._config.update(read_json(self.folder / "config.json", AssemblyError))
        return self._config

    @property
    def has_config(self) -> bool:
        return self.folder is not None and (self.folder / "config.json").is_file()


def find_source(given: str, *, need_weights: bool = True) -> Source:
    """Find the files of a part, fetching them from the Hub where needed.

    Args:
        given (`str`): `PATH` of a file or folder, or `owner/name`, `owner/name@revision`, or
            `owner/name:file@revision` for one file of a repository. What exists locally is taken as local.
        need_weights (`bool`): whether tensors are wanted; without, only configuration and tokenizer are fetched.

    Raises:
        AssemblyError: If there is no such part, or it has no weights that can be read.
    """
    path = Path(given).expanduser()
    if path.is_file():
        folder = path.parent if (path.parent / "config.json").is_file() else None
        return Source(path.name, None, folder, (_checked_file(path),), _licence(folder), False)
    if path.is_dir():
        weights = _weights_of(path) if need_weights else ()
        return Source(path.resolve().name, None, path, weights, _licence(path), False)
    match = re.fullmatch(r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<file>[\w./-]+))?(@(?P<revision>[\w./-]+))?", given)
    if match is None or given.startswith((".", "/", "~")):
        raise AssemblyError(
            f"{given} is neither a file, nor a folder, nor the id of a Hub repository (owner/name, or "
            "owner/name@revision)."
        )
    return _from_hub(match["id"], match["file"], match["revision"], need_weights)


def _from_hub(repo: str, file: str | None, revision: str | None, need_weights: bool) -> Source:
    patterns = list(_SMALL_FILES)
    if need_weights:
        names = [file] if file else _remote_weights(repo, revision)
        patterns += names
    folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    if not need_weights:
        weights: tuple[Path, ...] = ()
    elif file:
        weights = (_checked_file(folder / file),)
    else:
        weights = _weights_of(folder)
    # The cache keeps a snapshot under the name of its commit.
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision
    return Source(f"{repo}:{file}" if file else repo, commit, folder, weights, _licence(folder), True)


def _remote_weights(repo: str, revision: str | None) -> list[str]:
    """Names of the weight files to fetch: one format of those that the repository has."""
    try:
        names = HfApi().list_repo_files(repo, revision=revision)
    except OfflineModeIsEnabled:  # then the cache gives what it has
        return [f"*{suffix}" for suffix in SAFETENSORS + PICKLES]
    for known in _WEIGHTS:
        if known not in names:
            continue
        if not known.endswith(".index.json"):
            return [known]
        stem, suffix = known.removesuffix(".index.json").rsplit(".", 1)
        return [name for name in names if re.fullmatch(rf"{re.escape(stem)}-\d+-of-\d+\.{suffix}", name)]
    return [name for name in names if "/" not in name and name.endswith(SAFETENSORS + PICKLES)]


def _weights_of(folder: Path) -> tuple[Path, ...]:
    for known in _WEIGHTS:
        path = folder / known
        if not path.is_file():
            continue
        if not known.endswith(".index.json"):
            return (path,)
        names = sorted(set(read_json(path, AssemblyError).get("weight_map", {}).values()))
        foreign = [name for name in names if Path(name).name != name]
        if not names or foreign:
            raise AssemblyError(f"{path} names no shards, or files outside of its folder: {foreign}.")
        return tuple(_checked_file(folder / name) for name in names)
    for suffixes in (SAFETENSORS, PICKLES):
        found = sorted(path for path in folder.iterdir() if path.suffix in suffixes)
        if len(found) == 1:
            return (found[0],)
        if found:
            listed = ", ".join(path.name for path in found)
            raise AssemblyError(f"{folder} has several weight files ({listed}). Give the one that is meant.")
    raise AssemblyError(f"{folder} has no weights: no {', no '.join(_WEIGHTS[:2])}, no .bin, .pth or .pt file.")


def _checked_file(path: Path) -> Path:
    if not path.is_file():
        raise AssemblyError(f"The weight file {path} is missing.")
    if path.suffix not in SAFETENSORS + PICKLES:
        raise AssemblyError(f"{path} is no weight file: needed is one of {', '.join(SAFETENSORS + PICKLES)}.")
    return path


def _licence(folder: Path | None) -> str | None:
    return None if folder is None else stated_licence(card_fields(folder / "README.md"))


def sha256(path: Path) -> str:
    """Hash of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
