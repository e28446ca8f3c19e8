"""How a region is pointed out to a model: in the picture, in the text, or by a mask.

Legend: H W height and width of the picture in pixels. A box is box_xyxy: x and y of its left, top, right and bottom
edges, so the right and bottom ends are exclusive, and the box of the whole picture is (0, 0, W, H).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from ...drawing import COLORS as MARKS
from ...drawing import grow
from ...drawing.numbers import number_regions
from ...masks_finecaption import RegionMask
from ...prompts_finecaption import no_such
from ..errors import DescriberError
from .boxes import Box
from .settings import check_options, options_of

Color = tuple[int, int, int]

COLORS: dict[str, Color] = {
    "red": (255, 0, 0),
    "green": (0, 200, 0),
    "blue": (0, 80, 255),
    "yellow": (255, 225, 0),
    "magenta": (255, 0, 200),
    "cyan": (0, 220, 230),
}
"""Colours of lines and tints, by the name that the text calls them."""

SENTENCES: dict[str, str] = {
    "mask": "",
    "filled_box": "",
    "box_text": "The marked region is the box {box}.",
    "box_drawn": "The marked region is inside the {color} box.",
    "contour_drawn": "The marked region is outlined in {color}.",
    "mask_overlaid": "The marked region is tinted {color}.",
    "set_of_marks": "The marked region is the one with the number {number}.",
    "crop": "The image is cropped to the marked region.",
    "crop_context": "The image is cropped around the marked region, with some of its surroundings.",
}
"""What the text adds for each kind of referral."""

KINDS = tuple(SENTENCES)
WITH_MASK = ("mask", "filled_box")
"""The kinds that only a model with a mask input can use."""

_LINE_SHARE = 0.006  # of the longer side: two pixels are left where a model sees 336
_NUMBER_SHARE, _MOST_NUMBER_SHARE = 0.035, 0.15  # size of a number: of the longer side, but so much of the shorter
_LEAST_NUMBER = 8  # pixels
_LIGHT = 0.6  # luminance above which a line gets a dark edge instead of a white one
_WHITE, _INK = (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True)
class Marked:
    """A picture in which a region has been pointed out.

    Attributes:
        image: the picture that the model gets, RGB.
        mask: bool (H, W) for a model that takes one; `None` where the picture and the text say it all.
        box_xyxy: the region's box in the pixels of `image`; `None` where no region was asked for.
        number: of the region, where several are marked by numbers.
    """

    image: Image.Image
    mask: np.ndarray | None
    box_xyxy: Box | None
    number: int | None = None


@dataclass(frozen=True)
class Referral:
    """A way of pointing out a region, with its settings.

    Args:
        kind: one of `KINDS`: `"mask"` (the mask goes into the model), `"filled_box"` (the mask's box in place of it),
            `"box_text"` (the box in the text), `"box_drawn"`, `"contour_drawn"`, `"mask_overlaid"` (in the picture),
            `"set_of_marks"` (a line and a number for each region of a picture, arXiv 2310.11441), `"crop"`,
            `"crop_context"`.
        color: of lines and tint, a name of `COLORS`.
        opacity: of the tint, between 0 and 1.
        margin: of `"crop_context"`, on each side, as a share of the box's width and height.
        min_side: crops are grown to this many pixels each way, as far as the picture goes: a line of a few pixels shows
            nothing, and several image processors refuse it.
        sentence: what the text adds, with `{box}`, `{color}`, `{number}`, `{width}` and `{height}` (those of the
            picture that the model gets) filled in; `None` means that of `SENTENCES`.

    Raises:
        DescriberError: If a setting cannot be meant.
    """

    kind: str
    color: str = "red"
    opacity: float = 0.4
    margin: float = 0.5
    min_side: int = 32
    sentence: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DescriberError(no_such("referral", self.kind, KINDS))
        if self.color not in COLORS:
            raise DescriberError(no_such("color", self.color, COLORS))
        if not 0 < self.opacity <= 1:
            raise DescriberError(f"opacity is {self.opacity}. Give a number above 0 and up to 1.")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise DescriberError(f"margin is {self.margin}. Give a share of the box's sides, such as 0.5.")
        if self.min_side < 1:
            raise DescriberError(f"min_side is {self.min_side}. Give 1 or more pixels.")
        check_fields(self._sentence, ("box", "color", "number", "width", "height"), "sentence")

    @property
    def _sentence(self) -> str:
        return SENTENCES[self.kind] if self.sentence is None else self.sentence

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides about picture and text, for reports."""
        values = asdict(self) | {"sentence": self._sentence}
        used = {
            "box_drawn": {"color"},
            "contour_drawn": {"color"},
            "mask_overlaid": {"color", "opacity"},
            "crop": {"min_side"},
            "crop_context": {"margin", "min_side"},
        }.get(self.kind, set())
        return {name: value for name, value in values.items() if name in used | {"kind", "sentence"}}

    def mark(self, image: Image.Image, region: RegionMask) -> Marked:
        """Point out a region.

        Args:
            image: the picture, RGB, (H, W); it is not changed.
            region: of that picture; where the whole of it is meant, it is left as it is.
        """
        if region.is_whole:
            return Marked(image, None, None)
        mask, box = region.pixels, region.box_xyxy
        if self.kind == "mask":
            return Marked(image, mask, box)
        if self.kind == "filled_box":
            return Marked(image, box_mask(box, mask.shape), box)
        if self.kind == "box_drawn":
            image = _draw_box(image, box, COLORS[self.color])
        elif self.kind == "contour_drawn":
            image = _draw_contour(image, mask, COLORS[self.color])
        elif self.kind == "mask_overlaid":
            image = _overlay(image, mask, COLORS[self.color], self.opacity)
        elif self.kind.startswith("crop"):
            window = crop_window(box, image.size, self.margin if self.kind == "crop_context" else 0.0, self.min_side)
            image = image.crop(window)
            box = (box[0] - window[0], box[1] - window[1], box[2] - window[0], box[3] - window[1])
        return Marked(image, None, box)

    def mark_all(self, image: Image.Image, regions: Sequence[RegionMask]) -> Image.Image:
        """Outline and number the regions of a picture from 1, for `"set_of_marks"`; other kinds leave it as it is.

        Args:
            image: the picture, RGB, (H, W); it is not changed.
            regions: of that picture, each less than the whole of it.
        """
        if self.kind != "set_of_marks" or not regions:
            return image
        masks = [region.pixels for region in regions]
        colors = [MARKS[number % len(MARKS)] for number in range(len(masks))]
        largest_first = sorted(range(len(masks)), key=lambda number: -regions[number].area)
        for number in largest_first:
            image = _draw_contour(image, masks[number], colors[number])
        font_size = round(min(max(image.size) * _NUMBER_SHARE, min(image.size) * _MOST_NUMBER_SHARE))
        number_regions(image, masks, colors, largest_first, max(_LEAST_NUMBER, font_size))
        return image

    def text(self, marked: Marked, box: str) -> str:
        """The sentence for a picture of `mark`; `box` is the region's box as the model's own convention writes it."""
        if marked.box_xyxy is None:
            return ""
        filled = {"box": box, "color": self.color, "number": marked.number}
        return self._sentence.format(**filled, width=marked.image.width, height=marked.image.height)


def read_referral(value: Any) -> Referral:
    """A referral from a name, or from a mapping with `kind` and settings; one that is there already stays.

    Raises:
        DescriberError: If it cannot be meant.
    """
    if isinstance(value, Referral):
        return value
    if isinstance(value, str):
        return Referral(value)
    if not isinstance(value, Mapping) or "kind" not in value:
        raise DescriberError(
            f"{value!r} is no referral. Give a name ({', '.join(KINDS)}) or a mapping such as "
            "{kind: box_drawn, color: red}."
        )
    check_options(value, options_of(Referral), "a referral")
    return Referral(**value)


def check_fields(template: str, known: tuple[str, ...], what: str) -> None:
    """Refuse a template that names what is not there.

    Raises:
        DescriberError: If a field is unknown, or a brace has no partner.
    """
    try:
        template.format(**dict.fromkeys(known, ""))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise DescriberError(
            f"{what} is {template!r}, which cannot be filled in ({error}). It may use "
            f"{', '.join('{' + name + '}' for name in known)}; write a brace itself twice."
        ) from error


# --- in the picture --------------------------------------------------------------------------------------------------


def line_width(size: tuple[int, int]) -> int:
    """Width of drawn lines in pixels, for a picture of `size`."""
    return max(2, round(max(size) * _LINE_SHARE))


def box_mask(box: Box, shape: tuple[int, ...]) -> np.ndarray:
    """bool (H, W), True inside a box."""
    filled = np.zeros(shape, dtype=bool)
    filled[box[1] : box[3], box[0] : box[2]] = True
    return filled


def crop_window(box: Box, size: tuple[int, int], margin: float, min_side: int) -> Box:
    """The box of a crop in a picture of `size` (width, height): grown by `margin`, then to `min_side`, kept inside."""
    ends = []
    for start, stop, length in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        extra = margin * (stop - start)
        low, high = max(0, math.floor(start - extra)), min(length, math.ceil(stop + extra))
        missing = min(min_side, length) - (high - low)
        if missing > 0:
            low = min(max(0, low - missing // 2), length - (high - low) - missing)
            high = low + min(min_side, length)
        ends.append((low, high))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def pad_to_square(marked: Marked, color: Color) -> Marked:
    """Put the picture in the middle of a square of `color`, as LLaVA's training did; box and mask move with it."""
    width, height = marked.image.size
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    square = Image.new("RGB", (side, side), color)
    square.paste(marked.image, (left, top))
    mask, box = marked.mask, marked.box_xyxy
    if mask is not None:
        mask = np.pad(mask, ((top, side - height - top), (left, side - width - left)))
    if box is not None:
        box = (box[0] + left, box[1] + top, box[2] + left, box[3] + top)
    return Marked(square, mask, box)


def _draw_box(image: Image.Image, box: Box, color: Color) -> Image.Image:
    width = line_width(image.size)
    outer = (box[0] - width, box[1] - width, box[2] + width, box[3] + width)
    shape = (image.height, image.width)
    region = box_mask(box, shape)
    clipped = (max(0, outer[0]), max(0, outer[1]), outer[2], outer[3])
    return _draw_line(image, region, box_mask(clipped, shape) & ~region, color, width)


def _draw_contour(image: Image.Image, mask: np.ndarray, color: Color) -> Image.Image:
    width = line_width(image.size)
    return _draw_line(image, mask, grow(mask, width) & ~mask, color, width)


def _draw_line(image: Image.Image, region: np.ndarray, line: np.ndarray, color: Color, width: int) -> Image.Image:
    """Draw a line around a region, outside of it, with an edge that sets it off from a background of its colour."""
    frame = np.ones_like(region)
    frame[width:-width, width:-width] = False
    inside = region & frame
    # Where the region meets the picture's border the line runs inside, unless that would hide the region.
    if 2 * inside.sum() <= region.sum():
        line = line | inside
    pixels = np.array(image)
    pixels[grow(line, _edge_width(width)) & ~line & ~region] = _edge_color(color)
    pixels[line] = color
    return Image.fromarray(pixels)


def _overlay(image: Image.Image, mask: np.ndarray, color: Color, opacity: float) -> Image.Image:
    """Tint a region; the thin edge shows it where it has the tint's colour already."""
    pixels = np.array(image)
    tinted = (1 - opacity) * pixels[mask] + opacity * np.array(color, dtype=np.float64)
    pixels[mask] = np.rint(tinted).astype(np.uint8)
    pixels[grow(mask, _edge_width(line_width(image.size))) & ~mask] = _edge_color(color)
    return Image.fromarray(pixels)


def _edge_width(width: int) -> int:
    return max(1, round(width / 3))


def _edge_color(color: Color) -> Color:
    red, green, blue = (value / 255 for value in color)
    return _INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > _LIGHT else _WHITE
