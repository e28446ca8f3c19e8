"""Records with random pictures, masks and answers, for tests of training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny import tiny_model

WORDS = ("red", "blue", "green", "a circle", "a large square", "striped", "a small orange star")
QUESTIONS = ({"name": "Color"}, {"name": "Shape"}, {"question": "What is here?"})


def write_records(folder: Path, number: int, seed: int = 0, whole: bool = True) -> Path:
    """A folder with `records.jsonl` and its pictures: ragged numbers of regions and branches, with global captions."""
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows = []
    for index in range(number):
        name = f"images/{index:04d}.png"
        Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).resize((256, 256)).save(folder / name)
        regions = []
        for _ in range(random.integers(1, 3)):
            x, y = random.integers(0, 128, 2).tolist()
            branches = [
                {**question, "answer": str(random.choice(WORDS))} for question in QUESTIONS[: random.integers(1, 4)]
            ]
            regions.append({"mask": {"box_xyxy": [x, y, x + 90, y + 70]}, "branches": branches})
        if whole:
            regions.append({"mask": None, "branches": [{"name": "global", "answer": f"{index} things on a floor"}]})
        rows.append({"image": name, "id": str(index), "regions": regions})
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "records.jsonl"


def write_checkpoint(folder: Path, processor: Any, seed: int = 0, **changes: Any) -> Path:
    """A random tiny model with a real processor, as a checkpoint; its images are 84 and 256 px."""
    tokenizer = processor.tokenizer
    text = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    changes = {"text_config": {**text, **changes.pop("text_config", {})}, **changes}
    model = tiny_model(seed, image_token_id=processor.image_token_id, **changes)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
