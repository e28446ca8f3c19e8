"""The metrics as an `evaluate.Metric`, and as what `Trainer` calls after an evaluation."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import evaluate
import numpy as np

from .errors import MetricError
from .scores import METRICS, CaptionScorer, checked_captions

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedTokenizerBase

_INPUTS = """
Args:
    predictions: a list of captions.
    references: for each of them a reference, or a list of references.
    per_segment: also return "segments", the values of each caption by metric.
Returns:
    All values x100 by name, and "signature", which says how they were made.
"""
_CITATION = """
@inproceedings{hua2025finecaption,
  title={FineCaption: Compositional Image Captioning Focusing on Wherever You Want at Any Granularity},
  author={Hua, Hang and others}, booktitle={CVPR}, year={2025}
}
"""


class RegionCaptionMetrics(evaluate.Metric):
    """ROUGE-L, BLEU, METEOR, CIDEr and BERTScore of region captions, without network.

    >>> metric = RegionCaptionMetrics(["rouge_l", "bleu", "cider"])
    >>> metric.add_batch(predictions=["A red mug."], references=["A mug, red."])
    >>> metric.compute(per_segment=True)

    On several processes (`num_process`, `process_id` and a common `experiment_id`) the captions of all are scored
    together by process 0, in the order of the processes; `compute` returns `None` on the others.

    Args:
        metrics: of `METRICS`.
        **options: those of `CaptionScorer`, and those of `evaluate.Metric`, such as `keep_in_memory`, `cache_dir`,
            `num_process`.

    Raises:
        MetricError: If a metric or tokenizer is unknown, or something is missing that one of them needs.
    """

    def __init__(self, metrics: Sequence[str] = METRICS, **options: Any) -> None:
        # Declared here because the base class, which sets them, has no types.
        self.filelocks: list[Any] | None
        self.file_paths: list[str] | None
        scoring = {field.name for field in fields(CaptionScorer) if field.kw_only}
        self._scorer = CaptionScorer(metrics, **{name: options.pop(name) for name in scoring & options.keys()})
        super().__init__(**options)

    def _info(self) -> evaluate.MetricInfo:
        strings = datasets.Value("string")
        return evaluate.MetricInfo(
            description="The caption metrics of the FineCaption paper.",
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": strings, "references": datasets.Sequence(strings)}),
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add captions and their references."""
        hypotheses, groups = checked_captions(predictions, references)
        super().add_batch(predictions=hypotheses, references=groups, **kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one caption and its reference or references."""
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """Score all captions that were added, and those given here."""
        if predictions is None and references is None and self.writer is None:
            raise MetricError("There are no captions. Give predictions and references, or add some before.")
        try:
            found = super().compute(predictions=predictions, references=references, **kwargs)
        except BaseException:
            self._release()
            raise
        # Those files are gone and their names free for others.
        self.filelocks, self.file_paths = None, None
        return found

    def _compute(self, *, predictions: Any = None, references: Any = None, per_segment: bool = False) -> dict[str, Any]:
        scores = self._scorer(predictions, references)
        found: dict[str, Any] = {**scores.corpus, "signature": scores.signature}
        return {**found, "segments": scores.segments} if per_segment else found

    def _release(self) -> None:
        """Drop what the base class keeps when scoring fails: files, locked and full of captions of a finished run."""
        left: list[tuple[Any, str]] = list(zip(self.filelocks or [], self.file_paths or []))
        self.filelocks, self.file_paths, self.data = None, None, None
        for lock, path in left:
            with suppress(OSError):
                Path(path).unlink()
            lock.release()


def trainer_metrics(
    metric: RegionCaptionMetrics, tokenizer: "PreTrainedTokenizerBase"
) -> "Callable[[EvalPrediction], dict[str, Any]]":
    """What `Trainer(compute_metrics=..)` takes, for a trainer whose prediction step returns generated tokens.

    >>> trainer = Seq2SeqTrainer(..., compute_metrics=trainer_metrics(RegionCaptionMetrics(["cider"]), tokenizer))

    Args:
        metric: scores the captions.
        tokenizer: decodes `predictions` and `label_ids`, both of shape (N, L): row by row the generated answer alone,
            without its question, and the reference. Ids below 0 are padding, special tokens are dropped.

    Returns:
        A function that returns the metric's values and signature.
    """

    def compute_metrics(evaluated: "EvalPrediction") -> dict[str, Any]:
        given = evaluated.predictions[0] if isinstance(evaluated.predictions, tuple) else evaluated.predictions
        predictions, labels = np.asarray(given), np.asarray(evaluated.label_ids)
        if predictions.ndim != 2 or not np.issubdtype(predictions.dtype, np.integer):
            raise MetricError(
                f"The predictions are {predictions.dtype} of shape {predictions.shape}, where captions are scored from "
                "ids (N, L) of generated tokens. Logits of given answers are no captions: use Seq2SeqTrainer with "
                "predict_with_generate=True, or a prediction_step that generates."
            )
        found = metric.compute(predictions=_decoded(tokenizer, predictions), references=_decoded(tokenizer, labels))
        assert found is not None
        return found

    return compute_metrics


def _decoded(tokenizer: "PreTrainedTokenizerBase", ids: np.ndarray) -> list[str]:
    """Texts of rows (N, L), without what is padded or special."""
    return [tokenizer.decode(row[row >= 0].tolist(), skip_special_tokens=True) for row in ids]
