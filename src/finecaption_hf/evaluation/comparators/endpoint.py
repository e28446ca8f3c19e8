"""Models behind an OpenAI-compatible endpoint, asked about regions."""

import base64
import email.utils
import io
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from email.message import Message
from http.client import HTTPException
from typing import Any

from PIL import Image

from ...branches_finecaption import BranchUpdate
from ...errors_finecaption import FineCaptionError
from ...masks_finecaption import RegionMask
from ..errors import EvaluationError
from .prompts import Prompts
from .referral import BOX_FORMATS, WITH_MASK, Marked, Referral
from .referring import Job, ReferringDescriber, describe_error

_MAX_ANSWER_BYTES = 16 * 2**20
_RETRIED = (408, 409, 425, 429)  # besides 5xx
_GIVE_UP = 8  # questions in a row without a connection, each tried as often as is allowed


class EndpointError(FineCaptionError, RuntimeError):
    """The endpoint answers no request (the key is wrong, nothing is left to pay with, the server is gone), so that
    going on makes no sense; what was answered before is kept."""


class _Failure(Exception):
    """A request that failed. `retry`: it may succeed later; `wait`: seconds that the server asks for."""

    def __init__(self, kind: str, message: str, *, retry: bool = False, wait: float | None = None) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.retry = retry
        self.wait = wait


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host, and turn a POST into a GET."""

    def redirect_request(self, *arguments: Any, **kwargs: Any) -> None:
        return None


class EndpointDescriber(ReferringDescriber):
    """Answers of a model behind `POST {base_url}/chat/completions`.

    Several requests run at once, answers come in the order of the questions. What fails for good becomes an error of
    its question; time-outs, broken connections, malformed answers, HTTP 408, 409, 425, 429 and 5xx are tried again
    first, after the time that the server asks for, or after a time that doubles.

    Args:
        model: as the endpoint calls it.
        referral: how the region is pointed out; there is no mask input, so neither `"mask"` nor `"filled_box"`.
        prompts: what is asked.
        base_url: up to the version, such as `https://api.openai.com/v1`; without user, password or query.
        api_key_env: the environment variable that holds the key; `None` sends none. The key goes nowhere else: not into
            settings, messages or files.
        name: for reports; `None` means `model`.
        box_format: a name of `BOX_FORMATS`.
        max_side: larger pictures are made smaller, to this many pixels on the longer side, after the region is marked;
            boxes in the text count in the pixels that are sent.
        image_format: `"jpeg"` (quality 95) or `"png"`, larger and exact.
        body: more of the request's body, such as `{seed: 0}`; an entry of `None` takes a default out: `temperature` 0
            and `max_tokens`.
        max_new_tokens: the longest answer.
        timeout_s: of one attempt, for each wait on the network; a whole attempt may take twice as long.
        attempts: how often a question is sent before its error counts.
        backoff_s: the first wait between attempts.
        max_wait_s: the longest wait between attempts, also where the server asks for more.
        concurrency: requests at once.

    Attributes:
        served: names that the endpoint gave the model in its answers, with their numbers.

    Raises:
        EvaluationError: If the model cannot be referred to in this way.
        ValueError: If a setting makes no sense, or the variable of the key is not set.
    """

    def __init__(
        self,
        model: str,
        referral: Referral,
        prompts: Prompts | None = None,
        *,
        base_url: str = "https://api.openai.com/v1",
        api_key_env: str | None = "OPENAI_API_KEY",
        name: str | None = None,
        box_format: str = "pixels",
        max_side: int = 2048,
        image_format: str = "jpeg",
        body: Mapping[str, Any] | None = None,
        max_new_tokens: int = 128,
        timeout_s: float = 120.0,
        attempts: int = 6,
        backoff_s: float = 1.0,
        max_wait_s: float = 120.0,
        concurrency: int = 4,
    ) -> None:
        if referral.kind in WITH_MASK:
            raise EvaluationError(
                f"An endpoint takes no mask, so {model} cannot be referred to by {referral.kind!r}. Give a referral in "
                "the picture or in the text, such as 'contour_drawn' or 'box_text'."
            )
        super().__init__(name or model, referral, prompts, box_format)
        if BOX_FORMATS[box_format].units == "seen":
            raise EvaluationError(
                f"The box format {box_format!r} cannot be used with an endpoint, which does not tell what it makes of "
                "a picture. Give 'pixels', or one with shares, such as 'qwen3_vl'."
            )
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url is {_without_secrets(base_url)!r}. Give an address such as https://host/v1.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                f"base_url holds more than an address ({_without_secrets(base_url)} ...). Give the key in an "
                "environment variable, by api_key_env."
            )
        if image_format not in ("jpeg", "png"):
            raise ValueError(f"image_format is {image_format!r}. Give 'jpeg' or 'png'.")
        for label, value in {
            "max_side": max_side,
            "max_new_tokens": max_new_tokens,
            "timeout_s": timeout_s,
            "attempts": attempts,
            "concurrency": concurrency,
        }.items():
            if not value > 0:
                raise ValueError(f"{label} is {value}. Give a number above 0.")
        self._key = ""
        if api_key_env is not None:
            self._key = os.environ.get(api_key_env, "").strip()
            if not self._key:
                raise ValueError(
                    f"The environment variable {api_key_env}, which should hold the key of {base_url}, is not set. "
                    "Set it, or give api_key_env: null for an endpoint without keys."
                )
        self.served: Counter[str] = Counter()
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._max_side, self._image_format = max_side, image_format
        defaults: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": max_new_tokens}
        self._body = {key: value for key, value in {**defaults, **(body or {})}.items() if value is not None}
        self._timeout, self._attempts, self._concurrency = timeout_s, attempts, concurrency
        self._backoff, self._max_wait = backoff_s, max_wait_s
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._pause = _Pause()
        self._unreached = 0
        self.settings = {
            "model": model,
            "base_url": base_url,
            "referral": referral.settings,
            "box_format": box_format,
            "prompts": self._prompts.settings,
            "decoding": self._body,
            "max_side": max_side,
            "image_format": image_format,
        }

    def _answer(self, jobs: Iterator[Job | BranchUpdate]) -> Iterator[BranchUpdate]:
        """The answers, in the order of the questions.

        Raises:
            EndpointError: If the endpoint refuses the key, has no quota left, or cannot be reached for several
                questions in a row; the answers before that are given first.
        """
        stop = threading.Event()
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="endpoint")
        running: deque[Future[BranchUpdate]] = deque()
        marked: Marked | None = None
        picture = ""
        try:
            while True:
                # A few questions more than run at once: pictures of the others are not encoded yet.
                while len(running) < 2 * self._concurrency and (job := next(jobs, None)) is not None:
                    if isinstance(job, Job):
                        try:
                            if job.marked is not marked:
                                marked, picture = job.marked, self._encode(job.marked.image)
                        except Exception as error:
                            job = job.failed(describe_error(error))
                    if isinstance(job, Job):
                        running.append(pool.submit(self._ask, job, picture, stop))
                    else:
                        running.append(Future())
                        running[-1].set_result(job)
                if not running:
                    return
                yield running.popleft().result()
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _mark(self, picture: Image.Image, region: RegionMask) -> Marked:
        return self._shrink(super()._mark(picture, region))

    def _shrink(self, marked: Marked) -> Marked:
        width, height = marked.image.size
        factor = self._max_side / max(width, height)
        if factor >= 1:
            return marked
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        box = marked.box_xyxy
        if box is not None:
            # Whole pixels around the region: rounding to the nearest could leave nothing of a thin one.
            box = (
                box[0] * size[0] // width,
                box[1] * size[1] // height,
                -(-box[2] * size[0] // width),
                -(-box[3] * size[1] // height),
            )
        return Marked(marked.image.resize(size, Image.Resampling.LANCZOS), None, box)

    def _encode(self, image: Image.Image) -> str:
        buffer = io.BytesIO()
        image.save(buffer, self._image_format, **({"quality": 95} if self._image_format == "jpeg" else {}))
        return f"data:image/{self._image_format};base64,{base64.b64encode(buffer.getvalue()).decode()}"

    def _ask(self, job: Job, picture: str, stop: threading.Event) -> BranchUpdate:
        messages: list[dict[str, Any]] = [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": job.text}],
            }
        ]
        if self._prompts.system is not None:
            messages.insert(0, {"role": "system", "content": self._prompts.system})
        data = json.dumps({**self._body, "messages": messages}).encode()
        for attempt in range(1, self._attempts + 1):
            self._pause.wait(stop)
            if stop.is_set():
                return job.failed("Stopped: the run ended before this question was asked.")
            try:
                answer = self._read_answer(self._post(data))
                self._unreached = 0
                return job.answered(answer)
            except _Failure as failure:
                if not failure.retry or attempt == self._attempts:
                    self._count(failure)
                    tries = f" (after {attempt} attempts)" if attempt > 1 else ""
                    return job.failed(self._clean(f"{failure}{tries}"))
                # A random share keeps requests that failed together from coming back together.
                wait = self._backoff * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
                if failure.wait is not None:
                    self._pause.until(min(failure.wait, self._max_wait))
                    wait = max(wait, failure.wait)
                stop.wait(min(wait, self._max_wait))
        raise AssertionError("unreachable: the last attempt returns")

    def _count(self, failure: _Failure) -> None:
        """End the run where no question gets through any more: each would wait for all of its attempts."""
        # Threads may count at once and miss one: then it ends a question later.
        self._unreached = self._unreached + 1 if failure.kind == "NoConnection" else 0
        if self._unreached >= _GIVE_UP:
            raise EndpointError(
                self._clean(
                    f"{self._url} could not be reached for {_GIVE_UP} questions in a row; the last said {failure}. "
                )
                + "Run the same again when it answers, with retry_failed."
            )

    def _post(self, data: bytes) -> Any:
        """Send one request; the answer's JSON."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, data=data, headers=headers, method="POST")
        deadline = time.monotonic() + 2 * self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                content = _read(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                self._raise_status(error, deadline)
        except TimeoutError as error:
            raise _Failure("TimeOut", f"no answer within {self._timeout:g} s", retry=True) from error
        except (OSError, HTTPException) as error:
            if isinstance(getattr(error, "reason", None), TimeoutError):
                raise _Failure("TimeOut", f"no answer within {self._timeout:g} s", retry=True) from error
            raise _Failure("NoConnection", describe_error(error), retry=True) from error
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _Failure("MalformedAnswer", f"the answer is no JSON: {_start(content)}", retry=True) from error

    def _raise_status(self, error: urllib.error.HTTPError, deadline: float) -> None:
        try:
            message, code = _message(_read(error, deadline))
        except (OSError, HTTPException):
            message, code = "", None
        text = f"HTTP {error.code} {error.reason}{': ' + message if message else ''}"
        if error.code == 401 or code == "insufficient_quota":
            raise EndpointError(
                self._clean(f"{self._url} answers nothing with this key ({text}). Mend that and run the same again.")
            )
        retry = error.code in _RETRIED or error.code >= 500
        wait = _retry_after(error.headers) if retry else None
        raise _Failure("RateLimited" if error.code == 429 else "HTTPStatus", text, retry=retry, wait=wait)

    def _read_answer(self, answer: Any) -> str:
        try:
            choice = answer["choices"][0]
            message = choice["message"]
            content, reason = message.get("content"), choice.get("finish_reason")
            refusal = message.get("refusal")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise _Failure(
                "MalformedAnswer", f"there is no message in {_start(json.dumps(answer))}", retry=True
            ) from error
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
            content = "".join(part for part in parts if isinstance(part, str)) if parts else None
        if refusal:
            raise _Failure("Refused", _start(str(refusal)))
        if reason == "content_filter":
            raise _Failure("Refused", "the endpoint's filter withheld the answer")
        if not isinstance(content, str):
            raise _Failure("MalformedAnswer", f"the message has no text: {_start(json.dumps(message))}", retry=True)
        if not content.strip() and reason == "length":
            raise _Failure("NoAnswer", "all tokens went into reasoning; give a larger max_new_tokens")
        served = answer.get("model")
        if isinstance(served, str):
            self.served[served] += 1
        return content.strip()

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class _Pause:
    """A time before which no thread sends: where a server says when to come back, it means all of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._time = 0.0

    def until(self, seconds: float) -> None:
        with self._lock:
            self._time = max(self._time, time.monotonic() + seconds)

    def wait(self, stop: threading.Event) -> None:
        while (left := self._time - time.monotonic()) > 0 and not stop.is_set():
            stop.wait(left)


def _read(response: Any, deadline: float) -> bytes:
    """All of a body, however slowly it drips, up to a deadline and a size."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if size > _MAX_ANSWER_BYTES:
            raise _Failure("MalformedAnswer", f"the answer is larger than {_MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(parts)


def _retry_after(headers: Message) -> float | None:
    """Seconds that a server asks to wait: a number or a date."""
    value = (headers.get("Retry-After") or "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None


def _message(content: bytes) -> tuple[str, Any]:
    """What an error's body says, and its code, where there is one."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return _start(content), None
    error = body.get("error", body) if isinstance(body, dict) else body
    message, code = (error.get("message"), error.get("code")) if isinstance(error, dict) else (error, None)
    return _start(message if isinstance(message, str) else json.dumps(body)), code


def _start(text: str | bytes) -> str:
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:197]}..."


def _without_secrets(url: str) -> str:
    """An address without user, password and query."""
    try:
        parts = urllib.parse.urlsplit(url)
        return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        return "no address"
