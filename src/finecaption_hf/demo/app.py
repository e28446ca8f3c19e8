"""The Gradio app: layout, events, and the endpoint for scripts."""

import html
import itertools
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

# Read when gradio is imported: it must not call home.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image
from starlette.middleware import Middleware

from ..asking import Describer, FineCaptionDescriber
from ..data.encoding import encode_rle
from ..drawing import COLORS
from ..masks_finecaption import MaskError
from ..prompts_finecaption import TASKS, BranchAnswer, normalise_name
from ..scenes import render_scene
from .answering import (
    AskedPicture,
    KeptAnswers,
    python_snippet,
    stream_pieces,
    what_was_seen,
)
from .api_types import BoxMask, PolygonMask, RegionRecord, RleMask, UploadedFile
from .encoded import EncodedPictures
from .guard import Guard
from .picker import PickedRegions, RegionPicker, picked
from .segmenting import PointMasks
from .uploads import MAX_FILE_BYTES, UploadError, read_mask, read_picture

_EXAMPLES = (5, 12, 31, 28)
_EXAMPLE_SIZE = 512
_CHOICES = (("Region: one sentence", "region"), ("Dense: in detail", "dense"), ("Global: whole picture", "global"))
# Requests that are answered at the same time: they take turns at the model, so that a short one ends beside a long one.
_AT_ONCE = 2
_KEPT_SECONDS = 24 * 3600
# Seconds between two looks at growing answers: a table of hundreds of rows takes a while to send.
_SHOW_EVERY = 0.1
# Seconds at the most until the user's former request has ended, and until what it had begun to send is sent.
_WAIT_FOR_FORMER, _WAIT_FOR_PIECE = 30, 2
# For the outputs of a request: they stay as they are.
_NOTHING = (gr.skip(),) * 5

# Fonts of the machine: others would be fetched.
_THEME = gr.themes.Default(
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700")
_ANNOUNCE = 'element.setAttribute("role", "status");'
_CSS = """
#fc-table { max-height: 620px; overflow: auto !important; }
.fc-answers { border-collapse: collapse; border: 0 !important; width: 100%; margin: 0 !important; }
.fc-answers tr { border: 0 !important; }
.fc-answers th { position: sticky; top: 0; background: var(--body-background-fill); white-space: nowrap; }
.fc-answers th, .fc-answers td { border: 0 !important; text-align: left; vertical-align: top; padding: 6px 10px;
  box-shadow: inset 0 -1px var(--border-color-primary); }
.fc-answers td:nth-child(2) { width: 30%; min-width: 90px; color: var(--body-text-color); }
.fc-answers td:nth-child(n+2) { overflow-wrap: anywhere; }
.fc-answers tr:hover, .fc-answers tr:focus { background: var(--background-fill-secondary); }
.fc-answers .fc-number { display: inline-flex; width: 22px; height: 22px; border-radius: 50%; color: white;
  font-weight: 700; align-items: center; justify-content: center; }
.fc-answers .fc-open::after { content: "▍"; opacity: .5; }
#fc-examples .grid-wrap, #fc-seen .grid-wrap { min-height: 0; max-height: none; }
footer .divider:last-child { display: none; }
.dark .fc-warn { color: #fbbf24 !important; }
.dark .fc-bad { color: #f87171 !important; }
@media (max-width: 640px) { .fc-answers th, .fc-answers td { padding: 6px 5px; } }
"""


def build_demo(
    describer: Describer,
    name: str | None = None,
    on_gpu: Callable[[Any], Any] | None = None,
    segmenter: Any = None,
) -> gr.Blocks:
    """The app, not yet started.

    Args:
        describer: as `asking.load_describer` returns it.
        name: of the model, for the snippet and the download; `None` means the embedded checkpoint.
        on_gpu (*optional*): decorator of the functions that run the model, such as `spaces.GPU`. What it decorates may
            run in another process: arguments and results are copied, and pictures are encoded for each request.
        segmenter (*optional*): a `finecaption_hf.segmentation.Segmenter`; it runs in this process. Without one there
            are no tools for points.
    """
    encoded = EncodedPictures(describer, segmenter)

    def encode(picture: Image.Image) -> Any:
        if not isinstance(describer, FineCaptionDescriber):
            return None
        # What another process encodes would be lost with it, or be copied for each request.
        return encoded.features(picture) if on_gpu is None else describer.encode(picture)

    turn = threading.Lock()

    def pieces(asked: AskedPicture) -> Iterator[tuple[int, int, BranchAnswer]]:
        growing = stream_pieces(describer, asked, encode(asked.picture))
        while True:
            # Piece by piece: engines share memory, which each of them looks at before it takes some.
            with turn:
                piece = next(growing, None)
            if piece is None:
                return
            yield piece

    point_masks = None
    if segmenter is not None:
        point_masks = PointMasks(encoded, segmenter.name, lambda path: read_picture(path, get_upload_folder()))
    if on_gpu is not None:
        pieces = on_gpu(pieces)
    tasks = [task for task in _CHOICES if task[1] in describer.questions]
    attributes = [known for known in describer.questions if normalise_name(known) not in TASKS]
    running: dict[str, _Run] = {}
    numbers = itertools.count(1)
    examples = _render_examples()

    def answer(
        kept: KeptAnswers,
        value: PickedRegions | None,
        captions: list[str],
        chosen: list[str],
        question: str,
        max_new_tokens: float,
        temperature: float,
        seed: float,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Answers as they grow; what reproduces and explains them comes at the end."""
        session, run = request.session_hash or "", _Run(value, next(numbers))
        former, running[session] = running.get(session), run

        def told(status: str) -> str:
            return f'<span data-run="{run.number}">{status}</span>'

        try:
            if former is not None:  # the user asks something else now
                former.stop.set()
                # What it has sent may still be on its way, and would hide what is shown now.
                former.ended.wait(_WAIT_FOR_FORMER)
            if value is None:
                raise UploadError("First choose a picture.")
            asked = AskedPicture.read(
                read_picture(value.image.path, get_upload_folder()),
                Path(value.image.orig_name or "picture.png").name,
                [rle.model_dump() for rle in value.regions],
                [*captions, *chosen, *([question] if question.strip() else [])],
                describer.questions,
                max_new_tokens=int(_number(max_new_tokens, "The longest answer")),
                temperature=_number(temperature, "The temperature"),
                seed=int(_number(seed, "The seed")),
            )
            kept.fill(asked)
            missing, shown = asked.missing, 0.0
            waiting = _NOTHING[2:]
            if missing:
                yield _table(asked, value.versions), told("Looking at the picture …"), *waiting
            for piece in pieces(asked) if missing else ():
                asked.take(*piece)
                if run.stop.is_set():
                    break
                if time.monotonic() - shown > _SHOW_EVERY:
                    yield _table(asked, value.versions), told("Answering …"), *waiting
                    shown = time.monotonic()
            kept.keep(asked)
            if running.get(session) is not run:
                yield _NOTHING  # gradio sends the last of what came once more, perhaps after what another request shows
                return
            status = "Stopped: what is below is unfinished." if asked.missing else "Done."
            yield (
                _table(asked, value.versions),
                told(status),
                python_snippet(asked, name, is_finecaption=isinstance(describer, FineCaptionDescriber)),
                asked.as_json(name),
                gr.skip(),
            )
            seen = what_was_seen(describer, asked)
            yield gr.skip(), gr.skip(), *waiting[:2], seen
        except (UploadError, MaskError, ValueError) as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        finally:
            run.ended.set()
            if running.get(session) is run:
                del running[session]

    def stop_answer(request: gr.Request) -> None:
        if (run := running.get(request.session_hash or "")) is not None:
            run.stop.set()

    def clear(value: PickedRegions | None, request: gr.Request) -> tuple[Any, ...]:
        """Answers about another picture, or under other numbers, would mislead."""
        session = request.session_hash or ""
        if (run := running.get(session)) is not None:
            if run.value == value:
                return _NOTHING  # it overtook this
            del running[session]
            run.stop.set()
            run.ended.wait(_WAIT_FOR_PIECE)
        return "", "", "", "", []

    def describe(
        image: UploadedFile,
        mask: RleMask | BoxMask | PolygonMask | UploadedFile | list[float] | str | None = None,
        attributes: list[str] | None = None,
    ) -> RegionRecord:
        """Answer questions about one region of a picture.

        image: an uploaded file (`gradio_client.handle_file`). mask: COCO RLE {"size": [H, W], "counts": ..}, a box
        {"box_xyxy": [x0, y0, x1, y1]}, a polygon, a CompositionCap blob, or an uploaded black and white picture; none
        is the whole picture. attributes: names of captions and attributes, or own words; none is "region".
        Returns {"region_index", "box_xyxy", "area", "answers": {name: text}}.
        """
        store = get_upload_folder()
        try:
            picture = read_picture(image.get("path") if isinstance(image, dict) else None, store)
            references = [] if mask is None else [read_mask(mask, store)]
            asked = AskedPicture.read(picture, "image", references, attributes or ["region"], describer.questions)
            for piece in pieces(asked):
                asked.take(*piece)
            return cast(RegionRecord, asked.records[0])
        except (UploadError, MaskError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    with gr.Blocks(title="FineCaption", delete_cache=(3600, _KEPT_SECONDS), analytics_enabled=False) as demo:
        gr.Markdown("# FineCaption\nMark a part of a picture, and ask what it is.")
        with gr.Row():
            with gr.Column(scale=3, min_width=360):
                picker = RegionPicker(elem_id="fc-picker", point_masks=point_masks)
                with gr.Row():
                    ask = gr.Button("Describe", variant="primary", elem_id="fc-ask", min_width=120)
                    stop = gr.Button("Stop", elem_id="fc-stop", min_width=120)
                status = gr.HTML(elem_id="fc-progress", js_on_load=_ANNOUNCE)
                table = gr.HTML(elem_id="fc-table", js_on_load=None)
            with gr.Column(scale=2, min_width=320):
                gallery = gr.Gallery(
                    [path for path, _ in examples],
                    label="Examples",
                    columns=len(examples),
                    height="auto",
                    allow_preview=False,
                    object_fit="contain",
                    buttons=[],
                    interactive=False,
                    elem_id="fc-examples",
                )
                captions = gr.CheckboxGroup(tasks, value=[tasks[0][1]] if tasks else [], label="Captions")
                chosen = gr.CheckboxGroup(attributes, label="Attributes", elem_id="fc-attributes")
                with gr.Row():
                    every = gr.Button("All attributes", size="sm", min_width=120)
                    no_one = gr.Button("No attributes", size="sm", min_width=120)
                question = gr.Textbox(label="Your own question", placeholder="What is it made of?", max_length=500)
                with gr.Accordion("Settings", open=False):
                    max_new_tokens = gr.Slider(
                        1,
                        512,
                        value=min(512, getattr(describer, "max_new_tokens", 128)),
                        step=1,
                        label="Longest answer, in tokens",
                    )
                    temperature = gr.Slider(0, 2, value=0, step=0.1, label="Temperature (0: the likeliest words)")
                    seed = gr.Number(0, precision=0, minimum=0, label="Seed of draws")
        with gr.Accordion("What the model saw", open=False):
            seen = gr.Gallery(
                label="Inputs of the model", columns=4, height="auto", object_fit="contain", elem_id="fc-seen"
            )
        with gr.Accordion("Copy as Python", open=False):
            snippet = gr.Code(
                language="python", interactive=False, label="The same answers", max_lines=25, elem_id="fc-python"
            )
        with gr.Accordion("JSON", open=False):
            content = gr.Code(
                language="json", interactive=False, label="Answers, regions, settings", max_lines=25, elem_id="fc-json"
            )

        asked_inputs = [gr.State(KeptAnswers()), picker, captions, chosen, question, max_new_tokens, temperature, seed]
        outputs = [table, status, snippet, content, seen]
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        asking: dict[str, Any] = {"concurrency_limit": _AT_ONCE, "concurrency_id": "model", **private}
        for event in (ask.click, question.submit, picker.submit):
            # Each of them ends the one before.
            event(answer, asked_inputs, outputs, trigger_mode="multiple", **asking)
        # Not `cancels`: what is answered so far stays, with what reproduces it.
        stop.click(stop_answer, queue=False, **private)
        every.click(lambda: attributes, outputs=chosen, **private)
        no_one.click(lambda: [], outputs=chosen, **private)
        demo.unload(stop_answer)

        def load_example(event: gr.SelectData) -> PickedRegions:
            path, regions = examples[event.index]
            return picked(path, os.path.basename(path), regions)

        picker.clear(clear, picker, outputs, queue=False, **private)
        gallery.select(load_example, outputs=picker, **private)
        gr.api(describe, api_name="describe", concurrency_limit=_AT_ONCE, concurrency_id="model")
    return demo


def launch_demo(
    demo: gr.Blocks,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    on_start: Callable[[str], None] | None = None,
) -> str:
    """Start the app, and return its address.

    Args:
        demo: of `build_demo`.
        host: which interface to listen on; by default this machine only.
        port: by default the first free one from 7860 on.
        on_start (*optional*): gets the address; the app is then served until interrupted. Without it, the app is
            served by a thread, until `demo.close()`.

    Raises:
        OSError: If the port is taken, or the host is none of this machine.
    """
    try:
        _, address, _ = demo.queue(max_size=64).launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_FILE_BYTES,
            run_history=False,
            ssr_mode=False,
            enable_monitoring=False,
            footer_links=["api"],
            theme=_THEME,
            css=_CSS,
            app_kwargs={"middleware": [Middleware(Guard)]},
        )
    except OSError as error:
        where = "any port from 7860 on" if port is None else f"port {port}"
        raise OSError(
            f"The demo cannot listen on {where} of {host}: another program does, or it is no address of this machine. "
            "Give another port or host."
        ) from error
    if on_start is not None:
        on_start(str(address))
        demo.block_thread()
    return str(address)


class _Run:
    """A request of a user that is being answered.

    Args:
        value: what it is about.
        number: tells the page which request it shows.
    """

    def __init__(self, value: PickedRegions | None, number: int) -> None:
        self.value, self.number = value, number
        self.stop, self.ended = threading.Event(), threading.Event()


def _render_examples() -> list[tuple[str, list[dict[str, Any]]]]:
    """Scenes with their regions, drawn anew: the package ships no pictures for them."""
    folder = Path(tempfile.gettempdir()) / f"finecaption-examples-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    examples = []
    for seed in _EXAMPLES:
        scene = render_scene(seed, size=_EXAMPLE_SIZE, split="test")
        path = folder / f"scene-{seed}.png"
        Image.fromarray(scene.image).save(path)
        examples.append((str(path), [encode_rle(mask) for mask in scene.masks]))
    return examples


def _number(value: Any, name: str) -> float:
    """What a field holds, which is nothing where a user emptied it."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise UploadError(f"{name} is {'empty' if value is None else value}. Give a number.")
    return value


def _table(asked: AskedPicture, versions: Sequence[int] = ()) -> str:
    """One row for each region and question; what users and models write is escaped.

    Args:
        asked: what is shown.
        versions: the browser's numbers of the masks; its rows light them.
    """
    rows: list[str] = []
    missing = set(asked.missing)
    marks = [f' data-version="{version}"' for version in versions] if len(versions) == len(asked.masks) else []
    for record in asked.records:
        index = record["region_index"]
        mark = marks[index] if marks else ""
        number = str(index + 1) if asked.masks else "all"
        color = "rgb({}, {}, {})".format(*COLORS[index % len(COLORS)])
        for question, text in record["answers"].items():
            state = ' class="fc-open"' if (index, question) in missing else ""
            rows.append(
                f'<tr tabindex="0"{mark}><td><span class="fc-number" style="background: {color}">{number}</span></td>'
                f"<td>{html.escape(question)}</td><td{state}>{html.escape(text)}</td></tr>"
            )
    return _head(("Region", "Question", "Answer")) + "".join(rows) + "</tbody></table>"


def _head(names: Sequence[str]) -> str:
    return f'<table class="fc-answers"><thead><tr>{"".join(f"<th>{name}</th>" for name in names)}</tr></thead><tbody>'
