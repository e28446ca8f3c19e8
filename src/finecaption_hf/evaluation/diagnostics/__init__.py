"""What n-grams do not tell: exact answers where the truth is known, whether the mask is used, whether answers agree.

Examples:
    >>> from finecaption_hf.evaluation.diagnostics import run_diagnostics
    >>> run_diagnostics(describer, dataset, ["mask"])["mask"]["table"]
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ...asking import Describer, FineCaptionDescriber
from ...asking.describers import AtOnceDescriber, PixelsDescriber
from ...data.examples import Example
from ...prompts_finecaption import no_such
from ..errors import EvaluationError
from .accuracy import attribute_accuracy
from .consistency import attribute_consistency
from .likelihood import AnswerScore, AnswerScorer, score_answers
from .sensitivity import mask_sensitivity
from .tables import Truth, Values

DIAGNOSTICS = ("mask", "mask-own", "consistency", "at-once")
"""`mask` scores the references, `mask-own` the model's own answers; `at-once` compares attributes that are asked alone
with those of one JSON object."""


def check_diagnostics(names: Sequence[str], describer: Describer) -> None:
    """Refuse what cannot be found out about a describer.

    Raises:
        EvaluationError: If a diagnostic looks into the mask-aware tower, and the model is no FineCaption; or wants JSON
            of one that is.
    """
    if "at-once" in names:
        if isinstance(describer, FineCaptionDescriber | PixelsDescriber):
            raise EvaluationError(
                f"The diagnostic at-once wants all attributes as one JSON object, which {describer.name} does not "
                "write. Leave it out, or give a model that follows instructions."
            )
        if isinstance(describer, AtOnceDescriber):
            raise EvaluationError("The diagnostic at-once asks in both ways itself. Leave the option --at-once out.")
    inner = [name for name in names if name in ("mask", "mask-own")]
    if inner and not isinstance(describer, FineCaptionDescriber):
        raise EvaluationError(
            f"The diagnostics {', '.join(inner)} look into FineCaption's mask-aware tower, and {describer.name} is "
            "another model. Leave them out."
        )


def run_diagnostics(
    describer: Describer,
    dataset: Iterable[Example],
    which: Sequence[str] = ("mask", "consistency"),
    *,
    attributes: Sequence[str] | None = None,
    truth: Truth | None = None,
    values: Values | None = None,
    limit: int | None = None,
    seed: int = 0,
    on_example: Callable[[str, int], None] = lambda name, done: None,
) -> dict[str, dict[str, Any]]:
    """Ask a model what its captions do not tell.

    Args:
        describer: the model.
        dataset: examples, which can be iterated again.
        which: of `DIAGNOSTICS`.
        attributes: what `consistency` asks about every region, in place of what its example has.
        truth, values: where right answers, or all values of attributes, are known: `scenes.known_answers` and
            `scenes.known_values()`.
        limit: only so many examples, the first.
        seed: of shuffled masks and of intervals.
        on_example: called with the name of the diagnostic and the number of examples done.

    Returns:
        For each name `title`, `table` (with `columns` and `rows` of text), `notes` and `values` (numbers, for JSON).

    Raises:
        ValueError: If a name is unknown, or there is nothing to measure.
    """
    if not which:
        raise ValueError(f"No diagnostic was given. Give at least one of {', '.join(DIAGNOSTICS)}.")
    if unknown := [name for name in which if name not in DIAGNOSTICS]:
        raise ValueError(no_such("diagnostic", unknown[0], DIAGNOSTICS))
    check_diagnostics(which, describer)
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(which):

        def on_done(done: int, name: str = name) -> None:
            on_example(name, done)

        if name in ("consistency", "at-once"):
            forms: dict[str, Any] = {"captions": (), "together": None, "at_once": AtOnceDescriber(describer)}
            found[name] = attribute_consistency(
                describer,
                dataset,
                **({} if name == "consistency" else forms),
                attributes=attributes,
                values=values,
                truth=truth,
                limit=limit,
                seed=seed,
                on_example=on_done,
            )
        else:
            assert isinstance(describer, FineCaptionDescriber)  # or it was refused
            answers = "own" if name == "mask-own" else "reference"
            found[name] = mask_sensitivity(
                describer, dataset, answers=answers, truth=truth, limit=limit, seed=seed, on_example=on_done
            )
    return found


__all__ = [
    "DIAGNOSTICS",
    "AnswerScore",
    "AnswerScorer",
    "Truth",
    "Values",
    "attribute_accuracy",
    "attribute_consistency",
    "check_diagnostics",
    "mask_sensitivity",
    "run_diagnostics",
    "score_answers",
]
