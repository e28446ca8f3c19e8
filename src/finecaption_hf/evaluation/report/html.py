"""Blocks as one HTML file that needs nothing else. Texts of models and data are escaped, and no script may run."""

import base64
import html
from collections.abc import Mapping, Sequence

from .layout import Block, Code, Example, Heading, Paragraph, Picture, Table

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.7rem; text-align: left; vertical-align: top; border-bottom: 1px solid #8886;
  unicode-bidi: isolate; overflow-wrap: anywhere; min-width: 8rem; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; min-width: 0; }
th.number { white-space: normal; min-width: 5em; }
/* On narrow screens tables and plots scroll sideways, under names that stay. */
th:first-child, td:first-child { position: sticky; left: 0; background: Canvas; }
td.text { min-width: 13rem; }
.wide img { min-width: 44rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
h1, h2, p { overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: 0.7rem; background: #8882; border-radius: 4px; font-size: 0.85rem; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.2rem; }
figure { margin: 0; } figcaption { font-size: 0.9rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 0.7rem; margin: 0.4rem 0; }
dt { opacity: 0.7; } dd { margin: 0; unicode-bidi: isolate; }
@media print {
  body { margin: 0; max-width: none; font-size: 12px; }
  th, td, td.text, .wide img { min-width: 0; } th.number { min-width: 5em; }
  th, td { padding: 0.2rem 0.4rem; font-size: 10px; }
  td.number { white-space: normal; } .wide { overflow: visible; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  h2, h3 { break-after: avoid; } figure, tr, img { break-inside: avoid; }
  .examples { grid-template-columns: repeat(3, 1fr); }
}
"""

_TYPES = {"png": "image/png", "jpg": "image/jpeg"}


def to_html(blocks: Sequence[Block], files: Mapping[str, bytes]) -> str:
    """A whole document.

    Args:
        blocks: what it shows; the first is its title.
        files: the content of the pictures (PNG or JPEG) that the blocks name, which goes into the document.
    """
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Evaluation")
    parts: list[str] = []
    in_examples = False
    for block in blocks:
        if isinstance(block, Example) != in_examples:
            in_examples = not in_examples
            parts.append('<div class="examples">' if in_examples else "</div>")
        parts.append(_block(block, files))
    if in_examples:
        parts.append("</div>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _block(block: Block, files: Mapping[str, bytes]) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Code):
        return f"<pre><code>{html.escape(block.text)}</code></pre>"
    if isinstance(block, Picture):
        return f'<div class="wide">{_image(block.path, block.alt, files)}</div>'
    if isinstance(block, Example):
        image = _image(block.picture, block.title, files) if block.picture else ""
        lines = "".join(f"<dt>{html.escape(label)}</dt><dd>{html.escape(text)}</dd>" for label, text in block.lines)
        title = f"<strong>{html.escape(block.title)}</strong>"
        return f"<figure>{image}<figcaption>{title}<dl>{lines}</dl></figcaption></figure>"
    return _table(block)


def _image(path: str, alt: str, files: Mapping[str, bytes]) -> str:
    kind = _TYPES[path.rpartition(".")[2]]
    data = base64.b64encode(files[path]).decode("ascii")
    return f'<img alt="{html.escape(alt)}" src="data:{kind};base64,{data}">'


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        found = []
        for index, cell in enumerate(cells):
            kind = "number" if table.is_number(index) else "text" if index else "name"
            found.append(f'<{tag} class="{kind}">{html.escape(cell)}</{tag}>')
        return f"<tr>{''.join(found)}</tr>"

    rows = "\n".join(row(cells, "td") for cells in table.rows)
    return (
        f'<div class="wide"><table>\n<thead>{row(table.columns, "th")}</thead>\n<tbody>{rows}</tbody>\n</table></div>'
    )
