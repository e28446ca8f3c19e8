"""`finecaption caption`: regions of a picture, and questions about them; or a whole dataset (caption_dataset.py)."""

import json
import os
import re
import warnings
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from .common import Device, DtypeOption, Json, Model, errors_in_one_line, load_checkpoint, parse_json

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


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
_DATASET = "Whole datasets: --input and --output"
_OF_A_PICTURE = ("image", "mask", "box", "polygon", "rle", "everything", "segmenter", "max_regions", "out")
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
    everything: Annotated[
        bool,
        typer.Option("--everything", help="Find the regions, instead of naming any.", rich_help_panel=_REGIONS),
    ] = False,
    segmenter: Annotated[
        str | None,
        typer.Option(
            metavar="ID_OR_FOLDER",
            help="What finds them: SAM, SAM 2, SAM 3 or EdgeTAM.",
            show_default="by colour alone, with OpenCV",
            rich_help_panel=_REGIONS,
        ),
    ] = None,
    max_regions: Annotated[
        int, typer.Option(min=1, help="Of --everything, the best ones.", rich_help_panel=_REGIONS)
    ] = 20,
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
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest caption, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0: the likeliest token; above it tokens are drawn.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens of this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    max_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens that are held at once.", show_default="by free memory")
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

    Regions and questions are numbered as they stand on the command line. Every question is asked about every region,
    but for the global caption, which is about the whole picture.

    For several processes: accelerate launch -m finecaption_hf.cli caption --input ... --output ...
    """
    asked = _in_order(ctx, task=task, attribute=attribute, question=question) or [("task", Task.region)]
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
            [(kind, value.value if isinstance(value, Task) else value) for kind, value in asked],
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
    with errors_in_one_line():
        from ..branching_finecaption import BranchRequest
        from ..prompts_finecaption import resolve_questions

        BranchRequest("region", temperature=temperature, top_p=top_p)  # refuses what makes no sense
        _check_writable(out)
        picture = _open_picture(image)
        given = _in_order(ctx, mask=mask, box=box, polygon=polygon, rle=rle)
        _check_everything(ctx, everything, given)
        references = [
            (f"region {number} (--{kind})", _reference(kind, text))
            for number, (kind, text) in enumerate(given, start=1)
        ]
        if everything:
            regions = _find_regions(picture, segmenter, device, dtype, max_regions)
        else:
            regions = [_region(where, it, picture) for where, it in references or [("whole picture", None)]]
        checkpoint, processor = load_checkpoint(model, device, dtype)
        prompts: dict[str, str] = {}
        for kind, value in asked:
            name = value.value if isinstance(value, Task) else value
            if kind == "attribute" and name.strip().casefold() == "all":
                prompts |= resolve_questions("all", processor.questions)
            else:
                prompts[name] = name if kind == "question" else processor.question(name)

    from ..captioning import caption_regions
    from ..masks_finecaption import mask_to_box

    def ask(about: "Sequence[np.ndarray | None]", names: list[str]) -> list[list[str]]:
        """One list of answers per region, in the order of the names."""
        if not names:
            return [[] for _ in about]
        texts = [prompts[name] for name in names]
        return caption_regions(checkpoint, processor, picture, about, texts, **decoding)

    # The global caption is about the whole picture, whichever regions are asked about otherwise.
    whole = [name for name in prompts if name == Task.whole.value]
    regional = [name for name in prompts if name not in whole]
    (of_picture,) = ask([None], whole)
    answers = [
        {name: told[name] for name in prompts}
        for told in (dict(zip(regional + whole, texts + of_picture, strict=True)) for texts in ask(regions, regional))
    ]
    records = [
        {
            "region": number,
            "box_xyxy": list(mask_to_box(region)),
            "area": int(region.sum()),
            "answers": texts,
        }
        for number, (region, texts) in enumerate(zip(regions, answers, strict=True), start=1)
    ]
    if as_json:
        typer.echo(json.dumps(records, ensure_ascii=False, indent=2))
    else:
        _print_answers(records)
    if out is not None:
        _write_picture(out, picture, regions, records)


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


def _check_everything(ctx: typer.Context, everything: bool, given: list[tuple[str, str]]) -> None:
    if everything and given:
        raise ValueError(f"--everything finds the regions itself; leave --{given[0][0]} out, or --everything.")
    for name in () if everything else ("segmenter", "max_regions"):
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ValueError(f"--{name.replace('_', '-')} goes with --everything only.")


def _find_regions(
    picture: "Image.Image", name: str | None, device: str | None, dtype: Any, max_regions: int
) -> "list[np.ndarray]":
    """Masks of all that a segmenter finds, best first; who did it is told on standard error."""
    from ..segmentation import open_segmenter

    found = open_segmenter(name, device, None if dtype is None else dtype.value)
    masks = [candidate.mask for candidate in found.encode(picture).everything(max_regions=max_regions)]
    typer.echo(f"{len(masks)} regions found by: {found.name}", err=True)
    if not masks:
        raise ValueError("No region was found in the picture. Name some with --mask, --box or --polygon.")
    return masks


def _print_answers(records: list[dict[str, Any]]) -> None:
    """A single caption as it is; a table of several."""
    if len(records) == 1 and len(records[0]["answers"]) == 1:
        typer.echo(next(iter(records[0]["answers"].values())))
        return
    table = Table("region", "box (x0, y0, x1, y1)", "question", "answer", show_lines=False)
    for record in records:
        cells = [str(record["region"]), ", ".join(map(str, record["box_xyxy"]))]
        for name, text in record["answers"].items():
            # Text: a caption with square brackets is not to be read as markup.
            table.add_row(*cells, Text(name), Text(text))
            cells = ["", ""]
        table.add_section()
    Console().print(table)


def _write_picture(
    out: Path, picture: "Image.Image", regions: "list[np.ndarray]", records: list[dict[str, Any]]
) -> None:
    from ..drawing import draw_regions

    answers: list[dict[str, str]] = [record["answers"] for record in records]
    # A single question needs no repeating.
    captions = [dict(it) if len(it) > 1 else next(iter(it.values())) for it in answers]
    with errors_in_one_line():
        draw_regions(picture, regions, captions).save(out)
    typer.echo(f"Wrote {out}", err=True)


# --- reading what the user gave ---------------------------------------------------------------------------------------


def _open_picture(path: Path) -> "Image.Image":
    from PIL import Image, ImageOps

    if not path.is_file():
        raise FileNotFoundError(f"There is no picture file {path}.")
    try:
        picture: Image.Image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}. Give a JPEG, PNG or similar file.") from error
    return picture


def _check_writable(out: Path | None) -> None:
    """Find out before the model runs, not after it."""
    if out is None:
        return
    from PIL import Image

    extensions = Image.registered_extensions()
    if out.suffix.lower() not in extensions or extensions[out.suffix.lower()] not in Image.SAVE:
        raise ValueError(
            f"--out {out}: {out.suffix or 'no suffix'} names no picture format. Give a name such as out.png."
        )
    if not out.resolve().parent.is_dir():
        raise FileNotFoundError(f"--out {out}: the folder {out.parent} does not exist. Make it first.")


def _region(where: str, reference: Any, picture: "Image.Image") -> "np.ndarray":
    from ..masks_finecaption import MaskError, as_mask

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            region = as_mask(reference, picture.height, picture.width)
    except MaskError as error:
        raise MaskError(f"{where}: {error}") from error
    for warning in caught:
        typer.echo(f"Warning: {where}: {warning.message}", err=True)
    return region


def _reference(kind: str, text: str) -> Any:
    """The region reference that an option's value stands for: a file's content, JSON, numbers or a blob."""
    if os.path.isfile(text):  # unlike Path.is_file, False for a blob that is too long for a file name
        value = _read_reference(Path(text))
    elif text.lstrip().startswith(("{", "[")):
        value = parse_json(text, f"--{kind}")
    elif kind in ("box", "polygon"):
        value = _numbers(kind, text)
    elif kind == "mask" and text.startswith("H4sI"):  # how base64 of a gzip stream begins
        value = text
    else:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        meant = {"mask": "a mask blob (base64 of gzip, beginning with H4sI)", "rle": "JSON"}[kind]
        raise ValueError(f"--{kind} {shown}: neither an existing file nor {meant}. Paths are relative to {Path.cwd()}.")
    if isinstance(value, list):
        return {"box_xyxy" if kind == "box" else "polygon": value}
    return value


def _read_reference(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix in (".json", ".geojson"):
        return parse_json(path.read_text(encoding="utf-8"), str(path))
    if suffix in (".txt", ".b64"):
        return path.read_text(encoding="utf-8").strip()
    if suffix == ".npy":
        import numpy as np

        return np.load(path, allow_pickle=False)
    from PIL import Image

    try:
        return Image.open(path)
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be read as a mask. Give a picture file such as PNG, .npy, .json with COCO RLE or GeoJSON, "
            "or .txt with a blob."
        ) from error


def _numbers(kind: str, text: str) -> list[float]:
    try:
        return [float(number) for number in re.split(r"[,\s]+", text.strip(" \t,()"))]
    except ValueError:
        form = "X0,Y0,X1,Y1" if kind == "box" else "X,Y,X,Y,..."
        raise ValueError(
            f"--{kind} {text[:60]}: neither an existing file nor numbers. Give {form} in pixels."
        ) from None
