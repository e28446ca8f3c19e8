"""What a report.json of `finecaption evaluate` says on a card: tables, and the Hub's forms for results."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from .errors import HubError, is_repo_id

Report = Mapping[str, Any]
"""Content of a report.json of `finecaption evaluate`."""

_METRICS = ("rouge_l", "bleu_4", "meteor", "cider", "bertscore")


def read_report(report: "str | os.PathLike[str] | Report") -> Report:
    """The content of a report.json, from its path or as it is.

    Raises:
        HubError: If it is none that this version reads.
    """
    name = "The evaluation" if isinstance(report, Mapping) else os.fspath(report)
    if not isinstance(report, Mapping):
        try:
            report = json.loads(Path(report).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise HubError(f"{name}: this is no JSON ({error}).") from error
    needed = {"model", "data", "counts", "metrics", "diagnostics", "signature"}
    if not isinstance(report, Mapping) or report.get("finecaption_report") != 1 or not needed <= report.keys():
        raise HubError(f"{name} is no report that this version reads. Give report.json of `finecaption evaluate`.")
    return report


def metrics_table(report: Report, model: str | None = None) -> list[str]:
    """Header, rule and row of a Markdown table; the row can be put below those of other models."""
    found = [(row["label"], _with_bounds(row)) for name, row in report["metrics"].items() if name in _METRICS]
    names = [plain(str(report["model"]) if model is None else model), plain(data_name(report))]
    return [
        _line(["model", "data", "captions", *(label for label, _ in found)]),
        _line(["---", "---", *["---:"] * (len(found) + 1)]),
        _line([*names, report["counts"]["captions"], *(value for _, value in found)]),
    ]


def comparison_table(comparison: Mapping[str, Any]) -> list[str]:
    """A Markdown table of the paired differences to another model, and what they are."""
    rows = []
    for row in comparison["metrics"].values():
        bounds = row["interval_95"]
        interval = "" if bounds is None else f"{bounds[0]:+.2f} to {bounds[1]:+.2f}"
        rows.append(
            [row["label"], f"{row['second']:.2f}", f"{row['first']:.2f}", f"{row['difference']:+.2f}", interval]
        )
    return [
        "Paired differences on the same regions and questions, this checkpoint minus that one.",
        table(["metric", "that one", "this checkpoint", "difference", "95 % interval"], rows),
    ]


def model_index(report: Report, model: str) -> dict[str, Any]:
    """The `model-index` of a card: an entry per metric, with interval, number of captions and signature."""
    name = data_name(report) or "unnamed data"
    results = []
    for metric, row in report["metrics"].items():
        if metric == "meteor_segments":
            continue
        counts = {"captions": row["segments"], "images": row["images"], "errors": report["counts"]["errors"]}
        interval = {} if row["interval_95"] is None else {"interval_95": row["interval_95"]}
        results.append(
            EvalResult(
                task_type="image-text-to-text",
                task_name="Region captioning",
                dataset_type=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "data",
                dataset_name=name,
                metric_type=metric.split("_")[0] if metric in _METRICS else metric,
                metric_name=row["label"],
                metric_value=round(row["value"], 2),
                metric_args={**counts, **interval, "signature": report["signature"]},
            )
        )
    return ModelCardData(model_name=model, eval_results=results).to_dict() if results else {}


def eval_results_file(report: Report, dataset: str) -> dict[str, bytes]:
    """The file of `.eval_results`, with an entry for each metric, by its path.

    Raises:
        HubError: If the data set is none of the Hub.
    """
    if not is_repo_id(dataset):
        raise HubError(f"{dataset!r} is no data set of the Hub. Give owner/name.")
    entries = []
    for name, row in report["metrics"].items():
        bounds = row["interval_95"]
        note = "" if bounds is None else f"95 % interval {bounds[0]:.2f} to {bounds[1]:.2f}; "
        note = f"{row['label']}; {note}{row['segments']} captions; {report['signature']}"
        entries.append(EvalResultEntry(dataset_id=dataset, task_id=name, value=round(row["value"], 2), notes=note))
    text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
    return {f".eval_results/{dataset.replace('/', '--')}.yaml": text.encode()}


def data_name(report: Report) -> str:
    """Of the data; of a path that stands for it, what comes last: the rest is not for others."""
    name = str(report["data"].get("name") or "")
    return name if is_repo_id(name) else Path(name).name


def _with_bounds(row: Mapping[str, Any]) -> str:
    bounds = row["interval_95"]
    return f"{row['value']:.2f}" + ("" if bounds is None else f" ({bounds[0]:.2f} to {bounds[1]:.2f})")


def plain(text: str) -> str:
    """A text that Markdown does not take for markup."""
    return re.sub(r"[\\`*_\[\]~$]", r"\\\g<0>", " ".join(text.split()))


def table(columns: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    return "\n".join(map(_line, [columns, ["---"] * len(columns), *rows]))


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"
