"""Where the weights of a checkpoint come from, by the files that assembling and training leave beside them.

A push sums it up in provenance.json, which travels, so that a model fine-tuned from a Hub repository knows its parts as
well.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..resuming import SEAL
from .checkpoint import LICENCE_TEXT, read_json
from .errors import HubError, is_repo_id
from .front_matter import card_fields, stated_licence
from .licences import Licence
from .repository import Repository

FILE = "provenance.json"
_ASSEMBLY, _RUN = "assembly.json", "run.json"  # as assembly and training name them
ORIGIN, _ORIGIN_FILE = "origin", "origin.json"
"""Folder beside run.json, where training keeps what its base on the Hub said of itself, and the commit in it."""
_SAYS = rf"{re.escape(FILE)}|{re.escape(_ASSEMBLY)}|README\.md"
OF_A_BASE = re.compile(rf"{_SAYS}|{LICENCE_TEXT.pattern}")
"""What is looked at of a repository that weights come from."""
_FORMAT = 1
_MAX_STEPS_BACK = 32

Look = Callable[[str], Path | None]
"""Hub repository, with `@revision` where one was given -> a folder with what it says; `None` where it is not there."""


@dataclass(frozen=True)
class Provenance:
    """The origin of a checkpoint.

    Args:
        base_models: Hub repositories that weights come from.
        parts: pretrained parts: `role`, `source`, `revision`, `licence` (each text or `None`).
        initialised: what started from random weights.
        stages: stages of training, in their order: `name`, `trains`, `learning_rate`, `steps`, `data` (names); and
            `origin`, where one began with `owner/name@commit` of the Hub.
        licence: of a base model as its card states it, where its parts are not known.
    """

    base_models: list[str] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)
    initialised: list[str] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    licence: str | None = None

    @property
    def data(self) -> list[str]:
        """Names of all data sets that were trained on."""
        return list(dict.fromkeys(name for stage in self.stages for name in stage["data"]))

    def to_json(self, weights: str | None = None) -> str:
        """What provenance.json holds; `weights` is the digest of those that it and the card beside it are about."""
        values = {"format": _FORMAT, **({} if weights is None else {"weights": weights}), **asdict(self)}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    def licences(self) -> list[Licence]:
        """The terms of parts, base model and data, the strictest first."""
        # A part that gives its configuration alone gives nothing that a licence is about.
        found = [_part_licence(part) for part in self.parts if not part["role"].startswith("configuration of")]
        if not self.parts:
            found += [Licence(name, self.licence or "not stated") for name in self.base_models]
            if self.licence and not self.base_models:
                found.append(Licence("the checkpoint it was trained from", self.licence))
        found += [
            Licence(f"data: {name}", "noncommercial research")
            for name in self.data
            if "compositioncap" in re.sub(r"[^a-z]", "", name.lower())
        ]
        return sorted(dict.fromkeys(found), key=lambda licence: -licence.rank)


def _part_licence(part: Mapping[str, Any]) -> Licence:
    is_alpha_clip = "with its mask input" in part["role"]
    name = "research only (Alpha-CLIP weights)" if is_alpha_clip else part["licence"] or "not stated"
    return Licence(f"{part['role']} ({part['source']})", str(name))


def read_provenance(
    folder: str | os.PathLike[str],
    look: Look = lambda source: None,
    *,
    base_model: str | None = None,
    repo: str | None = None,
) -> Provenance:
    """Follow the files of a checkpoint folder back to where its weights come from.

    Args:
        folder: of the checkpoint; what training wrote lies in it and beside it.
        look: gets what Hub repositories that training started from say of themselves.
        base_model: folder or Hub repository that it was trained from, used where the files do not tell.
        repo: Hub repository that it goes to; what is trained further under its own name is not its own base.

    Raises:
        HubError: If a file of it is damaged.
    """
    return _read(Path(folder).resolve(), look, 0, repo, base_model)


def read_pushed(path: Path) -> tuple[Provenance, str | None]:
    """What a provenance.json says, and the digest of the weights that it was pushed with.

    Raises:
        HubError: If it is damaged.
    """
    values = read_json(path)
    return _from_json(values, path), values.get("weights")


def _read(folder: Path, look: Look, depth: int, repo: str | None, base_model: str | None = None) -> Provenance:
    record = _read_if_there(folder / SEAL)
    if record is not None and depth < _MAX_STEPS_BACK:
        # checkpoint-N and final lie in the folder of their stage, whose run.json says what it started from.
        beside, run, began = folder.parent, _read_if_there(folder.parent / _RUN), None
        if run is None:  # the checkpoint was taken out of there
            beside, run = Path.cwd(), {"model": base_model}
        else:
            began = _read_if_there(beside / ORIGIN / _ORIGIN_FILE)
        stage = _stage(record, run)
        if began is not None:
            stage["origin"] = f"{began['model']}@{began['commit']}"
            look = _with_kept(run["model"], beside / ORIGIN, look)
        origin = _origin(beside, run.get("model"), look, depth, repo)
        return replace(origin, stages=[*origin.stages, stage])
    known = _known(folder)
    if known is None and base_model is not None:
        return _origin(Path.cwd(), base_model, look, depth, repo)
    return known or Provenance(licence=stated_licence(card_fields(folder / "README.md")))


def _with_kept(base: Any, kept: Path, look: Look) -> Look:
    """Of the repository that a run began with: what it said then."""
    return lambda source: kept if source == base else look(source)


def _origin(folder: Path, source: Any, look: Look, depth: int, repo: str | None) -> Provenance:
    if not isinstance(source, str):
        return Provenance()
    local = Path(os.path.normpath(folder / source))
    if local.is_dir():
        return _read(local, look, depth + 1, repo)
    base = source.partition("@")[0]
    if not is_repo_id(base):
        return Provenance()  # a folder that is gone; its name is not for others
    said = look(source)
    known = None if said is None else _known(said)
    found = known or Provenance()
    fields = {} if said is None or found.parts or found.licence else card_fields(said / "README.md")
    found = replace(found, licence=found.licence or stated_licence(fields))
    if base != repo:
        return replace(found, base_models=[base])
    bases = fields.get("base_model") or []
    bases = [name for name in ([bases] if isinstance(bases, str) else bases) if isinstance(name, str) and name != repo]
    if known is None and len(bases) == 1 and depth < _MAX_STEPS_BACK:  # as the library's Trainer leaves it
        return _origin(folder, bases[0], look, depth + 1, repo)
    return replace(found, base_models=found.base_models or bases)


def _known(folder: Path) -> Provenance | None:
    """What a checkpoint's own summary says, or that of its assembly."""
    values = _read_if_there(folder / FILE)
    if values is not None:
        return _from_json(values, folder / FILE)
    values = _read_if_there(folder / _ASSEMBLY)
    return None if values is None else _from_assembly(values)


def _read_if_there(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _stage(record: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    stage = record["stage"]
    return {
        "name": stage["name"],
        "trains": list(stage["trains"]) + (["LoRA adapters, merged"] if stage.get("peft") else []),
        "learning_rate": record.get("learning_rate", stage["learning_rate"]),
        "steps": record.get("global_step"),
        # Names only: paths are of no use to others, and not for their eyes.
        "data": list(stage["data"]) or list(run.get("data") or {}),
    }


def _from_assembly(summary: Mapping[str, Any]) -> Provenance:
    parts = summary.get("parts", [])
    return Provenance(
        base_models=list(dict.fromkeys(part["source"].partition(":")[0] for part in parts if part.get("from_hub"))),
        parts=[{name: part.get(name) for name in ("role", "source", "revision", "licence")} for part in parts],
        initialised=[entry["what"] for entry in summary.get("initialised", [])],
    )


def _from_json(values: Mapping[str, Any], path: Path) -> Provenance:
    given = {key: value for key, value in values.items() if key not in ("format", "weights")}
    if (
        values.get("format") != _FORMAT
        or not given.keys() <= Provenance.__dataclass_fields__.keys()
        or not _has_entries(given.get("parts", []), {"role", "source", "revision", "licence"})
        or not _has_entries(given.get("stages", []), {"name", "trains", "learning_rate", "steps", "data"})
    ):
        raise HubError(f"{path} is not of a kind that this version reads. Update finecaption-hf, or remove the file.")
    return Provenance(**given)


def _has_entries(entries: Any, keys: set[str]) -> bool:
    return isinstance(entries, list) and all(isinstance(entry, dict) and keys <= entry.keys() for entry in entries)


def keep_origin(source: str, folder: Path) -> None:
    """Keep what a base on the Hub says of its origin and licence, for a push of what is trained from it.

    Args:
        source: `owner/name@commit`.
        folder: to be made for it; what it holds of another commit is replaced.

    Raises:
        HubError: If the Hub cannot be reached.
    """
    repo, _, commit = source.partition("@")
    values = {"model": repo, "commit": commit}
    if _read_if_there(folder / _ORIGIN_FILE) == values:
        return
    said = Repository(repo).fetch(source, re.compile(_SAYS))
    shutil.rmtree(folder, ignore_errors=True)
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    for path in said.iterdir() if said is not None else ():
        if re.fullmatch(_SAYS, path.name):
            shutil.copyfile(path, partial / path.name)
    (partial / _ORIGIN_FILE).write_text(json.dumps(values) + "\n", encoding="utf-8")
    os.replace(partial, folder)
