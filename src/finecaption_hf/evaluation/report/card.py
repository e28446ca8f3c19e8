"""Results in the forms that a model card takes: a row of a Markdown table, and entries of its `model-index`."""

import re
from collections.abc import Mapping
from typing import Any

from .markdown import escape

_METRICS = ("rouge_l", "bleu_4", "meteor", "cider", "bertscore")
_TYPES = {"rouge_l": "rouge", "bleu": "bleu", "meteor": "meteor", "cider": "cider", "bertscore": "bertscore"}


def card_row(report: Mapping[str, Any]) -> list[str]:
    """Header, rule and row of a Markdown table; the row can be put below those of other models."""
    found = [(row["label"], _with_bounds(row)) for name, row in report["metrics"].items() if name in _METRICS]
    header = ["model", "data", "captions", *(label for label, _ in found)]
    cells = [
        escape(str(report["model"])),
        escape(str(report["data"].get("name") or "")),
        str(report["counts"]["captions"]),
        *(value for _, value in found),
    ]
    return [_line(header), _line(["---", "---", *["---:"] * (len(header) - 2)]), _line(cells)]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _with_bounds(row: Mapping[str, Any]) -> str:
    bounds = row["interval_95"]
    return f"{row['value']:.2f}" + ("" if bounds is None else f" ({bounds[0]:.2f} to {bounds[1]:.2f})")


def model_index(report: Mapping[str, Any]) -> str:
    """The `model-index` of a model card's metadata, as YAML."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(model_name=str(report["model"]), eval_results=eval_results(report))
    return str(data.to_yaml())


def eval_results(report: Mapping[str, Any]) -> list[Any]:
    """One `huggingface_hub.EvalResult` per metric; their arguments hold interval, number of captions and signature."""
    from huggingface_hub import EvalResult

    name = str(report["data"].get("name") or "unnamed data")
    results = []
    for metric, row in report["metrics"].items():
        if metric == "meteor_segments":
            continue
        args: dict[str, Any] = {
            "captions": row["segments"],
            "images": row["images"],
            "errors": report["counts"]["errors"],
        }
        if row["interval_95"] is not None:
            args["interval_95"] = row["interval_95"]
        results.append(
            EvalResult(
                task_type="image-text-to-text",
                task_name="Region captioning",
                dataset_type=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "data",
                dataset_name=name,
                metric_type=_TYPES.get(metric, _TYPES.get(metric.split("_")[0], metric)),
                metric_name=row["label"],
                metric_value=round(row["value"], 2),
                metric_args={**args, "signature": report["signature"]},
            )
        )
    return results
