"""The `finecaption` command; `python -m finecaption_hf.cli` is the same. One module per room, thin.

What is slow to import (torch, transformers) is imported where a command needs it, so that help comes at once.
"""

import logging
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
    serve,
    space,
    train,
)
from .layout import HANDS_ON, HEADINGS, SETTINGS, Command, Group

app = typer.Typer(
    name="finecaption",
    cls=Group,
    help="Captions for any region of a picture.",
    no_args_is_help=True,
    context_settings=SETTINGS,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_ASK, _DATA, _TRAIN, _JUDGE, _SHARE = HEADINGS

app.command(cls=caption.CaptionCommand, rich_help_panel=_ASK)(caption.caption)
app.command(cls=common.OrderedCommand, rich_help_panel=_ASK)(describe.describe)
app.command(cls=Command, rich_help_panel=_ASK)(demo.demo)
app.command(cls=Command, rich_help_panel=_ASK)(serve.serve)
app.command(cls=Command, rich_help_panel=_ASK)(prompts.prompts)
app.add_typer(data.app, name="data", rich_help_panel=_DATA)
app.add_typer(scenes.app, name="scenes", rich_help_panel=_DATA)
app.command(cls=Command, rich_help_panel=_TRAIN)(assemble.assemble)
app.command(cls=Command, rich_help_panel=_TRAIN)(info.info)
app.command(cls=Command, rich_help_panel=_TRAIN, context_settings=HANDS_ON)(train.train)
app.command(cls=Command, rich_help_panel=_TRAIN)(quantise.quantise)
app.add_typer(export.app, name="export", rich_help_panel=_TRAIN)
app.command(cls=Command, rich_help_panel=_JUDGE)(evaluate.evaluate)
app.command(cls=Command, rich_help_panel=_JUDGE, context_settings=HANDS_ON)(ablate.ablate)
app.command(cls=Command, rich_help_panel=_SHARE)(push.push)
app.command(cls=Command, rich_help_panel=_SHARE)(renew.renew)
app.command(cls=Command, rich_help_panel=_SHARE)(space.space)


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    # Where bitsandbytes and peft are installed, importing transformers.Trainer warns about kernels of 4 bits.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if version:
        typer.echo(f"finecaption-hf {__version__}")
        raise typer.Exit


def main() -> None:
    app()
