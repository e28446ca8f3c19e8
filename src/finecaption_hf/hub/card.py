"""The model card of a checkpoint: made from what is known of it, or somebody's own with what it lacks."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .card_text import NO_EVALUATION, SECTION, SECTION_END, card_text, demo_section, evaluation_section
from .checkpoint import PICTURE, read_text
from .errors import HubError, is_repo_id
from .figures import Report, model_index
from .front_matter import join_card, joined, split_card, stated_licence
from .licences import UNSTATED, licence_fields, refuse_looser
from .provenance import Provenance

_MARK = "<!-- Written by finecaption-hf; digest of the text below: {}. Edit it, and the next push keeps your text. -->"
_MARKED = re.compile(re.escape(_MARK).replace(r"\{\}", "([0-9a-f]{16})"))
# Cards that the library writes: its Trainer, and its push_to_hub.
_OF_TRAINER = "<!-- This model card has been generated automatically according to the information the Trainer had"
_BLANK = "# Model Card for Model ID"
_BLANKS = ("[More Information Needed]", 20)  # in the library's blank one there are more

# What `demo_section` writes.
_SPACE = re.compile(r"\]\(https://huggingface\.co/spaces/([\w.-]+/[\w.-]+)\)")
_SHOWN = re.compile(r"^!\[.*\]\((.+)\)$", re.MULTILINE)

_TAGS = ["custom_code", "finecaption", "region-captioning"]
# The Hub takes other words, too, and then shows neither snippet nor task.
_ALLOWED = {
    "library_name": ("transformers",),
    "pipeline_tag": ("image-text-to-text", "image-to-text", "visual-question-answering", "any-to-any"),
}
_LICENCE_FIELDS = ("license", "license_name", "license_link")
# What a generated card says of the checkpoint; what an earlier one said does not stay.
_MANAGED = {"library_name", "pipeline_tag", "tags", "base_model", "datasets", "metrics", "model-index"}
_MANAGED |= {*_LICENCE_FIELDS}


def model_card(
    folder: str | os.PathLike[str],
    repo: str,
    provenance: Provenance,
    *,
    evaluation: Report | None = None,
    licence: str | None = None,
    existing: str = "",
    outdated: bool = False,
    tags: Sequence[str] = (),
    space: str | None = None,
    pictures: Sequence[str] = (),
) -> str:
    """The card of a checkpoint.

    A text of somebody's own is kept, be it README.md in the folder or the card on the Hub: what its front matter lacks
    is added, and the evaluation stands in a section between two marks. Otherwise the card is made from the
    configuration, the weights' headers, `provenance` and the evaluation. Evaluation, pictures and Space that are not
    given stay as the card on the Hub has them.

    Args:
        folder: of the checkpoint.
        repo: `owner/name` on the Hub, for the snippet.
        provenance: where the weights come from.
        evaluation: what is known of its quality, as `read_report` gives it.
        licence: a licence's id on the Hub, where the files do not tell; it cannot loosen what they tell.
        existing: the card that is on the Hub.
        outdated: whether that is about other weights, whose evaluation and pictures do not stay.
        tags: more of them.
        space: `owner/name` of a Space with a demo.
        pictures: names of files beside the card, to be shown with those in the folder.

    Raises:
        HubError: If a card that is there cannot be read, or states a licence that is looser than a part's.
    """
    path = Path(folder)
    given = read_text(path / "README.md") if (path / "README.md").is_file() else ""
    own = next((text for text in (given, existing) if not _is_generated(text)), None)
    fields = _fields(provenance, licence, repo)
    found, _ = split_card(existing)
    if licence is None:
        fields = _with_known_licence(fields, found, provenance)
    earlier = results_in(existing)
    shown = earlier.of_other_weights() if outdated else earlier
    if own is given:
        shown = shown.under(results_in(given))
    if evaluation is not None:
        index = model_index(evaluation, repo.rpartition("/")[2])
        shown = replace(shown, evaluation=evaluation_section(repo, evaluation), index=index)
    inside = sorted(file.name for file in path.iterdir() if PICTURE.fullmatch(file.name))
    pictures = list(dict.fromkeys([*inside, *(pictures or shown.pictures)]))
    space = space or shown.space
    if own is not None:
        found, body = split_card(own)
        fields = _completed(found, fields, provenance, licence)
        if shown.evaluation or _section(body, "evaluation"):
            body = _with_section(body, "evaluation", shown.evaluation or NO_EVALUATION)
        if space is not None or pictures or _section(body, "demo"):
            body = _with_section(body, "demo", demo_section(repo, space, pictures))
        if own is existing and outdated and earlier.evaluation:
            fields.pop("model-index", None)
    else:
        # What people set on the Hub's page without touching the text: a language, a picture, tags.
        kept = {name: value for name, value in found.items() if name not in _MANAGED}
        fields = {**fields, **kept, "tags": joined(fields["tags"], found.get("tags"))}
        trainer = _of_trainer(given) or ("" if outdated and _section(existing, "trainer") else _of_trainer(existing))
        words = shown.evaluation or NO_EVALUATION
        body = card_text(path, repo, provenance, words, str(stated_licence(fields)), space, pictures, trainer)
        body = f"{_MARK.format(_digest(body))}\n\n{body}"
    fields["tags"] = joined(fields["tags"], list(tags))
    fields |= shown.index
    for name, known in _ALLOWED.items():
        if fields[name] not in known:
            raise HubError(f"README.md has {name} {fields[name]!r}, which is none of such a model. Give {known[0]}.")
    return join_card(fields, body)


@dataclass(frozen=True)
class Results:
    """What a card shows of a checkpoint besides what is known from its files.

    Args:
        evaluation: the section, empty where there is none.
        index: its `model-index` by that name.
        space: with a demo.
        pictures: names of files beside the card.
    """

    evaluation: str = ""
    index: Mapping[str, Any] = field(default_factory=dict)
    space: str | None = None
    pictures: Sequence[str] = ()

    def of_other_weights(self) -> "Results":
        """What stays true where the weights change."""
        return Results(space=self.space)

    def under(self, own: "Results") -> "Results":
        """These, where a card of somebody's own does not have them."""
        first = own if own.evaluation else self
        return Results(first.evaluation, first.index, own.space or self.space, own.pictures or self.pictures)


def results_in(card: str) -> Results:
    """What a card on the Hub shows in the sections between our marks.

    Raises:
        HubError: If its front matter cannot be read.
    """
    fields, body = split_card(card)
    evaluation, demo = _section(body, "evaluation"), _section(body, "demo")
    if evaluation in ("", NO_EVALUATION):
        evaluation, fields = "", {}
    space = _SPACE.search(demo)
    index = {name: value for name, value in fields.items() if name == "model-index"}
    return Results(evaluation, index, space and space[1], _SHOWN.findall(demo))


def _with_known_licence(fields: Mapping[str, Any], found: Mapping[str, Any], provenance: Provenance) -> dict[str, Any]:
    """The front matter as the files have it, with the licence that the card states where they do not tell one."""
    tells = fields["license"] != "unknown" and fields.get("license_name") != UNSTATED
    stated = {name: found[name] for name in _LICENCE_FIELDS if found.get(name) is not None}
    if tells or "license" not in stated:
        return dict(fields)
    with suppress(HubError):  # looser than what has come to be known
        refuse_looser(provenance.licences(), str(stated_licence(stated)))
        return {name: value for name, value in fields.items() if name in stated or name not in _LICENCE_FIELDS} | stated
    return dict(fields)


def _fields(provenance: Provenance, licence: str | None, repo: str) -> dict[str, Any]:
    """The front matter as the checkpoint's files have it."""
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": list(_TAGS),
        **licence_fields(provenance.licences(), licence, repo),
        "base_model": list(provenance.base_models),
        "datasets": list(filter(is_repo_id, provenance.data)),
    }
    return {name: value for name, value in fields.items() if value}


def _completed(
    found: Mapping[str, Any], made: Mapping[str, Any], provenance: Provenance, licence: str | None
) -> dict[str, Any]:
    """The front matter of somebody's own card, with what it lacks."""
    fields = dict(found)
    if licence is not None:
        fields = {name: value for name, value in fields.items() if name not in _LICENCE_FIELDS}
    states_licence = fields.get("license") is not None
    if states_licence:
        refuse_looser(provenance.licences(), str(stated_licence(fields)))
    for name, value in made.items():
        if fields.get(name) is None and not (states_licence and name in _LICENCE_FIELDS):
            fields[name] = value
    if isinstance(fields["tags"], (list, str)):
        fields["tags"] = joined(fields["tags"], made["tags"])
    return fields


def _is_generated(card: str) -> bool:
    """Whether nobody's own words stand in a card: there is no text, or it is as a program wrote it."""
    _, body = split_card(card)
    mark = _MARKED.search(body)
    if mark is not None:
        return _digest(body[mark.end() :]) == mark[1]
    blanks, many = _BLANKS
    return not body.strip() or _OF_TRAINER in body or (_BLANK in body and body.count(blanks) >= many)


def _digest(text: str) -> str:
    """Of a text, whatever ends its lines: an edit is noticed by it."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _section(body: str, name: str) -> str:
    """What stands between the two marks of that name."""
    marks = re.escape(SECTION.format(name)), re.escape(SECTION_END.format(name))
    found = re.search("(.*?)".join(marks), body, re.DOTALL)
    return "" if found is None else found[1].strip()


def _with_section(body: str, name: str, text: str) -> str:
    """A text with a section of that name put in the place of an earlier one, or else at its end."""
    start, end = SECTION.format(name), SECTION_END.format(name)
    if (start in body) != (end in body):
        raise HubError(f"README.md has only one of the two marks {start!r} and {end!r}. Put the other back, or none.")
    section = f"{start}\n\n{text}\n\n{end}"
    before, found, rest = body.partition(start)
    if not found:
        return f"{body.rstrip()}\n\n{section}\n"
    _, found, after = rest.partition(end)
    if not found:
        raise HubError(f"In README.md {end!r} stands before {start!r}. Put them in order, or remove both.")
    return f"{before}{section}{after}"


def _of_trainer(card: str) -> str:
    """What the library's Trainer wrote of a run into its draft of a card, or into an earlier card by way of that."""
    drafted = "".join(card.partition("### Training hyperparameters")[1:]).strip() if _OF_TRAINER in card else ""
    return _section(card, "trainer") or drafted
