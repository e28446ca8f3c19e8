"""Pictures for people: regions outlined and numbered, with their captions.

Legend: H W height and width of the picture in pixels, R regions. Points are (x, y).
"""

import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby, pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Caption = str | Mapping[str, str]

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
_WHITE, _INK, _GREY = (255, 255, 255), (32, 33, 36), (105, 110, 118)

MIN_SIDE = 720  # pixels, the longer one; smaller pictures are enlarged, for fine lines and captions that fit
# Of the longer side. The largest type with which the captions take no more room than the picture, else the smallest.
_FONT_SHARES = (0.021, 0.017, 0.014)
_COLUMN = 22  # the narrowest column of captions, in type sizes
_TALL = 1.2  # pictures that are higher than wide by more have their captions beside them
_BADGE_SHARE = 0.3  # of the shorter side: the type of numbers in a picture is at most that large
_STROKE_SHARE, _HALO_SHARE = 0.0035, 0.0018  # of the longer side
_FILL_OPACITY = 0.16  # little, because the captions speak of colours
_DEPTH_GRID = 96  # a region is looked at this coarsely to find a place for its number

_RINGS, _RING_COST = 24, 0.05  # how far a number may move away, in its radii; what each step costs in hidden regions

# Tried in this order where Pillow's own font, which is Latin only, lacks a character.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "WenQuanYi Zen Hei.ttf",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "NotoSansArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "segoeui.ttf",
    "msyh.ttc",
    "malgun.ttf",
    "Nirmala.ttf",
)


def draw_regions(
    image: Image.Image,
    masks: Sequence[np.ndarray],
    captions: Sequence[Caption] | None = None,
    *,
    colors: Sequence[Color] | None = None,
    line_width: float = 1.0,
) -> Image.Image:
    """Outline regions on a picture, number them if there are several, and write the captions below or beside it.

    Args:
        image: a picture of any mode, (H, W); it is not changed.
        masks: R arrays bool (H, W), True inside the region.
        captions: R texts of one or more lines, or R answers by question; `None` leaves the space for them out.
        colors: RGB colours, used in turn; `None` means `COLORS`.
        line_width: of outlines, in the usual widths; more for pictures that are shown small.

    Returns:
        An RGB picture: `image`, or a multiple of it where its longer side is below `MIN_SIDE`, in the upper left corner
        of a sheet with the captions.

    Raises:
        ValueError: If a mask does not have the picture's size, or if there is not one caption per mask.
    """
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
    for index in largest_first:
        _outline(picture, masks[index], region_colors[index], line_width)
    if len(masks) > 1:
        font_size = round(min(max(picture.size) * _FONT_SHARES[0], min(picture.size) * _BADGE_SHARE))
        _number_regions(picture, masks, region_colors, largest_first, max(8, font_size))
    return _with_captions(picture, captions, region_colors) if captions else picture


# --- regions ---------------------------------------------------------------------------------------------------------


def _outline(picture: Image.Image, mask: np.ndarray, color: Color, line_width: float) -> None:
    """Tint a region and draw a line around it, outside of it, so that even a region of one pixel stays visible."""
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
    if not whole:
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


# --- numbers ---------------------------------------------------------------------------------------------------------


def _number_regions(
    picture: Image.Image, masks: Sequence[np.ndarray], colors: Sequence[Color], largest_first: list[int], font_size: int
) -> None:
    """Put each region's number where the region is widest and no smaller region covers it, or beside a small region.

    Numbers do not cover each other as long as the picture has room; one that had to move away has a line to its region.
    """
    radius = round(font_size * 0.8)
    taken: list[tuple[int, int]] = []
    leaders: list[tuple[tuple[int, int], tuple[int, int], Color]] = []
    covered = np.zeros(masks[0].shape, dtype=bool)
    # How much of its region each pixel is: hiding all of a small region counts as 1, a bit of a large one as nothing.
    weights = np.zeros(masks[0].shape, dtype=np.float32)
    for mask in masks:
        if mask.any() and not mask.all():
            weights[mask] += 1 / mask.sum()
    for index in reversed(largest_first):
        for free in (masks[index] & ~covered, masks[index].copy()):
            for point in taken:
                _erase_disc(free, point, 2 * radius)
            has_room = free.any()
            if has_room:
                break
        covered |= masks[index]
        middle, depth = _deepest(free if has_room else masks[index])
        center = middle
        if depth < radius or not has_room:
            near = round(depth + 1.4 * radius)
            center = _beside(weights, middle, near, radius, taken)
            if math.dist(center, middle) > 1.5 * near:
                leaders.append((middle, center, colors[index]))
        taken.append(center)
    draw = ImageDraw.Draw(picture)
    width = max(2, radius // 6)
    for middle, center, _ in leaders:
        draw.line((*middle, *center), fill=_WHITE, width=2 * width)
    for middle, center, color in leaders:
        draw.line((*middle, *center), fill=color, width=width)
    for index, center in zip(reversed(largest_first), taken, strict=True):
        _badge(picture, center, index + 1, colors[index], font_size)


def _erase_disc(mask: np.ndarray, center: tuple[int, int], radius: int) -> None:
    x, y = center
    top, left = max(0, y - radius), max(0, x - radius)
    window = mask[top : y + radius + 1, left : x + radius + 1]
    rows, columns = np.ogrid[top : top + window.shape[0], left : left + window.shape[1]]
    window[(columns - x) ** 2 + (rows - y) ** 2 <= radius * radius] = False


def _deepest(mask: np.ndarray) -> tuple[tuple[int, int], float]:
    """The point of a non-empty mask that is farthest from its edge, and how far that is in pixels, both roughly."""
    top, bottom, left, right = _bounds(mask, 0)
    scale = max(1.0, max(bottom - top, right - left) / _DEPTH_GRID)
    size = (max(1, round((right - left) / scale)), max(1, round((bottom - top) / scale)))
    crop = Image.fromarray(mask[top:bottom, left:right].astype(np.uint8) * 255)
    coverage = np.asarray(crop.resize(size, Image.Resampling.BOX))
    layer = np.pad(coverage >= min(128, int(coverage.max())), 1)
    depth = np.zeros(layer.shape)
    while layer.any():
        depth += layer
        inner = layer[1:-1, 1:-1] & layer[:-2, 1:-1] & layer[2:, 1:-1] & layer[1:-1, :-2] & layer[1:-1, 2:]
        layer = np.pad(inner, 1)
    ys, xs = np.nonzero(depth == depth.max())
    # Among equals, the one nearest to their middle: a bar gets its number in the centre, not at one end.
    nearest = int(np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2))
    x = left + (xs[nearest] - 0.5) * (right - left) / size[0]
    y = top + (ys[nearest] - 0.5) * (bottom - top) / size[1]
    return (int(x), int(y)), float(depth.max() - 0.5) * scale


def _beside(
    weights: np.ndarray, center: tuple[int, int], distance: int, radius: int, taken: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """A place for the number of a region that is too small to hold it: near it, free of other numbers, hiding little.

    Args:
        weights: (H, W), what hiding each pixel costs.
        center: of the region.
        distance: from it, in pixels, to the nearest places.
        radius: of a number, in pixels.
        taken: where numbers are already.
    """
    height, width = weights.shape
    best, lowest = center, (math.inf, math.inf)
    for ring in range(_RINGS):
        reach = distance + ring * radius
        count = 8 * (1 + ring // 2)
        for step in range(count):
            # From the top clockwise, the four main directions before the slanted ones.
            angle = 2 * math.pi * ((step * 2) % count + (step * 2) // count) / count
            x = min(max(center[0] + round(reach * math.sin(angle)), radius), max(radius, width - 1 - radius))
            y = min(max(center[1] - round(reach * math.cos(angle)), radius), max(radius, height - 1 - radius))
            numbers = sum(math.dist((x, y), other) < 2 * radius + 1 for other in taken)
            hidden = float(weights[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1].sum())
            cost = (numbers, hidden + ring * _RING_COST)
            if cost < lowest:
                best, lowest = (x, y), cost
        if lowest[0] == 0 and lowest[1] <= (ring + 1) * _RING_COST:
            break  # places farther away cannot be better
    return best


def _badge(picture: Image.Image, center: tuple[int, int], number: int, color: Color, font_size: int) -> None:
    """A disc with a white rim and a number; drawn larger and scaled down, because PIL's own edges are jagged."""
    fine = 4
    radius = round(font_size * 0.8)
    size = (2 * radius + 1) * fine
    rim = max(2, radius // 7) * fine
    disc, inside = Image.new("RGB", (size, size), _WHITE), Image.new("L", (size, size))
    ImageDraw.Draw(inside).ellipse((0, 0, size - 1, size - 1), fill=255)
    draw = ImageDraw.Draw(disc)
    draw.ellipse((rim, rim, size - 1 - rim, size - 1 - rim), fill=color)
    text, font = str(number), ImageFont.load_default(size=(font_size if number < 100 else font_size * 0.7) * fine)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    draw.text(((size - left - right) / 2, (size - top - bottom) / 2), text, fill=_WHITE, font=font)
    small = (2 * radius + 1, 2 * radius + 1)
    corner = (center[0] - radius, center[1] - radius)
    picture.paste(disc.resize(small, Image.Resampling.BOX), corner, inside.resize(small, Image.Resampling.BOX))


# --- captions --------------------------------------------------------------------------------------------------------


class _Entry:
    """One paragraph of a caption, in lines that fit a column; those after a question's first are indented."""

    def __init__(self, region: int, question: str, answer: str, size: int, width: float):
        self.region, self.grey, self.indent = (
            region,
            len(" ".join(_drawable(question).split())),
            size if question else 0,
        )
        self.lines = _wrap(f"{question} {answer}", size, width - self.indent)


def _with_captions(picture: Image.Image, captions: Sequence[Caption], colors: Sequence[Color]) -> Image.Image:
    """The picture on a white sheet with the captions in columns: below it, or beside one that is tall."""
    longer = max(picture.size)
    is_tall = picture.height > _TALL * picture.width
    for share in _FONT_SHARES:
        size = round(longer * share)
        # Beside the picture there is room as wide as the picture is high.
        room = (longer if is_tall else picture.width) - size
        for count in range(1, max(1, room // (_COLUMN * size)) + 1):
            columns = _columns(captions, size, room // count - size, count)
            height = max(_height(column, size) for column in columns) + 2 * size
            if height <= picture.height:
                break
        if height <= picture.height:
            break
    if is_tall:
        sheet_size, left, top = (picture.width + room + size, max(picture.height, height)), picture.width, 0
    else:
        sheet_size, left, top = (picture.width, picture.height + height), 0, picture.height
    sheet = Image.new("RGB", sheet_size, _WHITE)
    sheet.paste(picture, (0, 0))
    for number, column in enumerate(columns):
        _write_column(sheet, column, left + size + number * (room // count), top + size, size, colors, len(captions))
    return sheet


def _columns(captions: Sequence[Caption], size: int, width: int, count: int) -> list[list[_Entry]]:
    """Paragraphs in reading order, in at most `count` columns of about the same height."""
    text_width = width - round(_INDENT * size)
    entries = [
        _Entry(region, question, answer, size, text_width)
        for region, caption in enumerate(captions)
        for question, answer in (
            [("", line) for line in caption.split("\n")] if isinstance(caption, str) else caption.items()
        )
    ]
    limit = max((_height([entry], size) for entry in entries), default=0)
    while True:
        columns: list[list[_Entry]] = [[]]
        for entry in entries:
            if columns[-1] and _height([*columns[-1], entry], size) > limit:
                columns.append([])
            columns[-1].append(entry)
        if len(columns) <= count:
            return columns
        limit += size


_INDENT, _LEADING, _GAP = 2.2, 1.4, 0.7  # in type sizes: room for the number; lines; between regions


def _height(column: Sequence[_Entry], size: int) -> int:
    lines = sum(len(entry.lines) for entry in column)
    regions = sum(before.region != entry.region for before, entry in pairwise(column))
    return lines * round(_LEADING * size) + regions * round(_GAP * size)


def _write_column(
    sheet: Image.Image, column: Sequence[_Entry], x: int, y: int, size: int, colors: Sequence[Color], regions: int
) -> None:
    draw = ImageDraw.Draw(sheet)
    line_height = round(_LEADING * size)
    for region, entries in groupby(column, lambda entry: entry.region):
        middle = (x + round(size * 0.8), y + line_height // 2)
        if regions > 1:
            _badge(sheet, middle, region + 1, colors[region], size)
        else:
            half = size // 2
            draw.rectangle(
                (middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half), fill=colors[region]
            )
        for entry in entries:
            grey = entry.grey
            for number, line in enumerate(entry.lines):
                at = x + _INDENT * size + (entry.indent if number else 0)
                for text, color in ((line[:grey], _GREY), (line[grey:], _INK)):
                    for font, run in _runs(text, size):
                        draw.text((at, y + line_height / 2), run, fill=color, font=font, anchor="lm")
                        at += font.getlength(run)
                grey = max(0, grey - len(line) - 1)
                y += line_height
        y += round(_GAP * size)


def _wrap(text: str, size: int, width: float) -> list[str]:
    """Break into lines at spaces, and within a word that is wider than a line (or a script without spaces)."""
    lines, line = [], ""
    for word in re.findall(r"\S+", _drawable(text)):
        joined = f"{line} {word}" if line else word
        if _length(joined, size) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while (fitting := _fitting(word, size, width)) < len(word):
            lines.append(word[:fitting])
            word = word[fitting:]
        line = word
    return [*lines, line]


def _fitting(word: str, size: int, width: float) -> int:
    """How many of a word's first characters fit a line, one at least; in steps that a very long word does not slow."""
    most = 1
    while most < len(word) and _length(word[: 2 * most], size) <= width:
        most *= 2
    candidates = range(most, min(2 * most, len(word)) + 1)
    return max(1, most - 1 + bisect_right(candidates, width, key=lambda count: _length(word[:count], size)))


def _length(text: str, size: int) -> float:
    return sum(font.getlength(run) for font, run in _runs(text, size))


def _runs(text: str, size: int) -> Iterator[tuple[Font, str]]:
    """Pieces of a line with their fonts. Spaces and marks stay with what is before them."""
    fonts: list[Font] = []
    for character in text:
        goes_along = fonts and unicodedata.category(character)[0] in "CZM"
        fonts.append(fonts[-1] if goes_along else _font_for(character, size) or _fonts(size)[0])
    for _, pairs in groupby(zip(fonts, text), lambda pair: id(pair[0])):
        characters = list(pairs)
        yield characters[0][0], "".join(character for _, character in characters)


def _drawable(text: str) -> str:
    """The text, where no font has a character with the plain letter under its accent, else its code point.

    Characters without a shape, such as zero-width ones, are left out: most fonts have a box for them.
    """
    drawn = []
    for character in unicodedata.normalize("NFC", text):
        kind = unicodedata.category(character)
        if character.isspace():
            drawn.append(" ")
        elif kind == "Cs":
            drawn.append("\ufffd")
        elif kind in ("Cc", "Cf") or "\ufe00" <= character <= "\ufe0f":  # the last are variation selectors
            continue
        elif _font_for(character, 16):
            drawn.append(character)
        else:
            plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
            drawn.append(plain or character.encode("ascii", "backslashreplace").decode())
    return "".join(drawn)


@lru_cache(maxsize=8)
def _fonts(size: int) -> list[Font]:
    """Pillow's own font, then those of `_SYSTEM_FONTS` that are there."""
    found: list[Font] = [ImageFont.load_default(size=size)]
    for name in _SYSTEM_FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return found


@lru_cache(maxsize=8192)
def _font_for(character: str, size: int) -> Font | None:
    """The first font that has the character."""
    return next((font for font in _fonts(size) if _has_glyph(font, character)), None)


def _has_glyph(font: Font, character: str) -> bool:
    """Fonts draw the same box for every character that they lack; U+10FFFF is never assigned."""
    try:
        return bytes(font.getmask(character)) != bytes(font.getmask("\U0010ffff"))
    except UnicodeError:  # Pillow without FreeType has a Latin-1 bitmap font only
        return False
