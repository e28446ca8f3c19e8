"""What all models have in common that see a region by a mark in the picture or in the text."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from typing import Any, NamedTuple

from PIL import Image

from ...masks_finecaption import RegionMask
from ...prompts_finecaption import ATTRIBUTES, TASKS, BranchAnswer, BranchRequest, BranchUpdate, Question, no_such
from ..errors import DescriberError
from .boxes import BOX_FORMATS, write_box
from .referral import WITH_MASK, Marked, Referral
from .templates import PromptTemplates


class Job(NamedTuple):
    """A question about a marked picture: its place (number of the region, number of the request), its text, and the
    request that it comes from."""

    place: tuple[int, int]
    marked: Marked
    text: str
    request: BranchRequest

    @property
    def decoding(self) -> dict[str, Any]:
        """What the request says of how it is to be answered; the rest is the describer's."""
        asked: dict[str, Any] = {}
        for name in ("max_new_tokens", "repetition_penalty"):
            if (value := getattr(self.request, name)) is not None:
                asked[name] = value
        if self.request.temperature > 0:
            asked |= {name: getattr(self.request, name) for name in ("temperature", "top_p", "seed")}
        return asked

    def answered(self, text: str) -> BranchUpdate:
        ends = [place for stop in self.request.stop_strings if (place := text.find(stop)) >= 0]
        answer = BranchAnswer(text[: min(ends, default=None)].strip(), finish_reason="stop_string" if ends else "end")
        return BranchUpdate(*self.place, answer)

    def failed(self, reason: str) -> BranchUpdate:
        return BranchUpdate(*self.place, BranchAnswer("", finish_reason="error", error=reason))


class ReferringDescriber(ABC):
    """A `Describer` that marks regions and writes prompts.

    Args:
        name: for reports.
        referral: how the region is pointed out.
        templates: what is asked.
        box_format: a name of `BOX_FORMATS`.

    Attributes:
        takes_mask: whether the model has a mask input, which then is its referral.
        tells_size: whether it is known to which size the model resizes a picture.
        decodes: what requests may say of their decoding, see `BranchRequest`.

    Raises:
        DescriberError: If the model cannot be referred to in this way.
    """

    settings: Mapping[str, Any]
    independent = True
    questions: Mapping[str, str] = {**TASKS, **ATTRIBUTES}
    takes_mask = False
    tells_size = False
    decodes: tuple[str, ...] = ("max_new_tokens", "temperature", "top_p", "seed", "repetition_penalty")
    _keeps_sent = False

    def __init__(self, name: str, referral: Referral, templates: PromptTemplates | None, box_format: str) -> None:
        if (referral.kind in WITH_MASK) != self.takes_mask:
            takes, wanted = ("a mask", WITH_MASK) if self.takes_mask else ("no mask", ("contour_drawn", "box_text"))
            raise DescriberError(
                f"{name} takes {takes}, so it cannot be referred to by {referral.kind!r}. Give a referral such as "
                f"{' or '.join(map(repr, wanted))}."
            )
        if box_format not in BOX_FORMATS:
            raise DescriberError(no_such("box format", box_format, BOX_FORMATS))
        if BOX_FORMATS[box_format].units == "seen" and not self.tells_size:
            raise DescriberError(
                f"The box format {box_format!r} cannot be used with {name}, which does not tell what it makes of a "
                "picture. Give 'pixels', or one with shares, such as 'qwen3_vl'."
            )
        self.name = name
        self._referral, self._templates = referral, templates or PromptTemplates()
        if referral.kind == "set_of_marks":
            self.independent = False  # numbers stand for the regions that are asked about together
        self._box_format = box_format
        self.settings = {
            "model": name,
            "referral": referral.settings,
            "box_format": box_format,
            "prompts": self._templates.settings,
        }

    def prepare(
        self, picture: Image.Image, regions: Sequence[RegionMask]
    ) -> list[tuple[Image.Image, RegionMask, int | None]]:
        """See `Describer`. Pictures are marked when their turn comes: one for each region would fill the memory. Only
        the one that shows all regions by numbers is drawn here."""
        numbers = count(1)
        drawn = self._referral.mark_all(picture, [region for region in regions if not region.is_whole])
        return [(picture, it, None) if it.is_whole else (drawn, it, next(numbers)) for it in regions]

    def refusal(self, question: Question) -> str | None:
        """See `Describer`: any text can be asked, once."""
        return None if isinstance(question, str) else f"{self.name} is asked one question at a time, not several turns."

    def stream(
        self, prepared: Sequence[Any], requests: Sequence[Sequence[BranchRequest]], **options: Any
    ) -> Iterator[BranchUpdate]:
        """See `Describer`. Answers come whole; log-probabilities come from those describers that know them."""
        jobs = self._jobs(chain.from_iterable(prepared), requests)
        return self._with_sent(jobs) if self._keeps_sent else self._answer(jobs)

    def keep_sent(self) -> None:
        """Put what is sent into the answers from now on: text, referral, and the box in the picture that is sent."""
        self._keeps_sent = True
        self.settings = {**self.settings, "keep_sent": True}  # records with it are others than those without

    def _with_sent(self, jobs: Iterator[Job | BranchUpdate]) -> Iterator[BranchUpdate]:
        sent: dict[tuple[int, int], dict[str, Any]] = {}

        def noted() -> Iterator[Job | BranchUpdate]:
            for job in jobs:
                if isinstance(job, Job):
                    sent[job.place] = self._sent(job)
                yield job

        for region, branch, answer in self._answer(noted()):
            yield BranchUpdate(region, branch, replace(answer, sent=sent.get((region, branch))))

    def _sent(self, job: Job) -> dict[str, Any]:
        image, box = job.marked.image, job.marked.box_xyxy
        return {
            "text": job.text,
            **({} if self._templates.system is None else {"system": self._templates.system}),
            "referral": "whole image" if box is None else self._referral.kind,
            "image_size": [image.height, image.width],
            "box_xyxy": None if box is None else list(box),
        }

    @abstractmethod
    def _answer(self, jobs: Iterator[Job | BranchUpdate]) -> Iterator[BranchUpdate]:
        """The answers to jobs; what is an update already is handed on."""

    def _jobs(self, given: Any, requests: Sequence[Sequence[BranchRequest]]) -> Iterator[Job | BranchUpdate]:
        for number, (shown, of_region) in enumerate(zip(given, requests, strict=True)):
            marked: Marked | None = None
            for place, request in enumerate(of_region):
                job = Job((number, place), Marked(shown[0], None, None), "", request)
                assert isinstance(request.question, str)  # see `refusal`
                if useless := [name for name in job.decoding if name not in self.decodes]:
                    yield job.failed(f"{', '.join(useless)}: no effect with {self.name}. Leave that out.")
                    continue
                try:
                    marked = marked or self._numbered(*shown)
                    text = self.prompt(marked, request.question, request.name)
                except Exception as error:
                    yield job.failed(describe_error(error))
                else:
                    yield job._replace(marked=marked, text=text)

    def marked(self, picture: Image.Image, regions: Sequence[RegionMask]) -> list[Marked]:
        """The pictures that the model gets of regions, as for `prepare`."""
        return [self._numbered(*shown) for shown in self.prepare(picture, regions)]

    def _numbered(self, picture: Image.Image, region: RegionMask, number: int | None) -> Marked:
        return replace(self._mark(picture, region), number=number)

    def _mark(self, picture: Image.Image, region: RegionMask) -> Marked:
        return self._referral.mark(picture, region)

    def prompt(self, marked: Marked, question: str, name: str | None = None) -> str:
        """The text of a question about a marked picture."""
        box = "" if marked.box_xyxy is None else self._write_box(marked)
        sentence = self._referral.text(marked, box)
        return self._templates.write(question, name, referral=sentence, box=box, whole=marked.box_xyxy is None)

    def _write_box(self, marked: Marked) -> str:
        assert marked.box_xyxy is not None
        return write_box(marked.box_xyxy, (marked.image.height, marked.image.width), self._box_format)


def describe_error(error: BaseException) -> str:
    """An exception in one line: its type and its message."""
    reason = " ".join(str(error).split())
    return f"{type(error).__name__}: {reason[:500]}" if reason else type(error).__name__
