"""What axe-core finds in a page of a browser test."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


def violations(page: Any) -> list[Any]:
    """The rules of levels A and AA that a page of playwright breaks, with the elements that do."""
    page.evaluate(_axe())
    told = 'found.violations.map(it => [it.id, it.nodes.map(at => at.target + " " + at.html.slice(0, 200))])'
    found: list[Any] = page.evaluate(f"axe.run({{runOnly: {TAGS}}}).then(found => {told})")
    return found


def _axe() -> str:
    """axe-core, which AXE_CORE names, or which pip or npm installed."""
    found = importlib.util.find_spec("axe_playwright_python")
    installed = [] if found is None or found.origin is None else [Path(found.origin).with_name("axe.min.js")]
    named = [Path(os.environ["AXE_CORE"])] if "AXE_CORE" in os.environ else []
    for path in (*named, *installed, Path("node_modules/axe-core/axe.min.js")):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    pytest.skip("axe-core is not installed (the extra browser); npm has it too, and AXE_CORE names its axe.min.js")
