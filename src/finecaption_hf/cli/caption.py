"""`finecaption caption`: regions of one picture, given or found, and questions about them."""

import io
import itertools
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .common import (
    ApiKeyEnv,
    AtOnce,
    Attributes,
    BaseUrl,
    Describing,
    Device,
    DtypeOption,
    Json,
    KeepSent,
    MaxBatchTokens,
    MaxNewTokens,
    Model,
    OrderedCommand,
    OwnQuestions,
    Prompts,
    Referring,
    Seed,
    Tasks,
    Temperature,
    TopP,
    TrustRemoteCode,
    asked_in_order,
    check_attributes,
    describer_options,
    errors_in_one_line,
    in_order,
    load_describer,
)
from .reading import Alpha, ResizeMasks, StoredOrientation, Threshold
from .tables import print_whole

if TYPE_CHECKING:
    from PIL import Image

    from ..masks_finecaption import RegionMask

_REGIONS = "Regions (repeatable; none: the whole picture)"


class Style(str, Enum):
    outline = "outline"
    spotlight = "spotlight"
    fill = "fill"


class CaptionCommand(OrderedCommand):
    """Takes several files after `--mask`, as a shell makes them of `masks/*.png`.

    A call with `--input`, which was for whole data sets, goes to `finecaption describe`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self.one_mask_each(args))

    def one_mask_each(self, args: list[str]) -> list[str]:
        """Put a `--mask` before each file but the picture, which is the one that follows no mask, else the last."""
        takes = {name for option in self.params if not getattr(option, "is_flag", True) for name in option.opts}
        found, more, others = [], [], 0  # places in `found` of files that follow a mask's
        after_mask = False
        arguments = iter(args)
        for argument in arguments:
            found.append(argument)
            if argument.startswith("--") and len(argument) > 2:
                name, _, value = argument.partition("=")
                after_mask = name == "--mask"
                if not value and name in takes:
                    found += list(itertools.islice(arguments, 1))
            elif after_mask:
                more.append(len(found) - 1)
            else:
                others += 1
        for place in reversed(more if others else more[:-1]):
            found.insert(place, "--mask")
        return found

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        given = [number for number, argument in enumerate(args) if argument.partition("=")[0] == "--input"]
        if not given:
            return super().make_context(info_name, args, parent, **extra)
        if os.environ.get("RANK", "0") == "0":
            typer.echo("caption --input FILE is finecaption describe FILE, which runs now.", err=True)
        for number in reversed(given):
            args[number : number + 1] = [args[number].partition("=")[2]] if "=" in args[number] else []
        return parent.command.commands["describe"].make_context("describe", args, parent, **extra)


def caption(
    ctx: typer.Context,
    image: Annotated[
        Path, typer.Argument(exists=True, help="Picture file. Its EXIF orientation is applied.", show_default=False)
    ],
    mask: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|BLOB",
            help="Masks as files (PNG and other pictures of black and white, .npy, .npz, all their pages; masks/*.png; "
            ".json with COCO RLE or GeoJSON, .txt with a blob) or as a blob, base64(gzip(uint8 H x W)).",
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
        typer.Option(
            min=1,
            help="Keep the best regions of --everything, at most this many.",
            show_default="20",
            rich_help_panel=_REGIONS,
        ),
    ] = None,
    threshold: Threshold = None,
    alpha: Alpha = False,
    resize_masks: ResizeMasks = False,
    stored_orientation: StoredOrientation = False,
    task: Tasks = None,
    attribute: Attributes = None,
    question: OwnQuestions = None,
    model: Model = None,
    device: Device = None,
    dtype: DtypeOption = None,
    describer: Describing = None,
    referral: Referring = None,
    prompts: Prompts = None,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = None,
    trust_remote_code: TrustRemoteCode = False,
    keep_sent: KeepSent = False,
    at_once: AtOnce = False,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    max_batch_tokens: MaxBatchTokens = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the picture with outlined regions and captions.")
    ] = None,
    style: Annotated[
        Style, typer.Option(help="How --out shows regions: by a line, by darkening the rest, or by a tint as well.")
    ] = Style.outline,
    as_json: Json = False,
) -> None:
    """Caption regions of a picture.

    Regions and questions are in the order of the command line.
    Every question is asked about every region; the global caption is about the whole picture.

    Whole data sets: finecaption describe.
    """
    given = in_order(ctx, mask=mask, box=box, polygon=polygon, rle=rle, point=point, not_point=not_point)
    questions = asked_in_order(ctx, task, attribute, question)
    decoding: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    with errors_in_one_line():
        _check_regions([kind for kind, _ in given], refine, everything, segmenter, max_regions)
        if (threshold is not None or alpha or resize_masks) and not mask:
            raise ValueError("--threshold, --alpha and --resize-masks go with --mask: they say how its files are read.")
        if keep_sent and not as_json:
            raise ValueError("--keep-sent goes with --json: what was sent stands in the records.")
        from ..asking import ask, check_questions, note_of
        from ..data.heif import HEIF, enable_heif
        from ..data.mask_rules import MaskRules
        from ..data.orientation import stored_orientation_of
        from ..pipeline_finecaption import read_picture
        from ..prompts_finecaption import BranchRequest
        from ..segmentation import find_regions, open_segmenter_beside, read_regions

        # What can be found out before a model is loaded comes first.
        BranchRequest("region", max_new_tokens, temperature, top_p)
        _check_writable(out, image)
        if image.suffix.lower() in HEIF:
            enable_heif(str(image))
        picture = read_picture(image)
        with _warnings_in_one_line():
            regions = read_regions(
                given,
                picture.height,
                picture.width,
                refine,
                rules=MaskRules(threshold, alpha, resize_masks),
                orientation=stored_orientation_of(image),
                stored=stored_orientation,
            )
        loaded = load_describer(
            model, device, dtype, max_batch_tokens=max_batch_tokens, **describer_options(ctx.params)
        )
        check_attributes(questions, loaded.questions)
        asked = list(check_questions(loaded, [name for _, name in questions]))
        with _warnings_in_one_line():
            masks, found_by, features = find_regions(
                picture,
                regions,
                lambda: open_segmenter_beside(loaded, segmenter, device, None if dtype is None else dtype.value),
                everything=everything,
                max_regions=max_regions,
            )
        if found_by is not None:
            name, number = found_by
            typer.echo(f"{number} region{'' if number == 1 else 's'} found by: {name}", err=True)
    with errors_in_one_line(at_work=True):
        records = ask(loaded, picture, masks or None, asked, high_res_features=features, **decoding)
    if (note := note_of(loaded)) is not None:
        records = [{**record, "model_note": note} for record in records]
    if as_json:
        typer.echo(json.dumps(records, ensure_ascii=False, indent=2))
    else:
        _print_answers(records)
    if out is not None:
        _write_picture(out, picture, masks, records, style)
    failed = [
        f"region {record['region_index'] + 1}, {name}: {reason['message']}"
        for record in records
        for name, reason in record.get("errors", {}).items()
    ]
    for line in failed:
        typer.echo(f"Error: {' '.join(line.split())}", err=True)
    if failed:
        raise typer.Exit(1)


def _check_regions(
    kinds: list[str], refine: bool, everything: bool, segmenter: str | None, max_regions: int | None
) -> None:
    """No option without the one that it goes with."""
    if everything and (kinds or refine):
        other = kinds[0].replace("_", "-") if kinds else "refine"
        raise ValueError(f"--everything finds the regions itself; leave --{other} out, or --everything.")
    if max_regions is not None and not everything:
        raise ValueError("--max-regions goes with --everything only.")
    if refine and "box" not in kinds:
        raise ValueError("--refine goes with --box: it takes a box for what stands in it.")
    if segmenter is not None and not (everything or refine or {"point", "not_point"} & set(kinds)):
        raise ValueError("--segmenter goes with --everything, --point, or --box and --refine.")


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        typer.echo(f"Warning: {' '.join(str(warning.message).split())}", err=True)


def _print_answers(records: list[dict[str, Any]]) -> None:
    """A single caption as it is; a table of several, numbered from 1 like the drawn regions."""
    answers = [text for record in records for text in record["answers"].values()]
    if len(records) == 1 and len(answers) <= 1:
        typer.echo(answers[0] if answers else "")
        return
    table = Table("region", "box (x0, y0, x1, y1)", "question", "answer", show_lines=False)
    for record in records:
        cells = [str(record["region_index"] + 1), ", ".join(map(str, record["box_xyxy"]))]
        for name, text in record["answers"].items():
            # Text: a caption with square brackets is not to be read as markup.
            table.add_row(*cells, Text(name), Text(text))
            cells = ["", ""]
        table.add_section()
    print_whole(Console(), table)


def _write_picture(
    out: Path, picture: "Image.Image", regions: "list[RegionMask]", records: list[dict[str, Any]], style: Style
) -> None:
    from ..drawing import draw_regions
    from ..masks_finecaption import RegionMask

    answers: list[dict[str, str]] = [record["answers"] for record in records]
    # A single question needs no repeating.
    captions = [dict(it) if len(it) > 1 else next(iter(it.values()), "") for it in answers]
    drawn = regions or [RegionMask(None, picture.height, picture.width)]
    with errors_in_one_line():
        draw_regions(picture, [region.pixels for region in drawn], captions, style=style.value).save(out)
    typer.echo(f"Wrote {out}", err=True)


def _check_writable(out: Path | None, image: Path) -> None:
    """Find out before the model runs, not after it."""
    if out is None:
        return
    from PIL import Image

    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), Image.registered_extensions()[out.suffix.lower()])
    except (KeyError, OSError) as error:
        raise ValueError(
            f"--out {out}: {out.suffix or 'no suffix'} names no format for pictures in colour. Give a name such as "
            "out.png."
        ) from error
    if out.resolve() == image.resolve():
        raise ValueError(f"--out {out} is the picture itself, which is not written over. Give another name.")
    if not out.resolve().parent.is_dir():
        raise FileNotFoundError(f"--out {out}: the folder {out.parent} does not exist. Make it first.")
    if not os.access(out if out.exists() else out.resolve().parent, os.W_OK):
        raise PermissionError(f"--out {out}: you may not write there. Give another place, or change its permissions.")
