"""What has to be set before anything of Hugging Face is imported, and what several test files share."""

import faulthandler
import json
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import pytest_timeout
from PIL import Image, ImageFile

if TYPE_CHECKING:
    from hub_server import Client, HubServer

# Settings are read when a library is imported. Without network the Hub client would wait for most of a minute, and code
# that a test loads from beside weights must neither come from an earlier run nor stay for the next one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The tensors of tests are small: threads would gain nothing, and on busy cores they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
_modules = tempfile.TemporaryDirectory(prefix="finecaption-test-modules-")
os.environ["HF_MODULES_CACHE"] = _modules.name

ROOT = Path(__file__).parents[1]
EXAMPLE_PICTURE = ROOT / "examples" / "scene.png"
EXAMPLE_MASK = ROOT / "examples" / "scene-mask.png"
# How a script begins that stands for a machine without this package.
NOT_INSTALLED = """
import importlib.abc, sys

class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "finecaption_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
try:
    import finecaption_hf
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("the package is still importable")
"""

# Seconds for one test that trains, installs or drives a browser (pyproject.toml has the limit of the others), for
# cleaning up after one, and for a process to end after the last.
LONG_S, CLEANING_S, ENDING_S = 3600, 300, 120


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.get_closest_marker(name) for name in ("slow", "space", "browser")):
            item.add_marker(pytest.mark.timeout(LONG_S))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Any:
    """Cleaning up has a limit of its own: the test's is lifted when it fails, for debuggers."""
    hook = item.config.hook
    limit = pytest_timeout.Settings(CLEANING_S, "signal", False, False)
    hook.pytest_timeout_set_timer(item=item, settings=limit)
    try:
        return (yield)
    finally:
        hook.pytest_timeout_cancel_timer(item=item)


def pytest_unconfigure() -> None:
    """A thread that a test left behind cannot keep the process from ending."""
    faulthandler.dump_traceback_later(ENDING_S, exit=True, file=sys.__stderr__)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
    return port


class RealRegion(NamedTuple):
    """A region of a photograph: the file, COCO RLE (its mask is (H, W)) and a caption that a person would accept."""

    image: Path
    rle: dict[str, Any]
    caption: str

    @property
    def mask(self) -> np.ndarray:
        """Decoded by pycocotools, so independently of the code under test; bool (H, W)."""
        from pycocotools import mask as coco

        return coco.decode(self.rle).astype(bool)


class _Deprecations(logging.Handler):
    """What libraries say of their old names in their logs, where no filter of warnings sees it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # transformers 5.19 says the second of what its own pipelines do.
        text = record.getMessage()
        if "deprecat" in text and not text.startswith("Passing `generation_config` together with"):
            self.messages.append(text)


@pytest.fixture(autouse=True)
def pillow_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some annotation tools change them for all of a process when they are imported: damaged pictures would be read."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.fixture(autouse=True)
def no_deprecations() -> Iterator[None]:
    """A test fails where the code makes a library log that a name is deprecated."""
    handler = _Deprecations()
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub", "accelerate", "datasets")]
    for logger in loggers:
        logger.addHandler(handler)
    yield
    for logger in loggers:
        logger.removeHandler(handler)
    assert not handler.messages


@pytest.fixture(scope="session")
def real_regions() -> list[RealRegion]:
    """27 regions of six photographs, which are not ours to copy: skipped where their folder is absent."""
    folder = ROOT.parent / "shared" / "real_regions"
    if not (folder / "regions.jsonl").is_file():
        pytest.skip(f"the photographs with masks are not in {folder}")
    records = [json.loads(line) for line in (folder / "regions.jsonl").read_text(encoding="utf-8").splitlines()]
    return [RealRegion(folder / record["image"], record["segmentation"], record["caption"]) for record in records]


@pytest.fixture(scope="session")
def embedded() -> tuple[Any, Any]:
    """Model and processor of the checkpoint that comes with the package, on the CPU. Treat them as read-only."""
    from finecaption_hf import EMBEDDED_CHECKPOINT
    from finecaption_hf.asking import load

    if not (EMBEDDED_CHECKPOINT / "config.json").is_file():
        pytest.fail(f"The embedded checkpoint is missing from {EMBEDDED_CHECKPOINT}; it belongs to the repository.")
    return load(device="cpu")


# --- a Hub on loopback -----------------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> "Iterator[HubServer]":
    from hub_server import HubServer

    with HubServer() as server:
        yield server


@pytest.fixture
def client(hub: "HubServer", tmp_path: Path) -> "Client":
    """A user of it, in fresh processes with a home of their own."""
    from hub_server import Client

    return Client(hub, tmp_path)


@pytest.fixture
def here(hub: "HubServer", monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "HubServer":
    """It as this process sees it."""
    from hub_server import reach

    return reach(hub, monkeypatch, tmp_path)
