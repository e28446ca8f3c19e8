"""Ask a model about every region of a dataset, and keep what it says; called again, go on where it was ended."""

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.records import DataError, Record, Region
from ..masks_finecaption import MaskError, as_mask, mask_to_box
from ..prompts_finecaption import ATTRIBUTES, TASKS, find_question, normalise_name
from .predictions import (
    Describer,
    DescribeRequest,
    Description,
    Header,
    Prediction,
    PredictionWriter,
)

QUESTIONS: Mapping[str, str] = {**TASKS, **ATTRIBUTES}
"""What names stand for, for models that have no questions of their own."""


class EvaluationError(ValueError):
    """Something could not be described, and that was not to be recorded."""


@dataclass(frozen=True)
class Asked:
    """A branch as it is asked: branches of a region that ask the same are one, with several references."""

    key: str
    name: str | None
    question: str | None
    references: tuple[str, ...]


@dataclass(frozen=True)
class AskedRegion:
    """A region with what is asked about it. `index` counts the regions of its image in the whole dataset."""

    index: int
    region: Region
    branches: tuple[Asked, ...]


@dataclass(frozen=True)
class AskedRecord:
    """A record with what is asked; `image` is the name under which its image goes."""

    image: str
    record: Record
    regions: tuple[AskedRegion, ...]


def walk(dataset: Iterable[Record], limit: int | None = None) -> Iterator[AskedRecord]:
    """The records of a dataset with stable keys, the first `limit` of them.

    A key is `image|region|branch`. Where several records have the same image, their regions are counted on. A picture
    in memory goes under the id of its record, or under its number.
    """
    regions_of: Counter[str] = Counter()
    for number, record in enumerate(itertools.islice(dataset, limit)):
        image = record.image if isinstance(record.image, str) else record.id or f"record-{number}"
        regions = []
        for region in record.regions:
            index = regions_of[image]
            regions_of[image] += 1
            grouped: dict[tuple[str | None, str | None], list[int]] = {}
            for place, branch in enumerate(region.branches):
                asked = (None if branch.name is None else normalise_name(branch.name), branch.question)
                grouped.setdefault(asked, []).append(place)
            branches = []
            for places in grouped.values():
                first = region.branches[places[0]]
                references = tuple(dict.fromkeys(region.branches[place].answer for place in places))
                branches.append(Asked(f"{image}|{index}|{places[0]}", first.name, first.question, references))
            regions.append(AskedRegion(index, region, tuple(branches)))
        yield AskedRecord(image, record, tuple(regions))


def describe_data(dataset: Iterable[Record], name: str, limit: int | None = None) -> dict[str, Any]:
    """What is known of data: its name, how much it is, the names of branches without a question, and a fingerprint of
    all but the pictures' content."""
    digest = hashlib.sha256()
    counts: Counter[str] = Counter(records=0, regions=0, branches=0)
    names: dict[str, None] = {}
    for asked in walk(dataset, limit):
        counts["records"] += 1
        for region in asked.regions:
            counts["regions"] += 1
            counts["branches"] += len(region.branches)
            digest.update(_digestible(region.region.mask))
            for branch in region.branches:
                if branch.question is None and branch.name is not None:
                    names[branch.name] = None
                digest.update(json.dumps([branch.key, branch.name, branch.question, branch.references]).encode())
    if not counts["branches"]:
        raise DataError(name, "it holds no record, so there is nothing to evaluate.")
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
    if isinstance(mask, (str, int, float, list, tuple, dict, type(None))):
        return json.dumps(mask, sort_keys=True, default=repr).encode()
    array = np.asarray(mask)
    return f"{array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes()


def run_predictions(
    describer: Describer,
    dataset: Iterable[Record],
    output: str | os.PathLike[str],
    *,
    data_name: str = "",
    questions: Mapping[str, str] = QUESTIONS,
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
        describer: the model.
        dataset: records, which can be iterated again: `RecordDataset`, `RecordReader` or a list.
        output: file of predictions; if it is there and belongs to the same run, it is gone on with.
        data_name: of the dataset, for the report.
        questions: what the names of branches without a question of their own stand for.
        batch_size: records that are described together, by their position in the dataset wherever a run starts.
        limit: only so many records, the first.
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
        raise ValueError(f"on_error is {on_error!r}. Give 'record' or 'raise'.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}. Give at least 1.")
    data = describe_data(dataset, data_name, limit)
    settings = dict(describer.settings)
    if not describer.independent:
        settings["batch_size"] = batch_size
    prompts = {name: find_question(name, questions) for name in data.pop("names")}
    settings["questions"] = {name: text for name, text in prompts.items() if text is not None}
    header = Header(describer.name, settings, data, dict(made_with or {}))
    total = data["branches"]
    with PredictionWriter(output, header, overwrite=overwrite, retry_failed=retry_failed, tell=tell) as writer:
        if writer.done:
            tell(f"{len(writer.done)} of {total} predictions were made before.")
        on_progress(len(writer.done), total)
        records = walk(dataset, limit)
        keys: list[str] = []
        while batch := list(itertools.islice(records, batch_size)):
            wanted = [branch.key for asked in batch for region in asked.regions for branch in region.branches]
            keys += wanted
            if writer.done.issuperset(wanted):
                continue
            for prediction in _describe(describer, batch, questions, writer.done):
                if prediction.error is not None and on_error == "raise":
                    raise EvaluationError(
                        f"{prediction.key}: {prediction.error['type']}: {prediction.error['message']} What was "
                        "predicted before is kept."
                    )
                writer.write(prediction)
                on_progress(len(writer.done), total)
        writer.sort(keys)
    return Path(output)


@dataclass
class _Planned:
    """A region of a batch: what is known of it, the branches that its request asks about, and why others are not."""

    asked: AskedRecord
    region: AskedRegion
    questions: list[str]
    about: dict[str, Any]
    failures: dict[int, Exception]
    places: list[int]


def _describe(
    describer: Describer, batch: Sequence[AskedRecord], questions: Mapping[str, str], done: set[str]
) -> Iterator[Prediction]:
    """The predictions of a batch that are not there yet, in order."""
    planned: list[_Planned] = []
    requests: list[DescribeRequest] = []
    for asked in batch:
        picture: Image.Image | Exception | None = None
        for region in asked.regions:
            left = [place for place, branch in enumerate(region.branches) if branch.key not in done]
            if describer.independent and not left:
                continue
            if picture is None:
                try:
                    picture = asked.record.load()
                except (DataError, OSError) as error:
                    picture = error
            plan = _plan(asked, region, picture, questions)
            if describer.independent:
                plan.places = [place for place in plan.places if place in left]
            planned.append(plan)
            if plan.places:
                assert isinstance(picture, Image.Image)
                requests.append(_request(plan, picture))
    descriptions = iter(describer.describe(requests)) if requests else iter(())
    for plan in planned:
        description = Description(())
        if plan.places:
            description = next(descriptions, description)
            if len(description.texts) != len(plan.places):
                raise RuntimeError(
                    f"{describer.name} gave {len(description.texts)} texts to {len(plan.places)} questions about "
                    f"{plan.asked.image}. A Describer has to answer each."
                )
        for place, branch in enumerate(plan.region.branches):
            if branch.key in done:
                continue
            text, log_prob, failure = None, None, None
            if place in plan.failures:
                failure = {"type": type(plan.failures[place]).__name__, "message": str(plan.failures[place])}
            else:
                number = plan.places.index(place)
                text = description.texts[number]
                log_prob = None if description.log_probs is None else description.log_probs[number]
                reason = None if description.errors is None else description.errors[number]
                failure = None if reason is None else {"type": "NotDescribed", "message": reason}
            yield Prediction(
                key=branch.key,
                image=plan.asked.image,
                image_id=plan.asked.record.id,
                region_index=plan.region.index,
                region_id=plan.region.region.id,
                name=branch.name,
                question=plan.questions[place],
                prediction=text,
                references=branch.references,
                log_prob=log_prob,
                error=failure,
                **plan.about,
            )


def _plan(
    asked: AskedRecord, region: AskedRegion, picture: Image.Image | Exception, questions: Mapping[str, str]
) -> _Planned:
    texts: list[str] = []
    failures: dict[int, Exception] = {}
    about: dict[str, Any] = {}
    for place, branch in enumerate(region.branches):
        text = branch.question or find_question(branch.name or "", questions)
        texts.append(text or branch.name or "")
        if text is None:
            failures[place] = EvaluationError(
                f"There is no question of the name {branch.name!r}. Give the branch a question, or the model that name."
            )
    try:
        if isinstance(picture, Exception):
            raise picture
        about["image_size"] = (picture.height, picture.width)
        mask = as_mask(region.region.mask, picture.height, picture.width)
        about.update(box_xyxy=mask_to_box(mask), area=int(mask.sum()))
    except (DataError, MaskError, OSError) as error:
        failures = {place: error for place in range(len(texts))}
    places = [place for place in range(len(texts)) if place not in failures]
    return _Planned(asked, region, texts, about, failures, places)


def _request(plan: _Planned, picture: Image.Image) -> DescribeRequest:
    reference = plan.region.region.mask
    return DescribeRequest(
        picture,
        None if reference is None else as_mask(reference, picture.height, picture.width),
        tuple(plan.questions[place] for place in plan.places),
        tuple(plan.region.branches[place].name for place in plan.places),
        f"{plan.asked.image}|{plan.region.index}",
    )
