"""From Python: load a checkpoint, then ask questions about regions of a picture.

>>> from finecaption_hf.captioning import caption_regions, load
>>> model, processor = load()
>>> caption_regions(model, processor, "photo.jpg", [{"box_xyxy": [40, 60, 200, 180]}], ["color", "shape"])
"""

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image
from transformers.image_utils import load_image

from . import EMBEDDED_CHECKPOINT, register
from .engine_finecaption import BranchEngine, BranchRequest
from .masks_finecaption import as_mask, is_region_reference

if TYPE_CHECKING:
    from .modeling_finecaption import FineCaptionForConditionalGeneration
    from .processing_finecaption import FineCaptionProcessor


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    **options: Any,
) -> "tuple[FineCaptionForConditionalGeneration, FineCaptionProcessor]":
    """Load a FineCaption checkpoint with the classes of this package; code that lies beside the weights is not run.

    Args:
        model: a folder or the id of a Hub repository; `None` means the checkpoint that comes with the package.
        device: where the model goes; `None` means CUDA where there is one, else the CPU.
        dtype: such as `"bfloat16"`; `None` means the one in which the weights were saved.
        revision: branch, tag or commit of a Hub repository.
        **options: further ones of the model's `from_pretrained`, such as `attn_implementation`.

    Returns:
        The model in evaluation mode and its processor.

    Raises:
        ImportError: If the installed transformers is outside the supported range.
        OSError: If there is no such folder or repository.
        ValueError: If it holds a model of another kind, or the device cannot be used.
    """
    register()
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    name = os.fspath(EMBEDDED_CHECKPOINT if model is None else model)
    # A folder needs no network, and without one the library would wait for it.
    source: dict[str, Any] = {"revision": revision, "local_files_only": os.path.isdir(name)}
    if not os.path.isdir(name) and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise FileNotFoundError(f"{name} is neither a folder nor the id of a Hub repository (owner/name).")
    config = AutoConfig.from_pretrained(name, **source)
    if config.model_type != "finecaption":
        raise ValueError(
            f"{name} holds a model of type {config.model_type!r}, not 'finecaption'. Give a FineCaption checkpoint."
        )
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"The device {str(device)!r} cannot be used ({reason}). Give another, such as 'cpu'."
        ) from error
    # All of one commit, also where another arrives meanwhile.
    cached = None if os.path.isdir(name) else try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        source["revision"] = os.path.basename(os.path.dirname(cached))
    loaded = AutoModelForImageTextToText.from_pretrained(
        name, config=config, dtype=dtype or "auto", device_map={"": device}, **source, **options
    )
    return loaded.eval(), AutoProcessor.from_pretrained(name, **source)


def caption_regions(
    model: "FineCaptionForConditionalGeneration",
    processor: "FineCaptionProcessor",
    image: Image.Image | str | os.PathLike[str],
    masks: Any,
    questions: str | Sequence[str],
    *,
    max_new_tokens: int = 64,
    max_batch_tokens: int | None = None,
    **options: Any,
) -> list[list[str]]:
    """Ask every question about every region of one image.

    Args:
        model, processor: as `load` returns them.
        image: the picture, H high and W wide, or the path or URL of one. Its EXIF orientation is applied.
        masks: one region reference (see `as_mask`), or R of them in a list; `None` is the whole picture.
        questions: one or Q of them: names of tasks and attributes that the processor knows, or your own words.
        max_new_tokens: the longest caption, in tokens.
        max_batch_tokens: how much is held at once, see `BranchEngine`.
        **options: further ones of `BranchRequest`, such as `temperature`; without any, decoding is greedy.

    Returns:
        R lists of Q captions.

    Raises:
        ValueError: If there is no question, or an option makes no sense.
        MaskError: If a reference is none, does not fit the image or is empty.
    """
    questions = [questions] if isinstance(questions, str) else list(questions)
    if not questions:
        raise ValueError("No question was given. Give at least one, such as 'region'.")
    picture: Image.Image = load_image(os.fspath(image) if isinstance(image, os.PathLike) else image)
    references = [masks] if is_region_reference(masks) else list(masks)
    requests = [(picture, reference, question) for reference in references for question in questions]
    captions = caption_pairs(
        model, processor, requests, max_new_tokens=max_new_tokens, max_batch_tokens=max_batch_tokens, **options
    )
    return [captions[start : start + len(questions)] for start in range(0, len(captions), len(questions))]


def caption_pairs(
    model: "FineCaptionForConditionalGeneration",
    processor: "FineCaptionProcessor",
    requests: Sequence[tuple[Image.Image, Any, str]],
    *,
    max_new_tokens: int = 64,
    max_batch_tokens: int | None = None,
    **options: Any,
) -> list[str]:
    """Answer requests about regions of several images; each image and each region is encoded once.

    Args:
        model, processor: as `load` returns them.
        requests: (image, region reference or `None` for the whole image, question). Requests that share an image or a
            region do so by holding the same object.
        max_new_tokens, max_batch_tokens, **options: as for `caption_regions`.

    Returns:
        One answer per request, in their order.

    Raises:
        MaskError: If a reference is none, does not fit its image or is empty.
    """
    images: dict[int, tuple[int, Image.Image]] = {}
    regions: dict[tuple[int, int | None], int] = {}
    masks: list[Any] = []
    image_indices: list[int] = []
    asked: list[list[BranchRequest]] = []
    places: list[tuple[int, int]] = []
    for image, mask, question in requests:
        position, _ = images.setdefault(id(image), (len(images), image))
        key = (id(image), None if mask is None else id(mask))
        if key not in regions:
            regions[key] = len(masks)
            masks.append(as_mask(mask, image.height, image.width))
            image_indices.append(position)
            asked.append([])
        region = regions[key]
        places.append((region, len(asked[region])))
        asked[region].append(BranchRequest(question, max_new_tokens=max_new_tokens, **options))
    if not requests:
        return []
    vision = processor.image_processor(
        [image for _, image in images.values()], masks=masks, image_indices=image_indices, return_tensors="pt"
    )
    answers = BranchEngine(model, processor, max_batch_tokens=max_batch_tokens).answer(vision, asked)
    return [answers[region][branch].text for region, branch in places]
