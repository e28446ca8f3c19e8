"""Tables on a terminal of any width."""

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_EDGES = 3  # characters beside each column's words: a line and two spaces


def print_whole(console: Console, table: Table) -> None:
    """Print a table without cutting a word: where it is too wide, in parts that all begin with the first column."""
    sizes = [
        [Measurement.get(console, console.options, cell) for cell in (column.header, *column.cells)]
        for column in table.columns
    ]
    least = [max(size.minimum for size in of_column) + _EDGES for of_column in sizes]
    most = [max(size.maximum for size in of_column) + _EDGES for of_column in sizes]
    parts: list[list[int]] = [[0]]
    for place in range(1, len(least)):
        if len(parts[-1]) > 1 and 1 + sum(least[each] for each in parts[-1]) + least[place] > console.width:
            parts.append([0])
        parts[-1].append(place)
    for number, part in enumerate(parts):
        shown = table
        if len(parts) > 1:
            shown = Table(title=None if number else table.title, title_justify=table.title_justify)
            for place in part:
                shown.add_column(table.columns[place].header, justify=table.columns[place].justify)
            for cells in zip(*(table.columns[place].cells for place in part), strict=True):
                shown.add_row(*cells)
        widths = {place: least[place] for place in part}
        room = console.width - 1 - sum(widths.values())
        for _ in range(room):  # to whichever column lacks most
            place = max(part, key=lambda each: most[each] - widths[each])
            widths[place] += widths[place] < most[place]
        for place, column in zip(part, shown.columns, strict=True):
            column.overflow = "fold"
            column.width = widths[place] - _EDGES if room >= 0 else None
        console.print(shown)
