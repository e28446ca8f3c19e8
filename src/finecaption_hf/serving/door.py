"""Between the network and the app: who may ask, how much arrives, and how long that takes; what is counted."""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily

from .batching import Batcher
from .limits import LEFT, Limits, RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_COUNTS = {
    "batches": "Batches that were answered.",
    "batched_requests": "Requests in them.",
    "pictures": "Pictures in them, equal ones of a batch once.",
    "regions": "Regions in them, equal ones of a picture once.",
    "answers": "Answers that were finished.",
    "tokens": "Tokens of these.",
    "cancelled": "Requests whose client left before their batch.",
    "failures": "Batches that the model failed on.",
}
ROUTES = ("/v1/chat/completions", "/v1/regions", "/v1/models", "/health", "/metrics")


class Metrics:
    """What is counted, in Prometheus' form.

    Args:
        batcher: whose counts these are.
    """

    def __init__(self, batcher: Batcher) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "finecaption_requests", "Requests, by route and status.", ("route", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "finecaption_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ("route",),
            registry=self._registry,
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
        )
        for name, text in (
            ("waiting", "Requests that wait for the next batch."),
            ("running", "Requests of this batch."),
        ):
            gauge = Gauge(f"finecaption_{name}", text, registry=self._registry)
            gauge.set_function(lambda name=name: getattr(batcher, name))
        self._batcher = batcher
        self._registry.register(self)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Called by the registry."""
        for name, text in _COUNTS.items():
            yield CounterMetricFamily(f"finecaption_{name}", text, self._batcher.counts[name])

    def text(self) -> bytes:
        return bytes(generate_latest(self._registry))


class Door:
    """ASGI middleware.

    Args:
        app: what is behind it.
        token: that requests must bear, all but those for `/health`; `None` lets everyone in.
        limits: on requests.
        metrics: where they are counted.
    """

    def __init__(self, app: Any, token: str | None, limits: Limits, metrics: Metrics) -> None:
        self._app, self._token, self._limits, self._metrics = app, token, limits, metrics
        self._inside = 0

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), LEFT

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._admit(scope, receive, noted)
        except RequestError as error:
            if error.status not in (408, LEFT):
                await _drain(receive, self._limits)
            await _refuse(noted, error)
        finally:
            route = scope["path"] if scope["path"] in ROUTES else "other"
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - start)

    async def _admit(self, scope: Any, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if self._token is not None and scope["path"] != "/health":
            given = headers.get(b"authorization", b"").partition(b" ")
            if given[0].lower() != b"bearer" or not hmac.compare_digest(given[2].strip(), self._token.encode()):
                raise RequestError("Send the header Authorization: Bearer TOKEN.", 401, "invalid_api_key")
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            raise self._too_long()
        if self._inside >= self._limits.requests:
            raise RequestError(
                f"{self._inside} requests are being answered, and no more are taken. Try again in a moment.",
                429,
                "too_many_requests",
            )
        self._inside += 1
        try:
            await self._app(scope, await self._with_body(receive), send)
        finally:
            self._inside -= 1

    async def _with_body(self, receive: Receive) -> Receive:
        """Read all of the body, in its time; what is received then begins with it."""
        body, is_whole = bytearray(), False
        deadline = time.monotonic() + self._limits.client_seconds
        while not is_whole:
            try:
                message = await asyncio.wait_for(receive(), max(deadline - time.monotonic(), 0))
            except asyncio.TimeoutError as error:
                raise RequestError(
                    f"The request did not arrive within {self._limits.client_seconds:g} seconds.", 408, "body_too_slow"
                ) from error
            if message["type"] != "http.request":
                raise RequestError("The client left.", LEFT, "left")
            body += message.get("body", b"")
            is_whole = not message.get("more_body", False)
            if len(body) > self._limits.body_bytes:
                raise self._too_long()
        first: Message | None = {"type": "http.request", "body": bytes(body), "more_body": False}
        del body

        async def replay() -> Message:
            nonlocal first
            if first is None:
                return await receive()
            message, first = first, None
            return message

        return replay

    def _too_long(self) -> RequestError:
        return RequestError(f"A request has at most {self._limits.body_bytes} bytes.", 413, "too_many_bytes")


async def _drain(receive: Receive, limits: Limits) -> None:
    """Let a client that is still sending come to its end, within limits: else it would not read why it is refused."""
    left, deadline = limits.body_bytes, time.monotonic() + 2
    while left > 0:
        try:
            message = await asyncio.wait_for(receive(), max(deadline - time.monotonic(), 0))
        except asyncio.TimeoutError:
            return
        left -= len(message.get("body", b""))
        if not message.get("more_body", False):
            return


def error_body(error: RequestError) -> dict[str, Any]:
    """An error as OpenAI's clients know it."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


async def _refuse(send: Send, error: RequestError) -> None:
    if error.status == LEFT:
        return
    content = json.dumps(error_body(error)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers += {
        401: [(b"www-authenticate", b"Bearer")],
        429: [(b"retry-after", b"1")],
        408: [(b"connection", b"close")],
    }.get(error.status, [])
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
