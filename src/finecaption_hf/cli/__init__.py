"""The `finecaption` command; `python -m finecaption_hf.cli` is the same. One module per room, thin.

What is slow to import (torch, transformers) is imported where a command needs it, so that help comes at once.
"""

from typing import Annotated

import typer

from .. import __version__
from . import (
    ablate,
    assemble,
    caption,
    common,
    data,
    demo,
    describe,
    evaluate,
    export,
    info,
    prompts,
    push,
    quantise,
    renew,
    scenes,
    space,
    train,
)

app = typer.Typer(
    name="finecaption",
    help="Captions for any region of a picture.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(cls=caption.CaptionCommand)(caption.caption)
app.command(cls=common.OrderedCommand)(describe.describe)
app.command()(prompts.prompts)
app.add_typer(scenes.app, name="scenes")
app.command()(assemble.assemble)
app.command()(info.info)
app.add_typer(data.app, name="data")
app.command(context_settings=train.CONTEXT)(train.train)
app.command()(evaluate.evaluate)
app.command()(demo.demo)
app.command()(space.space)
app.command(context_settings=train.CONTEXT)(ablate.ablate)
app.command()(push.push)
app.command()(renew.renew)
app.add_typer(export.app, name="export")
app.command()(quantise.quantise)


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        typer.echo(f"finecaption-hf {__version__}")
        raise typer.Exit


def main() -> None:
    app()
