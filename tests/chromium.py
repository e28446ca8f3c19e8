"""What tests in a real browser need: playwright, and a Chromium."""

import os
import shutil
from typing import Any

import pytest

playwright: Any = pytest.importorskip("playwright.sync_api", reason="playwright (the extra browser) is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; install it, or name it in CHROMIUM"),
]
