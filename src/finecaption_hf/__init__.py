"""Captions of any region of a picture, at any level of detail: FineCaption for Hugging Face transformers.

A region is a mask, a box, a polygon, COCO RLE .., and every question is answered about exactly its pixels.

    from PIL import Image
    from finecaption_hf import as_mask, caption_regions, draw_regions, load

    model = load()  # the small checkpoint that comes with the package; or a folder, or a Hub id
    image = Image.open("photo.jpg")
    regions = [{"box_xyxy": [40, 60, 200, 180]}, {"polygon": [178, 92, 215, 25, 249, 96]}]

    records = caption_regions(image, regions, ["region", "color", "Is it new?"], model=model)
    masks = [as_mask(region, image.height, image.width) for region in regions]
    draw_regions(image, masks, [record["answers"] for record in records]).save("outlined.png")

More is in the packages `asking` (streaming, many pictures), `describing` (data sets), `segmentation` (clicks to masks),
`training`, `evaluation`, `hub` and `demo`, and in the command `finecaption`.

Importing this package is cheap: torch and transformers are imported when one of the names below is first used. The Auto
classes of transformers know FineCaption once a class of this package was used, or `register()` was called; without this
package they load the same files from beside the weights, with `trust_remote_code=True`.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .asking import caption_regions, load
    from .configuration_finecaption import FineCaptionConfig
    from .data.encoding import encode_mask
    from .drawing import draw_regions
    from .image_processing_finecaption import FineCaptionImageProcessor
    from .masks_finecaption import MaskError, as_mask, decode_mask
    from .modeling_finecaption import FineCaptionForConditionalGeneration, FineCaptionModel
    from .pipeline_finecaption import RegionCaptioningPipeline
    from .processing_finecaption import FineCaptionProcessor
    from .prompts_finecaption import FineCaptionError

__version__ = "0.1.0"

EMBEDDED_CHECKPOINT = Path(__file__).parent / "checkpoints" / "finecaption-tiny"
"""Folder of the checkpoint that comes with the package."""

_CLASSES = {
    "FineCaptionConfig": "configuration_finecaption",
    "FineCaptionModel": "modeling_finecaption",
    "FineCaptionForConditionalGeneration": "modeling_finecaption",
    "FineCaptionProcessor": "processing_finecaption",
    "FineCaptionImageProcessor": "image_processing_finecaption",
    "RegionCaptioningPipeline": "pipeline_finecaption",
}
_OTHERS = {
    "FineCaptionError": "prompts_finecaption",
    "caption_regions": "asking",
    "draw_regions": "drawing",
    "encode_mask": "data.encoding",
    "load": "asking",
    **dict.fromkeys(("as_mask", "decode_mask", "MaskError"), "masks_finecaption"),
}


def install_hint(extra: str) -> str:
    """What a message says to someone who lacks the packages of an extra; the project is on no package index."""
    return f"""Run: pip install ".[{extra}]" in the project's folder"""


def register() -> None:
    """Make the Auto classes and pipelines of transformers use the classes of this package for FineCaption checkpoints.

    Needed only by code that goes through the Auto classes without having used a class of this package before; doing it
    again changes nothing. From then on `save_pretrained` copies the Hub files beside the weights.

    Raises:
        ImportError: If the installed transformers is outside the range that the Hub files support.
    """
    from .configuration_finecaption import FineCaptionConfig  # isort: skip  (checks the version of transformers)
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor
    from transformers.pipelines import PIPELINE_REGISTRY

    from .image_processing_finecaption import FineCaptionImageProcessor
    from .modeling_finecaption import FineCaptionForConditionalGeneration
    from .pipeline_finecaption import TASK, RegionCaptioningPipeline
    from .processing_finecaption import FineCaptionProcessor

    AutoConfig.register(FineCaptionConfig.model_type, FineCaptionConfig, exist_ok=True)
    # AutoModel gives the class with the language-model head: a captioner without it is of little use.
    AutoModel.register(FineCaptionConfig, FineCaptionForConditionalGeneration, exist_ok=True)
    AutoModelForImageTextToText.register(FineCaptionConfig, FineCaptionForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(FineCaptionConfig, FineCaptionProcessor, exist_ok=True)
    AutoImageProcessor.register(
        FineCaptionConfig, image_processor_classes={"torchvision": FineCaptionImageProcessor}, exist_ok=True
    )
    FineCaptionConfig.register_for_auto_class("AutoConfig")
    FineCaptionForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
    FineCaptionProcessor.register_for_auto_class("AutoProcessor")
    FineCaptionImageProcessor.register_for_auto_class("AutoImageProcessor")
    if TASK not in FineCaptionConfig.registered_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK, RegionCaptioningPipeline, pt_model=AutoModelForImageTextToText, type="multimodal"
        )
        # From now on configurations do not send `pipeline` to a checkpoint's copy of the code.
        FineCaptionConfig.registered_tasks |= {TASK}


if not TYPE_CHECKING:  # which would take every name, of whatever type; it has the names above

    def __getattr__(name: str) -> Any:
        if name in _CLASSES:
            register()
            value = getattr(import_module(f".{_CLASSES[name]}", __name__), name)
        elif name in _OTHERS:
            value = getattr(import_module(f".{_OTHERS[name]}", __name__), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "EMBEDDED_CHECKPOINT",
    "FineCaptionConfig",
    "FineCaptionError",
    "FineCaptionForConditionalGeneration",
    "FineCaptionImageProcessor",
    "FineCaptionModel",
    "FineCaptionProcessor",
    "MaskError",
    "RegionCaptioningPipeline",
    "as_mask",
    "caption_regions",
    "decode_mask",
    "draw_regions",
    "encode_mask",
    "load",
    "register",
]
