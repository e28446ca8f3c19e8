"""The code of a checkpoint that was saved earlier, brought up to what this package has today; its weights stay."""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import EMBEDDED_CHECKPOINT
from ..resuming import SEAL, whole_file
from .checkpoint import CODE, read_json
from .errors import HubError
from .repository import Repository

_CONFIGURATIONS = ("config.json", "processor_config.json")


@dataclass(frozen=True)
class Renewed:
    """What a renewal changes: names of files; none where the checkpoint is up to date.

    Args:
        replaced, added, deleted: names of files.
        commit_url: of the commit on the Hub; `None` for a folder, and where nothing was changed.
    """

    replaced: list[str]
    added: list[str]
    deleted: list[str]
    commit_url: str | None = None

    @property
    def is_up_to_date(self) -> bool:
        return not (self.replaced or self.added or self.deleted)


def renew(
    checkpoint: str | os.PathLike[str],
    *,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    token: bool | str | None = None,
) -> Renewed:
    """Give a checkpoint the code files of this package, and the entries of its configurations that name them.

    Weights, card and everything else in the configurations stay. On the Hub it is one commit; a folder can be loaded
    at every moment, and after an interruption the same call goes on.

    Args:
        checkpoint: a folder, or `owner/name` on the Hub.
        revision: the branch on the Hub; by default `main`.
        create_pr: propose the commit on the Hub instead of making it.
        dry_run: only tell what would be changed.
        token: by default the one of `hf auth login` or HF_TOKEN.

    Raises:
        HubError: If it is no FineCaption checkpoint, or the Hub cannot be reached or refuses.
    """
    folder = Path(checkpoint)
    if folder.is_dir():
        if revision is not None or create_pr:
            raise HubError(f"{checkpoint} is a folder, which has no branches. Leave revision and create_pr out.")
        files, deleted = _files(folder, str(checkpoint))
        renewed = _compared(folder, files, deleted)
        if not dry_run and not renewed.is_up_to_date:
            _write(folder, files)
        return renewed
    return _renew_on_hub(str(checkpoint), revision, create_pr, dry_run, token)


def _renew_on_hub(repo: str, revision: str | None, create_pr: bool, dry_run: bool, token: bool | str | None) -> Renewed:
    try:
        target = Repository(repo, revision=revision, create_pr=create_pr, token=token)
        commit = target.state().commit
    except HubError as error:
        raise HubError(f"There is no folder {repo}; on the Hub: {error}") from None
    with target.errors():
        folder = Path(
            target.api.snapshot_download(target.name, revision=commit, allow_patterns=[CODE, *_CONFIGURATIONS])
        )
    files, deleted = _files(folder, target.name)
    renewed = _compared(folder, files, deleted)
    if dry_run or renewed.is_up_to_date:
        return renewed
    contents = {name: files[name] for name in [*renewed.replaced, *renewed.added]}
    # On the commit that was looked at: what arrives meanwhile is not written over.
    pushed = target.commit(contents, deleted, "Renew the code of FineCaption", parent=commit)
    return replace(renewed, commit_url=pushed.commit_url)


def _files(folder: Path, name: str) -> tuple[dict[str, bytes], list[str]]:
    """What code and configurations of a checkpoint have to be, and the names of code that goes."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    if config.get("model_type") != "finecaption":
        what = f"its model_type is {config.get('model_type')!r}" if config else "it has no config.json"
        raise HubError(f"{name} is no FineCaption checkpoint: {what}. Give the folder or repository of one.")
    # What stands at the package's root travels, and the embedded checkpoint is as this package saves one.
    files = {path.name: path.read_bytes() for path in sorted(EMBEDDED_CHECKPOINT.parents[1].glob(CODE))}
    deleted = sorted(path.name for path in folder.glob(CODE) if path.name not in files)
    for file in _CONFIGURATIONS:
        if (folder / file).is_file():
            files[file] = _changed(folder / file, partial(_with_entries, read_json(EMBEDDED_CHECKPOINT / file)))
    if (folder / SEAL).is_file():
        sizes = {name: len(content) for name, content in files.items()}
        files[SEAL] = _changed(folder / SEAL, partial(_with_sizes, sizes, deleted))
    return files, deleted


def _changed(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    """The content of a file of JSON after a change; its very bytes where that changes nothing."""
    values = read_json(path)
    changed = change(values)
    return path.read_bytes() if changed == values else f"{json.dumps(changed, indent=2, ensure_ascii=False)}\n".encode()


def _with_entries(ours: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose entries name the code that ours names; entries for other people's code stay."""
    merged = dict(values)
    for key in ("auto_map", "custom_pipelines"):
        if key in ours:
            kept = {name: entry for name, entry in (values.get(key) or {}).items() if not _names_our_code(entry)}
            merged[key] = {**kept, **ours[key]}
    if isinstance(values.get("image_processor"), dict) and "image_processor" in ours:
        merged["image_processor"] = _with_entries(ours["image_processor"], values["image_processor"])
    return merged


def _names_our_code(entry: Any) -> bool:
    return "_finecaption." in json.dumps(entry)


def _with_sizes(sizes: Mapping[str, int], deleted: list[str], seal: Mapping[str, Any]) -> dict[str, Any]:
    """Otherwise training would take the checkpoint for one that was torn, and discard it."""
    kept = {name: size for name, size in seal["files"].items() if name not in deleted}
    return {**seal, "files": {**kept, **sizes}}


def _compared(folder: Path, files: Mapping[str, bytes], deleted: list[str]) -> Renewed:
    changed = [name for name, content in sorted(files.items()) if not _is(folder / name, content)]
    replaced = [name for name in changed if (folder / name).is_file()]
    return Renewed(replaced, [name for name in changed if name not in replaced], deleted)


def _is(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


_MODULE = re.compile(r"\b(\w+)_finecaption(?=\.py\b|\.[A-Z]| import )")


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files so that the folder can be loaded at every moment, whenever this ends.

    No order of replacing the code files one by one would do: new ones need names of others that are still old. But a
    configuration is one file and says where its code is. So the new code is first laid beside the old under other names
    and the configurations are sent there; then it takes its own names, and they are sent back.
    """
    code = {name: content for name, content in files.items() if name.endswith(".py")}
    others = {name: content for name, content in files.items() if name not in code}
    if not all(_is(folder / name, content) for name, content in code.items()):
        for name, content in [*code.items(), *((name, others[name]) for name in _CONFIGURATIONS if name in others)]:
            _replace(folder / _MODULE.sub(r"\1_renewed_finecaption", name), _beside(content))
    for name, content in [*code.items(), *others.items()]:
        _replace(folder / name, content)
    for path in folder.glob(CODE):
        if path.name not in code:
            path.unlink()


def _beside(content: bytes) -> bytes:
    return _MODULE.sub(r"\1_renewed_finecaption", content.decode()).encode()


def _replace(path: Path, content: bytes) -> None:
    """A link is replaced, not what it points to; what is as it should be is left alone."""
    if not _is(path, content):
        with whole_file(path) as file:
            file.write(content)
