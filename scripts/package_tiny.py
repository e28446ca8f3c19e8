#!/usr/bin/env python
"""Make the embedded checkpoint from a trained one: the same Hub folder, scored, with its card.

python scripts/package_tiny.py runs/tiny/stage-3 --stages stages.json

The JSON of `--stages` holds what `finecaption scenes score --json` printed after each part of the training, in order:
{"warm start": {...}, "stage 1": {...}, ...}.
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from finecaption_hf import EMBEDDED_CHECKPOINT, register
from finecaption_hf.asking import FineCaptionDescriber, load
from finecaption_hf.modeling_finecaption import FineCaptionForConditionalGeneration
from finecaption_hf.scenes import ATTRIBUTE_NAMES, FACETS, QUESTIONS, VIEWPOINTS, triples
from finecaption_hf.scenes.attributes import OBJECT_FACETS, PERSON_FACETS, SPLIT_FACETS
from finecaption_hf.scenes.scoring import score_scenes

SENTENCES = tuple(name for name in QUESTIONS if name not in ATTRIBUTE_NAMES)
MIN_REGIONS = 1000

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags:
- custom_code
- finecaption
- region-captioning
- rendered-scenes-only
---

# finecaption-tiny

**This model knows rendered scenes only.** It does not describe photographs: on a photograph it answers with the drawn
objects and people that it knows. It exists so that FineCaption runs, is tested and can be tried without a download;
every part of the full architecture is there at small size.

FineCaption (arXiv 2411.15411) describes any region of an image, given as a mask. Here the mask-aware CLIP tower sees
84 px, the ConvNeXt and SAM towers 256 px, and a region becomes {tokens} image tokens on an 8x8 grid. {parameters:.2f}
million parameters, trained from scratch.

## Use

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
chat = processor.conversation(Image.open("scene.png"), "color", mask={{"box_xyxy": [178, 25, 249, 96]}})
inputs = processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs)
print(processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])
```

Questions that it was trained on: {questions}. It understands these wordings only.

## Data

Scenes that the package renders itself (`finecaption_hf.scenes`): two or three regions that do not overlap, one of them
often a person, with exact masks and exact answers to the 16 attributes that the paper's figures name. Objects vary in
{objects}; people in {people}; the picture in the camera's height ({viewpoints}). A region may cast a shadow or a
reflection, and a rope may tie it to its neighbor. Textures of materials and skin are visible at 256 px and gone at
84 px. {held_out}; every object and person of a test scene is one of those kept out of training.

## Results

Share of right answers by free greedy generation on {scenes} held-out scenes with {regions} regions, seed {seed}
(`finecaption scenes score --n {scenes} --json`); an answer is right if it is, word for word, one of the wordings of the
truth. In brackets the 95 % Wilson interval. A question is asked where it applies: an object has no hair. The last
column counts pairs of regions of one picture whose true answers differ: both answers must be right, so it would be 0
for a model that ignores the mask. Sentences (region, dense, global) count as right only if every word is; the global
caption is asked once per scene.

| question | asked | right | both of a pair |
|---|---|---|---|
{rows}
{stages}
## Training

In three steps, all on rendered scenes{training}. `scripts/warm_start_tiny.py` in the repository stands in for the
pretrained encoders and the pretrained language model of the full size: with alpha at zero and the whole picture as
region, the towers learn what lies in each grid cell, the language model the wording, and all of it to answer about
pictures of one object or person. From there `finecaption train --recipe finecaption-tiny` runs the paper's stages:
first the adapter alone, then the alpha convolution alone, then everything. Code and weights are under Apache-2.0.
"""

STAGES = """
### Stage by stage

The same questions after each part of the training ({scenes}). Right answers:

{right}

Both answers of a pair right:

{pairs}
"""


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def stage_tables(stages: dict[str, dict[str, Any]]) -> str:
    """Accuracy with intervals, and pairs, by question and stage; nothing without stages."""
    if not stages:
        return ""
    asked = [name for name in QUESTIONS if any(name in score["accuracy"] for score in stages.values())]
    right, pairs = [], []
    for name in asked:
        cells = []
        for score in stages.values():
            low, high = score["intervals_95"].get(name, (0, 0))
            cells.append(
                f"{score['accuracy'][name]:.3f} ({low:.3f} to {high:.3f})" if name in score["accuracy"] else ""
            )
        right.append([name, *cells])
        shares = [score["both_of_a_pair"].get(name) for score in stages.values()]
        if any(share is not None for share in shares):
            pairs.append([name, *("" if share is None else f"{share:.3f}" for share in shares)])
    counted = {f"{score['scenes']} scenes, {score['regions']} regions" for score in stages.values()}
    columns = ["question", *stages]
    return STAGES.format(right=table(columns, right), pairs=table(columns, pairs), scenes="; ".join(sorted(counted)))


def card(model: FineCaptionForConditionalGeneration, score: dict[str, Any], training: str) -> str:
    rows = []
    for part in (score, score["sentences"]):
        for name, share in part["accuracy"].items():
            low, high = part["intervals_95"][name]
            pair = part["both_of_a_pair"].get(name)
            cells = (f"{share:.3f} ({low:.3f} to {high:.3f})", "" if pair is None else f"{pair:.3f}")
            rows.append(f"| {name} | {part['counts'][name]} | {cells[0]} | {cells[1]} |")

    def varied(names: tuple[str, ...] | list[str]) -> str:
        return ", ".join(f"{name.replace('_', ' ')} ({len(FACETS[name])})" for name in names)

    held_out = []
    for sort, names in SPLIT_FACETS.items():
        kept, shown = len(triples(sort, "test")), len(triples(sort, "train"))
        facets = ", ".join(name.replace("_", " ") for name in names)
        held_out.append(f"{kept} of the {kept + shown} combinations of {facets}")
    return CARD.format(
        tokens=model.config.image_seq_length,
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        questions="; ".join(f"{name} (“{text}”)" for name, text in QUESTIONS.items()),
        objects=varied([*OBJECT_FACETS, "effect"]),
        people=varied([*PERSON_FACETS]),
        viewpoints=", ".join(VIEWPOINTS),
        held_out=f"Kept out of training are {' and '.join(held_out)}",
        rows="\n".join(rows),
        stages=stage_tables(score["stages"]),
        training=training,
        **{key: score[key] for key in ("scenes", "regions", "seed")},
    )


def measure(model: Any, processor: Any, scenes: int) -> dict[str, Any]:
    """The score of attributes, with the one of sentences under its own name."""
    describer = FineCaptionDescriber(model, processor)
    score = score_scenes(describer, scenes)
    if score["regions"] < MIN_REGIONS:
        raise ValueError(
            f"{scenes} scenes have {score['regions']} regions, fewer than {MIN_REGIONS}. Give more --scenes."
        )
    sentences = score_scenes(describer, scenes, names=SENTENCES)
    score["sentences"] = {key: sentences[key] for key in ("accuracy", "intervals_95", "counts", "both_of_a_pair")}
    return score


def link_code(folder: Path) -> None:
    """Let a checkpoint's code be links to the package's files: in the repository they stand once."""
    package = EMBEDDED_CHECKPOINT.parents[1]
    for copied in folder.glob("*.py"):
        copied.unlink()
    for original in package.glob("*_finecaption.py"):
        (folder / original.name).symlink_to(os.path.relpath(original, folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="complete checkpoint folder")
    parser.add_argument("--output", type=Path, default=EMBEDDED_CHECKPOINT, help="by default the embedded checkpoint")
    parser.add_argument("--scenes", type=int, default=500, help="held-out scenes that the card's numbers come from")
    parser.add_argument("--stages", type=Path, help="JSON file with the score after each part of the training")
    parser.add_argument("--training", default="", help="what the card adds on where and how long it was trained")
    args = parser.parse_args()
    register()
    stages = json.loads(args.stages.read_text(encoding="utf-8")) if args.stages else {}
    model, processor = load(args.weights)
    if dict(processor.questions) != QUESTIONS:
        raise ValueError(f"The processor in {args.weights} knows other questions than the scenes ask.")
    score = {**measure(model, processor, args.scenes), "stages": stages}
    processor.tokenizer.init_kwargs.pop("local_files_only", None)  # how it was loaded here
    # The old folder goes when the new one is complete; loading and saving leaves a trainer's files behind.
    fresh = args.output.with_name(f"{args.output.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    processor.save_pretrained(fresh)
    link_code(fresh)
    (fresh / "README.md").write_text(card(model, score, args.training), encoding="utf-8")
    (fresh / "score.json").write_text(json.dumps(score, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(args.output, ignore_errors=True)
    fresh.rename(args.output)


if __name__ == "__main__":
    main()
