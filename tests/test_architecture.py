"""Who imports whom: docs/architecture.md draws it, and this test says where an arrow goes another way."""

import ast
import functools
import traceback
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLE_MASK, EXAMPLE_PICTURE
from typer.testing import CliRunner

from finecaption_hf import image_processing_finecaption
from finecaption_hf.asking import FineCaptionDescriber
from finecaption_hf.cli import app

PACKAGE = Path(image_processing_finecaption.__file__).parent
TRAVELS, ROOT = "what travels", "the package itself"

# From a room to those that it may import, besides what travels. Rows from below to above.
ARROWS: dict[str, set[str]] = {
    TRAVELS: set(),
    ROOT: set(),
    "resuming": set(),
    "data": set(),
    "drawing": set(),
    # Regions as other libraries hold them; a model's fingerprint; regions drawn for models that take no mask.
    "asking": {"data", "resuming", "drawing"},
    "hub": {"resuming"},
    "segmentation": {"asking", "data", "resuming"},
    "scenes": {"asking", "data", "resuming"},
    "describing": {"asking", "data", "resuming", "drawing"},  # its pages show outlined regions
    # Points of a request; a checkpoint's fingerprint.
    "serving": {"asking", "data", "segmentation", "resuming"},
    "training": {"asking", "data", "resuming", "hub"},  # keeps what its base on the Hub says of itself
    "assembly": {"hub", "training"},  # pushes what it has made; counts what trains in which stage
    # The ablation trains, on scenes too; a report has the lines for a card.
    "evaluation": {"asking", "data", "resuming", "drawing", "training", "scenes", "hub"},
    "demo": {"asking", "data", "segmentation", "drawing", "scenes"},  # its examples are scenes
}
ARROWS["cli"] = set(ARROWS)


def _modules() -> dict[str, Path]:
    files = (file for file in PACKAGE.rglob("*.py") if "checkpoints" not in file.parts)
    return {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in files}


MODULES = _modules()


@functools.cache
def _imports(module: str) -> frozenset[str]:
    return frozenset(_each_import(module))


def _each_import(module: str) -> Iterator[str]:
    """The modules of the package that a module imports, lazily too; not those for types alone."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    package = module.split(".")[:-1]
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
        elif (node.module or "").split(".")[0] == PACKAGE.name:
            base = (node.module or "").split(".")[1:]
        else:
            continue
        for name in node.names:
            candidates = ([*base, name.name], [*base, name.name, "__init__"], base, [*base, "__init__"])
            yield next(found for each in candidates if (found := ".".join(each)) in MODULES)


def _room(module: str) -> str:
    first = module.split(".")[0]
    return TRAVELS if first.endswith("_finecaption") else ROOT if first == "__init__" else first


def test_every_room_is_drawn() -> None:
    assert {_room(module) for module in MODULES} == set(ARROWS)


def test_what_travels_and_the_public_names_stand_alone_at_the_root() -> None:
    files = {file.stem for file in PACKAGE.glob("*.py")}
    assert {name for name in files if not name.endswith("_finecaption")} <= {"__init__", "__main__"}


@pytest.mark.parametrize("room", ARROWS)
def test_arrows_lead_where_they_may(room: str) -> None:
    drawn = {
        (module, imported)
        for module in MODULES
        for imported in _imports(module)
        if _room(module) == room and _room(imported) != room
    }
    allowed = {TRAVELS, ROOT, *ARROWS[room]} if room != TRAVELS else set()
    assert {pair for pair in drawn if _room(pair[1]) not in allowed} == set()


def test_rooms_are_in_no_circle() -> None:
    TopologicalSorter(ARROWS).prepare()


def test_files_are_in_no_circle() -> None:
    graph = {module: {it for it in _imports(module) if it != module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"In a circle: {' -> '.join(error.args[1])}")


def test_region_is_six_frames_away_from_the_command(embedded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reader has to follow, from the option's text to the mask at the model's size."""
    found: list[list[str]] = []
    resize = image_processing_finecaption.region_alpha

    def noted(*arguments: Any, **options: Any) -> Any:
        frames = (frame for frame in traceback.extract_stack() if str(PACKAGE) in frame.filename)
        found.append([f"{Path(frame.filename).stem}.{frame.name}" for frame in frames])
        return resize(*arguments, **options)

    monkeypatch.setattr("finecaption_hf.asking.loading.load", lambda *_, **__: embedded)
    FineCaptionDescriber(*embedded)  # which compares two ways of decoding, once per model
    monkeypatch.setattr(image_processing_finecaption, "region_alpha", noted)
    result = CliRunner().invoke(app, ["caption", str(EXAMPLE_PICTURE), "--mask", str(EXAMPLE_MASK)])
    assert result.exit_code == 0, result.output
    assert found[-1] == [
        "caption.caption",
        "asker.ask",
        "pipeline_finecaption.prepare",
        "image_processing_finecaption.preprocess",
        "image_processing_finecaption._preprocess_image_like_inputs",
        "image_processing_finecaption._mask_values",
    ]


def test_frozen_records_are_changed_by_nobody_but_their_own_making() -> None:
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = {
            id(call)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef) and function.name == "__post_init__"
            for call in ast.walk(function)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "object.__setattr__":
                assert id(node) in own and ast.unparse(node.args[0]) == "self", f"{module}, line {node.lineno}"


def test_no_file_takes_a_private_name_of_another_one() -> None:
    taken = {
        f"{module} takes {name.name} of {node.module}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for name in node.names
        if name.name.startswith("_") and not name.name.endswith("__")
    }
    assert taken == set()
