"""`finecaption data`: look at datasets."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from .common import Json, Model, errors_in_one_line
from .layout import Command, Group
from .reading import (
    Alpha,
    BoxFormat,
    Format,
    Ignore,
    ImageList,
    LabelMap,
    OnError,
    ResizeMasks,
    StoredOrientation,
    Threshold,
    reading_options,
)
from .tables import print_whole

if TYPE_CHECKING:
    from ..data.check import DatasetReport

app = typer.Typer(help="Datasets of described regions.", no_args_is_help=True, cls=Group, rich_markup_mode=None)


@app.callback()
def group() -> None:
    """Datasets of described regions."""


@app.command(cls=Command)
def check(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(help="Annotations: a file, or a folder of them.", show_default=False)],
    format: Format = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|ZIP|TAR",
            exists=True,
            help="Where the pictures lie.",
            show_default="the folder of the annotations",
        ),
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, help="YAML or JSON with other names of keys; see docs/data.md."),
    ] = None,
    keep_entity_references: Annotated[
        bool, typer.Option("--keep-entity-references", help='Keep "(entity_id_3)" in texts.')
    ] = False,
    image_list: ImageList = None,
    ignore: Ignore = None,
    label_map: LabelMap = None,
    box_format: BoxFormat = None,
    threshold: Threshold = None,
    alpha: Alpha = False,
    resize_masks: ResizeMasks = False,
    stored_orientation: StoredOrientation = False,
    model: Model = None,
    decode: Annotated[
        bool, typer.Option("--images-too/--texts-only", help="Open the pictures and decode the masks.")
    ] = True,
    on_error: Annotated[OnError, typer.Option(help="Tell all problems, or stop at the first.")] = OnError.skip,
    rejects: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where examples that cannot be used are written, with reasons.",
            show_default="PATH.rejects.jsonl",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many examples.", show_default="all")] = None,
    as_json: Json = False,
) -> None:
    """Read a whole dataset and tell what is in it, and every problem. Exit code 1 if there are problems.

    Where there are regions but no texts, pictures and regions are checked.
    """
    with errors_in_one_line():
        from ..asking.kinds import loading_told
        from ..asking.loading import load_processor
        from ..data import open_regions
        from ..data.check import check_dataset, check_regions, may_be_regions
        from ..data.readers import read_examples

        with loading_told(model or "The embedded checkpoint"):
            processor = load_processor(model)
        reading = reading_options(ctx.params)
        columns = (SpinnerColumn(), TextColumn("{task.completed} examples"))
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("examples", total=None)
            how: dict[str, Any] = {
                "check_images": decode,
                "limit": limit,
                "on_example": lambda done: progress.update(bar, completed=done),
            }
            try:
                reader = read_examples(
                    path,
                    format,
                    images=images,
                    on_error=on_error.value,
                    rejects=rejects,
                    mapping=mapping,
                    keep_entity_references=keep_entity_references,
                    **reading,
                )
                report = check_dataset(reader, tokenizer=processor.tokenizer, questions=processor.questions, **how)
            except ValueError as error:
                if mapping is not None:  # of the keys of descriptions
                    raise
                with may_be_regions(error):
                    report = check_regions(open_regions(path, images=images, format=format, **reading), **how)
    if as_json:
        typer.echo(json.dumps(asdict(report), ensure_ascii=False, indent=2))
    else:
        _print_report(report)
        if report.num_rejected:
            typer.echo(f"Wrote {report.num_rejected} rejected examples to {reader.rejects_path}", err=True)
    if report.problems:
        raise typer.Exit(1)


def _print_report(report: "DatasetReport") -> None:
    console = Console()
    counts = {
        "format": report.format,
        "examples (images)": f"{report.num_examples:,}",
        "regions": f"{report.num_regions:,}, of which whole images {report.num_whole_images:,}",
        "branches": f"{report.num_branches:,}",
        "rejected examples": f"{report.num_rejected:,}",
        "most tokens of a region": f"{report.longest_region:,}",
        "frequent image sizes": ", ".join(f"{size} ({n})" for size, n in list(report.image_sizes.items())[:4]),
    }
    summary = Table("dataset", escape(report.source))
    for name, value in counts.items():
        summary.add_row(name, value)
    names = Table("task or attribute", "branches", "")
    for name, number in report.names.items():
        names.add_row(Text(name), f"{number:,}", "no question of that name" if name in report.unknown_names else "")
    tables = [summary, names] if report.names else [summary]
    if report.areas:
        areas = Table("area of a region", "regions", "")
        largest = max(report.areas.values(), default=0)
        for name, number in report.areas.items():
            areas.add_row(name, f"{number:,}", "█" * round(24 * number / largest) if largest else "")
        tables.append(areas)
    if report.answer_tokens:
        lengths = Table("tokens", *report.answer_tokens)
        for name, numbers in (("questions", report.question_tokens), ("answers", report.answer_tokens)):
            lengths.add_row(name, *(f"{number:,}" for number in numbers.values()))
        tables.append(lengths)
    if report.left_out or report.notes:
        rest = Table("left out, or worth a look", "number")
        for name, number in {**report.left_out, **report.notes}.items():
            rest.add_row(Text(name), f"{number:,}")
        tables.append(rest)
    if report.problems:
        problems = Table("where", "problem")
        for where, reason in report.problems:
            problems.add_row(Text(where, overflow="fold"), Text(reason))
        tables.append(problems)
    for table in tables:
        for column in table.columns[1:]:
            if column.header in ("branches", "regions", "number"):
                column.justify = "right"
        print_whole(console, table)
    if not report.complete:
        console.print("Not all of the dataset was read.")
