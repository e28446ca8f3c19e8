"""Regions shown in a picture, whose colours inside them stay as they are: captions speak of them.

Legend: H W height and width of the picture in pixels, R regions. Points are (x, y).
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from ..prompts_finecaption import no_such
from .captions import FONT_SHARES, Caption, with_captions
from .numbers import Color, number_regions

# Bright enough to stand out on a photograph, dark enough to carry white digits, and apart for colour-blind readers too:
# found by a search for the largest distances under simulated protanopia and deuteranopia, neighbours first.
COLORS: tuple[Color, ...] = (
    (229, 57, 53),
    (2, 45, 255),
    (52, 158, 126),
    (220, 122, 0),
    (68, 0, 152),
    (61, 149, 250),
    (151, 37, 131),
    (107, 25, 45),
)
_WHITE = (255, 255, 255)

MIN_SIDE = 720  # pixels, the longer one; smaller pictures are enlarged, for fine lines and captions that fit
_BADGE_SHARE = 0.3  # of the shorter side: the type of numbers in a picture is at most that large
_STROKE_SHARE, _HALO_SHARE = 0.0035, 0.0018  # of the longer side
_FILL_OPACITY, _SHADE_OPACITY = 0.16, 0.6
_SHADE = (0, 0, 0)

STYLES = ("outline", "spotlight", "fill")
"""`outline`: a line with a halo around each region; `spotlight`: the rest is darkened as well; `fill`: regions are
tinted as well, which shows their extent and changes their colours."""


def draw_regions(
    image: Image.Image,
    masks: Sequence[np.ndarray],
    captions: Sequence[Caption] | None = None,
    *,
    colors: Sequence[Color] | None = None,
    numbers: Sequence[int] | None = None,
    line_width: float = 1.0,
    style: str = "outline",
) -> Image.Image:
    """Outline regions on a picture, number them if there are several, and write the captions below or beside it.

    Args:
        image: a picture of any mode, (H, W); it is not changed.
        masks: R arrays bool (H, W), True inside the region.
        captions: R texts of one or more lines, or R answers by question; `None` leaves the space for them out.
        colors: RGB colours, used in turn; `None` means `COLORS`.
        numbers: R of them, where regions are not counted from 1; then a single one is numbered, too.
        line_width: of outlines, in the usual widths; more for pictures that are shown small.
        style: one of `STYLES`. Only `fill` changes what is inside of regions; lines run along the picture's border
            there, and numbers stand in regions that have room for them.

    Returns:
        An RGB picture: `image`, or a multiple of it where its longer side is below `MIN_SIDE`, in the upper left corner
        of a sheet with the captions.

    Raises:
        ValueError: If a mask does not have the picture's size, or if there is not one caption per mask; or if
            there is no such style.
    """
    if style not in STYLES:
        raise ValueError(no_such("style", style, STYLES))
    for mask in masks:
        if mask.shape != (image.height, image.width):
            raise ValueError(
                f"The mask's shape is {mask.shape} but the image is {image.height}x{image.width} (height x width). "
                "Give as_mask(reference, image.height, image.width)."
            )
    if captions is not None and len(captions) != len(masks):
        raise ValueError(f"There are {len(captions)} captions for {len(masks)} regions; give one per region.")

    palette = list(colors or COLORS)
    region_colors = [palette[index % len(palette)] for index in range(len(masks))]
    factor = math.ceil(MIN_SIDE / max(image.size))
    picture = image.convert("RGB")
    if factor > 1:
        picture = picture.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)
        masks = [_enlarge(mask, picture.size) for mask in masks]

    largest_first = sorted(range(len(masks)), key=lambda index: -int(masks[index].sum()))
    if style == "spotlight" and masks:
        picture.paste(_SHADE, mask=_soft(~np.logical_or.reduce(masks), _SHADE_OPACITY))
    for index in largest_first:
        _outline(picture, masks[index], region_colors[index], line_width, is_filled=style == "fill")
    if len(masks) > 1 or (masks and numbers):
        font_size = round(min(max(picture.size) * FONT_SHARES[0], min(picture.size) * _BADGE_SHARE))
        number_regions(picture, masks, region_colors, largest_first, max(8, font_size), numbers)
    return with_captions(picture, captions, region_colors, numbers) if captions else picture


def _outline(picture: Image.Image, mask: np.ndarray, color: Color, line_width: float, *, is_filled: bool) -> None:
    """Draw a line around a region, outside of it, so that even a region of one pixel stays visible."""
    stroke = max(2, round(max(picture.size) * _STROKE_SHARE * line_width))
    halo = max(1, round(max(picture.size) * _HALO_SHARE * line_width))
    # Where the region meets the picture's border the line runs inside.
    frame = np.ones_like(mask)
    frame[stroke:-stroke, stroke:-stroke] = False
    whole = mask.all()
    top, bottom, left, right = _bounds(mask, stroke + halo + 2)
    part = np.s_[top:bottom, left:right]
    mask, frame = mask[part], frame[part]
    line = (_grow_roughly(mask, stroke) & ~mask) | (mask & frame)
    crop = picture.crop((left, top, right, bottom))
    if is_filled and not whole:
        crop.paste(color, mask=_soft(mask, _FILL_OPACITY))
    crop.paste(_WHITE, mask=_soft(_grow_roughly(line, halo) & ~(mask & ~frame), 1.0))
    crop.paste(color, mask=_soft(line, 1.0))
    picture.paste(crop, (left, top))


def _grow_roughly(mask: np.ndarray, radius: int) -> np.ndarray:
    """`grow`; by a large radius at a lower resolution, which is as good to the eye and takes a fraction of the time."""
    step = max(1, radius // 6)
    if step == 1 or not mask.size:
        return grow(mask, radius)
    pixels = Image.fromarray(mask.astype(np.uint8) * 255).reduce(step)
    grown = Image.fromarray(grow(np.asarray(pixels) > 0, radius // step).astype(np.uint8) * 255)
    large = grown.resize((grown.width * step, grown.height * step), Image.Resampling.BILINEAR)
    return np.asarray(large)[: mask.shape[0], : mask.shape[1]] >= 128


def _enlarge(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale up to `size` (width, height) with smooth edges; pixels of the region never disappear."""
    pixels = Image.fromarray(mask.astype(np.uint8) * 255)
    smooth = np.asarray(pixels.resize(size, Image.Resampling.BICUBIC)) >= 128
    return smooth if smooth.any() else np.asarray(pixels.resize(size, Image.Resampling.NEAREST)) > 0


def _soft(mask: np.ndarray, opacity: float) -> Image.Image:
    """A paste mask with slightly smoothed edges."""
    return Image.fromarray(mask.astype(np.uint8) * round(255 * opacity)).filter(ImageFilter.GaussianBlur(0.6))


def grow(mask: np.ndarray, radius: int) -> np.ndarray:
    """Dilate by a disc of `radius` pixels; works on the mask's own box only, so small regions are quick."""
    top, bottom, left, right = _bounds(mask, radius)
    crop = np.pad(mask[top:bottom, left:right], radius)
    # With running sums, "any pixel within d columns" is one difference, whatever d.
    sums = np.pad(np.cumsum(crop, axis=1, dtype=np.int32), ((0, 0), (1, 0)))
    height, width = bottom - top, right - left
    grown = np.zeros((height, width), dtype=bool)
    for dy in range(-radius, radius + 1):
        dx = math.isqrt(radius * radius - dy * dy)
        rows = sums[radius + dy : radius + dy + height]
        grown |= rows[:, radius + dx + 1 : radius + dx + 1 + width] > rows[:, radius - dx : radius - dx + width]
    result = np.zeros_like(mask)
    result[top:bottom, left:right] = grown
    return result


def _bounds(mask: np.ndarray, margin: int) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the mask's box with a margin, within the picture; exclusive ends."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return (
        max(0, int(rows[0]) - margin),
        min(mask.shape[0], int(rows[-1]) + 1 + margin),
        max(0, int(columns[0]) - margin),
        min(mask.shape[1], int(columns[-1]) + 1 + margin),
    )
