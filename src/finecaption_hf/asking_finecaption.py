"""The one way from regions and questions to records, for every door and for whatever answers.

A record is `{"region_index", "box_xyxy", "area", "answers": {name: text}}`, or `{"region_index", "error": {..}}`. The
global caption is about the whole image whatever the regions: it is asked once and stands in the record of every region
that asks for it. Questions that got no answer stand in `errors`, by name.

Dimension letters: B regions that a describer gets, R regions of one image, H W pixels of an image as displayed. A
region reference is whatever `as_mask` takes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .branches_finecaption import BranchAnswer, BranchRequest
from .masks_finecaption import MaskError, RegionMask
from .prompts_finecaption import is_global


@dataclass
class AskedRegion:
    """Questions about a region, and what came of them.

    Args:
        requests: those whose question is global are about the whole image.
        head: what the record begins with.

    Attributes:
        box_xyxy, area: in pixels, once the region is read.
        answers: by the number of the request, as far as they are there. What is answered is not asked again.
        error: `{"type", "message"}`, why the region cannot be asked about.
    """

    requests: Sequence[BranchRequest]
    head: Mapping[str, Any] = field(default_factory=dict)
    box_xyxy: tuple[int, int, int, int] | None = None
    area: int | None = None
    answers: dict[int, BranchAnswer] = field(default_factory=dict)
    error: dict[str, str] | None = None

    def fail(self, error: Exception) -> None:
        self.error = {"type": type(error).__name__, "message": str(error)}

    def is_answered(self, number: int) -> bool:
        return number in self.answers and self.answers[number].finish_reason is not None

    def text(self, number: int) -> str | None:
        """The answer to a request; `None` where there is none, see `why_not`."""
        return None if self.why_not(number) else self.answers[number].text

    def why_not(self, number: int) -> dict[str, str] | None:
        """Why a request has no answer, `{"type", "message"}`; `None` where it has one."""
        if self.error is not None:
            return self.error
        answer = self.answers.get(number, BranchAnswer("", error="It was not asked."))
        return None if answer.error is None else {"type": "NotAnswered", "message": answer.error}

    def record(self, log_probs: bool = False) -> dict[str, Any]:
        """The region's record, as JSON; a question that was not answered stands in `errors` with the reason."""
        if self.error is not None:
            return {**self.head, "error": self.error}
        record: dict[str, Any] = {**self.head, "box_xyxy": list(self.box_xyxy or ()), "area": self.area, "answers": {}}
        if log_probs:
            record["log_probs"] = {}
        for number, answer in sorted(self.answers.items()):
            name = self.requests[number].name or self.requests[number].question
            if why_not := self.why_not(number):
                record.setdefault("errors", {})[name] = why_not
                continue
            record["answers"][name] = answer.text
            if log_probs:
                record["log_probs"][name] = list(answer.log_probs or ())
        return record


Target = tuple[int, int]
"""(number of the region in its image, number of the request)"""


@dataclass
class AskedImage:
    """The asked regions of an image, and what the describer gets of them.

    Args:
        regions: R of them.
        index: the image's place in a call.
        prepared: of the describer, for its B regions; `None` where it gets none.
        rows: for each of these, for each of its questions, whose answer it is: of one region, or, global, of several.
    """

    regions: list[AskedRegion]
    index: int = 0
    prepared: Any = None
    rows: list[list[list[Target]]] = field(default_factory=list)

    @classmethod
    def prepare(
        cls,
        prepare: Callable[..., Any],
        picture: Any,
        references: Sequence[Any],
        regions: Sequence[AskedRegion],
        index: int = 0,
        **options: Any,
    ) -> "AskedImage":
        """Read the regions of an image; what cannot be one ends in its record. May run ahead of the model.

        Args:
            prepare: the describer's.
            picture: PIL, RGB, upright, (H, W); or the error because of which it cannot be read.
            references: R region references, or errors in their place.
            regions: R of them, with what is asked.
            index: see the class.
            **options: for `prepare`.
        """
        masks: list[RegionMask] = []
        asked = cls(list(regions), index)
        of_image: dict[str, list[Target]] = {}
        whole: list[list[Target]] | None = None
        for number, (reference, region) in enumerate(zip(references, regions)):
            error = next((it for it in (reference, picture) if isinstance(it, Exception)), None)
            if error is None:
                try:
                    mask = RegionMask(reference, picture.height, picture.width)
                except MaskError as problem:
                    error = problem
            if error is not None:
                region.fail(error)
                continue
            region.box_xyxy, region.area = mask.box_xyxy, mask.area
            row: list[list[Target]] = []
            for place, request in enumerate(region.requests):
                if is_global(request.name or request.question):
                    of_image.setdefault(request.question, []).append((number, place))
                else:
                    row.append([(number, place)])
            if row:
                masks.append(mask)
                asked.rows.append(row)
                if mask.is_whole and whole is None:
                    whole = row
        if of_image:
            # Where the whole image is a region anyway, they share its prefix.
            if whole is None:
                masks.append(RegionMask(None, picture.height, picture.width))
                asked.rows.append(whole := [])
            whole += of_image.values()
        if masks:
            asked.prepared = prepare(picture, masks, **options)
        return asked

    def records(self, log_probs: bool = False) -> list[dict[str, Any]]:
        return [region.record(log_probs) for region in self.regions]


def answers(
    describer: Any, images: Sequence[AskedImage], *, log_probs: bool = False, partial: bool = False
) -> Iterator[tuple[AskedImage, int, int, BranchAnswer]]:
    """Ask all that is not answered yet, and note the answers.

    Args:
        describer: what answers: a `BranchEngine`, or whatever has its `refusal` and `stream`. `refusal(question)` is
            why a question cannot be asked, or `None`; `stream(prepared, requests, log_probs=, partial=)` gives (number
            of the region, number of the request, answer) in any order, each request's last one with a `finish_reason`.
        images: as the describer prepared them.
        log_probs: whether answers have log-probabilities.
        partial: whether unfinished answers come as well.

    Yields:
        (image, number of the region, number of the request, answer), once it is noted.
    """
    prepared: list[Any] = []
    requests: list[list[BranchRequest]] = []
    places: list[list[tuple[AskedImage, list[Target]]]] = []
    for image in images:
        if image.prepared is None:
            continue
        prepared.append(image.prepared)
        for row in image.rows:
            requests.append([])
            places.append([])
            for targets in row:
                if all(image.regions[region].is_answered(number) for region, number in targets):
                    continue
                region, number = targets[0]
                request = image.regions[region].requests[number]
                reason = describer.refusal(request.question)
                if reason is None:
                    requests[-1].append(request)
                    places[-1].append((image, targets))
                else:
                    yield from _note(image, targets, BranchAnswer("", finish_reason="error", error=reason))
    left = sum(map(len, requests))
    if not left:
        return
    for row_number, place, answer in describer.stream(prepared, requests, log_probs=log_probs, partial=partial):
        left -= answer.finish_reason is not None
        image, targets = places[row_number][place]
        yield from _note(image, targets, answer)
    if left:
        raise RuntimeError(f"{left} of {sum(map(len, requests))} questions were not answered. A describer answers all.")


def _note(
    image: AskedImage, targets: list[Target], answer: BranchAnswer
) -> Iterator[tuple[AskedImage, int, int, BranchAnswer]]:
    for region, number in targets:
        image.regions[region].answers[number] = answer
        yield image, region, number, answer


def answer_all(describer: Any, images: Sequence[AskedImage], *, log_probs: bool = False) -> None:
    """See `answers`."""
    for _ in answers(describer, images, log_probs=log_probs):
        pass


def stream_answers(
    describer: Any, images: Sequence[AskedImage], *, log_probs: bool = False, partial: bool = True
) -> Iterator[dict[str, Any]]:
    """See `answers`; as JSON, see `RegionCaptioningPipeline.stream`."""
    for image in images:
        for region in image.regions:
            if region.error is not None:
                yield {"image_index": image.index, **region.record()}
    for image, index, number, answer in answers(describer, images, log_probs=log_probs, partial=partial):
        region = image.regions[index]
        request = region.requests[number]
        piece = {"image_index": image.index, "region_index": index, "question": request.name or request.question}
        if why_not := region.why_not(number):
            yield {**piece, "error": why_not}
            continue
        piece |= {"text": answer.text, "finish_reason": answer.finish_reason}
        if log_probs:
            piece["log_probs"] = list(answer.log_probs or ())
        yield piece


def requests_about(
    questions: Iterable[tuple[str | None, str]], place: Sequence[Any], image: Sequence[Any], **decoding: Any
) -> tuple[BranchRequest, ...]:
    """Questions -> requests that draw differently everywhere, and the same in every batch.

    Args:
        questions: (name, text) of each.
        place, image: what the seeds of a region's questions follow from, and those of global ones.
        **decoding: for `BranchRequest`.
    """
    made = []
    for name, text in questions:
        label = name or text
        seed = derived_seed(decoding.get("seed", 0), *(image if is_global(label) else place), label)
        made.append(BranchRequest(text, **{**decoding, "seed": seed, "name": name}))
    return tuple(made)


def derived_seed(seed: int, *place: int | str | None) -> int:
    """A seed of its own for every place: equal ones would make like draws."""
    text = json.dumps([seed, *place])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


__all__ = [
    "AskedImage",
    "AskedRegion",
    "answer_all",
    "answers",
    "derived_seed",
    "requests_about",
    "stream_answers",
]
