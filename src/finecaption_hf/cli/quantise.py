"""`finecaption quantise`: a checkpoint whose language model is held in 8 or 4 bits."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .common import Device, errors_in_one_line


class Scheme(str, Enum):
    int8 = "int8"
    int4 = "int4"


def quantise(
    folder: Annotated[Path, typer.Argument(exists=True, help="Checkpoint to be quantised.")],
    scheme: Annotated[Scheme, typer.Option(help="Bits of a weight: LLM.int8, or NF4 with quantised scales.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the new checkpoint.")],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            exists=True,
            help="Described regions, such as rendered scenes: both checkpoints are evaluated on them for the card.",
            show_default="the card says that nothing was measured",
        ),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the two evaluations.", show_default="DIR-evaluation beside --out"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask about this many examples only, the first.", show_default="all")
    ] = None,
    device: Device = None,
) -> None:
    """Quantise the language model of a checkpoint with bitsandbytes; towers and adapter become bfloat16.

    The new checkpoint loads like any other, where bitsandbytes is installed. With --data its card says what that costs
    in accuracy.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with errors_in_one_line():
        if data is None and (evaluation or limit or device):
            raise ValueError("--evaluation, --limit and --device are for --data. Give that, or leave them out.")
        from ..assembly.quantising import quantise as write

        reports = evaluation or out.with_name(f"{out.name}-evaluation")
        if data is None:
            write(folder, out, scheme.value)
        else:
            from ..data import open_dataset
            from ..evaluation.costing import report_cost
            from ..evaluation.metrics import CaptionScorer

            score, dataset = CaptionScorer(["rouge_l"], tokenizer="python"), open_dataset(data)
            with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
                bar = progress.add_task("quantising", total=None)

                def measure(quantised: Path) -> dict[str, Any]:
                    return report_cost(
                        folder,
                        quantised,
                        dataset,
                        reports,
                        score=score,
                        data_name=str(data),
                        names=(folder.resolve().name, out.name),
                        limit=limit,
                        device=device,
                        on_progress=lambda name, done, total: progress.update(
                            bar, description=name, completed=done, total=total
                        ),
                    )

                write(folder, out, scheme.value, measure=measure)
    typer.echo(f"Wrote {out}" + ("" if data is None else f", and its evaluation to {reports}"))
