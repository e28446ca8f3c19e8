"""What FineCaption leans on that its libraries may change without notice is written down, and nothing else is used.

A release of a library may move whatever it does not export at its top level, and whatever begins with an underscore.
`docs/compatibility.md` lists each such name with its reason; these tests hold the list against the code.
"""

import ast
import importlib.util
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

PACKAGE = ROOT / "src" / "finecaption_hf"
LIBRARIES = ("transformers", "timm", "gradio", "huggingface_hub")
PAGE = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
HUB_FILES = sorted(PACKAGE.glob("*_finecaption.py"))
FILES = [*HUB_FILES, *sorted((PACKAGE / "demo").glob("*.py"))]


@cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def imported_names() -> set[str]:
    """`library.module.name` of what is imported from below a library's top level, and modules themselves."""
    found = set()
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names if "." in alias.name}
            elif isinstance(node, ast.ImportFrom) and node.module:
                for name in (f"{node.module}.{alias.name}" for alias in node.names):
                    if "." in node.module or (node.module in LIBRARIES and is_module(name)):
                        found.add(name)
    return {name for name in found if name.partition(".")[0] in LIBRARIES}


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def own_names() -> set[str]:
    """Private names that these files define themselves: functions, and what is assigned in a class or to `self`."""
    found = set()
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in (each for outer in targets for each in ast.walk(outer)):
                    found |= {target.id} if isinstance(target, ast.Name) else set()
                    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
                        found |= {target.attr} if target.value.id == "self" else set()
    return {name for name in found if is_private(name)}


def overridden_names() -> set[str]:
    """Private names of a library's class that a subclass in the Hub files gives a meaning of its own."""
    found = set()
    for path in HUB_FILES:
        module = importlib.import_module(f"finecaption_hf.{path.stem}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == module.__name__:
                theirs = [base for base in cls.__mro__ if base.__module__.partition(".")[0] in LIBRARIES]
                written = class_body_names(path, cls.__name__)
                found |= {name for name in written if any(name in vars(base) for base in theirs)}
    return found


def class_body_names(path: Path, name: str) -> set[str]:
    (body,) = (node.body for node in ast.walk(trees()[path]) if isinstance(node, ast.ClassDef) and node.name == name)
    found = set()
    for node in body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets: list[Any] = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if is_private(name)}


def accessed_names() -> set[str]:
    return {
        node.attr
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and is_private(node.attr)
    }


def listed(heading: str) -> set[str]:
    """The first cells of the table under a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    assert section, f"docs/compatibility.md has no section {heading!r}"
    return {
        name for row in re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE) for name in re.findall(r"`(.+?)`", row)
    }


def test_every_import_from_below_a_librarys_top_level_is_written_down() -> None:
    assert imported_names() == listed("Imports")


def test_every_private_name_of_a_library_is_written_down() -> None:
    used = overridden_names() | (accessed_names() - own_names())
    assert used == {name.rpartition(".")[2] for name in listed("Private names")}


@pytest.mark.parametrize("heading", ["Imports", "Private names"])
def test_every_listed_name_exists_and_has_its_reason_and_replacement(heading: str) -> None:
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [row.strip("| ").split(" | ") for row in section.splitlines() if row.startswith("| `")]
    assert rows
    for row in rows:
        assert len(row) == 3 and all(cell.strip() for cell in row), row
