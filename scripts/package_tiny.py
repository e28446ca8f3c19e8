#!/usr/bin/env python
"""Make the embedded checkpoint from trained weights: a complete Hub folder with code, processor and card.

python scripts/package_tiny.py runs/tiny/checkpoint      (new weights: score them, write everything)
python scripts/package_tiny.py                           (same weights: copy the Hub files again after a change)
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.dynamic_module_utils import get_relative_import_files

from finecaption_hf import EMBEDDED_CHECKPOINT, register
from finecaption_hf.captioning import load
from finecaption_hf.image_processing_finecaption import FineCaptionImageProcessor
from finecaption_hf.modeling_finecaption import FineCaptionForConditionalGeneration
from finecaption_hf.processing_finecaption import FineCaptionProcessor
from finecaption_hf.scenes import COLORS, HELD_OUT, POSITIONS, QUESTIONS, SHAPES, SIZES, TEXTURES
from finecaption_hf.scenes.scoring import score_scenes

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags:
- custom_code
- finecaption
- region-captioning
---

# finecaption-tiny

**This model knows rendered scenes of coloured shapes only.** It does not describe photographs: on a photograph it
answers with shapes and colours of the scenes it knows. It exists so that FineCaption runs, is tested and can be tried
without a download; every part of the full architecture is there at small size.

FineCaption (arXiv 2411.15411) describes any region of an image, given as a mask. Here the mask-aware CLIP tower sees
84 px, the ConvNeXt and SAM towers 256 px, and a region becomes {tokens} image tokens on an 8x8 grid. {parameters:.2f}
million parameters, trained from scratch.

## Use

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
chat = processor.conversation(Image.open("scene.png"), "color", mask={{"box_xyxy": [40, 60, 120, 140]}})
inputs = processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs)
print(processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])
```

Questions that it was trained on: {questions}. It understands these wordings only.

## Data

Scenes that the package renders itself (`finecaption_hf.scenes`): two to four objects that do not overlap, with exact
masks, in {colors} colours, {shapes} shapes, {textures} textures (visible at 256 px, gone at 84 px), {sizes} sizes and
{positions} positions. {held_out} of the {combinations} combinations of colour, shape and texture were kept out of
training; every object of a test scene is one of them.

## Results

Share of right answers, word for word, by free greedy generation on {scenes} held-out scenes with {regions} regions
(`finecaption scenes score --n {scenes} --json`, seed {seed}); in brackets the 95 % Wilson interval over regions. The
last column counts pairs of regions of one picture whose true answers differ: both answers must be right, so it would be
0 for a model that ignores the mask. Sentences (region, dense, global) count as right only if every word is; the global
caption is asked once per scene.

| question | accuracy | both of a pair |
|---|---|---|
{rows}

## Training

`scripts/train_tiny.py` in the repository, on two CPU cores{training}. The towers first learn which colour,
shape and texture lies in each grid cell (in place of the pretraining that full-size towers bring), the language model
the wording from text alone, then everything trains on captions. All data is rendered; code and weights are under
Apache-2.0.
"""


def write_card(folder: Path, model: FineCaptionForConditionalGeneration, score: dict[str, Any], training: str) -> None:
    rows = []
    for part in (score, score["sentences"]):
        for name, share in part["accuracy"].items():
            low, high = part["intervals_95"][name]
            pair = part["both_of_a_pair"].get(name)
            rows.append(f"| {name} | {share:.3f} ({low:.3f} to {high:.3f}) | {'' if pair is None else f'{pair:.3f}'} |")
    text = CARD.format(
        tokens=model.config.image_seq_length,
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        questions="; ".join(f"{name} (“{text}”)" for name, text in QUESTIONS.items()),
        colors=len(COLORS),
        shapes=len(SHAPES),
        textures=len(TEXTURES),
        sizes=len(SIZES),
        positions=len(POSITIONS),
        held_out=len(HELD_OUT),
        combinations=len(COLORS) * len(SHAPES) * len(TEXTURES),
        rows="\n".join(rows),
        training=training,
        **{key: score[key] for key in ("scenes", "regions", "seed")},
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    (folder / "score.json").write_text(json.dumps(score, indent=2) + "\n", encoding="utf-8")


def copy_code(folder: Path) -> None:
    """Bring the checkpoint's copies of the Hub files up to date."""
    package = Path(sys.modules["finecaption_hf"].__file__ or "").parent
    imported = [file for copy in folder.glob("*.py") for file in get_relative_import_files(package / copy.name)]
    for name in {copy.name for copy in folder.glob("*.py")} | {Path(file).name for file in imported}:
        shutil.copyfile(package / name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "weights", nargs="?", help="checkpoint folder of train_tiny.py; without it, only code is copied"
    )
    parser.add_argument("--scenes", type=int, default=500, help="held-out scenes that the card's numbers come from")
    parser.add_argument("--training", default="", help="what the card adds on how long the training took")
    args = parser.parse_args()
    register()
    if args.weights is None:
        copy_code(EMBEDDED_CHECKPOINT)
        return
    model = FineCaptionForConditionalGeneration.from_pretrained(args.weights).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.weights)
    processor = FineCaptionProcessor(
        FineCaptionImageProcessor(**model.config.image_processor_kwargs()),
        tokenizer,
        chat_template=tokenizer.chat_template,  # kept by the processor, in a file of its own
        image_seq_length=model.config.image_seq_length,
        questions=QUESTIONS,
    )
    tokenizer.init_kwargs.pop("local_files_only", None)  # how it was loaded here
    shutil.rmtree(EMBEDDED_CHECKPOINT, ignore_errors=True)
    model.save_pretrained(EMBEDDED_CHECKPOINT)
    processor.save_pretrained(EMBEDDED_CHECKPOINT)
    model, processor = load()
    score = score_scenes(model, processor, args.scenes)
    sentences = score_scenes(model, processor, args.scenes, names=("region", "dense", "global"))
    score["sentences"] = {key: sentences[key] for key in ("accuracy", "intervals_95", "both_of_a_pair")}
    write_card(EMBEDDED_CHECKPOINT, model, score, args.training)


if __name__ == "__main__":
    main()
