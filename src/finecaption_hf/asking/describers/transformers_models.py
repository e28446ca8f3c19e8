"""Any image-text-to-text model of transformers, asked about regions."""

import copy
import gc
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any

import torch
from PIL import Image
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.utils import logging

from ...branches_finecaption import Branch, ChooseInGenerate, StopInGenerate, choose_tokens
from ...engine_finecaption import is_out_of_memory
from ...masks_finecaption import RegionMask
from ...prompts_finecaption import BranchAnswer, BranchUpdate, nearest
from ..errors import DescriberError
from ..loading import usable_device
from .boxes import BOX_FORMATS, CONVENTIONS, write_box
from .referral import Color, Marked, Referral, pad_to_square
from .referring import Job, ReferringDescriber, describe_error
from .shared_prefix import Inputs, Prefix, PreparedOnce, Row, changed, go_on, group, join, on_device, same_logits
from .templates import PromptTemplates

logger = logging.get_logger(__name__)

_GREY = (127, 127, 127)

SQUARE = ("llava", "vipllava")
"""Model types whose pictures are padded to a square first: their boxes count from the square's corner, and the image
processors of their checkpoints would otherwise cut off both ends of the longer side."""

_ONE_BY_ONE = ("kosmos-2",)
"""Model types whose generation counts the padding of a batch as positions (transformers 5.19 to 5.23), so that an
answer would depend on what is asked beside it."""

_PLACES_ITSELF = ("florence2",)
"""Model types whose processor puts the picture's token before every text, and a second one if there is one already."""

_SEES_AHEAD = ("paligemma",)
"""Model types whose picture attends to the question behind it, so that no two questions can share what it is."""


class TransformersDescriber(ReferringDescriber):
    """Answers of a model of `AutoModelForImageTextToText`, in batches.

    Of the questions about a region, the picture is prepared once, and where their prompts begin alike, with the picture
    in it, keys and values of that are computed once. Whether a model allows it is tried with the first of them.

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
        batch_size: questions at once; Kosmos-2 answers one at a time, see `_ONE_BY_ONE`. When memory runs out, it is
            halved, and work goes on.
        max_new_tokens: the longest answer where a request says nothing.
        generation: further options of `generate`, such as `repetition_penalty`. With `num_beams` or `do_sample`,
            requests cannot say how they are answered, and answers have no log-probabilities.
        settings: more of what decides the answers, for reports, such as the revision.

    Attributes:
        shares_prefixes (`bool`, *optional*): whether it does; `None` until several questions were asked about a region.

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
        self._at_once = batch_size = 1 if model_type in _ONE_BY_ONE else batch_size
        self._seen: dict[tuple[int, int], tuple[int, int]] = {}
        self._chat = bool(getattr(processor, "chat_template", None))
        # Batches end in the same column only if what is missing is added on the left; encoders count from there.
        processor.tokenizer.padding_side = "right" if model.config.is_encoder_decoder else "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        options = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1, **(generation or {})}
        self._generation = config = _generation_config(model, processor, options)
        self._searches = bool(config.do_sample) or config.num_beams != 1
        self._penalty = 1.0
        if self._searches:
            self.decodes = ()  # by requests
        else:
            self._penalty, config.repetition_penalty = config.repetition_penalty or 1.0, 1.0  # done here
        ends = config.eos_token_id
        self._end_ids = set([] if ends is None else ends if isinstance(ends, list) else [ends])
        self._pad_id: int = processor.tokenizer.pad_token_id
        self.shares_prefixes: bool | None = None
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

        device = usable_device(device)
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
        rows = self._rows(jobs)
        while wave := list(islice(rows, self._at_once)):
            yield from (job for job, _ in wave if isinstance(job, BranchUpdate))
            if asked := [(job, region) for job, region in wave if isinstance(job, Job)]:
                yield from self._answer_together(asked)

    def _rows(self, jobs: Iterator[Job | BranchUpdate]) -> "Iterator[tuple[Job | BranchUpdate, _Region | None]]":
        """Jobs, each with what those about its region have in common, where they are several."""
        for _, of_region in groupby(jobs, lambda job: job.place[0] if isinstance(job, Job) else job.region):
            together = list(of_region)
            asked = [job for job in together if isinstance(job, Job)]
            region = _Region(self._processor, asked) if len(asked) > 1 else None
            yield from ((job, region) for job in together)

    def _answer_together(self, rows: "_Rows") -> Iterator[BranchUpdate]:
        """What fails in a batch is asked again by itself, so that its error is its own."""
        try:
            answers = self._generate(rows)
        except Exception as error:
            reason, is_memory = describe_error(error), is_out_of_memory(error)
        else:
            yield from answers
            return
        # Here the exception is gone, and with it the memory that its frames held.
        for _, region in rows:
            if region is not None:
                region.prefix = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if is_memory and len(rows) > 1:
            self._at_once = size = max(min(self._at_once, len(rows)) // 2, 1)  # it stays for later calls
            logger.warning(f"Memory ran out ({reason}). What is left is asked {size} at once instead of {len(rows)}.")
            for start in range(0, len(rows), size):
                yield from self._answer_together(rows[start : start + size])
        elif len(rows) > 1 or rows[0][1] is not None:
            for job, _ in rows:
                yield from self._answer_together([(job, None)])
        else:
            yield rows[0][0].failed(reason)

    @torch.inference_mode()
    def _generate(self, rows: "_Rows") -> list[BranchUpdate]:
        """The answers, in any order."""
        search = self._search if self._searches else self._choose
        return [answer for jobs, inputs in self._batches(rows) for answer in search(jobs, inputs)]

    def _batches(self, rows: "_Rows") -> Iterator[tuple[list[Job], Inputs]]:
        """What is generated together: questions behind prefixes, and the rest."""
        asked = [(job, region) for job, region in rows if region is not None]
        if asked and self.shares_prefixes is None:
            self.shares_prefixes = self._can_share(asked[0][1])
        sharing: set[tuple[int, int]] = set()
        if self.shares_prefixes:
            behind = [self._row(job, region) for job, region in asked]
            for numbers in group(behind):
                jobs = [asked[number][0] for number in numbers]
                sharing |= {job.place for job in jobs}
                yield jobs, go_on(self._model, [behind[number] for number in numbers], self._pad_id)
        rest = [(job, region) for job, region in rows if job.place not in sharing]
        if rest:
            jobs, together = [job for job, _ in rest], None
            if any(region is not None for _, region in rest):
                side = self._processor.tokenizer.padding_side
                together = join([self._prompt(*row) for row in rest], self._pad_id, side)
            yield jobs, on_device(self._model, together or self._plain(jobs))

    def _row(self, job: Job, region: "_Region") -> Row:
        if region.prefix is None:
            region.prefix = Prefix(self._model, self._prompt(region.jobs[0], region), self._generation)
        return Row(region.prefix, self._prompt(job, region))

    def _can_share(self, region: "_Region") -> bool:
        """Whether a question behind a prefix gets the logits that it gets alone: the shortest, beside the longest."""
        if self._searches or self._model.config.is_encoder_decoder or self._model.config.model_type in _SEES_AHEAD:
            return False
        by_length = sorted(region.jobs, key=lambda job: len(job.text))
        try:
            rows = [self._row(job, region) for job in (by_length[0], by_length[-1])]
            shares = all(row.shares for row in rows)
            if shares:
                together = next(numbers for numbers in group(rows) if 0 in numbers)
                plain = on_device(self._model, self._plain(by_length[:1]))
                shared = go_on(self._model, [rows[number] for number in together], self._pad_id)
                shares = same_logits(self._model, plain, shared, together.index(0), self._generation)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            logger.info(f"{self.name} cannot go on from a prefix ({describe_error(error)}).")
            shares = False
        if not shares:
            logger.info(f"Questions about a region each have a prefix of their own with {self.name}.")
        return shares

    def _choose(self, jobs: list[Job], inputs: Inputs) -> Iterator[BranchUpdate]:
        """Answer each job as its request says, whatever is answered with it."""
        config = self._generation
        counts = inputs["attention_mask"].bool()
        branches = [
            Branch(
                *job.place,
                job.request,
                () if self._model.config.is_encoder_decoder else tuple(ids[own].tolist()),
                job.request.max_new_tokens or config.max_new_tokens,
                job.request.repetition_penalty or self._penalty,
                [],
            )
            for job, ids, own in zip(jobs, inputs["input_ids"], counts, strict=True)
        ]
        self._model.generate(
            **inputs,
            generation_config=changed(config, max_new_tokens=max(branch.max_new_tokens for branch in branches)),
            logits_processor=LogitsProcessorList([ChooseInGenerate(self._advance, branches)]),
            stopping_criteria=StoppingCriteriaList([StopInGenerate(branches)]),
        )
        for branch in branches:
            text, end = self._text(branch.token_ids), self._stop(branch)
            answer = BranchAnswer(
                text[:end].strip(), tuple(branch.token_ids), tuple(branch.log_probs or ()), branch.finish_reason
            )
            yield BranchUpdate(branch.region, branch.index, answer)

    def _advance(self, logits: torch.Tensor, branches: Sequence[Branch]) -> list[int]:
        """Choose the next token of each branch, and finish those that end with it."""
        tokens = choose_tokens(logits, branches, ())
        for branch, token in zip(branches, tokens, strict=True):
            branch.token_ids.append(token)
            if token in self._end_ids:
                branch.finish_reason = "end"
            elif self._stop(branch) is not None:
                branch.finish_reason = "stop_string"
            elif len(branch.token_ids) >= branch.max_new_tokens:
                branch.finish_reason = "length"
        return tokens

    def _stop(self, branch: Branch) -> int | None:
        """Where the first of the stop strings begins in the text."""
        stops = branch.request.stop_strings
        text = self._text(branch.token_ids) if stops else ""
        return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)

    def _search(self, jobs: list[Job], inputs: Inputs) -> Iterator[BranchUpdate]:
        """Answer by beams or draws of `generate`, which requests have no say in."""
        made = self._model.generate(**inputs, generation_config=self._generation)
        start = 0 if self._model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        for job, tokens in zip(jobs, made[:, start:].tolist(), strict=True):
            yield job.answered(self._text(tokens))

    def _text(self, token_ids: Sequence[int]) -> str:
        text: str = self._processor.tokenizer.decode(token_ids, skip_special_tokens=True)
        if self._model.config.model_type == "kosmos-2":
            text = self._processor.post_process_generation(text)[0]  # without the boxes that it writes after phrases
        return text

    def _prompt(self, job: Job, region: "_Region | None") -> Inputs:
        return dict(self._inputs([job.marked.image], [job.text], None if region is None else region.processor))

    def _plain(self, jobs: list[Job]) -> Any:
        return self._inputs([job.marked.image for job in jobs], [job.text for job in jobs])

    def _inputs(self, images: list[Image.Image], texts: list[str], processor: Any = None) -> Any:
        processor = processor or self._processor
        if self._chat:
            chats = [self._messages(text, image) for image, text in zip(images, texts, strict=True)]
            return processor.apply_chat_template(
                chats,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",  # some processors, SmolVLM's, do not find it beside `padding`
                add_generation_prompt=True,
                processor_kwargs={"padding": True},
            )
        prompts = [self._with_image(text) for text in texts]
        return processor(images=images, text=prompts, padding=True, return_tensors="pt")

    def _messages(self, text: str, image: Image.Image | None = None) -> list[dict[str, Any]]:
        picture = {"type": "image"} if image is None else {"type": "image", "image": image}
        messages: list[dict[str, Any]] = [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]
        if self._templates.system is not None:
            system = {"role": "system", "content": [{"type": "text", "text": self._templates.system}]}
            messages.insert(0, system)
        return messages

    def _with_image(self, text: str) -> str:
        token = getattr(self._processor, "image_token", None)
        if token is None or token in text or self._model.config.model_type in _PLACES_ITSELF:
            return text
        return f"{token}\n{text}"

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
    if unknown := sorted(config.update(**options)):
        near = nearest(unknown[0], config.to_dict())
        meant = f"Did you mean {near!r}?" if near else "Take it out of the options."
        raise ValueError(f"generate has no option {unknown[0]!r}. {meant}")
    if config.pad_token_id is None:
        config.pad_token_id = processor.tokenizer.pad_token_id
    return config


class _Region:
    """What the questions about a region have in common while they are answered: its picture is prepared once, and the
    prefix of their prompts computed once."""

    def __init__(self, processor: Any, jobs: list[Job]) -> None:
        self.processor = copy.copy(processor)
        self.processor.image_processor = PreparedOnce(processor.image_processor)
        self.jobs = jobs
        self.prefix: Prefix | None = None


_Rows = list[tuple[Job, _Region | None]]
