"""A report in Markdown as one HTML file that needs nothing else. No script may run in it, and nothing is loaded."""

import base64
import html
from collections.abc import Mapping
from typing import Any

from markdown_it import MarkdownIt

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.wide { display: block; overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.7rem; text-align: left; vertical-align: top; border-bottom: 1px solid #8886;
  unicode-bidi: isolate; overflow-wrap: anywhere; min-width: 8rem; }
/* Markdown puts numbers on the right, by a style. */
td[style], th[style] { font-variant-numeric: tabular-nums; white-space: nowrap; min-width: 0; }
th[style] { white-space: normal; min-width: 5em; }
/* On narrow screens tables and plots scroll sideways, under names that stay. */
th:first-child, td:first-child { position: sticky; left: 0; background: Canvas; }
td:not([style], :first-child) { min-width: 13rem; }
.wide img { min-width: 44rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
h1, h2, p, li { overflow-wrap: anywhere; unicode-bidi: isolate; }
pre { overflow-x: auto; padding: 0.7rem; background: #8882; border-radius: 4px; font-size: 0.85rem; }
/* The lists are those of examples. */
body > ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1.2rem; }
ul { list-style: none; padding: 0; font-size: 0.9rem; } li p { margin: 0.2rem 0; }
ul ul li { padding-left: 5.5rem; text-indent: -5.5rem; }
li em { display: inline-block; min-width: 5.2rem; text-indent: 0; font-style: normal; opacity: 0.7; }
@media print {
  body { margin: 0; max-width: none; font-size: 12px; }
  th, td, td:not([style], :first-child), .wide img { min-width: 0; } th[style] { min-width: 5em; }
  th, td { padding: 0.2rem 0.4rem; font-size: 10px; }
  td[style] { white-space: normal; } .wide { overflow: visible; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  h2, h3 { break-after: avoid; } li, tr, img { break-inside: avoid; }
  body > ul { grid-template-columns: repeat(3, 1fr); }
}
"""

_TYPES = {"png": "image/png", "jpg": "image/jpeg"}


def to_html(text: str, files: Mapping[str, bytes]) -> str:
    """A whole document.

    Args:
        text: Markdown, as `layout` gives it; its first line is the title.
        files: the content of the pictures (PNG or JPEG) that it names, which goes into the document.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink", "reference"])
    markdown.add_render_rule("image", _image)
    markdown.add_render_rule("table_open", lambda *_: '<div class="wide"><table>\n')
    markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
    env = {"files": files}
    tokens = markdown.parse(text, env)
    title = tokens[1].children[0].content
    body = markdown.renderer.render(tokens, markdown.options, env)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _image(renderer: Any, tokens: Any, index: int, options: Any, env: Mapping[str, Any]) -> str:
    token = tokens[index]
    path, alt = token.attrs["src"], html.escape(token.content)
    data = base64.b64encode(env["files"][path]).decode("ascii")
    shown = f'<img alt="{alt}" src="data:{_TYPES[path.rpartition(".")[2]]};base64,{data}">'
    return f'<span class="wide">{shown}</span>' if path.startswith("plots/") else shown
