"""`finecaption space`: the demo of a checkpoint, as a folder for the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from .common import errors_in_one_line


def space(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    model: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Checkpoint on the Hub.")],
    title: Annotated[str, typer.Option(help="Of the Space.")] = "FineCaption",
) -> None:
    """Write a Space: the demo of a checkpoint, ready to be pushed to the Hub.

    It has the code of this package beside it, and uses ZeroGPU where there is one.
    """
    with errors_in_one_line():
        from ..demo.space import write_space

        names = write_space(out, model, title)
    typer.echo(f"Wrote {out}: {', '.join(names)}.")
    typer.echo(f"To publish it: hf upload OWNER/SPACE {out} --repo-type space")
