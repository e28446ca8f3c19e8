"""Questions about the regions of a picture, answered piece by piece; and what reproduces or explains the answers.

Dimension letters: R regions, H W pixels of the picture, h w pixels of a model input.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import __version__
from ..drawing import COLORS
from ..masks_finecaption import as_mask, encode_rle, mask_to_box
from ..prompts_finecaption import is_global, resolve_questions
from .uploads import MAX_QUESTION_LENGTH, MAX_QUESTIONS, MAX_REGIONS, UploadError


@dataclass(frozen=True)
class AskedPicture:
    """What one user asks.

    Args:
        picture: in RGB, upright, (H, W).
        name: of its file, for the snippet.
        masks: R of shape (H, W), bool, none of them empty; no mask means the whole picture.
        questions: at least one, in their order.
        options: of `BranchRequest`: `max_new_tokens`, `temperature`, `seed`.
    """

    picture: Image.Image
    name: str
    masks: tuple[np.ndarray, ...]
    questions: tuple[str, ...]
    options: dict[str, Any]

    @classmethod
    def read(
        cls,
        picture: Image.Image,
        name: str,
        references: Sequence[Any],
        questions: Sequence[str],
        known: dict[str, str],
        **options: Any,
    ) -> "AskedPicture":
        """Check a request.

        Raises:
            UploadError: If there are too many regions or questions, or none.
            MaskError: If a reference is no region of the picture.
        """
        if len(references) > MAX_REGIONS:
            raise UploadError(f"{len(references)} regions were sent; at most {MAX_REGIONS} are taken at once.")
        asked = [question for question in questions if isinstance(question, str) and question.strip()]
        if not asked:
            raise UploadError("Nothing is asked. Choose a caption or an attribute, or ask in your own words.")
        if len(asked) > MAX_QUESTIONS or max(map(len, asked)) > MAX_QUESTION_LENGTH:
            raise UploadError(
                f"At most {MAX_QUESTIONS} questions of {MAX_QUESTION_LENGTH} characters each are taken at once."
            )
        masks = tuple(as_mask(reference, picture.height, picture.width) for reference in references)
        return cls(picture, name, masks, tuple(resolve_questions(asked, known)), options)

    @cached_property
    def digest(self) -> str:
        """See `pixel_digest`."""
        return pixel_digest(self.picture)

    @property
    def regions(self) -> list[np.ndarray | None]:
        """For the pipeline: R masks, or the whole picture."""
        return list(self.masks) or [None]


@dataclass
class Answering:
    """The records of an `AskedPicture`, as far as they are answered.

    Args:
        asked: the request.
        records: as the pipeline's, one for each region.
        finished: (region, question) whose answer is whole.
    """

    asked: AskedPicture
    records: list[dict[str, Any]] = field(init=False)
    finished: set[tuple[int, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        shape = (self.asked.picture.height, self.asked.picture.width)
        masks = [np.ones(shape, dtype=bool) if mask is None else mask for mask in self.asked.regions]
        self.records = [
            {
                "region_index": index,
                "box_xyxy": list(mask_to_box(mask)),
                "area": int(mask.sum()),
                "answers": dict.fromkeys(self.asked.questions, ""),
            }
            for index, mask in enumerate(masks)
        ]

    @property
    def is_finished(self) -> bool:
        return len(self.finished) == len(self.records) * len(self.asked.questions)

    @property
    def missing(self) -> list[tuple[list[int], list[str]]]:
        """What is not answered yet, as (indices of regions, questions) of which every pair is missing."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for index in range(len(self.records)):
            left = tuple(question for question in self.asked.questions if (index, question) not in self.finished)
            groups.setdefault(left, []).append(index)
        return [(indices, list(questions)) for questions, indices in groups.items() if questions]

    def take(self, piece: dict[str, Any]) -> None:
        """Fill in what `stream_pieces` gave.

        Raises:
            UploadError: If a region could not be read.
        """
        if "error" in piece:
            raise UploadError(piece["error"]["message"])
        self.records[piece["region_index"]]["answers"][piece["question"]] = piece["text"]
        if piece["finish_reason"] is not None:
            self.finished.add((piece["region_index"], piece["question"]))

    def as_json(self, model: str | None) -> str:
        """Everything that the answers follow from, but for the picture's pixels, and the answers."""
        asked = self.asked
        content = {
            "finecaption_hf": __version__,
            "model": model or "embedded",
            "image": {
                "name": asked.name,
                "size": [asked.picture.height, asked.picture.width],
                "sha256_of_rgb": hashlib.sha256(np.asarray(asked.picture).tobytes()).hexdigest(),
            },
            "questions": list(asked.questions),
            "options": asked.options,
            "regions": [
                {**record, "segmentation": None if mask is None else encode_rle(mask)}
                for record, mask in zip(self.records, asked.regions)
            ],
            "finished": self.is_finished,
        }
        return json.dumps(content, ensure_ascii=False, indent=2)


class KeptAnswers:
    """Finished answers of one user, for a picture that is asked about again.

    An answer is kept for the same picture, mask, question and settings. Draws are not kept: they depend on a region's
    place among the others.
    """

    _MOST = 4096

    def __init__(self) -> None:
        self._texts: OrderedDict[tuple[Any, ...], str] = OrderedDict()

    def fill(self, answering: Answering) -> None:
        """Finish what is known."""
        for index, question, key in self._keys(answering.asked):
            if key in self._texts:
                text = self._texts[key]
                answering.take({"region_index": index, "question": question, "text": text, "finish_reason": "kept"})

    def keep(self, answering: Answering) -> None:
        """Remember what is finished."""
        for index, question, key in self._keys(answering.asked):
            if (index, question) in answering.finished:
                self._texts[key] = answering.records[index]["answers"][question]
                self._texts.move_to_end(key)
        while len(self._texts) > self._MOST:
            self._texts.popitem(last=False)

    @staticmethod
    def _keys(asked: AskedPicture) -> Iterator[tuple[int, str, tuple[Any, ...]]]:
        if asked.options.get("temperature", 0) > 0:
            return
        of_request = (asked.digest, *sorted(asked.options.items()))
        for index, mask in enumerate(asked.regions):
            of_mask = None if mask is None else hashlib.sha256(np.packbits(mask).tobytes()).digest()
            for question in asked.questions:
                yield index, question, (*of_request, None if is_global(question) else of_mask, question)


def stream_pieces(
    pipeline: Any,
    asked: AskedPicture,
    missing: Sequence[tuple[Sequence[int], Sequence[str]]],
    high_res_features: torch.Tensor | None = None,
) -> Iterator[dict[str, Any]]:
    """The answers while they grow, for `Answering.take`.

    Args:
        pipeline: the checkpoint's `RegionCaptioningPipeline`.
        asked: the request.
        missing: of `Answering.missing`.
        high_res_features (1, C, h, w): of the picture, where they are known.

    Raises:
        ValueError: If a question cannot be asked, such as one that holds a special token.
    """
    for indices, questions in missing:
        regions = [asked.regions[index] for index in indices]
        for piece in pipeline.stream(
            asked.picture, regions, list(questions), high_res_features=high_res_features, **asked.options
        ):
            yield {**piece, "region_index": indices[piece["region_index"]]}


def pixel_digest(picture: Image.Image) -> str:
    """SHA-256 of a picture's size and RGB pixels, row after row."""
    size = f"{picture.width}x{picture.height} ".encode()
    return hashlib.sha256(size + np.asarray(picture).tobytes()).hexdigest()


def python_snippet(asked: AskedPicture, model: str | None) -> str:
    """Code that gives the same answers; the picture is expected beside it, under its name."""
    regions = ",\n".join("    None" if mask is None else f"    {encode_rle(mask)!r}" for mask in asked.regions)
    options = "".join(f", {name}={value!r}" for name, value in asked.options.items())
    source = "" if model is None else repr(model)
    return (
        "from finecaption_hf.asking import load\n\n"
        f"model, processor = load({source})\n"
        "describe = model.as_pipeline(processor)\n"
        f"regions = [\n{regions},\n]\n"
        f"questions = {list(asked.questions)!r}\n"
        f"records = describe({asked.name!r}, regions, questions{options})\n"
        "for record in records:\n"
        '    print(record["box_xyxy"], record["answers"])\n'
    )


def what_the_model_saw(processor: Any, asked: AskedPicture, patch_size: int) -> list[tuple[Image.Image, str]]:
    """For each region the low-resolution input and the mask as its patches get it, then the high-resolution input.

    Args:
        processor: the checkpoint's.
        asked: the request; the first eight regions are shown.
        patch_size: of the mask-aware tower, in pixels of its input.
    """
    image_processor = processor.image_processor
    masks = asked.regions[:8]
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
        color = COLORS[number % len(COLORS)]
        which = f"Region {number + 1}" if asked.masks else "All of it"
        marked = Image.composite(Image.new("RGB", low.size, color), low, _grey(alpha * 0.55))
        shown.append((_enlarged(marked), f"{which}: {_size(pixels)} with mask"))
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
