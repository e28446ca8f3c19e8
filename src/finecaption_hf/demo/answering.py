"""Questions about the regions of a picture, answered piece by piece; and what reproduces or explains the answers.

Dimension letters: R regions, H W pixels of the picture, h w pixels of a model input.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import __version__
from ..asking import Describer, FineCaptionDescriber
from ..data.encoding import encode_rle
from ..masks_finecaption import RegionMask
from ..pipeline_finecaption import AskedImage, AskedRegion, answers, requests_about
from ..prompts_finecaption import BranchAnswer, is_global, resolve_questions
from .uploads import MAX_QUESTION_LENGTH, MAX_QUESTIONS, MAX_REGIONS, UploadError


@dataclass
class AskedPicture:
    """What one user asks, and the answers as far as they are there.

    Args:
        picture: in RGB, upright, (H, W).
        name: of its file, for the snippet.
        masks: R of shape (H, W); none means the whole picture.
        questions: at least one, by name, in their order.
        options: of `BranchRequest`: `max_new_tokens`, `temperature`, `seed`.
        regions: one for each mask, or the whole picture.
        model: the name of the one that is asked, where a page offers several.
    """

    picture: Image.Image
    name: str
    masks: tuple[RegionMask, ...]
    questions: tuple[str, ...]
    options: dict[str, Any]
    regions: list[AskedRegion]
    model: str = ""

    @classmethod
    def read(
        cls,
        picture: Image.Image,
        name: str,
        references: Sequence[Any],
        questions: Sequence[str],
        known: Mapping[str, str],
        model: str = "",
        **options: Any,
    ) -> "AskedPicture":
        """Check a request.

        Raises:
            UploadError: If there are too many regions or questions, or none.
            MaskError: If a reference is no region of the picture.
        """
        if len(references) > MAX_REGIONS:
            raise UploadError(f"{len(references)} regions were sent; at most {MAX_REGIONS} are taken at once.")
        given = [question for question in questions if isinstance(question, str) and question.strip()]
        if not given:
            raise UploadError("Nothing is asked. Choose a caption or an attribute, or ask in your own words.")
        if len(given) > MAX_QUESTIONS or max(map(len, given)) > MAX_QUESTION_LENGTH:
            raise UploadError(
                f"At most {MAX_QUESTIONS} questions of {MAX_QUESTION_LENGTH} characters each are taken at once."
            )
        size = (picture.height, picture.width)
        masks = tuple(RegionMask(reference, *size) for reference in references)
        asked = resolve_questions(given, known)
        regions = [
            AskedRegion(
                requests_about(asked.items(), (0, index), (0, None), **options),
                {"region_index": index},
                mask.box_xyxy,
                mask.area,
            )
            for index, mask in enumerate(masks or (RegionMask(None, *size),))
        ]
        return cls(picture, name, masks, tuple(asked), options, regions, model)

    @cached_property
    def digest(self) -> str:
        """See `pixel_digest`."""
        return pixel_digest(self.picture)

    @property
    def references(self) -> list[RegionMask | None]:
        """R masks, or the whole picture."""
        return list(self.masks) or [None]

    @property
    def missing(self) -> list[tuple[int, str]]:
        """(region, question) that are not answered to their end."""
        return [
            (index, name)
            for index, region in enumerate(self.regions)
            for number, name in enumerate(self.questions)
            if not region.is_answered(number)
        ]

    def take(self, region: int, number: int, answer: BranchAnswer) -> None:
        """Note what `stream_pieces` gave.

        Raises:
            UploadError: If the question cannot be asked.
        """
        if answer.error is not None:
            raise UploadError(answer.error)
        self.regions[region].answers[number] = answer

    @property
    def records(self) -> list[dict[str, Any]]:
        """Those of the regions; what is not answered yet is empty."""
        return [
            {**record, "answers": dict.fromkeys(self.questions, "") | record["answers"]}
            for record in (region.record() for region in self.regions)
        ]

    def as_json(self, model: str | None, note: str | None = None) -> str:
        """Everything that the answers follow from, but for the picture's pixels, and the answers.

        Args:
            model: its name; `None` means the embedded checkpoint.
            note: what its card says of its limits, see `note_of`.
        """
        content = {
            "finecaption_hf": __version__,
            "model": model or "embedded",
            **({} if note is None else {"model_note": note}),
            "image": {
                "name": self.name,
                "size": [self.picture.height, self.picture.width],
                "sha256_of_rgb": hashlib.sha256(np.asarray(self.picture).tobytes()).hexdigest(),
            },
            "questions": list(self.questions),
            "options": self.options,
            "regions": [
                {**record, "segmentation": None if mask is None else encode_rle(mask.pixels)}
                for record, mask in zip(self.records, self.references)
            ],
            "finished": not self.missing,
        }
        return json.dumps(content, ensure_ascii=False, indent=2)


class KeptAnswers:
    """Finished answers of one user, for a picture that is asked about again.

    An answer is kept for the same picture, mask, question and settings. Draws are not kept: they depend on a region's
    place among the others.
    """

    _MOST = 4096

    def __init__(self) -> None:
        self._answers: OrderedDict[tuple[Any, ...], BranchAnswer] = OrderedDict()

    def fill(self, asked: AskedPicture) -> None:
        """Finish what is known."""
        for region, number, key in self._keys(asked):
            if key in self._answers:
                region.answers[number] = self._answers[key]

    def keep(self, asked: AskedPicture) -> None:
        """Remember what is finished."""
        for region, number, key in self._keys(asked):
            if region.is_answered(number):
                self._answers[key] = region.answers[number]
                self._answers.move_to_end(key)
        while len(self._answers) > self._MOST:
            self._answers.popitem(last=False)

    @staticmethod
    def _keys(asked: AskedPicture) -> Iterator[tuple[AskedRegion, int, tuple[Any, ...]]]:
        if asked.options.get("temperature", 0) > 0:
            return
        of_request = (asked.model, asked.digest, *sorted(asked.options.items()))
        for region, mask in zip(asked.regions, asked.references, strict=True):
            of_mask = None if mask is None else hashlib.sha256(np.packbits(mask.pixels).tobytes()).digest()
            for number, name in enumerate(asked.questions):
                yield region, number, (*of_request, None if is_global(name) else of_mask, name)


def stream_pieces(
    describer: Describer, asked: AskedPicture, high_res_features: torch.Tensor | None = None
) -> Iterator[tuple[int, int, BranchAnswer]]:
    """The answers that are missing while they grow, for `AskedPicture.take`.

    Args:
        describer: the checkpoint's.
        asked: the request.
        high_res_features (1, C, h, w): of the picture, where they are known.

    Raises:
        UploadError: If a question cannot be asked, such as one that holds a special token.
    """
    for region in asked.regions:
        for request in region.requests:
            if reason := describer.refusal(request.question):
                raise UploadError(reason)
    options: dict[str, Any] = {} if high_res_features is None else {"high_res_features": high_res_features}
    image = AskedImage.prepare(describer.prepare, asked.picture, asked.references, asked.regions, **options)
    for _, region_number, number, answer in answers(describer, [image], partial=True):
        yield region_number, number, answer


def pixel_digest(picture: Image.Image) -> str:
    """SHA-256 of a picture's size and RGB pixels, row after row."""
    size = f"{picture.width}x{picture.height} ".encode()
    return hashlib.sha256(size + np.asarray(picture).tobytes()).hexdigest()


def python_snippet(
    asked: AskedPicture, model: str | None, *, is_finecaption: bool = True, options: Mapping[str, Any] = {}
) -> str:
    """Code that gives the same answers; the picture is expected beside it, under its name.

    Args:
        asked: what was asked.
        model: its name, as `load_describer` takes it; `None` means the embedded checkpoint.
        is_finecaption: whether the model is one, asked by its mask.
        options: further ones of `load_describer`, which a model beside FineCaption was loaded with.
    """
    regions = ",\n".join(
        "    None" if mask is None else f"    {encode_rle(mask.pixels)!r}" for mask in asked.references
    )
    decoding = "".join(f", {name}={value!r}" for name, value in asked.options.items())
    source = "" if model is None else repr(model)
    if is_finecaption:
        opened = f"load\n\nmodel, processor = load({source})\ndescribe = model.as_pipeline(processor)\n"
        call = "describe("
    else:
        given = ", ".join([*([source] if source else []), *(f"{name}={value!r}" for name, value in options.items())])
        opened, call = f"ask, load_describer\n\ndescriber = load_describer({given})\n", "ask(describer, "
    return (
        f"from finecaption_hf.asking import {opened}"
        f"regions = [\n{regions},\n]\n"
        f"questions = {list(asked.questions)!r}\n"
        f"records = {call}{asked.name!r}, regions, questions{decoding})\n"
        "for record in records:\n"
        '    print(record["box_xyxy"], record["answers"])\n'
    )


def what_was_seen(describer: Describer, asked: AskedPicture) -> list[tuple[Image.Image, str]]:
    """The pictures that a model got of the first eight regions, each with a line of text."""
    if isinstance(describer, FineCaptionDescriber):
        return what_the_model_saw(describer.processor, asked, describer.model.config.vision_config.patch_size)
    if not hasattr(describer, "marked"):
        return []
    size = (asked.picture.height, asked.picture.width)
    regions = asked.masks or (RegionMask(None, *size),)
    return [
        (marked.image, f"Region {number}, {marked.image.width}x{marked.image.height}" if asked.masks else "All of it")
        for number, marked in enumerate(describer.marked(asked.picture, regions)[:8], start=1)
    ]


def what_the_model_saw(processor: Any, asked: AskedPicture, patch_size: int) -> list[tuple[Image.Image, str]]:
    """For each region the low-resolution input and the mask as its patches get it, then the high-resolution input.

    Args:
        processor: the checkpoint's.
        asked: the request; the first eight regions are shown.
        patch_size: of the mask-aware tower, in pixels of its input.
    """
    image_processor = processor.image_processor
    masks = asked.references[:8]
    vision = image_processor(asked.picture, masks=masks, return_tensors="pt")
    shown: list[tuple[Image.Image, str]] = []
    whole: list[tuple[Image.Image, str]] = []
    if "high_res_pixel_values" in vision:
        pixels = vision["high_res_pixel_values"][0]
        high_mean, high_std = image_processor.high_res_image_mean, image_processor.high_res_image_std
        whole.append((_picture(pixels, high_mean, high_std), f"High resolution, {_size(pixels)}"))
    pixels = vision["pixel_values"][0]
    low = _picture(pixels, image_processor.image_mean, image_processor.image_std)
    if "mask_values" not in vision:
        return [(low, f"Low resolution, {_size(pixels)}"), *whole]
    for number, values in enumerate(vision["mask_values"]):
        alpha = (values[0] * image_processor.mask_std + image_processor.mask_mean).clamp(0, 1)
        which = f"Region {number + 1}" if asked.masks else "All of it"
        marked = Image.composite(low, low.point(lambda value: value // 3), _grey(alpha))  # in its own colours
        shown.append((_enlarged(marked), f"{which}: {_size(pixels)}, the rest dimmed"))
        grid = torch.nn.functional.avg_pool2d(alpha[None, None], patch_size)[0, 0]
        cells = tuple(grid.shape)
        caption = f"{which}: {cells[1]}x{cells[0]} patches of {patch_size} px"
        shown.append((_grey(grid).resize((336, 336), Image.Resampling.NEAREST), caption))
    return [*shown, *whole]


def _size(pixels: torch.Tensor) -> str:
    return f"{pixels.shape[-1]}x{pixels.shape[-2]}"


def _picture(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """(3, h, w), normalised -> the picture."""
    color = pixels.float().cpu() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    return Image.fromarray((color.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def _grey(values: torch.Tensor) -> Image.Image:
    """(h, w), 0 to 1 -> a grey picture."""
    return Image.fromarray((values.float().cpu() * 255).round().byte().numpy())


def _enlarged(picture: Image.Image) -> Image.Image:
    """Small inputs at the size of the grid, with their pixels to be seen."""
    return picture if picture.width >= 336 else picture.resize((336, 336), Image.Resampling.NEAREST)
