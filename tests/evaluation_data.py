"""Predictions and records that are enough for tests of evaluation, without a model and without Java."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finecaption_hf.evaluation import Header, Prediction, PredictionWriter
from finecaption_hf.evaluation.metrics import Scores
from finecaption_hf.evaluation.metrics.ngrams import bleu, bleu_counts


def write_data(folder: Path, rows: Sequence[dict[str, Any]], size: tuple[int, int] = (20, 30)) -> Path:
    """A folder with `records.jsonl`, and a picture (height, width) for every image that the rows name."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for name in {row["image"] for row in rows}:
        pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def record(image: str, *regions: dict[str, Any]) -> dict[str, Any]:
    return {"image": image, "id": f"id of {image}", "regions": list(regions)}


def region(mask: Any, *branches: tuple[str, str], id: str = "r") -> dict[str, Any]:
    return {"id": id, "mask": mask, "branches": [{"name": name, "answer": answer} for name, answer in branches]}


def box(x0: int, y0: int, x1: int, y1: int) -> dict[str, Any]:
    return {"box_xyxy": [x0, y0, x1, y1]}


def prediction(key: str, said: str | None, *references: str, **values: Any) -> Prediction:
    """One of a key `image|region|branch`, with an error where nothing is said."""
    image, index, _ = key.rsplit("|", 2)
    error = {"type": "DataError", "message": "it is not there"} if said is None else None
    return Prediction(
        key, image, int(index), values.pop("question", "What?"), references or ("red",), said, error=error, **values
    )


def write_predictions(path: Path, predictions: Sequence[Prediction], model: str = "stub", **data: Any) -> Path:
    header = Header(
        model, {"seed": 0}, {"name": "stubs", "branches": len(predictions), **data}, {"command": "made by hand"}
    )
    with PredictionWriter(path, header) as writer:
        for entry in predictions:
            writer.write(entry)
    return path


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """As `score_captions`: the share of the reference's words as ROUGE-L, and real BLEU over words between spaces."""
    shares = [
        100 * max(len(set(text.split()) & set(reference.split())) / len(set(reference.split())) for reference in group)
        for text, group in zip(predictions, references, strict=True)
    ]
    found = bleu(predictions, references)
    return Scores(
        corpus={"rouge_l": sum(shares) / len(shares), **{name: 100 * value for name, (value, _) in found.items()}},
        segments={
            "rouge_l": shares,
            **{name: [100 * value for value in values] for name, (_, values) in found.items()},
        },
        signature="stub",
        bleu_counts=bleu_counts(predictions, references),
    )
