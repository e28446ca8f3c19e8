"""Ask a model about every region of a dataset, and keep what it says; called again, go on where it was ended."""

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..asking import Describer, note_of
from ..data.examples import DataError, Example
from ..data.images import MaskFile
from ..pipeline_finecaption import AskedImage, AskedRegion, answers, requests_about
from ..prompts_finecaption import BranchAnswer, BranchRequest, find_question, no_such, normalise_name
from .errors import EvaluationError
from .predictions import Header, Prediction, PredictionWriter


def walk(dataset: Iterable[Example], limit: int | None = None) -> Iterator[tuple[Example, list[list[Prediction]]]]:
    """The examples of a dataset, the first `limit` of them, each with what is to be asked about its regions.

    Branches of a region that ask the same are one, with several references. Their keys are stable:
    `image|region|branch`. Where several examples have the same image, their regions are counted on. A picture in memory
    goes under the id of its example, or under its number.
    """
    regions_of: Counter[str] = Counter()
    for number, example in enumerate(itertools.islice(dataset, limit)):
        image = example.image if isinstance(example.image, str) else f"record-{number}"
        if example.id is not None and not isinstance(example.image, str):
            image = str(example.id)
        rows = []
        for region in example.regions:
            index = regions_of[image]
            regions_of[image] += 1
            grouped: dict[tuple[str | None, str | None], list[int]] = {}
            for place, branch in enumerate(region.branches):
                asked = (None if branch.name is None else normalise_name(branch.name), branch.question)
                grouped.setdefault(asked, []).append(place)
            rows.append(
                [
                    Prediction(
                        key=f"{image}|{index}|{places[0]}",
                        image=image,
                        image_id=example.id,
                        region_index=index,
                        region_id=region.id,
                        name=region.branches[places[0]].name,
                        question=region.branches[places[0]].question or "",
                        references=tuple(dict.fromkeys(region.branches[place].answer for place in places)),
                    )
                    for places in grouped.values()
                ]
            )
        yield example, rows


def describe_data(dataset: Iterable[Example], name: str, limit: int | None = None) -> dict[str, Any]:
    """What is known of data: its name, how much it is, the names of branches without a question, and a fingerprint of
    all but the pictures' content."""
    digest = hashlib.sha256()
    counts: Counter[str] = Counter(records=0, regions=0, whole_images=0, branches=0)
    names: dict[str, None] = {}
    for example, rows in walk(dataset, limit):
        counts["records"] += 1
        digest.update(b"stored" if example.stored_orientation else b"")
        for region, row in zip(example.regions, rows, strict=True):
            counts["regions"] += 1
            counts["whole_images"] += region.mask is None
            counts["branches"] += len(row)
            digest.update(_digestible(region.mask))
            for asked in row:
                if not asked.question and asked.name is not None:
                    names[asked.name] = None
                digest.update(json.dumps([asked.key, asked.name, asked.question, asked.references]).encode())
    if not counts["branches"]:
        raise DataError(name, "it holds no example, so there is nothing to evaluate.")
    rejected = getattr(dataset, "num_rejected", 0)
    return {
        "name": name,
        **counts,
        "names": list(names),
        "rejected_records": rejected,
        "limit": limit,
        "fingerprint": digest.hexdigest(),
    }


def _digestible(mask: Any) -> bytes:
    if isinstance(mask, MaskFile):
        return mask.name.encode("utf-8", "backslashreplace")  # counts by its name, as pictures do
    if isinstance(mask, (str, int, float, list, tuple, dict, type(None))):
        return json.dumps(mask, sort_keys=True, default=repr).encode()
    array = np.asarray(mask)
    return f"{array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes()


def run_predictions(
    describer: Describer,
    dataset: Iterable[Example],
    output: str | os.PathLike[str],
    *,
    data_name: str = "",
    decoding: Mapping[str, Any] | None = None,
    batch_size: int = 4,
    limit: int | None = None,
    on_error: str = "record",
    overwrite: bool = False,
    retry_failed: bool = False,
    made_with: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """Ask about every branch of every region; the answers of the dataset are the references.

    Args:
        describer: the model; what it calls by name is what the names of branches without own words stand for.
        dataset: examples, which can be iterated again: `ExampleDataset`, `ExampleReader` or a list.
        output: file of predictions; if it is there and belongs to the same run, it is gone on with.
        data_name: of the dataset, for the report.
        decoding: for `BranchRequest`, such as `temperature` and `seed`; what is drawn follows from the seed, the region
            and the question.
        batch_size: examples that are described together, by their position in the dataset wherever a run starts.
        limit: only so many examples, the first.
        on_error: "record" writes a line with the reason for what cannot be described; "raise" ends the run.
        overwrite, retry_failed, tell: as for `PredictionWriter`.
        made_with: for the header.
        on_progress: gets the number of branches that are done, and of all.

    Returns:
        The path of the finished file, its lines in the order of the dataset.

    Raises:
        ResumeError: If the file belongs to another run, is damaged or in use.
        EvaluationError: If something could not be described and `on_error` is "raise".
        DataError: If the dataset is empty, or cannot be read.
    """
    if on_error not in ("record", "raise"):
        raise ValueError(no_such("on_error", on_error, ("record", "raise")))
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}. Give at least 1.")
    data = describe_data(dataset, data_name, limit)
    settings = {"model": describer.name, **describer.settings}
    if decoding:
        settings["decoding"] = {**settings.get("decoding", {}), **decoding}
    if not describer.independent:
        settings["batch_size"] = batch_size
    prompts = {name: find_question(name, describer.questions) for name in data.pop("names")}
    settings["questions"] = {name: text for name, text in prompts.items() if text is not None}
    note = note_of(describer)
    header = Header(
        describer.name, settings, data, {**(made_with or {}), **({} if note is None else {"model_note": note})}
    )
    total = data["branches"]
    with PredictionWriter(output, header, overwrite=overwrite, retry_failed=retry_failed, tell=tell) as writer:
        if writer.done:
            tell(f"{len(writer.done)} of {total} predictions were made before.")
        on_progress(len(writer.done), total)
        examples = walk(dataset, limit)
        keys: list[str] = []
        while batch := list(itertools.islice(examples, batch_size)):
            wanted = [asked.key for _, rows in batch for row in rows for asked in row]
            keys += wanted
            if writer.done.issuperset(wanted):
                continue
            for prediction in _predict(describer, batch, writer.done, decoding or {}):
                if prediction.error is not None and on_error == "raise":
                    raise EvaluationError(
                        f"{prediction.key}: {prediction.error['type']}: {prediction.error['message']} What was "
                        "predicted before is kept."
                    )
                writer.write(prediction)
                on_progress(len(writer.done), total)
        writer.sort(keys)
    return Path(output)


def _predict(
    describer: Describer,
    batch: Sequence[tuple[Example, list[list[Prediction]]]],
    done: set[str],
    decoding: Mapping[str, Any],
) -> Iterator[Prediction]:
    """The predictions of a batch that are not there yet, as they come; those that cannot be made at the end."""
    images: list[AskedImage] = []
    waiting: dict[tuple[int, int], tuple[Prediction, AskedRegion]] = {}
    for example, rows in batch:
        chosen = [
            # What is asked beside it may decide about an answer.
            [asked for asked in row if not (describer.independent and asked.key in done)]
            for row in rows
        ]
        if not any(chosen):
            continue
        picture: Any
        try:
            picture = example.load()
        except (DataError, OSError) as error:
            picture = error
        references, regions = [], []
        for region, row in zip(example.regions, chosen, strict=True):
            if not row:
                continue
            asked = AskedRegion(_requests(describer, row, decoding))
            references.append(example.reference(region, picture))
            regions.append(asked)
            for number, prediction in enumerate(row):
                if not (prediction.question or find_question(prediction.name or "", describer.questions)):
                    reason = (
                        f"There is no question of the name {prediction.name!r}. Give the branch a question, or the "
                    )
                    asked.answers[number] = BranchAnswer("", finish_reason="error", error=f"{reason}model that name.")
                if prediction.key not in done:
                    size = None if isinstance(picture, Exception) else (picture.height, picture.width)
                    text = asked.requests[number].question
                    assert isinstance(text, str)  # branches of examples have one turn
                    prediction = replace(prediction, question=text, image_size=size)
                    waiting[id(asked), number] = prediction, asked
        images.append(AskedImage.prepare(describer.prepare, picture, references, regions))
    for image, region_number, number, _ in answers(describer, images, log_probs=True):
        if answered := waiting.pop((id(image.regions[region_number]), number), None):
            yield _told(*answered, number)
    for (_, number), unanswered in waiting.items():
        yield _told(*unanswered, number)


def _requests(
    describer: Describer, row: Sequence[Prediction], decoding: Mapping[str, Any]
) -> tuple[BranchRequest, ...]:
    texts = [(it.name, it.question or find_question(it.name or "", describer.questions) or it.name or "") for it in row]
    return requests_about(texts, (row[0].image, row[0].region_index), (row[0].image,), **decoding)


def _told(prediction: Prediction, region: AskedRegion, number: int) -> Prediction:
    """A prediction with the answer to it."""
    prediction = replace(prediction, box_xyxy=region.box_xyxy, area=region.area)
    if error := region.why_not(number):
        return replace(prediction, error=error)
    log_probs = region.answers[number].log_probs
    log_prob = None if log_probs is None else sum(log_probs)
    return replace(prediction, prediction=region.text(number), log_prob=log_prob)
