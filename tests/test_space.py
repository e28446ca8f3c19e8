"""The Space that `finecaption space` writes: its files, and that it starts from them alone."""

import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import EXAMPLE_PICTURE, ROOT, free_port
from hub_server import TOKEN, HubServer, Repo
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from finecaption_hf import EMBEDDED_CHECKPOINT
from finecaption_hf.cli import app
from finecaption_hf.hub.spaces import PYTHON_VERSION, write_space

MODEL = "someone/finecaption"
CONSTRAINTS = ROOT / "constraints.txt"
BOX = {"box_xyxy": [178, 25, 249, 96]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("space") / "out"
    result = CliRunner().invoke(app, ["space", str(out), "--model", MODEL, "--title", 'A "fine" demo: 1'])
    assert result.exit_code == 0, result.output
    assert "app.py" in result.output
    return out


def test_front_matter_is_what_the_hub_reads(folder: Path) -> None:
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["title"] == 'A "fine" demo: 1' and '# A "fine" demo: 1' in text
    assert card["sdk"] == "gradio" and f"gradio=={card['sdk_version']}" in CONSTRAINTS.read_text().split()
    assert card["app_file"] == "app.py" and card["models"] == ["someone/finecaption"]
    # The Hub's limits.
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {card["colorFrom"], card["colorTo"]} <= colors
    assert len(card["short_description"]) <= 60
    # Without quotes 3.10 would be the number 3.1.
    assert card["python_version"] == PYTHON_VERSION and isinstance(card["python_version"], str)
    assert card["suggested_hardware"] == "zero-a10g"
    assert 'TITLE = "A \\"fine\\" demo: 1"\n' in (folder / "app.py").read_text(encoding="utf-8")  # which the page shows


def test_folder_has_the_code_but_no_weights_and_no_leftovers(folder: Path) -> None:
    package = folder / "finecaption_hf"
    assert (package / "demo" / "picker.js").is_file() and (package / "pipeline_finecaption.py").is_file()
    assert not list(folder.rglob("*.safetensors")) and not list(folder.rglob("__pycache__"))
    assert not (package / "training").exists() and not (package / "evaluation").exists()


def test_requirements_are_those_of_the_package_in_tested_releases(folder: Path) -> None:
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").split()
    found = {line.name: str(line.specifier) for line in map(Requirement, lines)}
    assert {"transformers", "torch", "timm", "pillow", "opencv-python-headless", "spaces"} <= set(found)
    assert not set(found) & {"pytest", "ruff", "finecaption-hf"}
    # Its version is that of the front matter; another requirement could contradict it.
    assert "gradio" not in found
    # On ZeroGPU it speaks with what the Hub runs.
    assert found.pop("spaces") == ""
    lines = [line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    pins = [pin for pin in map(Requirement, lines) if not pin.marker or pin.marker.evaluate({"python_version": "3.12"})]
    tested = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}
    assert found == {name: tested[canonicalize_name(name)] for name in found}
    assert found["transformers"].startswith("==") and found["torch"].startswith("<=")


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


def test_folder_of_the_same_space_is_completed_and_a_changed_one_left_alone(tmp_path: Path) -> None:
    names = write_space(tmp_path, MODEL)
    (tmp_path / "app.py").unlink()  # as if the first try had been interrupted
    (tmp_path / "finecaption_hf" / "__pycache__").mkdir()
    (tmp_path / "finecaption_hf" / "__pycache__" / "run.pyc").write_bytes(b"")
    assert write_space(tmp_path, MODEL) == names and (tmp_path / "app.py").is_file()
    with pytest.raises(FileExistsError, match=r"there already, and its \S+ is not of this Space"):
        write_space(tmp_path, "someone/another")
    (tmp_path / "README.md").write_text("my own words")
    with pytest.raises(FileExistsError, match=r"its README\.md is not"):
        write_space(tmp_path, MODEL)
    assert (tmp_path / "README.md").read_text() == "my own words"


# --- to the Hub -------------------------------------------------------------------------------------------------------


def push(hub: HubServer, out: Path, *options: str, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    """`finecaption space` in a fresh process, since the client reads its settings when it is imported."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "HF_TOKEN"},
        **({} if token is None else {"HF_TOKEN": token}),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(out.parent / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    code = "from finecaption_hf.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "space", str(out), "--model", MODEL, *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_push_uploads_the_folder_in_one_commit(tmp_path: Path) -> None:
    with HubServer() as hub:
        done = push(hub, tmp_path / "out", "--push", "me/demo", "--private")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].endswith("/spaces/me/demo")
        repo = hub.repos["space", "me/demo"]
        assert repo.private and len(repo.history()) == 2
        local = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
        assert set(repo.at("main").files) == local | {".gitattributes"}
        # A file of an earlier version goes with the next push.
        files = {**repo.at("main").files, "finecaption_hf/old.py": b"", "mine.txt": b"mine"}
        repo.commit("main", "by hand", files, set())
        assert push(hub, tmp_path / "again", "--push", "me/demo").returncode == 0
        assert set(repo.at("main").files) == local | {".gitattributes", "mine.txt"}


def test_push_that_failed_is_completed_by_the_same_command(tmp_path: Path) -> None:
    with HubServer() as hub:
        failed = push(hub, tmp_path / "out", "--push", "me/demo", token="hf_" + "somebodyElse" * 3)
        assert failed.returncode == 2 and not hub.repos
        # The demo was looked at in the meantime.
        (tmp_path / "out" / "finecaption_hf" / "__pycache__").mkdir()
        (tmp_path / "out" / "finecaption_hf" / "__pycache__" / "run.pyc").write_bytes(b"")
        done = push(hub, tmp_path / "out", "--push", "me/demo")
        assert done.returncode == 0, done.stderr
        sent = hub.repos["space", "me/demo"].at("main").files
    assert "app.py" in sent and not [name for name in sent if "__pycache__" in name]


@pytest.mark.parametrize(
    ("options", "token", "message"),
    [
        (["--push", "me/demo"], None, "Log in with `hf auth login`"),
        (["--push", "me/demo"], "hf_" + "somebodyElse" * 3, "Log in with `hf auth login`"),
        (["--push", "demo"], TOKEN, "Give owner/name"),
        (["--private"], TOKEN, "Give --push OWNER/SPACE too"),
    ],
)
def test_push_that_fails_says_why_in_one_line(
    tmp_path: Path, options: list[str], token: str | None, message: str
) -> None:
    with HubServer() as hub:
        done = push(hub, tmp_path / "out", *options, token=token)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert token is None or token not in done.stdout + done.stderr
    assert not hub.repos


# --- it starts --------------------------------------------------------------------------------------------------------

# What the package `spaces` does on ZeroGPU, without a GPU: each call runs in a process that is forked off, arguments
# and results are copied, and an error that is not gradio's comes back as the name of its class.
FAKE_SPACES = """
import functools, inspect, multiprocessing, pickle
import gradio

fork = multiprocessing.get_context("fork")


def GPU(task=None, *, duration=60, size=None):
    if task is None:
        return functools.partial(GPU, duration=duration, size=size)
    is_generator = inspect.isgeneratorfunction(task)

    def work(given, results):
        try:
            values = task(*pickle.loads(given))
            for value in values if is_generator else [values]:
                results.send((None, value))
            results.send(("end", None))
        except gradio.Error as error:
            results.send((error.message, None))
        except Exception as error:
            results.send((type(error).__name__, None))

    def run(*args):
        print("GPU for", duration(*args) if callable(duration) else duration, "seconds", flush=True)
        receiving, sending = fork.Pipe(duplex=False)
        process = fork.Process(target=work, args=(pickle.dumps(args), sending), daemon=True)
        process.start()
        sending.close()  # or a process that dies would be waited for
        while True:
            end, value = receiving.recv()
            if end == "end":
                break
            if end is not None:
                raise gradio.Error(end, print_exception=False)
            yield value
        process.join(30)

    if is_generator:
        return functools.wraps(task)(lambda *args: (yield from run(*args)))
    return functools.wraps(task)(lambda *args: next(run(*args)))
"""

# `describe` of a Space, by a client in a process of its own; what it prints is JSON.
ASK = """
import json, sys
from gradio_client import Client, handle_file

client = Client(sys.argv[1], verbose=False)
try:
    mask, questions = map(json.loads, sys.argv[3:])
    answer = client.predict(handle_file(sys.argv[2]), mask, questions, api_name="/describe")
except Exception as error:
    answer = str(error)
print(json.dumps(answer))
"""


class Space:
    """A Space that runs: its address, and its log."""

    def __init__(self, python: str, url: str, log: Path) -> None:
        self.python, self.url, self.log = python, url, log

    def describe(self, *questions: str) -> Any:
        """The record of a region of the example picture, or what went wrong."""
        given = (self.url, str(EXAMPLE_PICTURE), json.dumps(BOX), json.dumps(questions))
        done = subprocess.run([self.python, "-c", ASK, *given], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        if isinstance(answer, dict):
            answer.pop("model_note", None)
        return answer

    def open_page(self) -> None:
        """As far as without a browser: the page, and what it loads."""
        with urllib.request.urlopen(self.url, timeout=30) as answer:
            page = answer.read().decode()
        assert "FineCaption" in page
        names = re.findall(r'(?:src|href)="(\.?/[^"]+\.(?:js|css))"', page)
        assert names
        for name in names:
            urllib.request.urlopen(urllib.parse.urljoin(self.url, name), timeout=30).close()


@contextmanager
def started(python: str, folder: Path, environment: dict[str, str], log: Path) -> Iterator[Space]:
    """`python app.py` in the folder, until it answers."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    address = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    with open(log, "w") as output:
        process = subprocess.Popen(
            [python, "app.py"], cwd=folder, env={**environment, **address}, stdout=output, stderr=output
        )
        try:
            deadline = time.monotonic() + 240
            while True:
                try:
                    urllib.request.urlopen(url, timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                    time.sleep(0.3)
            yield Space(python, url, log)
        finally:
            process.terminate()
            process.wait(timeout=30)


def expected(embedded: Any, *questions: str) -> Any:
    model, processor = embedded
    (record,) = model.as_pipeline(processor)(str(EXAMPLE_PICTURE), [BOX], list(questions))
    return record


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The model as a download from the Hub leaves it."""
    folder = tmp_path / "hub" / "models--someone--finecaption"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    shutil.copytree(EMBEDDED_CHECKPOINT, folder / "snapshots" / ("0" * 40))
    return folder.parent


@pytest.mark.skipif(find_spec("gradio") is None, reason="gradio (the extra demo) is not installed")
def test_app_answers_where_a_gpu_is_another_process(folder: Path, cache: Path, tmp_path: Path, embedded: Any) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "spaces.py").write_text(FAKE_SPACES)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "modules"),
        "SPACES_ZERO_GPU": "true",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "GRADIO_TEMP_DIR": str(tmp_path / "store"),
    }
    with started(sys.executable, folder, environment, tmp_path / "log") as space:
        assert space.describe("Color", "Shape") == expected(embedded, "Color", "Shape")
        # What a user can mend comes with its words, though it was found in the other process.
        (token,) = embedded[1].tokenizer.convert_ids_to_tokens([embedded[0].config.image_token_id])
        assert "a special token of the tokenizer" in space.describe(f"What is {token}?")
        assert space.describe("Color") == expected(embedded, "Color")
        log = space.log.read_text()
    # More answers, more time.
    assert "GPU for 34 seconds" in log and "GPU for 32 seconds" in log


@pytest.mark.skipif(find_spec("gradio") is None, reason="gradio (the extra demo) is not installed")
def test_streams_on_zero_gpu_stay_streams_and_keep_their_messages() -> None:
    import gradio

    from finecaption_hf.demo.zerogpu import on_zero_gpu

    taken: list[bool] = []

    def gpu(*, duration: Any) -> Any:
        def decorate(task: Any) -> Any:
            taken.append(inspect.isgeneratorfunction(task))
            return task

        return decorate

    def count(asked: int) -> Iterator[int]:
        yield from range(asked)
        raise ValueError("There are <no> more.")

    # `spaces.GPU` looks at what it decorates, and runs a generator to its end before anything comes if it is not one.
    stream = on_zero_gpu(gpu)(count)(2)
    assert taken == [True] and [next(stream), next(stream)] == [0, 1]
    with pytest.raises(gradio.Error, match="There are &lt;no&gt; more"):
        next(stream)


# --- as the Hub builds and starts it: scripts/test --space ------------------------------------------------------------


@pytest.fixture(scope="module")
def built(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The Python of an environment that was made for this Space alone, and the folder where its files are."""
    work = tmp_path_factory.mktemp("built")
    shutil.copytree(folder, work / "app")
    unwanted = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}

    def run(*command: str) -> None:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
        if done.returncode:
            pytest.fail(f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")

    try:
        run(sys.executable, "-m", "venv", str(work / "environment"))
        python = str(work / "environment" / "bin" / "python")
        requirements = str(work / "app" / "requirements.txt")
        front = (work / "app" / "README.md").read_text(encoding="utf-8").split("---\n")[1]
        # The one command of the Hub's builder for Gradio, with what it brings along in tested releases.
        gradio = [
            f"gradio[oauth,mcp]=={yaml.safe_load(front)['sdk_version']}",
            "uvicorn>=0.14.0",
            "websockets>=10.4",
            "spaces",
        ]
        run(python, "-m", "pip", "install", "--quiet", "-r", requirements, *gradio, "-c", str(CONSTRAINTS))
        yield python, work / "app"
    finally:
        shutil.rmtree(work, ignore_errors=True)  # gigabytes


@pytest.fixture
def space_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What is set in the container of a Space, with a Hub that has the model, which is private."""
    with HubServer() as hub:
        repo = hub.repos["model", MODEL] = Repo(MODEL, private=True)
        files = {path.name: path.read_bytes() for path in EMBEDDED_CHECKPOINT.iterdir() if path.is_file()}
        weights = {name: content for name, content in files.items() if name.endswith(".safetensors")}
        repo.commit("main", "a checkpoint", files, set(weights))
        hub.objects |= {hashlib.sha256(content).hexdigest(): content for content in weights.values()}
        (tmp_path / "home").mkdir()
        yield {
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            "HOME": str(tmp_path / "home"),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "SYSTEM": "spaces",
            "SPACE_ID": "someone/demo",
            "SPACE_AUTHOR_NAME": "someone",
            "SPACE_REPO_NAME": "demo",
            "SPACE_TITLE": "demo",
            "SPACE_HOST": "someone-demo.hf.space",
            "GRADIO_ALLOW_FLAGGING": "never",
            "GRADIO_NUM_PORTS": "1",
            "GRADIO_THEME": "huggingface",
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",  # which this Hub does not speak
            "HF_TOKEN": TOKEN,
        }


@pytest.mark.space
def test_space_starts_in_a_clean_environment(
    built: tuple[str, Path], space_environment: dict[str, str], tmp_path: Path, embedded: Any
) -> None:
    python, app_folder = built
    where = "import finecaption_hf; print(finecaption_hf.__file__)"
    outside = subprocess.run(
        [python, "-c", where], cwd=tmp_path, env=space_environment, capture_output=True, text=True, timeout=120
    )
    assert "No module named 'finecaption_hf'" in outside.stderr, "the environment is not clean"
    with started(python, app_folder, space_environment, tmp_path / "log") as space:
        space.open_page()
        assert space.describe("Color", "Shape") == expected(embedded, "Color", "Shape")
        assert TOKEN not in space.log.read_text()


@pytest.mark.space
def test_space_starts_on_zero_gpu(built: tuple[str, Path], space_environment: dict[str, str], tmp_path: Path) -> None:
    """`spaces` itself, up to the GPU: at the start it stands in for one, then it asks for one, which is not there."""
    asked: list[str] = []

    class Scheduler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            content = json.dumps({"idle": True, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "it"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Scheduler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        zero = {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{server.server_port}"}
        with started(built[0], built[1], space_environment | zero, tmp_path / "log") as space:
            space.open_page()
            assert asked == ["/startup-report"]
            space.describe("Color")
            paths = [path.partition("?")[0] for path in asked]
            # The function went to its own process, which was let at the GPU.
            assert paths[1:3] == ["/schedule", "/allow"], (paths, space.log.read_text())
        server.shutdown()
