"""`finecaption scenes`: rendered scenes, whose right answers are known."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .common import Device, DtypeOption, Json, Model, errors_in_one_line, load_checkpoint

app = typer.Typer(help="Rendered scenes, whose right answers are known.", no_args_is_help=True)

Seed = Annotated[int, typer.Option(min=0, help="The first scene; scenes are numbered.")]


class Split(str, Enum):
    train = "train"
    test = "test"


@app.command()
def render(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write to; made if it does not exist.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Number of scenes.")] = 8,
    seed: Seed = 0,
    split: Annotated[Split, typer.Option(help="Combinations of color, shape and texture that occur.")] = Split.test,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 256,
) -> None:
    """Render scenes: PNG files, and regions.jsonl with one region a line (image, COCO RLE, caption, all answers)."""
    from PIL import Image

    from ..masks_finecaption import encode_rle
    from ..scenes import answers, render_scene

    num_regions = 0
    with errors_in_one_line():
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


@app.command()
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
    with errors_in_one_line():
        checkpoint, processor = load_checkpoint(model, device, dtype)

    from ..scenes.scoring import score_scenes

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
