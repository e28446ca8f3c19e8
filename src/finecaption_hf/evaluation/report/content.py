"""The content of report.json: all numbers of a report, and how they were made."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ... import __version__
from ...prompts_finecaption import no_such
from ..intervals import RESAMPLES
from ..judging import Judged, by_attribute, by_size, compare, examples, group_table, metric_table
from ..predictions import Header, Prediction

FORMAT = 1
_MAX_ERRORS = 20
_MAX_TEXT = 2000  # characters of a text in an example
_EXAMPLES_BY = ("rouge_l", "meteor", "bertscore", "cider", "bleu_4")


def build_report(
    header: Header,
    judged: Judged,
    *,
    other: tuple[Header, Judged] | None = None,
    diagnostics: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
    num_examples: int = 6,
    examples_by: str | None = None,
    command: str = "",
) -> dict[str, Any]:
    """All of a report but its pictures.

    Args:
        header, judged: the run.
        other: a run on the same branches to compare with.
        diagnostics: further tables: `title`, `table` (`columns`, and `rows` of text), perhaps `notes` (texts); whatever
            else they hold goes into report.json.
        seed, resamples: of the intervals.
        num_examples: how many of the best and of the worst.
        examples_by: the metric that chooses them; by default the first there is of ROUGE-L, METEOR, BERTScore, CIDEr.
        command: that makes the report.

    Raises:
        ValueError: If `examples_by` was not computed, or the other run is about other branches.
    """
    predictions = judged.predictions
    headers = [header, *([] if other is None else [other[0]])]
    versions = {
        "finecaption-hf": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        **{f"{name} (predictions)": version for name, version in header.made_with.get("versions", {}).items()},
    }
    failed = [prediction for prediction in predictions if prediction.error is not None]
    report: dict[str, Any] = {
        "finecaption_report": FORMAT,
        "model": header.model,
        "model_notes": [note for head in headers if (note := head.made_with.get("model_note"))],
        "settings": header.settings,
        "data": header.data,
        "counts": {
            "images": len(set(judged.images)),
            "regions": len({(it.image, it.region_index) for it in predictions}),
            "captions": len(predictions),
            "errors": len(failed),
            "empty": sum(it.error is None and not (it.prediction or "").strip() for it in predictions),
        },
        "errors": _errors(failed),
        "metrics": metric_table(judged, seed=seed, resamples=resamples),
        "by_attribute": group_table(judged, by_attribute(predictions), seed=seed, resamples=resamples),
        "by_size": group_table(judged, by_size(predictions), seed=seed, resamples=resamples),
        "examples": _examples(judged, examples_by, num_examples),
        "diagnostics": list(diagnostics),
        "resampling": {"unit": "image", "method": "percentile", "resamples": resamples, "seed": seed},
        "signature": judged.signature,
        "versions": versions,
        "commands": {"predictions": header.made_with.get("command", ""), "report": command},
        "prompts": _prompts(predictions),
    }
    if other is not None:
        other_header, other_judged = other
        first, second = header.model, other_header.model
        if first == second:
            first, second = f"{first} (this run)", f"{second} (the other run)"
        report["commands"]["predictions of the other run"] = other_header.made_with.get("command", "")
        report["comparison"] = {
            "model": second,
            "first": first,
            "settings": other_header.settings,
            "errors": sum(it.error is not None for it in other_judged.predictions),
            **compare(judged, other_judged, seed=seed, resamples=resamples),
        }
    return report


def _errors(failed: Sequence[Prediction]) -> list[dict[str, Any]]:
    """What went wrong, the most frequent first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for prediction in failed:
        error = prediction.error or {}
        key = (error.get("type", ""), _short(error.get("message", ""), 300))
        groups.setdefault(key, []).append(prediction.key)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    errors = [
        {"type": kind, "message": message, "captions": len(keys), "first": keys[0]}
        for (kind, message), keys in ordered[:_MAX_ERRORS]
    ]
    if len(ordered) > _MAX_ERRORS:
        rest = ordered[_MAX_ERRORS:]
        message = f"{len(rest)} further errors, see the lines with an error among the predictions"
        errors.append(
            {"type": "...", "message": message, "captions": sum(len(keys) for _, keys in rest), "first": rest[0][1][0]}
        )
    return errors


def _examples(judged: Judged, metric: str | None, count: int) -> dict[str, Any]:
    if metric is None:
        metric = next((name for name in _EXAMPLES_BY if name in judged.segments), None)
    if metric is None:
        return {"metric": None, "best": [], "worst": []}
    if metric not in judged.segments:
        raise ValueError(
            f"{no_such('metric of captions', metric, judged.segments)} Examples are chosen by one of them."
        )
    best, worst = examples(judged, metric, count)
    values = judged.segments[metric]
    return {
        "metric": metric,
        "best": [_example(judged.predictions[number], values[number]) for number in best],
        "worst": [_example(judged.predictions[number], values[number]) for number in worst],
    }


def _example(prediction: Prediction, score: float) -> dict[str, Any]:
    return {
        "key": prediction.key,
        "image": prediction.image,
        "region_index": prediction.region_index,
        "name": prediction.name,
        "question": _short(prediction.question),
        "prediction": None if prediction.prediction is None else _short(prediction.prediction),
        "references": [_short(text) for text in prediction.references],
        "error": None if prediction.error is None else dict(prediction.error),
        "score": round(score, 4),
        "picture": None,
    }


def _prompts(predictions: Sequence[Prediction]) -> list[tuple[str | None, str, int]]:
    """(name, question, how often it was asked), the most frequent first, 100 at most."""
    counts: dict[tuple[str | None, str], int] = {}
    for prediction in predictions:
        key = (prediction.name, _short(prediction.question, 300))
        counts[key] = counts.get(key, 0) + 1
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    return [(name, question, count) for (name, question), count in ordered[:100]]


def _short(text: str, most: int = _MAX_TEXT) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
