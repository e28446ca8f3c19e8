"""Exact answers, where the truth is known."""

from collections.abc import Iterable
from typing import Any

from ..predictions import Prediction
from .tables import Truth, as_json, cell, diagnostic, mean_interval, plain_text, told


def attribute_accuracy(predictions: Iterable[Prediction], truth: Truth, *, seed: int = 0) -> dict[str, Any]:
    """How often a prediction is, word for word, one of the wordings of the right answer.

    Case, spacing and a closing full stop do not count. A prediction that failed counts as wrong; one whose truth is not
    known is left out and counted.

    Args:
        predictions: of a run.
        truth: see `Truth`.
        seed: of the intervals, which are resampled by image.

    Returns:
        `title`, `table`, `notes` and `values`.

    Raises:
        ValueError: If the truth of no prediction is known.
    """
    regions: dict[tuple[str, int], list[Prediction]] = {}
    for prediction in predictions:
        regions.setdefault((prediction.image, prediction.region_index), []).append(prediction)
    found: dict[str, list[tuple[float, str]]] = {}
    left_out = {"no right answer is known": 0, "it was not answered (counted as wrong)": 0}
    for of_region in regions.values():
        first = of_region[0]
        size = next((it.image_size for it in of_region if it.image_size is not None), None)
        references = {it.name: it.references[0] for it in of_region if it.name is not None}
        known = {} if size is None else truth(first.image_id, first.region_id, size, references)
        for prediction in of_region:
            right = known.get(prediction.name or "")
            if not right:
                left_out["no right answer is known"] += 1
                continue
            told_text = prediction.prediction
            left_out["it was not answered (counted as wrong)"] += told_text is None
            is_right = told_text is not None and plain_text(told_text) in set(map(plain_text, right))
            found.setdefault(str(prediction.name), []).append((float(is_right), prediction.image))
    if not found:
        raise ValueError("The right answer to no prediction is known. This is for data such as rendered scenes.")
    values: dict[str, Any] = {"seed": seed, "left_out": left_out, "by_question": {}}
    rows = []
    for label in [None, *found]:
        chosen = [pair for name, pairs in found.items() if label in (None, name) for pair in pairs]
        share = mean_interval([right for right, _ in chosen], [image for _, image in chosen], seed)
        rows.append([label or "all", str(len(chosen)), cell(share)])
        if label is None:
            values["all"] = as_json(share)
        else:
            values["by_question"][label] = as_json(share)
    notes = [
        "Share of answers that are word for word one of the wordings of the truth. 95 % intervals, resampled by image."
    ]
    counted = {reason: count for reason, count in left_out.items() if count}
    if counted:
        notes.append(f"Apart: {told(counted)}.")
    return diagnostic("Exact answers", ["question", "answers", "right"], rows, notes, values)
