"""`finecaption renew`: today's code for a checkpoint that was saved earlier."""

from typing import Annotated

import typer

from .common import errors_in_one_line


def renew(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|REPO", help="Checkpoint whose code is renewed: a folder, or owner/name on the Hub."
        ),
    ],
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch on the Hub to renew.", show_default="main")
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Propose the commit on the Hub instead of making it.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the changes and make none.")] = False,
) -> None:
    """Renew the code files of a checkpoint; its weights and its card stay.

    On the Hub it is one commit. The token is that of `hf auth login` or HF_TOKEN.
    """
    with errors_in_one_line():
        from .. import hub

        renewed = hub.renew(checkpoint, revision=revision, create_pr=create_pr, dry_run=dry_run)
    if renewed.is_up_to_date:
        typer.echo(f"{checkpoint} is up to date.")
        return
    for what in ("replaced", "added", "deleted"):
        names = getattr(renewed, what)
        if names:
            typer.echo(f"{'to be ' if dry_run else ''}{what}: {', '.join(names)}")
    if renewed.commit_url is not None:
        typer.echo(renewed.commit_url)
