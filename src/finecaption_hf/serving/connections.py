"""What uvicorn does not bound: how many connections there are, and how slowly a client may begin or read."""

import asyncio
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import Limits

_FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


def uvicorn_config(app: Any, host: str, port: int, limits: Limits) -> uvicorn.Config:
    """How an app of `build_server` is served, with bounded connections."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=partial(BoundedConnection, limits),
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(limits.seconds) + 5,
    )


class BoundedConnection(H11Protocol):
    """A connection that is closed when there are too many, or when its client takes too long to send a request's
    headers or to read what was sent to it."""

    def __init__(self, limits: Limits, **options: Any) -> None:
        super().__init__(**options)
        self._limits = limits
        self._begun: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            transport.write(_FULL)
            transport.close()
        else:
            self._expect_headers()

    def data_received(self, data: bytes) -> None:
        if self._begun is None and not self._is_answering:
            self._expect_headers()
        super().data_received(data)
        if self._is_answering:
            _cancel(self._begun)
            self._begun = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self._limits.client_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        _cancel(self._stalled)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._begun)
        _cancel(self._stalled)
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        self._begun = self.loop.call_later(self._limits.client_seconds, self.transport.close)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
