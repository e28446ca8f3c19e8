"""How far a long command is: a bar on a terminal; elsewhere, such as in a log, a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

_SECONDS_BETWEEN_LINES = 30


class _RateColumn(ProgressColumn):
    def render(self, task: Any) -> Text:
        return Text("" if not task.speed else f"{_rate(task.speed)}")


def _rate(regions_per_second: float) -> str:
    if regions_per_second >= 1:
        return f"{regions_per_second:.1f} regions/s"
    return f"{1 / regions_per_second:.1f} s/region"


@contextmanager
def progress(is_main: bool) -> Iterator[Callable[[int, int], None]]:
    """Gives what is told how many regions are done, and of how many."""
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
    with Progress(*columns, console=console, speed_estimate_period=600) as shown:
        bars: list[Any] = []

        def show(done: int, total: int) -> None:
            if bars:
                shown.update(bars[0], completed=done)
            else:
                bars.append(shown.add_task("regions", total=total, completed=done))

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
