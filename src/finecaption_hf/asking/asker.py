"""Pictures, regions and questions -> records, by any describer."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..branches_finecaption import BranchRequest
from ..pipeline_finecaption import AskedImage, answer_all, items_of, read_item, stream_answers
from ..prompts_finecaption import resolve_questions
from .describer import Describer


def ask(
    describer: Describer,
    images: Any,
    regions: Any = None,
    questions: str | Sequence[str] = "region",
    *,
    log_probs: bool = False,
    batch_size: int = 1,
    high_res_features: Any = None,
    **decoding: Any,
) -> list[Any]:
    """Ask every question about every region.

    Args:
        describer: what answers.
        images, regions: one picture with its regions, or several, as `RegionCaptioningPipeline` takes them.
        questions: one or several: names that the describer knows, own words, or `"all"`.
        log_probs: whether records hold the log-probability of each token.
        batch_size: pictures that are asked about together.
        high_res_features: what the describer's `encode` gave for the picture, which must be one.
        **decoding: of `BranchRequest`, such as `max_new_tokens`, `temperature` and `seed`.

    Returns:
        For one picture the records of its regions, `{"region_index", "box_xyxy", "area", "answers": {name: text}}`, or
        `{"region_index", "error": {"type", "message"}}` where a region cannot be asked about. For several pictures a
        list of such lists.

    Raises:
        ValueError: If there is no question or it cannot be asked, or an option or the form of an argument is wrong.
    """
    items = _items(images, regions, high_res_features)
    check_questions(describer, questions, **decoding)
    found = []
    for batch in _batches(describer, items, questions, batch_size, decoding):
        answer_all(describer, batch, log_probs=log_probs)
        found += [image.records(log_probs) for image in batch]
    return found[0] if isinstance(items, dict) else found


def stream(
    describer: Describer,
    images: Any,
    regions: Any = None,
    questions: str | Sequence[str] = "region",
    *,
    log_probs: bool = False,
    partial: bool = True,
    batch_size: int = 1,
    high_res_features: Any = None,
    **decoding: Any,
) -> Iterator[dict[str, Any]]:
    """Answers while they grow, see `RegionCaptioningPipeline.stream`; the arguments are those of `ask`.

    Raises:
        ValueError: As `ask`, at once.
    """
    items = _items(images, regions, high_res_features)
    check_questions(describer, questions, **decoding)
    batches = _batches(describer, items, questions, batch_size, decoding)
    return (
        piece for batch in batches for piece in stream_answers(describer, batch, log_probs=log_probs, partial=partial)
    )


def check_questions(describer: Describer, questions: str | Sequence[str], **decoding: Any) -> dict[str, str]:
    """The names of questions, each with its text.

    Raises:
        ValueError: If there is none, one of them cannot be asked, or an option of decoding makes no sense.
    """
    BranchRequest("region", **decoding)
    asked = resolve_questions(questions, describer.questions)
    for text in asked.values():
        if reason := describer.refusal(text):
            raise ValueError(reason)
    return asked


def _items(images: Any, regions: Any, high_res_features: Any) -> Any:
    items = items_of(images, regions)
    if high_res_features is None:
        return items
    if not isinstance(items, dict):
        raise ValueError("high_res_features are of one image, but several arrived. Call once per image.")
    return {**items, "high_res_features": high_res_features}


def _batches(
    describer: Describer,
    items: Any,
    questions: str | Sequence[str],
    batch_size: int,
    decoding: Mapping[str, Any],
) -> Iterator[list[AskedImage]]:
    given: Iterable[Any] = [items] if isinstance(items, dict) else items
    left = iter(given)
    while batch := list(itertools.islice(left, batch_size)):
        yield [read_item(describer.prepare, describer.questions, item, questions, **decoding) for item in batch]
