"""`finecaption space`: the demo of a checkpoint, as a folder for the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from .common import errors_in_one_line


def space(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write the Space to.")],
    model: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Checkpoint on the Hub that the Space shows.")],
    title: Annotated[str, typer.Option(help="Title of the Space and of its page.")] = "FineCaption",
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/SPACE", help="Space on the Hub to upload it to.", show_default=False)
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a private Space, with --push.")] = False,
) -> None:
    """Write a Space: the demo of a checkpoint, ready to be pushed to the Hub.

    It has the code of this package beside it, and uses ZeroGPU where there is one. With --push it is uploaded, in one
    commit; the token is that of `hf auth login` or HF_TOKEN.
    """
    with errors_in_one_line():
        if private and push is None:
            raise ValueError("--private is about the Space that --push uploads to. Give --push OWNER/SPACE too.")
        from .. import hub

        names = hub.write_space(out, model, title)
        typer.echo(f"Wrote {out}: {', '.join(names)}.")
        if push is None:
            typer.echo(f"To publish it: hf upload OWNER/SPACE {out} --repo-type space")
        else:
            try:
                url = hub.push_space(out, push, private=private)
            except hub.HubError as error:
                raise hub.HubError(f"{error} {out} is written; the same command then goes on.") from error
            typer.echo(url)
