"""One encoding for segmentation and captioning, where a checkpoint's SAM tower is the encoder of a published SAM."""

import os
import warnings
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..asking import Describer, FineCaptionDescriber
from ..data.images import to_rgb
from ..image_processing_finecaption import fit_within
from .clicks import SegmentationError
from .models import ModelEncodedImage
from .opening import open_segmenter, read, read_config
from .segmenter import Segmenter

if TYPE_CHECKING:
    from ..modeling_finecaption import FineCaptionForConditionalGeneration
    from ..processing_finecaption import FineCaptionProcessor


class SharedSegmenter(Segmenter):
    """SAM's prompt encoder and mask decoder over the embeddings of a FineCaption model's SAM tower.

    `high_res_features` (1, C, h, w) of what it encodes goes under that name into the `region-captioning` pipeline or
    `model.generate`; the high-resolution towers then do not run again.

    Args:
        model, processor: as `finecaption_hf.asking.load` returns them.
        sam: the `SamModel` that the tower was taken from. Its own image encoder is let go.

    Raises:
        SegmentationError: If the model has no such tower, or the tower's weights are not those of `sam`.
    """

    def __init__(self, model: "FineCaptionForConditionalGeneration", processor: "FineCaptionProcessor", sam: Any):
        _check_tower(model)
        tower = model.model.sam_tower.vision_encoder.state_dict()
        theirs = sam.vision_encoder.state_dict()
        changed = sorted(
            name
            for name in tower.keys() | theirs.keys()
            if name not in tower
            or name not in theirs
            or not torch.equal(tower[name], theirs[name].to(tower[name].device, tower[name].dtype))
        )
        if changed:
            raise SegmentationError(
                f"The SAM tower is not the encoder of this SAM: {len(changed)} tensors differ, such as {changed[0]}. "
                "Open the SAM by itself, with open_segmenter."
            )
        if processor.image_processor.do_center_crop:
            raise SegmentationError(
                "The captioning model sees the middle of a picture only (do_center_crop), a segmenter needs all of it. "
                "Open the SAM by itself, with open_segmenter."
            )
        sam.vision_encoder = torch.nn.Identity()
        parameter = next(model.model.sam_tower.parameters())
        self.sam = sam.eval().to(parameter.device, parameter.dtype)
        self.model, self.processor = model, processor
        self.name = f"SAM{f' ({sam.name_or_path})' if sam.name_or_path else ''}, over the captioning model's own tower"

    @torch.no_grad()
    def encode(self, image: Image.Image) -> ModelEncodedImage:
        config, picture = self.model.config, to_rgb(image)
        prepared = self.processor.image_processor(picture, return_tensors="pt")["high_res_pixel_values"]
        device = next(self.model.parameters()).device
        features = self.model.get_high_res_features(prepared.to(device, self.model.dtype))
        assert features is not None
        # The tower's own grid, unfolded; its channels stand behind ConvNeXt's.
        fold = config.sam_config.image_size // config.sam_config.patch_size // config.grid_size
        embeddings = torch.nn.functional.pixel_shuffle(features[:, -config.sam_feature_size :], fold)
        side = config.high_res_image_size
        placed = fit_within(picture.height, picture.width, side, side, self.processor.image_processor.do_pad)
        size = (picture.height, picture.width)
        encoded = ModelEncodedImage(self.sam, embeddings.to(self.sam.device), size, (side, side), placed)
        encoded.high_res_features = features
        return encoded


def open_shared_segmenter(
    model: "FineCaptionForConditionalGeneration",
    processor: "FineCaptionProcessor",
    name: str | os.PathLike[str] | None = None,
) -> SharedSegmenter:
    """Load the rest of the SAM that a FineCaption model's tower was taken from.

    Args:
        model, processor: as `finecaption_hf.asking.load` returns them.
        name: that SAM, as a folder or the id of a Hub repository; `None` means the configuration's `sam_pretrained`.

    Raises:
        SegmentationError: If none is known, it is no SAM, or the tower is not its encoder.
        OSError: If it cannot be read.
    """
    _check_tower(model)
    name = model.config.sam_pretrained if name is None else os.fspath(name)
    if name is None:
        raise SegmentationError(
            "The checkpoint does not say from which SAM its tower was taken (sam_pretrained). Give its name, or open a "
            "segmenter of its own with open_segmenter."
        )
    from transformers import SamModel

    config = read_config(name)
    ours = model.config.sam_config
    sizes = ("hidden_size", "num_hidden_layers", "image_size", "patch_size", "output_channels")
    is_sam = config.model_type == "sam"  # others need not have a vision_config
    if not is_sam or any(getattr(config.vision_config, size) != getattr(ours, size) for size in sizes):
        raise SegmentationError(
            f"The SAM tower is not the encoder of {name}, a model of type {config.model_type!r}: sizes or kind differ. "
            "Open that model by itself, with open_segmenter."
        )
    return SharedSegmenter(model, processor, read(SamModel, name))


def open_segmenter_for(
    model: "FineCaptionForConditionalGeneration",
    processor: "FineCaptionProcessor",
    name: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Segmenter:
    """The segmenter to use beside a captioning model: over the model's own tower where that can be.

    Args:
        model, processor: as `finecaption_hf.asking.load` returns them.
        name: a segmentation model, as for `open_segmenter`. If the model's SAM tower is its encoder, it is a
            `SharedSegmenter`. `None` means the SAM that the configuration names (`sam_pretrained`); where there is
            none, or it cannot be shared, which is warned about, the classical segmenter.
        device, dtype: as for `open_segmenter`; a shared one is where the captioning model is, in its dtype.

    Raises:
        SegmentationError, ImportError, OSError: As `open_segmenter`.
    """
    if name is None and model.config.sam_pretrained is None:
        return open_segmenter(None)
    try:
        return open_shared_segmenter(model, processor, name)
    except (OSError, SegmentationError) as error:
        if name is None:
            reason = str(error).partition("\n")[0]
            warnings.warn(
                f"{model.config.sam_pretrained}, to which the checkpoint's SAM tower belongs, cannot be used, so that "
                f"regions are found by colour alone: {reason}",
                stacklevel=2,
            )
        elif isinstance(error, OSError):
            raise  # it would be no easier to read the second time
    return open_segmenter(name, device, dtype)


def open_segmenter_beside(
    describer: Describer,
    name: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Segmenter:
    """The segmenter to use beside a describer: of FineCaption as `open_segmenter_for`, of others as `open_segmenter`.

    Raises:
        SegmentationError, ImportError, OSError: As those.
    """
    if isinstance(describer, FineCaptionDescriber):
        return open_segmenter_for(describer.model, describer.processor, name, device, dtype)
    return open_segmenter(name, device, dtype)


def _check_tower(model: "FineCaptionForConditionalGeneration") -> None:
    if not model.config.use_sam or model.config.sam_feature_layer is not None:
        raise SegmentationError("This model has no SAM tower with its neck, so there is no encoding to share.")
