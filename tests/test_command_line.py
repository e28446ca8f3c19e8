"""What the command line says: its help at any width, its examples, and its errors as a newcomer meets them."""

import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import EXAMPLE_PICTURE, ROOT
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from finecaption_hf.cli import app
from finecaption_hf.cli.examples import EXAMPLES
from finecaption_hf.cli.tables import print_whole

ROOT_COMMAND: Any = typer.main.get_command(app)


def commands(command: Any = ROOT_COMMAND, name: str = "") -> Iterator[tuple[str, Any]]:
    """(words behind `finecaption`, command) of all commands and groups."""
    yield name, command
    for word, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{name} {word}".strip())


COMMANDS = dict(commands())


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def opened(name: str, width: int = 80) -> Any:
    """The context of a command, without arguments."""
    context = ROOT_COMMAND.make_context("finecaption", [], resilient_parsing=True, terminal_width=width)
    for word in name.split():
        command = context.command.commands[word]
        context = command.make_context(word, [], parent=context, resilient_parsing=True)
    return context


def said(*arguments: object) -> str:
    """The one line of an error that ends a command."""
    result = run(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output and not result.stdout, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ") and "Value error" not in line and "[Errno" not in line, result.stderr
    assert line.endswith((".", "?")), line
    return line


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_whole_at_every_width(name: str, width: int) -> None:
    text = opened(name, width).get_help()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    command = COMMANDS[name]
    wanted = [command.help, *(parameter.help for parameter in command.params)]
    for inner in getattr(command, "commands", {}).values():
        wanted += [inner.name, inner.help.partition("\n\n")[0]]
    for sentence in wanted:
        assert " ".join(sentence.split()) in words, sentence
    for parameter in command.params:
        assert parameter.param_type_name == "argument" or re.search(rf"^  {parameter.opts[-1]}\b", text, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_option_is_a_sentence(name: str) -> None:
    command = COMMANDS[name]
    for text in (command.help, *(parameter.help for parameter in command.params)):
        assert re.match(r"[A-Z0-9]", text) and text.endswith("."), text


def test_commands_stand_in_groups() -> None:
    text = run("-h").stdout
    assert text == run("--help").stdout
    headings = ["Ask about regions:", "Data:", "Build and train:", "Judge:", "Share on the Hub:", "Examples:"]
    assert sorted(headings, key=text.index) == headings


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_parsed_by_their_command(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = " ".join(opened(name).get_help().replace("\\\n", " ").split())
    assert EXAMPLES[name]
    for _, text in EXAMPLES[name]:
        assert text in shown
        first, *words = shlex.split(text)
        assert first == "finecaption"
        for word in words:
            if re.fullmatch(r"[\w-]+\.(jpg|png|jsonl?|yaml|zip|pth)|checkpoint|photos", word):
                (tmp_path / word).touch() if "." in word else (tmp_path / word).mkdir(exist_ok=True)
        (tmp_path / "evaluation").mkdir(exist_ok=True)
        (tmp_path / "evaluation" / "report.json").touch()
        depth = max(count for count in range(len(words) + 1) if " ".join(words[:count]) in COMMANDS)
        command, arguments = COMMANDS[" ".join(words[:depth])], words[depth:]
        if "-h" not in arguments:
            handed_on = command.make_context(words[depth - 1], list(arguments), parent=opened("")).args
            if handed_on:
                from finecaption_hf.training.arguments import parse_options

                parse_options(handed_on)


def test_extras_are_advised_as_they_can_be_installed() -> None:
    assert 'pip install ".[demo]" in the project\'s folder' in " ".join(opened("demo").get_help().split())
    files = [path for suffix in ("py", "yaml") for path in (ROOT / "src").rglob(f"*.{suffix}")]
    files += [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    # On no package index is there a finecaption-hf.
    assert [str(path) for path in files if "finecaption-hf[" in path.read_text(encoding="utf-8")] == []


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caption", "nothing.jpg"], "'nothing.jpg' does not exist."),
        (["caption", EXAMPLE_PICTURE.parent], "it is a folder, and no picture file"),
        (["caption", EXAMPLE_PICTURE, "--model", "./nothing"], "./nothing is neither a folder nor the id of"),
        (["caption", EXAMPLE_PICTURE, "--model", "owner/nothing"], "owner/nothing is no folder, is not on this"),
        (["caption", EXAMPLE_PICTURE, "--style", "outlin"], "'outlin' is not one of 'outline', 'spotlight', "
         "'fill'. Did you mean 'outline'?"),
        (["caption", EXAMPLE_PICTURE, "--max-new-tokens", 0], "'0' should be greater than or equal to 1."),
        (["caption", EXAMPLE_PICTURE, "--max-new-tokens", "few"], "'few' should be a whole number."),
        (["caption", EXAMPLE_PICTURE, "--atribute", "color"], "no option --atribute. Did you mean --attribute?"),
        (["caption", EXAMPLE_PICTURE, "other.png"], "other.png: nothing takes this argument."),
        (["caption", __file__], "Give a picture such as PNG."),
        (["caption", EXAMPLE_PICTURE, "--mask", EXAMPLE_PICTURE.parent], "this is a folder. Name a file"),
        (["caption", EXAMPLE_PICTURE, "--model", EXAMPLE_PICTURE], "is a file. Give the folder of a checkpoint"),
        (["caption", EXAMPLE_PICTURE, "--everything", "--segmenter", ROOT], "has no config.json, so it holds no model"),
        (["caption", EXAMPLE_PICTURE, "--everything", "--segmenter", "sam"], "sam is no folder, is not on"),
        (["caption", EXAMPLE_PICTURE, "--device", "gpu"], "There is no device 'gpu'. A GPU is cuda"),
        (["caption", EXAMPLE_PICTURE, "--device", "cudaa"], "Did you mean 'cuda'?"),
        (["capton"], "Did you mean 'caption'?"),
        (["info", ROOT], "has no config.json, so it is no checkpoint"),
        (["info", "nothing"], "nothing is no folder, is not on this machine"),
        (["info", "./nothing"], "./nothing is neither a folder, a file nor the id of a Hub repository"),
        (["export", "onnx", "--model", "./nothing", "--out", "nothing.onnx"], "./nothing is neither a folder"),
        (["data", "check", __file__, "--model", "nothing"], "nothing is no folder, is not on this machine"),
        (["data", "check", __file__], "neither [ nor {. Give format=... (--format)."),
        (["data", "check", __file__, "--on-error", "skp"], "Did you mean 'skip'?"),
        (["evaluate", "--data", __file__, "--output", __file__, "--metrics", "rouge_l", "--tokenizer", "python"],
         "this is there already. Give another name."),
        (["evaluate", "--data", "nothing.jsonl", "--output", "nothing"], "'nothing.jsonl' does not exist."),
        (["push", "nothing", "owner/name"], "'nothing' does not exist."),
        (["scenes", "score", "--name", "colr"], "Did you mean 'Color'? There are: region, dense"),
        (["train", "--stage", 1, "--outptu", "x"], "There is no option --outptu. Did you mean --output?"),
        (["train", "--stage", 1, "--output", "x", "--eval-dat", "x"], "--eval-dat. Did you mean --eval-data?"),
        (["train", "--stage", 1, "--output", "x", "--lerning-rate", 1], "Did you mean --learning-rate?"),
        (["train", "--stage", 1, "--output", "x", "--max-steps", "x"], "--max-steps: 'x' arrived, a whole number is"),
    ],
)  # fmt: skip
def test_wrong_calls_end_in_one_line(arguments: list[object], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if arguments[0] == "export":
        pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    lines = set()
    for columns in ("60", "80"):
        monkeypatch.setenv("COLUMNS", columns)
        lines.add(said(*arguments))
    assert len(lines) == 1 and message in lines.pop(), lines  # whole at any width


@pytest.mark.parametrize(("missing", "needed"), [("gradio", "[demo]"), ("mcp", "[demo,mcp]")])
def test_demo_says_which_extras_it_lacks(missing: str, needed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finecaption_hf.cli.demo.find_spec", lambda name: None if name == missing else object())
    line = said("demo", "--mcp")
    assert missing in line and f'pip install ".{needed}"' in line


def test_wrong_attribute_names_the_nearest_and_quotes_names_with_commas(embedded: Any) -> None:
    line = said("caption", EXAMPLE_PICTURE, "--attribute", "colr", "--device", "cpu")
    assert "There is no attribute 'colr'. Did you mean 'Color'? There are: Age Range, " in line
    assert ', "Clothing, Shoes and Accessories", Color, ' in line


def test_words_are_completed() -> None:
    def completed(words: str, last: int) -> list[str]:
        variables = {"_FINECAPTION_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(last)}
        return CliRunner().invoke(app, [], prog_name="finecaption", env=variables).stdout.split("\n")[:-1]

    assert completed("finecaption ev", 1) == ["evaluate"]
    assert completed("finecaption scenes ", 2) == ["render", "score"]
    assert completed("finecaption caption photo.jpg --attr", 3) == ["--attribute"]
    assert completed("finecaption caption photo.jpg --style sp", 4) == ["spotlight"]
    assert completed("finecaption caption photo.jpg --attribute ca", 4) == ["category_name", "camera_viewpoint"]


# --- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 60, 80, 400])
def test_tables_lose_no_word_at_any_width(width: int) -> None:
    table = Table("question", *(f"column{number}" for number in range(9)), title="A title", title_justify="left")
    rows = [[f"{row}.{number:03d} to 1" for number in range(9)] for row in range(3)]
    for number, row in enumerate(rows):
        table.add_row(f"Question{number}", *row)
    console = Console(width=width, file=io.StringIO())
    print_whole(console, table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    words = set(re.split(r"[\s│┃]+", text))
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    assert {f"{row}.{number:03d}" for row in range(3) for number in range(9)} <= words
    assert text.count("A title") == 1 and text.count("column4") == 1
    assert text.count("Question0") == text.count("question")  # once in each part
    assert (text.count("question") == 1) == (width == 400)
