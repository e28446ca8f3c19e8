"""`finecaption push`: a checkpoint to the Hub."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .common import Json, errors_in_one_line


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", exists=True, help="Folder of the checkpoint.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repository on the Hub, owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            help="Report whose figures go to the card: report.json of `finecaption evaluate`.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Hub id of the report's data, under which the Hub lists its figures.", show_default=False
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch to commit to.", show_default="main")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="ID",
            help="Licence of the checkpoint, where its files do not tell one.",
            show_default="from the parts",
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="ID_OR_FOLDER", help="Checkpoint that it was trained from.", show_default="from the files"
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME", help="Space with a demo of the checkpoint, for the card.", show_default=False
        ),
    ] = None,
    picture: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", exists=True, help="Picture to show in the card (repeatable).", show_default=False),
    ] = None,
    handler: Annotated[
        bool, typer.Option("--handler", help="Add handler.py, with which Inference Endpoints answer about regions.")
    ] = False,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload FineCaption checkpoint",
    as_json: Json = False,
) -> None:
    """Upload a checkpoint with its code, processor, card and evaluation in one commit.

    After an interruption the same command goes on. The token is that of `hf auth login` or HF_TOKEN.
    """
    with errors_in_one_line():
        from .. import hub

        pushed = hub.push_folder(
            folder,
            repo,
            private=private or None,
            revision=revision,
            evaluation=report,
            dataset=dataset,
            licence=licence,
            base_model=base_model,
            space=space,
            pictures=picture or (),
            handler=handler,
            message=message,
            tell=lambda line: typer.echo(line, err=True),
        )
    if as_json:
        typer.echo(
            json.dumps({name: getattr(pushed, name) for name in ("url", "commit_url", "oid", "files", "deleted")})
        )
    else:
        typer.echo(pushed.url)
