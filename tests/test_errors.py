"""Every error of the package has the one base, and its line on the page of errors."""

import ast
import re
from importlib import import_module

import pytest
from conftest import ROOT

import finecaption_hf

SOURCE = ROOT / "src"
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", PAGE, re.MULTILINE))


def error_classes() -> dict[str, type[Exception]]:
    """The public exception classes of all files, by name: found in the text, so that no room needs its extra for it."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        if "checkpoints" in path.parts:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            names = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
            # Those with an underscore never leave their file.
            if not node.name.startswith("_") and any(name.endswith(("Error", "Exception")) for name in names):
                module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
                assert node.name not in found, f"{node.name} of {module} has the name of another one"
                found[node.name] = getattr(import_module(module), node.name)
    return found


def test_every_error_has_the_base_and_one_of_python() -> None:
    classes = error_classes()
    assert classes.pop("FineCaptionError") is finecaption_hf.FineCaptionError
    for name, found in classes.items():
        assert issubclass(found, finecaption_hf.FineCaptionError), name
        assert issubclass(found, ValueError | OSError | RuntimeError), name


def test_page_lists_every_error_where_it_can_be_imported() -> None:
    classes = error_classes()
    assert ROWS.keys() == classes.keys()
    for name, room in ROWS.items():
        assert getattr(import_module(room), name) is classes[name]


@pytest.mark.parametrize("name", [name for name in ROWS if name != "FineCaptionError"])
def test_page_tells_which_error_of_python_it_is(name: str) -> None:
    found = getattr(import_module(ROWS[name]), name)
    (beside,) = (base for base in found.__bases__ if base is not finecaption_hf.FineCaptionError)
    assert f"| `{name}` | `{ROWS[name]}` | `{beside.__name__}` |" in PAGE
