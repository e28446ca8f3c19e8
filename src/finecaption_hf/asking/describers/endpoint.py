"""Models behind an OpenAI-compatible endpoint, asked about regions by the openai client."""

import asyncio
import base64
import email.utils
import importlib.util
import io
import json
import os
import time
import urllib.parse
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from PIL import Image

from ... import install_hint
from ...masks_finecaption import RegionMask
from ...prompts_finecaption import BranchUpdate, FineCaptionError
from .referral import Marked, Referral
from .referring import Job, ReferringDescriber, describe_error
from .templates import PromptTemplates

if TYPE_CHECKING:  # of the extra `evaluation`
    import httpx2
    import openai

_MAX_ANSWER_BYTES = 16 * 2**20
_MAX_WAIT_S = 120.0  # as long as the client waits at most when a server says when to come back
_GIVE_UP = 8  # questions in a row without a connection, each tried as often as is allowed


class EndpointError(FineCaptionError, RuntimeError):
    """The endpoint answers no request (the key is wrong, nothing is left to pay with, the server is gone), so that
    going on makes no sense; what was answered before is kept."""


class EndpointDescriber(ReferringDescriber):
    """Answers of a model behind `POST {base_url}/chat/completions`.

    Several requests run at once, answers come in the order of the questions. What fails for good becomes an error of
    its question; time-outs, broken connections, malformed answers, HTTP 408, 409, 429 and 5xx are tried again by the
    client first, after the time that the server asks for, or after half a second that doubles up to eight.

    Args:
        model: as the endpoint calls it.
        referral: how the region is pointed out; there is no mask input, so neither `"mask"` nor `"filled_box"`.
        templates: what is asked.
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
        concurrency: requests at once.

    Attributes:
        served: names that the endpoint gave the model in its answers, with their numbers.
        response_formats: for questions whose answers have to have a form, what is sent as `response_format`.

    Raises:
        ImportError: If openai is not installed.
        DescriberError: If the model cannot be referred to in this way.
        ValueError: If a setting makes no sense, or the variable of the key is not set.
    """

    decodes = ("max_new_tokens", "temperature", "top_p", "seed")  # OpenAI's interface has no more

    def __init__(
        self,
        model: str,
        referral: Referral,
        templates: PromptTemplates | None = None,
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
        attempts: int = 8,
        concurrency: int = 4,
    ) -> None:
        if importlib.util.find_spec("openai") is None:
            raise ImportError(f"Endpoints are asked by openai, which is not installed. {install_hint('evaluation')}.")
        super().__init__(name or model, referral, templates, box_format)
        parts = urllib.parse.urlsplit(base_url)
        address = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url is {address!r}. Give an address such as https://host/v1.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                f"base_url holds more than an address ({address} ...). Give the key in an environment variable, by "
                "api_key_env."
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
        self.response_formats: dict[str, dict[str, Any]] = {}
        self._base_url = base_url
        self._max_side, self._image_format = max_side, image_format
        defaults: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": max_new_tokens}
        self._says_format = "response_format" in (body or {})
        self._body = {key: value for key, value in {**defaults, **(body or {})}.items() if value is not None}
        self._timeout, self._attempts, self._concurrency = timeout_s, attempts, concurrency
        self._pause_until = 0.0  # no question is sent before this time: a server that is busy means all of them
        self._unreached = 0
        self._encoded: tuple[Marked | None, str] = None, ""  # the questions about a region share its picture
        self.settings = {
            **self.settings,
            "model": model,
            "base_url": base_url,
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
        from anyio.from_thread import start_blocking_portal

        client, slots = self._client(), asyncio.Semaphore(self._concurrency)
        running: deque[Future[BranchUpdate]] = deque()
        with start_blocking_portal(name="endpoint") as portal:
            try:
                for job in jobs:
                    running.append(portal.start_task_soon(self._ask, client, slots, job))
                    if len(running) > 2 * self._concurrency:  # pictures of the others are not marked yet
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()
            finally:
                for future in running:
                    future.cancel()
                portal.call(client.close)

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

    def _body_of(self, job: Job) -> bytes:
        """What is sent to ask a question."""
        if self._encoded[0] is not job.marked:
            buffer = io.BytesIO()
            job.marked.image.save(buffer, self._image_format, quality=95)
            data = base64.b64encode(buffer.getvalue()).decode()
            self._encoded = job.marked, f"data:image/{self._image_format};base64,{data}"
        picture = {"type": "image_url", "image_url": {"url": self._encoded[1]}}
        messages: list[dict[str, Any]] = [{"role": "user", "content": [picture, {"type": "text", "text": job.text}]}]
        if self._templates.system is not None:
            messages.insert(0, {"role": "system", "content": self._templates.system})
        body, decoding = {**self._body, "messages": messages}, job.decoding
        if not self._says_format and (wanted := self.response_formats.get(str(job.request.question))):
            body["response_format"] = wanted
        if "max_new_tokens" in decoding:
            limit = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
            body[limit] = decoding.pop("max_new_tokens")
        if "seed" in decoding:
            decoding["seed"] %= 2**31  # what servers take
        # Half a surrogate pair, which the client's own encoder refuses, becomes an escape here.
        return json.dumps({**body, **decoding}).encode()

    def _client(self) -> "openai.AsyncOpenAI":
        import openai

        http = openai.DefaultAsyncHttpxClient(
            follow_redirects=False,  # one would carry the key to another host, and turn a POST into a GET
            event_hooks={"request": [self._wait], "response": [self._receive]},
        )
        return openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=self._base_url,
            timeout=self._timeout,
            max_retries=self._attempts - 1,
            default_headers={"Accept-Encoding": "identity"},
            http_client=http,
        )

    async def _ask(
        self, client: "openai.AsyncOpenAI", slots: asyncio.Semaphore, job: Job | BranchUpdate
    ) -> BranchUpdate:
        import httpx2
        import openai

        if isinstance(job, BranchUpdate):
            return job
        # Said for each request, since the client adds what it finds in the environment to what is said once.
        headers = {"Authorization": f"Bearer {self._key}" if self._key else openai.Omit()}
        async with slots:
            try:
                content = self._body_of(job)
            except Exception as error:
                return job.failed(describe_error(error))
            try:
                response = await client.post(
                    "/chat/completions", content=content, cast_to=httpx2.Response, options={"headers": headers}
                )
            except openai.APIError as error:
                return job.failed(self._reason(error))
        self._unreached = 0
        text, reason = response.extensions["told"]
        return job.answered(text) if reason is None else job.failed(reason)

    def _reason(self, error: Any) -> str:
        """What an error of the client says.

        Raises:
            EndpointError: If it is the same for all questions.
        """
        import httpx2
        import openai

        cause = error.__cause__ or error
        unreached = False
        if isinstance(error, openai.APIStatusError):
            reason = describe_error(error)
            if " - " not in reason:  # the client tells only messages of OpenAI's form
                reason = f"{reason} - {_start(error.response.text)}".removesuffix(" - ")
            if error.status_code == 401 or _is_spent(error.response):
                raise self._end(f"answers nothing with this key ({reason}). Mend that and run the same again.")
            wait = _asked_wait(error.response)
            if wait > _MAX_WAIT_S:
                raise self._end(f"asks to wait for {wait:g} s ({reason}). Run the same again after that.")
        elif isinstance(error, openai.APITimeoutError):
            reason = f"TimeOut: no answer within {self._timeout:g} s"
        else:
            reason, unreached = describe_error(cause), not isinstance(cause, httpx2.DecodingError)
        self._unreached = self._unreached + 1 if unreached else 0
        if self._unreached >= _GIVE_UP:  # each would wait for all of its attempts
            raise self._end(
                f"could not be reached for {_GIVE_UP} questions in a row; the last said {reason}. Run the same again "
                "when it answers, with retry_failed."
            )
        attempts = int(error.request.headers.get("x-stainless-retry-count", 0)) + 1
        return self._clean(f"{reason} (after {attempts} attempts)" if attempts > 1 else reason)

    async def _wait(self, request: "httpx2.Request") -> None:
        """Before each attempt of the client: wait where a server has said so to another question."""
        while (left := self._pause_until - time.monotonic()) > 0:
            await asyncio.sleep(left)

    async def _receive(self, response: "httpx2.Response") -> None:
        """After each attempt of the client: read what came, however slowly it drips, up to a deadline and a size. What
        is raised as an error of httpx2 is tried again."""
        import httpx2

        if "Content-Encoding" in response.headers:
            raise httpx2.DecodingError("the answer is compressed, which was not asked for")
        stream, content = response.stream, bytearray()
        deadline = time.monotonic() + self._timeout
        async for part in stream:
            content += part
            if len(content) > _MAX_ANSWER_BYTES:
                raise httpx2.DecodingError(f"the answer is larger than {_MAX_ANSWER_BYTES} bytes")
            if time.monotonic() > deadline:
                raise httpx2.ReadTimeout("the answer drips")
        await stream.aclose()
        response.stream = httpx2.ByteStream(bytes(content))
        await response.aread()
        if response.is_success:
            response.extensions["told"] = self._read(response)
            return
        wait = _asked_wait(response)
        if wait > _MAX_WAIT_S or _is_spent(response):
            response.headers["x-should-retry"] = "false"
        else:
            self._pause_until = max(self._pause_until, time.monotonic() + wait)

    def _read(self, response: "httpx2.Response") -> tuple[str, str | None]:
        import httpx2

        try:
            answer = response.json()
            choice = answer["choices"][0]
            message = choice["message"]
            content, refusal, reason = message.get("content"), message.get("refusal"), choice.get("finish_reason")
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
            raise httpx2.DecodingError(f"there is no message in {_start(response.text)}") from error
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
            content = "".join(part for part in parts if isinstance(part, str)) if parts else None
        if refusal:
            return "", self._clean(f"Refused: {_start(str(refusal))}")
        if reason == "content_filter":
            return "", "Refused: the endpoint's filter withheld the answer"
        if not isinstance(content, str):
            raise httpx2.DecodingError(f"the message has no text: {_start(response.text)}")
        if not content.strip() and reason == "length":
            return "", "NoAnswer: all tokens went into reasoning; give a larger max_new_tokens"
        served = answer.get("model")
        if isinstance(served, str):
            self.served[served] += 1
        return content, None

    def _end(self, reason: str) -> EndpointError:
        return EndpointError(self._clean(f"{self._base_url} {reason}"))

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _asked_wait(response: "httpx2.Response") -> float:
    """Seconds that a busy server asks to wait, as a number or as a date; 0 if it does not."""
    value = response.headers.get("Retry-After", "") if response.status_code in (429, 503) else ""
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return 0.0


def _is_spent(response: "httpx2.Response") -> bool:
    return response.status_code == 429 and "insufficient_quota" in response.text


def _start(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:197]}..."
