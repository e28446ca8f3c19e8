"""What a checkpoint knows of its origin: parts and their licences, stages, data.

It stands in the files that assembling (assembly.json) and training (stage.json, run.json) write. `push` sums it up in
provenance.json, which travels, so that a model fine-tuned from a Hub repository knows its parts as well.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import HubError
from .lists import COMMUNITY, LICENCES, NONCOMMERCIAL, PERMISSIVE, SHARE_ALIKE

FILE = "provenance.json"
_ASSEMBLY, _STAGE, _RUN = "assembly.json", "stage.json", "run.json"  # as assembly and training name them
_FORMAT = 1
_MAX_STEPS_BACK = 32

Fetch = Callable[[str, str], Path | None]
"""(Hub repository, with `@revision` where one was given; name of a file) -> where it lies, `None` where it does not."""


@dataclass(frozen=True)
class Licence:
    """Terms that a checkpoint is under because of something in it."""

    of: str
    name: str
    rank: int

    RESEARCH = 4
    NONCOMMERCIAL = 3
    UNKNOWN = 2


@dataclass(frozen=True)
class Provenance:
    """The origin of a checkpoint.

    Args:
        base_models: Hub repositories that weights come from.
        parts: pretrained parts: `role`, `source`, `revision`, `licence` (each text or `None`).
        initialised: what started from random weights.
        stages: stages of training, in their order: `name`, `trains`, `learning_rate`, `steps`, `data` (names).
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

    def to_json(self) -> str:
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    def licences(self) -> list[Licence]:
        """The terms of parts, base model and data, the strictest first."""
        # A part that gives its configuration alone gives nothing that a licence is about.
        found = [_part_licence(part) for part in self.parts if not part["role"].startswith("configuration of")]
        if not self.parts:
            found += [_known(name, self.licence or "not stated") for name in self.base_models]
            if self.licence and not self.base_models:
                found.append(_known("the checkpoint it was trained from", self.licence))
        found += [
            Licence(f"data: {name}", "noncommercial research", Licence.NONCOMMERCIAL)
            for name in self.data
            if "compositioncap" in re.sub(r"[^a-z]", "", name.lower())
        ]
        return sorted(dict.fromkeys(found), key=lambda licence: -licence.rank)


def read_provenance(
    folder: str | os.PathLike[str], fetch: Fetch = lambda repo, name: None, *, base_model: str | None = None
) -> Provenance:
    """Follow the files of a checkpoint folder back to where its weights come from.

    Args:
        folder: of the checkpoint; what training wrote lies in it and beside it.
        fetch: gets files of Hub repositories that training started from.
        base_model: folder or Hub repository that it was trained from, used where the files do not tell.

    Raises:
        HubError: If a file of it is damaged.
    """
    path = Path(folder).resolve()
    if base_model is not None and not any((path / name).is_file() for name in (_STAGE, FILE, _ASSEMBLY)):
        return _origin(Path.cwd(), base_model, fetch, 0)
    return _read(path, fetch, 0)


def _read(folder: Path, fetch: Fetch, depth: int) -> Provenance:
    record = _json(folder / _STAGE)
    if record is not None and depth < _MAX_STEPS_BACK:
        # checkpoint-N and final lie in the folder of their stage, whose run.json says what it started from.
        run = _json(folder.parent / _RUN) or {}
        origin = _origin(folder.parent, run.get("model"), fetch, depth)
        return Provenance(
            origin.base_models, origin.parts, origin.initialised, [*origin.stages, _stage(record, run)], origin.licence
        )
    known = _json(folder / FILE)
    if known is not None:
        return _from_json(known, folder / FILE)
    assembly = _json(folder / _ASSEMBLY)
    if assembly is not None:
        return _from_assembly(assembly)
    return Provenance(licence=card_licence(folder / "README.md"))


def _origin(folder: Path, source: Any, fetch: Fetch, depth: int) -> Provenance:
    if not isinstance(source, str):
        return Provenance()
    local = Path(os.path.normpath(folder / source))
    if local.is_dir():
        return _read(local, fetch, depth + 1)
    match = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(@[\w./-]+)?", source)
    if match is None or os.path.isabs(source):
        return Provenance()  # a folder that is gone; its name is not for others
    found = Provenance()
    for name, reader in ((FILE, _from_json), (_ASSEMBLY, lambda values, _: _from_assembly(values))):
        path = fetch(source, name)
        if path is not None:
            found = reader(_json(path) or {}, path)
            break
    licence = found.licence
    if not (found.parts or licence):
        path = fetch(source, "README.md")
        licence = None if path is None else card_licence(path)
    return Provenance([match[1]], found.parts, found.initialised, found.stages, licence)


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
    parts = [
        {name: part.get(name) for name in ("role", "source", "revision", "licence")}
        for part in summary.get("parts", [])
    ]
    hub = [part["source"].partition(":")[0] for part in summary.get("parts", []) if part.get("from_hub")]
    return Provenance(
        base_models=list(dict.fromkeys(hub)),
        parts=parts,
        initialised=[entry["what"] for entry in summary.get("initialised", [])],
    )


def _from_json(values: Mapping[str, Any], path: Path) -> Provenance:
    given = {key: value for key, value in values.items() if key != "format"}
    if values.get("format") != _FORMAT or not given.keys() <= Provenance.__dataclass_fields__.keys():
        raise HubError(f"{path} is not of a kind that this version reads. Update finecaption-hf, or remove the file.")
    return Provenance(**given)


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HubError(f"{path} is no JSON ({error}). Take it from where the checkpoint comes from.") from error


def card_licence(path: Path) -> str | None:
    """The licence that a card states: its id, or its own name; `None` where there is no card or it states none."""
    import yaml

    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        fields = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return None
    if not isinstance(fields, dict):
        return None
    licence = fields.get("license_name") if fields.get("license") == "other" else fields.get("license")
    return licence if isinstance(licence, str) else None


def _part_licence(part: Mapping[str, Any]) -> Licence:
    role, source = str(part["role"]), str(part["source"])
    label = f"{role} ({source})"
    if "with its mask input" in role:
        return Licence(label, "research only (Alpha-CLIP weights)", Licence.RESEARCH)
    if part["licence"] is None:
        return Licence(label, "not stated", Licence.UNKNOWN)
    return _known(label, str(part["licence"]))


def _known(label: str, licence: str) -> Licence:
    return Licence(label, licence, rank_of(licence))


def rank_of(licence: str) -> int:
    """How strict a licence is: 0 permissive, 1 with conditions, 2 unknown, 3 noncommercial, 4 research only."""
    name = licence.lower()
    if name in PERMISSIVE:
        return 0
    if name in SHARE_ALIKE or name in COMMUNITY:
        return 1
    if "research-only" in name or "research only" in name:
        return Licence.RESEARCH
    if name in NONCOMMERCIAL or "noncommercial" in name or "non-commercial" in name:
        return Licence.NONCOMMERCIAL
    return Licence.UNKNOWN


def is_listed(licence: str) -> bool:
    return licence in LICENCES
