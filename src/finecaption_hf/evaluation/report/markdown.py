"""Blocks as Markdown. Texts of models and data are shown as they are: nothing in them is markup."""

import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .layout import Block, Table


def escape(text: str) -> str:
    """A text on one line that no Markdown reader takes for markup, HTML or a cell's end."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"^(?:#|[+-](?=\s))|[\\`*_\[\]|~$]", r"\\\g<0>", text)


def to_markdown(blocks: Sequence["Block"]) -> str:
    """A whole document."""
    from .layout import Code, Example, Heading, Paragraph, Picture

    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {escape(block.text)}")
        elif isinstance(block, Paragraph):
            parts.append(escape(block.text))
        elif isinstance(block, Code):
            # A fence that is longer than any in the text cannot be closed by it.
            fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", block.text))])
            parts.append(f"{fence}{block.language}\n{block.text}\n{fence}")
        elif isinstance(block, Picture):
            parts.append(f"![{escape(block.alt)}]({block.path})")
        elif isinstance(block, Example):
            picture = [f"![{escape(block.title)}]({block.picture})\n"] if block.picture else []
            lines = [f"- {escape(label)}: {escape(text)}" for label, text in block.lines]
            parts.append("\n".join([f"**{escape(block.title)}**\n", *picture, *lines]))
        else:
            parts.append(_table(block))
    return "\n\n".join(parts) + "\n"


def _table(table: "Table") -> str:
    rule = ["---:" if table.is_number(index) else "---" for index in range(len(table.columns))]
    rows = [[escape(cell) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [[escape(name) for name in table.columns], rule, *rows])
