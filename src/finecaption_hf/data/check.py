"""Look at a whole dataset: what there is of each task and attribute, how large regions and texts are, what is wrong."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ..masks_finecaption import MaskError, as_mask
from ..prompts_finecaption import ATTRIBUTES, TASKS, find_question, normalise_name
from .examples import DataError, Example
from .readers import ExampleReader, NotDescribedError, Place
from .regions import ImageInput, RegionInputs

OWN_WORDS = "(question in own words)"

AREA_BOUNDS = (0.0001, 0.001, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0)
"""Upper bounds of the classes of the area histogram, as shares of the image."""


@dataclass
class Lengths:
    """How often each length occurs; its size is bounded by the longest text."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, length: int) -> None:
        self.counts[length] += 1

    def summary(self) -> dict[str, float]:
        """Number, mean, median, 95 % and largest of the lengths."""
        number = self.counts.total()
        if not number:
            return {"number": 0}
        total = sum(length * count for length, count in self.counts.items())
        return {
            "number": number,
            "mean": round(total / number, 2),
            "median": self._quantile(0.5),
            "p95": self._quantile(0.95),
            "max": max(self.counts),
        }

    def _quantile(self, share: float) -> int:
        below = 0
        for length in sorted(self.counts):
            below += self.counts[length]
            if below >= share * self.counts.total():
                return length
        raise AssertionError("there are lengths")


@dataclass
class DatasetReport:
    """What `check_dataset` found.

    Attributes:
        format, source: what was read.
        complete: whether all of it was read, rather than `limit` examples.
        num_examples, num_rejected, num_regions, num_whole_images, num_branches: counts of what can be used, and of
            examples that cannot.
        names: branches for each task or attribute.
        unknown_names: those of them for which the package has no question; branches of these need one of their own or a
            processor with more `questions`.
        areas: class of area (see `AREA_BOUNDS`) -> regions, without whole images. Empty without images.
        image_sizes: "width x height" -> images, the ten most frequent.
        question_tokens, answer_tokens: number, mean, median, p95 and max. Empty without a tokenizer.
        longest_region: most tokens of all questions and answers of one region.
        left_out: what the rules of the format leave out: reason -> number.
        problems: (where, reason) of each problem.
        notes: what is no error but worth a look, such as coordinates that seem to be fractions: reason -> number.
    """

    format: str
    source: str
    complete: bool = True
    num_examples: int = 0
    num_rejected: int = 0
    num_regions: int = 0
    num_whole_images: int = 0
    num_branches: int = 0
    names: dict[str, int] = field(default_factory=dict)
    unknown_names: list[str] = field(default_factory=list)
    areas: dict[str, int] = field(default_factory=dict)
    image_sizes: dict[str, int] = field(default_factory=dict)
    question_tokens: dict[str, float] = field(default_factory=dict)
    answer_tokens: dict[str, float] = field(default_factory=dict)
    longest_region: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)


def check_dataset(
    reader: ExampleReader,
    *,
    tokenizer: Any = None,
    questions: dict[str, str] | None = None,
    check_images: bool = True,
    limit: int | None = None,
    on_example: Callable[[int], None] = lambda number: None,
) -> DatasetReport:
    """Read a whole dataset, decode its images and masks, and count.

    Args:
        reader: of `read_examples`. With `on_error="raise"` the first problem ends in a `DataError`; with "skip" each
            goes to the reader's file of rejects, too.
        tokenizer (*optional*): counts the tokens of questions and answers.
        questions (*optional*): name -> question, of a processor; `None` means those of the paper.
        check_images: open the pictures, and decode the masks at their size.
        limit: stop after so many examples.
        on_example: called with the number of examples so far.

    Returns:
        `DatasetReport`.
    """
    known = {**TASKS, **ATTRIBUTES} if questions is None else questions
    report = DatasetReport(reader.format, reader.name)
    counting = _Counting(report, tokenizer, known, check_images)
    reader.on_reject = counting.problem
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the report says it
            for done, _ in enumerate(reader.each(counting.look), start=1):
                on_example(done)
                if limit is not None and done >= limit:
                    report.complete = False
                    break
    except NotDescribedError:
        raise
    except DataError as error:
        if reader.on_error == "raise":
            raise
        # Broken so that nothing can be read after it.
        counting.problem(error.where, error.reason)
        report.complete = False
    counting.close(reader)
    return report


def check_regions(
    inputs: RegionInputs,
    *,
    check_images: bool = True,
    limit: int | None = None,
    on_example: Callable[[int], None] = lambda number: None,
) -> DatasetReport:
    """The same for regions without texts, which can be described but not learned from: pictures, masks, areas.

    Args:
        inputs: of `open_regions`.
        check_images, limit, on_example: see `check_dataset`.
    """
    format = inputs.title if inputs.annotations is None else inputs.annotations.format
    report = DatasetReport(format, inputs.name)
    counting = _Counting(report, None, {}, check_images)
    for number in range(len(inputs)):
        item = inputs[number]
        if item.regions[0].region_index == 0:
            if limit is not None and report.num_examples >= limit:
                report.complete = False
                break
            report.num_examples += 1
            on_example(report.num_examples)
        counting.look_at_regions(item)
    counting.close()
    report.notes = {
        "regions without a text: finecaption describe makes them": report.num_regions,
        **{note: 1 for note in inputs.notes},
        **report.notes,
    }
    return report


@contextmanager
def may_be_regions(error: ValueError) -> Iterator[None]:
    """Try whether what holds no described regions holds regions; if not, `error` is what is wrong with it."""
    if not isinstance(error, NotDescribedError):
        raise error
    try:
        yield
    except DataError:
        raise error from None


class _Counting:
    def __init__(self, report: DatasetReport, tokenizer: Any, known: dict[str, str], check_images: bool) -> None:
        self.report = report
        self.tokenizer = tokenizer
        self.known = known
        self.check_images = check_images
        self.names: Counter[str] = Counter()
        self.spellings: dict[str, str] = {normalise_name(name): name for name in known}
        self.areas: Counter[int] = Counter()
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.notes: Counter[str] = Counter()
        self.questions, self.answers = Lengths(), Lengths()

    def problem(self, where: str, reason: str) -> None:
        self.report.problems.append((where, reason))

    def look(self, example: Example, place: Place | None) -> None:
        areas = self._areas(example) if self.check_images else []
        self.areas.update(areas)
        for region in example.regions:
            self.report.num_whole_images += region.mask is None
            tokens = 0
            for branch in region.branches:
                name = OWN_WORDS if branch.name is None else branch.name
                self.names[self.spellings.setdefault(normalise_name(name), name)] += 1
                question = branch.question or find_question(branch.name or "", self.known)
                if self.tokenizer is not None:
                    for text, lengths in ((question, self.questions), (branch.answer, self.answers)):
                        if text is not None:
                            length = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
                            lengths.add(length)
                            tokens += length
            self.report.longest_region = max(self.report.longest_region, tokens)
            self.report.num_branches += len(region.branches)
        self.report.num_regions += len(example.regions)

    def _areas(self, example: Example) -> list[int]:
        """The classes of area of the regions that have a mask. One error tells all that is wrong with an example."""
        picture = example.load()
        areas, wrong = [], []
        for index, region in enumerate(example.regions):
            if region.mask is None:
                continue
            try:
                areas.append(_area_class(self._area(example.reference(region, picture), picture)))
            except MaskError as error:
                wrong.append(f"regions[{index}].mask: {error}")
        if wrong:
            raise DataError(example.where, " ".join(wrong))
        self._add_size(picture)
        return areas

    def look_at_regions(self, item: ImageInput) -> None:
        self.report.num_regions += len(item.regions)
        picture: Image.Image | None = None
        try:
            picture = item.load() if self.check_images else None
        except DataError as error:
            self.problem(error.where, error.reason)
        for region in item.regions:
            where = f"{item.name}: region {region.region_index + 1}"
            if region.error is not None:
                self.problem(region.error.where, region.error.reason)
            elif region.reference is None:
                self.report.num_whole_images += 1
            elif picture is not None:
                try:
                    self.areas[_area_class(self._area(item.reference(region, picture), picture))] += 1
                except (DataError, MaskError) as error:
                    self.problem(where, str(error))
        if picture is not None and item.regions[0].region_index == 0:
            self._add_size(picture)

    def _area(self, reference: Any, picture: Image.Image) -> float:
        """The share of a region in its picture; what is said of it on the way is noted."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            mask = as_mask(reference, picture.height, picture.width)
        self.notes.update({str(each.category.__name__ + ": " + str(each.message)[:200]) for each in caught})
        return float(np.count_nonzero(mask)) / mask.size

    def _add_size(self, picture: Image.Image) -> None:
        size = (picture.width, picture.height)
        if len(self.sizes) < 10_000 or size in self.sizes:
            self.sizes[size] += 1

    def close(self, reader: ExampleReader | None = None) -> None:
        report = self.report
        if reader is not None:
            report.num_examples, report.num_rejected = reader.num_examples, reader.num_rejected
            report.left_out = dict(+reader.left_out)
            self.notes.update(reader.annotations.notes if reader.annotations else ())
        report.notes = dict(self.notes)
        order = {name: number for number, name in enumerate(self.known)}
        names = sorted(self.names, key=lambda name: (order.get(name, math.inf), name))
        report.names = {name: self.names[name] for name in names}
        report.unknown_names = [name for name in names if name not in self.known and name != OWN_WORDS]
        if self.check_images:
            report.areas = {area_name(number): self.areas[number] for number in range(len(AREA_BOUNDS))}
            report.image_sizes = {f"{w} x {h}": number for (w, h), number in self.sizes.most_common(10)}
        if self.tokenizer is not None:
            report.question_tokens, report.answer_tokens = self.questions.summary(), self.answers.summary()


def _area_class(share: float) -> int:
    return next(number for number, bound in enumerate(AREA_BOUNDS) if share <= bound)


def area_name(number: int) -> str:
    """A class of the area histogram, such as "1 % to 3 %"."""
    upper = f"{100 * AREA_BOUNDS[number]:g} %"
    return f"up to {upper}" if number == 0 else f"{100 * AREA_BOUNDS[number - 1]:g} % to {upper}"
