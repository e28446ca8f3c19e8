"""The page of `describe` in a real browser. `scripts/test --browser` runs these; they need Chromium and the extra."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe import violations
from chromium import CHROMIUM, MARKS, playwright
from describers import StubDescriber
from PIL import Image

from finecaption_hf.data import open_regions
from finecaption_hf.describing import DescribeOptions, describe_dataset
from finecaption_hf.describing.outputs import page

pytestmark = MARKS

LONG_WORD = "x" * 300
EVIL = "</script><img src=x onerror=document.title='run'><script>document.title='run'</script>"
NUM_PICTURES = 30


@pytest.fixture(scope="module", params=["embedded", "beside"])
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 30 pictures with two regions each, whose answers are as wide and as hostile as they come."""
    folder = tmp_path_factory.mktemp(request.param)
    rows: list[dict[str, Any]] = [{"image": "gone.png", "mask": None}]
    for number in range(NUM_PICTURES):
        Image.new("RGB", (90, 60), (40, 90, 8 * number)).save(folder / f"{number}.png")
        row = {"image": f"{number}.png", "label": f"{'even' if number % 2 == 0 else EVIL}", "id": LONG_WORD}
        rows += [{**row, "box_xyxy": [5, 5, 40, 40]}, {**row, "mask": None}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def say(picture: Image.Image, region: Any, request: Any) -> str:
        return f"{request.name} {'whole' if region.is_whole else 'Part'} {EVIL} {LONG_WORD} \u202e שלום\nnext"

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(page, "MAX_EMBEDDED", 1000 if request.param == "embedded" else 1)
        inputs, output = open_regions(folder / "rows.jsonl"), folder / "out.html"
        describe_dataset(lambda: StubDescriber(say), inputs, output, ["color", "toString"], DescribeOptions())
    return output


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
def test_page_violates_no_rule_of_level_a_and_aa(browser: Any, shown: Path, width: int, scheme: str) -> None:
    opened = browser.new_page()
    opened.set_viewport_size({"width": width, "height": 900})
    opened.emulate_media(color_scheme=scheme)
    opened.goto(shown.as_uri())
    assert violations(opened) == []
    badge = "(it => [it.textContent, getComputedStyle(it).color])(document.querySelector('h2 b[style]'))"
    assert opened.evaluate(badge) == ["1", "rgb(0, 0, 0)"], "white has 4.2:1 on the first color"
    if width == 390:
        heights = opened.eval_on_selector_all(
            "input[type=search], select, button", "all => all.map(it => it.offsetHeight).filter(Boolean)"
        )
        assert heights and min(heights) >= 44
    opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_the_screen_and_asks_only_for_its_pictures(
    browser: Any, shown: Path, width: int, scheme: str
) -> None:
    opened = browser.new_page()
    asked: list[str] = []
    said: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.set_viewport_size({"width": width, "height": 900})
    opened.emulate_media(color_scheme=scheme)
    opened.goto(shown.as_uri())
    opened.wait_for_load_state("networkidle")
    assert said == []
    files = {url for url in asked if not url.startswith("data:")}
    assert shown.as_uri() in files
    assert all(url.startswith(shown.with_name("out_files").as_uri()) for url in files - {shown.as_uri()})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.evaluate("document.images.length") == 23  # of 24, the first has no picture
    # Pictures far below are not loaded.
    opened.evaluate("document.images[0].decode()")
    assert opened.evaluate("document.images[0].naturalWidth > 0")
    assert opened.title() == "out"
    color = opened.evaluate("getComputedStyle(document.querySelector('article')).backgroundColor")
    assert (sum(map(int, color[4:-1].split(", "))) > 382) == (scheme == "light")
    opened.close()


def test_page_is_filtered_and_leafed_through(browser: Any, shown: Path) -> None:
    opened = browser.new_page()
    opened.goto(shown.as_uri())

    def count() -> str:
        return opened.inner_text("#count")

    assert count() == "1 to 24 of 31 pictures, 61 regions"
    opened.click("#on")
    assert count() == "25 to 31 of 31 pictures, 61 regions"
    assert opened.is_disabled("#on")
    opened.click("#back")
    assert opened.is_disabled("#back")
    opened.fill("#text", "color PART")
    assert count() == "1 to 24 of 30 pictures, 30 regions"
    assert opened.evaluate("document.querySelector('mark').textContent") == "Color Part"
    opened.select_option("#question", "toString")
    assert count() == "0 pictures, 0 regions"
    opened.fill("#text", EVIL)
    assert count() == "1 to 24 of 30 pictures, 60 regions"
    opened.select_option("#label", EVIL)
    assert count() == "15 pictures, 30 regions"
    assert not opened.is_visible("#on")
    opened.fill("#text", "")
    opened.select_option("#label", "")
    opened.select_option("#question", "")
    opened.check("#failed")
    assert count() == "1 picture, 1 region"
    assert "it is not there" in opened.inner_text(".missing")
    assert opened.title() == "out"
    opened.close()
