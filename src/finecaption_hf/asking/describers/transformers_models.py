"""Any image-text-to-text model of transformers, asked about regions."""

import copy
from collections.abc import Iterator, Mapping
from itertools import groupby, islice
from typing import Any

import torch
from PIL import Image

from ...masks_finecaption import RegionMask
from ...prompts_finecaption import BranchUpdate
from ..errors import DescriberError
from .boxes import BOX_FORMATS, CONVENTIONS, write_box
from .referral import Color, Marked, Referral, pad_to_square
from .referring import Job, ReferringDescriber, describe_error
from .templates import PromptTemplates

_GREY = (127, 127, 127)

SQUARE = ("llava", "vipllava")
"""Model types whose pictures are padded to a square first: their boxes count from the square's corner, and the image
processors of their checkpoints would otherwise cut off both ends of the longer side."""

_ONE_BY_ONE = ("kosmos-2",)
"""Model types whose generation counts the padding of a batch as positions (transformers 5.19 to 5.23), so that an
answer would depend on what is asked beside it."""


class TransformersDescriber(ReferringDescriber):
    """Answers of a model of `AutoModelForImageTextToText`, greedy and in batches.

    Args:
        model: in evaluation mode, on its device.
        processor: the model's own. Its chat template is used where there is one; otherwise the prompts say everything,
            and an image token is put before them if they have none.
        referral: how the region is pointed out; a model without a mask input takes no `"mask"` or `"filled_box"`.
        templates: what is asked.
        name: for reports.
        box_format: a name of `BOX_FORMATS`; `None` means that of the model's type.
        square: pad pictures to a square; `None` means where the model's type was trained so (`SQUARE`), or where the
            image processor would cut off the ends of the longer side.
        batch_size: questions at once; Kosmos-2 answers one at a time, see `_ONE_BY_ONE`.
        max_new_tokens: the longest answer.
        generation: further options of `generate`, such as `repetition_penalty`.
        settings: more of what decides the answers, for reports, such as the revision.

    Raises:
        DescriberError: If the model cannot be referred to in this way.
    """

    tells_size = True  # by the patches, see `_seen_size`
    independent = False  # a batch changes how sums are rounded, which decides where two tokens are as likely

    def __init__(
        self,
        model: Any,
        processor: Any,
        referral: Referral,
        templates: PromptTemplates | None = None,
        *,
        name: str,
        box_format: str | None = None,
        square: bool | None = None,
        batch_size: int = 8,
        max_new_tokens: int = 128,
        generation: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if batch_size < 1 or max_new_tokens < 1:
            raise ValueError(f"batch_size is {batch_size} and max_new_tokens {max_new_tokens}. Give 1 or more.")
        model_type = model.config.model_type
        super().__init__(name, referral, templates, box_format or CONVENTIONS.get(model_type, "pixels"))
        self._model, self._processor = model, processor
        self._square = square if square is not None else model_type in SQUARE or _cuts(processor.image_processor)
        self._background = _background(processor.image_processor)
        self._batch_size = batch_size = 1 if model_type in _ONE_BY_ONE else batch_size
        self._seen: dict[tuple[int, int], tuple[int, int]] = {}
        self._chat = bool(getattr(processor, "chat_template", None))
        # Batches end in the same column only if what is missing is added on the left.
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        options = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1, **(generation or {})}
        self._generation = _generation_config(model, processor, options)
        self.settings = {
            **self.settings,
            "model_type": model_type,
            "dtype": str(model.dtype).removeprefix("torch."),
            "square": self._square,
            "prompt_example": self._example(),
            "decoding": options,
            "questions_at_once": batch_size,
            **(settings or {}),
        }

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        referral: Referral,
        templates: PromptTemplates | None = None,
        *,
        name: str | None = None,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        processor_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "TransformersDescriber":
        """Load a model and its processor.

        Args:
            model: a folder or the id of a Hub repository.
            revision: branch, tag or commit; the commit that was loaded goes into the settings.
            device: `None` means CUDA where there is one, else the CPU.
            dtype: such as `"bfloat16"`; `None` means the one in which the weights were saved.
            trust_remote_code: run code that lies beside the weights.
            processor_options: of the processor's `from_pretrained`, such as `size`.
            **options: of the class.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        loaded = AutoModelForImageTextToText.from_pretrained(
            model, dtype=dtype or "auto", device_map={"": device}, **attention, **source
        )
        processor = AutoProcessor.from_pretrained(model, **source, **(processor_options or {}))
        commit = getattr(loaded.config, "_commit_hash", None)
        return cls(
            loaded.eval(),
            processor,
            referral,
            templates,
            name=name or model,
            settings={
                "checkpoint": model,
                "revision": revision,
                "commit": commit,
                "processor_options": dict(processor_options or {}),
                **attention,
            },
            **options,
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._model.device

    def _mark(self, picture: Image.Image, region: RegionMask) -> Marked:
        marked = super()._mark(picture, region)
        return pad_to_square(marked, self._background) if self._square else marked

    def _write_box(self, marked: Marked) -> str:
        assert marked.box_xyxy is not None
        size = (marked.image.height, marked.image.width)
        seen = self._seen_size(size) if BOX_FORMATS[self._box_format].units == "seen" else None
        return write_box(marked.box_xyxy, size, self._box_format, seen)

    def _answer(self, jobs: Iterator[Job | BranchUpdate]) -> Iterator[BranchUpdate]:
        # Together with what is decoded alike; what is drawn has a seed of its own, and so is drawn alone.
        for _, alike in groupby(jobs, lambda job: sorted(job.decoding.items()) if isinstance(job, Job) else None):
            while batch := list(islice(alike, self._batch_size)):
                yield from (job for job in batch if isinstance(job, BranchUpdate))
                if asked := [job for job in batch if isinstance(job, Job)]:
                    yield from self._answer_together(asked)

    def _answer_together(self, jobs: list[Job]) -> Iterator[BranchUpdate]:
        """What fails in a batch is asked again by itself, so that its error is its own."""
        try:
            images, texts = [job.marked.image for job in jobs], [job.text for job in jobs]
            answers = self._generate(images, texts, **jobs[0].decoding)
        except Exception as error:
            reason = describe_error(error)
        else:
            yield from (job.answered(answer) for job, answer in zip(jobs, answers, strict=True))
            return
        # Here the exception is gone, and with it the memory that its frames held.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(jobs) == 1:
            yield jobs[0].failed(reason)
            return
        for job in jobs:
            yield from self._answer_together([job])

    @torch.inference_mode()
    def _generate(
        self, images: list[Image.Image], texts: list[str], seed: int | None = None, **decoding: Any
    ) -> list[str]:
        inputs = self._inputs(images, texts).to(self._model.device, self._model.dtype)
        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
                decoding |= {"do_sample": True, "top_k": 0}
            made = self._model.generate(**inputs, generation_config=self._generation, **decoding)
        length = inputs["input_ids"].shape[1]
        answers = self._processor.batch_decode(made[:, length:], skip_special_tokens=True)
        clean = getattr(self._processor, "post_process_generation", None)
        if self._model.config.model_type == "kosmos-2" and clean is not None:
            answers = [clean(answer)[0] for answer in answers]  # without the boxes that it writes after phrases
        return [answer.strip() for answer in answers]

    def _inputs(self, images: list[Image.Image], texts: list[str]) -> Any:
        options = {"padding": True, "return_tensors": "pt"}
        if self._chat:
            chats = [self._messages(text, image) for image, text in zip(images, texts, strict=True)]
            return self._processor.apply_chat_template(
                chats, tokenize=True, return_dict=True, add_generation_prompt=True, processor_kwargs=options
            )
        return self._processor(images=images, text=[self._with_image(text) for text in texts], **options)

    def _messages(self, text: str, image: Image.Image | None = None) -> list[dict[str, Any]]:
        picture = {"type": "image"} if image is None else {"type": "image", "image": image}
        messages: list[dict[str, Any]] = [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]
        if self._templates.system is not None:
            system = {"role": "system", "content": [{"type": "text", "text": self._templates.system}]}
            messages.insert(0, system)
        return messages

    def _with_image(self, text: str) -> str:
        token = getattr(self._processor, "image_token", None)
        return text if token is None or token in text else f"{token}\n{text}"

    def _example(self) -> str:
        """The whole prompt, as the model gets it, with the names of what is filled in."""
        sentence = self._referral.settings["sentence"].replace("{color}", self._referral.color)
        text = self._templates.write("{question}", None, referral=sentence, box="{box}", whole=False)
        if not self._chat:
            return self._with_image(text)
        return self._processor.apply_chat_template(self._messages(text), tokenize=False, add_generation_prompt=True)

    def _seen_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) to which the processor resizes a picture, from the patches that it makes of it."""
        if size not in self._seen:
            image_processor = self._processor.image_processor
            blank = Image.new("RGB", (size[1], size[0]))
            grid = image_processor(images=[blank], return_tensors="pt").get("image_grid_thw")
            if grid is None:
                raise DescriberError(
                    f"The image processor of {self.name} does not tell the size to which it resizes, which the box "
                    f"format {self._box_format!r} needs. Give another box_format, such as 'pixels'."
                )
            _, rows, columns = grid[0].tolist()
            self._seen[size] = (rows * image_processor.patch_size, columns * image_processor.patch_size)
        return self._seen[size]


def _cuts(image_processor: Any) -> bool:
    """Whether an image processor resizes the shorter side and then cuts a square out of the middle."""
    if hasattr(image_processor, "image_grid_pinpoints"):
        return False  # LLaVA-NeXT's cuts tiles, which lose nothing
    size = getattr(image_processor, "size", None)
    return bool(getattr(image_processor, "do_center_crop", False) and size and size.get("shortest_edge"))


def _background(image_processor: Any) -> Color:
    """The colour that becomes zero when pictures are normalised."""
    mean = getattr(image_processor, "image_mean", None)
    if not isinstance(mean, (list, tuple)) or len(mean) != 3:
        return _GREY
    red, green, blue = (int(255 * value) for value in mean)
    return red, green, blue


def _generation_config(model: Any, processor: Any, options: Mapping[str, Any]) -> Any:
    """The model's generation configuration with its sampling switched off and `options` in place."""
    config = copy.deepcopy(model.generation_config)
    # They would only cause warnings in a greedy search; a sampling that is asked for gives its own.
    for name in ("temperature", "top_p", "top_k", "typical_p", "min_p"):
        setattr(config, name, None)
    config.max_length = None
    unknown = config.update(**options)
    if unknown:
        raise ValueError(f"generate has no option {', '.join(sorted(unknown))}. Take it out of the options.")
    if config.pad_token_id is None:
        config.pad_token_id = processor.tokenizer.pad_token_id
    return config
