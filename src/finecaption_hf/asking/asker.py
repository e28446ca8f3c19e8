"""Pictures, regions and questions -> records, by any describer."""

import itertools
from collections.abc import Iterator
from typing import Any

from ..data.objects import as_regions, is_foreign
from ..pipeline_finecaption import AskedImage, answer_all, items_of, read_item, stream_answers
from ..prompts_finecaption import BranchRequest, Question, resolve_questions
from .describer import Describer


def ask(
    describer: Describer,
    images: Any,
    regions: Any = None,
    questions: Any = "region",
    *,
    log_probs: bool = False,
    batch_size: int = 1,
    high_res_features: Any = None,
    **decoding: Any,
) -> list[Any]:
    """Ask every question about every region.

    Args:
        describer: what answers.
        images, regions: one picture with its regions, or several, as `RegionCaptioningPipeline` takes them; the regions
            of a picture also as `finecaption_hf.data.as_regions` takes them.
        questions: one or several: names that the describer knows, own words, `"all"`, or chats of several turns about
            the region, as `RegionCaptioningPipeline` takes them.
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
    check_questions(describer, questions, **decoding)
    found = []
    items, is_one = _items(images, regions, high_res_features)
    while batch := list(itertools.islice(items, batch_size)):
        asked = []
        for item in batch:
            given = read_item(item, describer.questions, questions, **decoding)
            asked.append(AskedImage.prepare(describer.prepare, **given))
        answer_all(describer, asked, log_probs=log_probs)
        found += [image.records(log_probs) for image in asked]
    return found[0] if is_one else found


def stream(
    describer: Describer,
    images: Any,
    regions: Any = None,
    questions: Any = "region",
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
    check_questions(describer, questions, **decoding)
    items, _ = _items(images, regions, high_res_features)

    def pieces() -> Iterator[dict[str, Any]]:
        while batch := list(itertools.islice(items, batch_size)):
            given = (read_item(item, describer.questions, questions, **decoding) for item in batch)
            asked = [AskedImage.prepare(describer.prepare, **each) for each in given]
            yield from stream_answers(describer, asked, log_probs=log_probs, partial=partial)

    return pieces()


def check_questions(describer: Describer, questions: Any, **decoding: Any) -> dict[str, Question]:
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


def _items(images: Any, regions: Any, high_res_features: Any) -> tuple[Iterator[dict[str, Any]], bool]:
    """The pictures of a call, and whether it is one that did not come in a list."""
    items = items_of(images, regions)
    if isinstance(items, dict):
        more = {} if high_res_features is None else {"high_res_features": high_res_features}
        return iter([{**_with_references(items), **more}]), True
    if high_res_features is not None:
        raise ValueError("high_res_features are of one image, but several arrived. Call once per image.")
    return map(_with_references, iter(items)), False


def _with_references(item: dict[str, Any]) -> dict[str, Any]:
    """The regions of an image as references, if they came as another library holds them."""
    regions = item["regions"]
    return item if regions is None or not is_foreign(regions) else {**item, "regions": as_regions(regions)}
