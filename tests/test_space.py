"""The Space that `finecaption space` writes: its files, and that it starts from them alone."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import EXAMPLE_PICTURE
from packaging.requirements import Requirement
from typer.testing import CliRunner

from finecaption_hf import EMBEDDED_CHECKPOINT
from finecaption_hf.cli import app
from finecaption_hf.demo.space import GRADIO_VERSION, write_space


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("space") / "out"
    result = CliRunner().invoke(
        app, ["space", str(out), "--model", "someone/finecaption", "--title", 'A "fine" demo: 1']
    )
    assert result.exit_code == 0, result.output
    assert "app.py" in result.output
    return out


def test_front_matter_is_what_the_hub_reads(folder: Path) -> None:
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["title"] == 'A "fine" demo: 1' and '# A "fine" demo: 1' in text
    assert card["sdk"] == "gradio" and card["sdk_version"] == GRADIO_VERSION
    assert card["app_file"] == "app.py" and card["models"] == ["someone/finecaption"]
    # The Hub's limits.
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {card["colorFrom"], card["colorTo"]} <= colors
    assert len(card["short_description"]) <= 60
    assert card["suggested_hardware"] == "zero-a10g"


def test_folder_has_the_code_but_no_weights_and_no_leftovers(folder: Path) -> None:
    package = folder / "finecaption_hf"
    assert (package / "demo" / "picker.js").is_file() and (package / "pipeline_finecaption.py").is_file()
    assert not list(folder.rglob("*.safetensors")) and not list(folder.rglob("__pycache__"))
    # spaces has to come before torch.
    lines = (folder / "app.py").read_text(encoding="utf-8").splitlines()
    assert next(i for i, line in enumerate(lines) if "import spaces" in line) < next(
        i for i, line in enumerate(lines) if "finecaption_hf" in line and "import" in line
    )


def test_requirements_are_those_of_the_package(folder: Path) -> None:
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").split()
    names = {Requirement(line).name for line in lines}
    assert {"transformers", "torch", "timm", "pillow", "spaces"} <= names
    assert not names & {"pytest", "ruff", "finecaption-hf"}
    assert any(line.startswith("transformers") and "5.19" in line for line in lines)


@pytest.mark.parametrize("model", ["finecaption", "a/b/c", "../x", "a/b\nc", "", "/folder"])
def test_model_that_is_no_id_is_refused(tmp_path: Path, model: str) -> None:
    with pytest.raises(ValueError, match="no id of a Hub repository"):
        write_space(tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


def test_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="there already"):
        write_space(tmp_path, "someone/finecaption")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_space_starts_from_its_own_files_and_answers(folder: Path, tmp_path: Path, embedded: Any) -> None:
    pytest.importorskip("gradio", reason="gradio (the extra demo) is not installed")
    from gradio_client import Client, handle_file

    # The model as a download from the Hub leaves it.
    cache = tmp_path / "hub" / "models--someone--finecaption"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    shutil.copytree(EMBEDDED_CHECKPOINT, cache / "snapshots" / ("0" * 40))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(tmp_path / "store"),
    }
    code = (
        "import runpy, finecaption_hf; print(finecaption_hf.__file__, flush=True); "
        "runpy.run_path('app.py', run_name='__main__')"
    )
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                    time.sleep(0.3)
            box = {"box_xyxy": [178, 25, 249, 96]}
            client = Client(f"http://127.0.0.1:{port}/", verbose=False)
            answer = client.predict(handle_file(str(EXAMPLE_PICTURE)), box, ["Color"], api_name="/describe")
        finally:
            process.terminate()
            process.wait(timeout=30)
        log.seek(0)
        assert log.readline().startswith(str(folder)), "the installed package ran instead of the Space's own"
    model, processor = embedded
    (expected,) = model.as_pipeline(processor)(str(EXAMPLE_PICTURE), [box], ["Color"])
    assert answer == expected
