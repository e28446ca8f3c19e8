"""No test and no command can wait forever: every wait has a limit, and each test has one besides."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# --- the limit of a test ----------------------------------------------------------------------------------------------

HANGING = """
import queue, subprocess, sys, threading, time
import pytest

def wait():
    threading.Event().wait()

@pytest.fixture
def never_there():
    wait()

@pytest.fixture
def never_gone():
    yield
    wait()

def test_of_a_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def test_of_a_thread():
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join()

def test_of_a_queue():
    queue.Queue().get()

def test_of_a_process():
    subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"])

def test_of_a_fixture(never_there):
    pass

def test_that_fails_and_hangs_then(never_gone):
    raise ValueError("first")

@pytest.mark.slow
def test_that_may_take_long():
    time.sleep(2)

def test_that_leaves_a_thread_behind():
    threading.Thread(target=wait).start()
"""


@pytest.mark.parametrize("processes", ["0", "2"])
def test_a_test_that_hangs_fails_under_its_name_and_the_others_go_on(tmp_path: Path, processes: str) -> None:
    conftest = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    shorter = re.sub("CLEANING_S, ENDING_S = .*", "CLEANING_S, ENDING_S = 3600, 1.0, 3", conftest)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "conftest.py").write_text(shorter, encoding="utf-8")
    (tmp_path / "tests" / "test_hanging.py").write_text(HANGING, encoding="utf-8")
    options = ["-o", "timeout=1", "-m", "", "-n", processes, "-p", "no:cacheprovider"]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    told = set(re.findall(r"^(?:FAILED|ERROR) tests/test_hanging.py::(\w+) - (.*)", done.stdout, re.MULTILINE))
    assert told == {
        ("test_of_a_lock", "Failed: Timeout (>1.0s) from pytest-timeout."),
        ("test_of_a_thread", "Failed: Timeout (>1.0s) from pytest-timeout."),
        ("test_of_a_queue", "Failed: Timeout (>1.0s) from pytest-timeout."),
        ("test_of_a_process", "Failed: Timeout (>1.0s) from pytest-timeout."),
        ("test_of_a_fixture", "Failed: Timeout (>1.0s) from pytest-timeout."),
        ("test_that_fails_and_hangs_then", "ValueError: first"),
        ("test_that_fails_and_hangs_then", "Failed: Timeout (>1.0s) from pytest-timeout."),
    }, done.stdout
    assert "5 failed, 2 passed, 2 errors" in done.stdout
    # The process of the thread that was left behind had to be ended, by this or by xdist.
    assert processes != "0" or "in wait" in done.stderr


# --- the limit of a wait ----------------------------------------------------------------------------------------------

# What waits without end unless it is told how long.
_PROCESSES = {"run", "call", "check_call", "check_output"}
_METHODS = {"join", "wait", "get", "acquire", "result"}
_FUNCTIONS = {"TextIteratorStreamer", "AsyncTextIteratorStreamer", "urlopen", "HTTPConnection", "create_connection"}


def unlimited_waits(text: str) -> list[str]:
    """The calls of a source text that may wait without end, each as "line: call"."""
    found = []
    tree = ast.parse(text)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    limited = {id(call.args[0]) for call in calls if ast.unparse(call.func) == "asyncio.wait_for" and call.args[1:]}
    for node in calls:
        if id(node) in limited or any(keyword.arg in ("timeout", None) for keyword in node.keywords):
            continue
        owner, _, name = ast.unparse(node.func).rpartition(".")
        if (
            (owner == "subprocess" and name in _PROCESSES)
            or name in _FUNCTIONS
            or name == "communicate"
            # `", ".join(parts)`, `mapping.get(key)`, `event.wait(3)` and `thread.join(3)` have an argument.
            or (owner and name in _METHODS and not node.args)
        ):
            found.append(f"{node.lineno}: {ast.unparse(node)[:100]}")
    return found


@pytest.mark.parametrize(
    ("call", "waits"),
    [
        ("subprocess.run(command, check=True)", True),
        ("subprocess.run(command, timeout=60)", False),
        ("subprocess.check_output(command)", True),
        ("thread.join()", True),
        ("thread.join(3)", False),
        ("', '.join(parts)", False),
        ("self.event.wait()", True),
        ("self.event.wait(timeout=3)", False),
        ("answers.get()", True),
        ("mapping.get(key)", False),
        ("process.communicate(text)", True),
        ("asyncio.wait_for(event.wait(), 3)", False),
        ("asyncio.wait_for(event.wait())", True),
        ("lock.acquire()", True),
        ("start(work).result()", True),
        ("TextIteratorStreamer(tokenizer, skip_prompt=True)", True),
        ("urllib.request.urlopen(url)", True),
    ],
)
def test_unlimited_waits_are_told_from_others(call: str, waits: bool) -> None:
    assert bool(unlimited_waits(call)) is waits


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "scripts"])
def test_every_wait_has_a_limit(folder: str) -> None:
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        waits = unlimited_waits(path.read_text(encoding="utf-8"))
        # Futures of a pool end as its workers do, with what these died of.
        found += [f"{path.relative_to(ROOT)}:{wait}" for wait in waits if folder != "src" or ".result()" not in wait]
    assert not found, "\n".join(found)
