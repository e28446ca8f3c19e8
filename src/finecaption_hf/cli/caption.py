"""`finecaption caption`: regions of a picture (caption_picture.py), or a whole dataset (caption_dataset.py)."""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from .common import Device, DtypeOption, Json, Model, errors_in_one_line


class Task(str, Enum):
    region = "region"
    dense = "dense"
    whole = "global"


class OrderedCommand(TyperCommand):
    """Notes in which order options stand on the command line; otherwise only the order within each option is known."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args:
            _, _, parameters = self.make_parser(ctx).parse_args(args=list(args))
            ctx.meta["order"] = [parameter.name for parameter in parameters]
        return super().parse_args(ctx, args)


def _in_order(ctx: typer.Context, **options: Sequence[str] | None) -> list[tuple[str, str]]:
    """(option, value) of repeatable options, as they stand on the command line."""
    values = {name: iter(given or ()) for name, given in options.items()}
    return [(name, next(values[name])) for name in ctx.meta.get("order", ()) if name in values]


_REGIONS, _QUESTIONS = "Regions (repeatable; none: the whole picture)", "Questions (repeatable; none: --task region)"
_ANSWERS = "Answers"
_DATASET = "Whole datasets: --input and --output"
_OF_A_PICTURE = (
    *("image", "mask", "box", "polygon", "rle", "point", "not_point"),
    *("refine", "everything", "segmenter", "max_regions", "out"),
)
_OF_A_DATASET = ("images", "split", "log_probs", "batch_size", "num_workers", "overwrite", "retry_failed")


def caption(
    ctx: typer.Context,
    image: Annotated[
        Path | None, typer.Argument(help="Picture file. Its EXIF orientation is applied.", show_default=False)
    ] = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|BLOB",
            help="Mask as a file (PNG and other pictures of black and white, .npy, .json with COCO RLE or GeoJSON, "
            ".txt with a blob) or as a blob, base64(gzip(uint8 H x W)).",
            rich_help_panel=_REGIONS,
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="X0,Y0,X1,Y1", help="Box in pixels, ends exclusive.", rich_help_panel=_REGIONS),
    ] = None,
    polygon: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y,X,Y,...|JSON|FILE",
            help="Outline in pixels; as JSON, GeoJSON with holes too.",
            rich_help_panel=_REGIONS,
        ),
    ] = None,
    rle: Annotated[
        list[str] | None,
        typer.Option(metavar="JSON|FILE", help='COCO RLE: {"size": [H, W], "counts": ...}.', rich_help_panel=_REGIONS),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y[,X,Y...]", help="Points on one thing, whose outline is found.", rich_help_panel=_REGIONS
        ),
    ] = None,
    not_point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y[,X,Y...]",
            help="Points that are not on it; goes with the --point or --box before it.",
            rich_help_panel=_REGIONS,
        ),
    ] = None,
    refine: Annotated[
        bool,
        typer.Option("--refine", help="Take each --box for the thing that stands in it.", rich_help_panel=_REGIONS),
    ] = False,
    everything: Annotated[
        bool,
        typer.Option("--everything", help="Find the regions, instead of naming any.", rich_help_panel=_REGIONS),
    ] = False,
    segmenter: Annotated[
        str | None,
        typer.Option(
            metavar="ID_OR_FOLDER",
            help="What finds outlines: SAM, SAM 2, SAM 3 or EdgeTAM.",
            show_default="the checkpoint's own SAM if it has one, else by colour alone, with OpenCV",
            rich_help_panel=_REGIONS,
        ),
    ] = None,
    max_regions: Annotated[
        int | None,
        typer.Option(min=1, help="Of --everything, the best ones.", show_default="20", rich_help_panel=_REGIONS),
    ] = None,
    task: Annotated[list[Task] | None, typer.Option(help="A kind of caption.", rich_help_panel=_QUESTIONS)] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="An attribute that the checkpoint knows, such as color, or all; a wrong name lists them.",
            rich_help_panel=_QUESTIONS,
        ),
    ] = None,
    question: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Your own words.", rich_help_panel=_QUESTIONS)
    ] = None,
    model: Model = None,
    device: Device = None,
    dtype: DtypeOption = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest answer, in tokens.",
            show_default="the checkpoint's, else 64",
            rich_help_panel=_ANSWERS,
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="0: the likeliest token; above it tokens are drawn.", rich_help_panel=_ANSWERS)
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the likeliest tokens of this probability.", rich_help_panel=_ANSWERS)
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws.", rich_help_panel=_ANSWERS)] = 0,
    max_batch_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens that are held at once.", show_default="by free memory", rich_help_panel=_ANSWERS
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the picture with outlined regions and captions.")
    ] = None,
    input: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DIR|ID",
            help="JSON Lines of regions, a folder of pictures with masks, or a dataset.",
            rich_help_panel=_DATASET,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON Lines to make, one line per region. The same command goes on after an interruption.",
            rich_help_panel=_DATASET,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|ZIP|TAR", help="Pictures.", show_default="the folder of FILE", rich_help_panel=_DATASET
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of a dataset.", rich_help_panel=_DATASET)] = None,
    log_probs: Annotated[
        bool, typer.Option("--log-probs", help="Write the log-probability of each token.", rich_help_panel=_DATASET)
    ] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Pictures that are described together.", rich_help_panel=_DATASET)
    ] = 4,
    num_workers: Annotated[
        int, typer.Option(min=1, help="Threads that read pictures ahead.", rich_help_panel=_DATASET)
    ] = 4,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Start anew, and replace the output at the end.", rich_help_panel=_DATASET),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Of a finished output, describe the regions again that failed.",
            rich_help_panel=_DATASET,
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Caption regions of a picture, or of a whole dataset.

    Regions and questions are in the order of the command line.
    Every question is asked about every region; the global caption is about the whole picture.

    For several processes: accelerate launch -m finecaption_hf.cli caption --input ... --output ...
    """
    asked = [
        (kind, value.value if isinstance(value, Task) else value)
        for kind, value in _in_order(ctx, task=task, attribute=attribute, question=question)
    ] or [("task", Task.region.value)]
    decoding: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "max_batch_tokens": max_batch_tokens,
    }
    with errors_in_one_line():
        _check_mode(ctx, image, input, output)
    if input is not None and output is not None:
        from .caption_dataset import caption_dataset

        caption_dataset(
            input,
            output,
            asked,
            images=images,
            split=split,
            model=model,
            device=device,
            dtype=dtype,
            options={**decoding, "log_probs": log_probs, "batch_size": batch_size},
            num_workers=num_workers,
            overwrite=overwrite,
            retry_failed=retry_failed,
            as_json=as_json,
        )
        return
    assert image is not None
    from .caption_picture import caption_picture

    caption_picture(
        image,
        _in_order(ctx, mask=mask, box=box, polygon=polygon, rle=rle, point=point, not_point=not_point),
        asked,
        refine=refine,
        everything=everything,
        segmenter=segmenter,
        max_regions=max_regions,
        model=model,
        device=device,
        dtype=dtype,
        options=decoding,
        out=out,
        as_json=as_json,
    )


def _check_mode(ctx: typer.Context, image: Path | None, source: str | None, output: Path | None) -> None:
    """One picture, or a dataset; and no option of the other."""
    if (source is None) != (output is None):
        raise ValueError("--input and --output go together: what to describe, and the file to make.")
    if source is None and image is None:
        raise ValueError("Nothing to caption. Give a picture, or a dataset with --input and --output.")
    others = _OF_A_DATASET if source is None else _OF_A_PICTURE
    sources = {name: ctx.get_parameter_source(name) for name in others}
    given = [name for name, where in sources.items() if where is not None and where.name == "COMMANDLINE"]
    if given:
        names = ", ".join("IMAGE" if name == "image" else f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{names} cannot be given {'without' if source is None else 'with'} --input.")
