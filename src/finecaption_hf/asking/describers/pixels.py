"""What pixels and geometry alone say of a region: an answer without weights, and the floor for models that have some.

Each answer is measured on the picture and holds of any region; of all other questions it says that it cannot know.

Legend: H W pixels of the picture, h w pixels of what is measured: the picture at no more than 1024 px, or a region's
box in it.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ...masks_finecaption import RegionMask, box_around
from ...prompts_finecaption import (
    ATTRIBUTES,
    TASKS,
    BranchAnswer,
    BranchRequest,
    BranchUpdate,
    Question,
    find_question,
    normalise_name,
)
from .color_names import COLOR_NAMES, name_pixels
from .outlines import Outline, read_outline

UNKNOWN = "Pixels alone do not tell."

VERSION = 1  # of what decides the texts and is no constant below
MAX_SIDE = 1024  # px of the picture in which colours and patterns are measured
BLUR = 2  # px to each side whose mean is named: stripes of two shades of orange are orange, not orange and brown
MIN_SHARE, ONE_COLOR = 0.05, 0.9  # of a region: of a colour that is named, and of one that is named alone
MIN_AREA = 64  # px of a region whose outline and pattern can be told
FIT, ROUGH_FIT = 0.9, 0.85  # intersection over union with a figure
LONGER = 1.3  # ratio of a box's sides that is told
STEP = 5.0  # of L* from a pixel to the next, which counts as a change
PLAIN, PATTERNED = 0.1, 0.35  # share of pixels with a change, below and above
ONE_WAY = 0.6  # coherence of the changes' directions, 0 to 1, of stripes
LIGHTNESS = ((80.0, "very light"), (60.0, "light"), (40.0, "of medium lightness"), (20.0, "dark"))  # L* from
BESIDE = 8.0  # of L*, which makes a region lighter or darker than the rest


@dataclass(frozen=True)
class Seen:
    """What was measured of a region.

    Attributes:
        is_whole: whether it is the whole picture.
        image_size: (H, W).
        box_xyxy: in pixels of the picture, right and lower end exclusive.
        share: of the picture, 0 to 1.
        middle: (x, y) of the region's middle, as shares of the picture's sides.
        colors: name -> share of the region, the largest first; those of at least `MIN_SHARE`.
        lightness: mean L*, 0 to 100.
        beside: mean L* of the rest of the picture less than this; `None` where there is no rest.
        changes: share of its pixels that differ in lightness from the next; `None` where it is too small.
        stripes: "upright", "level" or "slanting", where changes go one way.
        outline: see `read_outline`; `None` where it is too small.
    """

    is_whole: bool
    image_size: tuple[int, int]
    box_xyxy: tuple[int, int, int, int]
    share: float
    middle: tuple[float, float]
    colors: Mapping[str, float]
    lightness: float
    beside: float | None
    changes: float | None
    stripes: str | None
    outline: Outline | None


class PixelsDescriber:
    """A `Describer` without weights: colours, size, place, outline, lightness and pattern.

    It answers "Color", "Shape", "Materials/Texture", "Relative Location with Other Objects" and the sentences about a
    region or the whole picture; in own words also size, place, lightness, such as "How large is it?". The answer to all
    else is `UNKNOWN`.
    """

    name = "pixels"
    independent = True
    questions: Mapping[str, str] = {**TASKS, **ATTRIBUTES}
    settings: Mapping[str, Any] = {
        "describer": "pixels",
        "version": VERSION,
        "max_side": MAX_SIDE,
        "blur": BLUR,
        "colors": [MIN_SHARE, ONE_COLOR],
        "min_area": MIN_AREA,
        "fit": [FIT, ROUGH_FIT],
        "longer": LONGER,
        "pattern": [STEP, PLAIN, PATTERNED, ONE_WAY],
        "lightness": [*(bound for bound, _ in LIGHTNESS), BESIDE],
    }

    def prepare(self, picture: Image.Image, regions: Sequence[RegionMask]) -> list[Seen]:
        """See `Describer`: everything is measured here, and what is kept is small."""
        return measure(picture, regions)

    def refusal(self, question: Question) -> str | None:
        """See `Describer`: anything can be asked, once."""
        return None if isinstance(question, str) else "pixels is asked one question at a time, not several turns."

    def stream(
        self, prepared: Sequence[Any], requests: Sequence[Sequence[BranchRequest]], **options: Any
    ) -> Iterator[BranchUpdate]:
        """See `Describer`. Answers come whole, whatever their length, without log-probabilities."""
        for number, (seen, of_region) in enumerate(zip(chain.from_iterable(prepared), requests, strict=True)):
            for place, request in enumerate(of_region):
                assert isinstance(request.question, str)  # see `refusal`
                yield BranchUpdate(
                    number, place, BranchAnswer(answer(seen, request.question, request.name), finish_reason="end")
                )


# --- what is measured -------------------------------------------------------------------------------------------------


def measure(picture: Image.Image, regions: Sequence[RegionMask]) -> list[Seen]:
    """What pixels and geometry say of each region.

    Args:
        picture: RGB, (H, W).
        regions: of shape (H, W).
    """
    factor = -(-max(picture.size) // MAX_SIDE)
    small = picture.reduce(factor) if factor > 1 else picture
    rgb = np.asarray(small)
    sharp, blurred = name_pixels(rgb), name_pixels(np.asarray(small.filter(ImageFilter.BoxBlur(BLUR))))
    lightness = _lightness(rgb)
    total = float(lightness.sum())
    return [_measure(region, factor, sharp, blurred, lightness, total) for region in regions]


def _measure(
    region: RegionMask, factor: int, sharp: np.ndarray, blurred: np.ndarray, lightness: np.ndarray, total: float
) -> Seen:
    height, width = region.pixels.shape
    pixels = region.pixels if factor == 1 else _reduce(region.pixels, factor)
    left, top, right, bottom = box_around(pixels)
    part = np.s_[top:bottom, left:right]
    pixels, lightness_in = pixels[part], lightness[part]
    area, rest = int(pixels.sum()), lightness.size - int(pixels.sum())
    inner = pixels if region.is_whole else _shrink(pixels, BLUR)
    # Means of what is near an edge would be mixed with what is beside the region.
    named = np.where(inner, blurred[part], sharp[part])[pixels]
    counts = np.bincount(named, minlength=len(COLOR_NAMES))
    order = np.argsort(-counts, kind="stable")
    shares = {COLOR_NAMES[index]: float(counts[index] / area) for index in order}
    light = float(lightness_in[pixels].sum(dtype=np.float64))
    changes, stripes = _pattern(lightness_in, inner)
    rows, columns = pixels.sum(axis=1), pixels.sum(axis=0)
    middle_x = (left + float(columns @ np.arange(len(columns))) / area + 0.5) / lightness.shape[1]
    middle_y = (top + float(rows @ np.arange(len(rows))) / area + 0.5) / lightness.shape[0]
    return Seen(
        is_whole=region.is_whole,
        image_size=(height, width),
        box_xyxy=region.box_xyxy,
        share=region.area / (height * width),
        middle=(middle_x, middle_y),
        colors={name: share for name, share in shares.items() if share >= MIN_SHARE},
        lightness=light / area,
        beside=None if rest == 0 else light / area - (total - light) / rest,
        changes=changes,
        stripes=stripes,
        outline=read_outline(pixels) if area >= MIN_AREA else None,
    )


def _lightness(rgb: np.ndarray) -> np.ndarray:
    """L* of each pixel, float32 (h, w)."""
    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4).astype(np.float32)
    light = sum(
        np.float32(weight) * linear[rgb[..., channel]] for channel, weight in enumerate((0.2127, 0.7152, 0.0722))
    )
    return np.maximum(116 * np.cbrt(light) - 16, np.float32(903.3) * light * (light < 0.008856))


def _reduce(region: np.ndarray, factor: int) -> np.ndarray:
    """A region at a lower resolution; where that loses it, all that it touches."""
    shares = np.asarray(Image.fromarray(region.astype(np.uint8) * 255).reduce(factor))
    return shares >= 128 if (shares >= 128).any() else shares == shares.max()


def _shrink(region: np.ndarray, radius: int) -> np.ndarray:
    """Without the pixels that are within a square of `radius` of its edge; the border of the array is one."""
    padded = np.pad(region, radius)
    height, width = region.shape
    rows = padded[:height].copy()
    for shift in range(1, 2 * radius + 1):
        rows &= padded[shift : shift + height]
    found = rows[:, :width].copy()
    for shift in range(1, 2 * radius + 1):
        found &= rows[:, shift : shift + width]
    return found


def _pattern(lightness: np.ndarray, region: np.ndarray) -> tuple[float | None, str | None]:
    """Share of the region's pixels that differ in lightness from the next, and how the lines run if they run one way.

    The structure tensor (Bigün & Granlund 1987) has two eigenvalues; coherence is their difference over their sum.
    """
    inside = region[:-1, :-1] & region[1:, :-1] & region[:-1, 1:]
    if int(inside.sum()) < MIN_AREA:
        return None, None
    along_x = (lightness[:-1, 1:] - lightness[:-1, :-1])[inside]
    along_y = (lightness[1:, :-1] - lightness[:-1, :-1])[inside]
    changes = float((np.maximum(np.abs(along_x), np.abs(along_y)) > STEP).mean())
    xx, yy, xy = (float((a * b).sum(dtype=np.float64)) for a, b in ((along_x,) * 2, (along_y,) * 2, (along_x, along_y)))
    if changes <= PLAIN or np.hypot(xx - yy, 2 * xy) < ONE_WAY * (xx + yy):
        return changes, None
    across = abs(np.degrees(np.arctan2(2 * xy, xx - yy)) / 2)  # of the changes: 0 from left to right, 90 downwards
    return changes, "upright" if across < 22.5 else "level" if across > 67.5 else "slanting"


# --- what is said -----------------------------------------------------------------------------------------------------


def answer(seen: Seen, question: str, name: str | None = None) -> str:
    """The answer to a question; `UNKNOWN` where pixels do not tell.

    Args:
        question: an instruction that stands for a name, or own words.
        name: of the task or attribute, where it has one.
    """
    known = next((it for it, text in PixelsDescriber.questions.items() if text == question), name or question)
    if find_question(known, PixelsDescriber.questions) is not None:
        say = _BY_NAME.get(normalise_name(known))
    else:
        say = _by_words(question, seen.is_whole)
    if say is None:
        return UNKNOWN
    text = say(seen)
    return f"{text[0].upper()}{text[1:]}."


def _by_words(question: str, is_whole: bool) -> Callable[[Seen], str] | None:
    words = set(re.findall(r"\w+", question.lower())).difference(_SMALL_WORDS.split())
    if is_whole:
        words -= {"image", "photo", "picture"}
    for topic, allowed, say in _BY_WORDS:
        if words & {*topic.split()} and words <= {*topic.split(), *allowed.split()}:
            return say
    return None


def _dense(seen: Seen) -> str:
    rest = f"{_lightness_words(seen)} and {_pattern_words(seen)}"
    colors = _colors(seen)
    listed = "" if colors in seen.colors else f". Its colors: {colors}"
    if seen.is_whole:
        return f"{_sentence(seen)}. It is {rest}{listed}"
    return f"{_sentence(seen)}. It covers {_percent(seen.share)} of the picture, is {rest}{listed}"


def _sentence(seen: Seen) -> str:
    if seen.is_whole:
        height, width = seen.image_size
        return f"{_article(_color_words(seen))} picture, {width} pixels wide and {height} high"
    return f"{_article(_color_words(seen))} region, {_outline_words(seen)}, {_place(seen)}"


def _colors(seen: Seen) -> str:
    names = list(seen.colors)
    if seen.colors[names[0]] >= ONE_COLOR:
        return names[0]
    listed = [f"{name} ({5 * round(20 * share)} %)" for name, share in seen.colors.items()]  # blurred edges: no finer
    mostly = "mostly " if seen.colors[names[0]] > 0.5 else ""
    return f"{mostly}{_listed(listed)}"


def _color_words(seen: Seen) -> str:
    names = list(seen.colors)
    if seen.colors[names[0]] >= ONE_COLOR:
        return names[0]
    return f"mostly {names[0]}" if seen.colors[names[0]] > 0.5 else _listed(names[:3])


def _shape(seen: Seen) -> str:
    x0, y0, x1, y1 = seen.box_xyxy
    wide, high = x1 - x0, y1 - y0
    longer, way = max(wide, high) / min(wide, high), ("wide as high" if wide > high else "high as wide")
    return f"{_outline_words(seen)}{f', {longer:.1f} times as {way}' if longer >= LONGER else ''}"


def _outline_words(seen: Seen) -> str:
    if seen.outline is None:
        return "too small for its outline to be told"
    if seen.outline.fit < ROUGH_FIT:
        return "with an irregular outline"
    return f"{'' if seen.outline.fit >= FIT else 'roughly '}shaped like {_article(seen.outline.name)}"


def _material(seen: Seen) -> str:
    return f"{_pattern_words(seen)}; the material pixels alone do not tell"


def _pattern_words(seen: Seen) -> str:
    if seen.changes is None:
        return "too small or thin for a pattern to be told"
    if seen.changes <= PLAIN:
        return "plain"
    lines = "" if seen.stripes is None else f", with mostly {seen.stripes} lines"
    return f"{'' if seen.changes >= PATTERNED else 'partly '}patterned{lines}"


def _lightness_words(seen: Seen) -> str:
    word = next((word for bound, word in LIGHTNESS if seen.lightness >= bound), "very dark")
    than = ""
    if seen.beside is not None and abs(seen.beside) >= BESIDE:
        than = f", {'lighter' if seen.beside > 0 else 'darker'} than the rest of the picture,"
    return f"{word} (lightness {seen.lightness:.0f} of 100){than}"


def _light(seen: Seen) -> str:
    return _lightness_words(seen).rstrip(",")


def _size(seen: Seen) -> str:
    height, width = seen.image_size
    if seen.is_whole:
        return f"it is the whole picture, {width} pixels wide and {height} high"
    x0, y0, x1, y1 = seen.box_xyxy
    box = f"{_percent((x1 - x0) / width)} of the width and {_percent((y1 - y0) / height)} of the height"
    return f"it covers {_percent(seen.share)} of the picture; its box has {box}"


def _place(seen: Seen) -> str:
    if seen.is_whole:
        return "it is the whole picture"
    across, down = ((0 if share < 1 / 3 else 2 if share > 2 / 3 else 1) for share in seen.middle)
    row, column = ("upper ", "", "lower ")[down], ("left", "middle", "right")[across]
    return f"{'on' if down == 1 != across else 'in'} the {row}{column} of the picture"


def _beside(seen: Seen) -> str:
    return f"{_place(seen)}; what is around it pixels alone do not tell"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 9.5 else f"{percent:.1f} %" if percent >= 0.1 else "less than 0.1 %"


_BY_NAME: Mapping[str, Callable[[Seen], str]] = {
    "region": _sentence,
    "dense": _dense,
    "global": _dense,
    "one_sentence_description": _sentence,
    "color": _colors,
    "shape": _shape,
    "materials_texture": _material,
    "relative_location_with_other_objects": _beside,
}

# Questions in own words are answered where they have a word of a topic and, beside it, only such that are allowed there
# or small ones: "Which color is it?" but not "Which color is the hat?".
_BY_WORDS: Sequence[tuple[str, str, Callable[[Seen], str]]] = (
    ("color colors colour colours", "describe", _colors),
    ("form outline shape", "describe", _shape),
    ("area big cover covers large size small", "describe image much picture", _size),
    ("located location position where", "describe image picture", _place),
    ("bright brightness dark light lightness", "describe", _light),
    ("pattern patterned patterns plain texture", "describe", _pattern_words),
    ("caption describe description", "detail", _dense),
)
_SMALL_WORDS = (
    "a and any are at does has have how in is it its marked of or please region s that the this what which with"
)
