"""What mkdocs.yml does not say: pages made from README.md, the commands and the docstrings, and their links."""

import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
import typer
from markdown import Extension, Markdown
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from finecaption_hf.cli import app

ROOT = Path(__file__).parents[1]
# Pages that are files of the repository outside of docs/.
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# Those whose names are public, in the order in which a reader meets them.
MODULES = [
    "finecaption_hf",
    "finecaption_hf.pipeline_finecaption",
    "finecaption_hf.engine_finecaption",
    "finecaption_hf.prompts_finecaption",
    "finecaption_hf.asking",
    "finecaption_hf.describing",
    "finecaption_hf.data",
    "finecaption_hf.segmentation",
    "finecaption_hf.drawing",
    "finecaption_hf.training",
    "finecaption_hf.evaluation",
    "finecaption_hf.evaluation.metrics",
    "finecaption_hf.evaluation.diagnostics",
    "finecaption_hf.assembly",
    "finecaption_hf.hub",
    "finecaption_hf.scenes",
]


class PlainTypes(griffe.Extension):
    """Types in docstrings stand in backquotes, as in transformers: (`int`, *optional*). Here they are code anyway."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^( +\w+(?:, \w+)* \()(.*)(\):)(?=\s|$)",
                lambda found: found[1] + re.sub(r"[`*]", "", found[2]) + found[3],
                obj.docstring.value,
                flags=re.MULTILINE,
            )


class Indented(Extension):
    """What belongs to an item of a list is indented by two columns, as on GitHub, not by four."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.tab_length = 2


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.markdown_extensions.append(Indented())  # type: ignore[arg-type]
    config.watch.extend(str(ROOT / name) for name in ("src", *OUTSIDE))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in OUTSIDE.items()}
    pages["commands.md"] = "\n".join(_commands())
    pages["api.md"] = "\n".join(_api())
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they hold in the repository become links of the site; to what has no page there, the words stay."""
    source = {page: name for name, page in OUTSIDE.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    folder = posixpath.dirname(source)

    def target(link: str) -> str | None:
        name, hash_sign, anchor = link.partition("#")
        if not name or re.match(r"[a-z]+:", name):
            return link
        path = posixpath.normpath(posixpath.join(folder, name))
        uri = OUTSIDE.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
        if files.get_file_from_path(uri) is None:
            return None
        return posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".") + hash_sign + anchor

    def link(found: re.Match[str]) -> str:
        to = target(found[2])
        return found[1] if to is None else f"[{found[1]}]({to})"

    parts = re.split(r"(^ *```.*?^ *```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", link, parts[i])
        parts[i] = re.sub(r'(?<=<img src=")[^"]+', lambda found: target(found[0]) or found[0], parts[i])
    return "".join(parts)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    return _own_worker(output, page.url)


def on_post_template(output: str, template_name: str, config: MkDocsConfig) -> str:
    return _own_worker(output, template_name)


def _own_worker(output: str, url: str) -> str:
    """The site's own of what the search needs where there is no server, which the theme takes from another host."""
    return output.replace("https://unpkg.com/iframe-worker/shim", get_relative_url("folder-worker.js", url))


# --- reference -------------------------------------------------------------------------------------------------------


def _api() -> Iterator[str]:
    yield "# API\n\nImport each name from the module below which it stands. What is not here may change.\n"
    for name in MODULES:
        yield f"- [`{name}`](#{name})"
    for name in MODULES:
        yield f"\n::: {name}\n"


def _commands() -> Iterator[str]:
    yield "# Commands\n\n`finecaption COMMAND --help` prints the same; `python -m finecaption_hf.cli` is the same.\n"
    root = typer.main.get_command(app)
    leaves = dict(_leaves(root, "finecaption"))
    for name, command in leaves.items():
        yield f"- [`{name}`](#{name.replace(' ', '-')}): {_text((command.help or '').strip().splitlines()[0])}"
    for name, command in leaves.items():
        yield from ("", f"## {name}", "")
        yield from _command(name, command)


def _leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    for each, inner in getattr(command, "commands", {}).items():
        if getattr(inner, "hidden", False):
            continue
        yield from _leaves(inner, f"{name} {each}") if hasattr(inner, "commands") else [(f"{name} {each}", inner)]


def _command(name: str, command: Any) -> Iterator[str]:
    ctx = command.make_context(name, [], resilient_parsing=True)
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    usage = [_name(one) if one.required else f"[{_name(one)}]" for one in arguments]
    yield f"```text\n{' '.join([name, *usage])} [OPTIONS]\n```\n"
    for paragraph in re.split(r"\n\s*\n", f"{command.help or ''}\n\n{command.epilog or ''}".strip()):
        if paragraph.startswith("\b"):
            lines = paragraph.removeprefix("\b").strip("\n").splitlines()
            yield "\n".join(["```text", *(line.strip() for line in lines), "```", ""])
        elif paragraph:
            yield _text(paragraph) + "\n"
    panels: dict[str, list[Any]] = {}
    for one in command.params:
        if not getattr(one, "hidden", False) and "--help" not in one.opts:
            panel = getattr(one, "rich_help_panel", None)
            title = panel if isinstance(panel, str) else ("Arguments" if one in arguments else "Options")
            panels.setdefault(title, []).append(one)
    for title, ones in panels.items():
        yield f"**{_text(title)}**\n\n| | value | | default |\n| --- | --- | --- | --- |"
        for one in ones:
            words = [_name(one)] if one in arguments else [*one.opts, *one.secondary_opts]
            value = "" if getattr(one, "is_flag", False) or one in arguments else _value(one, ctx)
            cells = [", ".join(f"`{word}`" for word in words), value, _text(one.help or ""), _default(one)]
            yield f"| {' | '.join(cells)} |"
        yield ""


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _value(one: Any, ctx: Any) -> str:
    return f"<code>{html.escape(str(one.metavar or one.display_type(ctx)).strip('<>'))}</code>".replace("|", "&#124;")


def _default(one: Any) -> str:
    if one.required:
        return "required"
    value = getattr(one.default, "value", one.default)
    shown = getattr(one, "show_default", True)
    if isinstance(shown, str):
        return _text(shown)
    if not shown or value is None or value is False or value == [] or value == () or callable(value):
        return ""
    return f"`{'on' if value is True else value}`"


def _text(words: str) -> str:
    """One paragraph of help as Markdown: what would be markup or a new cell is the character itself."""
    line = " ".join(words.split()).replace("\\[", "[")
    return re.sub(r"([\\`*_{}\[\]|#])", r"\\\1", html.escape(line, quote=False))
