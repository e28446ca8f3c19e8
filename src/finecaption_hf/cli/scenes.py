"""`finecaption scenes`: rendered scenes, whose right answers are known."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .common import Device, DtypeOption, Json, Model, errors_in_one_line, load_describer
from .layout import Command, Group
from .tables import print_whole

app = typer.Typer(
    help="Rendered scenes, whose right answers are known.", no_args_is_help=True, cls=Group, rich_markup_mode=None
)

Seed = Annotated[int, typer.Option(min=0, help="The first scene; scenes are numbered.")]


class Split(str, Enum):
    train = "train"
    test = "test"


SplitOption = Annotated[Split, typer.Option("--split", help="Whether combinations are those of training or held out.")]
Size = Annotated[int, typer.Option(help="Height and width in pixels, 192 to 1024.")]
Regions = Annotated[
    int | None, typer.Option(help="Regions in each scene, 1 to 3.", show_default="two or three, by the seed")
]


@app.command(cls=Command)
def render(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write to; made if it does not exist.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Number of scenes.")] = 8,
    size: Size = 256,
    split: SplitOption = Split.train,
    seed: Seed = 0,
    regions: Regions = None,
    no_masks: Annotated[
        bool, typer.Option("--no-masks", help="Ask about whole pictures only, as before a model knows masks.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many render at once.", show_default="one per core for many scenes")
    ] = None,
) -> None:
    """Render a data set: pictures under images/, and records.jsonl with the masks and answers of all regions."""
    with errors_in_one_line():
        from ..scenes import write_scenes

        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("scenes", total=n)
            records = write_scenes(
                out,
                n,
                seed=seed,
                size=size,
                split=split.value,
                num_regions=regions,
                with_masks=not no_masks,
                processes=processes,
                on_scene=lambda done: progress.update(bar, completed=done),
            )
    typer.echo(f"Wrote {n} scenes to {records}", err=True)


@app.command(cls=Command)
def score(
    n: Annotated[int, typer.Option("--n", min=1, help="Number of scenes.")] = 500,
    seed: Seed = 0,
    size: Size = 256,
    split: SplitOption = Split.test,
    regions: Regions = None,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="A question, such as color or dense (repeatable); a wrong name lists them.",
            show_default="the 16 attributes",
        ),
    ] = None,
    no_mask: Annotated[
        bool, typer.Option("--no-mask", help="Ask with the whole picture as region, to see what the mask does.")
    ] = False,
    model: Model = None,
    device: Device = None,
    dtype: DtypeOption = None,
    max_batch_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens that are held at once.", show_default="what half of the free memory takes"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a checkpoint on scenes whose combinations of values are kept out of training, word for word."""
    with errors_in_one_line():
        asked = _question_names(names)
        from ..scenes.rendering import check_arguments

        check_arguments(seed, size, split.value, regions)
        describer = load_describer(model, device, dtype, max_batch_tokens=max_batch_tokens)

    from ..scenes.scoring import score_scenes

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("scenes", total=n)
        result = score_scenes(
            describer,
            n,
            seed=seed,
            size=size,
            split=split.value,
            names=asked,
            num_regions=regions,
            use_mask=not no_mask,
            on_scene=lambda done: progress.update(bar, completed=done),
        )
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    table = Table("question", "asked", "right answers", "95 % interval", "both of a pair")
    for name, share in result["accuracy"].items():
        low, high = result["intervals_95"][name]
        pair = result["both_of_a_pair"].get(name)
        shares = (f"{share:.1%}", f"{low:.1%} to {high:.1%}", "" if pair is None else f"{pair:.1%}")
        table.add_row(name, str(result["counts"][name]), *shares)
    print_whole(Console(), table)
    typer.echo(f"{result['regions']} regions of {result['scenes']} scenes, first scene {result['seed']}")


def _question_names(names: list[str] | None) -> tuple[str, ...]:
    """The names of scenes' questions, in whatever spelling they are given."""
    from ..prompts_finecaption import no_such, normalise_name
    from ..scenes import ATTRIBUTE_NAMES, QUESTIONS

    known = {normalise_name(name): name for name in QUESTIONS}
    for name in names or ():
        if normalise_name(name) not in known:
            raise ValueError(no_such("question", name, QUESTIONS))
    return tuple(dict.fromkeys(known[normalise_name(name)] for name in names)) if names else ATTRIBUTE_NAMES
