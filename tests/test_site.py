"""The documentation site from its folder, in a real browser. `scripts/test --browser` runs these."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe import violations
from chromium import CHROMIUM, MARKS, playwright
from conftest import ROOT

pytest.importorskip("mkdocs", reason="mkdocs-material (the extra docs) is not installed")
pytestmark = MARKS


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "--quiet", "build", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


def test_search_works_without_a_server_and_asks_nobody(chromium: Any, site: Path) -> None:
    page = chromium.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((site / "tutorials" / "data.html").as_uri())
    page.wait_for_selector(".md-search__input")
    page.keyboard.press("/")
    page.keyboard.type("spotlight")
    page.locator(".md-search-result__item", has_text="Captioning from the command line").wait_for()
    assert [url for url in asked if not url.startswith((site.as_uri(), "data:", "blob:"))] == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_the_screen_and_violate_no_rule_of_level_a_and_aa(
    chromium: Any, site: Path, width: int, scheme: str
) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    small = """() => [...document.querySelectorAll('article *')].filter(part => part.offsetWidth > 1
        && parseFloat(getComputedStyle(part).fontSize) < 12 && [...part.childNodes].some(node => node.nodeType === 3
        && node.textContent.trim())).map(part => part.outerHTML.slice(0, 120))"""
    cut = (
        "[...document.querySelectorAll('pre, pre code')].filter(part => part.scrollWidth > part.clientWidth + 1).length"
    )
    for name in ("index", "tutorials/pictures", "commands", "results"):
        page.goto((site / f"{name}.html").as_uri())
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.evaluate(small) == [], name
        assert page.evaluate(cut) == 0, name
        assert violations(page) == [], name
    page.close()
