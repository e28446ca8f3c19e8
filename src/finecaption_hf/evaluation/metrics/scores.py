"""Captions and references in, all metrics out."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Literal

METRICS = ("rouge_l", "bleu", "meteor", "cider", "bertscore")


@dataclass(frozen=True)
class Scores:
    """What `score_captions` found; every value is x100.

    Attributes:
        corpus (`dict[str, float]`): `rouge_l`, `bleu_1` .. `bleu_4`, `meteor`, `cider`, `bertscore`, and
            `bertscore_rescaled` where a baseline is known; those that were asked for.
        segments (`dict[str, list[float]]`): the same names; one value per caption, in the order of the captions.
        signature (`str`): how the values were made: tokenizer, Java, models and versions.
    """

    corpus: dict[str, float]
    segments: dict[str, list[float]]
    signature: str


def score_captions(
    predictions: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    metrics: Sequence[str] = METRICS,
    *,
    tokenizer: Literal["ptb", "python"] = "ptb",
    bertscore_model: str | PathLike[str] = "roberta-large",
    bertscore_layer: int | None = None,
    bertscore_baseline: float | None = None,
    java: str | PathLike[str] | None = None,
    device: str | None = None,
    batch_size: int = 64,
) -> Scores:
    """Score captions."""
    raise NotImplementedError
