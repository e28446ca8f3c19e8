"""The options of all commands that read regions: how annotations are read where their files do not say it."""

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

_READING = "Reading (where the file does not say it)"


class OnError(str, Enum):
    stop = "raise"
    skip = "skip"


Format = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Format of the annotations; a wrong name lists them.",
        show_default="what the content says",
        rich_help_panel=_READING,
    ),
]
ImageList = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        help="COCO file with the names of pictures, for results that have only their ids.",
        show_default="the only one beside the results",
        rich_help_panel=_READING,
    ),
]
Ignore = Annotated[
    str | None,
    typer.Option(
        metavar="N,N",
        help="Values of label maps that are no region, such as 0,255.",
        show_default="the format's",
        rich_help_panel=_READING,
    ),
]
LabelMap = Annotated[
    str | None,
    typer.Option(
        metavar="RULE",
        help="How values of label maps are read; a wrong name lists the rules.",
        show_default="what the files say",
        rich_help_panel=_READING,
    ),
]
BoxFormat = Annotated[
    str | None,
    typer.Option(
        metavar="xyxy|xywh|cxcywh|..",
        help="What the four numbers of a box are.",
        show_default="what the data says",
        rich_help_panel=_READING,
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Mask files with soft edges: what is above this share of white is inside.",
        show_default="soft edges are an error",
        rich_help_panel=_READING,
    ),
]
Alpha = Annotated[
    bool,
    typer.Option(
        "--alpha", help="Mask files are cut-outs: what is not transparent is inside.", rich_help_panel=_READING
    ),
]
ResizeMasks = Annotated[
    bool,
    typer.Option(
        "--resize-masks",
        help="Bring mask files of another size to the picture's, by nearest neighbour.",
        rich_help_panel=_READING,
    ),
]
StoredOrientation = Annotated[
    bool,
    typer.Option(
        "--stored-orientation",
        help="Regions are in the pixels as stored, before the EXIF orientation.",
        rich_help_panel=_READING,
    ),
]


READING = (
    "image_list",
    "ignore",
    "label_map",
    "box_format",
    "threshold",
    "alpha",
    "resize_masks",
    "stored_orientation",
)
"""The options of a command that are fields of `ReadOptions`, besides format, pictures and split."""


def reading_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those fields of `ReadOptions` that a call of a command gives, by name.

    Args:
        given: all its options (`ctx.params`).

    Raises:
        ValueError: If one has another form.
    """
    found = {name: value for name in READING if (value := given.get(name)) is not None and value is not False}
    return {**found, "ignore": as_numbers(found["ignore"])} if "ignore" in found else found


def as_numbers(text: str | None) -> tuple[int, ...]:
    """Whole numbers between commas.

    Raises:
        ValueError: If there is anything else.
    """
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise ValueError(f"--ignore {text!r}: whole numbers between commas are needed, such as 0,255.") from error
