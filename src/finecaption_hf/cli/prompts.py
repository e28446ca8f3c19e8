"""`finecaption prompts`: what models beside FineCaption are asked, as a file to edit."""

from pathlib import Path
from typing import Annotated

import typer

from .common import errors_in_one_line


def prompts(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="ID_OR_FOLDER",
            help="Model whose family decides the words; its weights are not read.",
            show_default="of no known family",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write.", show_default="standard output")
    ] = None,
) -> None:
    """Write the prompts of models beside FineCaption as YAML, one per question, to edit and give as --prompts."""
    with errors_in_one_line():
        from ..asking.kinds import prompts_for
        from ..prompts_finecaption import ATTRIBUTES, TASKS

        text = prompts_for(model).to_yaml({**TASKS, **ATTRIBUTES})
        if out is None:
            typer.echo(text, nl=False)
            return
        if out.exists():
            raise FileExistsError(f"{out} is there already and may have been edited. Give another name.")
        out.write_text(text, encoding="utf-8")
        typer.echo(f"Wrote {out}", err=True)
