"""Text, images and regions -> the inputs of a FineCaption model; chats with a mask beside the image.

Dimension letters: B regions, I images, S prompts, T tokens. A region reference is whatever `as_mask` takes.
"""

import inspect
import os
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from .configuration_finecaption import MIN_TRANSFORMERS  # noqa: F401  (an unsupported release ends in that file)

# isort: split
from transformers import BatchFeature, ProcessingKwargs, ProcessorMixin, logging
from transformers.processing_utils import MultiModalData, Unpack

from .image_processing_finecaption import FineCaptionImageProcessorKwargs
from .masks_finecaption import REGION_KEYS, read_region
from .prompts_finecaption import ATTRIBUTES, TASKS, find_question, no_such

logger = logging.get_logger(__name__)


class ImageRegion:
    """What stands behind one image token of a chat: an image as the image processor takes it, and a region of it.

    Not a tuple or dataclass: the library would unfold those for the template, masks included.
    """

    def __init__(self, image: Any, mask: Any) -> None:
        self.image = image
        self.mask = mask


class FineCaptionImagesKwargs(FineCaptionImageProcessorKwargs, total=False):  # type: ignore[call-arg]
    """
    masks:
        Regions, see `FineCaptionImageProcessor.preprocess`.
    image_indices:
        Of which image each region is, where masks are one flat list.
    """

    masks: Any
    image_indices: Any


class FineCaptionProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    images_kwargs: FineCaptionImagesKwargs
    # A causal language model takes no token types, but generic tokenizers return them unless told otherwise.
    _defaults = {"text_kwargs": {"return_token_type_ids": False}}


_SOURCES = ("image", "url", "path", "base64", "image_url")
_CALL_KWARGS = {
    *FineCaptionProcessorKwargs.__annotations__,
    *FineCaptionProcessorKwargs.__annotations__["text_kwargs"].__annotations__,
    *FineCaptionImagesKwargs.__annotations__,
}


class FineCaptionProcessor(ProcessorMixin):
    """Prepares text, images and regions for a FineCaption model.

    Args:
        image_processor (`FineCaptionImageProcessor`): prepares the images and regions.
        tokenizer (`PreTrainedTokenizerBase`): knows `image_token` as a special token; is set to pad on the left.
        chat_template (`str`, *optional*): Jinja template, in which images come before the question.
        image_seq_length (`int`): how many image tokens stand for one region: `image_seq_length` of the model's config.
        image_token (`str`): the placeholder of a region in a prompt.
        questions (`dict[str, str]`, *optional*): names of tasks and attributes -> instructions; `None` means those of
            the paper.

    Raises:
        ValueError: If the tokenizer does not know `image_token` as one special token.
    """

    valid_processor_kwargs = FineCaptionProcessorKwargs

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        image_seq_length: int = 1024,
        image_token: str = "<image>",
        questions: dict[str, str] | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_seq_length = image_seq_length
        self.image_token = image_token
        self.image_token_id = _special_token_id(tokenizer, image_token)
        self.questions = {**TASKS, **ATTRIBUTES} if questions is None else dict(questions)
        # Generation continues at the right end of a prompt.
        tokenizer.padding_side = "left"
        # Where the library's own pipelines and tests look for it; it is saved with the tokenizer.
        if "image_token" not in tokenizer.SPECIAL_TOKENS_ATTRIBUTES:
            tokenizer._set_model_specific_special_tokens({"image_token": image_token})
        tokenizer.image_token = image_token

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As the library loads a processor; `image_seq_length`, `image_token` and `questions` may be given anew."""
        names = ("image_seq_length", "image_token", "questions")
        # The library would set them in the model's configuration as well.
        own = {name: kwargs.pop(name) for name in names if name in kwargs}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        settings = {name: getattr(loaded, name) for name in names} | own
        return cls(loaded.image_processor, loaded.tokenizer, loaded.chat_template, **settings) if own else loaded

    @property
    def unused_input_names(self) -> list[str]:
        return ["token_type_ids"]

    def question(self, name: str) -> str:
        """The instruction of a task or attribute. Case and separators of the name do not matter.

        Raises:
            ValueError: If there is no such name; the message lists those that there are.
        """
        if (found := find_question(name, self.questions)) is None:
            raise ValueError(f"{no_such('task or attribute', name, self.questions)} `questions` adds names of yours.")
        return found

    def conversation(self, image: Any, question: str, mask: Any = None) -> list[dict[str, Any]]:
        """A chat that asks one question about one region, for `apply_chat_template` or a pipeline.

        Args:
            image: as for `FineCaptionImageProcessor.preprocess`.
            question (`str`): the name of a task or attribute, or a question in one's own words.
            mask (*optional*): a region reference; `None` is the whole image.

        Returns:
            `list[dict]`: one message.
        """
        region = {"type": "image", "image": image} if mask is None else {"type": "image", "image": image, "mask": mask}
        text = find_question(question, self.questions) or question
        return [{"role": "user", "content": [region, {"type": "text", "text": text}]}]

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        masks: Any = None,
        image_indices: Any = None,
        **kwargs: Unpack[FineCaptionProcessorKwargs],  # serving engines read which options there are
    ) -> BatchFeature:
        """Prepare prompts, images and regions. Text alone and images alone are fine, too.

        Args:
            images, masks, image_indices: as for `FineCaptionImageProcessor.preprocess`. Wherever an image may stand,
                `{"image": ..., "mask": ...}` may, too, with the keys of a chat's image item, instead of `masks`.
            text: one prompt or a list of S prompts, with one image token per region, in the order of the regions. Or
                nested: `text[i][r]` is the prompt, or the list of prompts, about region r of image i; each of them has
                one image token, and a region is repeated for each of its prompts.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; without it, tokens are lists.
            **kwargs: for the tokenizer and the image processor, flat or as `text_kwargs` and `images_kwargs`. Several
                prompts are padded to the longest, on the left, unless `padding` says otherwise.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` of shape `(S, T)` where there is text, and with what
            the image processor returns where there are images. With text, B is the number of image tokens, and there
            are no `image_indices` where each region has a picture of its own.

        Raises:
            ValueError: If image tokens and regions differ in number, a region was given twice, or nothing was given.
        """
        for name in ("videos", "audio"):
            if kwargs.pop(name, None) is not None:
                raise ValueError(f"FineCaption takes no {name}. Give images and text.")
        if images is None and text is None:
            raise ValueError("Neither text nor images were given. Give at least one of them.")
        if "images_kwargs" in kwargs:
            # Out of the library's sight: it would copy the masks and compare them with strings.
            images_kwargs = dict(kwargs.pop("images_kwargs"))
            masks = images_kwargs.pop("masks", masks)
            image_indices = images_kwargs.pop("image_indices", image_indices)
            kwargs["images_kwargs"] = images_kwargs
        merged = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        return_tensors = merged["text_kwargs"].get("return_tensors")

        data: dict[str, Any] = {}
        if images is not None:
            images, masks, image_indices = _share_images(images, masks, image_indices)
            vision = self.image_processor(images, masks=masks, image_indices=image_indices, **merged["images_kwargs"])
            data.update(vision)
        elif masks is not None or image_indices is not None:
            raise ValueError("Regions were given without an image. Give the images that they belong to.")

        if text is not None:
            prompts = [text] if isinstance(text, str) else list(text)
            if any(not isinstance(prompt, str) for prompt in prompts):
                indices = data["image_indices"].tolist() if data else []
                prompts, order = self._flatten_prompts(prompts, indices, len(data.get("pixel_values", ())))
                for name in data.keys() & {"mask_values", "image_indices"}:
                    data[name] = data[name][order]
            num_regions = len(data.get("image_indices", ()))
            data = {**self._tokenize(prompts, num_regions, **merged["text_kwargs"]), **data}
            # Serving engines batch such items anew, and each would count its pictures from 0.
            if list(data.get("image_indices", ())) == list(range(len(data.get("pixel_values", ())))):
                data.pop("image_indices", None)
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=self.skip_tensor_conversion)

    def _flatten_prompts(
        self, text: list[Any], image_indices: list[int], num_images: int
    ) -> tuple[list[str], list[int]]:
        """Nested prompts `text[i][r]` -> S prompts, and for each the position of its region among the B regions."""
        if len(text) != num_images:
            raise ValueError(
                f"Nested text has {len(text)} entries, but there are {num_images} images. Give text[i][r], the prompts "
                "about region r of image i."
            )
        prompts: list[str] = []
        order: list[int] = []
        for image, entries in enumerate(text):
            regions = [position for position, index in enumerate(image_indices) if index == image]
            if isinstance(entries, str) or len(entries) != len(regions):
                arrived = "one string" if isinstance(entries, str) else f"{len(entries)} entries"
                raise ValueError(
                    f"text[{image}] is {arrived}, but image {image} has {len(regions)} regions. Give one prompt, or a "
                    "list of prompts, per region."
                )
            for position, entry in zip(regions, entries):
                for prompt in [entry] if isinstance(entry, str) else entry:
                    if prompt.count(self.image_token) != 1:
                        raise ValueError(
                            f"The prompt {prompt!r} has {prompt.count(self.image_token)} image tokens. In nested text "
                            f"each prompt is about one region: put {self.image_token!r} once, before the question."
                        )
                    prompts.append(prompt)
                    order.append(position)
        return prompts, order

    def _tokenize(
        self,
        prompts: list[str],
        num_regions: int,
        *,
        return_mm_token_type_ids: bool = False,
        return_text_replacement_offsets: bool = False,
        **text_kwargs: Any,
    ) -> dict[str, Any]:
        """Prompts -> tokens, with `image_seq_length` image tokens for every region."""
        placeholders = sum(prompt.count(self.image_token) for prompt in prompts)
        # The method changes the list that it gets.
        expanded, offsets = self.get_text_with_replacements(
            list(prompts), [self.image_token * self.image_seq_length] * placeholders
        )
        # Less than `placeholders` where the library has marked some as a user's plain text.
        found = sum(len(of_prompt) for of_prompt in offsets)
        if found != num_regions:
            raise ValueError(
                f"There are {found} image tokens {self.image_token!r} in the text but {num_regions} regions. Give one "
                "image token per region, in the order of the regions, and none inside a question."
            )
        text_kwargs.setdefault("padding", len(expanded) > 1)
        tokens = self.tokenizer(expanded, **text_kwargs)
        self._check_special_mm_tokens(expanded, tokens, modalities=["image"])
        if return_text_replacement_offsets:
            tokens["text_replacement_offsets"] = offsets
        if return_mm_token_type_ids:
            tokens["mm_token_type_ids"] = self.create_mm_token_type_ids(tokens["input_ids"])
        return dict(tokens)

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Turn one chat or a list of chats into a prompt, or with `tokenize=True` and `return_dict=True` into inputs.

        An image item of a message is `{"type": "image", "image": ..., "mask": ...}`; `url` or `path` stand for `image`
        as well. `mask` is one region reference (lists included); other keys of a region may take its place, see
        `read_region`. Without any the whole image is meant; a key that is none of these is an error. An image that
        occurs again, as the same object or the same path or URL, is loaded and prepared once.

        Args:
            conversation: list of messages, or list of such lists.
            chat_template (`str`, *optional*): a template, or the name of one of the processor's.
            processor_kwargs (`dict`, *optional*): for `__call__`; what is meant for it is taken from `kwargs` as well.
            **kwargs: `tokenize`, `return_dict`, `return_tensors`, `add_generation_prompt`, `continue_final_message`,
                `return_assistant_tokens_mask`, `tools`, `documents`, and variables of the template.

        Returns:
            `str` or `list[str]`; `BatchFeature` with `tokenize=True, return_dict=True`; tokens with `tokenize=True`.

        Raises:
            ValueError: If the chat is empty, or a part says of which region it is in a way that is not known.
        """
        if len(conversation) == 0:
            raise ValueError("The conversation is empty. Give at least one message.")
        # Arguments for __call__ may come flat; some releases of the library would then drop processor_kwargs.
        own = inspect.signature(super().apply_chat_template).parameters
        flat = {name: kwargs.pop(name) for name in _CALL_KWARGS & kwargs.keys() - own.keys()}
        is_batch = isinstance(conversation[0], (list, tuple))
        given = [[_as_dict(message) for message in chat] for chat in (conversation if is_batch else [conversation])]
        chats = [[_with_regions(message) for message in chat] for chat in given]
        parts = [_as_dict(part) for chat in given for message in chat for part in message.get("content") or ()]
        lost = any(isinstance(part, dict) and part.get(key) is not None for part in parts for key in REGION_KEYS)
        if lost and not (kwargs.get("tokenize") and kwargs.get("return_dict")):
            logger.warning_once(
                "A chat with a region became text or tokens alone, which do not hold it. Where images are given to the "
                "processor next (as some trainers do), give each as {'image': ..., 'mask': ...}, and the chat without."
            )
        return super().apply_chat_template(
            chats if is_batch else chats[0],
            chat_template=chat_template,
            processor_kwargs={**flat, **(processor_kwargs or {})},
            **kwargs,
        )

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Save image processor, tokenizer, chat template and questions, whatever was processed before."""
        # Fast tokenizers keep the padding of their last call and would write it into tokenizer.json.
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend.no_padding()
            backend.no_truncation()
        return super().save_pretrained(save_directory, **kwargs)

    def _get_num_multimodal_tokens(
        self, image_sizes: list[tuple[int, int]] | None = None, **kwargs: Any
    ) -> MultiModalData:
        """How many image tokens each image takes; inference servers ask for it."""
        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(
            num_image_tokens=[self.image_seq_length] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )


def _special_token_id(tokenizer: Any, token: str) -> int:
    """The id of a special token.

    Raises:
        ValueError: If it is not one, so that text would be cut into pieces or captions would show it.
    """
    token_id = tokenizer.convert_tokens_to_ids(token)
    known = tokenizer.added_tokens_decoder.get(token_id)
    if known is None or str(known) != token or not known.special:
        raise ValueError(
            f"{token!r} is not a special token of the tokenizer. Add it with "
            f"tokenizer.add_tokens([{token!r}], special_tokens=True), and give the model embeddings for it."
        )
    return token_id


def _with_regions(message: Any) -> Any:
    """A copy of a message in which the source and the mask of each image are one `ImageRegion`."""
    content = message.get("content") if isinstance(message, dict) else None
    _refuse_without_image(message)
    return message if not isinstance(content, (list, tuple)) else {**message, "content": [*map(_with_region, content)]}


def _as_dict(entry: Any) -> Any:
    """Messages and their parts may be dataclasses, or objects of OpenAI's client."""
    return entry.model_dump() if hasattr(entry, "model_dump") else vars(entry) if is_dataclass(entry) else entry


def _with_region(part: Any) -> Any:
    part = _as_dict(part)
    if not isinstance(part, dict) or part.get("type") not in ("image", "image_url"):
        _refuse_without_image(part)
        return part
    region = _image_region(part)
    return part if region is None else {"type": "image", "image": region}  # a bare placeholder's comes beside the chat


def _refuse_without_image(entry: Any) -> None:
    """Refuse a region that stands where no image can."""
    if isinstance(entry, dict) and (lost := [key for key in REGION_KEYS if entry.get(key) is not None]):
        raise ValueError(
            f"{lost[0]!r} stands in a part of a chat without an image, so it would be lost. Put the image there, too: "
            "{'type': 'image', 'image': ..., 'mask': ...}; or give images and masks beside the chat."
        )


def _image_region(entry: Mapping[Any, Any]) -> ImageRegion | None:
    """`{"image": .., "mask": ..}`, whose image may be such an entry again, as trainers put it, or OpenAI's."""
    key, region = read_region(entry, ("type", *_SOURCES), closed=True)
    source = next((entry[name] for name in _SOURCES if entry.get(name) is not None), None)
    if isinstance(source, Mapping):
        inner = _image_region({name: value for name, value in source.items() if name != "detail"})
        source = None if inner is None else inner.image
        if inner is not None and inner.mask is not None:
            if key is not None:
                raise ValueError(f"An image has a region of its own, and {key!r} beside it. Give one of them.")
            region = inner.mask
    if source is None and key is not None:
        _refuse_without_image(entry)
    return None if source is None else ImageRegion(source, region)


def _share_images(images: Any, masks: Any, image_indices: Any) -> tuple[Any, Any, Any]:
    """Images that hold their region -> images (of chats, each once), masks, whose each is; others pass unchanged."""
    entries = _flat(images)
    if not any(isinstance(entry, (ImageRegion, Mapping)) for entry in entries):
        return images, masks, image_indices
    if masks is not None or image_indices is not None:
        raise ValueError(
            "Regions were given beside a chat, or beside images that hold theirs. Put each into its message or image."
        )
    positions: dict[Any, int] = {}
    different: list[Any] = []
    regions, indices = [], []
    for number, entry in enumerate(entries):
        key: Any = ("entry", number)
        if isinstance(entry, ImageRegion):
            key = os.fspath(entry.image) if isinstance(entry.image, (str, os.PathLike)) else id(entry.image)
        else:
            found = _image_region(entry if isinstance(entry, Mapping) else {"image": entry})
            entry = found or ImageRegion(None, None)  # which is refused as any other None
        indices.append(positions.setdefault(key, len(different)))
        if indices[-1] == len(different):
            different.append(entry.image)
        regions.append(entry.mask)
    return different, regions, indices


def _flat(images: Any) -> list[Any]:
    return [each for entry in images for each in _flat(entry)] if isinstance(images, (list, tuple)) else [images]
