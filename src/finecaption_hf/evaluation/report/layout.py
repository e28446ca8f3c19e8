"""What a report shows, in order, as blocks that both Markdown and HTML are made of."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...card_finecaption import metrics_table
from ..judging import LABELS
from .card import model_index

MAIN_METRICS = ("rouge_l", "bleu_4", "meteor_segments", "cider", "bertscore")
"""Those that tables of groups show; report.json has all."""


@dataclass(frozen=True)
class Heading:
    text: str
    level: int


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Code:
    text: str
    language: str = ""


@dataclass(frozen=True)
class Table:
    """The last `texts` columns are texts, as is the first; the others are numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 0

    def is_number(self, column: int) -> bool:
        return 0 < column < len(self.columns) - self.texts


@dataclass(frozen=True)
class Picture:
    """A file beside the report."""

    path: str
    alt: str


@dataclass(frozen=True)
class Example:
    """A region with what was said and what should have been; `picture` is a file beside the report."""

    picture: str | None
    title: str
    lines: Sequence[tuple[str, str]]


Block = Heading | Paragraph | Code | Table | Picture | Example


def layout(report: Mapping[str, Any]) -> list[Block]:
    """The blocks of a report, from the content of report.json."""
    counts = report["counts"]
    whole = report["data"].get("whole_images")
    whole = "" if whole is None else f" ({whole:,} of them whole pictures)"
    blocks: list[Block] = [
        Heading(f"{report['model']} on {report['data'].get('name') or 'unnamed data'}", 1),
        Paragraph(
            f"{counts['captions']:,} captions about {counts['regions']:,} regions{whole} of {counts['images']:,} "
            f"images. Metrics are x100, over all {counts['captions']:,} captions, with 95 % intervals resampled by "
            f"image ({report['resampling']['resamples']:,} resamples, seed {report['resampling']['seed']})."
        ),
    ]
    rejected = report["data"].get("rejected_records")
    if counts["errors"] or counts["empty"] or rejected:
        blocks.append(
            Paragraph(
                f"{counts['errors']:,} captions could not be made and count as empty texts; {counts['empty']:,} more "
                f"are empty. {rejected or 0:,} records of the data could not be read and are not among the captions."
            )
        )
    if report["errors"]:
        rows = [[f"{it['captions']:,}", it["type"], it["message"], it["first"]] for it in report["errors"]]
        blocks += [Heading("What could not be described", 2), Table(("captions", "error", "message", "first"), rows, 3)]
    blocks += _metrics(report)
    if report.get("comparison"):
        blocks += _comparison(report["comparison"])
    blocks += _groups("By attribute", "attribute", report["by_attribute"], report["plots"].get("by_attribute"))
    blocks += _groups("By region size", "share of the image", report["by_size"], report["plots"].get("by_size"))
    blocks += _examples(report)
    for part in report.get("diagnostics") or ():
        blocks.append(Heading(str(part["title"]), 2))
        blocks.append(
            Table(
                [str(name) for name in part["table"]["columns"]], [list(map(str, row)) for row in part["table"]["rows"]]
            )
        )
        blocks += [Paragraph(str(note)) for note in part.get("notes") or ()]
    return blocks + _card(report) + _origin(report)


def _metrics(report: Mapping[str, Any]) -> list[Block]:
    rows = [
        [row["label"], _number(row["value"]), _bounds(row["interval_95"]), f"{row['segments']:,}", row["note"]]
        for row in report["metrics"].values()
    ]
    blocks: list[Block] = [
        Heading("Metrics", 2),
        Table(("metric", "value", "95 % interval", "captions", "what the interval is about"), rows, 1),
    ]
    if not report["plots"]:
        blocks.append(Paragraph(report["plots_missing"]))
    if plot := report["plots"].get("distribution"):
        blocks.append(Picture(plot, "How the captions' values are distributed"))
    return blocks


def _comparison(comparison: Mapping[str, Any]) -> list[Block]:
    rows = [
        [
            row["label"],
            _number(row["first"]),
            _number(row["second"]),
            f"{row['difference']:+.2f}",
            _bounds(row["interval_95"], sign=True),
            *(f"{row[name]:,}" if name in row else "" for name in ("better", "equal", "worse")),
        ]
        for row in comparison["metrics"].values()
    ]
    blocks: list[Block] = [
        Heading(f"Compared with {comparison['model']}", 2),
        Paragraph(
            f"Differences are {comparison['first']} minus {comparison['model']}, on the same branches; both are "
            "computed on the same resamples of images. Between models that are alike, one interval in twenty leaves 0 "
            "out by chance: look at one metric over all captions before the many by attribute."
        ),
        Table(
            (
                "metric",
                comparison["first"],
                comparison["model"],
                "difference",
                "95 % interval",
                "better",
                "equal",
                "worse",
            ),
            rows,
        ),
    ]
    if comparison.get("plot"):
        blocks.append(Picture(comparison["plot"], "Paired differences with intervals"))
    names = [name for name in MAIN_METRICS if name in comparison["metrics"]]
    by_attribute = [
        [
            group["name"],
            f"{group['captions']:,}",
            *(_difference(group["metrics"][name]) for name in names),
        ]
        for group in comparison["by_attribute"]
    ]
    blocks.append(Table(("attribute", "captions", *(LABELS[name] for name in names)), by_attribute))
    return blocks


def _groups(title: str, what: str, groups: Sequence[Mapping[str, Any]], plot: str | None) -> list[Block]:
    names = [name for name in MAIN_METRICS if any(name in group["metrics"] for group in groups)]
    rows = [
        [
            group["name"],
            f"{group['captions']:,}",
            f"{group['images']:,}",
            *(_with_bounds(group["metrics"].get(name)) for name in names),
        ]
        for group in groups
    ]
    blocks: list[Block] = [
        Heading(title, 2),
        Table((what, "captions", "images", *(LABELS[name] for name in names)), rows),
    ]
    if plot:
        blocks.append(Picture(plot, title))
    return blocks


def _examples(report: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    label = LABELS.get(report["examples"]["metric"], "")
    for which in ("best", "worst"):
        chosen = report["examples"][which]
        if chosen:
            blocks.append(Heading(f"The {which} by {label}", 2))
        for entry in chosen:
            said = f"({entry['error']['type']}: {entry['error']['message']})" if entry["error"] else entry["prediction"]
            lines = [
                ("asked", entry["question"]),
                ("said", said or "(nothing)"),
                *(("reference", text) for text in entry["references"]),
                (label, _number(entry["score"])),
            ]
            title = f"{entry['image']}, region {entry['region_index']}"
            if entry["name"]:
                title += f": {entry['name']}"
            blocks.append(Example(entry["picture"], title, lines))
    if blocks and (missing := report["examples"].get("pictures_missing")):
        blocks.append(Paragraph(missing))
    return blocks


def _card(report: Mapping[str, Any]) -> list[Block]:
    return [
        Heading("For a model card", 2),
        Code("\n".join(metrics_table(report)), "markdown"),
        Code(model_index(report).rstrip(), "yaml"),
    ]


def _origin(report: Mapping[str, Any]) -> list[Block]:
    prompts = [[name or "", f"{count:,}", text] for name, text, count in report["prompts"]]
    return [
        Heading("How this was made", 2),
        Code("\n".join(filter(None, report["commands"].values())) or "(from Python)", "sh"),
        Table(("", "version"), [[name, str(version)] for name, version in report["versions"].items()], 1),
        Paragraph("Signature of the metrics:"),
        Code(report["signature"]),
        Paragraph("Settings of the model, and data:"),
        Code(
            json.dumps({"settings": report["settings"], "data": report["data"]}, ensure_ascii=False, indent=2), "json"
        ),
        Heading("Prompts", 3),
        Table(("name", "captions", "question"), prompts, 1),
    ]


def _number(value: float) -> str:
    return f"{value:.2f}"


def _bounds(bounds: Sequence[float] | None, *, sign: bool = False) -> str:
    if bounds is None:
        return ""
    return f"{bounds[0]:+.2f} to {bounds[1]:+.2f}" if sign else f"{bounds[0]:.2f} to {bounds[1]:.2f}"


def _difference(row: Mapping[str, Any]) -> str:
    bounds = _bounds(row["interval_95"], sign=True)
    return f"{row['difference']:+.2f}" + (f" ({bounds})" if bounds else "")


def _with_bounds(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return ""
    bounds = _bounds(metric["interval_95"])
    return _number(metric["value"]) + (f" ({bounds})" if bounds else "")
