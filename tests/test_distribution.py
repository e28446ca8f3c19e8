"""Wheel and sdist, built once: what they hold, and that the wheel works where the repository is not."""

import os
import re
import runpy
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

FOLDERS = ("benchmarks", "docs", "examples", "scripts", "src", "tests")
LEFT = ("__pycache__", "*.egg-info", "*.py[cod]", "*.pyi")  # by running and building
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


class Built(NamedTuple):
    """Of the repository's files, and the wheel that the sdist gives."""

    sdist: Path
    unpacked: Path
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
    for name in FOLDERS:
        ignored = shutil.ignore_patterns(*LEFT)
        shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder / "source")
    sdist = build("build_sdist", folder / "source", folder / "sdist")
    wheel = build("build_wheel", folder / "source", folder / "wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return Built(sdist, unpacked, wheel, build("build_wheel", unpacked, folder / "again"))


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
        # The last is what gradio writes beside a component of its own when the demo is opened.
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyi"
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


def test_sdist_holds_the_repository_as_files(built: Built) -> None:
    """Package, tests, and all that the tests read: what is tested here can be tested there."""
    with tarfile.open(built.sdist) as archive:
        members = [member for member in archive.getmembers() if not member.isdir()]
        assert all(member.isreg() for member in members)
        files = {
            member.name.partition("/")[2]: archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in members
        }
    expected = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in [*(path for name in FOLDERS for path in (ROOT / name).rglob("*")), *ROOT.iterdir()]
        if path.is_file()
        and not any(Path(part).match(left) for part in path.relative_to(ROOT).parts for left in LEFT)
        and path.name[0] != "."
    }
    expected.pop("quickstart.png", None)  # that scripts/quickstart leaves
    expected.pop("setup.cfg")  # setuptools writes it anew
    assert {name: files.get(name) for name in expected} == expected
    others = {name for name in files.keys() - expected.keys() if ".egg-info/" not in name}
    assert others == {"PKG-INFO", "setup.cfg"}


@pytest.mark.slow
def test_tests_of_the_sdist_run(built: Built) -> None:
    """Those that look at the files around them, and where git is not: all others have what they read, see above."""
    names = ("architecture", "constraints", "embedded_checkpoint", "masks", "packaging", "recipes")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(built.unpacked / "src")}
    for arguments in (["--collect-only"], [f"tests/test_{name}.py" for name in names]):
        done = subprocess.run(
            [*command, *arguments], cwd=built.unpacked, env=environment, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


TARGETS = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")


def test_readme_of_the_metadata_has_no_link_into_nowhere(built: Built) -> None:
    """Where it is shown the files beside README.md are not."""
    name = f"finecaption_hf-{__version__}.dist-info/METADATA"
    metadata = Parser().parsestr(wheel_files(built.wheel)[name].decode())
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2411.15411"]
    text = metadata.get_payload()
    assert isinstance(text, str) and text.startswith("# finecaption-hf")
    links = ["".join(found) for found in TARGETS.findall(text)]
    assert links and all(link.startswith("https://") for link in links)
    # Words of links stay, and the pictures' tags go with them.
    assert "[`examples" not in text and "<img" not in text and "arxiv.org/abs/2411.15411" in text


def test_readme_leads_into_the_repository_once_that_has_an_address() -> None:
    readme = runpy.run_path(str(ROOT / "setup.py"))["readme"]
    own = (ROOT / "README.md").read_text(encoding="utf-8")
    made = readme(own, "https://example.org/me/finecaption-hf", "1.2.3")
    before, after = (["".join(found) for found in TARGETS.findall(text)] for text in (own, made))
    assert len(before) == len(after) > 20
    for link, target in zip(before, after):
        if link.startswith(("https:", "#")):
            assert target == link
        else:
            kind = "raw" if link.endswith((".png", ".jpg")) else "blob"
            assert target == f"https://example.org/me/finecaption-hf/{kind}/v1.2.3/{link}"


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
