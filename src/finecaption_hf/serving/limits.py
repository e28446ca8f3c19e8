"""What a request may ask of a server, and how it is told that it asked for more."""

from dataclasses import dataclass

from ..prompts_finecaption import FineCaptionError

LEFT = 499
"""The status that proxies write down for a client that went away."""


class RequestError(FineCaptionError, ValueError):
    """A request that is not answered.

    Args:
        message: what arrived, what was needed, what to do; for whoever sent it.
        status: of HTTP.
        code: the reason in one word.
        param: the field of the request that is meant.
    """

    def __init__(
        self, message: str, status: int = 400, code: str = "invalid_request", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


@dataclass(frozen=True)
class Limits:
    """The most that a server takes.

    Args:
        body_bytes: of a request's body (413), and of a picture that is fetched.
        pixels: of a picture or a mask (413).
        regions: of a request (413).
        region_pixels: regions times the picture's pixels, which is the memory that masks take (413).
        answers: regions times questions, or choices, of a request (413).
        new_tokens: of an answer (400).
        requests: that are read, wait or are answered at the same time (429).
        seconds: until a request is answered (504).
        client_seconds: until a request's headers have arrived, then until its body has (408), and until a client has
            read what waits for it.
        connections: that are open at the same time (503).
    """

    body_bytes: int = 20_000_000
    pixels: int = 40_000_000
    regions: int = 256
    region_pixels: int = 400_000_000
    answers: int = 1024
    new_tokens: int = 512
    requests: int = 128
    seconds: float = 120.0
    client_seconds: float = 30.0
    connections: int = 512
