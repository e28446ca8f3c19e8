"""Where the elements of lists lie in a large JSON file, and which of them belong together.

Lists lie apart in files of COCO's family, and in any order. Of each element its place and a code of the id it is joined
by are kept, 24 bytes; elements are parsed when their turn comes.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..json_stream import MAX_ELEMENT_BYTES, JsonStream, parse

MAX_IN_MEMORY = 2**29
"""Larger files (512 MiB) are read one element at a time: slower, in memory that does not grow with their content."""

WHOLE_FILE = ""
"""The name of the list in a file that is one list."""

_Ints = NDArray[np.int64]
_NO_ID = np.iinfo(np.int64).min
# Below are the codes of ids that are text, from there on numbers.
_LEAST_NUMBER = -(2**62)


@dataclass(frozen=True)
class ElementList:
    """The elements of a list in their order.

    Attributes:
        offsets, lengths: int64 of shape (N,), in bytes.
        codes: int64 of shape (N,): the same for the same id, whether it is written as a number or as text.
    """

    offsets: _Ints
    lengths: _Ints
    codes: _Ints

    def __len__(self) -> int:
        return len(self.offsets)

    def text(self, file: BinaryIO, number: int) -> bytes:
        """Element `number` as it stands in the file."""
        file.seek(int(self.offsets[number]))
        return file.read(int(self.lengths[number]))

    def read(self, file: BinaryIO, number: int, where: str) -> dict[str, Any]:
        """Element `number`.

        Args:
            file: the file that was indexed, opened without a buffer.
            where: its place, for messages.

        Raises:
            DataError: If it is no object or too long, or the file is not what it was.
        """
        if (length := int(self.lengths[number])) > MAX_ELEMENT_BYTES:
            raise DataError(where, f"it has {length} bytes, more than {MAX_ELEMENT_BYTES}.")
        value = parse_element(self.text(file, number), where)
        if not isinstance(value, dict):
            raise DataError(where, "an object is needed.")
        return value


def parse_element(data: bytes, where: str) -> Any:
    """JSON, fast.

    Raises:
        DataError: If it is none.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):  # such as half a surrogate pair, which is JSON
        try:
            return parse(data.decode("utf-8-sig"))
        except ValueError as error:
            raise DataError(where, f"this is no JSON ({error}). Did the file change?") from error


@dataclass(frozen=True)
class Groups:
    """Which elements of a list belong to which of another, by their codes.

    Attributes:
        order: positions in the list, those of one owner together and in their order.
        starts: of shape (number of owners + 1,): where those of each owner start in `order`.
        orphans: positions of those without an owner.
        is_repeated: bool of shape (number of owners,): those whose id an owner before them has.
    """

    order: _Ints
    starts: _Ints
    orphans: _Ints
    is_repeated: NDArray[np.bool_]

    def of(self, owner: int) -> list[int]:
        return self.order[self.starts[owner] : self.starts[owner + 1]].tolist()

    def count(self, owner: int) -> int:
        return int(self.starts[owner + 1] - self.starts[owner])


def group(codes: _Ints, owners: _Ints) -> Groups:
    """Join codes with those of their owners; of owners with the same code the first one has them."""
    by_code = np.argsort(owners, kind="stable")
    sorted_owners = owners[by_code]
    is_repeated = np.zeros(owners.shape, np.bool_)
    is_repeated[by_code[1:]] = (sorted_owners[1:] == sorted_owners[:-1]) & (sorted_owners[1:] != _NO_ID)
    found = np.searchsorted(sorted_owners, codes)
    found[found == len(owners)] = 0
    owner = np.full(codes.shape, -1, np.int64)
    if len(owners):
        owner = np.where((sorted_owners[found] == codes) & (codes != _NO_ID), by_code[found], -1)
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(len(owners) + 1))
    return Groups(order, starts, order[: starts[0]], is_repeated)


def index_lists(
    path: Path, lists: Mapping[str, str], others: Iterable[str] = ()
) -> tuple[dict[str, ElementList], dict[str, Any]]:
    """Find the elements of lists in a file.

    Args:
        path: a file that is an object with lists, or one list (`WHOLE_FILE`).
        lists: the names of lists, and the key in each element that it is joined by.
        others: keys of the object whose values are small and wanted.

    Returns:
        The lists that are there, and the other values.

    Raises:
        DataError: If the file is no JSON.
    """
    codes = _Codes()
    if path.stat().st_size <= MAX_IN_MEMORY:
        data = path.read_bytes()
        try:
            return _indexed_at_once(data, lists, tuple(others), codes)
        except (msgspec.MsgspecError, RecursionError):
            del data  # what is unusual in it, or wrong, is told apart below
    return _indexed_in_turn(path, lists, frozenset(others), codes)


class _Codes:
    """Ids -> whole numbers of 64 bits, equal where ids are: `5`, `5.0` and `"5"` are one id."""

    def __init__(self) -> None:
        self._texts: dict[str, int] = {}

    def of(self, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str):
            digits = value.removeprefix("-")
            if len(value) < 20 and digits.isascii() and digits.isdecimal() and str(int(value)) == value:
                value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            if _LEAST_NUMBER <= value < 2**63:
                return value
            value = str(value)
        if isinstance(value, str):
            return self._texts.setdefault(value, _LEAST_NUMBER - 1 - len(self._texts))
        return _NO_ID

    def of_all(self, values: list[Any]) -> _Ints:
        if set(map(type, values)) <= {int}:
            try:
                codes = np.array(values, np.int64)
            except OverflowError:
                pass
            else:
                if not codes.size or codes.min() >= _LEAST_NUMBER:
                    return codes
        return np.fromiter(map(self.of, values), np.int64, len(values))


def _indexed_at_once(
    data: bytes, lists: Mapping[str, str], others: tuple[str, ...], codes: _Codes
) -> tuple[dict[str, ElementList], dict[str, Any]]:
    """All of a file by msgspec, which passes over what is not asked for without making objects of it."""
    found = _decoded(data, dict.fromkeys(lists, list[msgspec.Raw]), others)
    places = {name: _places(data, found.pop(name)) for name in lists if name in found}
    of_id = {
        name: list[msgspec.defstruct("Element", [(key, int | str | None, None)], gc=False)]  # type: ignore[misc]
        for name, key in lists.items()
    }
    elements = _decoded(data, of_id)
    return {
        name: ElementList(*place, codes.of_all([getattr(each, lists[name]) for each in elements[name]]))
        for name, place in places.items()
    }, found


def _decoded(data: bytes, kinds: Mapping[str, Any], others: tuple[str, ...] = ()) -> dict[str, Any]:
    if WHOLE_FILE in kinds:
        return {WHOLE_FILE: msgspec.json.decode(data, type=kinds[WHOLE_FILE])}
    fields = [(name, kind | None, None) for name, kind in [*kinds.items(), *dict.fromkeys(others, Any).items()]]
    whole = msgspec.json.decode(data, type=msgspec.defstruct("Whole", fields))
    return {name: value for name, *_ in fields if (value := getattr(whole, name)) is not None}


def _places(data: bytes, elements: list[msgspec.Raw]) -> tuple[_Ints, _Ints]:
    """Offsets and lengths of the elements of a list, objects all of them, in the file they are views of."""
    offsets, lengths = (
        np.empty(len(elements), np.int64),
        np.array([len(memoryview(each)) for each in elements], np.int64),
    )
    if not elements:
        return offsets, lengths
    base = np.frombuffer(data, np.uint8).ctypes.data
    at = np.frombuffer(elements[0], np.uint8).ctypes.data - base
    find = data.find
    for number, length in enumerate(lengths.tolist()):
        # Between two elements there are only white space and a comma.
        offsets[number] = at = find(b"{", at)
        at += length
    return offsets, lengths


def _indexed_in_turn(
    path: Path, lists: Mapping[str, str], others: frozenset[str], codes: _Codes
) -> tuple[dict[str, ElementList], dict[str, Any]]:
    found: dict[str, ElementList] = {}
    values: dict[str, Any] = {}
    with open(path, "rb") as file:
        stream = JsonStream(file, path.name)
        if WHOLE_FILE in lists:
            found[WHOLE_FILE] = _walked(stream, lists[WHOLE_FILE], codes)
        else:
            for key in stream.names():
                if key in lists and stream.peek() == "[":
                    found[key] = _walked(stream, lists[key], codes)
                elif key in others:
                    values[key] = stream.value()
                else:
                    stream.skip()
        stream.end()
    return found, values


def _walked(stream: JsonStream, key: str, codes: _Codes) -> ElementList:
    offsets, lengths, ids = array("q"), array("q"), array("q")

    def place() -> None:
        stream.peek()
        offsets.append(stream.position())
        value = stream.value()
        lengths.append(stream.position() - offsets[-1])
        ids.append(codes.of(value.get(key)) if isinstance(value, dict) else _NO_ID)

    for _ in stream.elements(place):
        pass
    return ElementList(
        *(np.frombuffer(each, np.int64) if each else np.zeros(0, np.int64) for each in (offsets, lengths, ids))
    )


def spliced(source: BinaryIO, target: BinaryIO, changes: Iterator[tuple[int, int, bytes]]) -> None:
    """Copy a file with some parts of it replaced: (offset, length, what stands there instead), by their offsets."""
    done = 0
    for offset, length, new in changes:
        _copy(source, target, done, offset)
        target.write(new)
        done = offset + length
    _copy(source, target, done, None)


def _copy(source: BinaryIO, target: BinaryIO, start: int, stop: int | None) -> None:
    source.seek(start)
    while stop is None or start < stop:
        block = source.read(2**20 if stop is None else min(2**20, stop - start))
        if not block:
            break
        target.write(block)
        start += len(block)


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode("ascii")
