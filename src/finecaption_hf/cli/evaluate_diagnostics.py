"""`finecaption evaluate --diagnostics`: what n-grams do not tell."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

if TYPE_CHECKING:
    from ..asking import FineCaptionDescriber
    from ..data.dataset import RecordDataset

ACCURACY = "accuracy"


def check_names(text: str) -> list[str]:
    """The diagnostics that are asked for.

    Raises:
        ValueError: If there is none of that name.
    """
    from ..evaluation.diagnostics import DIAGNOSTICS

    names = [name.strip() for name in text.split(",") if name.strip()]
    known = (ACCURACY, *DIAGNOSTICS)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"Unknown diagnostics: {', '.join(unknown)}. Known: {', '.join(known)}.")
    return list(dict.fromkeys(names))


def diagnose(
    names: list[str],
    predictions: Path,
    dataset: "RecordDataset",
    describer: "FineCaptionDescriber | None",
    err: Console,
    *,
    limit: int | None,
    seed: int,
) -> list[dict[str, Any]]:
    """Tables for the report, in the order of the names.

    Args:
        names: as `check_names` gives them.
        predictions: the finished file, for exact answers.
        dataset: for those that ask the model itself.
        describer: the model; `None` where only exact answers are asked for.
        limit, seed: of the run.
    """
    from ..evaluation.diagnostics import attribute_accuracy, run_diagnostics
    from ..evaluation.evaluating import read_finished
    from ..scenes import known_answers, known_values

    found: dict[str, dict[str, Any]] = {}
    if ACCURACY in names:
        found[ACCURACY] = attribute_accuracy(read_finished(predictions)[1], known_answers, seed=seed)
    if asked := [name for name in names if name != ACCURACY]:
        assert describer is not None
        # Closed vocabularies are those of the scenes: of other data they would find conflicts that are none.
        known: dict[str, Any] = {"truth": known_answers, "values": known_values()} if _shows_scenes(dataset) else {}
        columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed} records"))
        with Progress(*columns, console=err, transient=True) as progress:
            bars = {name: progress.add_task(name, total=None, visible=False) for name in asked}
            found |= run_diagnostics(
                describer,
                dataset,
                asked,
                limit=limit,
                seed=seed,
                on_record=lambda name, done: progress.update(bars[name], completed=done, visible=True),
                **known,
            )
    return [found[name] for name in names]


def _shows_scenes(dataset: "RecordDataset") -> bool:
    """Whether the first record is a rendered scene, of which the right answers are known."""
    from ..data.records import DataError
    from ..scenes import known_answers

    record = dataset[0]
    region = record.regions[0]
    references = {branch.name: branch.answer for branch in region.branches if branch.name is not None}
    try:
        picture = record.load()
    except DataError:
        return False
    return bool(known_answers(record.id, region.id, (picture.height, picture.width), references))
