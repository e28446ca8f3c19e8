"""What a report shows, in order, as Markdown."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...hub.figures import metrics_table
from ..judging import LABELS
from .card import model_index
from .markdown import anchors, code, escape, folded, picture, table

MAIN_METRICS = ("rouge_l", "bleu_4", "meteor_segments", "cider", "bertscore")
"""Those that tables of groups show; report.json has all."""


def layout(report: Mapping[str, Any]) -> str:
    """A report as Markdown, from the content of report.json. The pictures that it names lie beside it."""
    blocks = list(_blocks(report))
    titles = [block.removeprefix("## ") for block in blocks if block.startswith("## ")]
    contents = "\n".join(f"- [{title}](#{anchor})" for title, anchor in zip(titles, anchors(titles)))
    blocks.insert(blocks.index(f"## {titles[0]}"), contents)
    return "\n\n".join(blocks) + "\n"


def _blocks(report: Mapping[str, Any]) -> Iterator[str]:
    counts, resampling = report["counts"], report["resampling"]
    whole = report["data"].get("whole_images")
    whole = "" if whole is None else f" ({whole:,} of them whole pictures)"
    yield f"# {escape(report['model'])} on {escape(report['data'].get('name') or 'unnamed data')}"
    yield (
        f"{counts['captions']:,} captions about {counts['regions']:,} regions{whole} of {counts['images']:,} images. "
        f"Metrics are x100, over all {counts['captions']:,} captions, with 95 % intervals resampled by image "
        f"({resampling['resamples']:,} resamples, seed {resampling['seed']})."
    )
    yield from (f"**{escape(note)}**" for note in dict.fromkeys(report["model_notes"]))
    rejected = report["data"].get("rejected_records")
    if counts["errors"] or counts["empty"] or rejected:
        yield (
            f"{counts['errors']:,} captions could not be made and count as empty texts; {counts['empty']:,} more "
            f"are empty. {rejected or 0:,} records of the data could not be read and are not among the captions."
        )
    if report["errors"]:
        yield "## What could not be described"
        rows = [[f"{it['captions']:,}", it["type"], it["message"], it["first"]] for it in report["errors"]]
        yield table(("captions", "error", "message", "first"), rows, texts=3)
    yield from _metrics(report)
    if report.get("comparison"):
        yield from _comparison(report["comparison"])
    yield from _groups("By attribute", "attribute", report["by_attribute"], report["plots"].get("by_attribute"))
    yield from _groups("By region size", "share of the image", report["by_size"], report["plots"].get("by_size"))
    yield from _examples(report["examples"])
    for part in report.get("diagnostics") or ():
        yield f"## {escape(str(part['title']))}"
        yield table(list(map(str, part["table"]["columns"])), [list(map(str, row)) for row in part["table"]["rows"]])
        if part.get("notes"):
            yield folded("What these figures are", *(escape(str(note)) for note in part["notes"]))
    yield "## For a model card"
    yield code("\n".join(metrics_table(report)), "markdown")
    yield folded("model-index, for its front matter", code(model_index(report).rstrip(), "yaml"))
    yield from _origin(report)


def _metrics(report: Mapping[str, Any]) -> Iterator[str]:
    yield "## Metrics"
    rows = [
        [row["label"], f"{row['value']:.2f}", _bounds(row), f"{row['segments']:,}", row["note"]]
        for row in report["metrics"].values()
    ]
    yield table(("metric", "value", "95 % interval", "captions", "what the interval is about"), rows, texts=1)
    if not report["plots"]:
        yield escape(report["plots_missing"])
    if plot := report["plots"].get("distribution"):
        yield picture(plot, "How the captions' values are distributed")


def _comparison(comparison: Mapping[str, Any]) -> Iterator[str]:
    first, second = comparison["first"], comparison["model"]
    yield f"## Compared with {escape(second)}"
    reading = (
        f"Differences are {escape(first)} minus {escape(second)}, on the same branches; both are computed on the same "
        "resamples of images. Between models that are alike, one interval in twenty leaves 0 out by chance: look at "
        "one metric over all captions before the many by attribute."
    )
    rows = [
        [
            row["label"],
            f"{row['first']:.2f}",
            f"{row['second']:.2f}",
            f"{row['difference']:+.2f}",
            _bounds(row, "+"),
            *(f"{row[name]:,}" if name in row else "" for name in ("better", "equal", "worse")),
        ]
        for row in comparison["metrics"].values()
    ]
    yield table(("metric", first, second, "difference", "95 % interval", "better", "equal", "worse"), rows)
    yield folded("How to read this", reading)
    plot = comparison.get("plot")
    yield "## Differences by attribute"
    if plot:
        yield picture(plot, "Paired differences with intervals")
    names = [name for name in MAIN_METRICS if name in comparison["metrics"]]
    rows = [
        [group["name"], f"{group['captions']:,}", *(_cell(group["metrics"][name], "difference", "+") for name in names)]
        for group in comparison["by_attribute"]
    ]
    figures = table(("attribute", "captions", *(LABELS[name] for name in names)), rows)
    yield folded("Differences by attribute, as a table", figures) if plot else figures


def _groups(title: str, what: str, groups: Sequence[Mapping[str, Any]], plot: str | None) -> Iterator[str]:
    yield f"## {title}"
    names = [name for name in MAIN_METRICS if any(name in group["metrics"] for group in groups)]
    rows = [
        [
            group["name"],
            f"{group['captions']:,}",
            f"{group['images']:,}",
            *(_cell(group["metrics"].get(name), "value") for name in names),
        ]
        for group in groups
    ]
    figures = table((what, "captions", "images", *(LABELS[name] for name in names)), rows)
    if plot:
        yield picture(plot, title)
    yield folded(f"{title}, as a table", figures) if plot else figures


def _examples(examples: Mapping[str, Any]) -> Iterator[str]:
    label = LABELS.get(examples["metric"], "")
    for which in ("best", "worst"):
        if examples[which]:
            yield f"## The {which} by {label}"
            yield "\n\n".join(_example(entry, label) for entry in examples[which])
    if (examples["best"] or examples["worst"]) and examples.get("pictures_missing"):
        yield escape(examples["pictures_missing"])


def _example(entry: Mapping[str, Any], label: str) -> str:
    """An item of a list, with its picture and a list of what was said."""
    said = f"({entry['error']['type']}: {entry['error']['message']})" if entry["error"] else entry["prediction"]
    name = f": {entry['name']}" if entry["name"] else ""
    title = f"{entry['image']}, region {entry['region_index'] + 1}{name}"
    lines = [
        ("asked", entry["question"]),
        ("said", said or "(nothing)"),
        *(("reference", text) for text in entry["references"]),
        (label, f"{entry['score']:.2f}"),
    ]
    blocks = [
        *([picture(entry["picture"], title)] if entry["picture"] else []),
        f"**{escape(title)}**",
        "\n".join(f"- *{what}:* {escape(text)}" for what, text in lines),
    ]
    return "- " + textwrap.indent("\n\n".join(blocks), "  ").lstrip()


def _origin(report: Mapping[str, Any]) -> Iterator[str]:
    yield "## How this was made"
    yield code("\n".join(dict.fromkeys(filter(None, report["commands"].values()))) or "(from Python)", "sh")
    yield "Signature of the metrics:"
    yield code(report["signature"])
    versions = [[name, str(version)] for name, version in report["versions"].items()]
    yield folded("Versions", table(("", "version"), versions, texts=1))
    made_of = {"settings": report["settings"], "data": report["data"]}
    yield folded("Settings of the model, and data", code(json.dumps(made_of, ensure_ascii=False, indent=2), "json"))
    rows = [[name or "", f"{count:,}", text] for name, text, count in report["prompts"]]
    yield folded("Prompts", table(("name", "captions", "question"), rows, texts=1))


def _bounds(row: Mapping[str, Any], sign: str = "") -> str:
    if row["interval_95"] is None:
        return ""
    return " to ".join(f"{bound:{sign}.2f}" for bound in row["interval_95"])


def _cell(row: Mapping[str, Any] | None, key: str, sign: str = "") -> str:
    """A value with its interval, where there is one."""
    if row is None:
        return ""
    bounds = _bounds(row, sign)
    return f"{row[key]:{sign}.2f}" + (f" ({bounds})" if bounds else "")
