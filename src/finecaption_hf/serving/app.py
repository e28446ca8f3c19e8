"""The server: OpenAI's chat completions, and `/v1/regions`, over one describer."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from .. import __version__
from ..asking import Describer, FineCaptionDescriber
from ..prompts_finecaption import FineCaptionError
from .batching import Batcher, Job
from .chat import ChatRequest, Completion, RegionsRequest, raise_error
from .door import Door, Metrics, error_body
from .limits import Limits, RequestError
from .regions import RegionReader, read_picture

_READ_AT_ONCE = 4  # pictures are large once they are decoded


def build_server(
    describer: Describer,
    name: str,
    *,
    token: str | None = None,
    limits: Limits | None = None,
    segmenter: Any = None,
    hosts: Collection[str] = (),
) -> Any:
    """The server as an ASGI app, not yet started.

    Args:
        describer: as `asking.load_describer` returns it; from the start on, the app's own.
        name: of the model, as clients have to name it.
        token: that clients have to send (`Authorization: Bearer ..`); `None` lets everyone in.
        limits: on requests; `None` means those of `Limits`.
        segmenter (*optional*): a `finecaption_hf.segmentation.Segmenter`, for regions given by points.
        hosts: from which pictures may be fetched, such as `images.example.com` or `localhost:8080`; none by default.
    """
    limits = limits or Limits()
    batcher = Batcher(describer)
    metrics = Metrics(batcher)
    server = _Server(describer, name, batcher, limits, segmenter, hosts)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await asyncio.to_thread(batcher.close, limits.seconds)

    app = FastAPI(title="FineCaption", version=__version__, lifespan=life, openapi_url=None)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await server.chat(body, request)

    @app.post("/v1/regions")
    async def regions(body: RegionsRequest, request: Request) -> Response:
        return await server.regions(body, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [server.model]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        server.check_model(model)
        return server.model

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse(
            {"status": "ok"} if batcher.is_alive else {"status": "ending"}, 200 if batcher.is_alive else 503
        )

    @app.get("/metrics")
    async def counted() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        return JSONResponse(error_body(error), error.status)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        return JSONResponse(error_body(_malformed(error)), 400)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        return JSONResponse(error_body(RequestError(str(error.detail), error.status_code)), error.status_code)

    app.add_middleware(Door, token=token, limits=limits, metrics=metrics)
    return app


class _Server:
    def __init__(
        self,
        describer: Describer,
        name: str,
        batcher: Batcher,
        limits: Limits,
        segmenter: Any,
        hosts: Collection[str],
    ) -> None:
        self._describer, self._name, self._batcher, self._limits = describer, name, batcher, limits
        self._segmenter, self._hosts = segmenter, frozenset(hosts)
        self._reading = asyncio.Semaphore(_READ_AT_ONCE)
        self._longest: int | None = getattr(describer, "max_new_tokens", None)
        self.model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "finecaption"}

    def check_model(self, name: str) -> None:
        """
        Raises:
            RequestError: If it is another one than is served.
        """
        if name != self._name:
            raise RequestError(
                f"There is no model {name!r} here, only {self._name!r}.", 404, "model_not_found", "model"
            )

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """See `ChatRequest`."""
        self.check_model(body.model)
        tokenizer = None
        if isinstance(self._describer, FineCaptionDescriber):
            tokenizer = self._describer.processor.tokenizer
        elif body.logprobs:
            raise RequestError("This model does not say how likely its tokens are.", param="logprobs")

        def read() -> Job:
            asked = body.asked(self._describer.questions, self._limits, self._longest)
            url, region = body.picture()
            picture, alpha = read_picture(url, self._limits, self._hosts)
            if region is not None and alpha is not None:
                raise RequestError("There is a region in the picture's alpha channel and another beside it. Send one.")
            reference = alpha if region is None else self._reader(picture).reference(region)
            return Job(picture, [reference], [asked], log_probs=bool(body.logprobs), partial=bool(body.stream))

        job = await self._read(read)
        (asked,) = job.regions
        if asked.error is not None:
            raise RequestError(asked.error["message"], param="messages")
        self._batcher.submit(job)
        completion = Completion(body, asked, tokenizer)
        updates = job.updates(self._limits.seconds)
        if not body.stream:
            async with _watched(job, request):
                async for _ in updates:
                    pass
            for answer in asked.answers.values():
                raise_error(answer)
            return JSONResponse(completion.whole(job.prompt_tokens))

        def last() -> Iterator[Any]:
            yield from completion.pieces()
            if (usage := completion.last(job.prompt_tokens)) is not None:
                yield usage
            yield "[DONE]"

        async with _watched(job, request):
            await anext(updates, None)  # what fails before the first news has a status of its own
        for answer in list(asked.answers.values()):
            raise_error(answer)
        return _stream(updates, completion.begin(), completion.pieces, last, is_sse=True)

    async def regions(self, body: RegionsRequest, request: Request) -> Response:
        """See `RegionsRequest`."""
        if body.model is not None:
            self.check_model(body.model)
        if body.regions is not None and len(body.regions) > self._limits.regions:
            raise RequestError(
                f"{len(body.regions)} regions arrived, more than {self._limits.regions}. Send several requests.",
                413,
                "too_many_regions",
                "regions",
            )

        def read() -> Job:
            number = 1 if body.regions is None else len(body.regions)
            asked = body.asked(number, self._describer.questions, self._limits, self._longest)
            picture, alpha = read_picture(body.image, self._limits, self._hosts)
            if body.regions and alpha is not None:
                raise RequestError("There is a region in the picture's alpha channel, and regions beside it. Send one.")
            if number * picture.width * picture.height > self._limits.region_pixels:
                raise RequestError(
                    f"{number} regions of {picture.width} x {picture.height} pixels are more than "
                    f"{self._limits.region_pixels} pixels. Send several requests.",
                    413,
                    "too_many_pixels",
                )
            if body.regions is None:
                references: list[Any] = [alpha]
            else:
                reader = self._reader(picture)
                references = [_or_error(reader, region) for region in body.regions]
            return Job(picture, references, asked, log_probs=body.log_probs)

        job = await self._read(read)
        self._batcher.submit(job)
        updates = job.updates(self._limits.seconds)
        if not body.stream:
            async with _watched(job, request):
                async for _ in updates:
                    pass
            return JSONResponse({"records": [region.record(body.log_probs) for region in job.regions]})
        left = list(job.regions)

        def finished() -> Iterator[Any]:
            for region in list(left):
                if region.error is not None or all(map(region.is_answered, range(len(region.requests)))):
                    left.remove(region)
                    yield region.record(body.log_probs)

        is_sse = "text/event-stream" in request.headers.get("accept", "")
        async with _watched(job, request):
            await anext(updates, None)  # what fails before the first news has a status of its own
        return _stream(updates, [], finished, finished, is_sse=is_sse)

    def _reader(self, picture: Any) -> RegionReader:
        return RegionReader(picture, self._limits, self._segmenter)

    async def _read(self, read: Callable[[], Job]) -> Job:
        def checked() -> Job:
            try:
                return read()
            except RequestError:
                raise
            except (FineCaptionError, ValueError) as error:
                raise RequestError(str(error)) from error

        async with self._reading:
            return await asyncio.to_thread(checked)


def _or_error(reader: RegionReader, region: Any) -> Any:
    try:
        return reader.reference(region)
    except FineCaptionError as error:
        return error


# --- answers that grow -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def _watched(job: Job, request: Request) -> AsyncIterator[None]:
    """Lets the job go once its client has left."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.leave()

    watching = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        watching.cancel()


def _stream(
    updates: AsyncIterator[None],
    first: list[Any],
    pieces: Callable[[], Iterator[Any]],
    last: Callable[[], Iterator[Any]],
    *,
    is_sse: bool,
) -> Response:
    def line(piece: Any) -> str:
        text = piece if isinstance(piece, str) else json.dumps(piece, ensure_ascii=False)
        return f"data: {text}\n\n" if is_sse else f"{text}\n"

    async def lines() -> AsyncIterator[str]:
        try:
            for piece in [*first, *pieces()]:
                yield line(piece)
            async for _ in updates:
                for piece in pieces():
                    yield line(piece)
            for piece in last():
                yield line(piece)
        except RequestError as error:  # the status was sent
            yield line(error_body(error))
        finally:
            await updates.aclose()  # type: ignore[attr-defined]

    return StreamingResponse(lines(), media_type="text/event-stream" if is_sse else "application/x-ndjson")


def _malformed(error: RequestValidationError) -> RequestError:
    """The first fault of a body, with the field's name."""
    first = error.errors()[0]
    where = ".".join(str(step) for step in first["loc"] if step != "body")
    if first["type"] == "extra_forbidden":
        return RequestError(f"{where!r} is not honoured by this server. Take it out.", code="not_honoured", param=where)
    return RequestError(f"{where or 'The body'}: {first['msg']}.", param=where or None)


def run_server(app: Any, host: str, port: int, limits: Limits, on_start: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; what is being answered then is finished first.

    Args:
        app: of `build_server`.
        host, port: where to listen; 0 is any free port.
        limits: as given to `build_server`; `seconds` is also how long to wait for the last answers.
        on_start: told the address.
    """
    import uvicorn

    from .connections import uvicorn_config

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                on_start(f"http://{host}:{self.servers[0].sockets[0].getsockname()[1]}")

    Server(uvicorn_config(app, host, port, limits)).run()
