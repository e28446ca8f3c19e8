"""A describer for tests that need no model: it says what a function makes of picture, region and request."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from finecaption_hf.masks_finecaption import RegionMask
from finecaption_hf.prompts_finecaption import ATTRIBUTES, TASKS, BranchAnswer, BranchRequest, BranchUpdate

Say = Callable[[Image.Image, RegionMask, BranchRequest], str | BranchAnswer]


def told_pixels(picture: Image.Image, region: RegionMask, request: BranchRequest) -> BranchAnswer:
    """The question, and how many pixels the region has."""
    if "refuse" in request.question:
        return BranchAnswer("", finish_reason="error", error="it refused")
    return BranchAnswer(f"{request.question} {'all' if region.is_whole else region.area}", (), (-1.0,), "end")


class StubDescriber:
    """Answers by `say`, and keeps what was asked: for each call (region, request) in turn."""

    name = "stub"

    def __init__(
        self,
        say: Say = told_pixels,
        *,
        independent: bool = False,
        stop_after: int | None = None,
        questions: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.say = say
        self.independent = independent
        self.settings = {"model": "stub", **settings}
        self.questions = questions or {**TASKS, **ATTRIBUTES}
        self.stop_after = stop_after
        self.calls: list[list[tuple[RegionMask, BranchRequest]]] = []

    def prepare(self, picture: Image.Image, regions: Sequence[RegionMask]) -> Any:
        return [(picture, region) for region in regions]

    def refusal(self, question: str) -> str | None:
        return "a special token" if "<image>" in question else None

    def stream(
        self, prepared: Sequence[Any], requests: Sequence[Sequence[BranchRequest]], **options: Any
    ) -> Iterator[BranchUpdate]:
        given = [pair for of_picture in prepared for pair in of_picture]
        self.calls.append([(it[1], request) for it, row in zip(given, requests, strict=True) for request in row])
        for number, ((picture, region), row) in enumerate(zip(given, requests, strict=True)):
            for place, request in enumerate(row):
                if self.stop_after is not None:
                    self.stop_after -= 1
                    if self.stop_after < 0:
                        raise KeyboardInterrupt
                said = self.say(picture, region, request)
                if isinstance(said, str):
                    said = BranchAnswer(said, finish_reason="end")
                yield BranchUpdate(number, place, said)

    @property
    def asked(self) -> list[tuple[RegionMask, BranchRequest]]:
        """All that was asked."""
        return [it for call in self.calls for it in call]


class Request(NamedTuple):
    """Questions about one region, for `describe`."""

    image: Image.Image
    mask: Any
    questions: tuple[str, ...]
    names: tuple[str | None, ...]


class Told(NamedTuple):
    """The answers to a `Request`: texts, or errors in their place."""

    texts: tuple[str | None, ...]
    errors: tuple[str | None, ...]


def describe(describer: Any, requests: Sequence[Request]) -> Iterator[Told]:
    """Ask a describer; in the order of the requests, each as soon as all of it is answered."""
    prepared = [describer.prepare(it.image, [RegionMask(it.mask, it.image.height, it.image.width)]) for it in requests]
    asked = [[BranchRequest(text, name=name) for text, name in zip(it.questions, it.names)] for it in requests]
    found: dict[tuple[int, int], BranchAnswer] = {}
    given = 0
    for region, number, answer in describer.stream(prepared, asked):
        found[region, number] = answer
        while given < len(asked) and all((given, number) in found for number in range(len(asked[given]))):
            of_region = [found[given, number] for number in range(len(asked[given]))]
            texts = tuple(None if it.error is not None else it.text for it in of_region)
            yield Told(texts, tuple(it.error for it in of_region))
            given += 1


def unmarkable(describer: Any) -> Any:
    """The describer, whose referral cannot mark regions of a single pixel."""
    mark = describer._mark

    def mark_or_fail(picture: Image.Image, region: RegionMask) -> Any:
        if region.area == 1:
            raise ValueError("it cannot be marked")
        return mark(picture, region)

    describer._mark = mark_or_fail
    return describer
