"""`finecaption serve` in a thread of the tests, on loopback, and what clients send to it."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from PIL import Image

from finecaption_hf.asking import Describer

for _needed in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(_needed, reason=f"{_needed} (the extra serve) is not installed")

LIMIT_S = 120
MODEL = "fc"


class Served(httpx2.Client):
    """A client of a running server.

    Attributes:
        server: uvicorn's; `should_exit` ends it as a signal would.
        thread: in which it runs.
    """

    def __init__(self, server: Any, thread: threading.Thread, port: int) -> None:
        super().__init__(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        self.server, self.thread, self.port = server, thread, port

    def regions(self, picture: Image.Image, regions: Any = None, questions: Any = "region", **more: Any) -> Any:
        body = {"image": data_url(picture), "regions": regions, "questions": questions, **more}
        return self.post("/v1/regions", json=body)

    def chat(self, picture: Image.Image, region: Any, question: str = "region", **more: Any) -> Any:
        return self.post("/v1/chat/completions", json=chat_body(picture, region, question, **more))

    def count(self, name: str) -> float:
        """A metric without labels."""
        lines = self.get("/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"finecaption_{name} "))

    def wait_for(self, name: str, value: float) -> None:
        deadline = time.monotonic() + 30
        while self.count(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.count(name)}, not {value}"
            time.sleep(0.01)


@contextmanager
def served(describer: Describer, **options: Any) -> Iterator[Served]:
    """A server over a describer; see `build_server` for the options."""
    import uvicorn

    from finecaption_hf.serving.app import build_server
    from finecaption_hf.serving.connections import uvicorn_config
    from finecaption_hf.serving.limits import Limits

    app = build_server(describer, MODEL, **options)
    server = uvicorn.Server(uvicorn_config(app, "127.0.0.1", 0, options.get("limits") or Limits()))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    with Served(server, thread, server.servers[0].sockets[0].getsockname()[1]) as client:
        yield client
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def data_url(picture: Image.Image, kind: str = "PNG", **options: Any) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def chat_body(picture: Image.Image, region: Any, question: str = "region", **more: Any) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "image_url", "image_url": {"url": data_url(picture)}}
    if region is not None:
        part["mask"] = region
    message = {"role": "user", "content": [part, {"type": "text", "text": question}]}
    return {"model": MODEL, "messages": [message], **more}
