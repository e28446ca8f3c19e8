"""`finecaption evaluate --table`: several models on the same data."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .common import errors_in_one_line
from .tables import print_whole

if TYPE_CHECKING:
    from ..data.dataset import ExampleDataset
    from ..evaluation.comparators import Row


def compare_models(
    rows: "Sequence[Row]",
    dataset: "ExampleDataset",
    output: Path,
    err: Console,
    *,
    score: Any,
    data_name: str,
    device: str | None,
    limit: int | None,
    retry_failed: bool,
    batch_size: int,
    command: str,
    versions: dict[str, str],
    report: dict[str, Any],
) -> None:
    """Ask the models of all rows, write their reports and the table; exit code 1 if a row has not come to its end."""
    from transformers.utils import logging

    from ..evaluation.comparators import report_table, run_table

    logging.disable_progress_bar()
    columns = (TextColumn("captions"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with errors_in_one_line():
        with Progress(*columns, console=err, transient=True) as progress:
            bar = progress.add_task("captions", total=None)
            results = run_table(
                rows,
                dataset,
                output,
                data_name=data_name,
                limit=limit,
                device=device,
                retry_failed=retry_failed,
                tell=lambda line: err.print(Text(line)),
                on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
                batch_size=batch_size,
                made_with={"command": command, "versions": versions},
            )
        content = report_table(results, output, score=score, dataset=dataset, command=command, **report)
    _print(content)
    for line in (*content["not_cited"], f"Wrote {output / 'table.md'}"):
        typer.echo(line, err=True)
    failed = [result.row.name for result in results if result.error is not None]
    if failed:
        typer.echo(
            f"{len(failed)} of {len(results)} rows have not come to their end: {', '.join(failed)}. The same command "
            "goes on with them.",
            err=True,
        )
        raise typer.Exit(1)


def _print(content: dict[str, Any]) -> None:
    console = Console()
    found = {name: metric["label"] for row in content["measured"] for name, metric in row.get("metrics", {}).items()}
    names = list(found)
    table = Table("measured here", *found.values())
    for entry in content["measured"]:
        metrics = entry.get("metrics", {})
        table.add_row(entry["name"], *(f"{metrics[name]['value']:.2f}" if name in metrics else "-" for name in names))
    print_whole(console, table)
    if content["cited"]:
        names = list(dict.fromkeys(name for row in content["cited"] for name in row["metrics"]))
        table = Table("cited, not measured", *names, "source")
        for row in content["cited"]:
            table.add_row(
                row["model"], *(f"{row['metrics'].get(name, float('nan')):.2f}" for name in names), row["source"]
            )
        print_whole(console, table)
