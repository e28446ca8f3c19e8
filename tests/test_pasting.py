"""Every shell and Python block of README.md and docs/, pasted where a fresh clone is.

A block that needs more than that says so on the line above it, which no reader sees: `<!-- needs: a GPU -->`. A Python
block is a program of its own; `<!-- needs: the block above -->` makes it go on in the process of the one before.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT
from fresh import OURS

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"(?:^ *<!-- needs: ([^\n]+) -->\n)?^ *```(bash|sh|python)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
CONTINUED = "the block above"
COMMAND = "import sys; from finecaption_hf.cli import main; sys.argv[0] = 'finecaption'; main()"
SCRIPT = """
import os, runpy, sys
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LIMIT_S = 300


class Block(NamedTuple):
    line: int
    needs: str
    language: str
    code: str


def blocks(text: str) -> Iterator[Block]:
    for found in BLOCK.finditer(text):
        needs, language, code = found.groups(default="")
        yield Block(text.count("\n", 0, found.start(3)) + 1, needs, language, textwrap.dedent(code))


def clone(folder: Path) -> None:
    """What a fresh clone has, in copies of what a command may write to."""
    for path in ROOT.iterdir():
        if path.name in ("docs", "examples", "benchmarks", "scripts"):
            shutil.copytree(path, folder / path.name)
        elif not path.name.startswith(".") and path.name != "site":
            (folder / path.name).symlink_to(path)


def paste(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """One command; those of the package in a process that has the libraries imported already."""
    words = shlex.split(line, comments=True)
    if words[0] in ("finecaption", "python") and not re.search(r"[$~<>|;&]|(?<!\S)[^\"' ]*\*", line.partition(" #")[0]):
        code, words = (COMMAND, words[1:]) if words[0] == "finecaption" else (SCRIPT, words[1:])
        return OURS.run(code, *words, work=folder)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_of_a_page_works_as_pasted(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = list(blocks(text))
    assert len(found) == len(re.findall(r"^ *```(?:bash|sh|python)$", text, re.MULTILINE))
    clone(tmp_path)
    before = ""
    for block in found:
        if block.needs and block.needs != CONTINUED:
            continue
        where = f"{page.name}:{block.line}"
        if block.language == "python":
            before = before + block.code if block.needs else block.code
            done = OURS.run(before, work=tmp_path)
            assert done.returncode == 0, f"{where}\n{done.stderr}"
            continue
        lines = block.code.replace("\\\n", " ").splitlines()
        for line in lines:
            if shlex.split(line, comments=True):
                done = paste(line, tmp_path)
                assert done.returncode == 0, f"{where}: {line}\n{done.stderr}"
