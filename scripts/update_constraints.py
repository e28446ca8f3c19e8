"""Writes constraints.txt from the releases of a run of the tests that passed; `scripts/update-constraints` calls it.

Standard input has the run's day, Python and releases, as `scripts/test --newest` wrote them; the argument is the extras
that were installed. pip tells what each Python can have of those releases, which drop old Pythons one by one.
"""

import configparser
import json
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from itertools import groupby
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
# Where loading a checkpoint learns up to which release of transformers its code was tested.
CODE = ROOT / "src" / "finecaption_hf" / "configuration_finecaption.py"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# A machine may bring its own of these, or cap them; and what a Space has beside gradio caps pydantic.
BOUNDED = {"torch", "torchvision", "numpy", "pydantic"}
# What PyTorch brings along, and names exactly itself.
OF_PYTORCH = ("cuda-", "nvidia-", "triton")
# What the Hub puts into a Space, beside the Space's own requirements.
SPACE = ("gradio[mcp,oauth]", "spaces", "uvicorn", "websockets")

HEADER = """\
# Releases with which everything was tested. The scripts install under them, and so does
# `pip install --constraint constraints.txt .`; the package itself asks for ranges (setup.cfg).
# scripts/update-constraints writes this file; CONTRIBUTING.md says when.
"""
EXACT = """
# What the package uses, and what builds and tests it.
"""
CAPPED = """
# A machine may bring its own, and may cap them.
"""
INDIRECT = """
# What comes along with those. No later releases, so that an installation does not depend on its day.
"""


def direct(*, extras: bool) -> set[str]:
    """What setup.cfg names, and pip; or that alone which every user installs."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = [parser["options"]["install_requires"]]
    if extras:
        texts += [*parser["options.extras_require"].values(), "pip"]
    lines = (line for text in texts for line in text.splitlines() if line.strip())
    return {canonicalize_name(Requirement(line).name) for line in lines}


def resolve(python: str, extras: str, tested: dict[str, str]) -> dict[str, str]:
    """What a Python of that version, 3.x, would install of the releases up to the tested ones: versions by name."""
    executable = shutil.which(f"python{python}")
    if executable is None or subprocess.run([executable, "-c", ""], capture_output=True, timeout=60).returncode:
        sys.exit(
            f"error: python{python} is not on PATH. Put one there for this (pyenv, or uv python install {python})."
        )
    with tempfile.TemporaryDirectory() as folder:
        bounds, report = Path(folder, "bounds.txt"), Path(folder, "report.json")
        bounds.write_text("".join(f"{name}<={version}\n" for name, version in tested.items()), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "--python", executable, "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--constraint", str(bounds), "--report", str(report)]
        command += [f"{ROOT}[{extras}]", *SPACE, "pip"]
        print(f"Asking pip what Python {python} can have.", file=sys.stderr)
        if subprocess.run(command, timeout=1800).returncode:
            sys.exit(f"error: pip finds nothing for Python {python}, see above. constraints.txt is as it was.")
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
    found = {canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"] for item in items}
    return {name: version for name, version in found.items() if counts(name)}


def counts(name: str) -> bool:
    return name != "finecaption-hf" and not name.startswith(OF_PYTORCH)


def pins(name: str, by_python: dict[str, str]) -> list[str]:
    """One line where all Pythons take the same release, else one for each row of Pythons that do."""
    rows = [(version, list(pythons)) for version, pythons in groupby(by_python, by_python.__getitem__)]
    lines = []
    for i, (version, pythons) in enumerate(rows):
        markers = [f'python_version >= "{pythons[0]}"'] if i else []
        if i + 1 < len(rows):
            markers.append(f'python_version < "{rows[i + 1][1][0]}"')
        lines.append(f"{name}=={version}" + (f"; {' and '.join(markers)}" if markers else ""))
    return lines


def constraints(tested: dict[str, str], by_python: dict[str, dict[str, str]]) -> str:
    """The text of constraints.txt.

    Args:
        tested: versions by name, of the run that passed.
        by_python: the same, of what each Python takes of them; oldest first.
    """
    exact, capped, indirect = [], [], []
    for name in sorted({name for found in by_python.values() for name in found}):
        here = {python: found[name] for python, found in by_python.items() if name in found}
        if name in direct(extras=True) - BOUNDED:
            exact += pins(name, here)
        else:
            newest = tested.get(name) or max(here.values(), key=Version)
            (capped if name in BOUNDED else indirect).append(f"{name}<={newest}")
    parts = ((HEADER, []), (EXACT, exact), (CAPPED, capped), (INDIRECT, indirect))
    return "".join(title + "".join(f"{line}\n" for line in lines) for title, lines in parts)


def with_run(page: str, day: str, python: str, tested: dict[str, str]) -> str:
    """docs/compatibility.md with that run in the place that is marked for it."""
    names = sorted(direct(extras=False) | {"gradio", "peft", "tokenizers"})
    releases = ", ".join(f"{name} {tested[name]}" for name in names if name in tested)
    text = f"The last run of `scripts/test --newest` that passed was on {day}, on Python {python}, with {releases}."
    text = textwrap.fill(text, width=128, break_long_words=False, break_on_hyphens=False)
    return replaced(page, r"(?s)(?<=lines below -->\n).*(?=\n<!-- /newest -->)", text)


def replaced(text: str, pattern: str, new: str) -> str:
    """A text with the one place that matches changed."""
    text, number = re.subn(pattern, lambda _: new, text)
    if number != 1:
        sys.exit(f"error: {number} places match {pattern!r} where there has to be one. Nothing is changed.")
    return text


def main() -> None:
    (extras,) = sys.argv[1:]
    day, python, *releases = sys.stdin.read().split()
    pairs = (line.split("==") for line in releases)
    # Without the local part, such as +cpu, which an index of its own gives.
    tested = {canonicalize_name(name): Version(version).public for name, version in pairs}
    tested = {name: version for name, version in tested.items() if counts(name)}
    text = constraints(tested, {python: resolve(python, extras, tested) for python in PYTHONS})
    page = with_run(PAGE.read_text(encoding="utf-8"), day, python, tested)
    tested_up_to = ".".join(tested["transformers"].split(".")[:2])
    code = replaced(CODE.read_text(encoding="utf-8"), '(?m)(?<=^TESTED_TRANSFORMERS = ")[0-9.]+', tested_up_to)
    (ROOT / "constraints.txt").write_text(text, encoding="utf-8")
    PAGE.write_text(page, encoding="utf-8")
    CODE.write_text(code, encoding="utf-8")


if __name__ == "__main__":
    main()
