"""Describe all regions of an input, in fixed batches, so that a run that goes on says the same as one in one go."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from .. import __version__
from ..asking import Describer, Spreading, check_questions, note_of
from ..data.encoding import encode_rle
from ..data.examples import DataError
from ..data.regions import ImageInput, RegionInput, RegionInputs
from ..masks_finecaption import MaskError, RegionMask
from ..pipeline_finecaption import AskedImage, AskedRegion, answer_all, requests_about
from ..prompts_finecaption import BranchRequest, FineCaptionError, Question, resolve_questions
from ..resuming import UnfinishedError
from .entries import Entries, Result
from .outputs import choose_output
from .processes import Processes

_FORMAT = 2  # of records: since 2 they have the mask


@dataclass(frozen=True)
class DescribeOptions:
    """What decides the texts, besides describer, input and questions.

    Attributes:
        max_new_tokens, temperature, top_p, seed: as for `BranchRequest`. What is drawn follows from the seed, the
            position of the region in the input, and the question.
        log_probs (`bool`): whether records hold the log-probability of each token.
        batch_size (`int`): images that are described together.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    log_probs: bool = False
    batch_size: int = 4

    def __post_init__(self) -> None:
        BranchRequest("region", **self.decoding)
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}. Give at least 1.")

    @property
    def decoding(self) -> dict[str, Any]:
        """For `BranchRequest`."""
        return {name: getattr(self, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")}


def describe_dataset(
    load: Callable[[], Describer],
    inputs: RegionInputs,
    output: Any,
    questions: str | Sequence[str] = "region",
    options: DescribeOptions = DescribeOptions(),
    *,
    output_format: str | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    num_workers: int = 4,
    processes: Processes | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Result:
    """Describe all regions; called again after an interruption, it goes on.

    Args:
        load: gives what answers, such as `load_describer`. It is called after the output and the input were checked.
        inputs: see `open_regions`.
        output: the file or folder to make, with all regions in the input's order; see docs/captioning.md.
        questions: about regions that have none of their own: names that the describer knows, own words, `"all"`.
        options: what decides the texts.
        output_format: "jsonl", "csv", "parquet", "datasets", "coco", "html", or "same": the kind of file that the input
            is, with texts. `None` means that the suffix of `output` tells it.
        overwrite: forget what was finished, and replace the output at the end.
        retry_failed: if the output is finished, describe the regions again that could not be described.
        num_workers: threads that read pictures ahead of the model.
        processes: those that share the work; `None` means this one alone.
        on_progress: gets the number of regions that are done, and of all, in the main process.
        tell: gets lines about what was found on disk, in the main process.

    Returns:
        `Result`, in every process.

    Raises:
        ResumeError: If the output belongs to another command, is damaged or in use.
        UnfinishedError: If nothing more can be written, or the input changed. What was finished is kept.
        DataError: If texts cannot be put back into the kind of file that the input is.
        ValueError: If there is no question, or a setting makes no sense.
        ProcessLostError: If another process ended early.
    """
    processes = processes or Processes()
    if not processes.is_main:
        on_progress, tell = (lambda done, total: None), (lambda line: None)
    batches = _Batches(inputs, options.batch_size)
    form = choose_output(Path(output), output_format, inputs)
    with closing(Entries(output, batches.region_counts, form)) as entries:
        manifest: dict[str, Any] = {
            "format": _FORMAT,
            "input": {"fingerprint": inputs.fingerprint, "regions": inputs.num_regions},
            "options": asdict(options),
            "output": None if form is None else form.name,
        }

        def look() -> str:
            entries.open()
            if not overwrite:
                entries.check(manifest)
            return inputs.fingerprint

        if processes.first(look) != inputs.fingerprint:
            raise ValueError(f"The input {inputs.name} is not the same in all processes. Give each the same.")
        worker = _loaded(load, questions, options, processes)

        def begin() -> Result | list[int]:
            manifest["model"] = dict(worker.describer.settings)
            manifest["questions"] = worker.asked
            about = {"input": inputs.name, "model": worker.describer.name, "finecaption_hf": __version__}
            versions = {"transformers": transformers.__version__, "torch": torch.__version__}
            if not overwrite and (finished := entries.check(manifest)) is not None:
                if not (retry_failed and finished.failed):
                    entries.discard()
                    tell(f"{entries.output.name} was finished before; nothing is left to do.")
                    return finished
                entries.reopen()
            return entries.begin({**manifest, "made_with": {**about, **versions}}, tell, overwrite=overwrite)

        left = processes.first(begin)
        if isinstance(left, Result):
            return left
        if not processes.is_main:
            entries.join(processes.rank)
        total = inputs.num_regions
        tell(f"{inputs.num_whole_images} of {total} regions are whole pictures.")
        done = total - sum(batches.region_counts[batch] for batch in left)
        if done:
            tell(f"{done} of {total} regions were described before; going on.")
        on_progress(done, total)

        def look_around(own: int = 0) -> None:
            nonlocal done
            if processes.is_main:
                done += own + (entries.newly_finished() if processes.count > 1 else 0)
                on_progress(done, total)

        failure: str | None = None
        try:
            own = left[processes.rank :: processes.count]
            with closing(worker.answered(batches, own, num_workers)) as answered:
                for batch, records in answered:
                    entries.append(batch, records)
                    look_around(batches.region_counts[batch])
        except (FineCaptionError, OSError) as error:
            failure = str(error)
        failures = [each for each in processes.gather(failure, look_around) if each is not None]
        look_around()

        def finish() -> Result:
            if failures:
                raise UnfinishedError(failures[0])
            if form is not None:
                tell(f"All regions are described; making {entries.output.name}.")
            return entries.finish()

        return processes.first(finish)


class _Batches:
    """Fixed numbers of images of the input, wherever a run starts."""

    def __init__(self, inputs: RegionInputs, batch_size: int) -> None:
        self.inputs = inputs
        self.size = batch_size
        counts = inputs.region_counts()
        self.region_counts = [sum(counts[start : start + batch_size]) for start in range(0, len(counts), batch_size)]

    def items(self, batch: int) -> range:
        return range(batch * self.size, min((batch + 1) * self.size, len(self.inputs)))


def _loaded(
    load: Callable[[], Describer], questions: str | Sequence[str], options: DescribeOptions, processes: Processes
) -> "_Worker":
    """What turns images into records; where it fails in one process, all of them end, and the main one can say why."""
    failure: Exception | None = None
    try:
        describer = load()
        worker = _Worker(describer, check_questions(describer, questions), options)
    except (ImportError, OSError, ValueError) as error:
        failure = error
    for rank, reason in enumerate(processes.gather(None if failure is None else str(failure), lambda: None)):
        if failure is not None:
            raise failure
        if reason is not None:
            raise ValueError(f"Process {rank}: {reason}")
    return worker


def _read_ahead(
    batches: _Batches, chosen: Sequence[int], prepare: Callable[[ImageInput], Any], num_workers: int
) -> Generator[tuple[int, list[Any]], None, None]:
    """The chosen batches, prepared by threads while the model works on earlier ones."""
    num_ahead = 1 + -(-num_workers // batches.size)
    waiting: deque[tuple[int, list[Future[Any]]]] = deque()
    left = iter(chosen)
    pool = ThreadPoolExecutor(num_workers)
    try:
        while True:
            for batch in itertools.islice(left, num_ahead + 1 - len(waiting)):
                waiting.append(
                    (batch, [pool.submit(lambda n: prepare(batches.inputs[n]), n) for n in batches.items(batch)])
                )
            if not waiting:
                return
            batch, images = waiting.popleft()
            yield batch, [image.result() for image in images]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """Turns images with regions into records."""

    def __init__(self, describer: Describer, asked: dict[str, Question], options: DescribeOptions) -> None:
        self.describer = describer
        self.asked = asked
        self.options = options
        self.note = {} if (note := note_of(describer)) is None else {"model_note": note}

    def prepare(self, item: ImageInput) -> AskedImage:
        """Read an image and its regions; runs in threads."""
        picture: Any = None
        if any(region.error is None for region in item.regions):
            try:
                picture = item.load()
            except DataError as error:
                picture = error
        # What is drawn for the whole image follows from the position of its first region, in whichever part it is.
        first = item.regions[0].position - item.regions[0].region_index
        references, regions = [], []
        for region in item.regions:
            asked = self.asked
            if region.questions is not None:
                asked = resolve_questions(region.questions, self.describer.questions)
            requests = requests_about(asked.items(), (region.position,), (first,), **self.options.decoding)
            head = {"image": item.name, **region.carried, "region_index": region.region_index}
            if region.questions is not None:
                head["questions"] = list(region.questions)
            reference = _checked(item, region, picture)
            if isinstance(reference, RegionMask):
                head["mask"] = None if reference.is_whole else encode_rle(reference.pixels)
            elif region.reference is None or not item.stored_orientation:
                # Records are in the pixels of the picture as it is displayed.
                head |= region.as_given()
            regions.append(AskedRegion(requests, head))
            references.append(reference)
        return AskedImage.prepare(self.describer.prepare, picture, references, regions)

    def answered(
        self, batches: _Batches, chosen: Sequence[int], num_workers: int
    ) -> Generator[tuple[int, list[dict[str, Any]]], None, None]:
        """The chosen batches, in any order, with the records of their regions."""
        if isinstance(self.describer, Spreading):
            prepare = partial(self.prepare_batch, batches)
            with closing(self.describer.spread(prepare, chosen, log_probs=self.options.log_probs)) as spread:
                for batch, images in spread:
                    yield batch, self.records(images)
            return
        with closing(_read_ahead(batches, chosen, self.prepare, num_workers)) as prepared:
            for batch, images in prepared:
                yield batch, self.answer(images)

    def prepare_batch(self, batches: _Batches, batch: int) -> list[AskedImage]:
        """Read the images of a batch, wherever that is answered."""
        return [self.prepare(batches.inputs[number]) for number in batches.items(batch)]

    def answer(self, images: Sequence[AskedImage]) -> list[dict[str, Any]]:
        """The records of all regions of a batch."""
        answer_all(self.describer, images, log_probs=self.options.log_probs)
        return self.records(images)

    def records(self, images: Sequence[AskedImage]) -> list[dict[str, Any]]:
        """Those of images that are answered."""
        return [record | self.note for image in images for record in image.records(self.options.log_probs)]


def _checked(item: ImageInput, region: RegionInput, picture: Any) -> RegionMask | Exception:
    """The mask of a region, or why there is none; `picture` may be the error because of which it cannot be read."""
    known = region.error or (picture if isinstance(picture, DataError) else None)
    if known is not None:
        return known
    try:
        return RegionMask(item.reference(region, picture), picture.height, picture.width)
    except (DataError, MaskError) as error:
        return error
