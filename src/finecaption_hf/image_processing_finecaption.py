"""Image and regions -> pixel_values, high_res_pixel_values and mask_values, under one geometry.

Dimension letters: B regions, I images, R regions of one image, C channels, H W pixels of an image as displayed, h w
pixels of a model input. Sizes are (height, width). A region reference is whatever `as_mask` takes.
"""

import math
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps

from .configuration_finecaption import CLIP_MEAN, CLIP_STD

# isort: split
from transformers import BatchFeature, ImagesKwargs, TensorType, TorchvisionBackend, logging
from transformers.image_processing_utils import get_size_dict
from transformers.image_utils import (
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
    load_image,
)

from .masks_finecaption import MaskError, as_mask, is_region_reference

logger = logging.get_logger(__name__)


class Geometry(NamedTuple):
    """Where a picture lies in a model input, in pixels of that input: its size there and the offset of its top left,
    which is negative where the input shows the middle of it only."""

    height: int
    width: int
    top: int
    left: int


def fit_within(
    height: int, width: int, target_height: int, target_width: int, pad: bool, crop: bool = False, finer: Any = None
) -> Geometry:
    """Place a picture in a model input. Image and region masks both go by this function.

    Args:
        height, width (`int`): size of the picture.
        target_height, target_width (`int`): size of the model input.
        pad (`bool`): keep the proportions and centre the picture; otherwise squash it to the whole input.
        crop (`bool`): keep the proportions and fill the input with the middle of the picture, as CLIP's processor does.
        finer (`tuple[int, int]`, *optional*): size of the high-resolution input that shows the same picture. A border
            of the picture that the two would round more than half a pixel apart goes to the pixel next to that one's.

    Returns:
        `Geometry`: at least one pixel high and wide. Alone, an odd padding has its extra pixel at the bottom or right.

    Raises:
        ValueError: If a side is not positive.
    """
    if min(height, width, target_height, target_width) < 1:
        raise ValueError(
            f"A picture of {height}x{width} (height x width) cannot be placed in an input of "
            f"{target_height}x{target_width}. All sides must be at least one pixel."
        )
    if not (pad or crop):
        return Geometry(target_height, target_width, 0, 0)
    by_height = (target_height * width <= target_width * height) != crop
    target, source = (target_height, height) if by_height else (target_width, width)
    # In integers: floats would round some exact halves down, and differently for the two input sizes. A crop rounds
    # down and has its smaller half at the top, as in the library's own processors.
    half = 0 if crop else source
    sizes = [max(1, (2 * side * target + half) // (2 * source)) for side in (height, width)]
    starts = [int((target_height - sizes[0]) / 2), int((target_width - sizes[1]) / 2)]
    if finer is not None:
        fine = fit_within(height, width, finer[0], finer[1], pad, crop)
        for axis, share in enumerate((target_height / finer[0], target_width / finer[1])):
            borders = ((starts[axis], fine[2 + axis]), (starts[axis] + sizes[axis], fine[2 + axis] + fine[axis]))
            start, end = (min(max(own, math.ceil(x * share - 0.5)), math.floor(x * share + 0.5)) for own, x in borders)
            starts[axis], sizes[axis] = min(start, end - 1), max(1, end - start)
    return Geometry(*sizes, *starts)


def region_alpha(
    masks: torch.Tensor,
    size: tuple[int, int],
    pad: bool = True,
    mean: float = 0.5,
    std: float = 0.26,
    device: str | torch.device | None = None,
    crop: bool = False,
    finer: Any = None,
) -> torch.Tensor:
    """Resize region masks to the low-resolution input and normalise them.

    Edges become soft (bilinear, antialiased). A region so thin or small that it would stay below 1 everywhere is scaled
    up to a peak of 1, so no region vanishes. Padding lies outside every region.

    Args:
        masks (`torch.Tensor` of shape `(B, 1, H, W)`): True or non-zero inside the region, False or 0 outside.
        size (`tuple[int, int]`): target (height, width) in pixels.
        pad, crop, finer: as in `fit_within`.
        mean, std (`float`): alpha in [0, 1] becomes `(alpha - mean) / std`.
        device: where to resize; `None` means where the masks are.

    Returns:
        `torch.Tensor` of shape `(B, 1, *size)`, float32.

    Raises:
        ValueError: If a mask is empty, has no pixel in the part that `crop` keeps, or `masks` have another shape.

    Alpha-CLIP, section 3.2 (arXiv 2312.03818).
    """
    if masks.ndim != 4 or masks.shape[1] != 1:
        raise ValueError(f"Region masks of shape {tuple(masks.shape)} arrived; needed is (regions, 1, height, width).")
    # Reductions over bool are slow in torch, over uint8 they are fast.
    inside = (masks if masks.dtype == torch.bool else masks != 0).view(torch.uint8)
    height, width, top, left = fit_within(masks.shape[2], masks.shape[3], *size, pad, crop, finer)
    alpha = torch.zeros((len(masks), 1, *size), dtype=torch.float32, device=device or masks.device)
    for number, mask in enumerate(inside[:, 0]):
        rows, columns = mask.amax(1).nonzero(), mask.amax(0).nonzero()
        if len(rows) == 0:
            raise ValueError(f"Region mask {number + 1} is empty. Give masks with at least one pixel.")
        if crop:
            whole = mask.to(alpha.device).to(torch.float32)[None, None]
            soft = _resize_bilinearly(whole, height, width)[0, 0, -top : size[0] - top, -left : size[1] - left]
            if not soft.amax() > 0:
                raise ValueError(
                    f"Region mask {number + 1} lies outside of the middle of the picture, which is all that this model "
                    "sees (do_center_crop). Give a region in it, or do_center_crop=False."
                )
            alpha[number, 0] = (soft / soft.amax().clamp(max=1)).clamp_(0, 1)
            continue
        placed = alpha[number, 0, top : top + height, left : left + width]
        if mask.amin() == 1:
            placed.fill_(1)
            continue
        # A small region of a large picture does not need the whole picture.
        source_y, placed_y = _common_span(int(rows[0]), int(rows[-1]) + 1, mask.shape[0], height)
        source_x, placed_x = _common_span(int(columns[0]), int(columns[-1]) + 1, mask.shape[1], width)
        window = mask[source_y, source_x].to(alpha.device).to(torch.float32)[None, None]
        soft = _resize_bilinearly(window, placed_y.stop - placed_y.start, placed_x.stop - placed_x.start)[0, 0]
        placed[placed_y, placed_x] = (soft / soft.amax().clamp(max=1)).clamp_(0, 1)
    return alpha.sub_(mean).div_(std)


def _resize_bilinearly(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`F.interpolate` with antialiasing for one channel, right also for a result of one column."""
    if width == 1 and height > 1:
        # Seen in torch 2.15 on the CPU: a result of one column repeats its first row. One row is right.
        return F.interpolate(images.mT, size=(width, height), mode="bilinear", antialias=True).mT
    return F.interpolate(images, size=(height, width), mode="bilinear", antialias=True)


def _common_span(start: int, stop: int, source: int, target: int) -> tuple[slice, slice]:
    """Cut one axis so that resizing the cut gives exactly the pixels that resizing the whole axis gives.

    A cut keeps the sampling positions only where the borders of source and target pixels coincide; [start, stop) is
    widened to the next of those, with two filter radii to spare so that no filter that sees the region is cut off.

    Returns:
        The slice of the source axis, and the slice of the target axis that it fills.
    """
    cells = math.gcd(source, target)
    source_step, target_step = source // cells, target // cells
    reach = 2 * math.ceil(max(source / target, 1.0)) + 1
    first = max(0, (start - reach) // source_step)
    last = min(cells, -((-stop - reach) // source_step))
    return slice(first * source_step, last * source_step), slice(first * target_step, last * target_step)


def flatten_regions(masks: Any, image_indices: Any, num_images: int, is_list: bool) -> tuple[list[Any], list[int]]:
    """Sort out which regions were given, and of which image each is.

    Args:
        masks, image_indices: as for `FineCaptionImageProcessor.preprocess`.
        num_images (`int`): the number of images, I.
        is_list (`bool`): whether the images came as a list, or as one image.

    Returns:
        B region references and B image indices, in the order given.

    Raises:
        ValueError: If masks and images do not match, or an index is out of range.
    """
    if image_indices is not None:
        given = torch.as_tensor(image_indices)
        if given.ndim != 1 or given.is_floating_point() or given.dtype == torch.bool:
            raise ValueError(
                f"image_indices of shape {tuple(given.shape)} and type {given.dtype} arrived. Give one whole number "
                "per region."
            )
        indices = given.tolist()
        references = [None] * len(indices) if masks is None else _references(masks, "masks")
        if len(references) != len(indices):
            raise ValueError(
                f"There are {len(references)} masks but {len(indices)} image_indices. Give one index per mask; masks "
                "are one flat list then."
            )
        if wrong := [index for index in indices if not 0 <= index < num_images]:
            raise ValueError(
                f"image_indices holds {wrong[0]}, but there are {num_images} images. Give indices from 0 to "
                f"{num_images - 1}."
            )
    else:
        per_image = [None] * num_images if masks is None else [masks]
        if masks is not None and is_list:
            if not isinstance(masks, (list, tuple)) and getattr(masks, "ndim", 0) < 3:
                raise ValueError(
                    f"One region reference ({type(masks).__name__}) arrived for a list of {num_images} images. Give "
                    "masks as a list with one entry per image: a region reference, or a list of them."
                )
            per_image = list(masks)
        if len(per_image) != num_images:
            raise ValueError(
                f"There are {len(per_image)} entries in masks but {num_images} images. Give one entry per image (a "
                "region reference, or a list of them), or one flat list of regions with image_indices."
            )
        found = [_references(entry, f"masks[{i}]" if is_list else "masks") for i, entry in enumerate(per_image)]
        references = [reference for of_image in found for reference in of_image]
        indices = [index for index, of_image in enumerate(found) for _ in of_image]
    if without := set(range(num_images)) - set(indices):
        raise ValueError(
            f"Image {min(without)} of {num_images} has no region. Leave it out, or give None for it: the whole image."
        )
    return references, indices


def _references(entry: Any, where: str) -> list[Any]:
    """The region references of one image. Lists are containers here, so a bare box or polygon is refused."""
    if is_region_reference(entry):
        return [entry]
    if not isinstance(entry, (list, tuple)) and getattr(entry, "ndim", 0) != 3:
        raise ValueError(
            f"{where} is a {type(entry).__name__}, which is no region reference. See `as_mask` for what is."
        )
    references = list(entry)
    if any(isinstance(reference, (int, float, np.number)) for reference in references):
        raise ValueError(
            f"{where} is a bare list of numbers, but lists are containers of regions here. Wrap it: [[x0, y0, x1, y1]] "
            "or {'box_xyxy': [x0, y0, x1, y1]}."
        )
    return references


class FineCaptionImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """
    high_res_size (`dict[str, int]`, *optional*):
        Height and width of the input of the high-resolution towers; `None` where a model has none.
    high_res_image_mean, high_res_image_std (`list[float]`, *optional*):
        Normalisation of that input.
    do_mask (`bool`, *optional*):
        Whether to return `mask_values`.
    mask_mean, mask_std (`float`, *optional*):
        Normalisation of `mask_values`.
    """

    high_res_size: int | list[int] | tuple[int, ...] | dict[str, int] | None
    high_res_image_mean: float | list[float] | tuple[float, ...] | None
    high_res_image_std: float | list[float] | tuple[float, ...] | None
    do_mask: bool | None
    mask_mean: float | None
    mask_std: float | None


class FineCaptionImageProcessor(TorchvisionBackend):
    """Prepares images at two sizes, and their regions.

    Args:
        size (`dict[str, int]`): height and width of `pixel_values` and `mask_values`.
        high_res_size (`dict[str, int]`): height and width of `high_res_pixel_values`; `None` leaves them out.
        do_mask (`bool`): whether to return `mask_values`.
        do_pad (`bool`): keep the proportions and pad to the input size, centred, in the mean colour; otherwise squash.
        do_center_crop (`bool`): keep the proportions and fill the input with the middle of the picture, as CLIP's and
            LLaVA's processors do, instead of either. A region that has no pixel there is an error.
        resample (`int`): filter for images. Regions are always resized bilinearly.
        image_mean, image_std, high_res_image_mean, high_res_image_std (`list[float]`): normalisation per channel.
        mask_mean, mask_std (`float`): normalisation of `mask_values`.
        do_pack (`bool`): return `pixel_values` that hold all else, see `pack_pixels`.
        do_rescale, rescale_factor, do_normalize: as everywhere in transformers.
    """

    valid_kwargs = FineCaptionImageProcessorKwargs

    size = {"height": 336, "width": 336}
    high_res_size: Any = {"height": 1024, "width": 1024}
    do_resize = True
    do_pad = True
    do_center_crop = False
    do_mask = True
    do_convert_rgb = True
    do_rescale = True
    do_normalize = True
    resample = PILImageResampling.BICUBIC
    image_mean = CLIP_MEAN
    image_std = CLIP_STD
    high_res_image_mean = CLIP_MEAN
    high_res_image_std = CLIP_STD
    mask_mean = 0.5
    mask_std = 0.26
    do_pack = False

    @property
    def model_input_names(self) -> list[str]:
        high_res = [] if self.high_res_size is None else ["high_res_pixel_values"]
        return ["pixel_values", *high_res, *(["mask_values"] if self.do_mask else []), "image_indices"]

    def _standardize_kwargs(self, high_res_size: Any = None, **kwargs: Any) -> dict[str, Any]:
        if kwargs.get("do_center_crop") and kwargs.get("crop_size") is None:
            kwargs["crop_size"] = kwargs.get("size")
        if high_res_size is not None and not isinstance(high_res_size, SizeDict):
            high_res_size = SizeDict(**get_size_dict(high_res_size, param_name="high_res_size"))
        return {**super()._standardize_kwargs(**kwargs), "high_res_size": high_res_size}

    def preprocess(
        self,
        images: Any,
        masks: Any = None,
        image_indices: Any = None,
        high_res_features: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare images and their regions.

        Args:
            images: one image or a list of them: PIL image, path, URL, base64 text, bytes of an image file, or array or
                tensor of shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, whole numbers 0 to 255 or floats
                0 to 1. A 4-D array is a list of images. PIL images and files are turned by their EXIF orientation
                first. Transparent images are laid on white.
            masks: regions at the size of the image as displayed. Lists are containers.

                - One image (not in a list): one region reference that is no bare list, a (R, H, W) array, or a list of
                  region references.
                - A list of images: a list with one such entry per image; `None` is the whole image.
                - With `image_indices`: one flat list of B region references.
                - `None`: the whole of each image, one region per image.
            image_indices (*optional*): of which image each of the B regions is.
            high_res_features (*optional*): of shape (I, C, h, w), what `get_high_res_features` says of the images. They
                are handed on in the place of `high_res_pixel_values`.
            return_tensors (`str`, *optional*): `"pt"` (what comes without it, too) or `"np"`.
            device (`str` or `torch.device`, *optional*): where to resize; the image goes there as uint8.
            **kwargs: any attribute of this class, for this call.

        Returns:
            `BatchFeature` with

            - `pixel_values` of shape `(I, 3, h, w)`, float32,
            - `high_res_pixel_values` of shape `(I, 3, h', w')`, unless `high_res_size` is `None`,
            - `mask_values` of shape `(B, 1, h, w)`, if `do_mask`,
            - `image_indices` of shape `(B,)`, int64.

        Raises:
            ValueError: If there is no image, masks and images do not match, or an image cannot be read as one.
            MaskError: If a region reference is none, does not fit its image or is empty.
        """
        regions = {"masks": masks, "image_indices": image_indices, "is_encoded": high_res_features is not None}
        prepared: BatchFeature = super().preprocess(images, image_like_kwargs=regions, **kwargs)
        if high_res_features is not None:
            prepared["high_res_features"] = high_res_features
        return prepared

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open paths, URLs, base64 text, bytes and files; anything else comes back as it is. Lists are looked into."""
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(entry) for entry in image_url_or_urls]
        if isinstance(image_url_or_urls, (bytes, bytearray)):
            return Image.open(BytesIO(image_url_or_urls))
        if hasattr(image_url_or_urls, "read"):
            return Image.open(image_url_or_urls)
        if isinstance(image_url_or_urls, (str, Path)):
            # Files stay PIL images: the library's own loaders drop transparency, some releases the orientation too.
            is_file = os.path.isfile(image_url_or_urls)
            return Image.open(image_url_or_urls) if is_file else load_image(str(image_url_or_urls))
        return image_url_or_urls

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Decode one image, upright and in RGB.

        Returns:
            `torch.Tensor` of shape `(3, H, W)`, uint8, with the channels last in memory: torchvision resizes that
            layout two to three times as fast as the other.

        Raises:
            ValueError: If `image` is none, or has no pixels.
        """
        if isinstance(image, Image.Image):
            picture = torch.from_numpy(np.array(upright_rgb(image))).permute(2, 0, 1)
        elif isinstance(image, (np.ndarray, torch.Tensor)):
            picture = _array_to_rgb(image, input_data_format)
        else:
            raise ValueError(
                f"A {type(image).__name__} arrived as an image. Give a PIL image, a path, a URL, the bytes of an image "
                "file, an array or a tensor."
            )
        picture = picture[None].contiguous(memory_format=torch.channels_last)[0]
        return picture if device is None else picture.to(device)

    def _preprocess_image_like_inputs(
        self,
        images: Any,
        masks: Any = None,
        image_indices: Any = None,
        *,
        is_encoded: bool,
        do_resize: bool,
        do_center_crop: bool | None,
        crop_size: Any,
        do_pad: bool,
        do_mask: bool,
        do_rescale: bool,
        do_normalize: bool,
        rescale_factor: float,
        size: SizeDict,
        high_res_size: SizeDict | None,
        resample: Any,
        image_mean: Any,
        image_std: Any,
        high_res_image_mean: Any,
        high_res_image_std: Any,
        mask_mean: float,
        mask_std: float,
        input_data_format: str | ChannelDimension | None,
        device: str | torch.device | None,
        return_tensors: str | TensorType | None,
        **kwargs: Any,
    ) -> BatchFeature:
        crop = bool(do_center_crop)
        if not do_resize or (crop and (crop_size.height, crop_size.width) != (size.height, size.width)):
            raise ValueError(
                "FineCaption's inputs have fixed sizes and one geometry, so do_resize=False and a crop_size other than "
                "`size` do not work. Choose `size`, `high_res_size`, `do_pad` and `do_center_crop` instead."
            )
        is_list = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
        images = _flatten_images(self.fetch_images(images))
        if not images:
            raise ValueError("There is no image. Give at least one; leave `images` out for text alone.")
        references, indices = flatten_regions(masks, image_indices, len(images), is_list)

        inputs = {"pixel_values": (size, image_mean, image_std)}
        finer = None if high_res_size is None else (high_res_size.height, high_res_size.width)
        if high_res_size is not None and not is_encoded:
            inputs["high_res_pixel_values"] = (high_res_size, high_res_image_mean, high_res_image_std)
        scale = rescale_factor if do_rescale else 1.0
        data = {}
        statistics = {}
        for name, (target, mean, std) in inputs.items():
            if not target.height or not target.width:
                raise ValueError(f"The size {dict(target)} of {name} does not say its height and width. Give both.")
            data[name] = torch.empty((len(images), 3, target.height, target.width), dtype=torch.float32, device=device)
            statistics[name] = _grey_level_statistics(mean, std, scale, do_normalize, device)
        sizes = []
        for number, image in enumerate(images):
            picture = self.process_image(image, input_data_format=input_data_format, device=device)
            sizes.append((picture.shape[1], picture.shape[2]))
            for name, (target, _, _) in inputs.items():
                canvas = data[name][number]
                shift, spread, padding = statistics[name]
                height, width, top, left = fit_within(*sizes[-1], target.height, target.width, do_pad, crop, finer)
                resized = self.resize(picture, SizeDict(height=height, width=width), resample)
                if crop:
                    resized = resized[:, -top : target.height - top, -left : target.width - left]
                    height, width, top, left = target.height, target.width, 0, 0
                placed = canvas[:, top : top + height, left : left + width]
                placed.copy_(resized)
                placed.sub_(shift).div_(spread)
                # Only the margins: filling the whole canvas first would cost as much as normalising it.
                canvas[:, :top] = canvas[:, top + height :] = padding
                canvas[:, :, :left] = canvas[:, :, left + width :] = padding

        if do_mask:
            options = {"size": (size.height, size.width), "pad": do_pad, "crop": crop, "finer": finer, "device": device}
            data["mask_values"] = _mask_values(references, indices, sizes, mean=mask_mean, std=mask_std, **options)
        elif any(reference is not None for reference in references):
            logger.warning_once("masks have no effect: this image processor is set to do_mask=False.")
        data["image_indices"] = torch.tensor(indices, device=device)
        return BatchFeature(pack_pixels(data) if self.do_pack else data, tensor_type=return_tensors)


def pack_pixels(data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All of a region in one row of `pixel_values` `(B, K)`, for trainers that hand on slices of those alone."""
    indices = data["image_indices"]
    parts = [part if name == "mask_values" else part[indices] for name, part in data.items() if name != "image_indices"]
    pixel_values = torch.cat([part.flatten(1) for part in parts], dim=1)
    return {"pixel_values": pixel_values, "image_indices": torch.arange(len(indices), device=indices.device)}


def _mask_values(
    references: list[Any], indices: list[int], picture_sizes: list[tuple[int, int]], **options: Any
) -> torch.Tensor:
    """`region_alpha` of each reference; the same object given again for the same image is resized once."""
    keys = [(index, id(reference)) for index, reference in zip(indices, references)]
    alphas: dict[tuple[int, int], torch.Tensor] = {}
    for number, (key, reference) in enumerate(zip(keys, references)):
        if key not in alphas:
            try:
                mask = as_mask(reference, *picture_sizes[key[0]])
                alphas[key] = region_alpha(torch.from_numpy(mask)[None, None], **options)
            except ValueError as error:  # MaskError is one, too
                raise MaskError(f"Region {number + 1} (of images[{key[0]}]): {error}") from error
    return torch.cat([alphas[key] for key in keys])


def _grey_level_statistics(
    mean: Any, std: Any, scale: float, do_normalize: bool, device: str | torch.device | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fold rescaling and normalisation of grey levels 0 to 255 into one shift and one spread.

    Returns:
        The shift and the spread, `(level - shift) / spread`, and the padding: the mean colour, rounded to whole grey
        levels and normalised. All of shape `(3, 1, 1)`, float32.
    """
    mean, std = (
        torch.tensor([values] * 3 if isinstance(values, (int, float)) else list(values), dtype=torch.float64)
        for values in (mean, std)
    )
    padding = (255 * mean).round()
    shift = (mean if do_normalize else 0 * mean) / scale
    spread = (std if do_normalize else std / std) / scale
    folded = (shift, spread, (padding - shift) / spread)
    shift, spread, padding = (values.to(torch.float32).to(device)[:, None, None] for values in folded)
    return shift, spread, padding


def _flatten_images(images: Any) -> list[Any]:
    """One image, a 4-D array of images, or a list of them (which may be nested) -> a list of images."""
    if isinstance(images, (list, tuple)):
        return [image for entry in images for image in _flatten_images(entry)]
    return list(images) if getattr(images, "ndim", 0) == 4 else [images]


def upright_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode -> one in RGB, turned by its EXIF orientation, transparent pixels laid on white.

    Raises:
        ValueError: If it has no pixels.
    """
    if 0 in image.size:
        raise ValueError(f"An image of {image.height}x{image.width} (height x width) arrived. It has no pixels.")
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow would clip 16 bits to 255 instead of scaling them.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _array_to_rgb(image: np.ndarray | torch.Tensor, input_data_format: str | ChannelDimension | None) -> torch.Tensor:
    """An array or tensor -> a uint8 tensor of shape (3, H, W), transparent pixels laid on white."""
    if isinstance(image, np.ndarray):
        # torch takes neither negative strides (a flipped image) nor, without a warning, read-only memory.
        if not image.flags.writeable or min(image.strides, default=0) < 0:
            image = image.copy()
        image = torch.from_numpy(image)
    shape = tuple(image.shape)
    if image.ndim == 2:
        image = image[None]
    elif image.ndim == 3:
        try:
            layout = input_data_format or infer_channel_dimension_format(image, num_channels=(1, 3, 4))
        except ValueError:
            layout = None
        if layout == ChannelDimension.LAST:
            image = image.permute(2, 0, 1)
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4) or 0 in shape:
        raise ValueError(
            f"An array of shape {shape} arrived as an image. Give (height, width), (height, width, channels) or "
            "(channels, height, width) with 1, 3 or 4 channels and at least one pixel."
        )
    if image.dtype == torch.bool:
        image = image.to(torch.uint8) * 255
    elif image.dtype != torch.uint8:
        is_float = image.is_floating_point()
        levels = image.to(torch.float32) * 255 if is_float else image.to(torch.int64)
        low, high = levels.aminmax()
        if not (low >= 0 and high <= 255):  # NaN fails here, too
            unit = 255 if is_float else 1
            raise ValueError(
                f"An image of type {image.dtype} has values from {low.item() / unit:g} to {high.item() / unit:g}. Give "
                "floats from 0 to 1, or whole numbers from 0 to 255."
            )
        image = (levels.round() if is_float else levels).to(torch.uint8)
    if image.shape[0] == 4:
        opacity = image[3:].to(torch.float32) / 255
        image = (image[:3] * opacity + 255 * (1 - opacity)).round().to(torch.uint8)
    return image.expand(3, -1, -1)


def join_vision(parts: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """What was prepared for several lots of images -> one lot, in the same order.

    Args:
        parts: outputs of `FineCaptionImageProcessor`, as tensors, made with the same settings.

    Returns:
        `dict[str, torch.Tensor]`: the same names; `image_indices` count on from part to part.

    Raises:
        ValueError: If there is none, or they do not hold the same names.
    """
    if not parts or any(part.keys() != parts[0].keys() for part in parts):
        raise ValueError(
            f"Parts with {[sorted(part) for part in parts]} cannot be joined. Give one or several outputs of one image "
            "processor."
        )
    joined = {name: torch.cat([torch.as_tensor(part[name]) for part in parts]) for name in parts[0]}
    if "image_indices" in joined:
        start, counted = 0, []
        for part in parts:
            counted.append(torch.as_tensor(part["image_indices"]) + start)
            start += len(part["pixel_values"])
        joined["image_indices"] = torch.cat(counted)
    return joined
