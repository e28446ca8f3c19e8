"""The sheet with captions below or beside a picture: lines, columns, and a font that has their characters."""

import unicodedata
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import groupby, pairwise
from typing import cast

from PIL import Image, ImageDraw, ImageFont

from .numbers import Color, badge

Caption = str | Mapping[str, str]

# Of the longer side. The largest type with which the captions take no more room than the picture, else the smallest.
FONT_SHARES = (0.021, 0.017, 0.014)
_COLUMN = 22  # the narrowest column of captions, in type sizes
_TALL = 1.2  # pictures that are higher than wide by more have their captions beside them
_INDENT, _LEADING, _GAP = 2.2, 1.4, 0.7  # in type sizes: room for the number; lines; between regions
_WHITE, _INK, _GREY = (255, 255, 255), (32, 33, 36), (105, 110, 118)

# Pillow's own font has little more than ASCII. These have more, on the systems where they are.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "NotoSansArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "segoeui.ttf",
    "msyh.ttc",
    "malgun.ttf",
    "Nirmala.ttf",
)


class _Paragraph:
    """A paragraph of a caption, in lines that fit a column; those after a question's first are indented."""

    def __init__(self, region: int, question: str, answer: str, font: ImageFont.FreeTypeFont, width: float):
        self.region = region
        self.grey = len(question)  # characters that are not the answer
        self.indent = font.size if question else 0
        self.lines = wrap(f"{question} {answer}", font, width - self.indent)


def with_captions(
    picture: Image.Image, captions: Sequence[Caption], colors: Sequence[Color], numbers: Sequence[int] | None = None
) -> Image.Image:
    """The picture on a white sheet with the captions in columns: below it, or beside one that is tall."""
    longer = max(picture.size)
    is_tall = picture.height > _TALL * picture.width
    pairs = [
        (region, question, answer)
        for region, caption in enumerate(captions)
        for question, answer in (
            [("", line) for line in caption.split("\n")] if isinstance(caption, str) else caption.items()
        )
    ]
    chosen = choose_font("".join(question + answer for _, question, answer in pairs))
    texts = [(region, drawable(question, chosen), drawable(answer, chosen)) for region, question, answer in pairs]
    for share in FONT_SHARES:
        size = round(longer * share)
        font = chosen.font_variant(size=size)
        # Beside the picture there is room as wide as the picture is high.
        room = (longer if is_tall else picture.width) - size
        for count in range(1, max(1, room // (_COLUMN * size)) + 1):
            columns = _columns(texts, font, room // count - size, count)
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
    shown = numbers or (range(1, len(captions) + 1) if len(captions) > 1 else ())
    for number, column in enumerate(columns):
        x = left + size + number * (room // count)
        _write_column(sheet, column, (x, top + size), font, colors, shown)
    return sheet


def _columns(
    texts: Sequence[tuple[int, str, str]], font: ImageFont.FreeTypeFont, width: int, count: int
) -> list[list[_Paragraph]]:
    """Paragraphs in reading order, in at most `count` columns of about the same height."""
    size = round(font.size)
    text_width = width - round(_INDENT * size)
    paragraphs = [_Paragraph(region, question, answer, font, text_width) for region, question, answer in texts]
    limit = max((_height([paragraph], size) for paragraph in paragraphs), default=0)
    while True:
        columns: list[list[_Paragraph]] = [[]]
        for paragraph in paragraphs:
            if columns[-1] and _height([*columns[-1], paragraph], size) > limit:
                columns.append([])
            columns[-1].append(paragraph)
        if len(columns) <= count:
            return columns
        limit += size


def _height(column: Sequence[_Paragraph], size: int) -> int:
    lines = sum(len(paragraph.lines) for paragraph in column)
    regions = sum(before.region != after.region for before, after in pairwise(column))
    return lines * round(_LEADING * size) + regions * round(_GAP * size)


def _write_column(
    sheet: Image.Image,
    column: Sequence[_Paragraph],
    corner: tuple[int, int],
    font: ImageFont.FreeTypeFont,
    colors: Sequence[Color],
    numbers: Sequence[int],
) -> None:
    draw = ImageDraw.Draw(sheet)
    (x, y), size = corner, round(font.size)
    line_height = round(_LEADING * size)
    for region, paragraphs in groupby(column, lambda paragraph: paragraph.region):
        middle = (x + round(size * 0.8), y + line_height // 2)
        if numbers:
            badge(sheet, middle, numbers[region], colors[region], size)
        else:
            half = size // 2
            square = (middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half)
            draw.rectangle(square, fill=colors[region])
        for paragraph in paragraphs:
            grey = paragraph.grey
            for number, line in enumerate(paragraph.lines):
                at = x + _INDENT * size + (paragraph.indent if number else 0)
                for text, color in ((line[:grey], _GREY), (line[grey:], _INK)):
                    draw.text((at, y + line_height / 2), text, fill=color, font=font, anchor="lm")
                    at += font.getlength(text)
                grey = max(0, grey - len(line) - 1)
                y += line_height
        y += round(_GAP * size)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break into lines at spaces, and within a word that is wider than a line (or a script without spaces)."""
    lines, line = [], ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while (fitting := _fitting(word, font, width)) < len(word):
            lines.append(word[:fitting])
            word = word[fitting:]
        line = word
    return [*lines, line]


def _fitting(word: str, font: ImageFont.FreeTypeFont, width: float) -> int:
    """How many of a word's first characters fit a line, one at least; in steps that a very long word does not slow."""
    most = 1
    while most < len(word) and font.getlength(word[: 2 * most]) <= width:
        most *= 2
    candidates = range(most, min(2 * most, len(word)) + 1)
    return max(1, most - 1 + bisect_right(candidates, width, key=lambda count: font.getlength(word[:count])))


# --- fonts -----------------------------------------------------------------------------------------------------------


def choose_font(text: str) -> ImageFont.FreeTypeFont:
    """Pillow's own font, or the first of the system's that has the most of the characters that are to be drawn."""
    characters = {character for character in unicodedata.normalize("NFC", text) if character.isprintable()}
    return min(_fonts(), key=lambda font: sum(not _has_glyph(font, character) for character in characters))


@cache
def _fonts() -> list[ImageFont.FreeTypeFont]:
    found = [cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=16))]  # a bitmap font only without a size
    for name in _SYSTEM_FONTS:
        try:
            found.append(ImageFont.truetype(name, 16))
        except OSError:
            continue
    return found


@lru_cache(maxsize=8192)
def _has_glyph(font: ImageFont.FreeTypeFont, character: str) -> bool:
    """Fonts draw the same box for every character that they lack; U+10FFFF is never assigned."""
    return bytes(font.getmask(character)) != bytes(font.getmask("\U0010ffff"))


def drawable(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text on one line; for what the font lacks, the plain letter under its accent, else its code point.

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
        elif _has_glyph(font, character):
            drawn.append(character)
        else:
            plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
            drawn.append(plain or character.encode("ascii", "backslashreplace").decode())
    return " ".join("".join(drawn).split())
