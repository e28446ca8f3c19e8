"""The report of a table of models: what was measured here, and apart from it what others have published."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...data.examples import Example
from ..evaluating import report_on
from ..judging import LABELS, Score
from ..report.markdown import code, escape, table
from .paper import METRIC_NAMES
from .table import RowResult


def report_table(
    results: Sequence[RowResult],
    output: str | os.PathLike[str],
    *,
    score: Score,
    dataset: Iterable[Example] | None = None,
    command: str = "",
    **options: Any,
) -> dict[str, Any]:
    """Report on every finished row, then write table.json and table.md: what was measured, and apart from it what
    others have published about the same data.

    Args:
        results: as `run_table` gives them.
        output: folder of the table; each row's report goes into its own folder.
        score: as for `report_on`.
        dataset: for pictures of examples.
        command: that makes the table.
        **options: further ones of `report_on`, such as `seed`.

    Returns:
        The content of table.json.
    """
    measured = []
    for result in results:
        entry: dict[str, Any] = {**result.row.settings, "error": result.error, "served": dict(result.served)}
        if result.error is None and result.predictions is not None:
            report = report_on(
                result.predictions, result.predictions.parent, score=score, dataset=dataset, command=command, **options
            )
            entry |= {name: report[name] for name in ("metrics", "counts", "data", "signature", "settings")}
            entry["folder"] = result.predictions.parent.name
        measured.append(entry)
    names = [str(entry["data"].get("name") or "") for entry in measured if "data" in entry]
    published = {row.model: row for row in (result.row.cited for result in results) if row is not None}
    beside = [row for row in published.values() if any(map(row.is_about, names))]
    content = {
        "finecaption_table": 1,
        "measured": measured,
        "cited": [asdict(row) for row in beside],
        "not_cited": [
            f"The figures of {row.model} ({row.source}) are about {row.data}. They stand beside that alone; where "
            "these data are it, name them so with --data-name."
            for row in published.values()
            if row not in beside
        ],
        "command": command,
    }
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.json").write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    (folder / "table.md").write_text("\n\n".join(_blocks(content)) + "\n", encoding="utf-8")
    return content


def _blocks(content: Mapping[str, Any]) -> Iterator[str]:
    measured, cited = content["measured"], content["cited"]
    labels = {
        name: metric["label"]
        for entry in measured
        for name, metric in entry.get("metrics", {}).items()
        if name in METRIC_NAMES
    }
    yield "# Comparison of models"
    yield "## Measured here"
    yield "Metrics are x100, with 95 % intervals resampled by image; questions without an answer count as empty."
    rows = []
    for entry in measured:
        metrics, counts = entry.get("metrics", {}), entry.get("counts", {})
        numbers = [_measured(metrics.get(name)) for name in labels]
        failed = entry["error"] or str(counts.get("errors", ""))
        rows.append([entry["name"], str(counts.get("captions", "")), *numbers, entry["referral"]["kind"], failed])
    yield table(("model", "captions", *labels.values(), "referral", "errors"), rows, texts=2)
    if cited:
        yield "## Cited, not measured here"
        yield (
            "Figures as they were published. Data, prompts, decoding and tokenizers may be others than above, so a "
            "difference to a measured figure is no result."
        )
        rows = []
        for row in cited:
            numbers = [f"{row['metrics'][name]:.2f}" if name in row["metrics"] else "" for name in METRIC_NAMES]
            rows.append([row["model"], *numbers, row["data"], row["source"], row["note"]])
        yield table(("model", *(LABELS[name] for name in METRIC_NAMES), "data", "source", "note"), rows, texts=3)
    yield from map(escape, content["not_cited"])
    yield "## Prompts and settings of the measured rows"
    for entry in measured:
        shown = {name: entry.get(name) for name in ("model", "revision", "settings", "options", "served", "signature")}
        shown |= {} if "settings" in entry else {"prompts": entry["prompts"], "referral": entry["referral"]}
        yield f"### {escape(entry['name'])}"
        yield code(json.dumps(shown, ensure_ascii=False, indent=2), "json")
    yield "## Command"
    yield code(content["command"] or "(from Python)", "sh")


def _measured(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return ""
    bounds = metric["interval_95"]
    return f"{metric['value']:.2f}" + ("" if bounds is None else f" [{bounds[0]:.2f}, {bounds[1]:.2f}]")
