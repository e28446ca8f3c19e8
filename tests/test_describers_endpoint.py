"""The endpoint: a stub server that is slow, busy, wrong or gone; no question is lost, and no key is told."""

import base64
import email.utils
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import free_port
from describers import Request, Told, describe, unmarkable
from PIL import Image

from finecaption_hf.asking import DescriberError
from finecaption_hf.asking.describers import EndpointDescriber, EndpointError, PromptTemplates, Referral
from finecaption_hf.data.examples import Branch, Example, Region
from finecaption_hf.evaluation.predicting import run_predictions
from finecaption_hf.evaluation.predictions import read_predictions

KEY = "sk-secret-0123456789"


def answer(text: Any = "A cup.", **changes: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **changes.pop("message", {})}
    choice = {"index": 0, "message": message, "finish_reason": changes.pop("finish_reason", "stop")}
    return {"id": "1", "model": "stub-2026-01-01", "choices": [choice], **changes}


class Stub:
    """A server; `replies` are used up in the order of the requests, then `answer` with the question echoed.

    A reply is a status, a body (text or JSON) and headers, or a function that gets the handler.
    """

    def __init__(self) -> None:
        self.replies: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        self.delay: Callable[[str], float] = lambda question: 0.0
        self._lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                with stub._lock:
                    stub.at_once += 1
                    stub.most_at_once = max(stub.most_at_once, stub.at_once)
                    stub.requests.append({"path": self.path, **json.loads(content)})
                    stub.headers.append(self.headers)
                    stub.times.append(time.monotonic())
                    reply = stub.replies.pop(0) if stub.replies else None
                question = json.loads(content)["messages"][-1]["content"][1]["text"]
                time.sleep(stub.delay(question))
                with stub._lock:  # before the answer, upon which the client may ask again at once
                    stub.at_once -= 1
                try:
                    if callable(reply):
                        reply(self)
                        return
                    status, body, headers = reply or (200, answer(f"About: {question}"), {})
                    data = (body if isinstance(body, str) else json.dumps(body)).encode()
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(data)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # the client went away

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("STUB_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    # The client waits half a second before it asks again, then one, and so on.
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    server = Stub()
    yield server
    server.server.shutdown()
    server.server.server_close()


def describer(
    stub: Stub, referral: str = "crop", templates: PromptTemplates | None = None, **options: Any
) -> EndpointDescriber:
    defaults = {"base_url": stub.url, "api_key_env": "STUB_KEY", "timeout_s": 5, "attempts": 3}
    return EndpointDescriber("stub", Referral(referral, sentence=""), templates, **{**defaults, **options})


def request(*questions: str) -> Request:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    mask = np.zeros((60, 90), dtype=bool)
    mask[10:50, 20:70] = True
    return Request(image, mask, questions or ("What?",), (None,) * max(1, len(questions)))


def one(stub: Stub, **options: Any) -> tuple[str | None, str | None]:
    description = next(describe(describer(stub, **options), [request()]))
    return description.texts[0], (description.errors or (None,))[0]


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_request_has_picture_text_and_greedy_settings(stub: Stub) -> None:
    made = describer(
        stub, image_format="png", body={"seed": 7}, max_new_tokens=50, templates=PromptTemplates(system="Be brief.")
    )
    assert list(describe(made, [request()])) == [Told(("About: What?",), (None,))]
    sent = stub.requests[0]
    assert sent["path"] == "/v1/chat/completions"
    assert {name: sent[name] for name in ("model", "temperature", "max_tokens", "seed")} == {
        "model": "stub",
        "temperature": 0,
        "max_tokens": 50,
        "seed": 7,
    }
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    picture, text = sent["messages"][1]["content"]
    assert text == {"type": "text", "text": "What?"}
    prefix, _, data = picture["image_url"]["url"].partition(",")
    assert prefix == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (np.asarray(image) == np.asarray(request().image)[10:50, 20:70]).all()
    assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert made.served == {"stub-2026-01-01": 1}


def test_entry_of_the_body_can_be_taken_out_and_renamed(stub: Stub) -> None:
    one(stub, body={"max_tokens": None, "max_completion_tokens": 9, "temperature": None})
    assert "max_tokens" not in stub.requests[0] and "temperature" not in stub.requests[0]
    assert stub.requests[0]["max_completion_tokens"] == 9


def test_large_picture_is_made_smaller_and_its_box_with_it(stub: Stub) -> None:
    list(describe(describer(stub, "box_text", PromptTemplates(default="{box}"), max_side=45), [request()]))
    picture, text = stub.requests[0]["messages"][0]["content"]
    assert text["text"].startswith("[10, 5, 35, 25] ")
    assert "the image is 45 wide and 30 high" in text["text"]
    with Image.open(io.BytesIO(base64.b64decode(picture["image_url"]["url"].partition(",")[2]))) as image:
        assert (image.size, image.format) == ((45, 30), "JPEG")


def test_half_a_surrogate_pair_is_sent(stub: Stub) -> None:
    assert next(describe(describer(stub), [request("\ud83d?")])).texts == ("About: \ud83d?",)


def test_order_is_kept_and_no_more_than_allowed_run_at_once(stub: Stub) -> None:
    stub.delay = lambda question: 0.03 if question in ("Q0", "Q5") else 0.005
    asked = [request(f"Q{number}", f"R{number}") for number in range(8)]
    descriptions = list(describe(describer(stub, concurrency=3), asked))
    assert [description.texts for description in descriptions] == [
        (f"About: Q{number}", f"About: R{number}") for number in range(8)
    ]
    assert 1 < stub.most_at_once <= 3


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_failure_that_may_pass_is_tried_again_and_told_if_it_stays(status: int, stub: Stub) -> None:
    stub.replies = [(status, {"error": {"message": "busy"}}, {}), (status, "", {})]
    assert one(stub) == ("About: What?", None)
    assert len(stub.requests) == 3
    stub.replies = [(status, {"error": {"message": "slow down"}}, {})] * 3
    text, error = one(stub)
    assert text is None and error is not None
    assert error.endswith(f"Error: Error code: {status} - slow down (after 3 attempts)")


@pytest.mark.parametrize("body", [{"error": {"message": "no such model"}}, "no such model"], ids=["JSON", "text"])
@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_wrong_request_is_not_repeated(status: int, body: Any, stub: Stub) -> None:
    stub.replies = [(status, body, {})]
    text, error = one(stub)
    assert text is None and error is not None
    assert error.endswith(f"Error: Error code: {status} - no such model")
    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    "status, wait, least",
    [
        (429, lambda: "0.3", 0.3),
        # dates have whole seconds
        (503, lambda: email.utils.formatdate(time.time() + 2, usegmt=True), 0.9),
    ],
    ids=["seconds", "date"],
)
def test_server_says_when_to_come_back(status: int, wait: Callable[[], str], least: float, stub: Stub) -> None:
    stub.replies = [(status, "", {"Retry-After": wait()})]
    assert one(stub) == ("About: What?", None)
    assert stub.times[1] - stub.times[0] >= least


def test_server_that_asks_for_a_long_wait_ends_the_run_at_once(stub: Stub) -> None:
    stub.replies = [(429, "", {"Retry-After": "86400"})]
    with pytest.raises(EndpointError, match=r"asks to wait for 86400 s .*429.* Run the same again after that"):
        one(stub)
    assert len(stub.requests) == 1


def test_rate_limit_holds_all_questions_back(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two questions are under way when the limit is told to one of them; the other is answered after that only."""
    made = describer(stub, concurrency=2, timeout_s=60)
    second_is_there, limit_is_told = threading.Event(), threading.Event()
    receive, told = made._receive, []

    async def noted(response: Any) -> None:
        started = time.monotonic()
        await receive(response)
        if response.status_code == 429:
            told.append(started)
            limit_is_told.set()

    def in_turn(question: str) -> float:
        if question == stub.requests[0]["messages"][-1]["content"][1]["text"]:
            second_is_there.wait(30)
        else:
            second_is_there.set()
            limit_is_told.wait(30)
        return 0.0

    monkeypatch.setattr(made, "_receive", noted)
    stub.replies, stub.delay = [(429, "", {"Retry-After": "0.4"})], in_turn
    descriptions = list(describe(made, [request(f"Q{number}") for number in range(6)]))
    assert [description.texts[0] for description in descriptions] == [f"About: Q{number}" for number in range(6)]
    assert len(told) == 1
    later = [moment - told[0] for moment in stub.times if moment > told[0]]
    assert len(later) == len(stub.times) - 2 == 5
    assert min(later) >= 0.4


def test_server_that_never_answers_ends_in_a_time_out(stub: Stub) -> None:
    stub.delay = lambda question: 0.5
    assert one(stub, timeout_s=0.1, attempts=2) == (None, "TimeOut: no answer within 0.1 s (after 2 attempts)")
    assert len(stub.requests) == 2


def test_server_that_drips_ends_in_a_time_out(stub: Stub) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(40):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    stub.replies = [drip]
    started = time.monotonic()
    assert one(stub, timeout_s=0.2, attempts=1) == (None, "TimeOut: no answer within 0.2 s")
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}], ids=["plain", "compressed"])
def test_answer_of_any_size_is_read_up_to_a_bound(
    headers: dict[str, str], stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finecaption_hf.asking.describers.endpoint._MAX_ANSWER_BYTES", 10_000)
    stub.replies = [(200, answer("x" * 10_000), headers)] * 3
    text, error = one(stub)
    reason = "compressed, which was not asked for" if headers else "larger than 10000 bytes"
    assert text is None and error == f"DecodingError: the answer is {reason} (after 3 attempts)"
    assert stub.headers[0]["Accept-Encoding"] == "identity"


def _hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def _half(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    handler.close_connection = True


def _no_http(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"hello\r\n\r\n")
    handler.close_connection = True


@pytest.mark.parametrize(
    "reply",
    [
        _hang_up,
        _half,
        _no_http,
        (200, "<html>an error page</html>", {}),
        (200, "", {}),
        (200, "[" * 100_000, {}),
        (200, "[]", {}),
        (200, "null", {}),
        (200, {"choices": []}, {}),
        (200, {"choices": [{"message": None}]}, {}),
        (200, {"choices": [{"message": {"content": None}}]}, {}),
        (200, {"choices": [{"message": {"content": 3}}]}, {}),
        (200, {"choices": "text"}, {}),
        (200, {"error": {"message": "upstream"}}, {}),
    ],
    ids=lambda reply: getattr(reply, "__name__", None) or str(reply[1])[:40],
)
def test_malformed_answer_is_tried_again_then_an_error(reply: Any, stub: Stub) -> None:
    stub.replies = [reply]
    assert one(stub) == ("About: What?", None)
    stub.replies = [reply] * 3
    text, error = one(stub)
    assert text is None and error is not None
    assert error.split(":")[0] in ("DecodingError", "RemoteProtocolError", "ReadError")
    assert error.endswith("(after 3 attempts)") and len(error) < 400


def test_server_that_is_gone_ends_in_an_error(stub: Stub) -> None:
    port = free_port()
    text, error = one(stub, base_url=f"http://127.0.0.1:{port}/v1", attempts=2)
    assert text is None and error is not None and error.startswith("ConnectError: ")


def test_server_that_stays_away_ends_the_run_after_some_questions(stub: Stub) -> None:
    stub.replies = [None, *[_hang_up] * 100]
    made = describer(stub, concurrency=1, attempts=2)
    answered = describe(made, [request(f"Q{number}") for number in range(50)])
    assert next(answered).texts == ("About: Q0",)
    with pytest.raises(EndpointError, match=r"could not be reached for 8 questions in a row.*RemoteProtocolError"):
        list(answered)
    assert 1 + 8 * 2 <= len(stub.requests) <= 1 + 10 * 2


def test_single_broken_connections_do_not_end_the_run(stub: Stub) -> None:
    stub.replies = [reply for _ in range(12) for reply in (_hang_up, None)]
    made = describer(stub, concurrency=1, attempts=1)
    descriptions = list(describe(made, [request(f"Q{number}") for number in range(24)]))
    assert [description.texts[0] is None for description in descriptions] == [True, False] * 12


def test_malformed_answers_do_not_end_the_run(stub: Stub) -> None:
    stub.replies = [(200, "", {})] * 10
    descriptions = list(describe(describer(stub, attempts=1), [request(f"Q{number}") for number in range(10)]))
    assert {description.texts for description in descriptions} == {(None,)}


@pytest.mark.parametrize(
    "content, text",
    [([{"type": "text", "text": "A "}, {"type": "text", "text": "cup."}], "A cup."), ("  ", "")],
    ids=["in parts", "empty"],
)
def test_content_of_any_form_is_an_answer(content: Any, text: str, stub: Stub) -> None:
    stub.replies = [(200, answer(content), {})]
    assert one(stub) == (text, None)


@pytest.mark.parametrize(
    "reply, error",
    [
        (answer(None, message={"refusal": "I cannot."}), "Refused: I cannot."),
        (answer("A", finish_reason="content_filter"), "Refused: the endpoint's filter withheld the answer"),
        (answer("", finish_reason="length"), "NoAnswer: all tokens went into reasoning; give a larger max_new_tokens"),
    ],
)
def test_answer_that_was_withheld_is_an_error_and_not_repeated(reply: Any, error: str, stub: Stub) -> None:
    stub.replies = [(200, reply, {})]
    assert one(stub) == (None, error)
    assert len(stub.requests) == 1


def test_region_that_cannot_be_marked_loses_no_other(stub: Stub) -> None:
    broken = Request(request().image, {"box_xyxy": [3, 3, 4, 4]}, ("A?", "B?"), (None, None))
    descriptions = list(describe(unmarkable(describer(stub)), [request("Q0"), broken, request("Q1")]))
    assert [description.texts for description in descriptions] == [("About: Q0",), (None, None), ("About: Q1",)]
    assert descriptions[1].errors == ("ValueError: it cannot be marked",) * 2


# --- the key ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status, error",
    [
        (401, {"message": f"Incorrect API key provided: {KEY}"}),
        (429, {"message": "You exceeded your quota", "code": "insufficient_quota"}),
    ],
)
def test_refused_key_ends_the_run_without_telling_it(status: int, error: Any, stub: Stub) -> None:
    stub.replies = [None, (status, {"error": error}, {})]
    made = describe(describer(stub, concurrency=1), [request("Q0"), request("Q1"), request("Q2")])
    assert next(made).texts == ("About: Q0",)
    with pytest.raises(EndpointError, match="answers nothing with this key") as caught:
        list(made)
    assert KEY not in str(caught.value)


def test_key_is_in_no_setting_message_or_file(stub: Stub, tmp_path: Path) -> None:
    stub.replies = [(400, {"error": {"message": f"bad key {KEY}"}}, {})]
    made = describer(stub)
    path = run_predictions(made, examples(), tmp_path / "predictions.jsonl")
    assert len(stub.requests) == 4
    assert "bad key ***" in path.read_text()
    assert KEY not in path.read_text()
    assert KEY not in json.dumps(dict(made.settings)) + repr(made)


def test_endpoint_without_a_key_gets_none_from_the_environment(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: Bearer {KEY}")
    assert one(stub, api_key_env=None) == ("About: What?", None)
    assert one(stub) == ("About: What?", None)
    assert [headers["Authorization"] for headers in stub.headers] == [None, f"Bearer {KEY}"]


def test_redirect_does_not_carry_the_key_away(stub: Stub) -> None:
    stub.replies = [(307, "", {"Location": f"{stub.url}/elsewhere"}), (302, "", {"Location": f"{stub.url}/elsewhere"})]
    for _ in range(2):
        text, error = one(stub)
        assert text is None and error is not None and error.startswith("APIStatusError: Error code: 30")
    assert [sent["path"] for sent in stub.requests] == ["/v1/chat/completions"] * 2


def test_missing_key_is_told_before_anything_is_sent(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STUB_KEY")
    with pytest.raises(ValueError, match=r"environment variable STUB_KEY, .* is not set"):
        describer(stub)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"base_url": f"https://user:{KEY}@host/v1"}, r"more than an address \(https://host/v1"),
        ({"base_url": f"https://host/v1?key={KEY}"}, r"more than an address \(https://host/v1"),
        ({"base_url": "host/v1"}, "Give an address such as https://host/v1"),
        ({"base_url": "file:///etc/passwd"}, "Give an address such as"),
        ({"attempts": 0}, "attempts is 0"),
        ({"image_format": "gif"}, "image_format is 'gif'"),
        ({"box_format": "qwen2_5_vl"}, "cannot be used with stub, which does not tell"),
    ],
)
def test_setting_that_cannot_be_meant_says_why(options: dict[str, Any], message: str, stub: Stub) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        describer(stub, **options)
    assert KEY not in str(caught.value)


def test_endpoint_takes_no_mask(stub: Stub) -> None:
    with pytest.raises(DescriberError, match="takes no mask"):
        describer(stub, "mask")


def test_without_the_client_the_error_says_what_to_install(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'openai, which is not installed\. Run: pip install "\.\[evaluation\]"'):
        describer(stub)


# --- runs ------------------------------------------------------------------------------------------------------------


def examples() -> list[Example]:
    made = []
    for number in range(2):
        branches = tuple(Branch("A cup.", question=f"Q{number}{letter}") for letter in "ab")
        picture = Image.new("RGB", (40, 30), (10 * number, 50, 90))
        made.append(Example(picture, (Region({"box_xyxy": [5, 5, 30, 25]}, branches),), id=f"picture-{number}"))
    return made


def answers(path: Path) -> list[str | None]:
    return [prediction.prediction for prediction in read_predictions(path)[1]]


def test_run_that_was_ended_goes_on_where_it_was(stub: Stub, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    stub.replies = [None, None, None, (401, "", {})]
    with pytest.raises(EndpointError):
        run_predictions(describer(stub, concurrency=1), examples(), path)
    assert answers(path) == ["About: Q0a", "About: Q0b", "About: Q1a"]
    before = len(stub.requests)
    run_predictions(describer(stub, concurrency=2), examples(), path)
    assert answers(path) == ["About: Q0a", "About: Q0b", "About: Q1a", "About: Q1b"]
    assert len(stub.requests) - before == 1


def test_failed_questions_are_in_the_file_and_can_be_asked_again(stub: Stub, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    stub.replies = [None, (400, {"error": {"message": "too large"}}, {})]
    run_predictions(describer(stub, concurrency=1), examples(), path)
    header, predictions = read_predictions(path)
    assert answers(path) == ["About: Q0a", None, "About: Q1a", "About: Q1b"]
    assert predictions[1].error is not None and "too large" in predictions[1].error["message"]
    assert header.settings["base_url"] == stub.url
    run_predictions(describer(stub), examples(), path, retry_failed=True)
    assert answers(path)[1] == "About: Q0b"
    assert len(stub.requests) == 5


def test_question_that_dies_is_no_answer_but_raises_what_it_died_of(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    describing = describer(stub)
    monkeypatch.setattr(describing, "_read", lambda answer: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(describe(describing, [request()]))


def test_reader_that_goes_away_ends_the_requests(stub: Stub) -> None:
    made = describe(describer(stub, concurrency=1), [request(f"Q{number}") for number in range(20)])
    next(made)
    made.close()  # type: ignore[attr-defined]
    time.sleep(0.05)
    assert len(stub.requests) <= 4


def test_reader_that_goes_away_ends_the_waiting(stub: Stub) -> None:
    stub.replies = [None, (429, "", {"Retry-After": "60"})]
    made = describe(describer(stub, concurrency=1), [request(f"Q{number}") for number in range(4)])
    next(made)
    deadline = time.monotonic() + 5
    while len(stub.requests) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started = time.monotonic()
    made.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 5
    assert not any(thread.name.startswith("endpoint") for thread in threading.enumerate())
