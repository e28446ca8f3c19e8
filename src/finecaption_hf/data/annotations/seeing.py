"""A look at a file or folder that is cheap whatever its size, by which formats are recognised."""

import os
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..json_stream import JsonStream
from ..walking import folders_below
from .base import Seen

_MAX_NAMES = 2000
_MAX_DEPTH = 3
_HEAD_BYTES = 4096
# Keys after a longer list are not looked for; every known format shows itself before.
_MAX_SKIPPED_BYTES = 2**22
_MAX_KEYS = 64


def see(path: Path) -> Seen:
    """What can be seen of a file or folder.

    Raises:
        DataError: If there is none, or it cannot be read.
    """
    try:
        if path.is_dir():
            return Seen(path, tuple(islice(_names(path), _MAX_NAMES)))
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise DataError(str(path), f"it cannot be read ({error.strerror}).") from error
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return Seen(path, head=head, json=_beginning(path) if text[:1] in (b"{", b"[") else None)


def _names(folder: Path) -> Any:
    for place, folders, files in folders_below(folder):
        base = os.path.relpath(place, folder)
        if base != "." and base.count(os.sep) + 2 >= _MAX_DEPTH:
            folders.clear()
        for name in sorted(files):
            if not name.startswith("."):
                yield name if base == "." else f"{base}/{name}".replace(os.sep, "/")


def _beginning(path: Path) -> Any:
    """What the JSON of a file begins with; what is broken later is found by who reads it."""
    found: dict[str, Any] = {}
    try:
        with open(path, "rb") as file:
            stream = JsonStream(file, str(path))
            if stream.peek() == "[":
                return [*islice(stream.elements(), 1)]
            for key in stream.names():
                if stream.peek() == "[":
                    found[key] = []
                    start = file.tell()
                    for element in stream.elements():
                        found[key] = found[key] or [element]
                        if file.tell() - start > _MAX_SKIPPED_BYTES:
                            return found
                else:
                    found[key] = stream.value()
                if len(found) >= _MAX_KEYS:
                    break
    except DataError:
        pass
    return found
