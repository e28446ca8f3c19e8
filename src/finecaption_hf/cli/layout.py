"""How commands show their help and their errors: plain sections, whole at any width, with examples at the end."""

import inspect
import os
import re
import sys
import textwrap
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..prompts_finecaption import nearest
from .examples import EXAMPLES

SETTINGS = {"help_option_names": ["-h", "--help"]}
HEADINGS = ("Ask about regions", "Data", "Build and train", "Judge", "Share on the Hub")
HANDS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""For commands whose further options are those of transformers.TrainingArguments."""


Sections = dict[str, list[tuple[str, str]]]  # rows of name and text, by heading


_UsageError: Any = typer.BadParameter.__base__  # no public name leads to it
_NUMBERS = {"integer": "a whole number", "number": "a number"}


class _Page:
    """What pages of commands and of groups have in common; examples are at their end."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)  # type: ignore[misc]
        # Texts were written without a place to break at hyphens, so that names of options stay whole.
        formatter.buffer[:] = [part.replace(_GLUE, "-") for part in formatter.buffer]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(_glued(inspect.cleandoc(self.help or "")))  # type: ignore[attr-defined]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_options(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(ctx, formatter)


class Command(_Page, TyperCommand):
    """Options stand under their headings, in the order of the command's function."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = self._reason(error) or self._misspelt(error, given)
            raise
        except _UsageError as error:
            self._reword(error, ctx)
            raise

    def _reason(self, error: typer.BadParameter) -> str:
        """The library's reason with the value that arrived, and with the nearest choice."""
        reason = re.sub(r"^Value error, ", "", error.message)
        cause: Any = error.__cause__
        wrong = cause.errors()[0]["input"] if hasattr(cause, "errors") else None
        choices = re.findall("'(.*?)'", reason.partition(" is not one of ")[2])
        near = nearest(str(wrong), choices) if choices else None
        reason = re.sub("^Input should", f"{wrong!r} should", reason)
        reason = re.sub("a valid (integer|number), unable to.*", lambda kind: _NUMBERS[kind[1]], reason)
        return reason and reason.removesuffix(".") + "." + (f" Did you mean {near!r}?" if near else "")

    def _reword(self, error: Any, ctx: Any) -> None:
        """The library's words for an option that there is not, and for an argument too many, as whole sentences."""
        name = getattr(error, "option_name", None)
        if name is not None:
            near = nearest(name.lstrip("-"), [option.lstrip("-") for option in option_names(ctx)])
            error.message = f"There is no option {name}.{f' Did you mean --{near}?' if near else ''}"
            error.possibilities = None
        elif extra := re.search(r"unexpected extra arguments?(?:\(s\))? \((.*)\)", error.message):
            error.message = f"{extra[1]}: nothing takes this argument. What has spaces in it needs quotes."

    def _misspelt(self, error: typer.BadParameter, given: list[str]) -> str:
        """Where an option is missing and others are handed on, what looks like the missing one."""
        missing: list[str] = getattr(error.param, "opts", [])
        for text in (text.partition("=")[0] for text in given if text.startswith("--")):
            if all(text not in option.opts for option in self.params) and nearest(text, missing):
                return f"There is no option {text}. Did you mean {missing[0]}?"
        return ""


class Group(_Page, TyperGroup):
    """Commands stand under their headings, each with the first paragraph of its help."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        super().format_options(ctx, formatter)
        sections: Sections = {heading: [] for heading in HEADINGS}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            text = " ".join((command.help or "").partition("\n\n")[0].split())
            sections.setdefault(command.rich_help_panel or "Commands", []).append((name, text))
        _write(formatter, sections)


def _write_options(command: Any, ctx: Any, formatter: Any) -> None:
    found: Sections = {}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            heading = "Arguments" if parameter.param_type_name == "argument" else "Options"
            name = re.sub(r"<(.+?)>$", _as_written, record[0])
            text = re.sub(r"\[default: \((.*)\)(?=[;\]])", r"[default: \1", record[1])
            found.setdefault(parameter.rich_help_panel or heading, []).append((name, text))
    _write(formatter, found)


def _write(formatter: Any, sections: Sections) -> None:
    for heading, rows in sections.items():
        if rows:
            with formatter.section(_bold(heading)):
                formatter.write_dl([(name, _glued(text)) for name, text in rows], col_max=24)


def _as_written(kind: re.Match[str]) -> str:
    """What typer says of a value's type -> what stands in its place: `<int range>` -> `N`, `<list[a|b]>` -> `a|b`."""
    name = re.sub(r"^list\[(.*)\]$| range$", r"\1", kind[1])
    return {"int": "N", "float": "X", "str": "TEXT", "path": "PATH"}.get(name, name)


def _write_examples(ctx: Any, formatter: Any) -> None:
    examples = EXAMPLES.get(command_name(ctx), ())
    if not examples:
        return
    with formatter.section(_bold("Examples")):
        for number, (what, command) in enumerate(examples):
            if number:
                formatter.write_paragraph()
            formatter.write_text(_glued(what))
            for line in _broken(command, formatter.width - 6):
                formatter.write(f"    {line}\n")


def option_names(ctx: Any) -> list[str]:
    """Of the command that a context is about, with their dashes."""
    return [name for parameter in ctx.command.params for name in parameter.opts if name.startswith("-")]


def command_name(ctx: Any) -> str:
    """The words of a command behind `finecaption`."""
    words: list[str] = []
    while ctx.parent is not None:
        words.insert(0, ctx.info_name)
        ctx = ctx.parent
    return " ".join(words)


def _broken(command: str, width: int) -> list[str]:
    """Lines of a shell, none wider than that where a space allows it; they can be pasted as they are."""
    # No break inside quotes, nor between an option and its value.
    whole = re.sub(r'"[^"]*"|--?[a-z][\w-]* (?!-)', lambda part: part[0].replace(" ", "\0"), command)
    lines = textwrap.wrap(whole, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return " \\\n".join(lines).replace("\0", " ").splitlines()


_GLUE = "\1"


def _glued(text: str) -> str:
    return text.replace("-", _GLUE)


def _bold(text: str) -> str:
    return typer.style(text, bold=True) if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text
