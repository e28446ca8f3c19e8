"""All of an evaluation: predictions, metrics, report."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.examples import Example
from ..resuming import ResumeError
from .intervals import RESAMPLES
from .judging import Score, check_same_branches, judge
from .predictions import Header, Prediction, read_predictions
from .report import build_report, write_report

PREDICTIONS = "predictions.jsonl"


def report_on(
    predictions: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    score: Score,
    dataset: Iterable[Example] | None = None,
    compare_with: str | os.PathLike[str] | None = None,
    diagnostics: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
    num_examples: int = 6,
    examples_by: str | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Judge a finished file of predictions and write its report.

    Args:
        predictions: the file, see `run_predictions`.
        output: folder of the report.
        score: such as `metrics.CaptionScorer(..)`; it gets predictions and lists of references, and gives `Scores`.
        dataset: what the predictions are about, for pictures of examples.
        compare_with: another file of predictions about the same branches, or the folder of an evaluation.
        diagnostics, seed, resamples, num_examples, examples_by, command: as for `build_report`.

    Returns:
        The content of report.json.

    Raises:
        ResumeError: If a file is damaged or not finished.
        EvaluationError: If the two files are about different branches.
        MetricError: If a metric cannot be computed.
    """
    header, found = read_finished(predictions)
    other = None
    if compare_with is not None:
        path = Path(compare_with)
        other_header, other_found = read_finished(path / PREDICTIONS if path.is_dir() else path)
        check_same_branches(found, other_found)
        other = other_header, judge(other_found, score)
    judged = judge(found, score)
    report = build_report(
        header,
        judged,
        other=other,
        diagnostics=diagnostics,
        seed=seed,
        resamples=resamples,
        num_examples=num_examples,
        examples_by=examples_by,
        command=command,
    )
    write_report(output, report, judged.segments, dataset)
    return report


def read_finished(path: str | os.PathLike[str]) -> tuple[Header, list[Prediction]]:
    """Read predictions, all of which have to be there.

    Raises:
        ResumeError: If the file is damaged, or holds fewer than its header says.
    """
    header, found = read_predictions(path)
    wanted = header.data.get("branches", len(found))
    if len(found) != wanted or not found:
        raise ResumeError(
            f"{path} holds {len(found)} of {wanted} predictions: the run that made it was not finished. Run the same "
            "command again; it goes on where it was."
        )
    return header, found
