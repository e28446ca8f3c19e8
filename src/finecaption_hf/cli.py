"""The `finecaption` command; `python -m finecaption_hf.cli` is the same.

What is slow to import (torch, transformers) is imported where a command needs it, so that help comes at once.
"""

import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from . import EMBEDDED_CHECKPOINT, __version__

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from .info import ModelInfo
    from .modeling_finecaption import FineCaptionForConditionalGeneration
    from .processing_finecaption import FineCaptionProcessor

app = typer.Typer(
    name="finecaption",
    help="Captions for any region of a picture.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
scenes_app = typer.Typer(help="Rendered scenes, whose right answers are known.", no_args_is_help=True)
app.add_typer(scenes_app, name="scenes")


class Task(str, Enum):
    region = "region"
    dense = "dense"
    whole = "global"


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Split(str, Enum):
    train = "train"
    test = "test"


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


# --- options that several commands share -----------------------------------------------------------------------------

Model = Annotated[
    str | None,
    typer.Option(metavar="ID_OR_FOLDER", help="Checkpoint: Hub id or folder.", show_default="the embedded one"),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps ...", show_default="cuda if there is one")]
DtypeOption = Annotated[Dtype | None, typer.Option("--dtype", help="Precision.", show_default="as saved")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
Seed = Annotated[int, typer.Option(min=0, help="The first scene; scenes are numbered.")]


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        typer.echo(f"finecaption-hf {__version__}")
        raise typer.Exit


# --- caption ---------------------------------------------------------------------------------------------------------

_REGIONS, _QUESTIONS = "Regions (repeatable; none: the whole picture)", "Questions (repeatable; none: --task region)"


@app.command(cls=OrderedCommand)
def caption(
    ctx: typer.Context,
    image: Annotated[Path, typer.Argument(help="Picture file. Its EXIF orientation is applied.", show_default=False)],
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
    task: Annotated[list[Task] | None, typer.Option(help="A kind of caption.", rich_help_panel=_QUESTIONS)] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="An attribute that the checkpoint knows, such as color; a wrong name lists them.",
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
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the picture with outlined regions and captions.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Caption regions of a picture.

    Regions and questions are numbered as they stand on the command line. Every question is asked about every region,
    but for the global caption, which is about the whole picture.
    """
    with _errors_in_one_line():
        _check_writable(out)
        picture = _open_picture(image)
        given = _in_order(ctx, mask=mask, box=box, polygon=polygon, rle=rle)
        references = [
            (f"region {number} (--{kind})", _reference(kind, text))
            for number, (kind, text) in enumerate(given, start=1)
        ]
        regions = [_region(where, it, picture) for where, it in references or [("whole picture", None)]]
        checkpoint, processor = _load(model, device, dtype)
        asked = _in_order(ctx, task=task, attribute=attribute, question=question) or [("task", Task.region)]
        prompts = {}
        for kind, value in asked:
            name = value.value if isinstance(value, Task) else value
            prompts[name] = name if kind == "question" else processor.question(name)

    from .captioning import caption_regions
    from .masks_finecaption import mask_to_box

    def ask(about: "Sequence[np.ndarray | None]", names: list[str]) -> list[list[str]]:
        """One list of answers per region, in the order of the names."""
        if not names:
            return [[] for _ in about]
        texts = [prompts[name] for name in names]
        return caption_regions(checkpoint, processor, picture, about, texts, max_new_tokens=max_new_tokens)

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
    from .drawing import draw_regions

    captions = []
    for record in records:
        answers: dict[str, str] = record["answers"]
        lines = answers.values() if len(answers) == 1 else (f"{name}: {text}" for name, text in answers.items())
        captions.append("\n".join(lines))
    with _errors_in_one_line():
        draw_regions(picture, regions, captions).save(out)
    typer.echo(f"Wrote {out}", err=True)


# --- scenes ----------------------------------------------------------------------------------------------------------


@scenes_app.command()
def render(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write to; made if it does not exist.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Number of scenes.")] = 8,
    seed: Seed = 0,
    split: Annotated[Split, typer.Option(help="Combinations of color, shape and texture that occur.")] = Split.test,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 256,
) -> None:
    """Render scenes: PNG files, and regions.jsonl with one region a line (image, COCO RLE, caption, all answers)."""
    from PIL import Image

    from .masks_finecaption import encode_rle
    from .scenes import answers, render_scene

    num_regions = 0
    with _errors_in_one_line():
        out.mkdir(parents=True, exist_ok=True)
        with (out / "regions.jsonl").open("w", encoding="utf-8") as lines:
            for number in range(seed, seed + n):
                scene = render_scene(number, size=size, split=split.value)
                name = f"scene-{split.value}-{number:06}.png"
                Image.fromarray(scene.image).save(out / name)
                for index, mask in enumerate(scene.masks):
                    told = answers(scene.objects, index)
                    record = {
                        "image": name,
                        "segmentation": encode_rle(mask),
                        "caption": told["dense"],
                        "answers": told,
                    }
                    lines.write(json.dumps(record) + "\n")
                    num_regions += 1
    typer.echo(f"Wrote {n} scenes with {num_regions} regions to {out}", err=True)


@scenes_app.command()
def score(
    n: Annotated[int, typer.Option("--n", min=1, help="Number of scenes.")] = 500,
    seed: Seed = 0,
    model: Model = None,
    device: Device = None,
    dtype: DtypeOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Region-question pairs that are decoded together.")] = 32,
    as_json: Json = False,
) -> None:
    """Score a checkpoint on scenes whose combinations of color, shape and texture are kept out of training."""
    with _errors_in_one_line():
        checkpoint, processor = _load(model, device, dtype)

    from .scenes.scoring import score_scenes

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("scenes", total=n)
        result = score_scenes(
            checkpoint,
            processor,
            n,
            seed=seed,
            batch_size=batch_size,
            on_scene=lambda done: progress.update(bar, completed=done),
        )
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    table = Table("question", "right answers", "95 % interval", "both of a pair")
    for name, share in result["accuracy"].items():
        low, high = result["intervals_95"][name]
        table.add_row(name, f"{share:.1%}", f"{low:.1%} to {high:.1%}", f"{result['both_of_a_pair'][name]:.1%}")
    Console().print(table)
    typer.echo(f"{result['regions']} regions of {result['scenes']} scenes, first scene {result['seed']}")


# --- assemble --------------------------------------------------------------------------------------------------------


@app.command()
def assemble(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.", show_default=False)],
    clip: Annotated[str | None, typer.Option(metavar="PART", help="CLIP, in the Hub's format.")] = None,
    alpha_clip: Annotated[
        str | None,
        typer.Option(metavar="PART", help="Alpha-CLIP's visual tower (.pth); it replaces CLIP's own weights."),
    ] = None,
    convnext: Annotated[str | None, typer.Option(metavar="PART", help="A ConvNeXt of timm, or its name there.")] = None,
    sam: Annotated[
        str | None, typer.Option(metavar="PART", help="SAM, in the Hub's format or its authors' .pth.")
    ] = None,
    llm: Annotated[str | None, typer.Option(metavar="PART", help="A causal language model with its tokenizer.")] = None,
    from_llava: Annotated[
        str | None,
        typer.Option(metavar="PART", help="LLaVA-1.5: CLIP, adapter and language model of a one-tower model."),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="PART", help="Tokenizer, where --llm is left out.")] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="mask|convnext|sam", help="What to build without (repeatable).")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON with fields of FineCaptionConfig that no part decides."),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Precision of all weights.", show_default="the language model's")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what no part gives.")] = 0,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights.")] = "5GB",
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the folder to this Hub repository.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Build a checkpoint from pretrained parts, key by key.

    A PART is a file, a folder, or a Hub repository: owner/name, owner/name@revision, owner/name:file@revision. One that
    is left out starts from random weights.
    """
    with _errors_in_one_line():
        from .assembly import assemble as build
        from .assembly.summary import print_lines

        fields = {} if config is None else _parse_json(config.read_text(encoding="utf-8"), str(config))
        if not isinstance(fields, dict):
            raise ValueError(f"{config} holds no JSON object. Give fields of FineCaptionConfig with their values.")
        summary = build(
            out,
            clip=clip,
            alpha_clip=alpha_clip,
            convnext=convnext,
            sam=sam,
            llm=llm,
            from_llava=from_llava,
            tokenizer=tokenizer,
            without=without or (),
            config=fields,
            dtype=None if dtype is None else dtype.value,
            seed=seed,
            max_shard_size=max_shard_size,
            push=push,
            tell=lambda line: typer.echo(line, err=True),
        )
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False, indent=2))
        return
    for line in print_lines(summary):
        typer.echo(line)
    typer.echo(f"Wrote {out}", err=True)


# --- info ------------------------------------------------------------------------------------------------------------

_RUNS = {
    "vision_tower": "once per region",
    "convnext_tower": "once per image",
    "sam_tower": "once per image",
    "adapter": "once per region",
    "language_model": "prefill of the prefix, once per region",
}
_SUMS = {
    "first_region": "first region of an image",
    "next_region": "each further region",
    "token": "each decoded token",
}


@app.command()
def info(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG_OR_CHECKPOINT",
            help="Folder, configuration file (.json) or Hub id; none: the full-size default.",
            show_default=False,
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a field of the configuration first (repeatable), such as text_config.num_hidden_layers=16.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell what a model costs: parameters, FLOPs, tokens per region, memory, trainable parameters per stage.

    Counted from the configuration alone: no weights are read. Memory is that of weights and of one region's prefix;
    activations come on top.
    """
    with _errors_in_one_line():
        from .info import model_info, read_config

        found = model_info(read_config(source, changes or ()))
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        _print_info(found)


def _print_info(found: "ModelInfo") -> None:
    console = Console()
    parts = Table("part", "parameters", "FLOPs", "runs")
    for name, runs in _RUNS.items():
        if name in found.parameters:
            parts.add_row(name, _millions(found.parameters[name]), _scaled(found.flops[name]), runs)
    parts.add_section()
    counts = [_millions(found.parameters["total"]), "", ""]
    for (name, runs), count in zip(_SUMS.items(), counts, strict=True):
        parts.add_row("total" if count else "", count, _scaled(found.flops[name]), runs)
    memory = Table("memory", "weights", f"cache of one region's prefix, {found.tokens_per_region} tokens")
    for dtype, size in found.weight_bytes.items():
        cache = found.prefix_cache_bytes.get(dtype)
        memory.add_row(dtype, _gibibytes(size), "" if cache is None else _gibibytes(cache))
    stages = Table("stage", "trainable parameters")
    for name, number in found.trainable_parameters.items():
        stages.add_row(name, _millions(number))
    for table in (parts, memory, stages):
        for column in table.columns[1:3]:
            column.justify = "right"
        console.print(table)
    console.print("int8, int4: linear layers inside the language model; all else bfloat16. Activations come on top.")


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1e5 or not number else f"{number:,}"


def _gibibytes(number: int) -> str:
    return f"{number / 2**30:,.2f} GiB" if number >= 2**26 else f"{number / 2**20:,.2f} MiB"


def _scaled(number: int | None) -> str:
    if number is None:
        return "depends on values"
    unit, size = ("T", 1e12) if number >= 1e12 else ("G", 1e9) if number >= 1e9 else ("M", 1e6)
    return f"{number / size:,.2f} {unit}"


# --- reading what the user gave --------------------------------------------------------------------------------------


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """One line and exit code 2 for what the user can mend; around such steps only: a defect keeps its traceback."""
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error


def _load(
    model: str | None, device: str | None, dtype: Dtype | None
) -> "tuple[FineCaptionForConditionalGeneration, FineCaptionProcessor]":
    from .captioning import load

    if model is None and not EMBEDDED_CHECKPOINT.is_dir():
        raise FileNotFoundError(
            f"The embedded checkpoint is missing from {EMBEDDED_CHECKPOINT}. Reinstall, or give --model."
        )

    from transformers.utils import logging

    logging.disable_progress_bar()
    return load(model, device=device, dtype=None if dtype is None else dtype.value)


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
    from .masks_finecaption import MaskError, as_mask

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
        value = _parse_json(text, f"--{kind}")
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
        return _parse_json(path.read_text(encoding="utf-8"), str(path))
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


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: this is no JSON ({error}).") from error


def _numbers(kind: str, text: str) -> list[float]:
    try:
        return [float(number) for number in re.split(r"[,\s]+", text.strip(" \t,()"))]
    except ValueError:
        form = "X0,Y0,X1,Y1" if kind == "box" else "X,Y,X,Y,..."
        raise ValueError(
            f"--{kind} {text[:60]}: neither an existing file nor numbers. Give {form} in pixels."
        ) from None


def main() -> None:
    app()


if __name__ == "__main__":
    main()
