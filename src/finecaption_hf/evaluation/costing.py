"""What a change of a checkpoint costs: it and the one that it was made from, evaluated on the same regions."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..asking import load_describer
from ..data.dataset import ExampleDataset
from ..scenes import known_answers, shows_scene
from .diagnostics import attribute_accuracy
from .evaluating import PREDICTIONS, read_finished, report_on
from .judging import Score
from .predicting import run_predictions


def report_cost(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    dataset: ExampleDataset,
    output: str | os.PathLike[str],
    *,
    score: Score,
    data_name: str,
    names: tuple[str, str],
    limit: int | None = None,
    device: str | None = None,
    on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, Any]:
    """Evaluate two checkpoints, each in the precision in which it was saved.

    Args:
        before, after: folders.
        dataset: described regions; of rendered scenes, exact answers are counted too.
        output: folder; `before/` and `after/` in it hold what `finecaption evaluate` writes. Predictions that are there
            already are kept.
        score: as for `report_on`.
        data_name: of the data, for the report.
        names: of the two checkpoints, for the report.
        limit: only so many examples, the first.
        device: for both.
        on_progress: gets a checkpoint's name, the number of captions that are done, and of all.

    Returns:
        The content of `after/report.json`, with the paired differences under `comparison`.
    """
    folders = [Path(output) / "before", Path(output) / "after"]
    knows_answers = shows_scene(dataset[0])
    tables: list[dict[str, Any]] = []
    report: dict[str, Any] = {}
    for folder, checkpoint, name in zip(folders, (before, after), names, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        describer = load_describer(checkpoint, name=name, device=device)
        predictions = run_predictions(
            describer,
            dataset,
            folder / PREDICTIONS,
            data_name=data_name,
            limit=limit,
            on_progress=partial(on_progress, name),
        )
        if knows_answers:
            tables.append(attribute_accuracy(read_finished(predictions)[1], known_answers))
        report = report_on(
            predictions,
            folder,
            score=score,
            dataset=dataset,
            compare_with=folders[0] if report else None,
            diagnostics=_side_by_side(tables, names) if report else tables,
        )
    return report


def _side_by_side(tables: list[dict[str, Any]], names: tuple[str, str]) -> list[dict[str, Any]]:
    """Exact answers of both in one table."""
    if not tables:
        return []
    before, after = tables
    rows = [[*row, changed[-1]] for row, changed in zip(before["table"]["rows"], after["table"]["rows"], strict=True)]
    return [{**after, "table": {"columns": ["question", "answers", *names], "rows": rows}}]
