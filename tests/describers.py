"""A describer for tests that need no model: it says what a function makes of picture, region and request."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from finecaption_hf.engine_finecaption import BranchAnswer, BranchRequest, BranchUpdate
from finecaption_hf.masks_finecaption import RegionMask

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
        self.questions = questions or {"color": "Which color?", "global": "What is in the picture?"}
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
