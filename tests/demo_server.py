"""`finecaption demo` as a process of its own, whose every way to other machines is watched and closed."""

import json
import os
import re
import select
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import EXAMPLE_PICTURE

# Run by Python at its start, before anything else. Loopback is let through.
_WATCH = """
import os, socket

_LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")


def _check(how, host):
    host = host.decode() if isinstance(host, bytes) else host
    if host and not str(host).startswith(_LOOPBACK):
        with open(os.environ["WATCH_LOG"], "a") as log:
            log.write(f"{how} {host}\\n")
        raise OSError(f"no way to {host}")


def _watched(how, name, call):
    def watched(self, where, *rest):
        if isinstance(where, tuple):
            _check(how, where[0])
        return call(self, where, *rest)

    return watched


def _send(self, data, *rest):
    if rest and isinstance(rest[-1], tuple):
        _check("sendto", rest[-1][0])
    return _sendto(self, data, *rest)


_look_up, _sendto = socket.getaddrinfo, socket.socket.sendto


def _watched_look_up(host, *rest, **options):
    _check("look up", host)
    return _look_up(host, *rest, **options)


socket.getaddrinfo = _watched_look_up
socket.gethostbyname = lambda host, _original=socket.gethostbyname: (_check("look up", host), _original(host))[1]
for _name in ("connect", "connect_ex"):
    setattr(socket.socket, _name, _watched("connect", _name, getattr(socket.socket, _name)))
socket.socket.sendto = _send
open(os.environ["WATCH_LOG"], "a").write("watching\\n")
"""


@dataclass
class Command:
    """A running demo.

    Args:
        address: where it listens.
        store: the folder of its uploads.
        log: what it wrote.
        watch: what was tried beyond this machine.
    """

    address: str
    store: Path
    log: Path
    watch: Path
    process: subprocess.Popen

    @property
    def tried(self) -> list[str]:
        """Ways to other machines that were tried; the first line says that somebody watches."""
        first, *rest = self.watch.read_text().splitlines()
        assert first == "watching"
        return [line for line in rest if line != "watching"]


@contextmanager
def running_demo(folder: Path, *arguments: str) -> Iterator[Command]:
    """The demo of the embedded checkpoint, as a user starts it, but that no way leads out."""
    (folder / "sitecustomize.py").write_text(_WATCH)
    source = Path(__file__).parents[1] / "src"
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if name not in ("HF_HUB_OFFLINE", "GRADIO_ANALYTICS_ENABLED")
        },
        "PYTHONPATH": os.pathsep.join([str(folder), str(source)]),
        "WATCH_LOG": str(folder / "watch"),
        "GRADIO_TEMP_DIR": str(folder / "store"),
        "HF_HOME": str(folder / "home"),
        "PYTHONUNBUFFERED": "1",
    }
    log = folder / "log"
    with open(log, "w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "finecaption_hf.cli", "demo", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout is not None
        try:
            told, deadline = "", time.monotonic() + 120
            while (found := re.search(r"http://\S+", told)) is None:
                ready = select.select([process.stdout], [], [], 1)[0]
                told += process.stdout.readline() if ready else ""
                assert process.poll() is None and time.monotonic() < deadline, told + log.read_text()
            yield Command(found[0], folder / "store", log, folder / "watch", process)
        finally:
            process.terminate()
            process.wait(timeout=30)
            process.stdout.close()


def send(address: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Status and text of an answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, body, named), timeout=60) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")


def upload(address: str, name: str = "p.png", content: bytes | None = None) -> str:
    """The path that the app gave a file."""
    head = (
        f'--xyz\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    )
    body = head.encode() + (EXAMPLE_PICTURE.read_bytes() if content is None else content) + b"\r\n--xyz--\r\n"
    status, text = send(address, "gradio_api/upload", body, Content_Type="multipart/form-data; boundary=xyz")
    assert status == 200, text
    (path,) = json.loads(text)
    return str(path)


def ask(address: str, value: Any, questions: Any = ("region",), settings: Any = (16, 0, 0)) -> tuple[int, str]:
    """What pressing Describe sends, and all that comes back; `settings` may be JSON text."""
    status, config = send(address, "config")
    (index,) = (it["id"] for it in json.loads(config)["dependencies"] if it["api_name"] == "answer")
    session = os.urandom(6).hex()
    settings = settings if isinstance(settings, str) else json.dumps(settings)[1:-1]
    data = f'[null, {json.dumps(value)}, {json.dumps(questions)}, [], "", {settings}, null, null]'
    body = f'{{"data": {data}, "fn_index": {index}, "session_hash": "{session}", "trigger_id": 1}}'.encode()
    status, text = send(address, "gradio_api/queue/join", body, Content_Type="application/json")
    return (status, text) if status != 200 else send(address, f"gradio_api/queue/data?session_hash={session}")


def file_data(path: Any, **more: Any) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}
