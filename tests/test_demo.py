"""The demo without a browser: its endpoint, its answers, and what it refuses."""

import base64
import configparser
import contextlib
import hashlib
import inspect
import io
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.parse
import urllib.request
import weakref
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import EXAMPLE_MASK, EXAMPLE_PICTURE, ROOT
from demo_server import ask, file_data, upload
from PIL import Image
from typer.testing import CliRunner
from waiting import LIMIT_S, at_once, start

from finecaption_hf import EMBEDDED_CHECKPOINT
from finecaption_hf.asking import FineCaptionDescriber
from finecaption_hf.cli import app as cli
from finecaption_hf.cli.demo import _read_models
from finecaption_hf.data.encoding import encode_mask, encode_rle
from finecaption_hf.demo import (
    MAX_PICTURE_PIXELS,
    AskedPicture,
    UploadError,
    python_snippet,
    read_upload,
    stream_pieces,
)
from finecaption_hf.demo import models as demo_models
from finecaption_hf.demo.answering import KeptAnswers, what_the_model_saw
from finecaption_hf.demo.encoded import EncodedPictures
from finecaption_hf.demo.guard import _names_address
from finecaption_hf.demo.models import Models, Offered
from finecaption_hf.demo.segmenting import PointMasks
from finecaption_hf.demo.uploads import read_picture
from finecaption_hf.masks_finecaption import as_mask

QUESTIONS = ["region", "Color", "global"]


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(EXAMPLE_PICTURE).convert("RGB")


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    return as_mask(Image.open(EXAMPLE_MASK), 256, 256)


@pytest.fixture
def asked(picture: Image.Image, mask: np.ndarray, embedded: Any) -> AskedPicture:
    references = [encode_rle(mask), {"box_xyxy": [178, 25, 249, 96]}]
    return AskedPicture.read(picture, "scene.png", references, QUESTIONS, embedded[1].questions, max_new_tokens=32)


# --- answers ----------------------------------------------------------------------------------------------------------


def test_streamed_answers_grow_to_those_of_one_call(asked: AskedPicture, embedded: Any) -> None:
    lengths = []
    for piece in stream_pieces(FineCaptionDescriber(*embedded), asked):
        asked.take(*piece)
        lengths.append(sum(len(text) for record in asked.records for text in record["answers"].values()))
    assert not asked.missing
    assert len(set(lengths)) > 10, "answers came at once instead of growing"
    assert asked.records == _in_one_call(embedded[0].as_pipeline(embedded[1]), asked)


def _in_one_call(pipeline: Any, asked: AskedPicture) -> Any:
    return pipeline(asked.picture, asked.references, list(asked.questions), **asked.options)


def test_snippets_give_the_same_answers_in_a_new_process(
    asked: AskedPicture, picture: Image.Image, embedded: Any, tmp_path: Path
) -> None:
    model, processor = embedded
    (tmp_path / "scene.png").write_bytes(EXAMPLE_PICTURE.read_bytes())
    folder = tmp_path / "my 'model'"
    folder.symlink_to(EMBEDDED_CHECKPOINT)
    references = [{"box_xyxy": box} for box in ([178, 25, 249, 96], [100, 149, 160, 209], [5, 35, 85, 248])]
    questions = ["Color", "global", 'Is it "red", or\nwhat?', "dense"]
    known = processor.questions
    drawn = AskedPicture.read(
        picture, "scene.png", references, questions, known, max_new_tokens=24, temperature=1.2, seed=7
    )
    whole = AskedPicture.read(picture, "scene.png", [], ["region"], known, max_new_tokens=128, temperature=0.0, seed=0)
    code = "import json\n"
    for case, name in ((asked, None), (drawn, None), (whole, str(folder))):
        code += python_snippet(case, name) + "print('JSON' + json.dumps(records))\n"
    source = Path(__file__).parents[1] / "src"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    told = [json.loads(line[4:]) for line in run.stdout.splitlines() if line.startswith("JSON")]
    # What the table shows, which is streamed.
    shown = [_streamed(FineCaptionDescriber(model, processor), case).records for case in (asked, drawn, whole)]
    assert told == shown
    assert len({record["answers"]["dense"] for record in shown[1]}) == 3, "regions share their draws"


def _streamed(describer: FineCaptionDescriber, asked: AskedPicture, kept: KeptAnswers | None = None) -> AskedPicture:
    if kept is not None:
        kept.fill(asked)
    for piece in stream_pieces(describer, asked):
        asked.take(*piece)
    if kept is not None:
        kept.keep(asked)
    assert not asked.missing
    return asked


def test_json_alone_reproduces_the_answers(picture: Image.Image, embedded: Any) -> None:
    model, processor = embedded
    pipeline = model.as_pipeline(processor)
    references = [{"box_xyxy": [178, 25, 249, 96]}, {"box_xyxy": [5, 35, 85, 248]}]
    options = {"max_new_tokens": 24, "temperature": 0.9, "seed": 3}
    asked = AskedPicture.read(picture, "scene.png", references, ["Color", "dense"], processor.questions, **options)
    content = json.loads(_streamed(FineCaptionDescriber(model, processor), asked).as_json(None))
    pixels = np.asarray(Image.open(EXAMPLE_PICTURE).convert("RGB"))
    assert content["image"]["sha256_of_rgb"] == hashlib.sha256(pixels.tobytes()).hexdigest()
    regions = [region["segmentation"] for region in content["regions"]]
    again = pipeline(str(EXAMPLE_PICTURE), regions, content["questions"], **content["options"])
    assert [record["answers"] for record in again] == [region["answers"] for region in content["regions"]]
    assert content["finished"] is True and content["options"] == options


def test_only_what_is_not_answered_is_asked_again(picture: Image.Image, embedded: Any) -> None:
    model, processor = embedded
    pipeline, describer, kept = model.as_pipeline(processor), FineCaptionDescriber(model, processor), KeptAnswers()
    boxes = [{"box_xyxy": box} for box in ([178, 25, 249, 96], [100, 149, 160, 209])]

    def missing(references: list[Any], questions: list[str], **options: Any) -> Any:
        settings = {"max_new_tokens": 16, "temperature": 0.0, "seed": 0, **options}
        asked = AskedPicture.read(picture, "p.png", references, questions, processor.questions, **settings)
        kept.fill(asked)
        found = asked.missing
        # However the answers came about, they are those of one call.
        assert _streamed(describer, asked, kept).records == _in_one_call(pipeline, asked)
        return found

    assert missing(boxes[:1], ["Color", "global"]) == [(0, "Color"), (0, "global")]
    # The other region's own number and the caption of the whole picture need not be asked.
    assert missing(boxes[::-1], ["Color", "global"]) == [(0, "Color")]
    assert missing(boxes, ["Color", "Shape"]) == [(0, "Shape"), (1, "Shape")]
    more = missing([*boxes, {"box_xyxy": [5, 35, 85, 248]}], ["Hair", "Color"])
    assert more == [(0, "Hair"), (1, "Hair"), (2, "Hair"), (2, "Color")]
    assert missing(boxes, ["Color", "Shape"]) == []
    assert missing([{"box_xyxy": [178, 25, 249, 97]}], ["Color"]) == [(0, "Color")]
    assert missing(boxes, ["Color"], max_new_tokens=3) == [(0, "Color"), (1, "Color")]
    # Draws depend on the region's place, so they are made anew, together.
    for _ in range(2):
        assert missing(boxes, ["Color"], temperature=0.7) == [(0, "Color"), (1, "Color")]


def test_picture_is_encoded_once_whoever_asks(picture: Image.Image) -> None:
    calls: list[Any] = []

    class Describer:
        def encode(self, image: Image.Image) -> torch.Tensor:
            calls.append(image.size)
            return torch.zeros(1, 4, 8, 8)

    encoded = EncodedPictures(max_bytes=3 * 2 * 256 * 256 + 2 * 4 * 4 * 64)
    describer: Any = Describer()
    first = encoded.features(describer, picture)
    assert encoded.features(describer, picture.copy()) is first and len(calls) == 1
    # One pixel differs, or the same bytes make another picture.
    other = picture.copy()
    other.putpixel((3, 3), (1, 2, 3))
    assert encoded.features(describer, other) is not first
    flat = Image.frombytes("RGB", (512, 128), picture.tobytes())
    assert encoded.features(describer, flat) is not first and len(calls) == 3
    # There was room for two.
    encoded.features(describer, picture)
    assert calls == [(256, 256)] * 2 + [(512, 128), (256, 256)]
    small = EncodedPictures(max_bytes=1)
    kept = small.features(describer, picture)
    assert small.features(describer, picture) is kept, "the last picture is always kept"
    assert small.features(describer, picture, "another model") is not kept


def test_encoder_that_dies_leaves_its_turn_to_the_next(picture: Image.Image) -> None:
    at_it, go_on = threading.Event(), threading.Event()

    class Describer:
        def encode(self, image: Image.Image) -> torch.Tensor:
            if not at_it.is_set():
                at_it.set()
                assert go_on.wait(60)
                raise RuntimeError("out of memory")
            return torch.zeros(1, 4, 8, 8)

    encoded = EncodedPictures()
    first = start(encoded.features, Describer(), picture)
    assert at_it.wait(60)
    second = start(encoded.features, Describer(), picture)
    go_on.set()
    with pytest.raises(RuntimeError, match="out of memory"):
        first.result(timeout=LIMIT_S)
    assert second.result(timeout=LIMIT_S).shape == (1, 4, 8, 8)


def test_large_picture_goes_smaller_to_what_makes_masks() -> None:
    sizes: list[tuple[int, int]] = []

    class Halves:
        def encode(self, picture: Image.Image) -> Any:
            sizes.append(picture.size)

            def masks(points: Any, labels: Any, box_xyxy: Any) -> Any:
                mask = np.zeros((picture.height, picture.width), dtype=bool)
                (x, y), (x0, y0, x1, y1) = points[0], box_xyxy
                mask[round(y0) : round(y1), round(x0) : round(x1)] = True
                mask[int(y), int(x)] = True
                return [(mask, 0.5)]

            return types.SimpleNamespace(masks=masks)

    encoded = EncodedPictures(Halves())
    for size in ((4096, 1000), (2048, 500)):
        scale = size[0] / 2048
        place, box = (100 * scale, 50 * scale), [400 * scale, 100 * scale, 1200 * scale, 300 * scale]
        ((mask, score),) = encoded.masks(Image.new("RGB", size), [place], [1], box)
        assert mask.shape == size[::-1] and mask.dtype == bool and score == 0.5
        assert mask[round(place[1]), round(place[0])]
        expected = np.zeros_like(mask)
        expected[round(box[1]) : round(box[3]), round(box[0]) : round(box[2])] = True
        assert (mask != expected).sum() <= scale**2 * 4
    assert sizes == [(2048, 500)], "a picture and its smaller copy are one here"


def test_click_and_answer_share_one_encoding_where_the_tower_is_a_published_one(picture: Image.Image) -> None:
    from test_segmentation import shared_parts

    from finecaption_hf.segmentation import SharedSegmenter

    model, processor, sam = shared_parts()
    calls: list[int] = []
    model.model.sam_tower.vision_encoder.register_forward_hook(lambda *_: calls.append(1))
    encoded = EncodedPictures(SharedSegmenter(model, processor, sam))
    read: list[Any] = []
    point_masks = PointMasks(encoded, "shared", lambda path: read.append(path) or picture.copy())
    found = point_masks.segment({"path": "p.png", "points": [[120, 170]], "labels": [1]})
    describer: Any = None  # the segmenter's tower is the model's
    features = encoded.features(describer, picture)
    assert found["candidates"] and read == ["p.png"]
    assert features is not None and features.shape[-1] == model.config.grid_size and calls == [1]


def test_command_works_without_opencv_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="gradio (the extra demo) is not installed")
    from finecaption_hf.demo import app

    built: list[Any] = []
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr(app, "build_demo", lambda *parts, segmenter, **_: built.append(segmenter))
    monkeypatch.setattr(app, "launch_demo", lambda demo, **options: options["on_start"]("http://here/"))
    result = CliRunner().invoke(cli, ["demo", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert built == [None] and "no tools for points" in result.output and "OpenCV" in result.output


def test_extras_of_the_demo_have_what_points_need() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    for extra in ("demo", "browser"):
        assert {"gradio>=6.31,<7", "opencv-python-headless"} <= set(
            settings["options.extras_require"][extra].split("\n")
        )


def test_json_holds_regions_that_mark_the_same_pixels(asked: AskedPicture, mask: np.ndarray) -> None:
    content = json.loads(asked.as_json(None))
    assert (as_mask(content["regions"][0]["segmentation"], *content["image"]["size"]) == mask).all()
    assert content["questions"] == QUESTIONS and content["finished"] is False


def test_what_the_model_saw_shows_inputs_and_the_mask_grid(
    asked: AskedPicture, embedded: Any, mask: np.ndarray
) -> None:
    model, processor = embedded
    config = model.config.vision_config
    shown = what_the_model_saw(processor, asked, config.patch_size)
    assert len(shown) == 1 + 2 * 2
    assert shown[-1][0].size == (processor.image_processor.high_res_size["width"],) * 2
    grid = np.asarray(shown[1][0], dtype=float) / 255
    cells = config.image_size // config.patch_size
    assert f"{cells}x{cells} patches" in shown[1][1]
    # The grid has the region's share of the picture.
    assert abs(grid.mean() - mask.mean()) < 0.005


def test_what_the_model_saw_has_the_colours_of_the_picture_in_the_region(
    picture: Image.Image, embedded: Any, mask: np.ndarray
) -> None:
    model, processor = embedded
    references: tuple[list[Any], list[Any]] = ([mask], [])
    (seen, _), (whole, _) = (
        what_the_model_saw(
            processor, AskedPicture.read(picture, "", given, ["region"], {}), model.config.vision_config.patch_size
        )[0]
        for given in references
    )
    side = processor.image_processor.size["width"]
    inside = Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST).resize(seen.size)
    change = np.abs(np.asarray(seen, dtype=int) - np.asarray(whole, dtype=int)).max(axis=2)
    # Masks are made small smoothly, so that the rest begins within the border.
    assert np.median(change[np.asarray(inside)]) == 0 and np.median(change[~np.asarray(inside)]) > 100


@pytest.mark.parametrize(
    ("references", "questions", "message"),
    [
        ([], [], "Nothing is asked"),
        ([], ["  "], "Nothing is asked"),
        ([], ["why? " * 200], "500 characters"),
        ([], [f"Is it {n}?" for n in range(41)], "40 questions"),
        ([{"box_xyxy": [0, 0, 9, 9]}] * 33, ["region"], "at most 32"),
    ],
)
def test_requests_out_of_bounds_are_refused(
    picture: Image.Image, embedded: Any, references: list[Any], questions: list[str], message: str
) -> None:
    with pytest.raises(UploadError, match=re.escape(message)):
        AskedPicture.read(picture, "p.png", references, questions, embedded[1].questions)


# --- uploads ----------------------------------------------------------------------------------------------------------


def test_only_files_in_the_store_are_read(tmp_path: Path) -> None:
    store, outside = tmp_path / "store", tmp_path / "secret.png"
    store.mkdir()
    outside.write_bytes(EXAMPLE_PICTURE.read_bytes())
    (store / "link.png").symlink_to(outside)
    (store / "mine.png").write_bytes(b"mine")
    (tmp_path / "store2").mkdir()
    (tmp_path / "store2" / "p.png").write_bytes(b"beside")
    assert read_upload(str(store / "mine.png"), store) == b"mine"
    for path in (
        str(outside),
        str(store / "link.png"),
        str(store / ".." / "secret.png"),
        str(tmp_path / "store2" / "p.png"),
        "http://127.0.0.1/p.png",
        str(store),
        "",
        "a\0b",
        None,
        7,
    ):
        with pytest.raises(UploadError) as caught:
            read_upload(path, store)
        assert str(tmp_path) not in str(caught.value)


def test_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    side = int(MAX_PICTURE_PIXELS**0.5) + 10
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with pytest.raises(UploadError, match="pixels, more than"):
        read_picture(str(tmp_path / "bomb.png"), tmp_path)


def test_broken_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(EXAMPLE_PICTURE.read_bytes()[:3000])
    with pytest.raises(UploadError, match="cannot be used"):
        read_picture(str(tmp_path / "cut.png"), tmp_path)


def test_guard_finds_addresses_in_requests() -> None:
    assert _names_address(b'{"data": [{"path": "http://example.com/a.png"}]}')
    assert _names_address(b'{"data": [[{"a": {"p\\u0061th": "HTTPS://example.com"}}]]}')
    assert _names_address(b'{"path": "//host/share"}')
    assert not _names_address(b'{"data": [{"path": "/store/ab/a:b.png", "url": "http://127.0.0.1:7860/f"}]}')
    assert not _names_address(b'{"data": [{"path": "C:\\\\Temp\\\\a.png"}, "path: http://a"]}')
    assert not _names_address(b"path")


@pytest.mark.parametrize(
    "request_",
    [None, {}, [], "x", {"path": "a", "points": [[1]], "labels": [1]}, {"path": 3, "points": 1, "labels": []}],
)
def test_bad_requests_for_masks_give_a_message(request_: Any) -> None:
    def read(path: Any) -> Image.Image:
        raise UploadError("not uploaded")

    point_masks = PointMasks(EncodedPictures(), "none", read)
    assert set(point_masks.segment(request_)) == {"error"}
    good = {"path": "/etc/passwd", "points": [[1, 1]], "labels": [1]}
    assert point_masks.segment(good) == {"error": "not uploaded"}


# --- the app ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def connections() -> list[Any]:
    """Addresses to which this process connected, or whose names it looked up, since the fixture was made."""
    return []


@pytest.fixture(scope="module")
def address(embedded: Any, connections: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("gradio", reason="gradio (the extra demo) is not installed")
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("store")))
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def watched_connect(self: socket.socket, where: Any) -> Any:
        connections.append(where)
        return connect(self, where)

    def watched_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        connections.append((host, 0))
        return look_up(host, *args, **kwargs)

    patch.setattr(socket.socket, "connect", watched_connect)
    patch.setattr(socket, "getaddrinfo", watched_look_up)
    from finecaption_hf.demo.app import build_demo, launch_demo

    demo = build_demo(FineCaptionDescriber(*embedded))
    yield launch_demo(demo)
    demo.close()
    patch.undo()


@pytest.fixture(scope="module")
def client(address: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from gradio_client import Client

    return Client(address, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


def _describe(client: Any, mask: Any = None, attributes: Any = ("Color",), image: Any = EXAMPLE_PICTURE) -> Any:
    """A record as the pipeline gives it; beside that, it says that the model knows scenes only."""
    from gradio_client import handle_file

    sent = handle_file(str(image)) if isinstance(image, Path) else image
    record = client.predict(sent, mask, attributes and list(attributes), api_name="/describe")
    assert "rendered scenes only" in record.pop("model_note")
    return record


def test_endpoint_takes_masks_in_every_form(client: Any, mask: np.ndarray, embedded: Any) -> None:
    from gradio_client import handle_file

    model, processor = embedded
    picture = Image.open(EXAMPLE_PICTURE)
    (expected,) = model.as_pipeline(processor)(picture, [mask], ["Color"])
    for form in (encode_rle(mask), encode_mask(mask), handle_file(str(EXAMPLE_MASK))):
        assert _describe(client, form) == expected
    (boxed,) = model.as_pipeline(processor)(picture, [{"box_xyxy": [178, 25, 249, 96]}], ["Color", "region"])
    assert _describe(client, {"box_xyxy": [178, 25, 249, 96]}, ["color", "region"]) == boxed
    (whole,) = model.as_pipeline(processor)(picture, None, ["region"])
    assert _describe(client, None, None) == whole


def test_endpoint_is_typed_and_the_only_public_one(client: Any) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/describe"]
    image, mask, attributes = endpoints["/describe"]["parameters"]
    assert [it["parameter_name"] for it in (image, mask, attributes)] == ["image", "mask", "attributes"]
    assert image["python_type"]["type"] == "filepath"
    for part in ("size: list[int], counts: list[int] | str", "box_xyxy: list[float]", "polygon:", "filepath", "None"):
        assert part in mask["python_type"]["type"]
    assert "list[str]" in attributes["python_type"]["type"]
    (record,) = endpoints["/describe"]["returns"]
    assert record["python_type"]["type"] == (
        "dict(region_index: int, box_xyxy: list[int], area: int, answers: dict(str, str), model_note: str)"
    )


def test_example_of_the_documentation_runs(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8").partition("## From scripts")[2]
    code = re.search(r"```(?:python)?\n(.*?)```", text, re.DOTALL)
    assert code is not None and "http://127.0.0.1:7860" in code[1]
    monkeypatch.chdir(ROOT)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code[1].replace("http://127.0.0.1:7860", address), {})
    record = out.getvalue().strip().splitlines()[-1]
    assert "'box_xyxy': [178, 25, 249, 96]" in record and "'Color': " in record and "'Shape': " in record


@pytest.mark.parametrize(
    ("mask", "attributes", "message"),
    [
        ({"box_xyxy": [900, 900, 910, 910]}, ["Color"], "outside"),
        ({"size": [9, 9], "counts": [0, 81]}, ["Color"], "The RLE is 9x9 but the image is 256x256"),
        ({"polygon": [[0, 0]]}, ["Color"], "polygon"),
        ("H4sI", ["Color"], "blob"),
        (None, [" "], "Nothing is asked"),
        (None, ["<image>"], "<image>"),
    ],
)
def test_clients_are_told_what_is_wrong(client: Any, mask: Any, attributes: list[str], message: str) -> None:
    with pytest.raises(Exception, match=re.escape(message)):
        _describe(client, mask, attributes)


def test_what_runs_on_a_gpu_may_run_in_another_process(embedded: Any, mask: np.ndarray) -> None:
    pytest.importorskip("gradio", reason="gradio (the extra demo) is not installed")
    from gradio_client import Client

    from finecaption_hf.demo.app import build_demo, launch_demo
    from finecaption_hf.demo.zerogpu import on_zero_gpu

    sent: list[int] = []

    def gpu(duration: Any) -> Any:
        """Like `spaces.GPU`: arguments and results are copied, as between processes."""

        def decorate(call: Any) -> Any:
            def copy(*arguments: Any) -> Any:
                packed = pickle.dumps(arguments)
                sent.append(len(packed))
                assert 30 <= duration(*arguments) <= 120
                return pickle.loads(packed)

            def function(*arguments: Any) -> Any:
                return pickle.loads(pickle.dumps(call(*copy(*arguments))))

            def generator(*arguments: Any) -> Any:
                for piece in call(*copy(*arguments)):
                    yield pickle.loads(pickle.dumps(piece))

            return generator if inspect.isgeneratorfunction(call) else function

        return decorate

    demo = build_demo(FineCaptionDescriber(*embedded), on_gpu=on_zero_gpu(gpu))
    try:
        address = launch_demo(demo)
        record = _describe(Client(address, verbose=False), encode_rle(mask))
        told = ask(address, {"image": file_data(upload(address)), "regions": [encode_rle(mask)]})[1]
    finally:
        demo.close()
    pipeline = embedded[0].as_pipeline(embedded[1])
    (expected,) = pipeline(Image.open(EXAMPLE_PICTURE), [mask], ["Color"])
    (region,) = pipeline(Image.open(EXAMPLE_PICTURE), [mask], ["region"], max_new_tokens=16)
    # The picture and its mask, but nothing that the towers made of them.
    assert record == expected and "Done." in told and region["answers"]["region"] in told
    assert len(sent) == 2 and max(sent) < 256 * 256 * 4 + 20_000


@pytest.mark.parametrize(
    "mask",
    [
        "H4sIAAAAnonsense",
        {"size": [256, 256], "counts": [1, 2, 3]},
        {"size": [2**31, 2**31], "counts": [2**62]},
        {"box_xyxy": [900, 900, 910, 910]},
        {"path": "/etc/passwd"},
        {"polygon": [[0, 0]]},
        [[1]] * 50,
        [None],
        base64.b64encode(b"\0" * 4000).decode(),
    ],
)
def test_hostile_mask_gives_a_message_and_the_next_user_is_served(client: Any, mask: Any) -> None:
    with pytest.raises(Exception) as caught:
        _describe(client, mask)
    assert len(str(caught.value)) > 20 and "Traceback" not in str(caught.value)
    assert _describe(client)["answers"]["Color"]


@pytest.mark.parametrize("path", ["/etc/passwd", str(EXAMPLE_PICTURE), "../../etc/passwd"])
@pytest.mark.parametrize("where", ["image", "mask"])
def test_other_paths_are_refused(client: Any, address: str, path: str, where: str) -> None:
    named = {"path": path, "meta": {"_type": "gradio.FileData"}}
    data = [named, None, ["Color"]] if where == "image" else [_uploaded(address), named, ["Color"]]
    event = json.loads(_post(f"{address}gradio_api/call/describe", {"data": data}))["event_id"]
    with urllib.request.urlopen(f"{address}gradio_api/call/describe/{event}", timeout=30) as answer:
        text = answer.read().decode()
    assert "event: error" in text and "root:" not in text and "answers" not in text


def test_files_with_addresses_are_refused(address: str, connections: list[Any]) -> None:
    named = {"path": "http://finecaption.invalid/a.png", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(urllib.error.HTTPError) as refused:
        _post(f"{address}gradio_api/call/describe", {"data": [named, None, ["Color"]]})
    assert refused.value.code == 422
    assert not [where for where in connections if "invalid" in str(where)]


def test_picker_opens_uploads_only(address: str) -> None:
    import gradio

    from finecaption_hf.demo.picker import PickedRegions

    with gradio.Blocks() as demo:
        from finecaption_hf.demo.picker import RegionPicker

        picker = RegionPicker()
    assert picker.data_model is PickedRegions
    from gradio.context import LocalContext
    from gradio.exceptions import InvalidPathError
    from gradio.processing_utils import move_files_to_cache

    demo.has_launched = True
    token = LocalContext.blocks.set(demo)
    try:
        value = {"image": {"path": str(EXAMPLE_PICTURE), "meta": {"_type": "gradio.FileData"}}, "regions": []}
        with pytest.raises(InvalidPathError):
            move_files_to_cache(value, picker, check_in_upload_folder=True)
    finally:
        LocalContext.blocks.reset(token)


def _uploaded(address: str) -> dict[str, Any]:
    """The example picture in the app's store, as a browser puts it there."""
    line = b"--xyz\r\n"
    body = line + b'Content-Disposition: form-data; name="files"; filename="p.png"\r\nContent-Type: image/png\r\n\r\n'
    body += EXAMPLE_PICTURE.read_bytes() + b"\r\n--xyz--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=xyz"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{address}gradio_api/upload", body, headers), timeout=30
    ) as answer:
        (path,) = json.load(answer)
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def _post(where: str, content: Any) -> str:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(where, json.dumps(content).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def test_hostile_pictures_give_a_message_and_the_next_user_is_served(client: Any, tmp_path: Path) -> None:
    side = int(MAX_PICTURE_PIXELS**0.5) + 10
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(EXAMPLE_PICTURE.read_bytes()[:2000])
    for name in ("bomb.png", "text.png", "cut.png"):
        with pytest.raises(Exception, match="cannot be used"):
            _describe(client, image=tmp_path / name)
    assert _describe(client)["answers"]["Color"]


def test_exif_orientation_turns_picture_and_mask_alike(client: Any, tmp_path: Path, embedded: Any) -> None:
    picture = Image.open(EXAMPLE_PICTURE).convert("RGB").crop((0, 0, 256, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = BytesIO()
    picture.transpose(Image.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    (tmp_path / "turned.png").write_bytes(turned.getvalue())
    picture.save(tmp_path / "plain.png")
    box = {"box_xyxy": [178, 25, 249, 96]}
    assert _describe(client, box, image=tmp_path / "turned.png") == _describe(client, box, image=tmp_path / "plain.png")


def test_users_at_once_get_their_own_regions(client: Any, address: str) -> None:
    from gradio_client import Client

    boxes = [[178, 25, 249, 96], [100, 149, 160, 209], [5, 35, 85, 248]]
    alone = [_describe(client, {"box_xyxy": box}, ["Color", "region"]) for box in boxes]

    def use(number: int) -> list[Any]:
        other = Client(address, verbose=False)
        return [_describe(other, {"box_xyxy": boxes[number]}, ["Color", "region"]) for _ in range(3)]

    assert at_once(use, 3) == [[told] * 3 for told in alone]


# --- several models ---------------------------------------------------------------------------------------------------


class _Loaded:
    """Something that a model's memory is held by: 4 bytes of it."""

    def __init__(self) -> None:
        self.model = torch.nn.Linear(1, 1, bias=False)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What was loaded, by name and weakly, when models take 4 bytes each."""
    made: list[tuple[str, Any]] = []

    def load(model: str, **options: Any) -> Any:
        loaded = _Loaded()
        made.append((model, weakref.ref(loaded)))
        return loaded

    monkeypatch.setattr(demo_models, "load_describer", load)
    return made


def _alive(made: list[tuple[str, Any]]) -> list[str]:
    return [name for name, it in made if it() is not None]


def test_models_side_by_side_are_loaded_once_and_a_third_takes_the_place_of_one(made: list[tuple[str, Any]]) -> None:
    models = Models([Offered(name, name) for name in "abc"])
    for _ in range(3):
        _use(models, "a")
        _use(models, "b")
    assert [name for name, _ in made] == ["a", "b"]
    with models.using("a"):
        _use(models, "c")
        assert _alive(made) == ["a", "c"], "b was asked longest ago"
        assert [models.is_loaded(name) for name in "abc"] == [True, False, True]
        _use(models, "b")
        assert _alive(made) == ["a", "b"], "one that is used stays"
    at_once(lambda number: [_use(models, "abc"[(number + step) % 3]) for step in range(5)], 4)
    assert len(_alive(made)) <= 2


def test_one_model_is_in_memory_where_two_do_not_fit(
    made: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_models.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=3))
    models = Models([Offered("a", "a"), Offered("b", "b", {"referral": "box_text"})])
    with models.using("a"), models.using("a"):  # by two at once
        waiting = start(lambda: _use(models, "b"))
        time.sleep(0.2)
        assert not waiting.done() and [name for name, _ in made] == ["a"]
    waiting.result(timeout=LIMIT_S)
    assert _alive(made) == ["b"]
    at_once(lambda number: [_use(models, "ab"[(number + step) % 2]) for step in range(5)], 4)
    assert len(_alive(made)) == 1
    _use(models, "b")
    number = len(made)
    _use(models, "b")
    assert len(made) == number, "it was there already"


def test_model_that_does_not_fit_beside_another_is_loaded_alone(
    made: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Models([Offered("small", "small"), Offered("large", "large")])
    load = demo_models.load_describer

    def load_large(model: str, **options: Any) -> Any:
        if _alive(made):
            raise torch.OutOfMemoryError
        return load(model, **options)

    monkeypatch.setattr(demo_models, "load_describer", load_large)
    _use(models, "large")
    assert _alive(made) == ["large"]


def _use(models: Models, name: str) -> None:
    with models.using(name):
        time.sleep(0.001)


def test_model_that_cannot_be_loaded_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    models = Models([Offered("pixels", "pixels"), Offered("gone", str(tmp_path / "gone"))])
    with pytest.raises(UploadError, match="gone cannot be loaded"), models.using("gone"):
        pass
    with models.using("pixels") as describer:
        assert describer.name == "pixels"


def test_models_of_the_command_have_options_of_their_own() -> None:
    given = ["pixels", "{model: some/llava, referral: {kind: box_drawn}, name: LLaVA}", "{adapter: lora}"]
    offered = _read_models(given, {"device": "cpu", "adapter": None})
    assert offered == [
        Offered("pixels", "pixels", {"device": "cpu"}),
        Offered("LLaVA", "some/llava", {"device": "cpu", "referral": {"kind": "box_drawn"}, "name": "LLaVA"}),
        Offered("lora", None, {"device": "cpu", "adapter": "lora"}),
    ]
    assert _read_models(None, {}) == [Offered("finecaption-tiny")]
    folder = str(EMBEDDED_CHECKPOINT)
    assert _read_models([folder], {}) == [Offered("finecaption-tiny", folder)], "people read no paths"
    with pytest.raises(ValueError, match="no YAML"):
        _read_models(["{model: [}"], {})
    with pytest.raises(ValueError, match="Two models are named 'pixels'"):
        _read_models(["pixels", "{model: pixels}"], {})


@pytest.fixture
def answer(embedded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What answers the page: `answer(session, picture, box, questions)` gives what it shows."""
    pytest.importorskip("gradio", reason="gradio (the extra demo) is not installed")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    from finecaption_hf.demo.app import build_demo
    from finecaption_hf.demo.picker import picked

    (found,) = {it.fn for it in build_demo(FineCaptionDescriber(*embedded)).fns.values() if it.name == "answer"}

    def shown(session: str, picture: Image.Image, box: Any, questions: list[str]) -> Iterator[Any]:
        path = tmp_path / f"{picture.width}.png"
        picture.save(path)
        mask = encode_rle(as_mask({"box_xyxy": box}, picture.height, picture.width))
        request = types.SimpleNamespace(session_hash=session)
        return found(
            KeptAnswers(), picked(str(path), path.name, [mask]), questions, [], "", 24, 0, 0, None, None, request
        )

    return shown


def test_users_take_turns_at_the_model_and_get_what_they_would_alone(
    answer: Any, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finecaption_hf.demo import app

    stream, inside, most = app.stream_pieces, [], []

    def noted(*arguments: Any) -> Iterator[Any]:
        pieces = stream(*arguments)
        while True:
            inside.append(1)
            most.append(len(inside))
            piece = next(pieces, None)
            inside.pop()
            if piece is None:
                return
            yield piece

    monkeypatch.setattr(app, "stream_pieces", noted)
    pictures = [picture.resize((side, side)) for side in (64, 150, 256, 300)]
    asked = [["region", "Color"], ["dense"], ["Shape", "global", "region"], ["Is it red?"]]

    def last(number: int) -> Any:
        side = pictures[number].width
        box = [side // 2, 9, side - 2, side // 2]
        return list(answer(str(number), pictures[number], box, asked[number]))[-2][:4]

    alone = [last(number) for number in range(4)]
    assert max(most) == 1 and all("Done." in told[1] for told in alone)
    without_number = re.compile(r"data-run=.\d+.")
    for number, each in enumerate(at_once(lambda number: [last(number) for _ in range(4)], 4)):
        for told in each:
            assert [without_number.sub("", part) for part in told] == [
                without_number.sub("", part) for part in alone[number]
            ]
    assert len(most) > 100 and max(most) == 1, "two requests were at the model at the same time"


def test_request_begins_when_the_users_former_one_has_ended(answer: Any, picture: Image.Image) -> None:
    import gradio

    box = [178, 25, 249, 96]
    former = answer("user", picture, box, ["dense"])
    next(former)
    latter = start(lambda: list(answer("user", picture, box, ["Color"])))
    # Somebody else is not kept waiting.
    assert "Done." in list(answer("other", picture, box, ["Color"]))[-2][1]
    assert not latter.done(), "what the former request has sent last would hide this"
    *_, end = former
    assert all(part == gradio.skip() for part in end), "gradio sends the last of a request twice"
    assert "Done." in latter.result(timeout=LIMIT_S)[-2][1]


def test_request_whose_model_dies_raises_and_keeps_nobody_waiting(
    answer: Any, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finecaption_hf.demo import app

    def dies(*arguments: Any) -> Iterator[Any]:
        raise RuntimeError("out of memory")
        yield

    box = [178, 25, 249, 96]
    with monkeypatch.context() as patch:
        patch.setattr(app, "stream_pieces", dies)
        with pytest.raises(RuntimeError, match="out of memory"):
            list(answer("user", picture, box, ["Color"]))
    for session in ("user", "other"):
        latter = start(lambda session=session: list(answer(session, picture, box, ["Color"])))
        assert "Done." in latter.result(timeout=app._WAIT_FOR_FORMER / 2)[-2][1]


def test_port_that_is_taken_is_named(embedded: Any, address: str) -> None:
    from finecaption_hf.demo.app import build_demo, launch_demo

    port = urllib.parse.urlsplit(address).port
    with pytest.raises(OSError, match=f"port {port} of 127.0.0.1: another program does"):
        launch_demo(build_demo(FineCaptionDescriber(*embedded)), port=port)


def test_pages_may_load_from_the_app_only(address: str) -> None:
    with urllib.request.urlopen(address, timeout=30) as page:
        policy, text = page.headers["content-security-policy"], page.read().decode()
    assert "default-src 'self'" in policy and "http" not in policy
    assert "fonts.googleapis" not in text


def test_no_connection_leaves_the_machine(client: Any, connections: list[Any]) -> None:
    _describe(client)
    hosts = {where[0] for where in connections if isinstance(where, tuple)}
    assert hosts, "nothing was watched"
    assert hosts <= {"127.0.0.1", "localhost", "::1", b"127.0.0.1", b"localhost", None}, hosts
