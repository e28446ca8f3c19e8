"""How models write a box in their text.

A box is box_xyxy: x and y of its left, top, right and bottom edges in pixels; the right and bottom ends are exclusive.
"""

from dataclasses import dataclass
from typing import Any

from ...prompts_finecaption import no_such
from ..errors import DescriberError

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class BoxFormat:
    """How a model writes a box.

    Attributes:
        template: the box as text, with `{x1}`, `{y1}`, `{x2}`, `{y2}`, or `{first}` and `{last}` for a grid's cells.
        units: `"pixels"` of the picture that is handed over; `"seen"`, pixels of the picture after the processor has
            resized it; `"unit"`, shares of width and height; `"thousandths"` of them, rounded;
            `"thousandths_down"`, rounded down; `"grid"`, the first and the last of 32 x 32 cells; `"square"`, shares of
            the square that the picture is padded to in its middle, by the model's own code.
        source: where the convention is written down.
        decimals: of shares.
    """

    template: str
    units: str
    source: str
    decimals: int = 2


_PIXELS = "[{x1}, {y1}, {x2}, {y2}]"

BOX_FORMATS: dict[str, BoxFormat] = {
    "pixels": BoxFormat(
        _PIXELS + " (x1, y1, x2, y2 in pixels; the image is {width} wide and {height} high)",
        "pixels",
        "no convention is published; the text says what the numbers are",
    ),
    "unit": BoxFormat(_PIXELS, "unit", "LLaVA-1.5's and ViP-LLaVA's instruction data"),
    "qwen2_vl": BoxFormat(
        "<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>", "thousandths", "Qwen2-VL, arXiv 2409.12191, section 2.2"
    ),
    "qwen2_5_vl": BoxFormat('{{"bbox_2d": ' + _PIXELS + "}}", "seen", "Qwen2.5-VL's cookbook on spatial understanding"),
    "qwen3_vl": BoxFormat('{{"bbox_2d": ' + _PIXELS + "}}", "thousandths", "Qwen3-VL's cookbook on 2D grounding"),
    "internvl": BoxFormat(
        "<ref>region</ref><box>[[{x1}, {y1}, {x2}, {y2}]]</box>",
        "thousandths_down",
        "InternVL's chat data format, grounding",
    ),
    "kosmos2": BoxFormat(
        "<phrase> it</phrase><object><patch_index_{first:04d}><patch_index_{last:04d}></object>",
        "grid",
        "Kosmos-2, arXiv 2306.14824, section 2",
    ),
    "llava_square": BoxFormat(
        _PIXELS, "square", "VILA, llava/eval/refcoco.py: LLaVA-1.5's data, whose pictures are padded"
    ),
    "shikra": BoxFormat(
        "[{x1:.3f},{y1:.3f},{x2:.3f},{y2:.3f}]",
        "square",
        "Shikra, mllm/dataset/process_function/box_process_function.py (PlainBoxFormatter)",
        decimals=3,
    ),
    "ferret": BoxFormat(
        _PIXELS, "thousandths_down", "Ferret, ferret/eval/model_lvis.py (VOCAB_IMAGE_W, VOCAB_IMAGE_H)"
    ),
}
"""Name -> how a box is written. `box_format` of a row of a table chooses one by name."""

CONVENTIONS: dict[str, str] = {
    "kosmos-2": "kosmos2",
    "llava": "unit",
    "llava_next": "unit",
    "llava_onevision": "unit",
    "vipllava": "unit",
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "qwen3_vl_moe": "qwen3_vl",
    "internvl": "internvl",
}
"""`config.model_type` -> name in `BOX_FORMATS`: each model's own convention. Others, such as Llama-3.2-Vision (mllama)
and GPT-4o, have none that is published and get `"pixels"`."""

_GRID = 32


def write_box(box: Box, size: tuple[int, int], box_format: str, seen: tuple[int, int] | None = None) -> str:
    """A box in a model's own convention.

    Args:
        box: in the pixels of the picture that is handed over, ends exclusive.
        size: (height, width) of that picture.
        box_format: a name of `BOX_FORMATS`.
        seen: (height, width) after the processor has resized it; needed for units `"seen"` only.

    Raises:
        DescriberError: If there is no such format, or `seen` is missing.
    """
    if box_format not in BOX_FORMATS:
        raise DescriberError(no_such("box format", box_format, BOX_FORMATS))
    chosen = BOX_FORMATS[box_format]
    height, width = size
    shares = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
    if chosen.units == "grid":
        first, last = grid_cells(box, size)
        return chosen.template.format(first=first, last=last)
    if chosen.units == "pixels":
        numbers: list[Any] = list(box)
    elif chosen.units == "seen":
        if seen is None:
            raise DescriberError(f"The box format {box_format!r} needs the size of the picture after resizing.")
        numbers = [round(share * seen[1 - index % 2]) for index, share in enumerate(shares)]
    elif chosen.units == "unit":
        numbers = [round(share, chosen.decimals) for share in shares]
    elif chosen.units == "square":
        side = max(size)
        corner = ((side - width) // 2, (side - height) // 2)
        numbers = [round((value + corner[index % 2]) / side, chosen.decimals) for index, value in enumerate(box)]
    else:
        # In whole numbers: 0.29 * 1000 is 290, but not in floating point.
        exact = [(box[index] * 1000, size[1 - index % 2]) for index in range(4)]
        down = chosen.units == "thousandths_down"
        numbers = [value // side if down else (2 * value + side) // (2 * side) for value, side in exact]
    x1, y1, x2, y2 = numbers
    return chosen.template.format(x1=x1, y1=y1, x2=x2, y2=y2, width=width, height=height)


def grid_cells(box: Box, size: tuple[int, int]) -> tuple[int, int]:
    """First (upper left) and last (lower right) of the 32 x 32 cells that a box touches, numbered row by row from 0."""
    height, width = size
    first = (box[1] * _GRID // height) * _GRID + box[0] * _GRID // width
    last = ((box[3] * _GRID - 1) // height) * _GRID + (box[2] * _GRID - 1) // width
    return first, last
