"""`finecaption push`: a checkpoint to the Hub."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .common import Json, errors_in_one_line


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A checkpoint.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repository on the Hub, owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="report.json of `finecaption evaluate`, for the card.", show_default=False),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Hub id of the report's data, for .eval_results.", show_default=False),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Commit to this branch.", show_default="main")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="Where the files do not tell one.", show_default="from the parts"),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(metavar="ID_OR_FOLDER", help="What it was trained from.", show_default="from the files"),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="A Space with a demo of it, for the card.", show_default=False),
    ] = None,
    picture: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Picture to show in the card; repeatable.", show_default=False),
    ] = None,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Upload FineCaption checkpoint",
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
            message=message,
            tell=lambda line: typer.echo(line, err=True),
        )
    if as_json:
        typer.echo(
            json.dumps({name: getattr(pushed, name) for name in ("url", "commit_url", "oid", "files", "deleted")})
        )
    else:
        typer.echo(pushed.url)
