"""`finecaption push`: a checkpoint to the Hub."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Json, errors_in_one_line, parse_json

if TYPE_CHECKING:
    from ..hub import Evaluation


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
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Upload FineCaption checkpoint",
    as_json: Json = False,
) -> None:
    """Upload a checkpoint with its code, processor, card and evaluation in one commit.

    After an interruption the same command goes on. The token is that of `hf auth login` or HF_TOKEN.
    """
    with errors_in_one_line():
        from .. import hub

        evaluation = None if report is None else _evaluation(report)
        pushed = hub.push(
            folder,
            repo,
            private=private,
            revision=revision,
            evaluation=evaluation,
            dataset=dataset,
            licence=licence,
            base_model=base_model,
            message=message,
            tell=lambda line: typer.echo(line, err=True),
        )
    if as_json:
        typer.echo(
            json.dumps({name: getattr(pushed, name) for name in ("url", "commit_url", "oid", "files", "deleted")})
        )
    else:
        typer.echo(pushed.url)


def _evaluation(path: Path) -> "Evaluation":
    from ..evaluation.report.card import card_row, eval_results
    from ..hub import Evaluation

    report = parse_json(path.read_text(encoding="utf-8"), str(path))
    needed = {"model", "data", "counts", "metrics", "diagnostics", "signature"}
    if not isinstance(report, dict) or report.get("finecaption_report") != 1 or not needed <= report.keys():
        raise ValueError(f"{path} is no report that this version reads. Give report.json of `finecaption evaluate`.")
    return Evaluation(report, card_row(report), eval_results(report))
