"""Between the network and the app: no request may make the server fetch an address, and no page may call elsewhere."""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY_BYTES = 20_000_000
"""Of a request that is no upload; masks are sent as run lengths."""

_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'"
)
# A drive letter of Windows is no scheme.
_SCHEME = r"(?![A-Za-z]:[\\/])[^/]*:|//|\\\\"
_ADDRESS = re.compile(_SCHEME)
_ADDRESS_IN_PATH = re.compile(rf"/proxy=|/file[=/](?:{_SCHEME})")
_ONLY_UPLOADS = "Files are taken from uploads only, not from addresses."


class Guard:
    """ASGI middleware.

    Gradio downloads what a request names as a file with an address, before a component sees the value; asked to show
    such a file, it looks up its host. Such requests are refused, and those that are too long. Pages get a policy that
    lets browsers load from the app only.
    """

    def __init__(self, app: Callable[[Any, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), (b"content-security-policy", _POLICY.encode())]
                message = {**message, "headers": [*headers, (b"referrer-policy", b"no-referrer")]}
            await send(message)

        if _ADDRESS_IN_PATH.search(scope["path"]):
            await _refuse(send_with_policy, 403, _ONLY_UPLOADS)
            return
        headers = dict(scope["headers"])
        if scope["method"] != "POST" or headers.get(b"content-type", b"").startswith(b"multipart/"):
            await self.app(scope, receive, send_with_policy)
            return
        body, is_whole = bytearray(), False
        while not is_whole:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            is_whole = not message.get("more_body", False)
            if len(body) > MAX_BODY_BYTES:
                await _refuse(send_with_policy, 413, f"A request has at most {MAX_BODY_BYTES} bytes.")
                return
        if _names_address(bytes(body)):
            await _refuse(send_with_policy, 422, _ONLY_UPLOADS)
            return
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, replay, send_with_policy)


async def _refuse(send: Send, status: int, reason: str) -> None:
    content = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _names_address(body: bytes) -> bool:
    """Whether some object in a JSON body has a `path` that is no path of this machine."""
    if b"path" not in body and b"\\u" not in body:
        return False
    try:
        left = [json.loads(body)]
    except (ValueError, RecursionError):
        return False  # gradio refuses it
    while left:
        value = left.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and _ADDRESS.match(path):
                return True
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(entry for entry in value if isinstance(entry, dict | list))
    return False
