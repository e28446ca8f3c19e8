"""Predictions against their references: metrics with intervals, by attribute, by size, and against another model."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..prompts_finecaption import normalise_name
from .errors import EvaluationError
from .intervals import RESAMPLES, Interval, Statistic, differences, intervals
from .predictions import Prediction

if TYPE_CHECKING:
    from .metrics import Scores

LABELS: Mapping[str, str] = {
    "rouge_l": "ROUGE-L",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "meteor_segments": "METEOR, mean of captions",
    "cider": "CIDEr",
    "bertscore": "BERTScore",
    "bertscore_rescaled": "BERTScore, rescaled",
}
"""Metrics by name, as people write them."""

SIZES: tuple[tuple[str, float], ...] = (
    ("under 1 %", 0.01),
    ("1 to 5 %", 0.05),
    ("5 to 20 %", 0.20),
    ("20 to 50 %", 0.50),
    ("50 to under 100 %", 1.0),
)
"""Bins of a region's share of its image: name and upper bound, which is not in the bin."""

WHOLE_IMAGE, UNKNOWN_SIZE, UNNAMED = "whole image", "unknown", "(own words)"

_NOTES = {
    "rouge_l": "mean of captions",
    "bertscore": "mean of captions",
    "bertscore_rescaled": "mean of captions",
    "cider": "mean of captions, with the document frequencies of all references, also within parts",
    "bleu": "corpus value; its n-gram counts are resampled",
    "meteor": "corpus value of METEOR 1.5, which is no mean of captions: no interval",
    "meteor_segments": "mean of the captions' METEOR, beside the corpus value, for intervals and parts",
}

Score = Callable[[Sequence[str], Sequence[Sequence[str]]], "Scores"]

_TINY, _SMALL = 1e-15, 1e-9  # as pycocoevalcap's BLEU adds them


@dataclass(frozen=True)
class Judged:
    """Predictions with their scores, all x100.

    Attributes:
        predictions: S of them. Those with an error count as empty text.
        corpus: the value of each metric over all.
        segments: by metric, one value per prediction.
        statistics: by metric what can be resampled; METEOR's corpus value is not among them, see `meteor_segments`.
        signature: how the metrics were computed.
    """

    predictions: Sequence[Prediction]
    corpus: Mapping[str, float]
    segments: Mapping[str, Sequence[float]]
    statistics: Mapping[str, Statistic]
    signature: str

    @property
    def images(self) -> list[str]:
        """For each prediction its image."""
        return [prediction.image for prediction in self.predictions]


def judge(predictions: Sequence[Prediction], score: Score) -> Judged:
    """Compute the metrics.

    Args:
        predictions: at least one; those with an error count as empty text.
        score: gets predictions and lists of references, and gives `metrics.Scores`.

    Raises:
        ValueError: If there is no prediction, or a metric cannot be computed.
    """
    if not predictions:
        raise ValueError("There are no predictions to judge.")
    # Half a surrogate pair is no text that metrics take.
    texts = [(it.prediction or "").encode("utf-8", "replace").decode() for it in predictions]
    scores = score(texts, [list(prediction.references) for prediction in predictions])
    statistics = {}
    for name, values in scores.segments.items():
        if name.startswith("bleu_"):
            order = int(name.removeprefix("bleu_"))
            statistics[name] = Statistic(np.asarray(scores.bleu_counts, dtype=np.float64), _bleu(order))
        else:
            statistics["meteor_segments" if name == "meteor" else name] = Statistic.mean(values)
    corpus = dict(scores.corpus)
    order_of_names = [name for name in LABELS if name in corpus or name in statistics]
    return Judged(
        predictions,
        corpus,
        {name: list(values) for name, values in scores.segments.items()},
        {name: statistics[name] for name in order_of_names if name in statistics},
        scores.signature,
    )


def _bleu(order: int) -> Callable[[np.ndarray], np.ndarray]:
    """BLEU x100 of counts `(..., 10)`: length, closest reference length, guessed and correct n-grams for n = 1 .. 4."""

    def of_sums(sums: np.ndarray) -> np.ndarray:
        length, reference_length = sums[..., 0], sums[..., 1]
        guessed, correct = sums[..., 2 : 2 + order], sums[..., 6 : 6 + order]
        precision = np.prod((correct + _TINY) / (guessed + _SMALL), axis=-1) ** (1 / order)
        ratio = (length + _TINY) / (reference_length + _SMALL)
        penalty = np.where(ratio < 1, np.exp(1 - 1 / np.maximum(ratio, _TINY)), 1.0)
        return 100 * precision * penalty

    return of_sums


def metric_table(judged: Judged, *, seed: int, resamples: int = RESAMPLES) -> dict[str, dict[str, Any]]:
    """By metric: value, interval, number of images and captions, and what the interval is about."""
    found = dict(zip(judged.statistics, _intervals(judged, None, seed, resamples)))
    table: dict[str, dict[str, Any]] = {}
    for name, label in LABELS.items():
        note = _NOTES["bleu" if name.startswith("bleu_") else name]
        if name in found:
            table[name] = {"label": label, **found[name].to_json(), "note": note}
        elif name in judged.corpus:
            count = len(judged.predictions)
            plain = Interval(judged.corpus[name], None, None, len(set(judged.images)), count)
            table[name] = {"label": label, **plain.to_json(), "note": note}
    return table


def group_table(
    judged: Judged, groups: Sequence[tuple[str, Sequence[int]]], *, seed: int, resamples: int = RESAMPLES
) -> list[dict[str, Any]]:
    """For each group of predictions its metrics with intervals, resampled over the images of the group."""
    rows = []
    for name, chosen in groups:
        found = dict(zip(judged.statistics, _intervals(judged, chosen, seed, resamples)))
        failed = sum(judged.predictions[number].error is not None for number in chosen)
        images = len({judged.predictions[number].image for number in chosen})
        metrics = {metric: each.to_json() for metric, each in found.items()}
        rows.append({"name": name, "captions": len(chosen), "images": images, "errors": failed, "metrics": metrics})
    return rows


def _intervals(judged: Judged, chosen: Sequence[int] | None, seed: int, resamples: int) -> list[Interval]:
    numbers = range(len(judged.predictions)) if chosen is None else chosen
    images = [judged.predictions[number].image for number in numbers]
    statistics = [statistic.of(list(numbers)) for statistic in judged.statistics.values()]
    return intervals(statistics, images, seed=seed, resamples=resamples) if statistics else []


def by_attribute(predictions: Sequence[Prediction]) -> list[tuple[str, list[int]]]:
    """Groups by the name of the question, in the order of their first appearance; spellings do not matter."""
    return _grouped(predictions, _attribute)


def _attribute(prediction: Prediction) -> tuple[Hashable, str]:
    if prediction.name is None:
        return None, UNNAMED
    return normalise_name(prediction.name), prediction.name


def by_size(predictions: Sequence[Prediction]) -> list[tuple[str, list[int]]]:
    """Groups by the region's share of its image (`SIZES`), smallest first; then whole images, then what is unknown."""
    order = [*(name for name, _ in SIZES), WHOLE_IMAGE, UNKNOWN_SIZE]
    found = _grouped(predictions, lambda prediction: (_size(prediction), _size(prediction)))
    return sorted(found, key=lambda group: order.index(group[0]))


def _size(prediction: Prediction) -> str:
    share = prediction.area_share
    if share is None:
        return UNKNOWN_SIZE
    return next((name for name, bound in SIZES if share < bound), WHOLE_IMAGE)


def _grouped(
    predictions: Sequence[Prediction], key: Callable[[Prediction], tuple[Hashable, str]]
) -> list[tuple[str, list[int]]]:
    groups: dict[Hashable, tuple[str, list[int]]] = {}
    for number, prediction in enumerate(predictions):
        form, name = key(prediction)
        groups.setdefault(form, (name, []))[1].append(number)
    return list(groups.values())


def examples(judged: Judged, metric: str, count: int) -> tuple[list[int], list[int]]:
    """The best and the worst predictions by a metric, at most one of an image in each list.

    Among equals, a hash of the key decides, so that the choice is the same in every run and follows no order.
    """
    values = judged.segments[metric]

    def lot(number: int) -> str:
        return hashlib.sha256(judged.predictions[number].key.encode("utf-8", "backslashreplace")).hexdigest()

    ascending = sorted(range(len(values)), key=lambda number: (values[number], lot(number)))
    descending = sorted(range(len(values)), key=lambda number: (-values[number], lot(number)))
    best = _one_per_image(judged, descending, count, taken=set())
    return best, _one_per_image(judged, ascending, count, taken=set(best))


def _one_per_image(judged: Judged, ordered: Sequence[int], count: int, taken: set[int]) -> list[int]:
    found: dict[str, int] = {}
    for number in ordered:
        if len(found) == count:
            break
        if number not in taken:
            found.setdefault(judged.predictions[number].image, number)
    return list(found.values())


def compare(first: Judged, second: Judged, *, seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Paired differences, first minus second, over all and by attribute.

    Raises:
        EvaluationError: If the runs are not about the same branches with the same references.
    """
    places = check_same_branches(first.predictions, second.predictions)
    ordered = {name: statistic.of(places) for name, statistic in second.statistics.items()}
    metrics = [name for name in first.statistics if name in ordered]

    def table(chosen: Sequence[int]) -> dict[str, dict[str, Any]]:
        pairs = [(first.statistics[name].of(chosen), ordered[name].of(chosen)) for name in metrics]
        images = [first.predictions[number].image for number in chosen]
        found = differences(pairs, images, seed=seed, resamples=resamples)
        return {
            name: {
                "label": LABELS[name],
                "first": round(pair[0].value(), 4),
                "second": round(pair[1].value(), 4),
                "difference": each.to_json()["value"],
                "interval_95": each.to_json()["interval_95"],
            }
            for name, pair, each in zip(metrics, pairs, found)
        }

    everything = table(range(len(first.predictions)))
    for name, row in everything.items():
        segment = "meteor" if name == "meteor_segments" else name
        apart = np.asarray(first.segments[segment]) - np.asarray(second.segments[segment])[places]
        row.update(better=int((apart > 0).sum()), equal=int((apart == 0).sum()), worse=int((apart < 0).sum()))
    if "meteor" in first.corpus and "meteor" in second.corpus:
        values = first.corpus["meteor"], second.corpus["meteor"]
        everything["meteor"] = {
            "label": LABELS["meteor"],
            "first": round(values[0], 4),
            "second": round(values[1], 4),
            "difference": round(values[0] - values[1], 4),
            "interval_95": None,
        }
    groups = [
        {"name": name, "captions": len(chosen), "metrics": table(chosen)}
        for name, chosen in by_attribute(first.predictions)
    ]
    return {"metrics": {name: everything[name] for name in LABELS if name in everything}, "by_attribute": groups}


def check_same_branches(first: Sequence[Prediction], second: Sequence[Prediction]) -> list[int]:
    """For each prediction of the first run, the place of the same branch in the second.

    Raises:
        EvaluationError: If keys or references differ.
    """
    places = {prediction.key: number for number, prediction in enumerate(second)}
    keys = {prediction.key for prediction in first}
    missing = [prediction.key for prediction in first if prediction.key not in places]
    more = [key for key in places if key not in keys]
    if missing or more:
        sample = ", ".join(repr(key) for key in [*missing, *more][:3])
        raise EvaluationError(
            f"The runs are about different branches: {len(missing)} are in the first only, {len(more)} in the second "
            f"only, {len(first) - len(missing)} in both (such as {sample}). Paired differences need the same data: "
            "evaluate both on it, with the same --limit."
        )
    changed = [it.key for it in first if set(it.references) != set(second[places[it.key]].references)]
    if changed:
        raise EvaluationError(
            f"{len(changed)} of {len(first)} branches have other references in the second run, such as {changed[0]!r}. "
            "Evaluate both on the same data."
        )
    return [places[prediction.key] for prediction in first]
