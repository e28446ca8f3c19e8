"""The model card of a checkpoint, made from what its files and an evaluation say, and checked without asking the Hub.

What a checkpoint knows of its origin (parts and their licences, stages, data) stands in the files that assembling
(assembly.json) and training (stage.json, run.json) write. A push sums it up in provenance.json, which travels, so that
a model fine-tuned from a Hub repository knows its parts as well.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from .errors_finecaption import FineCaptionError
from .hub_lists_finecaption import (
    COMMUNITY,
    LIBRARIES,
    LICENCES,
    NONCOMMERCIAL,
    PERMISSIVE,
    PIPELINE_TAGS,
    SHARE_ALIKE,
)


class HubError(FineCaptionError, ValueError):
    """What keeps a checkpoint from the Hub; the message says what to do."""


# --- where a checkpoint comes from -----------------------------------------------------------------------------------

FILE = "provenance.json"
_ASSEMBLY, _STAGE, _RUN = "assembly.json", "stage.json", "run.json"  # as assembly and training name them
ORIGIN, ORIGIN_FILE = "origin", "origin.json"
"""Folder beside run.json, where training keeps what its base on the Hub said of itself, and the commit in it."""
_FORMAT = 1
_MAX_STEPS_BACK = 32

Fetch = Callable[[str, str], Path | None]
"""(Hub repository, with `@revision` where one was given; name of a file) -> where it lies, `None` where it does not."""


@dataclass(frozen=True)
class Licence:
    """Terms that a checkpoint is under because of something in it."""

    of: str
    name: str

    RESEARCH = 4
    NONCOMMERCIAL = 3
    UNKNOWN = 2

    @property
    def rank(self) -> int:
        """How strict they are: 0 permissive, 1 with conditions, 2 unknown, 3 noncommercial, 4 research only."""
        name = self.name.lower()
        if name in PERMISSIVE:
            return 0
        if name in SHARE_ALIKE or name in COMMUNITY:
            return 1
        if "research-only" in name or "research only" in name:
            return Licence.RESEARCH
        if name in NONCOMMERCIAL or "noncommercial" in name or "non-commercial" in name:
            return Licence.NONCOMMERCIAL
        return Licence.UNKNOWN


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

    def to_json(self) -> str:
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

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


def read_provenance(
    folder: str | os.PathLike[str],
    fetch: Fetch = lambda repo, name: None,
    *,
    base_model: str | None = None,
    repo: str | None = None,
) -> Provenance:
    """Follow the files of a checkpoint folder back to where its weights come from.

    Args:
        folder: of the checkpoint; what training wrote lies in it and beside it.
        fetch: gets files of Hub repositories that training started from.
        base_model: folder or Hub repository that it was trained from, used where the files do not tell.
        repo: Hub repository that it goes to; what is trained further under its own name is not its own base.

    Raises:
        HubError: If a file of it is damaged.
    """
    return _read(Path(folder).resolve(), fetch, 0, repo, base_model)


def _read(folder: Path, fetch: Fetch, depth: int, repo: str | None, base_model: str | None = None) -> Provenance:
    record = _read_if_there(folder / _STAGE)
    if record is not None and depth < _MAX_STEPS_BACK:
        # checkpoint-N and final lie in the folder of their stage, whose run.json says what it started from.
        run, beside, began = _read_if_there(folder.parent / _RUN), folder.parent, None
        if run is None:  # the checkpoint was taken out of there
            run, beside = {"model": base_model}, Path.cwd()
        else:
            began = _read_if_there(beside / ORIGIN / ORIGIN_FILE)
        stage = _stage(record, run)
        if began is not None:
            fetch = _fetch_from(beside / ORIGIN, run["model"], fetch)
            stage["origin"] = f"{began['model']}@{began['commit']}"
        origin = _origin(beside, run.get("model"), fetch, depth, repo)
        return replace(origin, stages=[*origin.stages, stage])
    found = _known(lambda name: _there(folder / name))
    if found is None and base_model is not None:
        return _origin(Path.cwd(), base_model, fetch, depth, repo)
    return found or Provenance(licence=card_licence(folder / "README.md"))


def _there(path: Path) -> Path | None:
    return path if path.is_file() else None


def _known(find: Callable[[str], Path | None]) -> Provenance | None:
    """What a checkpoint's own summary says, or that of its assembly."""
    path = find(FILE)
    if path is not None:
        return _from_json(read_json(path), path)
    path = find(_ASSEMBLY)
    return None if path is None else _from_assembly(read_json(path))


def _fetch_from(kept: Path, source: Any, fetch: Fetch) -> Fetch:
    """Files of the repository that a run began with, as they were then."""

    def fetch_kept(repo: str, name: str) -> Path | None:
        return _there(kept / name) if repo == source else fetch(repo, name)

    return fetch_kept


def _origin(folder: Path, source: Any, fetch: Fetch, depth: int, repo: str | None) -> Provenance:
    if not isinstance(source, str):
        return Provenance()
    local = Path(os.path.normpath(folder / source))
    if local.is_dir():
        return _read(local, fetch, depth + 1, repo)
    match = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(@[\w./-]+)?", source)
    if match is None or os.path.isabs(source):
        return Provenance()  # a folder that is gone; its name is not for others
    known = _known(lambda name: fetch(source, name))
    found = known or Provenance()
    fields = {} if found.parts or found.licence else _fields_of(fetch(source, "README.md"))
    found = replace(found, licence=found.licence or _stated_licence(fields))
    if match[1] != repo:
        return replace(found, base_models=[match[1]])
    bases = [base for base in _joined(fields.get("base_model")) if isinstance(base, str) and base != repo]
    if known is None and len(bases) == 1 and depth < _MAX_STEPS_BACK:  # as the library's Trainer leaves it
        return _origin(folder, bases[0], fetch, depth + 1, repo)
    return replace(found, base_models=found.base_models or bases)


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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of JSON."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise HubError(f"{path} is no JSON ({error}). Save the checkpoint again.") from error
    if not isinstance(values, dict):
        raise HubError(f"{path} holds no JSON object. Save the checkpoint again.")
    return values


def _read_if_there(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def card_licence(path: Path) -> str | None:
    """The licence that a card states: its id, or its own name; `None` where there is no card or it states none."""
    return _stated_licence(_fields_of(path))


def _stated_licence(fields: Mapping[str, Any]) -> str | None:
    licence = fields.get("license")
    if licence == "other":
        licence = fields.get("license_name") or licence
    return ", ".join(map(str, licence)) if isinstance(licence, list) else licence and str(licence)


def _fields_of(path: Path | None) -> dict[str, Any]:
    return card_fields(path.read_text(encoding="utf-8", errors="replace")) if path and path.is_file() else {}


def card_fields(text: str) -> dict[str, Any]:
    """The front matter of a card; empty where it has none that can be read."""
    try:
        return split_card(text.lstrip("\ufeff"))[0]
    except HubError:
        return {}


def read_text(path: Path) -> str:
    """A text file without the mark that some editors begin it with."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise HubError(f"{path} is no text in UTF-8 ({error}). Save it as that.") from error


def _part_licence(part: Mapping[str, Any]) -> Licence:
    is_alpha_clip = "with its mask input" in part["role"]
    name = "research only (Alpha-CLIP weights)" if is_alpha_clip else part["licence"] or "not stated"
    return Licence(f"{part['role']} ({part['source']})", str(name))


@dataclass(frozen=True)
class LlamaTerms:
    """What the community licence of a Llama asks of who passes on a model made from it, beside its text and a NOTICE.

    Args:
        notice: to be displayed; empty where nothing is.
        name: what the name of the model has to begin with; empty where that is free.
    """

    notice: str
    name: str

    def allows(self, repo: str) -> bool:
        """Whether a repository's name begins as it has to."""
        squeezed = re.sub(r"[^a-z0-9]", "", repo.rpartition("/")[2].lower())
        return squeezed.startswith(re.sub(r"[^a-z0-9]", "", self.name.lower()))


def llama_terms(provenance: Provenance) -> LlamaTerms | None:
    """What has to be said of a Llama in a checkpoint; `None` where there is none."""
    for term in provenance.licences():
        name = term.name.lower()
        if name == "llama2":
            return LlamaTerms("", "")
        if name == "llama3":
            return LlamaTerms("Built with Meta Llama 3", "Llama 3")
        # Others have Llama in their names (TinyLlama, OpenLLaMA) and terms of their own.
        of_meta = term.rank == Licence.UNKNOWN and re.search(r"\b(meta-)?llama", term.of, re.IGNORECASE)
        if re.match(r"llama\W?\d", name) or of_meta:
            return LlamaTerms("Built with Llama", "Llama")
    return None


# --- the card --------------------------------------------------------------------------------------------------------

TAGS = ["custom_code", "finecaption", "region-captioning"]

_MARK = "<!-- Written by finecaption-hf; digest of the text below: {}. Edit it, and the next push keeps your text. -->"
_MARKED = re.compile(re.escape(_MARK).replace(r"\{\}", "([0-9a-f]{16})"))
_SECTION = "<!-- finecaption-hf: {} -->"
_SECTION_END = "<!-- finecaption-hf: end of {} -->"
# Cards that the library writes: its Trainer, and its push_to_hub.
_OF_TRAINER = "<!-- This model card has been generated automatically according to the information the Trainer had"
_BLANK = "# Model Card for Model ID"
_BLANKS = ("[More Information Needed]", 20)  # in the library's blank one there are more

REPO = r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}"
_ROLES = (
    ("vision_config", "mask-aware CLIP tower", None),
    ("convnext_config", "ConvNeXt tower", "use_convnext"),
    ("sam_config", "SAM tower", "use_sam"),
    ("text_config", "language model", None),
)

Report = Mapping[str, Any]
"""Content of a report.json of `finecaption evaluate`."""


def model_card(
    folder: str | os.PathLike[str],
    repo: str,
    provenance: Provenance,
    *,
    evaluation: Report | None = None,
    licence: str | None = None,
    existing: str = "",
    tags: Sequence[str] = (),
    space: str | None = None,
    pictures: Sequence[str] = (),
) -> str:
    """The card of a checkpoint.

    A text of somebody's own is kept, be it README.md in the folder or the card on the Hub: what its front matter lacks
    is added, and the evaluation stands in a section between two marks. Otherwise the card is made from the
    configuration, the weights' headers, `provenance` and the evaluation.

    Args:
        folder: of the checkpoint.
        repo: `owner/name` on the Hub, for the snippet.
        provenance: where the weights come from.
        evaluation: what is known of its quality, as `read_report` gives it.
        licence: a licence's id on the Hub, where the files do not tell; it cannot loosen what they tell.
        existing: the card that is on the Hub.
        tags: more of them.
        space: `owner/name` of a Space with a demo.
        pictures: names of files beside the card, to be shown.

    Raises:
        HubError: If the card would not be a valid one, or the stated licence is looser than a part's.
    """
    path = Path(folder)
    readme = path / "README.md"
    given = read_text(readme) if readme.is_file() else ""
    own = next((text for text in (given, existing) if not is_generated(text)), None)
    fields = _fields(provenance, licence, repo)
    sections = {"evaluation": "\n".join(_evaluation_section(repo, evaluation))} if evaluation is not None else {}
    if own is not None:
        found, body = split_card(own)
        fields = _completed(found, fields, provenance, licence)
        if space is not None or pictures:
            sections["demo"] = "\n".join(_demo_section(repo, space, pictures))
        for name, text in sections.items():
            body = _with_section(body, name, text)
    else:
        # What people set on the Hub's page without touching the text: a language, a picture, tags.
        found, _ = split_card(existing) if existing else ({}, "")
        kept = {name: value for name, value in found.items() if name not in _MANAGED}
        fields = {**fields, **kept, "tags": _joined(fields["tags"], found.get("tags"))}
        trainer = _of_trainer(given) or _of_trainer(existing)
        body = "\n".join(_body(path, repo, provenance, evaluation, fields, space, pictures, trainer)).strip()
        body = _signed(body)
    fields["tags"] = _joined(fields["tags"], list(tags))
    if evaluation is not None:
        fields |= _model_index(repo, evaluation)
    text = _card(fields, body)
    problems = check_card(text)
    if problems:
        raise HubError(f"The card is not one that the Hub takes: {'; '.join(problems)}. Correct README.md in {path}.")
    return text


def processor_card(repo: str, tags: Sequence[str] = ()) -> str:
    """The card of a repository that has a processor and, as yet, no weights."""
    fields = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": _joined(TAGS, list(tags)),
        "license": "unknown",
    }
    body = (
        f"# {repo.rpartition('/')[2]}\n\nThe processor of a FineCaption model, whose weights are not here yet: "
        "`model.push_to_hub` adds them and makes this card."
    )
    return _card(fields, _signed(body))


def add_tags(card: str, tags: Sequence[str]) -> str:
    """A card with more tags in its front matter."""
    fields, body = split_card(card)
    fields["tags"] = _joined(fields.get("tags"), list(tags))
    return _card(fields, body)


def _card(fields: Mapping[str, Any], body: str) -> str:
    return f"---\n{yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True)}---\n\n{body.strip()}\n"


def is_generated(card: str) -> bool:
    """Whether nobody's own words stand in a card: there is no text, or it is as a program wrote it."""
    _, body = split_card(card) if card.strip() else ({}, "")
    mark = _MARKED.search(body)
    if mark is not None:
        return _digest(body[mark.end() :]) == mark[1]
    blanks, many = _BLANKS
    return not body.strip() or _OF_TRAINER in body or (_BLANK in body and body.count(blanks) >= many)


def _signed(body: str) -> str:
    """A generated text below the mark by which an edit is noticed."""
    return f"{_MARK.format(_digest(body))}\n\n{body}"


def _digest(text: str) -> str:
    """Of a text, whatever ends its lines."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _with_section(body: str, name: str, text: str) -> str:
    """A text with a section of that name put in the place of an earlier one, or else at its end."""
    start, end = _SECTION.format(name), _SECTION_END.format(name)
    if (start in body) != (end in body):
        raise HubError(f"README.md has only one of the two marks {start!r} and {end!r}. Put the other back, or none.")
    section = f"{start}\n\n{text.strip()}\n\n{end}"
    before, found, rest = body.partition(start)
    if not found:
        return f"{body.rstrip()}\n\n{section}\n"
    _, found, after = rest.partition(end)
    if not found:
        raise HubError(f"In README.md {end!r} stands before {start!r}. Put them in order, or remove both.")
    return f"{before}{section}{after}"


def _of_trainer(card: str) -> str:
    """What the library's Trainer wrote of a run into its draft of a card, or into an earlier card by way of that."""
    start, end = _SECTION.format("trainer"), _SECTION_END.format("trainer")
    if start in card and end in card:
        return card.partition(start)[2].partition(end)[0].strip()
    return "".join(card.partition("### Training hyperparameters")[1:]).strip() if _OF_TRAINER in card else ""


# --- the evaluation --------------------------------------------------------------------------------------------------

_METRICS = ("rouge_l", "bleu_4", "meteor", "cider", "bertscore")


def read_report(report: "str | os.PathLike[str] | Report") -> Report:
    """The content of a report.json, from its path or as it is.

    Raises:
        HubError: If it is none that this version reads.
    """
    name = "The evaluation" if isinstance(report, Mapping) else os.fspath(report)
    if not isinstance(report, Mapping):
        try:
            report = json.loads(Path(report).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise HubError(f"{name}: this is no JSON ({error}).") from error
    needed = {"model", "data", "counts", "metrics", "diagnostics", "signature"}
    if not isinstance(report, Mapping) or report.get("finecaption_report") != 1 or not needed <= report.keys():
        raise HubError(f"{name} is no report that this version reads. Give report.json of `finecaption evaluate`.")
    return report


def metrics_table(report: Report, model: str | None = None) -> list[str]:
    """Header, rule and row of a Markdown table; the row can be put below those of other models."""
    found = [(row["label"], _with_bounds(row)) for name, row in report["metrics"].items() if name in _METRICS]
    names = [_plain(str(report["model"]) if model is None else model), _plain(_data_name(report))]
    return [
        _line(["model", "data", "captions", *(label for label, _ in found)]),
        _line(["---", "---", *["---:"] * (len(found) + 1)]),
        _line([*names, report["counts"]["captions"], *(value for _, value in found)]),
    ]


def eval_results(report: Report) -> list[Any]:
    """One `huggingface_hub.EvalResult` per metric; their arguments hold interval, number of captions and signature."""
    from huggingface_hub import EvalResult

    name = _data_name(report) or "unnamed data"
    results = []
    for metric, row in report["metrics"].items():
        if metric == "meteor_segments":
            continue
        args: dict[str, Any] = {
            "captions": row["segments"],
            "images": row["images"],
            "errors": report["counts"]["errors"],
        }
        if row["interval_95"] is not None:
            args["interval_95"] = row["interval_95"]
        results.append(
            EvalResult(
                task_type="image-text-to-text",
                task_name="Region captioning",
                dataset_type=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "data",
                dataset_name=name,
                metric_type=metric.split("_")[0] if metric in _METRICS else metric,
                metric_name=row["label"],
                metric_value=round(row["value"], 2),
                metric_args={**args, "signature": report["signature"]},
            )
        )
    return results


def _data_name(report: Report) -> str:
    """Of the data; of a path that stands for it, what comes last: the rest is not for others."""
    name = str(report["data"].get("name") or "")
    return name if re.fullmatch(REPO, name) else Path(name).name


def _with_bounds(row: Mapping[str, Any]) -> str:
    bounds = row["interval_95"]
    return f"{row['value']:.2f}" + ("" if bounds is None else f" ({bounds[0]:.2f} to {bounds[1]:.2f})")


def _plain(text: str) -> str:
    """A text that Markdown does not take for markup."""
    return re.sub(r"[\\`*_\[\]~$]", r"\\\g<0>", " ".join(text.split()))


# --- front matter ----------------------------------------------------------------------------------------------------


_LICENCE_FIELDS = ("license", "license_name", "license_link")
# What a generated card says of the checkpoint; what an earlier one said does not stay.
_MANAGED = {"library_name", "pipeline_tag", "tags", "base_model", "datasets", "metrics", "model-index"}
_MANAGED |= {*_LICENCE_FIELDS}


def _fields(provenance: Provenance, licence: str | None, repo: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": list(TAGS),
        **_licence_fields(provenance, licence, repo),
    }
    if provenance.base_models:
        fields["base_model"] = list(provenance.base_models)
    datasets = [name for name in provenance.data if re.fullmatch(REPO, name)]
    if datasets:
        fields["datasets"] = datasets
    return fields


def _completed(
    found: Mapping[str, Any], made: Mapping[str, Any], provenance: Provenance, licence: str | None
) -> dict[str, Any]:
    """The front matter of somebody's own card, with what it lacks."""
    fields = dict(found)
    if licence is not None:
        fields = {name: value for name, value in fields.items() if name not in _LICENCE_FIELDS}
    states_licence = fields.get("license") is not None
    if states_licence:
        _refuse_looser(provenance.licences(), str(_stated_licence(fields)))
    for name, value in made.items():
        if fields.get(name) is None and not (states_licence and name in _LICENCE_FIELDS):
            fields[name] = value
    if isinstance(fields["tags"], (list, str)):
        fields["tags"] = _joined(fields["tags"], made["tags"])
    return fields


def _joined(*lists: Any) -> list[Any]:
    """Entries of several lists, each once; a text is a list of one."""
    entries = [entry for given in lists for entry in ([given] if isinstance(given, str) else given or [])]
    return list(dict.fromkeys(entries))


def _licence_fields(provenance: Provenance, licence: str | None, repo: str) -> dict[str, Any]:
    terms = provenance.licences()
    strictest = terms[0] if terms else None
    if licence is not None:
        if licence not in LICENCES or licence == "other":
            raise HubError(f"{licence!r} is no licence that the Hub lists. Give an id such as apache-2.0 or llama3.1.")
        _refuse_looser(terms, licence)
        return {"license": licence}
    if strictest is None:
        return {"license": "unknown"}
    if strictest.name.lower() in LICENCES:
        return {"license": strictest.name.lower()}
    name = {Licence.RESEARCH: "research-only", Licence.NONCOMMERCIAL: "noncommercial-research"}.get(strictest.rank)
    return {
        "license": "other",
        "license_name": name or "not-stated-by-all-parts",
        "license_link": f"https://huggingface.co/{repo}#licences",
    }


def _refuse_looser(terms: Sequence[Licence], licence: str) -> None:
    for term in terms:
        if term.rank != Licence.UNKNOWN and term.rank > Licence("the card", licence).rank:
            raise HubError(
                f"The licence {licence!r} is looser than the terms of {term.of}: {term.name}. State those, or leave "
                "the licence out: then the strictest is stated."
            )


def _model_index(repo: str, evaluation: Report) -> dict[str, Any]:
    from huggingface_hub.repocard_data import eval_results_to_model_index

    results = eval_results(evaluation)
    return {"model-index": eval_results_to_model_index(repo.rpartition("/")[2], results)} if results else {}


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """Front matter and body of a card.

    Raises:
        HubError: If the front matter is no YAML mapping.
    """
    match = re.match(r"---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if match is None:
        return {}, text
    try:
        fields = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise HubError(f"The front matter of README.md is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(fields, dict):
        raise HubError("The front matter of README.md is no mapping of names to values.")
    return fields, text[match.end() :]


def check_card(text: str) -> list[str]:
    """What the Hub would not take or not show of a card; empty for a good one. It asks nobody."""
    from huggingface_hub.repocard_data import model_index_to_eval_results

    try:
        fields, body = split_card(text)
    except HubError as error:
        return [str(error).rstrip(".")]
    if not fields:
        return ["there is no front matter (name: value lines between two lines of ---)"]
    problems = []
    for name, known, example in (
        ("library_name", LIBRARIES, "transformers"),
        ("pipeline_tag", PIPELINE_TAGS, "image-text-to-text"),
    ):
        if fields.get(name) not in known:
            problems.append(f"{name} is {fields.get(name)!r}, which the Hub does not know; give {example}")
    licences = fields.get("license")
    for licence in licences if isinstance(licences, list) and licences else [licences]:
        if licence not in LICENCES:
            problems.append(f"license is {licence!r}; give an id that the Hub lists, such as apache-2.0, or other")
        elif licence == "other":
            problems += [
                f"license: other needs {name}"
                for name in ("license_name", "license_link")
                if not isinstance(fields.get(name), str)
            ]
    link = fields.get("license_link")
    if isinstance(link, str) and not re.fullmatch(r"https?://\S+|LICENSE(\.md|\.txt)?", link):
        problems.append(f"license_link is {link!r}; give a URL, LICENSE or LICENSE.md")
    for name in ("base_model", "datasets"):
        given = fields.get(name, [])
        for entry in [given] if isinstance(given, str) else given:
            pattern = REPO if name == "base_model" else rf"{REPO}|[\w.-]+"
            if not (isinstance(entry, str) and re.fullmatch(pattern, entry)):
                problems.append(f"{name} holds {entry!r}; give ids of the Hub, owner/name")
    tags = fields.get("tags", [])
    if not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        problems.append("tags is no list of texts")
    elif "custom_code" not in tags:
        problems.append("tags lacks custom_code, without which the Hub's snippets leave trust_remote_code out")
    try:
        model_index_to_eval_results(fields.get("model-index") or [{"name": "", "results": []}])
    except KeyError as error:
        problems.append(f"model-index lacks {error}")
    except (AttributeError, TypeError, ValueError) as error:
        problems.append(f"model-index is not of the form that the Hub reads: {error}")
    if not body.strip():
        problems.append("it has no text")
    return problems


# --- text ------------------------------------------------------------------------------------------------------------


def _body(
    folder: Path,
    repo: str,
    provenance: Provenance,
    evaluation: Report | None,
    fields: Mapping[str, Any],
    space: str | None,
    pictures: Sequence[str],
    trainer: str,
) -> Iterable[str]:
    config = read_json(folder / "config.json")
    yield f"# {repo.rpartition('/')[2]}"
    yield ""
    yield (
        "FineCaption ([arXiv 2411.15411](https://arxiv.org/abs/2411.15411)) describes any region of an image, given "
        f"as a mask, box or polygon. {_architecture(config)}"
    )
    llama = llama_terms(provenance)
    if llama is not None and llama.notice:
        yield from ["", f"**{llama.notice}**"]
    untrained = not provenance.stages and any(what == "adapter" for what in provenance.initialised)
    if untrained:
        yield ""
        yield "**It is untrained as a whole**: its adapter has random weights, so its captions mean nothing yet."
    yield from ["", "## Use", "", "```python", *_snippet(repo).splitlines(), "```", ""]
    yield (
        "The code travels with the weights. It needs `transformers` (5.19 or later), `torch`, `torchvision`, `timm` "
        "and `pillow`. `AutoModelForImageTextToText` and `AutoProcessor` load it too."
    )
    yield from _marked("demo", _demo_section(repo, space, pictures))
    yield from _origin_section(folder, config, provenance)
    yield from _training_section(provenance, trainer)
    yield from _marked("evaluation", _evaluation_section(repo, evaluation))
    yield from _licence_section(provenance, fields)
    yield from _limits_section(config, evaluation)


def _marked(name: str, lines: Iterable[str]) -> Iterable[str]:
    yield from ["", _SECTION.format(name), "", *lines, "", _SECTION_END.format(name)]


def _demo_section(repo: str, space: str | None, pictures: Sequence[str]) -> Iterable[str]:
    yield from ["## Demo", ""]
    if space is not None:
        yield from [f"In the browser, with nothing to install: [{space}](https://huggingface.co/spaces/{space}).", ""]
    yield (
        "On your own machine, where no picture leaves it: with `finecaption-hf[demo]` installed, "
        f"`finecaption demo --model {repo}` opens a page on which regions are clicked, painted or boxed."
    )
    for name in pictures:
        yield from ["", f"![{_plain(Path(name).stem)}]({name})"]


def _architecture(config: Mapping[str, Any]) -> str:
    high = [name for name, used in (("ConvNeXt", "use_convnext"), ("SAM", "use_sam")) if config[used]]
    seen = "with the mask" if config["use_mask"] else "without a mask"
    text = f"A CLIP tower sees the image {seen} at {config['vision_config']['image_size']} px"
    if high:
        text += f", {' and '.join(high)} at {config['high_res_image_size']} px"
    return f"{text}; a region becomes {config['grid_size'] ** 2} image tokens."


def _snippet(repo: str) -> str:
    return f"""from transformers import pipeline

describe = pipeline("region-captioning", model="{repo}", trust_remote_code=True)
regions = [{{"box_xyxy": [40, 60, 200, 180]}}]  # or masks, polygons, COCO RLE; None: the whole image
for record in describe("photo.jpg", regions, ["color", "region"]):
    print(record["box_xyxy"], record["answers"])"""


def _origin_section(folder: Path, config: Mapping[str, Any], provenance: Provenance) -> Iterable[str]:
    yield from ["", "## Parts", ""]
    if provenance.parts:
        rows = [
            [part["role"], part["source"], part["revision"] or "local", part["licence"] or "not stated"]
            for part in provenance.parts
        ]
        yield from _table(["part", "from", "revision", "licence as stated"], rows)
        if provenance.initialised:
            yield from ["", f"Started from random weights: {'; '.join(provenance.initialised)}."]
    else:
        rows = [
            [role, config[name]["model_type"], str(config[name].get("hidden_size", ""))]
            for name, role, used in _ROLES
            if used is None or config[used]
        ]
        yield from _table(["part", "kind", "width"], rows)
        yield ""
        if provenance.base_models:
            yield f"Trained from {', '.join(provenance.base_models)}."
        else:
            yield "The files of the checkpoint do not say what its parts were initialised from."
    count, dtypes = count_parameters(folder)
    yield from ["", f"{count:,} parameters, saved as {', '.join(dtypes)}."]


def _training_section(provenance: Provenance, trainer: str) -> Iterable[str]:
    yield from ["", "## Training", ""]
    if trainer and not provenance.stages:
        yield "The last run that the library's `Trainer` pushed here, as it recorded it:"
        yield from _marked("trainer", [trainer])
        return
    if not provenance.stages:
        yield "The files of the checkpoint record no training."
        return
    rows = [
        [
            stage["name"],
            ", ".join(f"`{name}`" if "*" in name or "." in name else name for name in stage["trains"]),
            f"{stage['learning_rate']:g}",
            "" if stage["steps"] is None else f"{stage['steps']:,}",
            ", ".join(stage["data"]) or "not recorded",
        ]
        for stage in provenance.stages
    ]
    yield from _table(["stage", "trains", "learning rate", "steps", "data"], rows)
    for stage in provenance.stages:
        if "origin" in stage:
            repo, _, commit = stage["origin"].partition("@")
            yield from ["", f"`{stage['name']}` began with {repo} at commit `{commit}`."]


def _evaluation_section(repo: str, evaluation: Report | None) -> Iterable[str]:
    yield from ["## Evaluation", ""]
    if evaluation is None:
        yield "No evaluation is recorded. Nothing is known about how good its captions are."
        return
    counts = evaluation["counts"]
    lines = [
        f"{counts['captions']:,} captions of {counts['regions']:,} regions in {counts['images']:,} images; "
        f"{counts['errors']:,} failed and count as empty. In brackets 95 % intervals, resampled by image.",
        "",
        *metrics_table(evaluation, repo),
        "",
        f"Signature: `{evaluation['signature']}`",
    ]
    for diagnostic in evaluation["diagnostics"]:
        table = diagnostic["table"]
        lines += ["", f"### {diagnostic['title']}", "", *_table(table["columns"], table["rows"])]
        for note in diagnostic.get("notes", []):
            lines += ["", note]
    # Names of data and questions are anybody's: none may end the section.
    yield from (line.replace("<", "&lt;") for line in lines)


def _licence_section(provenance: Provenance, fields: Mapping[str, Any]) -> Iterable[str]:
    yield from ["", "## Licences", ""]
    stated = fields.get("license_name") or fields["license"]
    terms = provenance.licences()
    if not terms:
        yield f"Stated: **{stated}**. The files of the checkpoint do not say what terms its parts are under."
        return
    yield f"Stated for the whole: **{stated}**, the strictest of those below. All of them hold for what they are about."
    yield ""
    yield from _table(["what", "terms"], [[licence.of, licence.name] for licence in terms])
    llama = llama_terms(provenance)
    if llama is not None:
        notice = f"{llama.notice}. " if llama.notice else ""
        yield from [
            "",
            f"{notice}The Llama community licence goes with the weights: its text, and a NOTICE, belong beside them.",
        ]


def _limits_section(config: Mapping[str, Any], evaluation: Report | None) -> Iterable[str]:
    yield from ["", "## Limits", ""]
    side = config["high_res_image_size"] if config["use_convnext"] or config["use_sam"] else None
    seen = max(side or 0, config["vision_config"]["image_size"])
    yield f"- Images are seen at {seen} px: what is not visible at that size is guessed."
    yield "- A caption may name what is not there. Where that matters, let a person check it."
    yield "- It describes people by how they look and knows nothing about who they are. Do not use it to judge people."
    if not config["use_mask"]:
        yield "- It was built without the mask input: it cannot tell regions apart."
    if evaluation is not None:
        name = _plain(_data_name(evaluation)) or "the data above"
        yield f"- The figures hold for {name}; other images and questions were not measured."


def _table(columns: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Iterable[str]:
    yield _line(columns)
    yield _line(["---"] * len(columns))
    for row in rows:
        yield _line(row)


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"


def count_parameters(folder: Path) -> tuple[int, list[str]]:
    """Values in all tensors of a checkpoint, and their dtypes, from the headers of its files."""
    from safetensors import safe_open

    count, dtypes = 0, set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                tensor = file.get_slice(name)
                count += math.prod(tensor.get_shape())
                dtypes.add(tensor.get_dtype())
    return count, sorted(dtypes)
