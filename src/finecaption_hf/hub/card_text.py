"""The text of a generated model card: use, parts, training, evaluation, licences, limits. What is not known is said."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from .checkpoint import read_json
from .figures import Report, comparison_table, metrics_table, plain, table
from .licences import llama_terms
from .provenance import Provenance

SECTION = "<!-- finecaption-hf: {} -->"
SECTION_END = "<!-- finecaption-hf: end of {} -->"
_TOWERS = (
    ("vision_config", "mask-aware CLIP tower", None),
    ("convnext_config", "ConvNeXt tower", "use_convnext"),
    ("sam_config", "SAM tower", "use_sam"),
    ("text_config", "language model", None),
)
# Beside a weight: its scales, and how it is packed.
_OF_BITSANDBYTES = re.compile(r"\.weight\.|\.(SCB|weight_format)$")
_SNIPPET = """```python
from transformers import pipeline

describe = pipeline("region-captioning", model="{repo}", trust_remote_code=True)
regions = [{{"box_xyxy": [40, 60, 200, 180]}}]  # or masks, polygons, COCO RLE; None: the whole image
for record in describe("photo.jpg", regions, ["color", "region"]):
    print(record["box_xyxy"], record["answers"])
```"""
_COMPARED = "### Compared with "


def card_text(
    folder: Path,
    repo: str,
    provenance: Provenance,
    evaluation: str,
    licence: str,
    space: str | None,
    pictures: Sequence[str],
    trainer: str,
) -> str:
    """The text of a card; `evaluation` is its section, `licence` the one that its front matter states, `trainer` what a
    Trainer said of a run."""
    config = read_json(folder / "config.json")
    paragraphs = [
        f"# {repo.rpartition('/')[2]}",
        "FineCaption ([arXiv 2411.15411](https://arxiv.org/abs/2411.15411)) describes any region of an image, given "
        f"as a mask, box or polygon. {_architecture(config)}",
        *_first_words(provenance),
        "## Use",
        _SNIPPET.format(repo=repo),
        "The code travels with the weights. It needs `transformers` (5.19 or later), `torch`, `torchvision`, `timm` "
        "and `pillow`. `AutoModelForImageTextToText` and `AutoProcessor` load it too.",
        _marked("demo", demo_section(repo, space, pictures)),
        "## Parts",
        *_parts(config, provenance),
        "{:,} parameters, saved as {}.".format(*count_parameters(folder)),
        *_quantised(config, folder, evaluation),
        "## Training",
        *_training(provenance, trainer),
        _marked("evaluation", evaluation),
        "## Licences",
        *_licences(provenance, licence),
        "## Limits",
        "\n".join(_limits(config)),
    ]
    return "\n\n".join(paragraphs)


def _marked(name: str, text: str) -> str:
    return f"{SECTION.format(name)}\n\n{text}\n\n{SECTION_END.format(name)}"


def _architecture(config: Mapping[str, Any]) -> str:
    high = [name for name, used in (("ConvNeXt", "use_convnext"), ("SAM", "use_sam")) if config[used]]
    seen = "with the mask" if config["use_mask"] else "without a mask"
    text = f"A CLIP tower sees the image {seen} at {config['vision_config']['image_size']} px"
    if high:
        text += f", {' and '.join(high)} at {config['high_res_image_size']} px"
    return f"{text}; a region becomes {config['grid_size'] ** 2} image tokens."


def _first_words(provenance: Provenance) -> Iterator[str]:
    llama = llama_terms(provenance.licences())
    if llama is not None and llama.notice:
        yield f"**{llama.notice}**"
    if not provenance.stages and "adapter" in provenance.initialised:
        yield "**It is untrained as a whole**: its adapter has random weights, so its captions mean nothing yet."


def demo_section(repo: str, space: str | None, pictures: Sequence[str]) -> str:
    paragraphs = ["## Demo"]
    if space is not None:
        link = f"[{space}](https://huggingface.co/spaces/{space})"
        paragraphs.append(f"In the browser, with nothing to install: {link}.")
    paragraphs.append(
        "On your own machine, where no picture leaves it: with finecaption-hf and its extra `demo` installed, "
        f"`finecaption demo --model {repo}` opens a page on which regions are clicked, painted or boxed."
    )
    return "\n\n".join([*paragraphs, *(f"![{plain(Path(name).stem)}]({name})" for name in pictures)])


def _parts(config: Mapping[str, Any], provenance: Provenance) -> Iterator[str]:
    if provenance.parts:
        rows = [
            [part["role"], part["source"], part["revision"] or "local", part["licence"] or "not stated"]
            for part in provenance.parts
        ]
        yield table(["part", "from", "revision", "licence as stated"], rows)
        if provenance.initialised:
            yield f"Started from random weights: {'; '.join(provenance.initialised)}."
        return
    rows = [
        [role, config[name]["model_type"], str(config[name].get("hidden_size", ""))]
        for name, role, used in _TOWERS
        if used is None or config[used]
    ]
    yield table(["part", "kind", "width"], rows)
    if provenance.base_models:
        yield f"Trained from {', '.join(provenance.base_models)}."
    else:
        yield "The files of the checkpoint do not say what its parts were initialised from."


def count_parameters(folder: Path) -> tuple[int, str]:
    """Values in all tensors of a checkpoint, and their dtypes, from the headers of its files."""
    count, dtypes = 0, set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                if _OF_BITSANDBYTES.search(name):
                    continue
                tensor = file.get_slice(name)
                packed = tensor.get_dtype() == "U8"  # two values of 4 bits in a byte
                count += math.prod(tensor.get_shape()) * (1 + packed)
                dtypes.add(tensor.get_dtype())
    return count, ", ".join(sorted(dtypes))


def _quantised(config: Mapping[str, Any], folder: Path, evaluation: str) -> Iterator[str]:
    how = config.get("quantization_config")
    if how is None:
        return
    yield "## Quantised"
    method = str(how.get("quant_method"))
    if method == "bitsandbytes":
        kind = f"4 bits ({how['bnb_4bit_quant_type'].upper()})" if how["load_in_4bit"] else "8 bits (LLM.int8)"
        kept = [name for name in how["llm_int8_skip_modules"] or () if not name.startswith("model.")]
        yield f"Weights of linear layers are held in {kind}, except for those of: {', '.join(kept) or 'lm_head'}."
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    share = size / (2 * count_parameters(folder)[0])
    yield (
        f"The files of weights take {size / 1e6:,.1f} MB, {share:.0%} of what bfloat16 takes. Loading them needs "
        f"`{method}`; nothing else changes."
    )
    if _COMPARED in evaluation:
        yield "What that costs in accuracy stands under Evaluation."
    else:
        yield "What that costs in accuracy was not measured."


def _training(provenance: Provenance, trainer: str) -> Iterator[str]:
    if trainer and not provenance.stages:
        yield "The last run that the library's `Trainer` pushed here, as it recorded it:"
        yield _marked("trainer", trainer)
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
    yield table(["stage", "trains", "learning rate", "steps", "data"], rows)
    for stage in provenance.stages:
        if "origin" in stage:
            repo, _, commit = stage["origin"].partition("@")
            yield f"`{stage['name']}` began with {repo} at commit `{commit}`."


NO_EVALUATION = "## Evaluation\n\nNo evaluation is recorded. Nothing is known about how good its captions are."


def evaluation_section(repo: str, evaluation: Report) -> str:
    counts = evaluation["counts"]
    paragraphs = [
        "## Evaluation",
        f"{counts['captions']:,} captions of {counts['regions']:,} regions in {counts['images']:,} images; "
        f"{counts['errors']:,} failed and count as empty. In brackets 95 % intervals, resampled by image. Other images "
        "and questions were not measured.",
        "\n".join(metrics_table(evaluation, repo)),
        f"Signature: `{evaluation['signature']}`",
    ]
    if comparison := evaluation.get("comparison"):
        paragraphs += [f"{_COMPARED}{plain(Path(comparison['model']).name)}", *comparison_table(comparison)]
    for diagnostic in evaluation["diagnostics"]:
        figures = table(diagnostic["table"]["columns"], diagnostic["table"]["rows"])
        paragraphs += [f"### {diagnostic['title']}", figures, *diagnostic.get("notes", [])]
    # Names of data and questions are anybody's: none may end the section.
    return "\n\n".join(paragraphs).replace("<", "&lt;")


def _licences(provenance: Provenance, stated: str) -> Iterator[str]:
    terms = provenance.licences()
    if not terms:
        yield f"Stated: **{stated}**. The files of the checkpoint do not say what terms its parts are under."
        return
    yield f"Stated for the whole: **{stated}**, the strictest of those below. All of them hold for what they are about."
    yield table(["what", "terms"], [[licence.of, licence.name] for licence in terms])
    llama = llama_terms(terms)
    if llama is not None:
        notice = f"{llama.notice}. " if llama.notice else ""
        yield f"{notice}The Llama community licence goes with the weights: its text, and a NOTICE, belong beside them."


def _limits(config: Mapping[str, Any]) -> Iterable[str]:
    high = config["high_res_image_size"] if config["use_convnext"] or config["use_sam"] else 0
    seen = max(high, config["vision_config"]["image_size"])
    yield f"- Images are seen at {seen} px: what is not visible at that size is guessed."
    yield "- A caption may name what is not there. Where that matters, let a person check it."
    yield "- It describes people by how they look and knows nothing about who they are. Do not use it to judge people."
    if not config["use_mask"]:
        yield "- It was built without the mask input: it cannot tell regions apart."
