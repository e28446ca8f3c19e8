"""Wheel and sdist, built once: what they hold, and that the wheel works where the repository is not."""

import os
import shutil
import stat
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import EXAMPLE_MASK, EXAMPLE_PICTURE, ROOT
from typer.testing import CliRunner

from finecaption_hf import EMBEDDED_CHECKPOINT, __version__
from finecaption_hf.cli import app

BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


class Built(NamedTuple):
    """Of the repository's files, and the wheel that the sdist gives."""

    sdist: Path
    wheel: Path
    wheel_of_sdist: Path


def build(kind: str, source: Path, to: Path) -> Path:
    """By the declared backend, in an environment that has it: there is no network to fetch it from."""
    to.mkdir()
    command = [sys.executable, "-c", BUILD, kind, str(to)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return to / done.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("distribution")
    # A copy, since building writes beside the sources; links stay links, as they are where a user builds.
    for name in ("src", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder / "source")
    sdist = build("build_sdist", folder / "source", folder / "sdist")
    wheel = build("build_wheel", folder / "source", folder / "wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return Built(sdist, wheel, build("build_wheel", unpacked, folder / "again"))


def wheel_files(wheel: Path) -> dict[str, bytes]:
    """What is in a wheel, by name; all of it files, no links."""
    with zipfile.ZipFile(wheel) as archive:
        assert not [entry.filename for entry in archive.infolist() if stat.S_ISLNK(entry.external_attr >> 16)]
        return {name: archive.read(name) for name in archive.namelist()}


def package_files() -> dict[str, bytes]:
    """What the package has in the repository; links give what they point to."""
    package = ROOT / "src"
    return {
        path.relative_to(package).as_posix(): path.read_bytes()
        for path in (package / "finecaption_hf").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    files = wheel_files(built.wheel)
    told = {name: content for name, content in files.items() if ".dist-info/" not in name}
    expected = package_files()
    assert told.keys() == expected.keys() and told == expected
    assert f"finecaption_hf-{__version__}.dist-info/METADATA" in files


@pytest.mark.parametrize(
    "name",
    [
        "py.typed",
        "checkpoints/finecaption-tiny/config.json",
        "checkpoints/finecaption-tiny/model.safetensors",
        "checkpoints/finecaption-tiny/modeling_finecaption.py",
        "training/recipes/*.yaml",
        "evaluation/comparators/tables/*.yaml",
        "demo/picker.html",
    ],
)
def test_what_is_not_python_is_in_the_repository(name: str) -> None:
    """What the wheel is compared with has it."""
    assert list((ROOT / "src" / "finecaption_hf").glob(name))


def test_sdist_holds_what_the_wheel_is_built_from_as_files(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        members = [member for member in archive.getmembers() if not member.isdir()]
        assert all(member.isreg() for member in members)
        files = {
            member.name.partition("/")[2]: archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in members
        }
    expected = {f"src/{name}": content for name, content in package_files().items()}
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "MANIFEST.in"):
        expected[name] = (ROOT / name).read_bytes()
    assert {name: files.get(name) for name in expected} == expected
    # setuptools writes setup.cfg anew. The tests need the repository around them.
    others = {name for name in files.keys() - expected.keys() if ".egg-info/" not in name}
    assert others == {"PKG-INFO", "setup.cfg"}


def test_wheel_of_the_sdist_is_the_one_of_the_repository(built: Built) -> None:
    assert built.wheel.name == built.wheel_of_sdist.name
    assert wheel_files(built.wheel) == wheel_files(built.wheel_of_sdist)


def test_metadata_name_the_licence_and_its_files(built: Built) -> None:
    files = wheel_files(built.wheel)
    folder = f"finecaption_hf-{__version__}.dist-info"
    metadata = Parser().parsestr(files[f"{folder}/METADATA"].decode())
    assert metadata["License-Expression"] == "Apache-2.0" or metadata["License"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"]
    for name in ("LICENSE", "NOTICE"):
        assert files[f"{folder}/licenses/{name}"] == (ROOT / name).read_bytes()


def test_installed_wheel_captions_as_the_repository_does(built: Built, tmp_path: Path) -> None:
    """In an environment that has the dependencies, but neither the repository nor its installation."""
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(built.wheel)]
    subprocess.run(command, check=True, timeout=120)
    (packages,) = environment.glob("lib/python*/site-packages")
    # Folders in a .pth file are looked into last; their own .pth files, as of an editable installation, not at all.
    dependencies = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(dependencies))

    def run(*command: str | Path) -> str:
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(python, "-c", "import finecaption_hf; print(finecaption_hf.__file__)")
    assert Path(where.strip()).is_relative_to(environment)
    arguments = ["caption", str(EXAMPLE_PICTURE), "--mask", str(EXAMPLE_MASK), "--attribute", "color", "--json"]
    told = run(environment / "bin" / "finecaption", *arguments)
    expected = CliRunner().invoke(app, arguments)
    assert expected.exit_code == 0, expected.output
    assert told == expected.stdout and "answers" in told
    checkpoint = packages / EMBEDDED_CHECKPOINT.relative_to(ROOT / "src")
    assert not [path for path in checkpoint.iterdir() if path.is_symlink()]
