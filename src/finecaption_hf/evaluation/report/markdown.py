"""Markdown around texts of models and data, which are shown as they are: nothing in them is markup."""

import html
import re
from collections.abc import Sequence


def escape(text: str) -> str:
    """A text on one line that no Markdown reader takes for markup, HTML or a cell's end."""
    text = html.escape(" ".join(text.split()), quote=False)
    text = re.sub(r"[\\`*_\[\]|~$#]", r"\\\g<0>", text)
    # At its beginning also what would be a list or a rule; a number may be negative.
    return re.sub(r"^(\d*)([+.)-])(?!\d)", r"\1\\\2", text)


def code(text: str, language: str = "") -> str:
    """A block of code. A fence that is longer than any in the text cannot be closed by it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text}\n{fence}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 0) -> str:
    """A table. The first column and the last `texts` ones hold texts, the others numbers, which stand on the right."""
    numbers = range(1, len(columns) - texts)
    rule = ["---:" if index in numbers else "---" for index in range(len(columns))]
    lines = [list(map(escape, columns)), rule, *(list(map(escape, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def anchors(headings: Sequence[str]) -> list[str]:
    """What links lead to headings by, in their order, as GitHub makes it; they are texts as `escape` leaves them."""
    found: list[str] = []
    for heading in headings:
        plain = html.unescape(re.sub(r"\\(.)", r"\1", heading))
        found.append(re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-"))
    before = [found[:index].count(name) for index, name in enumerate(found)]
    return [f"{name}-{count}" if count else name for name, count in zip(found, before)]


def folded(title: str, *blocks: str) -> str:
    """Blocks that are shown when their title is clicked."""
    return "\n\n".join((f"<details>\n<summary>{html.escape(title)}</summary>", *blocks, "</details>"))


def picture(path: str, text: str) -> str:
    """A picture that lies beside the document."""
    return f"![{escape(text)}]({path})"
