"""`finecaption caption --input ... --output ...`: a whole dataset."""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from .common import Dtype, check_attributes, load_describer

if TYPE_CHECKING:
    from ..describing import Result

_SECONDS_BETWEEN_LINES = 30


def caption_dataset(
    source: str,
    output: Path,
    questions: Sequence[tuple[str, str]],
    *,
    images: Path | None,
    split: str | None,
    model: str | None,
    device: str | None,
    dtype: Dtype | None,
    options: dict[str, Any],
    num_workers: int,
    overwrite: bool,
    retry_failed: bool,
    as_json: bool,
) -> None:
    """Describe all regions of an input; `questions` are (option, value) as they were given."""
    from ..describing import (
        Options,
        Processes,
        ProcessLostError,
        ResumeError,
        UnfinishedError,
        check_output,
        describe_dataset,
        open_inputs,
    )

    processes = Processes.launched()
    if not processes.is_main:
        from transformers.utils import logging

        logging.set_verbosity_error()
        warnings.simplefilter("ignore")
    if device is None and processes.count > 1:
        device = _own_device()

    def tell(line: str) -> None:
        if processes.is_main:
            typer.echo(line, err=True)

    def stop(line: str, code: int) -> typer.Exit:
        tell(f"Error: {' '.join(line.split())}")
        return typer.Exit(code)

    def load() -> Any:
        describer = load_describer(model, device, dtype, max_batch_tokens=options["max_batch_tokens"])
        check_attributes(questions, describer.questions)
        return describer

    started = time.monotonic()
    counted: list[tuple[int, int]] = []

    def so_far() -> str:
        finished = "{} of {} regions are finished. ".format(*counted[-1]) if counted else ""
        return f"{finished}What was finished is kept; the same command goes on from there."

    try:
        check_output(output)
        inputs = open_inputs(source, images=images, split=split)
        for note in inputs.notes:
            tell(note)
        with _progress(processes.is_main) as show:

            def on_progress(done: int, total: int) -> None:
                counted.append((done, total))
                del counted[1:-1]
                show(done, total)

            result = describe_dataset(
                load,
                inputs,
                output,
                [value for _, value in questions],
                Options(**{name: value for name, value in options.items() if name != "max_batch_tokens"}),
                overwrite=overwrite,
                retry_failed=retry_failed,
                num_workers=num_workers,
                processes=processes,
                on_progress=on_progress,
                tell=tell,
            )
    except KeyboardInterrupt:
        tell(f"Stopped. {so_far()}")
        raise typer.Exit(130) from None
    except (UnfinishedError, ProcessLostError) as error:
        raise stop(f"{error} {so_far()}", 1) from error
    except (ImportError, OSError, ValueError) as error:
        if counted and not isinstance(error, ResumeError):
            raise  # input was good and work had begun: a defect, which keeps its traceback
        raise stop(str(error), 2) from error
    if processes.is_main:
        _report(result, output, as_json, counted, time.monotonic() - started)
    if result.failed:
        raise typer.Exit(1)


def _own_device() -> str | None:
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else None


def _report(result: "Result", output: Path, as_json: bool, counted: Sequence[tuple[int, int]], seconds: float) -> None:
    if as_json:
        report = {
            "output": str(output),
            "regions": result.regions,
            "failed": result.failed,
            "failures": result.places,
        }
        typer.echo(json.dumps(report, ensure_ascii=False, indent=2))
    if counted:
        number = counted[-1][0] - counted[0][0]
        rate = f", {number} of them now in {seconds:.0f} s" if number < result.regions else f" in {seconds:.0f} s"
        typer.echo(f"Wrote {output}: {result.regions} regions{rate}", err=True)
    if result.failed:
        typer.echo(f"{result.failed} of {result.regions} regions could not be described:", err=True)
        for place in result.places:
            typer.echo(f"  {' '.join(place.split())}", err=True)
        if more := result.failed - len(result.places):
            typer.echo(f'  and {more} more: the lines with "error" in {output}', err=True)
        typer.echo("Once their cause is mended, --retry-failed describes them.", err=True)


class _RateColumn(ProgressColumn):
    def render(self, task: Any) -> Text:
        return Text("" if not task.speed else f"{_rate(task.speed)}")


def _rate(regions_per_second: float) -> str:
    if regions_per_second >= 1:
        return f"{regions_per_second:.1f} regions/s"
    return f"{1 / regions_per_second:.1f} s/region"


@contextmanager
def _progress(is_main: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; elsewhere, such as in a log, a line now and then."""
    console = Console(stderr=True)
    if not is_main:
        yield lambda done, total: None
        return
    if not console.is_terminal:
        yield _ProgressLines()
        return
    columns = (
        TextColumn("regions"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    # Batches of a large model may take long, so the rate is that of the last ten minutes.
    with Progress(*columns, console=console, speed_estimate_period=600) as progress:
        bars: list[Any] = []

        def show(done: int, total: int) -> None:
            if bars:
                progress.update(bars[0], completed=done)
            else:
                bars.append(progress.add_task("regions", total=total, completed=done))

        yield show


class _ProgressLines:
    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None
        self.last = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self.last = (now, done), now
        if now - self.last < _SECONDS_BETWEEN_LINES or done == self.first[1]:
            return
        self.last = now
        rate = (done - self.first[1]) / (now - self.first[0])
        left = time.strftime("%H:%M:%S", time.gmtime((total - done) / rate))
        typer.echo(f"{done} of {total} regions, {_rate(rate)}, {left} left", err=True)
