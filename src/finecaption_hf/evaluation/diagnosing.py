"""The diagnostics of an evaluation, by their names."""

from collections.abc import Callable, Sequence
from typing import Any

from ..asking import Describer
from ..data.dataset import ExampleDataset
from ..prompts_finecaption import no_such
from ..scenes import known_answers, known_values, shows_scene
from .diagnostics import DIAGNOSTICS, attribute_accuracy, run_diagnostics
from .predictions import Prediction

ACCURACY = "accuracy"
"""The one that reads predictions, and asks no model."""


def diagnostic_names(text: str) -> list[str]:
    """Names with commas between -> a list, each once.

    Raises:
        ValueError: If there is no diagnostic of that name.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = (ACCURACY, *DIAGNOSTICS)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(no_such("diagnostic", unknown[0], known))
    return list(dict.fromkeys(names))


def diagnose(
    names: Sequence[str],
    predictions: Sequence[Prediction],
    dataset: ExampleDataset,
    describer: Describer | None,
    *,
    limit: int | None = None,
    seed: int = 0,
    on_example: Callable[[str, int], None] = lambda name, done: None,
) -> list[dict[str, Any]]:
    """Tables for the report, in the order of the names.

    Args:
        names: as `diagnostic_names` gives them.
        predictions: of the run, for exact answers.
        dataset: for those that ask the model itself.
        describer: the model; `None` where only exact answers are asked for.
        limit, seed: of the run.
        on_example: called with the name of the diagnostic and the number of examples done.
    """
    found: dict[str, dict[str, Any]] = {}
    if ACCURACY in names:
        found[ACCURACY] = attribute_accuracy(predictions, known_answers, seed=seed)
    if asked := [name for name in names if name != ACCURACY]:
        assert describer is not None
        # Closed vocabularies are those of the scenes: of other data they would find conflicts that are none.
        known: dict[str, Any] = {}
        if shows_scene(dataset[0]):
            known = {"truth": known_answers, "values": known_values()}
        found |= run_diagnostics(describer, dataset, asked, limit=limit, seed=seed, on_example=on_example, **known)
    return [found[name] for name in names]
