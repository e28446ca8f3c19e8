"""The Gradio app: layout, events, and the endpoint for scripts."""

import base64
import html
import itertools
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

# Read when gradio is imported: it must not call home.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image
from starlette.middleware import Middleware

from ..asking import Describer, FineCaptionDescriber, card_address, card_of, note_of
from ..data.encoding import encode_rle
from ..drawing import COLORS, ink
from ..masks_finecaption import MaskError
from ..prompts_finecaption import TASKS, BranchAnswer, normalise_name
from ..scenes import render_scene
from ..segmentation.classical import ClassicalSegmenter
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
from .models import Models, Offered
from .picker import PickedRegions, RegionPicker, picked
from .segmenting import PointMasks
from .uploads import MAX_FILE_BYTES, UploadError, read_mask, read_picture

if TYPE_CHECKING:
    from .tools import AgentTools

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
# What a request shows; a part that it says nothing of stays as it is.
_SHOWN = ("table", "status", "snippet", "content", "file", "seen", "stop", "banner")
_ALONE = "no other"

# Fonts of the machine: others would be fetched. Greys of Gradio that are too light to read are darker here.
_THEME = gr.themes.Default(
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover_dark="*primary_700",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_label_text_color="*neutral_600",
    block_label_text_color_dark="*neutral_200",
    block_title_text_color="*neutral_600",
    block_title_text_color_dark="*neutral_200",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_200",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
    link_text_color="*primary_700",
    link_text_color_dark="*primary_300",
)
_ANNOUNCE = 'element.setAttribute("role", "status");'


def build_demo(
    describer: Describer | Models,
    name: str | None = None,
    on_gpu: Callable[[Any], Any] | None = None,
    segmenter: Any = None,
    title: str = "FineCaption",
    tools: "AgentTools | None" = None,
) -> gr.Blocks:
    """The app, not yet started.

    Args:
        describer: as `asking.load_describer` returns it; or several to choose from.
        name: of the model, as `load_describer` takes it, for the snippet and the download; `None` means the embedded
            checkpoint. Of several it is known.
        on_gpu (*optional*): decorator of the functions that run the model, such as `spaces.GPU`. What it decorates may
            run in another process: arguments and results are copied, and pictures are encoded for each request.
        segmenter (*optional*): a `finecaption_hf.segmentation.Segmenter`; it runs in this process. Without one there
            are no tools for points.
        title: of the page.
        tools (*optional*): for agents; they get one that asks the first model. Give them to `launch_demo` as well.
    """
    models = describer if isinstance(describer, Models) else Models([Offered(name or describer.name, name)], describer)
    del describer  # or it would stay in memory when another one is chosen
    encoded = EncodedPictures(segmenter)

    def encode(describer: Describer, asked: AskedPicture) -> Any:
        if not isinstance(describer, FineCaptionDescriber):
            return None
        # What another process encodes would be lost with it, or be copied for each request.
        return describer.encode(asked.picture) if on_gpu else encoded.features(describer, asked.picture, asked.model)

    turn = threading.Lock()

    def pieces(asked: AskedPicture) -> Iterator[tuple[int, int, BranchAnswer]]:
        with models.using(asked.model) as describer:
            growing = stream_pieces(describer, asked, encode(describer, asked))
            while True:
                # Piece by piece: engines share memory, which each of them looks at before it takes some.
                with turn:
                    piece = next(growing, None)
                if piece is None:
                    return
                yield piece

    point_masks = None
    if segmenter is not None:
        found_by = "colours and edges" if isinstance(segmenter, ClassicalSegmenter) else segmenter.name
        point_masks = PointMasks(encoded, found_by, lambda path: read_picture(path, get_upload_folder()))
    if on_gpu is not None:
        pieces = on_gpu(pieces)
    with models.using(models.first) as chosen_first:
        known = dict(chosen_first.questions)
        longest = min(512, getattr(chosen_first, "max_new_tokens", 128))
        introduced = _introduction(chosen_first, models.first, len(models.offered) > 1)
        card, note = card_of(chosen_first), note_of(chosen_first)
        del chosen_first
    tasks = [task for task in _CHOICES if task[1] in known]
    attributes = [name for name in known if normalise_name(name) not in TASKS]
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
        model: str | None,
        beside: str | None,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Answers as they grow, of one model and then of the other; what reproduces and explains them comes at the
        end."""
        session, run = request.session_hash or "", _Run(value, next(numbers))
        former, running[session] = running.get(session), run
        names = list(dict.fromkeys([model or models.first, *([beside] if beside in models.offered else [])]))

        def told(status: str, link: str = "", **more: Any) -> tuple[Any, ...]:
            return _show(status=f'<span data-run="{run.number}">{status}</span>{link}', **more)

        try:
            if former is not None:  # the user asks something else now
                former.stop.set()
                # What it has sent may still be on its way, and would hide what is shown now.
                former.ended.wait(_WAIT_FOR_FORMER)
            if value is None:
                raise UploadError("First choose a picture.")
            picture = read_picture(value.image.path, get_upload_folder())
            answered: list[AskedPicture] = []
            table = partial(_table, answered, names, value.versions, is_named=len(models.offered) > 1)
            snippets, contents, banners, seen = [], [], [], []
            for name in names:
                if not models.is_loaded(name):
                    yield told(f"Loading {html.escape(name)} …", stop=True)
                with models.using(name) as describer:
                    asked = AskedPicture.read(
                        picture,
                        Path(value.image.orig_name or "picture.png").name,
                        [rle.model_dump() for rle in value.regions],
                        [*captions, *chosen, *([question] if question.strip() else [])],
                        describer.questions,
                        model=name,
                        max_new_tokens=int(_number(max_new_tokens, "The longest answer")),
                        temperature=_number(temperature, "The temperature"),
                        seed=int(_number(seed, "The seed")),
                    )
                    kept.fill(asked)
                    answered.append(asked)
                    missing, shown = asked.missing, 0.0
                    if missing:
                        yield told("Looking at the picture …", table=table(), stop=True)
                    for piece in pieces(asked) if missing else ():
                        asked.take(*piece)
                        if run.stop.is_set():
                            break
                        if time.monotonic() - shown > _SHOW_EVERY:
                            yield told("Answering …", table=table())
                            shown = time.monotonic()
                    kept.keep(asked)
                    snippets.append(_snippet(asked, models.offered[name], describer))
                    contents.append(_json(asked, models.offered[name], describer))
                    banners.append(_introduction(describer, name, len(models.offered) > 1))
                    if not run.stop.is_set():
                        # Shown at the end: they are many bytes.
                        which = f"{name}: " if len(names) > 1 else ""
                        seen += [(image, which + text) for image, text in what_was_seen(describer, asked)]
                if run.stop.is_set():
                    break
            if running.get(session) is not run:
                yield _show()  # gradio sends the last of what came once more, perhaps after what another request shows
                return
            is_done = len(answered) == len(names) and not any(asked.missing for asked in answered)
            content = contents[0] if len(contents) == 1 else f"[{', '.join(contents)}]"
            yield told(
                "Done." if is_done else "Stopped: what is below is unfinished.",
                ' <a class="fc-more" href="#fc-table">See the answers</a>',
                table=table(),
                snippet="\n".join(snippets),
                content=content,
                file=_download(content),
                stop=False,
                banner="".join(banners),
            )
            yield _show(seen=seen)
        except Exception as error:
            if running.get(session) is run:
                yield _show(status="", stop=False)
            if not isinstance(error, ValueError):
                raise
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
                return _show()  # it overtook this
            del running[session]
            run.stop.set()
            run.ended.wait(_WAIT_FOR_PIECE)
        return _show(table="", status="", snippet="", content="", file="", seen=[], stop=False)

    def records_of(picture: Image.Image, references: Sequence[Any], questions: Sequence[str]) -> list[dict[str, Any]]:
        """What the first model answers, a record for each region."""
        asked = AskedPicture.read(picture, "image", references, questions, known, model=models.first)
        for piece in pieces(asked):
            asked.take(*piece)
        return asked.records

    def describe(
        image: UploadedFile,
        mask: RleMask | BoxMask | PolygonMask | UploadedFile | list[float] | str | None = None,
        attributes: list[str] | None = None,
    ) -> RegionRecord:
        """Answer questions about one region of a picture.

        image: an uploaded file (`gradio_client.handle_file`). mask: COCO RLE {"size": [H, W], "counts": ..}, a box
        {"box_xyxy": [x0, y0, x1, y1]}, a polygon, a CompositionCap blob, or an uploaded black and white picture; none
        is the whole picture. attributes: names of captions and attributes, or own words; none is "region".
        Returns {"region_index", "box_xyxy", "area", "answers": {name: text}}, and "model_note" where the model's card
        says that its answers about photographs mean nothing.
        """
        store = get_upload_folder()
        try:
            picture = read_picture(image.get("path") if isinstance(image, dict) else None, store)
            references = [] if mask is None else [read_mask(mask, store)]
            (record,) = records_of(picture, references, attributes or ["region"])
            return cast(RegionRecord, record if note is None else {**record, "model_note": note})
        except (UploadError, MaskError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    if tools is not None:
        tools.add(records_of, list(known), models.first, note, _AT_ONCE)

    with gr.Blocks(title=title, delete_cache=(3600, _KEPT_SECONDS), analytics_enabled=False) as demo:
        gr.HTML(
            f"<h1>{html.escape(title)}</h1><p>Mark a part of a picture, and ask what it is.</p>",
            elem_id="fc-title",
            padding=False,
            js_on_load=None,
        )
        banner = gr.HTML(introduced, elem_id="fc-banner", js_on_load=None, padding=False)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                picker = RegionPicker(elem_id="fc-picker", point_masks=point_masks, padding=False)
            with gr.Column(scale=2, min_width=320):
                gallery = gr.Gallery(
                    [(path, f"Scene {number}") for number, (path, _) in enumerate(examples, start=1)],
                    label="Examples: rendered scenes, answered at once",
                    columns=len(examples),
                    height="auto",
                    allow_preview=False,
                    object_fit="contain",
                    buttons=[],
                    interactive=False,
                    elem_id="fc-examples",
                )
                with gr.Row(visible=len(models.offered) > 1):
                    model = gr.Dropdown(
                        list(models.offered), value=models.first, label="Model", elem_id="fc-model", min_width=200
                    )
                    beside = gr.Dropdown(
                        [_ALONE, *models.offered],
                        value=_ALONE,
                        label="Side by side with",
                        elem_id="fc-beside",
                        min_width=200,
                    )
                captions = gr.CheckboxGroup(
                    tasks, value=[tasks[0][1]] if tasks else [], label="Captions", elem_id="fc-captions"
                )
                chosen = gr.CheckboxGroup(attributes, label="Attributes", elem_id="fc-attributes")
                with gr.Row():
                    every = gr.Button("All attributes", size="sm", min_width=120)
                    no_one = gr.Button("No attributes", size="sm", min_width=120)
                question = gr.Textbox(label="Your own question", placeholder="What is it made of?", max_length=500)
                with gr.Accordion("Settings", open=False):
                    max_new_tokens = gr.Slider(1, 512, value=longest, step=1, label="Longest answer, in tokens")
                    temperature = gr.Slider(0, 2, value=0, step=0.1, label="Temperature (0: the likeliest words)")
                    seed = gr.Number(0, precision=0, minimum=0, label="Seed of draws")
        with gr.Row(elem_id="fc-asking"):
            ask = gr.Button("Describe", variant="primary", elem_id="fc-ask", min_width=110, scale=2)
            stop = gr.Button("Stop", elem_id="fc-stop", min_width=80, interactive=False, scale=1)
            status = gr.HTML(elem_id="fc-progress", js_on_load=_ANNOUNCE, padding=False)
        table = gr.HTML(elem_id="fc-table", js_on_load=None, padding=False)
        with gr.Accordion("What the model saw", open=False):
            seen = gr.Gallery(
                label="Inputs of the model", columns=4, height="auto", object_fit="contain", elem_id="fc-seen"
            )
        with gr.Accordion("Copy as Python", open=False):
            snippet = gr.Code(
                language="python",
                interactive=False,
                label="The same answers",
                wrap_lines=True,
                buttons=["copy"],
                elem_id="fc-python",
            )
        with gr.Accordion("JSON", open=False):
            content = gr.Code(
                language="json",
                interactive=False,
                label="Answers, regions, settings; region_index counts from 0, numbers on the page from 1",
                wrap_lines=True,
                buttons=["copy"],
                elem_id="fc-json",
            )
            file = gr.HTML(elem_id="fc-file", js_on_load=None, padding=False)

        with gr.Accordion("About the model", open=False, visible=card is not None, elem_id="fc-about") as about_part:
            about = gr.Markdown("" if card is None else card.text)

        settings = [max_new_tokens, temperature, seed]
        asked_inputs = [gr.State(KeptAnswers()), picker, captions, chosen, question, *settings, model, beside]
        outputs = [table, status, snippet, content, file, seen, stop, banner]
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

        def introduce(name: str) -> Iterator[tuple[Any, ...]]:
            """Load a model when it is chosen, so that it answers at once later, and say what it is."""
            if not models.is_loaded(name):
                yield f"<p>Loading {html.escape(name)} …</p>", gr.skip(), gr.skip()
            try:
                with models.using(name) as describer:
                    card = card_of(describer)
                    told = _introduction(describer, name, True)
            except UploadError as error:
                yield f"<p>{html.escape(str(error))}</p>", gr.skip(), gr.skip()
            else:
                yield told, "" if card is None else card.text, gr.update(visible=card is not None)

        model.input(introduce, model, [banner, about, about_part], **asking)
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
    tools: "AgentTools | None" = None,
) -> str:
    """Start the app, and return its address.

    Args:
        demo: of `build_demo`.
        host: which interface to listen on; by default this machine only.
        port: by default the first free one from 7860 on.
        on_start (*optional*): gets the address; the app is then served until interrupted. Without it, the app is
            served by a thread, until `demo.close()`.
        tools (*optional*): for agents, of `build_demo`; they are served at `/mcp`.

    Raises:
        OSError: If the port is taken, or the host is none of this machine.
    """
    added = {} if tools is None else {"routes": tools.routes, "lifespan": tools.life}
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
            mcp_server=False,  # not by a variable of the environment either: see .tools
            footer_links=["api"],
            theme=_THEME,
            css=(Path(__file__).parent / "page.css").read_text(encoding="utf-8"),
            app_kwargs={"middleware": [Middleware(Guard)], **added},
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


def _show(**parts: Any) -> tuple[Any, ...]:
    """The outputs of a request: those of `_SHOWN` that are given."""
    if "stop" in parts:
        parts["stop"] = gr.update(interactive=parts["stop"])
    return tuple(parts.get(name, gr.skip()) for name in _SHOWN)


def _snippet(asked: AskedPicture, offered: Offered, describer: Describer) -> str:
    options = {name: value for name, value in offered.options.items() if name not in ("device", "name")}
    is_finecaption = isinstance(describer, FineCaptionDescriber) and not options
    return python_snippet(asked, offered.model, is_finecaption=is_finecaption, options=options)


def _json(asked: AskedPicture, offered: Offered, describer: Describer) -> str:
    return asked.as_json(offered.options.get("name", offered.model), note_of(describer))


def _download(content: str) -> str:
    """A link to JSON as a file; gradio's own holds a button, which those who need large targets cannot hit."""
    data = base64.b64encode(content.encode()).decode()
    return f'<a class="fc-more" download="answers.json" href="data:application/json;base64,{data}">Download</a>'


def _introduction(describer: Describer, name: str, has_others: bool) -> str:
    """Who answers, with what its card says of its limits."""
    card, note = card_of(describer), note_of(describer)
    told = f"<b>{html.escape(name)}</b> answers."
    if note is not None:
        other = "choose another model" if has_others else "start the demo with another model (--model)"
        told = f"<b>{html.escape(name)} knows rendered scenes only</b>: try the examples, or {other}."
    if card is not None:
        told += ' <a href="#fc-about">Its card</a>'
        if (address := card_address(describer)) is not None:
            told += f' (<a href="{html.escape(address)}" target="_blank" rel="noreferrer">on the Hub</a>)'
    return f'<p class="fc-who{"" if note is None else " fc-limits"}"{"" if note is None else " role=note"}>{told}</p>'


def _table(
    answered: Sequence[AskedPicture], models: Sequence[str], versions: Sequence[int] = (), is_named: bool = False
) -> str:
    """A table for each region, with a row for each question and a column for each model; what users and models write is
    escaped.

    Args:
        answered: what is shown, of the models that had their turn.
        models: all that are asked.
        versions: the browser's numbers of the masks; its rows light them.
        is_named: whether the models' names head their answers, which stay when another model is chosen.
    """
    first = answered[0]
    marks = [f' data-version="{version}"' for version in versions] if len(versions) == len(first.masks) else []
    records, missing = [asked.records for asked in answered], [set(asked.missing) for asked in answered]
    is_open = ' class="fc-open"'
    heads = ("Question", *models) if is_named else ("Question", "Answer")
    tables: list[str] = []
    for index, record in enumerate(records[0]):
        mark = marks[index] if marks else ""
        number = str(index + 1) if first.masks else "all"
        red, green, blue = COLORS[index % len(COLORS)]
        style = f"background: rgb({red}, {green}, {blue}); color: {ink((red, green, blue))}"
        rows = []
        for question in record["answers"]:
            cells = "".join(
                f"<td{is_open if (index, question) in open_ else ''}>"
                f"{html.escape(of_model[index]['answers'].get(question, ''))}</td>"
                for of_model, open_ in zip(records, missing)
            )
            cells += "<td></td>" * (len(models) - len(answered))
            rows.append(
                f'<tr tabindex="0"{mark}><td><span class="fc-number" style="{style}">{number}</span></td>'
                f"<td>{html.escape(question)}</td>{cells}</tr>"
            )
        named = f"Region {number}" if first.masks else "The whole picture"
        head = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in heads)
        tables.append(
            f'<table class="fc-answers" aria-label="{named}"><thead><tr><th scope=col><span class="fc-hidden">Region'
            f"</span></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        )
    return f'<div class="fc-tables{" fc-several" if len(models) > 1 else ""}">{"".join(tables)}</div>'
