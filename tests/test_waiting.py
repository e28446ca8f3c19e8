"""No test and no command can wait forever: every wait has a limit, and each test has one besides."""

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
