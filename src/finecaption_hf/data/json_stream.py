"""JSON files of any size, one element at a time, parsed by the standard library.

An element is parsed in C as soon as all of it is in memory; nesting, lengths and numbers of hostile files are bounded.
ijson 3.6 was tried: its fast backend turns half a surrogate pair into "?", refuses whole numbers of more than 64 bits,
and takes all memory where arrays are nested 100,000 deep.
"""

import codecs
import gzip
import json
import os
import re
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from .errors import DataError

MAX_ELEMENT_BYTES = 2**26
"""A longer line or element (64 MiB) is no description of an image."""

_CHUNK_BYTES = 2**18
_SPACE = " \t\n\r"
# An element that ends at most this far before the end of what was read may go on after it: "tru", "-", "\ud83".
_MARGIN = 16


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def parse(text: str) -> Any:
    """A JSON text.

    Raises:
        ValueError: If it is none, holds NaN or Infinity, or is nested too deeply.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


class _Unpacked:
    """What is in a packed file, from its start; what is damaged ends in a `DataError`."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path

    def read(self, size: int = -1) -> bytes:
        return bytes(self._try(self._file.read, size))

    def readline(self, size: int = -1) -> bytes:
        return bytes(self._try(self._file.readline, size))

    def seek(self, offset: int) -> int:
        return int(self._try(self._file.seek, offset))

    def tell(self) -> int:
        return int(self._file.tell())

    def __enter__(self) -> "_Unpacked":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _try(self, method: Callable[[int], Any], number: int) -> Any:
        try:
            return method(number)
        except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
            raise DataError(str(self._path), f"it is packed, and damaged ({error}). Get or pack it anew.") from error


def open_json(path: str | os.PathLike[str]) -> BinaryIO:
    """A JSON file, also one packed with gzip, or alone in a .zip; nothing is unpacked to disk.

    Raises:
        DataError: If a .zip holds none or several, or is damaged.
    """
    place = Path(path)
    if not is_packed(place):
        return open(place, "rb")
    if _start(place).startswith(b"\x1f\x8b"):
        return cast(BinaryIO, _Unpacked(gzip.open(place, "rb"), place))
    try:
        archive = zipfile.ZipFile(place)
        names = [name for name in archive.namelist() if re.fullmatch(r"(?!__MACOSX/)(.*/)?[^./][^/]*\.jsonl?", name)]
        if len(names) != 1:
            raise DataError(str(place), f"this .zip holds {len(names)} JSON files, one is needed. Unpack it.")
        return cast(BinaryIO, _Unpacked(archive.open(names[0]), place))
    except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DataError(str(place), f"this .zip cannot be read ({error}).") from error


def is_packed(path: Path) -> bool:
    """Whether a file is one of gzip or a .zip, by how it begins."""
    return _start(path).startswith((b"\x1f\x8b", b"PK\x03\x04"))


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(4)


def json_lines(path: str | os.PathLike[str], max_bytes: int = MAX_ELEMENT_BYTES) -> Iterator[tuple[int, int, int, Any]]:
    """The lines of a JSONL file that are not blank.

    Yields:
        Line number (from 1), offset and length in bytes, and the parsed line, or a `DataError` in its place.
    """
    name = os.fspath(path)
    offset = 0
    with open_json(path) as file:
        number = 0
        while line := file.readline(max_bytes + 1):
            number += 1
            length = len(line)
            if length > max_bytes:
                while (rest := file.readline(_CHUNK_BYTES)) and not rest.endswith(b"\n"):
                    length += len(rest)
                length += len(rest)
                yield number, offset, length, DataError(f"{name}:{number}", f"the line has {length} bytes, too many.")
            elif line.strip():
                yield number, offset, length, parse_line(line, f"{name}:{number}", first=number == 1)
            offset += length


def parse_line(line: bytes, where: str, first: bool) -> Any:
    """One line of JSONL, or a `DataError` in its place; before the `first` there may be a byte order mark."""
    try:
        return parse(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        return DataError(where, f"the line is no UTF-8 ({error.reason} at byte {error.start + 1}).")
    except ValueError as error:
        return DataError(where, f"the line is no JSON ({error}). One object in each line is needed.")


class LinesByNumber:
    """The lines of a JSONL file by number, of which only the places are kept. Safe in processes that were forked."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._numbers, self._offsets, self._lengths = array("q"), array("q"), array("q")

    def add(self, number: int, offset: int, length: int) -> None:
        """Keep a place that `json_lines` gave."""
        for values, value in ((self._numbers, number), (self._offsets, offset), (self._lengths, length)):
            values.append(value)

    def read(self, index: int) -> tuple[int, Any]:
        """Number in the file (from 1) and value of the line that was added as number `index`, or a `DataError`."""
        number, length = self._numbers[index], self._lengths[index]
        if length > MAX_ELEMENT_BYTES:
            return number, DataError(f"{self.path}:{number}", f"the line has {length} bytes, too many.")
        # Opened each time (some microseconds): a handle would be shared by forked workers, and its position with it.
        with open(self.path, "rb") as file:
            file.seek(self._offsets[index])
            return number, parse_line(file.read(length), f"{self.path}:{number}", first=number == 1)


class JsonStream:
    """Walks through one JSON text without ever holding more than one element of it.

    Every method raises `DataError` where the text is broken: what comes after cannot be told apart any more.
    """

    def __init__(self, file: BinaryIO, name: str, chunk_bytes: int = _CHUNK_BYTES) -> None:
        self._file = file
        self._name = name
        self._chunk_bytes = chunk_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._read = 0  # bytes so far
        self._ended = False
        self._counted, self._counted_bytes = 0, 0  # a place in the text, and the bytes of the file before it

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._more()

    def position(self) -> int:
        """The bytes of the file so far; after `peek`, those before what comes next."""
        self._count(self._at)
        return self._counted_bytes

    def _count(self, stop: int) -> None:
        passed = self._text[self._counted : stop]
        self._counted_bytes += len(passed) if passed.isascii() else len(passed.encode())
        self._counted = stop

    def value(self) -> Any:
        """Parse the next value."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError as error:
                raise self._broken("it is nested too deeply") from error
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self._text) - _MARGIN or _is_open_string(self._text, error.pos)
                if self._ended or not is_cut:
                    raise self._broken(error.msg) from error
            except ValueError as error:  # a constant, or a number of thousands of digits
                raise self._broken(str(error)) from error
            else:
                # A number at the end of the text may go on: "1" may become "12", and "1." or "1e-" "1.5" or "1e-5".
                rest = self._text[end : end + _MARGIN]
                if self._ended or (rest and rest[0] not in ".eE") or len(rest) == _MARGIN:
                    self._at = end
                    return value
            if len(self._text) - self._at > MAX_ELEMENT_BYTES:
                raise self._broken(f"an element has more than {MAX_ELEMENT_BYTES} bytes")
            self._more()

    def skip(self) -> None:
        """Pass over the next value, whatever its size, with checks only where it ends."""
        opened = 0
        while True:
            mark = self.peek()
            if mark in ("[", "{"):
                opened += 1
                self._at += 1
            elif mark in ("]", "}") and opened:
                opened -= 1
                self._at += 1
            elif mark in (",", ":") and opened:
                self._at += 1
            elif mark:
                self.value()
            else:
                raise self._broken("the file ends too early")
            if not opened:
                return

    def elements(self, on_element: Callable[[], Any] | None = None) -> Iterator[Any]:
        """The elements of the array that comes next; `on_element` reads each of them (by default `value`)."""
        read = on_element or self.value
        for _ in self._parts("[", "]"):
            yield read()

    def names(self) -> Iterator[str]:
        """The keys of the object that comes next. After each its value has to be read, or skipped."""
        for _ in self._parts("{", "}"):
            if self.peek() != '"':
                raise self._broken("a key in quotes is needed")
            key = self.value()
            if self.peek() != ":":
                raise self._broken("a colon is needed after a key")
            self._at += 1
            yield key

    def end(self) -> None:
        """Check that nothing follows."""
        if self.peek():
            raise self._broken("something follows the end")

    def _parts(self, start: str, stop: str) -> Iterator[None]:
        if self.peek() != start:
            raise self._broken(f"{start} is needed")
        self._at += 1
        if self.peek() == stop:
            self._at += 1
            return
        while True:
            yield
            mark = self.peek()
            if mark not in (stop, ","):
                raise self._broken(f"a comma or {stop} is needed" if mark else "the file ends too early")
            self._at += 1
            if mark == stop:
                return
            if self.peek() == stop:
                raise self._broken(f"{stop} follows a comma")

    def _more(self) -> None:
        # A long element is parsed anew each time: reading ever more at once keeps that linear.
        data = self._file.read(max(self._chunk_bytes, len(self._text) - self._at, len(codecs.BOM_UTF8)))
        if not self._read:
            self._counted_bytes = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
        self._read += len(data)
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise self._broken(f"no UTF-8: {error.reason}") from error
        self._count(self._at)
        self._text, self._at, self._counted = self._text[self._at :] + text, 0, 0
        self._ended = not data

    def _broken(self, reason: str) -> DataError:
        return DataError(
            self._name,
            f"the JSON is broken before byte {self._read} ({reason}); nothing after it can be read. Mend the file.",
        )


def _is_open_string(text: str, start: int) -> bool:
    """Whether a string begins there that does not end in the text."""
    if text[start] != '"':
        return False
    end = start
    while (end := text.find('"', end + 1)) >= 0:
        first = end
        while text[first - 1] == "\\":
            first -= 1
        if (end - first) % 2 == 0:  # not a quote that a backslash escapes
            return False
    return True
