"""`pipeline("region-captioning")`, and the way that all doors go: pictures, regions and questions -> records.

A record is `{"region_index", "box_xyxy", "area", "answers": {name: text}}`, or `{"region_index", "error": {..}}`. The
global caption is about the whole image whatever the regions: it is asked once and stands in the record of every region
that asks for it. Questions that got no answer stand in `errors`, by name.

Dimension letters: B regions that a describer gets, R regions of one image, H W pixels of an image as displayed, C h w
channels and cells of the high-resolution towers' features. A region reference is whatever `as_mask` takes.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from .configuration_finecaption import FineCaptionConfig

# isort: split
from transformers import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .engine_finecaption import BranchEngine, encode_picture, without_wrapper
from .image_processing_finecaption import FineCaptionImageProcessor, flatten_regions, upright_rgb
from .masks_finecaption import MaskError, RegionMask, is_region_reference
from .prompts_finecaption import BranchAnswer, BranchRequest, FineCaptionError, Question, is_global, resolve_questions

TASK = "region-captioning"


class ImageError(FineCaptionError, ValueError):
    """What was given as an image cannot be read as one."""


# --- asking ----------------------------------------------------------------------------------------------------------


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
        record |= {"log_probs": {}} if log_probs else {}
        for number, answer in sorted(self.answers.items()):
            name = self.requests[number].label
            if answer.sent is not None:
                record.setdefault("sent", {})[name] = dict(answer.sent)
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
        of_image: dict[Question, list[Target]] = {}
        whole: list[list[Target]] | None = None
        for number, (reference, region) in enumerate(zip(references, regions)):
            error = next((it for it in (reference, picture) if isinstance(it, Exception)), None)
            if error is None:
                try:
                    mask = RegionMask(reference, picture.height, picture.width)
                except MaskError as problem:
                    error = problem
            if error is not None:
                region.error = {"type": type(error).__name__, "message": str(error)}
                continue
            region.box_xyxy, region.area = mask.box_xyxy, mask.area
            row: list[list[Target]] = []
            for place, request in enumerate(region.requests):
                if is_global(request.label):
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
        piece = {"image_index": image.index, "region_index": index, "question": request.label}
        if why_not := region.why_not(number):
            yield {**piece, "error": why_not}
            continue
        piece |= {"text": answer.text, "finish_reason": answer.finish_reason}
        if log_probs:
            piece["log_probs"] = list(answer.log_probs or ())
        yield piece


def requests_about(
    questions: Iterable[tuple[str | None, Question]], place: Sequence[Any], image: Sequence[Any], **decoding: Any
) -> tuple[BranchRequest, ...]:
    """Questions -> requests that draw differently everywhere, and the same in every batch.

    Args:
        questions: (name, text) of each.
        place, image: what the seeds of a region's questions follow from, and those of global ones.
        **decoding: for `BranchRequest`.
    """
    made = []
    for name, text in questions:
        label = BranchRequest(text, name=name).label
        # Equal seeds would make like draws.
        places = json.dumps([decoding.get("seed", 0), *(image if is_global(label) else place), label])
        seed = int.from_bytes(hashlib.sha256(places.encode()).digest()[:7], "big")
        made.append(BranchRequest(text, **{**decoding, "seed": seed, "name": name}))
    return tuple(made)


# --- pictures and regions as users give them -------------------------------------------------------------------------


def read_picture(image: Any) -> Image.Image:
    """Whatever the image processor takes as an image -> RGB, upright, transparent pixels on white.

    Raises:
        ImageError: If it cannot be read.
    """
    name = os.fspath(image) if isinstance(image, str | os.PathLike) else None
    processor = FineCaptionImageProcessor()
    try:
        opened = processor.fetch_images(image if name is None else name)
        if isinstance(opened, Image.Image):
            return upright_rgb(opened)
        return Image.fromarray(processor.process_image(opened).permute(1, 2, 0).cpu().numpy())
    except Exception as error:  # decoders of damaged files and clients of networks raise nearly anything
        reason = str(error)[:500].rstrip(".")
        if name is not None and not name.startswith(("http:", "https:", "data:")) and not os.path.isfile(name):
            reason = "it is a folder, and no picture file" if os.path.isdir(name) else "there is no such file"
        shown = f"A {type(image).__name__}" if name is None else repr(name[:200])
        raise ImageError(f"{shown} cannot be read as an image: {reason}. Give a picture such as PNG.") from error


def read_item(
    item: Mapping[str, Any], known: Mapping[str, str], questions: Any = "region", **decoding: Any
) -> dict[str, Any]:
    """An image of a call, as `items_of` gives it -> what `AskedImage.prepare` takes.

    Args:
        item: its own questions come before `questions`.
        known: the names of questions that the describer knows.
        questions: see `resolve_questions`.
        **decoding: for `BranchRequest`.
    """
    asked = resolve_questions(questions if item["questions"] is None else item["questions"], known)
    references, index = _references(item["regions"]), item["index"]
    regions = [
        AskedRegion(requests_about(asked.items(), (index, number), (index, None), **decoding), {"region_index": number})
        for number in range(len(references))
    ]
    picture: Image.Image | Exception | None = None
    try:
        picture = read_picture(item["image"]) if references else None
    except ImageError as error:
        picture = error
    more = {name: item[name] for name in ("high_res_features",) if name in item}
    return {"picture": picture, "references": references, "regions": regions, "index": index, **more}


def items_of(images: Any, regions: Any) -> Any:
    """The images of a call with their regions and places: one item, a list, a dataset or a generator of items.

    Raises:
        ValueError: If images and regions do not go together.
    """
    if isinstance(images, list | tuple):
        per_image = [None] * len(images) if regions is None else regions
        is_container = isinstance(per_image, list | tuple) or getattr(per_image, "ndim", 0) >= 3
        if not is_container or len(per_image) != len(images):
            raise ValueError(
                f"The regions of {len(images)} images are a {type(regions).__name__}"
                f"{f' of {len(regions)}' if isinstance(regions, Sized) else ''}. Give a list with one entry per image: "
                "a region reference, a list of them, or None for the whole image."
            )
        return [_item(index, image, entry) for index, (image, entry) in enumerate(zip(images, per_image))]
    is_one = hasattr(images, "read") or isinstance(
        images, str | bytes | bytearray | os.PathLike | Mapping | Image.Image | np.ndarray | torch.Tensor
    )
    is_dataset = hasattr(images, "__getitem__") and hasattr(images, "__len__")
    if is_one or not (is_dataset or isinstance(images, Iterable)):
        return _item(0, images, regions)
    if regions is not None:
        raise ValueError(
            f"Regions were given beside a {type(images).__name__}. Put them into its items: "
            "{'image': .., 'regions': ..}."
        )
    if is_dataset:
        return _NumberedItems(images)
    return (_item(index, image, None) for index, image in enumerate(images))


def _item(index: int, image: Any, regions: Any) -> dict[str, Any]:
    if not isinstance(image, Mapping):
        return {"index": index, "image": image, "regions": regions, "questions": None}
    if "image" not in image or not image.keys() <= {"image", "regions", "questions"}:
        raise ValueError(
            f"A dict with the keys {', '.join(map(repr, image))} arrived as image {index}. Give 'image', and if need "
            "be 'regions' and 'questions', and nothing else."
        )
    if regions is not None:
        raise ValueError(f"The regions of image {index} were given beside a dict. Put them into it.")
    return {"index": index, "image": image["image"]} | {name: image.get(name) for name in ("regions", "questions")}


def _references(regions: Any) -> list[Any]:
    """The region references of one image."""
    if not is_region_reference(regions) and isinstance(regions, Sized) and len(regions) == 0:
        return []
    return flatten_regions(regions, None, 1, is_list=False)[0]


class _NumberedItems(Dataset):
    """The items of a dataset, with their places."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _item(index, self.dataset[index], None)


# --- the library's pipeline ------------------------------------------------------------------------------------------


class _PerImage(Iterator[list[dict[str, Any]]]):
    """The records of each image in turn; as long as the dataset of the batches, where that has a length."""

    def __init__(self, batches: DataLoader, answer: Callable[[Any], list[list[dict[str, Any]]]]) -> None:
        self._dataset = batches.dataset
        self._records = (records for images in batches for records in answer(images))

    def __next__(self) -> list[dict[str, Any]]:
        return next(self._records)

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]


class RegionCaptioningPipeline(Pipeline):
    """Asks questions about regions of images: each image and each region is encoded once for all its questions.

    Args:
        model (`FineCaptionForConditionalGeneration`): answers.
        processor (`FineCaptionProcessor`): the model's own.
        batch_size, num_workers, device, ..: as in every pipeline. What a call takes by name may be given here as well,
            as the default of calls.

    Raises:
        ValueError: If the model is no FineCaption, or comes without its processor.

    ```python
    >>> from transformers import pipeline

    >>> describe = pipeline("region-captioning", model=folder, trust_remote_code=True)
    >>> describe("photo.jpg", [{"box_xyxy": [40, 60, 200, 180]}], ["color", "shape"])
    [{'region_index': 0, 'box_xyxy': [40, 60, 200, 180], 'area': 19200, 'answers': {'Color': ..., 'Shape': ...}}]
    ```
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False
    _pipeline_calls_generate = False

    def __init__(self, model: Any, processor: Any = None, *args: Any, task: str = TASK, **kwargs: Any) -> None:
        model = without_wrapper(model)
        if model.config.model_type != FineCaptionConfig.model_type:
            raise ValueError(f"A model of type {model.config.model_type!r} arrived; {TASK} needs a FineCaption model.")
        if processor is None:
            raise ValueError(
                f"{TASK} needs the model's processor: give processor=AutoProcessor.from_pretrained(...) of the same "
                "checkpoint."
            )
        kwargs.pop("local_files_only", None)  # `transformers.pipeline` hands it on, after its own use of it
        self._engines: dict[int | None, BranchEngine] = {}
        super().__init__(model, *args, processor=processor, task=task, **kwargs)

    def __call__(
        self,
        images: Any,
        regions: Any = None,
        questions: Any = None,
        high_res_features: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answer every question about every region.

        Args:
            images: one image (path, URL, PIL image, array, ..: whatever the image processor takes), or a dict
                `{"image": .., "regions": .., "questions": ..}`, of which the last two may be absent; or a list, a
                dataset or an iterable of such.
            regions: for one image a region reference, a list of R of them or a `(R, H, W)` array; `None` is the whole
                image, `[]` no region. For a list of images, a list with one such entry per image. Datasets and
                iterables hold their regions in dicts.
            questions: one or several: names of tasks or attributes that the processor knows, own words, or `"all"`,
                every attribute; or chats of texts about the region, `[{"role": "user", "content": ..}, ..]`. `None`
                means what the pipeline was made with, else `"region"`. `"global"` is asked once about the whole image,
                and its answer is in the record of every region. A chat's answer stands under its turns, a line each.
            high_res_features (`torch.Tensor` of shape `(1, C, h, w)`): what `encode` gave for this image, which must
                be one image; the high-resolution towers then do not run. The answers are the same.
            log_probs (`bool`): whether records hold the log-probability of each token of the answers.
            max_new_tokens (`int`): the longest answer; without it the checkpoint's own limit.
            temperature (`float`): 0, the default, is greedy decoding; above it tokens are drawn.
            top_p, repetition_penalty, stop_strings: as in `generate`.
            seed (`int`): what is drawn follows from it, from the positions of image and region in the call and from the
                question, and from nothing else, such as `batch_size`.
            max_batch_tokens (`int`): how many tokens may be worked on at once; without it the engine looks at the free
                memory. Greedy answers do not depend on it.
            batch_size (`int`): images that go through the model together.
            num_workers (`int`): processes that read and prepare images ahead of the model.

        Returns:
            For one image a list of R records `{"region_index", "box_xyxy", "area", "answers": {name: text}}`, with
            `"log_probs": {name: [..]}` on request. For a list of images a list of such lists; for a dataset or an
            iterable an iterator over them. A region that cannot be one, or any region of an unreadable image, has the
            record `{"region_index", "error": {"type", "message"}}`; the others are answered.

        Raises:
            ValueError: If there is no question, or what was given has another form than the above.
        """
        items = self._with_features(items_of(images, regions), high_res_features)
        return super().__call__(items, questions=questions, **kwargs) if items else []

    def encode(self, image: Any) -> torch.Tensor | None:
        """Run the high-resolution towers on an image, once for several calls about it.

        Args:
            image: one image, as for a call.

        Returns:
            `torch.Tensor` of shape `(1, C, h, w)`, for `high_res_features`, on the model's device; `None` where the
            model has no such towers.

        Raises:
            ImageError: If the image cannot be read.
        """
        return encode_picture(self.model, self.processor.image_processor, read_picture(image))

    def stream(
        self,
        images: Any,
        regions: Any = None,
        questions: Any = None,
        high_res_features: torch.Tensor | None = None,
        *,
        partial: bool = True,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> Iterator[dict[str, Any]]:
        """Answers while they grow, by region and question.

        Args:
            images, regions, questions, high_res_features, batch_size, num_workers, **kwargs: as for a call.
            partial (`bool`): whether to give unfinished answers as well, or only each answer when it is finished.

        Returns:
            Iterator of `{"image_index", "region_index", "question", "text", "finish_reason"}`, with `"log_probs"` on
            request. `text` is all of the answer so far; `finish_reason` is `None` until it is finished, then `"end"`,
            `"stop_string"` or `"length"`. Answers of a batch of images grow together. A region that fails comes as
            `{"image_index", "region_index", "error": {"type", "message"}}`, before the answers of its batch.

        Raises:
            ValueError: As a call.
        """
        preprocess_params, forward_params, _ = self._sanitize_parameters(questions, **kwargs)
        items = self._with_features(items_of(images, regions), high_res_features)
        is_one = isinstance(items, dict)
        batches = self._batches(
            [items] if is_one else items,
            0 if is_one else self._num_workers or 0 if num_workers is None else num_workers,
            self._batch_size or 1 if batch_size is None else batch_size,
            {**self._preprocess_params, **preprocess_params},
        )
        return self._stream(batches, partial=partial, **{**self._forward_params, **forward_params})

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save the model and its processor with all their code, this pipeline's too: a complete checkpoint."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    # --- what the library calls ---------------------------------------------------------------------------------------

    def _sanitize_parameters(
        self, questions: Any = None, log_probs: bool | None = None, max_batch_tokens: int | None = None, **decoding: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Sort parameters by the step that takes them, and refuse wrong ones before any work is done."""
        decoding = {name: value for name, value in decoding.items() if value is not None}
        BranchRequest("region", name=None, **decoding)
        if questions is not None:
            for text in resolve_questions(questions, self.processor.questions).values():
                self._engine(max_batch_tokens).question_ids(text)
        elif max_batch_tokens is not None:
            self._engine(max_batch_tokens)
        steps = {"questions": questions, **decoding}, {"log_probs": log_probs, "max_batch_tokens": max_batch_tokens}
        preprocess, forward = ({name: value for name, value in step.items() if value is not None} for step in steps)
        return preprocess, forward, {}

    def preprocess(self, item: Mapping[str, Any], **options: Any) -> AskedImage:
        """Read one image and its regions; what cannot be read ends in records of errors."""
        prepare = functools.partial(self.processor.image_processor, return_tensors="pt")
        return AskedImage.prepare(prepare, **read_item(item, self.processor.questions, **options))

    def _forward(
        self, images: list[AskedImage], log_probs: bool = False, max_batch_tokens: int | None = None
    ) -> list[list[dict[str, Any]]]:
        answer_all(self._engine(max_batch_tokens), images, log_probs=log_probs)
        return [image.records(log_probs) for image in images]

    def postprocess(self, model_outputs: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        return model_outputs

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[list[dict[str, Any]]]:
        batches = self._batches(inputs, num_workers, batch_size, preprocess_params)
        return _PerImage(batches, lambda images: self.postprocess(self.forward(images, **forward_params)))

    def run_single(self, inputs: Mapping[str, Any], *params: dict[str, Any]) -> list[dict[str, Any]]:
        return next(self.get_iterator([inputs], 0, 1, *params))

    # --- steps --------------------------------------------------------------------------------------------------------

    def _with_features(self, items: Any, high_res_features: torch.Tensor | None) -> Any:
        """The items of a call, with what is known of its image already.

        Raises:
            ValueError: If they are several images, or these are no features of this model.
        """
        if high_res_features is None:
            return items
        if not isinstance(items, dict):
            raise ValueError(
                "high_res_features are of one image, but several arrived. Call once per image, or leave them out."
            )
        config = self.model.config
        if not (config.use_convnext or config.use_sam):
            raise ValueError("This model has no high-resolution towers. Leave high_res_features out.")
        channels = config.fused_feature_size - config.vision_config.hidden_size
        needed = (1, channels, config.grid_size, config.grid_size)
        shape = tuple(getattr(high_res_features, "shape", ()))
        if not isinstance(high_res_features, torch.Tensor) or shape != needed:
            raise ValueError(
                f"high_res_features are a {type(high_res_features).__name__} of shape {shape}; this model's are a "
                f"tensor of shape {needed}. Give what `encode` returns for the image."
            )
        return {**items, "high_res_features": high_res_features}

    def _batches(self, items: Any, num_workers: int, batch_size: int, preprocess_params: dict[str, Any]) -> DataLoader:
        """Lists of up to `batch_size` prepared images. The library's own way pads them to one tensor."""
        if isinstance(items, Sized):
            prepared = PipelineDataset(items, self.preprocess, preprocess_params)
        else:
            # Every further worker would start the iterable anew.
            prepared, num_workers = PipelineIterator(items, self.preprocess, preprocess_params), min(num_workers, 1)
        return DataLoader(prepared, batch_size=batch_size, num_workers=num_workers, collate_fn=list)

    def _stream(
        self, batches: Iterable[list[AskedImage]], max_batch_tokens: int | None = None, **options: Any
    ) -> Iterator[dict[str, Any]]:
        for images in batches:
            yield from stream_answers(self._engine(max_batch_tokens), images, **options)

    def _engine(self, max_batch_tokens: int | None) -> BranchEngine:
        """The engine with this budget; it is kept, since it learns the processor's prompts on construction."""
        if max_batch_tokens not in self._engines:
            self._engines[max_batch_tokens] = BranchEngine(
                self.model, self.processor, max_batch_tokens=max_batch_tokens
            )
        return self._engines[max_batch_tokens]
