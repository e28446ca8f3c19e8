"""`finecaption export`: parts of a checkpoint in other formats."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .common import Json, Model, errors_in_one_line
from .layout import Command, Group

app = typer.Typer(
    help="Write a checkpoint's vision part in another format.", no_args_is_help=True, cls=Group, rich_markup_mode=None
)


@app.callback()
def _group() -> None:
    """Keeps `onnx` a command of its own while it is the only one."""


@app.command(cls=Command)
def onnx(
    out: Annotated[Path, typer.Option(metavar="FILE", help="ONNX file to write.")],
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Export towers and adapter, masks as an input, and compare them with PyTorch.

    The language model stays out: it decodes with a cache, for which engines have their own formats.
    """
    with errors_in_one_line():
        from ..assembly.exporting import export_onnx

        done = export_onnx(model, out)
    if as_json:
        typer.echo(json.dumps(done))
        return
    for name, shape in {**done["inputs"], **done["output"]}.items():
        typer.echo(f"{name} {tuple(shape)}".replace("'", ""))
    typer.echo(f"Wrote {out}; it differs from PyTorch by {done['difference']:.1e} of the largest value.")
