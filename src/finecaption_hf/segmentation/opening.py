"""Which segmenter: a SAM-family checkpoint, or the classical one."""

import os
import re
from typing import Any

import torch

from .clicks import SegmentationError
from .segmenter import Segmenter

_FAMILIES = {
    "sam": "SAM",
    "sam2": "SAM 2",
    "sam2_video": "SAM 2",
    "sam3_tracker": "SAM 3",
    "sam3_video": "SAM 3",
    "edgetam": "EdgeTAM",
    "edgetam_video": "EdgeTAM",
}
_OTHERS = {
    "sam3": "finds things by words; what takes points and boxes is SAM 3's tracker (sam3_tracker, sam3_video)",
    "sam3_lite_text": "finds things by words, not by points and boxes",
    "sam_hq": "takes points and boxes through a decoder of its own, which is not supported; use the SAM it comes from",
}


def open_segmenter(
    name_or_folder: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Segmenter:
    """Load what makes masks of points and boxes.

    Args:
        name_or_folder: SAM, SAM 2, SAM 3 or EdgeTAM, as a folder or the id of a Hub repository; `None` means the
            classical segmenter, which needs no weights (GrabCut of OpenCV, extra `[segmentation]`).
        device: where the model goes; `None` means CUDA where there is one, else the CPU.
        dtype: such as `"bfloat16"`; `None` means the one in which the weights were saved.

    Raises:
        SegmentationError: If there is no such folder, or it holds a model of another kind, or not all of its weights.
        ImportError: If the classical segmenter is meant and OpenCV is not installed.
        OSError: If the repository cannot be read.
    """
    if name_or_folder is None:
        from .classical import ClassicalSegmenter

        return ClassicalSegmenter()
    name = os.fspath(name_or_folder)
    from transformers import AutoImageProcessor, AutoModelForMaskGeneration

    from ..asking.loading import usable_device
    from .models import ModelSegmenter

    config = read_config(name)
    if config.model_type not in _FAMILIES:
        reason = _OTHERS.get(config.model_type, "makes no masks of points and boxes")
        raise SegmentationError(
            f"{name} holds a model of type {config.model_type!r}, which {reason}. Give one of: {', '.join(_FAMILIES)}."
        )
    device = usable_device(device)
    model, loading = read(
        AutoModelForMaskGeneration,
        name,
        dtype=dtype or "auto",
        output_loading_info=True,
        adapter_kwargs={"local_files_only": True},  # or it would look for an adapter on the Hub all the same
    )
    if missing := sorted(loading["missing_keys"]):
        # The library would go on with random ones.
        raise SegmentationError(
            f"{name} lacks {len(missing)} of the weights of a {type(model).__name__}, such as {missing[0]}. Give the "
            "checkpoint as it was published."
        )
    processor = read(AutoImageProcessor, name)
    return ModelSegmenter(model.to(device), processor, f"{_FAMILIES[config.model_type]} ({name})")


def read_config(name: str) -> Any:
    """The configuration of a folder or Hub repository.

    Raises:
        SegmentationError: If it cannot be either.
        OSError: If it cannot be read.
    """
    from transformers import AutoConfig

    if not os.path.isdir(name) and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise SegmentationError(f"{name!r} is neither a folder nor the id of a Hub repository (owner/name).")
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "config.json")):
        raise SegmentationError(f"{name} has no config.json, so it holds no model. Give the folder of one.")
    try:
        return read(AutoConfig, name)
    except OSError as error:
        if os.path.isdir(name):
            raise OSError(f"{name} cannot be read: {error}") from error
        raise OSError(
            f"{name} is no folder, is not on this machine, and the Hub has no such repository for you or cannot be "
            "reached. Check the name and the network, or give a folder."
        ) from error


def read(kind: Any, name: str, **options: Any) -> Any:
    """What is on this machine needs no network, and without one the library would wait for it."""
    try:
        return kind.from_pretrained(name, local_files_only=True, **options)
    except OSError:
        if os.path.isdir(name):
            raise
    return kind.from_pretrained(name, **options)
