"""Reports in a real browser. `scripts/test --browser` runs these; they need Chromium and the extra `browser`."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from axe import violations
from chromium import CHROMIUM, MARKS, playwright
from describers import StubDescriber
from evaluation_data import box, record, region, score, write_data

from finecaption_hf.data import open_dataset
from finecaption_hf.evaluation.evaluating import report_on
from finecaption_hf.evaluation.predicting import run_predictions

pytestmark = MARKS

LONG_WORD = "x" * 300
ATTRIBUTES = ("Relative Location with Other Objects", "Clothing, Shoes and Accessories", LONG_WORD[:90])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With names, answers, questions and tables that are as wide as they come."""
    folder = tmp_path_factory.mktemp("report")
    branches = [(name, f"{LONG_WORD} and {'many words ' * 30}") for name in ATTRIBUTES]
    rows = [record(f"{LONG_WORD[:200]}{index}.png", region(box(0, 0, 9, 9), *branches)) for index in range(3)]
    dataset = open_dataset(write_data(folder / "data", rows, size=(60, 90)))

    class Named(StubDescriber):
        name = "a-model-with-a-long-name/" + LONG_WORD[:60]

    path = folder / "p.jsonl"
    describer = Named(questions={name: f"{name}?" for name in ATTRIBUTES})
    run_predictions(describer, dataset, path, data_name="data")
    columns = ["question", *(f"share of regions, way {index}" for index in range(9))]
    wide = {
        "name": "wide",
        "title": "A wide table",
        "table": {"columns": columns, "rows": [[name, *["0.500 (0.400 to 0.600)"] * 9] for name in ATTRIBUTES]},
        "notes": [LONG_WORD],
    }
    report_on(
        path,
        folder / "report",
        score=score,
        dataset=dataset,
        compare_with=path,
        command=f"finecaption evaluate --data {LONG_WORD}",
        diagnostics=[wide],
    )
    return folder / "report" / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")),
            executable_path=CHROMIUM,
            args=["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
        )
        yield context
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_report_fits_the_screen_and_loads_nothing(browser: Any, report: Path, width: int, scheme: str) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(report.as_uri())
    page.wait_for_load_state("networkidle")
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    # What is too wide scrolls within itself, and what scrolls can be reached with its names in sight.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    # Text stands out from what is behind it, in tables too.
    shown = "[...document.querySelectorAll('td:first-child')].map(cell => getComputedStyle(cell).backgroundColor)"
    light = {sum(map(int, color[4:-1].split(", "))) > 382 for color in page.evaluate(shown)}
    assert light == {scheme == "light"}
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_report_violates_no_rule_of_level_a_and_aa(browser: Any, report: Path, width: int, scheme: str) -> None:
    page = browser.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(report.as_uri())
    assert violations(page) == []
    page.close()


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_every_section_fits_a_screen_and_the_contents_lead_to_it(
    browser: Any, report: Path, width: int, height: int
) -> None:
    page = browser.new_page()
    page.set_viewport_size({"width": width, "height": height})
    page.goto(report.as_uri())
    tops = (
        "[...document.querySelectorAll('h2'), document.body.lastElementChild].map(e => e.getBoundingClientRect().top)"
    )
    starts = page.evaluate(tops)
    assert len(starts) > 6 and max(after - before for before, after in pairwise(starts)) <= height
    assert page.locator(".contents a").count() == page.locator("h2").count()
    page.locator(".contents a").last.click()
    assert page.locator("h2").last.evaluate("e => e.getBoundingClientRect().top") < height
    fold = page.locator("details", has_text="model-index")
    assert not fold.locator("pre").is_visible()
    fold.locator("summary").click()
    assert fold.locator("pre").is_visible()
    page.close()


def test_printed_report_leaves_nothing_beyond_the_paper(browser: Any, report: Path) -> None:
    page = browser.new_page()
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 within margins of a centimetre
    page.emulate_media(media="print")
    page.goto(report.as_uri())
    beyond = (
        "[...document.querySelectorAll('td, th, img, pre')].filter(e => e.getBoundingClientRect().right > innerWidth)"
    )
    assert page.evaluate(f"{beyond}.map(e => e.outerHTML.slice(0, 80))") == []
    page.close()
