"""Plots of a report, as PNG. They need matplotlib, of the extra `evaluation`."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ... import install_hint
from ..judging import LABELS
from .layout import MAIN_METRICS

MISSING = f"There are no plots: they need matplotlib. {install_hint('evaluation')}, and make the report again."

_INK, _BAR = "#1e78e6", "#9aa0a6"
_MAX_ROWS = 40


def plots(report: Mapping[str, Any], segments: Mapping[str, Sequence[float]]) -> dict[str, bytes]:
    """Name -> PNG of every plot of a report.

    Args:
        report: content of report.json.
        segments: by metric the values of all captions.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    made = {
        "by_attribute": _groups(report["by_attribute"]),
        "by_size": _groups(report["by_size"]),
        "distribution": _distribution(segments),
        "comparison": None if not report.get("comparison") else _differences(report["comparison"]),
    }
    return {name: plot for name, plot in made.items() if plot is not None}


def _figure(columns: int, rows: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.8 + 2.3 * columns, 1.1 + 0.27 * rows), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.3)
    return figure, axes


def _png(figure: Any) -> bytes:
    target = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that matplotlib's font lacks is drawn as boxes; the tables have it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(target, format="png", dpi=110, metadata={"Software": None})
    return target.getvalue()


def _plain(text: str) -> str:
    """A label that matplotlib does not take for a formula."""
    return (text if len(text) <= 42 else f"{text[:41]}…").replace("$", r"\$")


def _groups(groups: Sequence[Mapping[str, Any]]) -> bytes | None:
    shown = groups[:_MAX_ROWS]
    names = [name for name in MAIN_METRICS if any(name in group["metrics"] for group in shown)]
    if not names:
        return None
    figure, axes = _figure(len(names), len(shown))
    for axis, name in zip(axes, names):
        for place, group in enumerate(shown):
            _dot(axis, place, group["metrics"].get(name), "value")
        axis.set_title(LABELS[name], fontsize=9)
        axis.tick_params(labelsize=8)
    labels = [f"{_plain(group['name'])} ({group['captions']:,})" for group in shown]
    axes[0].set_yticks(range(len(shown)), labels)
    axes[0].set_ylim(len(shown) - 0.5, -0.5)
    return _png(figure)


def _dot(axis: Any, place: int, row: Mapping[str, Any] | None, value: str) -> None:
    if row is None:
        return
    if row["interval_95"] is not None:
        axis.plot(row["interval_95"], [place, place], color=_INK, linewidth=1.5, alpha=0.6)
    axis.plot([row[value]], [place], "o", color=_INK, markersize=4)


def _distribution(segments: Mapping[str, Sequence[float]]) -> bytes | None:
    shown = {name: values for name in ("rouge_l", "meteor", "cider", "bertscore") if (values := segments.get(name))}
    if not shown:
        return None
    figure, axes = _figure(len(shown), 7)
    for axis, (name, values) in zip(axes, shown.items()):
        axis.hist(values, bins=30, color=_BAR)
        mean = sum(values) / len(values)
        axis.axvline(mean, color=_INK)
        axis.set_title(f"{LABELS[name]} of captions, mean {mean:.1f}", fontsize=9)
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel("captions", fontsize=8)
    return _png(figure)


def _differences(comparison: Mapping[str, Any]) -> bytes | None:
    names = [name for name in MAIN_METRICS if name in comparison["metrics"]]
    if not names:
        return None
    groups = [{"name": "all", "metrics": comparison["metrics"]}, *comparison["by_attribute"]][:_MAX_ROWS]
    figure, axes = _figure(len(names), len(groups))
    for axis, name in zip(axes, names):
        axis.axvline(0, color=_BAR, linewidth=1)
        for place, group in enumerate(groups):
            _dot(axis, place, group["metrics"].get(name), "difference")
        axis.set_title(f"{LABELS[name]}, difference", fontsize=9)
        axis.tick_params(labelsize=8)
    axes[0].set_yticks(range(len(groups)), [_plain(group["name"]) for group in groups])
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    return _png(figure)
