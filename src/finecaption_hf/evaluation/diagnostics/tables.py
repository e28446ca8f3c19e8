"""What diagnostics have in common: the form of their results, known answers, texts that count as the same."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..intervals import Interval, Statistic, interval

Truth = Callable[[str | int | None, str | int | None, tuple[int, int], Mapping[str, str]], Mapping[str, Sequence[str]]]
"""Where right answers are known: (id of the example, id of the region, size of its picture, its references by name) ->
for each name all wordings of the right answer; empty where they are not known. `scenes.known_answers` is one."""

Values = Mapping[str, Sequence[Sequence[str]]]
"""Closed vocabularies: for the name of an attribute all its values, each with the phrases that say it.
`scenes.known_values` makes them."""


def diagnostic(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str], values: dict[str, Any]
) -> dict[str, Any]:
    """The form that the report draws."""
    table = {"columns": list(columns), "rows": [list(row) for row in rows]}
    return {"title": title, "table": table, "notes": list(notes), "values": values}


def mean_interval(values: Sequence[float], images: Sequence[str], seed: int) -> Interval | None:
    """The mean with its interval by images, `None` where there is no value."""
    return interval(Statistic.mean(values), images, seed=seed) if values else None


def cell(found: Interval | None, digits: int = 3) -> str:
    """A number with its interval, for a table; a dash where there is none."""
    if found is None:
        return "–"
    value = f"{found.value:.{digits}f}"
    return value if found.low is None else f"{value} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def as_json(found: Interval | None) -> dict[str, Any] | None:
    return None if found is None else found.to_json()


def plain_text(text: str) -> str:
    """Lower case, single spaces, no closing full stop."""
    return " ".join(text.split()).rstrip(".").rstrip().lower()


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case; an apostrophe or hyphen inside a word belongs to it."""
    return re.findall(r"\w+(?:['’-]\w+)*", text.lower())


def told(counts: Mapping[str, int]) -> str:
    """Reasons with how often they came, for a note."""
    return "; ".join(f"{count} because {reason}" for reason, count in sorted(counts.items()))
