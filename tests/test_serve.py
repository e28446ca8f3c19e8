"""`finecaption serve`: it answers as `ask` does, refuses what it cannot honour, and nobody's request hurts others."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import EXAMPLE_MASK, EXAMPLE_PICTURE
from describers import StubDescriber
from PIL import ExifTags, Image
from served import LIMIT_S, MODEL, Served, chat_body, data_url, served
from typer.testing import CliRunner

from finecaption_hf.asking import FineCaptionDescriber, ask
from finecaption_hf.cli import app as command
from finecaption_hf.data.encoding import encode_rle
from finecaption_hf.prompts_finecaption import BranchAnswer, BranchUpdate
from finecaption_hf.serving.limits import Limits

BOX = {"box_xyxy": [178, 25, 249, 96]}
OTHER_BOX = {"box_xyxy": [20, 60, 120, 200]}
SMALL = Image.new("RGB", (8, 6), "red")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(EXAMPLE_PICTURE).convert("RGB")


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    return np.asarray(Image.open(EXAMPLE_MASK).convert("L")) > 127


@pytest.fixture(scope="module")
def describer(embedded: Any) -> FineCaptionDescriber:
    return FineCaptionDescriber(*embedded)


@pytest.fixture(scope="module")
def server(describer: FineCaptionDescriber) -> Iterator[Served]:
    from finecaption_hf.segmentation import open_segmenter

    with served(describer, segmenter=open_segmenter(None)) as running:
        yield running


class Gated:
    """A describer that answers once it may.

    Attributes:
        gate: opens the way.
        begun: how many batches came to it.
        prepared: regions of each picture that it prepared.
    """

    def __init__(self, describer: Any) -> None:
        self._describer, self.gate, self.begun = describer, threading.Event(), 0
        self.prepared: list[int] = []
        self.name, self.settings, self.independent = describer.name, describer.settings, describer.independent
        self.questions, self.refusal = describer.questions, describer.refusal

    def prepare(self, picture: Image.Image, regions: Sequence[Any]) -> Any:
        self.prepared.append(len(regions))
        return self._describer.prepare(picture, regions)

    def stream(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        self.begun += 1
        assert self.gate.wait(30)
        yield from self._describer.stream(*arguments, **options)


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _error(answer: Any) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    return error


# --- regions ---------------------------------------------------------------------------------------------------------


def test_records_are_those_of_ask(
    server: Served, describer: FineCaptionDescriber, picture: Image.Image, mask: np.ndarray
) -> None:
    rle = encode_rle(mask)
    polygon = {"polygon": [20, 60, 120, 60, 120, 200, 20, 200]}
    sent = [
        BOX,
        rle,
        {"mask": rle},
        polygon,
        {"mask": data_url(Image.fromarray(mask))},
        None,
        {"box_xyxy": [9, 9, 1, 1]},
    ]
    given = [BOX, mask, mask, polygon, mask, None, {"box_xyxy": [9, 9, 1, 1]}]
    questions = ["color", "region", "global", "What is it made of?"]
    options = {"temperature": 0.7, "top_p": 0.9, "seed": 5}
    answer = server.regions(picture, sent, questions, max_tokens=12, log_probs=True, **options)
    expected = ask(describer, picture, given, questions, max_new_tokens=12, log_probs=True, **options)
    assert answer.status_code == 200
    records = answer.json()["records"]
    for record, other in zip(records, expected, strict=True):
        log_probs, others = (it.pop("log_probs", {}) for it in (record, other))
        assert record == other and log_probs.keys() == others.keys()
        for name, values in others.items():
            assert log_probs[name] == pytest.approx(values, abs=1e-4)  # other batches round in another way
    assert "error" in records[-1] and len({json.dumps(record["answers"]) for record in records[:-1]}) > 2


def test_alpha_channel_is_the_region_upright(
    server: Served, describer: FineCaptionDescriber, picture: Image.Image, mask: np.ndarray
) -> None:
    alpha = Image.fromarray((mask * 255).astype(np.uint8))
    coloured = picture.copy()
    coloured.putalpha(alpha)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by a quarter
    (upright,) = ask(describer, picture, [mask], "color")
    turned = coloured.transpose(Image.Transpose.ROTATE_90)
    body = {"image": data_url(turned, exif=exif), "questions": "color"}
    assert server.post("/v1/regions", json=body).json()["records"] == [upright]
    chat = server.chat(coloured, None, "color").json()
    assert chat["choices"][0]["message"]["content"] == upright["answers"]["Color"]
    # One that is opaque everywhere is none; another region beside it is one too many.
    opaque = picture.convert("RGBA")
    assert server.regions(opaque, None, "color").json()["records"] == ask(describer, picture, None, "color")
    assert "Send one" in _error(server.regions(coloured, [BOX]))["message"]
    assert "Send one" in _error(server.chat(coloured, BOX))["message"]


def test_points_are_segmented(server: Served, describer: FineCaptionDescriber, picture: Image.Image) -> None:
    from finecaption_hf.segmentation import open_segmenter

    picture = picture.resize((64, 64))
    points = {"points": [[15, 30], [62, 3]], "labels": [1, 0]}
    (found,) = open_segmenter(None).encode(picture).masks(num_candidates=1, **points)
    records = server.regions(picture, [points, {"points": [[999, 1]]}, {"points": [[1, 1]], "x": 1}], "color").json()
    good, outside, unknown = records["records"]
    assert good == ask(describer, picture, [found.mask], "color")[0]
    assert "outside of the picture" in outside["error"]["message"] and "'x'" in unknown["error"]["message"]


def test_regions_stream_as_they_come(server: Served, picture: Image.Image) -> None:
    body = {"image": data_url(picture), "regions": [BOX, [1, 2], OTHER_BOX], "questions": ["color", "region"]}
    whole = server.post("/v1/regions", json=body).json()["records"]
    lines = server.post("/v1/regions", json={**body, "stream": True}).text.splitlines()
    events = server.post("/v1/regions", json={**body, "stream": True}, headers={"accept": "text/event-stream"}).text
    of_events = [json.loads(line.removeprefix("data: ")) for line in events.split("\n\n") if "{" in line]
    for records in (list(map(json.loads, lines)), of_events):
        assert sorted(records, key=lambda it: it["region_index"]) == whole
    assert "error" in json.loads(lines[0]), "what needs no model comes first"


# --- OpenAI's clients ------------------------------------------------------------------------------------------------


def test_openai_client_of_python_is_answered_as_ask(
    server: Served, describer: FineCaptionDescriber, picture: Image.Image
) -> None:
    openai = pytest.importorskip("openai", reason="openai (the extra evaluation) is not installed")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == [MODEL] == [client.models.retrieve(MODEL).id]

    def told(**decoding: Any) -> list[str]:
        names = {"max_tokens": "max_new_tokens", "stop": "stop_strings"}
        given = {names.get(name, name): value for name, value in decoding.items()}
        return [record["answers"]["dense"] for record in ask(describer, picture, [BOX] * 2, "dense", **given)]

    body = chat_body(picture, BOX, "dense")
    for decoding in (
        {"max_tokens": 3},
        {"temperature": 1.5, "top_p": 0.8, "seed": 12, "stop": [" is", "a "]},
    ):
        whole = client.chat.completions.create(**body, **decoding, n=2, logprobs=True)
        assert [choice.message.content for choice in whole.choices] == told(**decoding)
        reasons = {choice.finish_reason for choice in whole.choices}
        assert reasons == {"length"} if "max_tokens" in decoding else reasons <= {"stop", "length"}
        pieces = list(
            client.chat.completions.create(
                **body, **decoding, n=2, logprobs=True, stream=True, stream_options={"include_usage": True}
            )
        )
        for choice in whole.choices:
            of_choice = [it.choices[0] for it in pieces if it.choices and it.choices[0].index == choice.index]
            assert "".join(it.delta.content or "" for it in of_choice) == choice.message.content
            assert of_choice[-1].finish_reason == choice.finish_reason
            likely = [each.logprob for it in of_choice if it.logprobs for each in it.logprobs.content]
            assert likely == pytest.approx([each.logprob for each in choice.logprobs.content], abs=1e-4)
        assert pieces[-1].usage == whole.usage and whole.usage.completion_tokens > 0
    with pytest.raises(openai.BadRequestError, match="'tools' is not honoured"):
        client.chat.completions.create(**body, tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.chat.completions.create(**{**body, "model": "gpt"})
    turns = [{"role": "assistant", "content": "a badge"}, {"role": "user", "content": "color"}]
    said = client.chat.completions.create(model=MODEL, messages=[*body["messages"], *turns])
    chat = [{"role": "user", "content": "dense"}, *turns]
    (expected,) = ask(describer, picture, [BOX], chat)[0]["answers"].values()
    assert said.choices[0].message.content == expected


_JAVASCRIPT = """
const OpenAI = require("openai");
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const body = JSON.parse(require("fs").readFileSync(0));
const ask = (more) => client.chat.completions.create({ ...body, ...more });
(async () => console.log(JSON.stringify(await (async () => { %s })())))();
"""
_ANSWERS = """
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const whole = await ask({ n: 2 });
let streamed = "", usage = null;
for await (const piece of await ask({ stream: true, stream_options: { include_usage: true } })) {
  streamed += piece.choices[0]?.delta.content ?? "";
  usage = piece.usage ?? usage;
}
const refusals = [];
for (const more of [{ tools: [] }, { model: "gpt" }])
  try { await ask(more); } catch (error) { refusals.push([error.constructor.name, error.status, error.message]); }
return { models, said: whole.choices.map((it) => it.message.content), streamed, usage, refusals };
"""
_LEAVES = """
for await (const piece of await ask({ stream: true })) if (piece.choices[0].delta.content) break;
const stream = await ask({ stream: true });
for await (const piece of stream) if (piece.choices[0].delta.content) stream.controller.abort();
return "left";
"""


def _run_javascript(program: str, server: Served, body: dict[str, Any]) -> Any:
    """What a program of OpenAI's client for JavaScript returns."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    modules = [os.environ.get("NODE_PATH"), str(Path(sys.prefix, "javascript", "node_modules"))]
    environment = {**os.environ, "NODE_PATH": os.pathsep.join(filter(None, modules))}
    if subprocess.run([node, "-e", 'require("openai")'], capture_output=True, timeout=60, env=environment).returncode:
        pytest.skip(
            "node finds no openai (scripts/test installs it where npm is; or its folder node_modules as NODE_PATH)"
        )
    result = subprocess.run(
        [node, "-e", _JAVASCRIPT % program, "client", f"http://127.0.0.1:{server.port}/v1"],
        input=json.dumps(body),
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_openai_client_of_javascript_is_answered_as_ask(
    server: Served, describer: FineCaptionDescriber, picture: Image.Image
) -> None:
    found = _run_javascript(_ANSWERS, server, chat_body(picture, BOX, "dense"))
    expected = ask(describer, picture, [BOX], "dense")[0]["answers"]["dense"]
    assert found["models"] == [MODEL]
    assert found["said"] == [expected] * 2 and found["streamed"] == expected
    assert found["usage"]["completion_tokens"] > 0
    (name, status, message), unknown = found["refusals"]
    assert (name, status) == ("BadRequestError", 400) and "'tools' is not honoured" in message
    assert unknown[:2] == ["NotFoundError", 404]


class Talker(StubDescriber):
    """Talks for half a minute, unless nobody listens.

    Attributes:
        left: how many of its answers were not heard to their end.
    """

    left = 0

    def stream(self, prepared: Any, requests: Any, **options: Any) -> Iterator[BranchUpdate]:
        try:
            for number in range(1, 3000):
                yield BranchUpdate(0, 0, BranchAnswer("on " * number))
                time.sleep(0.01)
            yield BranchUpdate(0, 0, BranchAnswer("at last", finish_reason="end"))
        except GeneratorExit:
            self.left += 1
            raise


def test_javascript_client_that_leaves_ends_what_is_answered_for_it() -> None:
    talker = Talker()
    with served(talker) as server:
        assert _run_javascript(_LEAVES, server, chat_body(SMALL, None)) == "left"
        _until(lambda: talker.left == 2)
        assert server.count("answers_total") == server.count("waiting") == 0


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict() -> Iterator[Served]:
    limits = Limits(body_bytes=50_000, pixels=10_000, regions=3, region_pixels=20_000, answers=4, new_tokens=9)
    with served(StubDescriber(), limits=limits) as running:
        yield running


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
        ({"logit_bias": {"1": 1}}, 400, "'logit_bias' is not honoured"),
        ({"top_logprobs": 3}, 400, "top_logprobs"),
        ({"temperature": -1}, 400, "temperature is -1"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p is 0"),
        ({"n": 0}, 400, "n: "),
        ({"stop": ["x"] * 17}, 400, "stop"),
        ({"n": 5}, 413, "at most 4"),
        ({"max_tokens": 10}, 400, "at most 9"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, 400, "are the same"),
        ({"max_tokens": 0}, 400, "max_tokens: Input should be greater"),
        ({"max_completion_tokens": 0}, 400, "max_completion_tokens: Input should be greater"),
        ({"logprobs": True}, 400, "how likely"),
        ({"model": "gpt"}, 404, "no model 'gpt'"),
        ({"messages": []}, 400, "question"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "role"),
        ({"messages": [{"role": "user", "content": "x"}]}, 400, "0 pictures"),
        ({"mm_processor_kwargs": {"masks": [None, None]}}, 400, "2 masks"),
    ],
)
def test_chat_refuses_by_name_what_it_does_not_honour(
    strict: Served, change: dict[str, Any], status: int, said: str
) -> None:
    answer = strict.post("/v1/chat/completions", json={**chat_body(SMALL, None), **change})
    assert answer.status_code == status and said in _error(answer)["message"]


def test_region_in_vllms_place_is_taken(strict: Served) -> None:
    answer = strict.chat(SMALL, None, mm_processor_kwargs={"masks": [{"box_xyxy": [0, 0, 2, 3]}]}).json()
    assert answer["choices"][0]["message"]["content"].endswith(" 6") and answer["usage"] is None


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"image": data_url(Image.new("L", (101, 100)))}, 413, "101 x 100 pixels"),
        ({"image": "data:image/png;base64," + "A" * 50_000}, 413, "at most 50000 bytes"),
        ({"regions": [None] * 4}, 413, "more than 3"),
        ({"image": data_url(Image.new("L", (99, 99))), "regions": [None] * 3}, 413, "more than 20000 pixels"),
        ({"regions": [None] * 3, "questions": ["color", "shape"]}, 413, "6 answers"),
        ({"max_tokens": 10}, 400, "at most 9"),
        ({"questions": []}, 400, "No question"),
        ({"questions": "x" * 4_001}, 400, "questions"),
        ({"image": "data:image/png;base64,AAAA"}, 400, "no format of pictures"),
        ({"image": "data:image/png;base64,A!"}, 400, "no base64"),
        ({"image": data_url(SMALL)[:-40]}, 400, "picture"),
        ({"image": "/etc/passwd"}, 400, "does not open"),
        ({"image": "file:///etc/passwd"}, 400, "does not open"),
        ({"image": "http://127.0.0.1:1/a.png"}, 400, "does not open"),
        ({"boxes": []}, 400, "'boxes' is not honoured"),
    ],
)
def test_regions_refuse_what_is_too_much_or_no_picture(
    strict: Served, body: dict[str, Any], status: int, said: str
) -> None:
    answer = strict.post("/v1/regions", json={"image": data_url(SMALL), **body})
    assert answer.status_code == status and said in _error(answer)["message"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 40_000, b'{"image": "\xff"}', b"null"])
def test_body_that_is_no_request_is_refused(strict: Served, content: bytes) -> None:
    answer = strict.post("/v1/regions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and _error(answer)["message"]
    assert strict.regions(SMALL).status_code == 200


def test_bad_region_of_a_chat_is_told_in_the_words_of_its_error(strict: Served) -> None:
    for region, said in (
        ({"box_xyxy": [20, 20, 30, 30]}, "outside"),
        ({"bbox": [0, 0, 2, 3]}, "or the key box_xyxy"),
        ({"mask_file": "/etc/passwd"}, "names a file"),
        ({"mask": "data:image/png;base64,AAAA"}, "mask cannot be used"),
        ({"points": [[1, 1]]}, "no segmenter"),
        (data_url(Image.new("L", (200, 100))), "200 x 100 pixels"),
    ):
        answer = strict.chat(SMALL, region)
        assert answer.status_code == 400 and said in _error(answer)["message"], answer.text
    refused = strict.chat(SMALL, None, "refuse this")
    assert refused.status_code == 400 and _error(refused)["message"] == "it refused"
    refused = strict.chat(SMALL, None, "refuse this", stream=True)
    assert refused.status_code == 400 and _error(refused)["message"] == "it refused"


def test_only_listed_hosts_are_asked_for_pictures() -> None:
    content = data_url(SMALL).partition(",")[2]

    class Pictures(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            import base64

            is_moved = self.path == "/moved.png"
            self.send_response(302 if is_moved else 200)
            self.send_header("Location", "/a.png")
            self.end_headers()
            self.wfile.write(b"" if is_moved else base64.b64decode(content))

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as pictures:
        threading.Thread(target=pictures.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{pictures.server_port}"
        with served(StubDescriber(), hosts=[host]) as server:
            good = server.post("/v1/regions", json={"image": f"http://{host}/a.png"})
            assert good.json()["records"][0]["area"] == 48
            for address, said in (
                (f"http://{host}/moved.png", "cannot be fetched"),
                (f"http://localhost:{pictures.server_port}/a.png", "does not open"),
                (f"http://{host}@localhost/a.png", "does not open"),
                ("http://[::1/a.png", "does not open"),
                (f"ftp://{host}/a.png", "does not open"),
            ):
                answer = server.post("/v1/regions", json={"image": address})
                assert answer.status_code == 400 and said in _error(answer)["message"]
        pictures.shutdown()


def test_requests_bear_the_token() -> None:
    with served(StubDescriber(), token="secret") as server:
        assert server.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/nowhere"):
            assert server.get(path).status_code == 401
        for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
            assert server.post("/v1/regions", json={}, headers=given).status_code == 401
        allowed = {"authorization": "Bearer secret"}
        assert server.get("/v1/models", headers=allowed).status_code == 200
        body = {"image": data_url(SMALL)}
        assert server.post("/v1/regions", json=body, headers=allowed).status_code == 200
        assert server.get("/nowhere", headers=allowed).status_code == 404


# --- many at once ----------------------------------------------------------------------------------------------------


def test_requests_that_wait_share_pictures_and_regions(describer: FineCaptionDescriber, picture: Image.Image) -> None:
    """While a batch is answered, others come together: four about two regions of one picture, one about another."""
    gated = Gated(describer)
    other = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    regions, questions = [BOX, OTHER_BOX], ["color", "global"]
    with served(gated) as server, ThreadPoolExecutor(10) as clients:
        first = clients.submit(server.chat, SMALL, None)
        _until(lambda: gated.begun == 1)
        asked = [(region, question) for question in questions for region in regions]
        waiting = [clients.submit(server.chat, picture, *it, max_tokens=9 + n) for n, it in enumerate(asked)]
        another = clients.submit(server.regions, other, regions, ["color"])
        server.wait_for("waiting", 5)
        before = describer.counts["images"]
        gated.gate.set()
        assert first.result(timeout=LIMIT_S).status_code == 200
        answered = [answer.result(timeout=LIMIT_S) for answer in (*waiting, another)]
        assert describer.counts["images"] == before + 3
        for number, (answer, (region, question)) in enumerate(zip(answered, asked)):
            (expected,) = ask(describer, picture, [region], question, max_new_tokens=9 + number)[0]["answers"].values()
            assert answer.json()["choices"][0]["message"]["content"] == expected
        assert answered[-1].json()["records"] == ask(describer, other, regions, ["color"])
        assert gated.begun == 2 and gated.prepared[0] == 1
        assert sorted(gated.prepared[1:]) == [2, 3], "whichever came first; the whole picture besides, for global"
        assert server.count("batches_total") == 2 and server.count("batched_requests_total") == 6
        assert server.count("pictures_total") == 3 and server.count("waiting") == server.count("running") == 0


def test_client_that_left_leaves_the_queue_and_others_are_answered() -> None:
    gated = Gated(StubDescriber())
    with served(gated) as server, ThreadPoolExecutor(3) as clients:
        first = clients.submit(server.regions, SMALL)
        _until(lambda: gated.begun == 1)
        body = json.dumps({"image": data_url(SMALL)}).encode()
        for stream in (False, True):
            with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT_S) as leaving:
                sent = body if not stream else body[:-1] + b', "stream": true}'
                head = "POST /v1/regions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                leaving.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
                server.wait_for("waiting", 1 + stream)
        staying = clients.submit(server.regions, SMALL)
        server.wait_for("waiting", 3)
        gated.gate.set()
        assert first.result(timeout=LIMIT_S).status_code == staying.result(timeout=LIMIT_S).status_code == 200
        assert server.count("cancelled_total") == 2 and server.count("batched_requests_total") == 2
        assert 'status="499"' in server.get("/metrics").text


def test_failure_of_the_model_is_told_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def say(_: Any, region: Any, request: Any) -> BranchAnswer:
        if request.question == "fail":
            raise RuntimeError("a secret of this machine")
        return BranchAnswer("good", finish_reason="end")

    with served(StubDescriber(say)) as server:
        for answer in (server.chat(SMALL, None, "fail"), server.regions(SMALL, None, "fail", stream=True)):
            assert answer.status_code == 500 and "RuntimeError" in _error(answer)["message"]
            assert "secret" not in answer.text
        assert server.regions(SMALL).json()["records"][0]["answers"] == {"region": "good"}
        assert server.count("failures_total") == 2 and server.get("/health").status_code == 200
    assert "a secret of this machine" in caplog.text


def test_queue_and_time_have_ends() -> None:
    gated = Gated(StubDescriber())
    with (
        served(gated, limits=Limits(requests=2, seconds=0.5, client_seconds=0.2)) as server,
        ThreadPoolExecutor(2) as clients,
    ):
        waiting = [clients.submit(server.regions, SMALL) for _ in range(2)]
        _until(lambda: gated.begun == 1)
        _until(lambda: server.count("waiting") + server.count("running") == 2)
        full = server.regions(SMALL)
        assert full.status_code == 429 and full.headers["retry-after"] == "1"
        assert [answer.result(timeout=LIMIT_S).status_code for answer in waiting] == [504, 504]
        gated.gate.set()
        with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT_S) as slow:
            slow.sendall(b"POST /v1/regions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        assert server.regions(SMALL).status_code == 200


def test_client_that_is_slow_to_begin_or_to_read_is_let_go() -> None:
    long = StubDescriber(lambda *_: BranchAnswer("x" * 20_000_000, finish_reason="end"))
    with served(long, limits=Limits(client_seconds=0.5)) as server:

        def connected(sent: bytes) -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT_S)
            connection.sendall(sent)
            return connection

        with connected(b"") as silent:
            assert silent.recv(1) == b""
        with connected(b"GET /health HTTP/1.1\r\n") as slow, pytest.raises(OSError):
            for _ in range(300):  # a header a tenth of a second, for half a minute
                slow.sendall(b"X: y\r\n")
                time.sleep(0.1)
        with connected(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") as later:
            assert later.recv(1000).startswith(b"HTTP/1.1 200")
            with pytest.raises(OSError):
                for _ in range(300):
                    later.sendall(b"G")
                    time.sleep(0.1)
        body = json.dumps({"image": data_url(SMALL)}).encode()
        head = b"POST /v1/regions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
        with connected(head + str(len(body)).encode() + b"\r\n\r\n" + body):
            _until(lambda: server.count("answers_total") == 1)
            _until(lambda: len(server.server.server_state.connections) == 1)  # that of this client
        assert len(server.regions(SMALL).content) > 20_000_000, "whoever reads gets all of it"


def test_connections_have_an_end() -> None:
    with served(StubDescriber(), limits=Limits(connections=4)) as server:
        assert server.get("/health").status_code == 200
        others = [socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT_S) for _ in range(4)]
        assert others[-1].recv(100).startswith(b"HTTP/1.1 503")
        assert server.get("/health").status_code == 200, "who was there is answered"
        for other in others:
            other.close()
        _until(lambda: len(server.server.server_state.connections) == 1)
        with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT_S) as again:
            again.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert again.recv(100).startswith(b"HTTP/1.1 200")


def test_stop_finishes_what_is_running() -> None:
    gated = Gated(StubDescriber())
    with served(gated) as server, ThreadPoolExecutor(2) as clients:
        running = clients.submit(server.regions, SMALL)
        _until(lambda: gated.begun == 1)
        waiting = clients.submit(server.chat, SMALL, None)
        server.wait_for("waiting", 1)
        server.server.should_exit = True
        time.sleep(0.3)
        assert server.thread.is_alive()
        gated.gate.set()
        assert running.result(timeout=LIMIT_S).status_code == waiting.result(timeout=LIMIT_S).status_code == 200
        server.thread.join(10)
        assert not server.thread.is_alive()


# --- the command -----------------------------------------------------------------------------------------------------


def test_command_builds_the_server_that_its_options_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.testclient import TestClient

    kept: list[Any] = []
    monkeypatch.setattr("finecaption_hf.serving.app.run_server", lambda app, *rest: kept.extend([app, *rest]))
    monkeypatch.setenv("TOKEN", "secret")
    options = ["--name", "mine", "--port", "0", "--token-env", "TOKEN", "--max-regions", "1", "--max-seconds", "7"]
    result = CliRunner().invoke(command, ["serve", "--model", "pixels", *options])
    assert result.exit_code == 0, result.output
    app, host, port, limits, _ = kept
    assert (host, port, limits.seconds, limits.connections) == ("127.0.0.1", 0, 7.0, 512)
    with TestClient(app, headers={"authorization": "Bearer secret"}) as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "mine"
        body = {"image": data_url(SMALL), "regions": [None]}
        assert client.post("/v1/regions", json={**body, "questions": "color"}).status_code == 200
        assert client.post("/v1/regions", json={**body, "regions": [None, None]}).status_code == 413
    empty = CliRunner().invoke(command, ["serve", "--model", "pixels", "--token-env", "NO_SUCH_TOKEN"])
    assert empty.exit_code == 2 and "this variable is empty" in empty.output


def test_regions_of_a_request_need_no_server() -> None:
    """vLLM's plugin reads them the same way."""
    code = "import sys, finecaption_hf.serving.regions; assert not {'fastapi', 'vllm', 'pydantic'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
