"""A report in Markdown as one HTML file that needs nothing else. No script may run in it, and nothing is loaded."""

import base64
import html
import re
from collections.abc import Mapping
from typing import Any

from markdown_it import MarkdownIt

from .markdown import anchors

_STYLE = """
:root { color-scheme: light dark; background: Canvas; color: CanvasText; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; scroll-margin-top: 1rem; }
/* A section fits a screen: what is longer scrolls within itself, under its header, or is folded. */
.wide { display: block; overflow: auto; max-height: 78vh; margin: 1rem 0; } div.wide { max-height: 65vh; }
thead th { position: sticky; top: 0; z-index: 1; background: Canvas; } thead th:first-child { z-index: 2; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.7rem; text-align: left; vertical-align: top; border-bottom: 1px solid #8886;
  unicode-bidi: isolate; overflow-wrap: anywhere; min-width: 8rem; }
/* Markdown puts numbers on the right, by a style. */
td[style], th[style] { font-variant-numeric: tabular-nums; white-space: nowrap; min-width: 0; }
th[style] { white-space: normal; min-width: 6em; }
/* On narrow screens tables and plots scroll sideways, under names that stay. */
th:first-child, td:first-child { position: sticky; left: 0; background: Canvas; }
td:not([style], :first-child) { min-width: 13rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
li img { max-height: 12rem; }
summary { cursor: pointer; padding: 0.6rem 0; color: LinkText; }
.contents { display: flex; flex-wrap: wrap; gap: 0 1.5rem; } .contents a { display: block; padding: 0.6rem 0; }
h1, h2, p, li { overflow-wrap: anywhere; unicode-bidi: isolate; }
pre { overflow: auto; max-height: 60vh; white-space: pre-wrap; overflow-wrap: anywhere;
  padding: 0.7rem; background: #8882; border-radius: 4px; font-size: 0.85rem; }
/* The other lists are those of examples. */
body > ul:not(.contents) { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
ul { list-style: none; padding: 0; font-size: 0.9rem; } li p { margin: 0.2rem 0; }
ul ul { max-height: 11rem; overflow: auto; }
ul ul li { padding-left: 5.5rem; text-indent: -5.5rem; }
li em { display: inline-block; min-width: 5.2rem; text-indent: 0; font-style: normal; opacity: 0.7; }
@media screen and (max-width: 40rem) {
  body > ul:not(.contents) { grid: auto / auto-flow 85%; overflow: auto; }
  div.wide { max-height: 40vh; } .wide img { max-width: none; }
}
@media print {
  body { margin: 0; max-width: none; font-size: 12px; }
  th, td, td:not([style], :first-child) { min-width: 0; } th[style] { min-width: 5em; }
  th, td { padding: 0.2rem 0.4rem; font-size: 10px; }
  td[style] { white-space: normal; } .wide, div.wide, pre, ul ul { overflow: visible; max-height: none; }
  thead th { position: static; }
  details::details-content { content-visibility: visible; height: auto; }
  h2, h3 { break-after: avoid; } li, tr, img { break-inside: avoid; }
  body > ul:not(.contents) { grid-template-columns: repeat(3, 1fr); }
}
"""

_TYPES = {"png": "image/png", "jpg": "image/jpeg"}


def to_html(text: str, files: Mapping[str, bytes]) -> str:
    """A whole document.

    Args:
        text: Markdown, as `layout` gives it; its first line is the title.
        files: the content of the pictures (PNG or JPEG) that it names, which goes into the document.
    """
    # Of HTML the lines of folds are taken, of links those to headings.
    markdown = MarkdownIt("commonmark").enable("table").disable(["html_inline", "autolink", "reference"])
    markdown.validateLink = lambda url: url.startswith("#") or url in files  # type: ignore[method-assign]
    markdown.add_render_rule("image", _image)
    markdown.add_render_rule("html_block", _fold)
    markdown.add_render_rule("table_open", lambda *_: '<div class="wide" tabindex="0"><table>\n')
    markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
    env = {"files": files}
    tokens = markdown.parse(text, env)
    title = tokens[1].children[0].content
    headings = [index for index, token in enumerate(tokens) if token.tag == "h2" and token.nesting > 0]
    for index, anchor in zip(headings, anchors([tokens[index + 1].content for index in headings])):
        tokens[index].attrSet("id", anchor)
    lists = [token for token in tokens if token.type == "bullet_list_open"]
    lists[0].attrSet("class", "contents")
    for token in lists[1:]:  # those within a list scroll, and so does the list on a phone
        token.attrSet("tabindex", "0")
    body = markdown.renderer.render(tokens, markdown.options, env)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


_FOLD = re.compile(r"<details>\n<summary>[^<>]*</summary>|</details>")


def _fold(renderer: Any, tokens: Any, index: int, options: Any, env: Mapping[str, Any]) -> str:
    """The lines of `folded`; nothing else is HTML."""
    lines = tokens[index].content.strip()
    return f"{lines}\n" if _FOLD.fullmatch(lines) else f"<p>{html.escape(lines)}</p>\n"


def _image(renderer: Any, tokens: Any, index: int, options: Any, env: Mapping[str, Any]) -> str:
    token = tokens[index]
    path, alt = token.attrs["src"], html.escape(token.content)
    data = base64.b64encode(env["files"][path]).decode("ascii")
    shown = f'<img alt="{alt}" src="data:{_TYPES[path.rpartition(".")[2]]};base64,{data}">'
    return f'<span class="wide" tabindex="0">{shown}</span>' if path.startswith("plots/") else shown
