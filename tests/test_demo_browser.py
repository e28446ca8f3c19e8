"""The demo in a real browser. `scripts/test --browser` runs these; they need Chromium and the extra `browser`.

Screenshots go to the folder that FINECAPTION_SCREENSHOTS names; those in docs/ are from there.
"""

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe import violations
from chromium import CHROMIUM, MARKS, playwright
from conftest import EXAMPLE_MASK, EXAMPLE_PICTURE
from demo_server import running_demo
from PIL import Image
from pycocotools import mask as coco

from finecaption_hf.data.encoding import encode_mask, encode_rle
from finecaption_hf.masks_finecaption import RegionMask, as_mask, decode_mask
from finecaption_hf.segmentation import read_regions

pytest.importorskip("gradio", reason="gradio (the extra browser) is not installed")
pytestmark = MARKS
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
    from finecaption_hf.asking import FineCaptionDescriber
    from finecaption_hf.demo.app import build_demo, launch_demo

    demo = build_demo(FineCaptionDescriber(*embedded))
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

    def __init__(self, page: Any, address: str, *, at_once: bool = False) -> None:
        self.page = page
        self.address = address
        self.at_once = at_once
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
        self.page.wait_for_selector('[data-tool][aria-checked="true"]')
        self.page.evaluate(f"document.querySelector('.fc-at-once').checked = {str(self.at_once).lower()}")
        self.page.evaluate("document.querySelector('.fc-picker details').open = true")

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
            "() => { const found = document.querySelector('.fc-canvas').dataset.areas?.split(',').map(Number) ?? [];"
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
        done = """before => {
            const told = document.querySelector('#fc-progress [data-run]');
            return told && told.dataset.run !== before && told.innerText === 'Done.';
        }"""
        try:
            self.page.wait_for_function(done, arg=before)
        except playwright.TimeoutError as error:
            shown = [self.status, *self.page.locator("#fc-progress, .toast-body").all_inner_texts()]
            raise AssertionError(f"There is no answer. The page shows: {shown}, areas {self.areas}") from error
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

    def picture(self, name: str, *, whole: bool = True) -> None:
        if folder := os.environ.get("FINECAPTION_SCREENSHOTS"):
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=whole)


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
        demo.page.locator("#fc-file a[download]").evaluate("link => link.click()")  # while its part still opens
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
    # And back: a region under the mouse lights its rows.
    demo.page.locator(".fc-canvas").scroll_into_view_if_needed()
    demo.page.mouse.move(*demo.place(130, 190))
    demo.page.wait_for_function("document.querySelector('.fc-canvas').dataset.lit === '2'")
    lit = "rows => rows.map(row => getComputedStyle(row).boxShadow !== 'none')"
    assert demo.page.eval_on_selector_all("#fc-table tbody tr", lit) == [False] * 3 + [True] * 3
    demo.page.mouse.move(*demo.place(20, 240))
    assert not any(demo.page.eval_on_selector_all("#fc-table tbody tr", lit))


def test_answers_stream_and_stop_keeps_what_is_there(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    from finecaption_hf.demo import app

    stream = app.stream_pieces

    def slowly(*arguments: Any) -> Iterator[Any]:
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
    demo.page.locator("#fc-stop").click()  # which waits until it is enabled
    demo.page.locator("#fc-progress").get_by_text(re.compile("Stopped|Done")).wait_for()
    assert len(demo.rows()) == 17
    demo.page.locator("#fc-stop:disabled").wait_for()
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
    # COCO's compressed form, as pycocotools and the command line take it.
    assert told == encode_rle(mask) and coco.area(told) == mask.sum()
    for option in ("rle", "mask"):
        ((_, read),) = read_regions([(option, str(rle))], 256, 256)
        assert isinstance(read, RegionMask) and (read.pixels == mask).all()
    (tmp_path / "plain.json").write_text(json.dumps({"size": [256, 256], "counts": _counts(mask)}))
    (tmp_path / "compressed.json").write_text(json.dumps(encode_rle(mask)))
    (tmp_path / "own.txt").write_text(encode_mask(mask))
    names = ("compressed.json", "own.txt", "plain.json")
    for number, path in enumerate((png, blob, rle, *map(tmp_path.joinpath, names)), start=2):
        demo.page.locator(".fc-mask").set_input_files(str(path))
        demo.page.wait_for_function(
            f"document.querySelector('.fc-canvas').dataset.areas.split(',').length === {number}"
        )
    assert demo.areas == [int(mask.sum())] * 7


def _counts(mask: np.ndarray) -> list[int]:
    """COCO RLE as it is uncompressed."""
    column = np.concatenate([[False], mask.T.ravel(), [False]])
    changes = np.flatnonzero(column[1:] != column[:-1])
    return np.diff(np.concatenate([[0], changes, [mask.size] if changes[-1] < mask.size else []])).astype(int).tolist()


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


def test_tools_for_points_are_hidden_where_nothing_answers_them(demo: Demo) -> None:
    assert demo.page.locator("[data-points]").count() >= 5
    assert not demo.page.locator("[data-points]").locator("visible=true").count()


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
    demo.page.evaluate("""() => {
        window.said = new Set();
        const status = document.querySelector('#fc-progress');
        new MutationObserver(() => said.add(status.innerText.trim())).observe(
            document.body, {childList: true, subtree: true, characterData: true});
    }""")
    demo.page.locator("#fc-examples .thumbnail-lg, #fc-examples button.thumbnail-item").first.click()
    demo.page.wait_for_function("document.querySelector('.fc-canvas').dataset.size === '512x512'")
    assert len(demo.areas) >= 2 and all(demo.areas)
    assert len(demo.answered()) == len(demo.areas), "an example is asked about at once"
    words = {"", "Looking at the picture …", "Answering …", "Done. See the answers"}
    assert set(demo.page.evaluate("[...said]")) <= words, "queues and seconds are no words for people"
    rows = demo.ask("Color")
    assert len(rows) == 2 * len(demo.areas)
    demo.page.evaluate("document.querySelector('.fc-picker details').open = false")
    demo.page.set_viewport_size({"width": 1280, "height": 1270})
    demo.page.evaluate("window.scrollTo(0, 100)")
    demo.page.mouse.move(*demo.place(256, 370, size=512))
    demo.page.wait_for_timeout(100)
    demo.picture("demo", whole=False)
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
    demo.page.locator(".fc-file").set_input_files(str(EXAMPLE_MASK))
    demo.page.wait_for_function("!document.querySelector('#fc-table tbody tr')")
    # An example, which is asked about at once, has answers of its own only.
    demo.page.locator("#fc-examples .thumbnail-lg, #fc-examples button.thumbnail-item").first.click()
    assert len(demo.answered()) == 2 * len(demo.areas)


def test_answers_end_when_the_picture_changes_before_they_do(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finecaption_hf.demo import app

    stream, ended = app.stream_pieces, []

    def slowly(*arguments: Any) -> Iterator[Any]:
        try:
            for piece in stream(*arguments):
                time.sleep(0.1)
                yield piece
        finally:
            ended.append(True)

    monkeypatch.setattr(app, "stream_pieces", slowly)
    demo.open()
    demo.box(178, 25, 249, 96)
    demo.page.locator("#fc-ask").click()
    demo.page.locator("#fc-progress").get_by_text("Answering").wait_for()
    Image.open(EXAMPLE_PICTURE).resize((120, 120)).save(tmp_path / "other.png")
    demo.open(tmp_path / "other.png", "120x120")
    demo.page.wait_for_function("!document.querySelector('#fc-table tbody tr')")
    demo.page.wait_for_timeout(1000)
    assert ended and demo.rows() == [] and demo.page.locator("#fc-progress").inner_text().strip() == ""
    assert demo.ask("Color")


def test_answers_about_the_chosen_region_stand_below_the_picture(demo: Demo) -> None:
    demo.page.set_viewport_size({"width": 1280, "height": 900})
    said = demo.page.locator(".fc-said")
    demo.open()
    (row,) = demo.ask()
    assert said.inner_text() == row[2]
    demo.box(178, 25, 249, 96)
    assert said.inner_text() == "", "what is said of the picture is not said of the region"
    demo.do("addRegion")
    demo.box(100, 149, 160, 209)
    first, second = demo.ask()
    assert first[2] != second[2] and said.locator("span").all_inner_texts() == ["2", second[2]]
    box = said.bounding_box()
    assert box["y"] + box["height"] < 900, "one has to scroll to the answer"
    demo.page.locator(".fc-chip button").first.click()
    assert said.locator("span").all_inner_texts() == ["1", first[2]]


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


SIZES = [(1280, 900), (1920, 1080), (390, 844)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_describe_is_in_sight_and_no_row_is_hidden(demo: Demo, width: int, height: int) -> None:
    demo.page.set_viewport_size({"width": width, "height": height})
    demo.open()
    for number in range(5):
        demo.do("addRegion")
        demo.box(20 + 40 * number, 30, 50 + 40 * number, 200)
    demo.ask("Color", "Shape", "Hair")
    demo.picture(f"demo-{width}")
    for place in (0, 10_000):
        demo.page.evaluate(f"window.scrollTo(0, {place})")
        box = demo.page.locator("#fc-ask").bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= height
    assert demo.page.evaluate("document.documentElement.scrollWidth") <= width
    # Rows are as wide as there is room, and in no box of its own that has to be scrolled.
    hidden = """() => {
        for (let part = document.querySelector('.fc-tables'); part !== document.body; part = part.parentElement)
            if (part.scrollHeight > part.clientHeight + 2 && getComputedStyle(part).overflowY !== 'visible')
                return part.outerHTML.slice(0, 99);
        return '';
    }"""
    assert demo.page.evaluate(hidden) == ""
    tables = [table.bounding_box() for table in demo.page.locator(".fc-answers").all()]
    assert len({table["x"] for table in tables}) == {390: 1, 1280: 3, 1920: 4}[width]


def test_boxes_and_strokes_are_asked_about_at_once_or_the_next_step_is_said(demo: Demo) -> None:
    demo.open()
    demo.box(178, 25, 249, 96)
    assert "Press Describe, or Enter" in demo.status
    demo.page.wait_for_timeout(1500)
    assert demo.run == "0" and demo.rows() == []
    demo.do("addRegion")
    assert "it becomes region 2" in demo.status
    demo.page.locator(".fc-at-once").check()
    demo.box(100, 149, 160, 209)
    assert "is asked about" in demo.status
    assert [row[0] for row in demo.answered()] == ["1", "2"]
    before = demo.run
    demo.do("addRegion")
    demo.tool("brush")
    demo.drag((60, 60), (90, 60))
    demo.drag((60, 70), (90, 70))
    assert [row[0] for row in demo.answered(before)] == ["1", "2", "3"]
    assert int(demo.run) == int(before) + 1, "the first of two strokes was asked about for itself"


def test_colours_in_a_region_are_those_of_the_picture(demo: Demo) -> None:
    demo.open()
    pixels = """([x, y, reach = 3]) => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {
        const canvas = document.querySelector('.fc-canvas'), scale = Math.min(canvas.width, canvas.height) / 256;
        const left = (canvas.width - 256 * scale) / 2, top = (canvas.height - 256 * scale) / 2;
        const corner = [left + x * scale - reach, top + y * scale - reach];
        done([...canvas.getContext('2d').getImageData(...corner, 2 * reach, 2 * reach).data]);
    })))"""
    place, border, thin = [195, 45], [178, 80], [62, 70, 1]  # of the picture, away from the number
    before, border_before, thin_before = (demo.page.evaluate(pixels, it) for it in (place, border, thin))
    assert any(before)
    demo.tool("box")
    demo.drag((178, 25), (249, 96))
    demo.page.mouse.move(*demo.place(20, 240))
    assert demo.page.evaluate(pixels, place) == before
    assert demo.page.evaluate(pixels, border) != border_before, "a region that was drawn has an outline"
    demo.do("addRegion")
    demo.drag((61, 60), (63, 120))
    demo.page.mouse.move(*demo.place(20, 240))
    assert demo.page.evaluate(pixels, thin) == thin_before, "the line is outside of the region"
    demo.page.locator(".fc-chip button").first.click()
    demo.ask()
    demo.page.locator("#fc-table tbody tr").first.hover()
    assert demo.page.evaluate(pixels, place) != before, "the region of a row under the mouse is filled"
    demo.page.mouse.move(5, 5)
    assert demo.page.evaluate(pixels, place) == before
    # While one paints, what is painted is seen.
    demo.tool("brush")
    demo.page.mouse.move(*demo.place(20, 240))
    demo.page.mouse.down()
    demo.page.mouse.move(*demo.place(30, 240))
    assert demo.page.evaluate(pixels, place) != before
    demo.page.mouse.up()
    assert demo.page.evaluate(pixels, place) == before


def test_tools_are_one_stop_for_tab_and_arrows_choose(demo: Demo) -> None:
    page = demo.page
    demo.tool("brush")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.tool") == "box"
    assert page.locator('[data-tool="box"]').get_attribute("aria-checked") == "true"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "fc-at-once"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.dataset.tool") == "brush"


def test_focus_is_seen_wherever_tab_leads(demo: Demo) -> None:
    page = demo.page
    demo.open()
    page.get_by_role("button", name="Settings").click()
    seen = """() => {
        const part = document.activeElement, style = getComputedStyle(part.type === 'file' ? part.parentElement : part);
        const isSeen = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2;
        return [part.tagName, isSeen ? '' : part.outerHTML.slice(0, 120)];
    }"""
    page.locator("#fc-banner a").first.focus()
    stops = []
    for _ in range(100):
        page.keyboard.press("Tab")
        stops.append(page.evaluate(seen))
        if stops[-1][0] == "BODY":
            break
    assert len(stops) > 30 and stops.pop()[0] == "BODY"
    assert [hidden for _, hidden in stops if hidden] == []


def test_canvas_and_thumbnails_say_what_they_are(demo: Demo) -> None:
    for open_it in (lambda: demo.page.locator(".fc-canvas").click(), lambda: demo.page.keyboard.press("Enter")):
        with demo.page.expect_file_chooser():
            open_it()
    demo.open()
    canvas = demo.page.get_by_role("application")
    assert "256 by 256 pixels" in canvas.get_attribute("aria-label")
    described = canvas.get_attribute("aria-describedby")
    assert "Arrow keys" in demo.page.locator(f"#{described}").inner_text()
    names = [demo.page.get_by_role("button", name=name).count() for name in ("Zoom in", "Zoom out")]
    assert names == [1, 1]
    named = "parts => parts.map(it => it.getAttribute('aria-label') || it.innerText || it.querySelector('img')?.alt)"
    thumbnails = demo.page.eval_on_selector_all("#fc-examples button", named)
    assert len(thumbnails) == 4 and all(thumbnails)


_PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True}


def test_touch_targets_have_44_pixels(chromium: Any, address: str) -> None:
    context = _context(chromium, **_PHONE)
    try:
        user = Demo(context.new_page(), address)
        user.open()
        user.ask()
        user.page.get_by_role("button", name="Settings").click()
        user.page.wait_for_timeout(500)  # it opens slowly
        parts = "button, label:has(> input), summary, select, textarea, input:not([type=checkbox], [type=file]), a"
        # Links in sight are larger than their words: what counts is where a finger hits them.
        small = """parts => [...document.querySelectorAll(parts)].filter(part => {
            const box = part.getBoundingClientRect();
            if (!box.width || part.closest('.fc-hidden, footer')) return false;
            if (part.tagName !== 'A') return box.height < 43.9 || box.width < 43.9;
            const hit = getComputedStyle(part, '::after');
            return box.height - parseFloat(hit.top) - parseFloat(hit.bottom) < 43.9 || box.width < 43.9;
        }).map(part => part.outerHTML.slice(0, 120))"""
        assert user.page.evaluate(small, parts) == []
    finally:
        context.close()


def test_phone_shows_all_of_it_in_one_column_of_readable_words(chromium: Any, address_of_several: str) -> None:
    context = _context(chromium, **_PHONE)
    try:
        user = Demo(context.new_page(), address_of_several)
        page = user.page
        page.evaluate("window.scrollTo(0, 0)")
        bar = page.locator("#fc-asking").bounding_box()
        example = page.locator("#fc-examples img").last.bounding_box()
        assert example["y"] + example["height"] <= bar["y"] + 2, "an example is on the first screen"
        assert page.locator(".fc-later:visible").count() == 0, "what needs a picture comes with one"
        page.locator("#fc-beside input").click()
        page.get_by_role("option", name="pixels").click()
        page.locator("#fc-examples button").first.click()
        user.answered()
        stage, said = (page.locator(part).bounding_box() for part in (".fc-stage", ".fc-said"))
        assert stage["y"] > -1 and said["y"] < page.locator("#fc-asking").bounding_box()["y"]
        top = "document.querySelector('.fc-stage').offsetTop"
        before = page.evaluate(top)
        user.tool("brush")
        assert page.locator(".fc-radius").is_visible() and page.evaluate(top) == before
        user.tool("box")
        assert not page.locator(".fc-radius").is_visible()
        for name in ("What the model saw", "Copy as Python", "JSON", "About the model", "Settings"):
            page.get_by_role("button", name=re.compile(f"^{name}")).click()
        page.wait_for_timeout(1000)  # they open slowly
        faults = """() => [...document.querySelectorAll('body *')].filter(part => {
            const box = part.getBoundingClientRect(), style = getComputedStyle(part);
            const isClipped = style.overflowX !== 'visible' && part.scrollWidth > part.clientWidth + 1;
            const hasWords = [...part.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
            return box.width > 1 && style.visibility !== 'hidden' && !part.closest('.fc-hidden') && part.type !== 'file'
                && (isClipped || hasWords && (box.right > 391 || box.left < -1 || parseFloat(style.fontSize) < 12));
        }).map(part => part.outerHTML.slice(0, 160))"""
        assert page.evaluate(faults) == []
    finally:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_page_violates_no_rule_of_level_a_and_aa(
    chromium: Any, address_of_several: str, width: int, height: int, scheme: str
) -> None:
    context = _context(chromium, viewport={"width": width, "height": height}, color_scheme=scheme)
    try:
        user = Demo(context.new_page(), address_of_several)
        assert violations(user.page) == []
        user.open()
        for number in range(3):
            user.do("addRegion")
            user.box(20 + 60 * number, 30, 70 + 60 * number, 200)
        user.ask("Color")
        user.tool("eraser")
        user.drag((30, 50), (60, 50))  # an answer that holds no more
        for name in ("What the model saw", "Copy as Python", "JSON", "About the model", "Settings"):
            user.page.get_by_role("button", name=re.compile(f"^{name}")).click()
        user.page.mouse.move(5, 5)
        user.page.wait_for_timeout(600)  # colours fade in
        assert violations(user.page) == []
    finally:
        context.close()


@pytest.fixture(scope="module")
def address_of_several(address: str) -> Iterator[str]:
    from finecaption_hf.demo.app import build_demo, launch_demo
    from finecaption_hf.demo.models import Models, Offered

    app = build_demo(Models([Offered("finecaption-tiny"), Offered("pixels", "pixels")]), title="Which <one>?")
    yield launch_demo(app)
    app.close()


def test_page_says_who_answers_and_two_models_answer_side_by_side(browser: Any, address_of_several: str) -> None:
    user = Demo(browser.new_page(), address_of_several)
    page = user.page
    assert page.title() == "Which <one>?" and page.locator("h1").inner_text() == "Which <one>?"
    banner = page.locator("#fc-banner")
    assert "finecaption-tiny knows rendered scenes only: try the examples" in banner.inner_text()
    page.get_by_role("button", name="About the model").click()
    page.locator("#fc-about", has_text="It does not describe photographs").wait_for()

    def choose(box: str, name: str) -> None:
        page.locator(f"#{box} input").click()
        page.get_by_role("option", name=name).click()

    user.open()
    user.box(178, 25, 249, 96)
    tiny = user.ask("Color")
    head = page.locator(".fc-answers th").nth(2)
    assert head.inner_text() == "finecaption-tiny", "or the answers would be those of who is introduced next"
    choose("fc-model", "pixels")
    page.locator("#fc-banner", has_text="pixels answers.").wait_for()
    pixels = user.ask()
    assert [row[:2] for row in pixels] == [row[:2] for row in tiny] and pixels[1][2] != tiny[1][2]
    choose("fc-beside", "finecaption-tiny")
    both = user.ask()
    assert both == [[*left, right[2]] for left, right in zip(pixels, tiny)]
    heads = page.locator(".fc-answers th").all_inner_texts()
    assert heads[1:] == ["Question", "pixels", "finecaption-tiny"]
    assert "pixels answers." in banner.inner_text() and "rendered scenes only" in banner.inner_text()
    contents = _records(user)
    assert [content["model"] for content in contents] == ["pixels", "embedded"]
    assert ["model_note" in content for content in contents] == [False, True]
    user.picture("demo-side-by-side")
    assert not user.faults and not user.elsewhere
    page.close()


class _Discs:
    """A segmenter: discs around the points inside, without those around the points outside."""

    name = "discs"

    def __init__(self) -> None:
        self.encoded = 0
        self.held = threading.Lock()  # no mask is made while a test has it

    def encode(self, image: Image.Image) -> Any:
        self.encoded += 1
        height, width, held = image.height, image.width, self.held

        class Encoded:
            def masks(self, points: Any = None, labels: Any = None, box_xyxy: Any = None) -> list[Any]:
                rows, columns = np.mgrid[:height, :width]
                found = []
                with held:
                    pass
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


@pytest.fixture(scope="module")
def discs() -> _Discs:
    return _Discs()


@pytest.fixture(scope="module")
def address_with_points(embedded: Any, discs: _Discs, address: str) -> Iterator[str]:
    from finecaption_hf.asking import FineCaptionDescriber
    from finecaption_hf.demo.app import build_demo, launch_demo

    app = build_demo(FineCaptionDescriber(*embedded), segmenter=discs)
    yield launch_demo(app)
    app.close()


@pytest.fixture
def points(browser: Any, address_with_points: str, discs: _Discs) -> Iterator[Demo]:
    page = browser.new_page()
    found = Demo(page, address_with_points, at_once=True)
    found.open()
    yield found
    page.close()
    assert not found.faults, found.faults
    assert not found.elsewhere, found.elsewhere


def test_points_become_masks_that_can_be_changed(points: Demo, discs: _Discs) -> None:
    encoded = discs.encoded
    points.page.locator(".fc-at-once").uncheck()
    points.tool("positive")
    points.drag((128, 128))
    (first,) = points.wait_for_areas("found[0] > 0")
    assert abs(first - np.pi * 900) < 60 and "discs" in points.status
    points.do("nextCandidate")
    assert abs(points.areas[0] - np.pi * 2500) < 80
    points.tool("negative")
    points.drag((140, 128))
    points.wait_for_areas(f"found[0] < {first}")
    points.do("undo")
    assert abs(points.areas[0] - np.pi * 2500) < 80
    # With Alt, + Point is − Point.
    points.tool("positive")
    points.page.keyboard.down("Alt")
    points.drag((140, 128))
    points.page.keyboard.up("Alt")
    points.wait_for_areas(f"found[0] < {first}")
    points.do("undo")
    points.do("addRegion")
    points.box(10, 10, 60, 60)
    points.do("refine")
    points.wait_for_areas("found[1] < 1600")
    assert discs.encoded <= encoded + 1, "the picture was encoded again"
    assert points.rows() == [], "a click was answered that should not have been"
    assert len(points.ask("Color")) == 4


def test_click_is_marked_at_once_and_its_masks_are_flipped_through_beside_it(points: Demo, discs: _Discs) -> None:
    points.page.locator(".fc-at-once").uncheck()
    x, y = points.place(60, 200)
    color = """([x, y]) => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {
        const canvas = document.querySelector('.fc-canvas'), box = canvas.getBoundingClientRect();
        const ratio = canvas.width / box.width;
        done([...canvas.getContext('2d').getImageData((x - box.x) * ratio, (y - box.y) * ratio, 1, 1).data]);
    })))"""
    points.tool("spot")
    with discs.held:
        points.drag((60, 200))
        points.page.mouse.move(*points.place(200, 60))
        assert points.page.evaluate(color, [x - 3, y - 3]) == [0x1A, 0x7F, 0x37, 255], "no mark while the server works"
        assert points.areas == [0]
    (first,) = points.wait_for_areas("found[0] > 0")
    flip = points.page.locator(".fc-flip")
    assert flip.inner_text().split() == ["‹", "1", "of", "2", "›"]
    box = flip.bounding_box()
    assert 0 < box["x"] - x < 40 and 0 < abs(box["y"] - y) < 80
    flip.get_by_role("button", name="Next mask").click()
    assert points.areas[0] > first
    points.page.locator(".fc-canvas").press(",")
    assert points.areas == [first] and "1 of 2" in flip.inner_text()
    points.do("undo")
    assert points.areas[0] > first and "2 of 2" in flip.inner_text()
    points.do("addRegion")
    flip.wait_for(state="hidden")


def test_click_gives_mask_and_answer_at_once(
    points: Demo, embedded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finecaption_hf.demo import app

    asked: list[Any] = []
    stream = app.stream_pieces

    def noted(describer: Any, picture: Any, *rest: Any) -> Iterator[Any]:
        asked.append(picture.missing)
        yield from stream(describer, picture, *rest)

    towers: list[Any] = []
    encode = type(embedded[0]).get_high_res_features
    monkeypatch.setattr(app, "stream_pieces", noted)
    monkeypatch.setattr(
        type(embedded[0]), "get_high_res_features", lambda self, *rest: towers.append(1) or encode(self, *rest)
    )
    picture = Image.open(EXAMPLE_PICTURE).convert("RGB")
    picture.putpixel((0, 0), (1, 2, 3))  # no picture that another test has had encoded
    picture.save(tmp_path / "new.png")
    points.open(tmp_path / "new.png")
    points.wait_for_areas("found.length === 1 && document.querySelector('.fc-status').innerText.startsWith('256')")
    points.drag((214, 60))
    first = points.answered()
    assert [row[:2] for row in first] == [["1", "region"]] and "pink" in first[0][2]
    before = points.run
    points.drag((130, 179))
    both = points.answered(before)
    assert both[0] == first[0] and [row[0] for row in both] == ["1", "2"] and "blue" in both[1][2]
    assert len(points.areas) == 2, "the second click changed the first region"
    # Only what was missing was asked: the second region; then another question about both.
    rows = points.ask("Color")
    assert [row[0] for row in rows] == ["1", "1", "2", "2"]
    points.ask()
    assert asked == [[(0, "region")], [(1, "region")], [(0, "Color"), (1, "Color")]]
    assert len(towers) == 1, "the picture was encoded again"
    # The answers are those of one call with everything.
    model, processor = embedded
    content = _records(points)
    masks = [as_mask(region["segmentation"], 256, 256) for region in content["regions"]]
    expected = model.as_pipeline(processor)(picture, masks, ["region", "Color"], max_new_tokens=128)
    assert [record["answers"] for record in expected] == [region["answers"] for region in content["regions"]]


def test_answer_of_a_changed_region_is_struck_out_and_comes_back_with_the_mask(points: Demo) -> None:
    points.drag((214, 60))
    points.answered()
    points.page.locator(".fc-at-once").uncheck()
    line = "getComputedStyle(document.querySelector('#fc-table tbody td')).textDecorationLine"
    assert points.page.evaluate(line) == "none"
    points.tool("eraser")
    points.drag((214, 60))
    assert points.page.evaluate(line) == "line-through"
    points.do("undo")
    assert points.page.evaluate(line) == "none"


def test_mask_that_one_flips_to_is_asked_about(points: Demo) -> None:
    points.drag((214, 60))
    points.answered()
    before = points.run
    points.page.locator(".fc-canvas").press(".")
    assert points.rows()
    points.answered(before)
    said = "[...document.querySelectorAll('#fc-table td')].map(it => getComputedStyle(it).textDecorationLine)"
    assert set(points.page.evaluate(said)) == {"none"}, "the answers are those about the mask before"


def test_keyboard_alone_leads_from_the_file_to_the_answer(demo: Demo) -> None:
    page = demo.page
    page.on("filechooser", lambda _: None)  # from now on, so that the first one is not missed
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('fc-file')"):
            break
    else:
        pytest.fail("Tab does not reach the button that opens a picture")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(str(EXAMPLE_PICTURE))
    demo.wait_for_areas("found.length === 1")
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.className || document.activeElement.tagName"))
        if "fc-canvas" in reached[-1]:
            break
    assert "fc-canvas" in reached[-1], reached
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", "the focus is not seen"
    for key in ("r", *["ArrowUp"] * 9, "Space", *["Shift+ArrowRight"] * 3, *["Shift+ArrowDown"] * 2, "Space"):
        page.keyboard.press(key)
    (area,) = demo.areas
    assert 500 < area < 800
    page.keyboard.press("Enter")
    (row,) = demo.answered()
    assert row[:2] == ["1", "region"] and row[2]
    # In the question's field, Enter asks as well.
    question = page.get_by_label("Your own question")
    question.fill("Is it red?")
    before = demo.run
    question.press("Enter")
    assert [row[1] for row in demo.answered(before)] == ["region", "Is it red?"]


def test_every_control_has_a_name(points: Demo) -> None:
    unnamed = points.page.evaluate(
        """() => [...document.querySelectorAll('#fc-picker button, #fc-picker input, #fc-picker canvas')].filter(it =>
            !(it.innerText || it.getAttribute('aria-label') || it.labels?.[0]?.innerText)).map(it => it.outerHTML)"""
    )
    assert unnamed == []


def test_buttons_wheel_and_fingers_zoom(demo: Demo) -> None:
    demo.open()
    whole = demo.zoom
    demo.do("zoomIn")
    assert demo.zoom == pytest.approx(1.4 * whole)
    demo.do("zoomOut")
    demo.do("zoomOut")
    assert demo.zoom == pytest.approx(whole / 1.4)
    demo.do("zoomFit")
    assert demo.zoom == whole
    x, y = demo.place(200, 60)
    demo.page.mouse.move(x, y)
    demo.page.mouse.wheel(0, -300)
    assert demo.zoom == whole, "the wheel without Ctrl is for the page"
    demo.page.keyboard.down("Control")
    demo.page.mouse.wheel(0, -300)
    demo.page.keyboard.up("Control")
    demo.page.wait_for_function(f"document.querySelector('.fc-canvas').dataset.zoom > {1.5 * whole}")
    assert demo.zoom == pytest.approx(np.e * whole)
    # What was under the mouse still is: a box around it marks the same place, and e times finer.
    demo.tool("box")
    # The page may have moved; the point is where the mouse would be on a canvas that did not zoom.
    x, y = demo.place(200, 60)
    demo.page.mouse.move(x - 27.2, y - 27.2)
    demo.page.mouse.down()
    demo.page.mouse.move(x + 27.2, y + 27.2, steps=3)
    demo.page.mouse.up()
    (area,) = demo.areas
    assert area == pytest.approx((54.4 / np.e / whole) ** 2, rel=0.15)
    demo.tool("hand")
    demo.drag((100, 100), (150, 100))
    demo.page.locator(".fc-canvas").focus()
    demo.page.keyboard.press("0")
    assert demo.zoom == whole and demo.areas == [area], "moving the picture painted"


def test_alt_takes_away_with_box_and_lasso(demo: Demo) -> None:
    demo.open()
    demo.box(50, 50, 150, 150)
    (whole,) = demo.areas
    demo.page.keyboard.down("Alt")
    demo.drag((100, 40), (160, 160))
    (half,) = demo.areas
    assert half == pytest.approx(whole / 2, rel=0.05)
    demo.tool("lasso")
    demo.drag((40, 40), (75, 40), (75, 160), (40, 160))
    demo.page.keyboard.up("Alt")
    assert demo.areas[0] == pytest.approx(whole / 4, rel=0.1)


def test_masks_are_pasted(demo: Demo) -> None:
    demo.open()
    mask = as_mask(Image.open(EXAMPLE_MASK), 256, 256)
    demo.page.once("dialog", lambda dialog: dialog.accept(encode_mask(mask)))
    demo.do("pasteMask")
    demo.wait_for_areas("found[0] > 0")
    assert "press Describe, or Enter" in demo.status
    demo.page.locator(".fc-at-once").check()
    paste = """text => {
        const data = new DataTransfer();
        data.setData('text', text);
        const event = new ClipboardEvent('paste', {clipboardData: data, bubbles: true});
        document.querySelector('.fc-canvas').dispatchEvent(event);
    }"""
    demo.page.evaluate(paste, json.dumps(encode_rle(mask)))
    demo.wait_for_areas("found.length === 2")
    assert demo.areas == [int(mask.sum())] * 2
    assert [row[0] for row in demo.answered()] == ["1", "2"], "what was pasted is asked about, too"
    for text, message in (
        ('{"size": [9, 9], "counts": [0, 81]}', "9x9"),
        (json.dumps({"size": [256, 256], "counts": [65536]}), "empty"),
        (json.dumps([encode_rle(mask)] * 10_000), "at most 32 regions"),
        ('{"size": [256, 256], "counts": [0, null]}', "runs"),
        ("[7", "no JSON"),
    ):
        demo.page.evaluate(paste, text)
        demo.wait_for_message(message)
    assert len(demo.areas) == 2


def test_pictures_of_every_kind_work_or_give_a_message(demo: Demo, tmp_path: Path) -> None:
    picture = Image.open(EXAMPLE_PICTURE).convert("RGB").resize((120, 80))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    picture.save(tmp_path / "moving.gif", save_all=True, append_images=[picture.rotate(90)], duration=50)
    picture.convert("RGBA").save(tmp_path / "clear.webp")
    for name, size in (
        ("turned.jpg", "80x120"),
        ("cmyk.jpg", "120x80"),
        ("deep.png", "120x80"),
        ("moving.gif", "120x80"),
        ("clear.webp", "120x80"),
    ):
        demo.open(tmp_path / name, size)
        # A region: its mask has to fit the picture as the server reads it.
        demo.tool("brush")
        demo.drag((60, 60), (70, 60), size=120)
        demo.wait_for_areas("found[0] > 0")
        assert demo.ask()[0][2], name
    (tmp_path / "none.png").write_bytes(b"")
    (tmp_path / "page.png").write_text("<html></html>")
    demo.page.locator(".fc-file").set_input_files(str(tmp_path / "none.png"))
    demo.wait_for_message("no picture that this browser can show")
    Image.new("1", (8000, 6000)).save(tmp_path / "large.png")
    demo.page.locator(".fc-file").set_input_files(str(tmp_path / "large.png"))
    demo.wait_for_message("8000 x 6000 pixels; at most 40000000")
    # What a browser shows but the server cannot read ends in a message when it is asked about.
    (tmp_path / "drawn.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="90" height="70"><circle r="9"/></svg>'
    )
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cmyk.jpg").read_bytes()[:-900])
    for name, size in (("drawn.svg", "90x70"), ("cut.jpg", "120x80")):
        demo.open(tmp_path / name, size)
        demo.page.locator("#fc-ask").click()
        demo.page.locator(".toast-body", has_text="cannot be used").first.wait_for()
        demo.page.locator(".toast-close").first.click()
        demo.page.locator(".toast-body").first.wait_for(state="detached")
    demo.open()
    assert demo.ask()[0][2]


def test_largest_picture_is_marked_exactly(demo: Demo, tmp_path: Path) -> None:
    Image.new("1", (8000, 5000)).save(tmp_path / "large.png")
    demo.open(tmp_path / "large.png", "8000x5000")
    demo.tool("box")
    box = demo.page.locator(".fc-canvas").bounding_box()
    demo.page.mouse.move(box["x"] + 100, box["y"] + 150)
    demo.page.mouse.down()
    demo.page.mouse.move(box["x"] + 220, box["y"] + 190, steps=4)
    demo.page.mouse.up()
    (area,) = demo.areas
    (told,) = json.loads(demo.download("exportRle", tmp_path).read_text())
    mask = as_mask(told, 5000, 8000)
    rows, columns = mask.any(axis=1), mask.any(axis=0)
    assert mask.sum() == rows.sum() * columns.sum() == area > 500_000
    demo.tool("eraser")
    demo.drag((4000, 2000), (4100, 2000), size=8000)
    demo.do("undo")
    demo.do("undo")
    assert demo.areas == [0]
    demo.do("redo")
    assert demo.areas == [area]


def test_command_in_a_browser_clicks_with_opencv_and_calls_nobody(chromium: Any, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV (the extra browser) is not installed")
    context = _context(chromium)
    try:
        with running_demo(tmp_path) as command:
            user = Demo(context.new_page(), command.address, at_once=True)
            user.page.set_default_timeout(60_000)  # the first answer of a process loads libraries
            user.open()
            user.drag((112, 180))
            (row,) = user.answered()
            assert "blue" in row[2]
            assert 1300 < user.areas[0] < 3500 and "colours and edges" in user.status and "OpenCV" not in user.status
            assert command.tried == [] and not user.elsewhere and not user.faults
            # The page itself may not call elsewhere either.
            called = user.page.evaluate("fetch('http://127.0.0.2:9/').then(() => 'called', () => 'refused')")
            assert called == "refused"
            user.elsewhere.clear()
    finally:
        context.close()
