"""Reports: report.json with all numbers, report.md and report.html with tables, plots and pictures of examples."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.examples import Example
from .card import model_index
from .content import build_report
from .html import to_html
from .layout import layout
from .pictures import example_pictures
from .plots import MISSING, plots

NO_PICTURES = "There are no pictures of the examples: they need the data (--data), with its images."


def write_report(
    output: str | os.PathLike[str],
    report: dict[str, Any],
    segments: Mapping[str, Sequence[float]],
    dataset: Iterable[Example] | None = None,
) -> Path:
    """Write report.json, report.md, report.html, model-index.yaml, and the pictures that they show.

    Args:
        output: a folder; it is made if it is not there.
        report: as `build_report` gives it; the paths of pictures are added.
        segments: by metric the values of all captions, for their distribution.
        dataset: what the predictions are about, for pictures of the examples.

    Returns:
        The path of report.html.
    """
    folder = Path(output)
    files: dict[str, bytes] = {}
    report["plots"], report["plots_missing"] = {}, ""
    try:
        for name, plot in plots(report, segments).items():
            files[f"plots/{name}.png"] = plot
            report["plots"][name] = f"plots/{name}.png"
    except ImportError:
        report["plots_missing"] = MISSING
    if report.get("comparison"):
        report["comparison"]["plot"] = report["plots"].pop("comparison", None)
    chosen = {which: report["examples"][which] for which in ("best", "worst")}
    wanted = {(entry["image"], entry["region_index"]) for entries in chosen.values() for entry in entries}
    pictures = example_pictures(dataset, wanted) if dataset is not None else {}
    for which, entries in chosen.items():
        for number, entry in enumerate(entries, start=1):
            data = pictures.get((entry["image"], entry["region_index"]))
            entry["picture"] = None if data is None else f"examples/{which}-{number}.jpg"
            if data is not None:
                files[entry["picture"]] = data
    report["examples"]["pictures_missing"] = NO_PICTURES if dataset is None else ""

    for path in ("plots", "examples"):
        for old in folder.glob(f"{path}/*"):  # of an earlier report
            if f"{path}/{old.name}" not in files:
                old.unlink()
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    folder.mkdir(parents=True, exist_ok=True)
    text = layout(report)
    _write(folder / "report.json", json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    _write(folder / "report.md", text)
    _write(folder / "model-index.yaml", model_index(report))
    _write(folder / "report.html", to_html(text, files))
    return folder / "report.html"


def _write(path: Path, text: str) -> None:
    # Half a surrogate pair, as in file names that are no UTF-8, cannot be written as it is.
    path.write_bytes(text.encode("utf-8", "backslashreplace"))


__all__ = ["build_report", "model_index", "write_report"]
