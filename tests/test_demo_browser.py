"""The demo in a real browser. `scripts/test --browser` runs these; they need Chromium and the extra `browser`.

Screenshots go to the folder that FINECAPTION_SCREENSHOTS names; those in docs/ are from there.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import EXAMPLE_MASK, EXAMPLE_PICTURE
from PIL import Image

from finecaption_hf.masks_finecaption import as_mask, decode_mask, encode_mask, encode_rle

pytest.importorskip("gradio", reason="gradio (the extra browser) is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright (the extra browser) is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; install it, or name it in CHROMIUM"),
]
# No sandbox: containers lack what it needs. The rest keeps the browser itself from calling home.
_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def address(embedded: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("store")))
    from finecaption_hf.demo.app import build_demo, launch_demo

    demo = build_demo(*embedded)
    yield launch_demo(demo)
    demo.close()
    patch.undo()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        yield started
        started.close()


def _context(chromium: Any, **options: Any) -> Any:
    """A user: nothing of another context is seen in it."""
    context = chromium.new_context(**{"viewport": {"width": 1280, "height": 1000}, "has_touch": True, **options})
    context.set_default_timeout(20_000)
    return context


@pytest.fixture(scope="module")
def browser(chromium: Any) -> Iterator[Any]:
    context = _context(chromium)
    yield context
    context.close()


class Demo:
    """A page of the demo, and what users do there."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.address = address
        self.faults: list[str] = []
        self.elsewhere: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", self._note)
        self.load()

    def _note(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def load(self) -> None:
        self.page.goto(self.address)
        self.page.wait_for_selector(".fc-canvas")

    def open(self, path: Path = EXAMPLE_PICTURE, size: str = "256x256") -> None:
        self.page.locator(".fc-file").set_input_files(str(path))
        self.page.wait_for_function(f"document.querySelector('.fc-canvas').dataset.size === '{size}'")

    @property
    def areas(self) -> list[int]:
        text = self.page.locator(".fc-canvas").get_attribute("data-areas") or ""
        return [int(area) for area in text.split(",") if area]

    @property
    def status(self) -> str:
        text: str = self.page.locator(".fc-status").inner_text()
        return text

    def tool(self, name: str) -> None:
        self.page.locator(f'[data-tool="{name}"]').click()

    def do(self, name: str) -> None:
        self.page.locator(f'[data-do="{name}"]').click()

    def place(self, x: float, y: float, size: int = 256) -> tuple[float, float]:
        """Where a pixel of a picture that is wholly shown stands on the page."""
        box = self.page.locator(".fc-canvas").bounding_box()
        scale = min(box["width"], box["height"]) / size
        left, top = box["x"] + (box["width"] - size * scale) / 2, box["y"] + (box["height"] - size * scale) / 2
        return left + x * scale, top + y * scale

    @property
    def zoom(self) -> float:
        """Pixels of the page for a pixel of the picture, when what was asked for is drawn."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return float(self.page.locator(".fc-canvas").get_attribute("data-zoom") or 0)

    def wait_for_areas(self, condition: str) -> list[int]:
        """The areas when a condition on them, in JavaScript, holds."""
        self.page.wait_for_function(
            "() => { const found = document.querySelector('.fc-canvas').dataset.areas.split(',').map(Number);"
            f" return {condition}; }}"
        )
        return self.areas

    def wait_for_message(self, text: str) -> None:
        self.page.locator(".fc-status.fc-bad").filter(has_text=text).wait_for()

    def drag(self, *points: tuple[float, float], size: int = 256) -> None:
        """Along points of the picture, (x, y) in its pixels."""
        places = [self.place(x, y, size) for x, y in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=3)
        self.page.mouse.up()

    def box(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self.tool("box")
        self.drag((x0, y0), (x1, y1))

    def ask(self, *attributes: str) -> list[list[str]]:
        for name in attributes:
            self.page.get_by_role("checkbox", name=name, exact=True).check()
        before = self.run
        self.page.locator("#fc-ask").click()
        return self.answered(before)

    @property
    def run(self) -> str:
        """The number of the request that the page shows."""
        return self.page.evaluate("document.querySelector('#fc-progress [data-run]')?.dataset.run ?? '0'")

    def answered(self, before: str = "0") -> list[list[str]]:
        """The rows, when a request after that one is done."""
        self.page.wait_for_function(
            """before => {
                const told = document.querySelector('#fc-progress [data-run]');
                return told && told.dataset.run !== before && told.innerText === 'Done.';
            }""",
            arg=before,
        )
        return self.rows()

    def rows(self) -> list[list[str]]:
        found: list[list[str]] = self.page.eval_on_selector_all(
            "#fc-table tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.innerText))"
        )
        return found

    def download(self, name: str, folder: Path) -> Path:
        with self.page.expect_download() as waiting:
            self.do(name)
        path = folder / waiting.value.suggested_filename
        waiting.value.save_as(path)
        return path

    def picture(self, name: str) -> None:
        if folder := os.environ.get("FINECAPTION_SCREENSHOTS"):
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@pytest.fixture
def demo(browser: Any, address: str) -> Iterator[Demo]:
    page = browser.new_page()
    found = Demo(page, address)
    yield found
    page.close()
    assert not found.faults, found.faults
    assert not found.elsewhere, found.elsewhere


def _records(demo: Demo) -> Any:
    """What the JSON box holds."""
    demo.page.get_by_role("button", name=re.compile("^JSON")).click()
    with demo.page.expect_download() as waiting:
        demo.page.locator('#fc-json a[download], #fc-json button[aria-label*="ownload"]').first.click()
    return json.loads(Path(waiting.value.path()).read_text(encoding="utf-8"))


def test_box_marks_exactly_its_pixels_and_is_answered(demo: Demo, embedded: Any) -> None:
    demo.open()
    demo.box(178, 25, 249, 96)
    (area,) = demo.areas
    assert abs(area - 71 * 71) < 150  # pointers stand on whole pixels of the screen
    rows = demo.ask("Color", "Shape")
    assert [row[:2] for row in rows] == [["1", "region"], ["1", "Color"], ["1", "Shape"]]
    demo.picture("demo-box")
    content = _records(demo)
    (region,) = content["regions"]
    mask = as_mask(region["segmentation"], 256, 256)
    x0, y0, x1, y1 = region["box_xyxy"]
    assert mask[y0:y1, x0:x1].all() and mask.sum() == area, "a box became something else on its way"
    model, processor = embedded
    (expected,) = model.as_pipeline(processor)(
        Image.open(EXAMPLE_PICTURE), [mask], ["region", "Color", "Shape"], max_new_tokens=128
    )
    assert dict(row[1:] for row in rows) == expected["answers"] == region["answers"]


def test_brush_eraser_lasso_undo_and_redo_change_the_mask(demo: Demo) -> None:
    demo.open()
    demo.drag((60, 60), (120, 60))
    brushed = demo.areas[0]
    assert brushed > 300
    demo.tool("eraser")
    demo.drag((60, 60), (90, 60))
    erased = demo.areas[0]
    assert 0 < erased < brushed
    demo.do("undo")
    assert demo.areas[0] == brushed
    demo.do("redo")
    assert demo.areas[0] == erased
    demo.do("addRegion")
    demo.tool("lasso")
    demo.drag((150, 150), (230, 150), (230, 230), (150, 230))
    assert abs(demo.areas[1] - 6400) < 400
    demo.page.keyboard.press("Control+z")
    assert demo.areas == [erased, 0]


def test_regions_are_numbered_and_captions_light_them(demo: Demo) -> None:
    demo.open()
    demo.box(178, 25, 249, 96)
    demo.do("addRegion")
    demo.box(100, 149, 160, 209)
    rows = demo.ask("Color", "Shape")
    assert [row[0] for row in rows] == ["1"] * 3 + ["2"] * 3
    demo.page.locator("#fc-table tr", has_text="Color").nth(1).hover()
    assert demo.page.locator(".fc-canvas").get_attribute("data-lit") == "2"
    demo.picture("demo-regions")
    demo.page.locator("#fc-table tr", has_text="Color").nth(0).hover()
    assert demo.page.locator(".fc-canvas").get_attribute("data-lit") == "1"


def test_answers_stream_and_stop_keeps_what_is_there(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    from finecaption_hf.demo import app

    stream = app.stream_pieces

    def slowly(*arguments: Any) -> Iterator[dict[str, Any]]:
        for piece in stream(*arguments):
            time.sleep(0.03)  # or the small model may be done before anyone can press Stop
            yield piece

    monkeypatch.setattr(app, "stream_pieces", slowly)
    demo.open()
    demo.box(5, 35, 85, 248)
    demo.page.get_by_role("button", name="All attributes").click()
    demo.page.wait_for_function("document.querySelectorAll('#fc-attributes input:checked').length > 10")
    demo.page.evaluate(
        """() => {
        window.seen = new Set();
        const note = () => window.seen.add(document.querySelector('#fc-table').innerText);
        new MutationObserver(note).observe(document.querySelector('#fc-table'), {subtree: true, childList: true});
        }"""
    )
    demo.page.locator("#fc-ask").click()
    demo.page.locator("#fc-progress").get_by_text("Answering").wait_for()
    demo.page.locator("#fc-stop").click()
    demo.page.locator("#fc-progress").get_by_text(re.compile("Stopped|Done")).wait_for()
    assert len(demo.rows()) == 17
    stopped = demo.page.locator("#fc-progress").inner_text()
    assert demo.page.evaluate("window.seen.size") >= 2
    assert "Stopped" in stopped and any(row[2] for row in demo.rows())
    assert len(demo.ask()) == 17 and all(row[2] for row in demo.rows())
    assert demo.page.evaluate("window.seen.size") >= 8, "answers came at once instead of streaming"


def test_masks_come_back_as_they_were_exported(demo: Demo, tmp_path: Path) -> None:
    demo.open()
    demo.page.locator(".fc-mask").set_input_files(str(EXAMPLE_MASK))
    mask = as_mask(Image.open(EXAMPLE_MASK), 256, 256)
    demo.page.wait_for_function("document.querySelector('.fc-canvas').dataset.areas !== '0'")
    assert demo.areas == [int(mask.sum())]
    png, blob, rle = (demo.download(name, tmp_path) for name in ("exportPng", "exportBlob", "exportRle"))
    assert (as_mask(Image.open(png), 256, 256) == mask).all()
    assert (decode_mask(blob.read_text(), 256, 256) == mask).all()
    (told,) = json.loads(rle.read_text())
    assert (as_mask(told, 256, 256) == mask).all()
    (tmp_path / "compressed.json").write_text(json.dumps(encode_rle(mask)))
    (tmp_path / "own.txt").write_text(encode_mask(mask))
    for number, path in enumerate((png, blob, rle, tmp_path / "compressed.json", tmp_path / "own.txt"), start=2):
        demo.page.locator(".fc-mask").set_input_files(str(path))
        demo.page.wait_for_function(
            f"document.querySelector('.fc-canvas').dataset.areas.split(',').length === {number}"
        )
    assert demo.areas == [int(mask.sum())] * 6


def test_bad_files_give_a_message_and_work_goes_on(demo: Demo, tmp_path: Path) -> None:
    demo.open()
    Image.fromarray(np.full((9, 9), 255, np.uint8)).save(tmp_path / "small.png")
    (tmp_path / "bad.json").write_text('{"size": [256, 256], "counts": [7]}')
    (tmp_path / "blob.txt").write_text("H4sIAAAA")
    for name, message in (("small.png", "9x9"), ("bad.json", "runs"), ("blob.txt", "cannot be used")):
        demo.page.locator(".fc-mask").set_input_files(str(tmp_path / name))
        demo.page.locator(".fc-status.fc-bad").filter(has_text=message).wait_for()
    (tmp_path / "picture.png").write_text("no picture")
    demo.page.locator(".fc-file").set_input_files(str(tmp_path / "picture.png"))
    demo.page.locator(".fc-status.fc-bad").filter(has_text="no picture that this browser can show").wait_for()
    assert demo.ask() and demo.areas == [0]


def test_tiny_region_is_warned_of(demo: Demo) -> None:
    demo.open()
    demo.box(100, 100, 104, 104)
    assert "tiny" in demo.page.locator(".fc-regions").inner_text()
    assert "tiny" in demo.status


def test_picture_is_dropped_and_pasted(demo: Demo) -> None:
    give = """async ([bytes, kind]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], 'given.png', {type: 'image/png'}));
        const stage = document.querySelector('.fc-stage');
        stage.dispatchEvent(kind === 'drop' ? new DragEvent('drop', {dataTransfer: data, bubbles: true})
            : new ClipboardEvent('paste', {clipboardData: data, bubbles: true}));
    }"""
    demo.page.evaluate(give, [list(EXAMPLE_PICTURE.read_bytes()), "drop"])
    demo.page.locator(".fc-status", has_text="256 x 256").wait_for()
    demo.box(178, 25, 249, 96)
    demo.page.evaluate(give, [list(EXAMPLE_PICTURE.read_bytes()), "paste"])
    demo.page.wait_for_function("document.querySelector('.fc-canvas').dataset.areas === '0'")


def test_keyboard_alone_marks_a_region(demo: Demo) -> None:
    demo.open()
    demo.page.locator(".fc-canvas").focus()
    for key in ("r", "Space", *["Shift+ArrowRight"] * 3, *["Shift+ArrowDown"] * 2, "Space"):
        demo.page.keyboard.press(key)
    (area,) = demo.areas
    assert 500 < area < 800


def test_touch_paints_and_two_fingers_zoom(demo: Demo) -> None:
    demo.open()
    box = demo.page.locator(".fc-canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = demo.page.context.new_cdp_session(demo.page)

    def send(kind: str, *points: tuple[float, float]) -> None:
        places = [{"x": px, "y": py, "id": number} for number, (px, py) in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    send("touchStart", (x, y))
    send("touchMove", (x + 60, y))
    send("touchEnd")
    demo.page.wait_for_function("document.querySelector('.fc-canvas').dataset.areas !== '0'")
    painted = demo.areas
    send("touchStart", (x - 20, y), (x + 20, y))
    send("touchMove", (x - 80, y), (x + 80, y))
    send("touchEnd")
    assert demo.areas == painted, "zooming painted"
    # Four times as large: the same stroke on the screen is a smaller one in the picture.
    demo.do("addRegion")
    send("touchStart", (x, y))
    send("touchMove", (x + 60, y))
    send("touchEnd")
    demo.page.wait_for_function("document.querySelector('.fc-canvas').dataset.areas.split(',')[1] > 0")
    assert demo.areas[1] < 0.7 * painted[0]


def test_example_comes_with_regions_and_reload_starts_anew(demo: Demo) -> None:
    demo.page.locator("#fc-examples .thumbnail-lg, #fc-examples button.thumbnail-item").first.click()
    demo.page.wait_for_function("document.querySelector('.fc-canvas').dataset.size === '512x512'")
    assert len(demo.areas) >= 2 and all(demo.areas)
    rows = demo.ask("Color")
    assert len(rows) == 2 * len(demo.areas)
    demo.page.get_by_role("button", name="What the model saw").click()
    demo.page.locator("#fc-seen img").first.wait_for()
    demo.picture("demo-example")
    demo.load()
    assert demo.areas == [] and demo.rows() == []
    demo.open()
    assert demo.ask("Shape")


def test_answers_go_when_the_picture_changes(demo: Demo) -> None:
    demo.open()
    demo.box(178, 25, 249, 96)
    assert demo.ask("Color")
    demo.page.locator("#fc-examples .thumbnail-lg, #fc-examples button.thumbnail-item").first.click()
    demo.page.wait_for_function("!document.querySelector('#fc-table tbody tr')")


def test_two_users_at_once_do_not_see_each_others_regions(chromium: Any, address: str, demo: Demo) -> None:
    context = _context(chromium)
    try:
        other = Demo(context.new_page(), address)
        demo.open()
        other.open()
        demo.box(178, 25, 249, 96)
        assert other.areas == [0]
        other.box(100, 149, 160, 209)
        # Both are answered at the same time.
        for user in (demo, other):
            user.page.get_by_role("checkbox", name="Color", exact=True).check()
            user.page.locator("#fc-ask").click()
        first, second = demo.answered(), other.answered()
        assert [row[:2] for row in first] == [row[:2] for row in second] == [["1", "region"], ["1", "Color"]]
        assert "pink" in first[1][2] and "blue" in second[1][2]
        assert len(demo.areas) == len(other.areas) == 1 and not other.faults and not other.elsewhere
    finally:
        context.close()


def test_words_of_users_are_no_markup(demo: Demo) -> None:
    demo.open()
    demo.page.get_by_label("Your own question").fill("<img src=x onerror=window.hit=1> why?")
    rows = demo.ask()
    assert rows[-1][1].startswith("<img src=x") and demo.page.evaluate("window.hit") is None


def test_small_screen_shows_everything(demo: Demo) -> None:
    demo.page.set_viewport_size({"width": 390, "height": 800})
    demo.open()
    demo.picture("demo-phone")
    assert demo.page.evaluate("document.documentElement.scrollWidth") <= 390


class _Discs:
    """A segmenter: discs around the points inside, without those around the points outside."""

    name = "discs"

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, image: Image.Image) -> Any:
        self.encoded += 1
        height, width = image.height, image.width

        class Encoded:
            def masks(self, points: Any = None, labels: Any = None, box_xyxy: Any = None) -> list[Any]:
                rows, columns = np.mgrid[:height, :width]
                found = []
                for radius in (30, 50):
                    mask = np.zeros((height, width), bool)
                    for label in (1, 0):
                        for (x, y), own in zip(points or [], labels or []):
                            if own == label:
                                mask[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] = bool(label)
                    if box_xyxy is not None:
                        x0, y0, x1, y1 = box_xyxy
                        mask[y0 : (y0 + y1) // 2, x0:x1] = True
                    found.append((mask, 1 / radius))
                return found

        return Encoded()


def test_points_become_masks_where_there_is_a_segmenter(browser: Any, embedded: Any, demo: Demo) -> None:
    from finecaption_hf.demo.app import build_demo, launch_demo

    assert not demo.page.locator('[data-tool="positive"]').is_visible(), "a tool that can do nothing is shown"
    segmenter = _Discs()
    app = build_demo(*embedded, segmenter=segmenter)
    page = browser.new_page()
    try:
        other = Demo(page, launch_demo(app))
        other.open()
        other.tool("positive")
        other.drag((128, 128))
        page.wait_for_function("document.querySelector('.fc-canvas').dataset.areas > '0'")
        first = other.areas[0]
        assert abs(first - np.pi * 900) < 60 and "discs" in other.status
        other.do("nextCandidate")
        assert abs(other.areas[0] - np.pi * 2500) < 80
        other.tool("negative")
        other.drag((140, 128))
        page.wait_for_function(f"Number(document.querySelector('.fc-canvas').dataset.areas) < {first}")
        other.do("undo")
        assert abs(other.areas[0] - np.pi * 2500) < 80
        other.do("addRegion")
        other.box(10, 10, 60, 60)
        other.do("refine")
        page.wait_for_function("Number(document.querySelector('.fc-canvas').dataset.areas.split(',')[1]) < 1600")
        assert segmenter.encoded == 1, "the picture was encoded again"
        assert len(other.ask("Color")) == 4 and not other.faults
    finally:
        page.close()
        app.close()
