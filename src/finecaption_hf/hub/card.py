"""The model card: made from what a checkpoint's files and an evaluation say, and checked without asking the Hub."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import HubError
from .lists import LIBRARIES, LICENCES, PIPELINE_TAGS
from .provenance import Licence, Provenance, is_listed, rank_of

MARK = "<!-- Written by finecaption-hf from the files of the checkpoint. -->"
"""In generated cards; a card without it is somebody's own and stays as it is."""

_REPO = r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}"
_ROLES = (
    ("vision_config", "mask-aware CLIP tower", None),
    ("convnext_config", "ConvNeXt tower", "use_convnext"),
    ("sam_config", "SAM tower", "use_sam"),
    ("text_config", "language model", None),
)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as a card shows it.

    Args:
        report: the content of a report.json.
        table: lines of a Markdown table with the metrics and their intervals.
        results: `huggingface_hub.EvalResult` of every metric, for `model-index`.
    """

    report: Mapping[str, Any]
    table: Sequence[str]
    results: Sequence[Any] = field(default_factory=list)


def model_card(
    folder: str | os.PathLike[str],
    repo: str,
    provenance: Provenance,
    *,
    evaluation: Evaluation | None = None,
    licence: str | None = None,
) -> str:
    """The card of a checkpoint.

    A README.md of somebody's own in the folder is kept, with the evaluation in its front matter; otherwise the card is
    made from the configuration, the weights' headers, `provenance` and the evaluation.

    Args:
        folder: of the checkpoint.
        repo: `owner/name` on the Hub, for the snippet.
        provenance: where the weights come from.
        evaluation: what is known of its quality.
        licence: a licence's id on the Hub, where the files do not tell; it cannot loosen what they tell.

    Raises:
        HubError: If the card would not be a valid one, or the stated licence is looser than a part's.
    """
    path = Path(folder)
    readme = path / "README.md"
    own = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if own.strip() and MARK not in own:
        fields, body = split_card(own)
        if licence is not None:
            fields |= _licence_fields(provenance, licence, repo)
        stated = fields.get("license_name") if fields.get("license") == "other" else fields.get("license")
        _refuse_looser(provenance.licences(), str(stated))
    else:
        fields = _fields(provenance, licence, repo)
        body = "\n".join(_body(path, repo, provenance, evaluation, fields))
    if evaluation is not None:
        fields |= _model_index(repo, evaluation)
    text = f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n\n{body.strip()}\n"
    problems = check_card(text)
    if problems:
        raise HubError(f"The card is not one that the Hub takes: {'; '.join(problems)}. Correct README.md in {path}.")
    return text


# --- front matter ----------------------------------------------------------------------------------------------------


def _fields(provenance: Provenance, licence: str | None, repo: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["custom_code", "finecaption", "region-captioning"],
        **_licence_fields(provenance, licence, repo),
    }
    if provenance.base_models:
        fields["base_model"] = list(provenance.base_models)
    datasets = [name for name in provenance.data if re.fullmatch(_REPO, name)]
    if datasets:
        fields["datasets"] = datasets
    return fields


def _licence_fields(provenance: Provenance, licence: str | None, repo: str) -> dict[str, Any]:
    terms = provenance.licences()
    strictest = terms[0] if terms else None
    if licence is not None:
        if not is_listed(licence) or licence == "other":
            raise HubError(f"{licence!r} is no licence that the Hub lists. Give an id such as apache-2.0 or llama3.1.")
        _refuse_looser(terms, licence)
        return {"license": licence}
    if strictest is None:
        return {"license": "unknown"}
    if is_listed(strictest.name.lower()):
        return {"license": strictest.name.lower()}
    name = {Licence.RESEARCH: "research-only", Licence.NONCOMMERCIAL: "noncommercial-research"}.get(strictest.rank)
    return {
        "license": "other",
        "license_name": name or "not-stated-by-all-parts",
        "license_link": f"https://huggingface.co/{repo}#licences",
    }


def _refuse_looser(terms: Sequence[Licence], licence: str) -> None:
    for term in terms:
        if term.rank != Licence.UNKNOWN and term.rank > rank_of(licence):
            raise HubError(
                f"The licence {licence!r} is looser than the terms of {term.of}: {term.name}. State those, or leave "
                "the licence out: then the strictest is stated."
            )


def _model_index(repo: str, evaluation: Evaluation) -> dict[str, Any]:
    from huggingface_hub.repocard_data import eval_results_to_model_index

    if not evaluation.results:
        return {}
    index = eval_results_to_model_index(repo.rpartition("/")[2], list(evaluation.results))
    # Plain values: the library leaves empty ones in.
    return {"model-index": json.loads(json.dumps(_without_none(index)))}


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    return [_without_none(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """Front matter and body of a card.

    Raises:
        HubError: If the front matter is no YAML mapping.
    """
    match = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
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
            pattern = _REPO if name == "base_model" else rf"{_REPO}|[\w.-]+"
            if not (isinstance(entry, str) and re.fullmatch(pattern, entry)):
                problems.append(f"{name} holds {entry!r}; give ids of the Hub, owner/name")
    tags = fields.get("tags", [])
    if not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        problems.append("tags is no list of texts")
    elif "custom_code" not in tags:
        problems.append("tags lacks custom_code, without which the Hub's snippets leave trust_remote_code out")
    problems += _check_model_index(fields.get("model-index", []))
    if not body.strip():
        problems.append("it has no text")
    return problems


def _check_model_index(index: Any) -> list[str]:
    if not isinstance(index, list):
        return ["model-index is no list"]
    problems = []
    for model in index:
        if not (isinstance(model, dict) and isinstance(model.get("name"), str)):
            problems.append("an entry of model-index has no name")
            continue
        for result in model.get("results") or [{}]:
            missing = [
                f"{part}.{key}"
                for part, keys in (("task", ["type"]), ("dataset", ["type", "name"]))
                for key in keys
                if not isinstance((result.get(part) or {}).get(key), str)
            ]
            metrics = result.get("metrics")
            if not isinstance(metrics, list) or not metrics:
                missing.append("metrics")
            for metric in metrics if isinstance(metrics, list) else []:
                missing += [f"metrics.{key}" for key in ("type", "value") if metric.get(key) is None]
            if missing:
                problems.append(f"a result of model-index lacks {', '.join(missing)}")
    return problems


# --- text ------------------------------------------------------------------------------------------------------------


def _body(
    folder: Path, repo: str, provenance: Provenance, evaluation: Evaluation | None, fields: Mapping[str, Any]
) -> Iterable[str]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    yield MARK
    yield ""
    yield f"# {repo.rpartition('/')[2]}"
    yield ""
    yield (
        "FineCaption ([arXiv 2411.15411](https://arxiv.org/abs/2411.15411)) describes any region of an image, given "
        f"as a mask, box or polygon. {_architecture(config)}"
    )
    untrained = not provenance.stages and any(what == "adapter" for what in provenance.initialised)
    if untrained:
        yield ""
        yield "**It is untrained as a whole**: its adapter has random weights, so its captions mean nothing yet."
    yield from ["", "## Use", "", "```python", *_snippet(repo).splitlines(), "```", ""]
    yield (
        "The code travels with the weights. It needs `transformers` (5.19 or later), `torch`, `torchvision`, `timm` "
        "and `pillow`. `AutoModelForImageTextToText` and `AutoProcessor` load it too."
    )
    yield from _origin_section(folder, config, provenance)
    yield from _training_section(provenance)
    yield from _evaluation_section(evaluation)
    yield from _licence_section(provenance, fields)
    yield from _limits_section(config, evaluation)


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


def _training_section(provenance: Provenance) -> Iterable[str]:
    yield from ["", "## Training", ""]
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


def _evaluation_section(evaluation: Evaluation | None) -> Iterable[str]:
    yield from ["", "## Evaluation", ""]
    if evaluation is None:
        yield "No evaluation is recorded. Nothing is known about how good its captions are."
        return
    report = evaluation.report
    counts = report["counts"]
    yield (
        f"{counts['captions']:,} captions of {counts['regions']:,} regions in {counts['images']:,} images; "
        f"{counts['errors']:,} failed and count as empty. In brackets 95 % intervals, resampled by image."
    )
    yield from ["", *evaluation.table, "", f"Signature: `{report['signature']}`"]
    for diagnostic in report["diagnostics"]:
        table = diagnostic["table"]
        yield from ["", f"### {diagnostic['title']}", ""]
        yield from _table(table["columns"], table["rows"])
        for note in diagnostic.get("notes", []):
            yield from ["", note]


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
    if any(re.search(r"llama", f"{licence.of} {licence.name}", re.IGNORECASE) for licence in terms):
        yield from [
            "",
            "Built with Llama: the Llama community licence asks for this notice and for its own text beside.",
        ]


def _limits_section(config: Mapping[str, Any], evaluation: Evaluation | None) -> Iterable[str]:
    yield from ["", "## Limits", ""]
    side = config["high_res_image_size"] if config["use_convnext"] or config["use_sam"] else None
    seen = max(side or 0, config["vision_config"]["image_size"])
    yield f"- Images are seen at {seen} px: what is not visible at that size is guessed."
    yield "- A caption may name what is not there. Where that matters, let a person check it."
    yield "- It describes people by how they look and knows nothing about who they are. Do not use it to judge people."
    if not config["use_mask"]:
        yield "- It was built without the mask input: it cannot tell regions apart."
    if evaluation is not None:
        name = evaluation.report["data"].get("name") or "the data above"
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
                size = 1
                for length in tensor.get_shape():
                    size *= length
                count += size
                dtypes.add(tensor.get_dtype())
    return count, sorted(dtypes)
