"""The files of annotations: which lie in a folder, which picture they name, and new ones, whole or not at all."""

import os
import re
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DataError
from ..examples import as_id
from ..images import ImageStore
from ..json_stream import JsonStream, parse_line
from ..walking import folders_below
from .base import Seen
from .seeing import see

MAX_FILE_BYTES = 2**28
"""A longer file (256 MiB) is no description of one picture, even where the picture itself is in it."""

# So many files of a folder are looked at to tell what it holds; other tools' files may lie among them.
_MAX_LOOKS = 4
_MAX_FOLDERS = 200


def files_below(folder: Path, suffix: str) -> Iterator[Path]:
    """The files with a suffix in a folder and all folders in it, sorted by name, hidden ones left out."""
    for place, _, names in folders_below(folder):
        for name in sorted(names):
            if name.lower().endswith(suffix) and not name.startswith("."):
                yield Path(place, name)


def some_folders(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The first folders in a folder, itself among them, at any depth: relative places and sorted names of files.

    `Seen.names` ends after the first files: it may not get to what lies beside many pictures.
    """
    for place, _, names in islice(folders_below(folder), _MAX_FOLDERS):
        found = sorted(name for name in names if not name.startswith("."))
        yield os.path.relpath(place, folder).replace(os.sep, "/"), found


def looks(seen: Seen, suffix: str) -> Iterator[Seen]:
    """What can be seen of the first files with a suffix in a folder; of a file, itself."""
    if not seen.is_folder:
        yield seen
        return
    for name in [name for name in seen.names if name.lower().endswith(suffix)][:_MAX_LOOKS]:
        try:
            yield see(seen.path / name)
        except DataError:  # it is named where it is read
            continue


def read_file(path: Path, where: str) -> bytes:
    """The file of one picture's annotations.

    Raises:
        DataError: If it cannot be read or is too long.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DataError(where, f"it cannot be read ({error.strerror}).") from error
    if len(data) > MAX_FILE_BYTES:
        raise DataError(where, f"it has more than {MAX_FILE_BYTES} bytes, too many for one picture.")
    return data


class ElementsByNumber:
    """The elements of a list in a JSON file, of which only the places are kept.

    Safe in threads and in processes that were forked.

    Args:
        path, name: the file, and its name for messages.
        key: the list's name in the object that the file is; `None`: the file is a list, or an object, its only element.
        others: keys of the object whose values are small and wanted.

    Attributes:
        others (`dict[str, Any]`): their values, once all elements were scanned.
    """

    def __init__(self, path: Path, name: str, key: str | None = None, others: Collection[str] = ()) -> None:
        self._path, self._name, self._key, self._wanted = path, name, key, others
        self._offsets, self._lengths = array("q"), array("q")
        self.others: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._offsets)

    def scan(self) -> Iterator[Any]:
        """All elements, whose places are kept from then on.

        Raises:
            DataError: If the file is broken, so that what follows cannot be told apart.
        """
        self._offsets, self._lengths = array("q"), array("q")
        with open(self._path, "rb") as file:
            stream = JsonStream(file, self._name)

            def placed() -> Any:
                stream.peek()
                start = stream.position()
                value = stream.value()
                self._offsets.append(start)
                self._lengths.append(stream.position() - start)
                return value

            if self._key is not None:
                for key in stream.names():
                    if key == self._key and stream.peek() == "[":
                        yield from stream.elements(placed)
                    elif key in self._wanted:
                        self.others[key] = stream.value()
                    else:
                        stream.skip()
            elif stream.peek() == "[":
                yield from stream.elements(placed)
            else:
                yield placed()
            stream.end()

    def read(self, number: int) -> Any:
        """Element `number` of those that `scan` gave, or a `DataError` in its place."""
        with open(self._path, "rb") as file:
            file.seek(self._offsets[number])
            return parse_line(file.read(self._lengths[number]), self._name, first=False)

    def replaced(self, changes: Iterable[bytes | None], file: BinaryIO) -> None:
        """Write the file once more, with other elements in the place of those for which there is one."""
        with open(self._path, "rb") as original:
            for start, length, change in zip(self._offsets, self._lengths, changes, strict=True):
                if change is not None:
                    copy_until(original, file, start)
                    file.write(change)
                    original.seek(start + length)
            copy_until(original, file, None)


def copy_until(source: BinaryIO, target: BinaryIO, stop: int | None) -> None:
    """Copy from where the source stands up to a byte of it, or to its end."""
    while block := source.read(2**20 if stop is None else min(2**20, stop - source.tell())):
        target.write(block)


# --- names of pictures -----------------------------------------------------------------------------------------------


def plain_name(name: str) -> str:
    """A path of any system as a relative one with `/`: "C:\\photos\\..\\a.jpg" -> "photos/a.jpg"."""
    parts = re.split(r"[/\\]+", re.sub(r"^[A-Za-z]:(?=[/\\])", "", name))
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def picture_name(images: ImageStore, candidates: Iterable[str]) -> tuple[str, bool]:
    """The first name of which there is a picture, of the candidates and then of their ends ("a/b.jpg": "b.jpg").

    Returns:
        The name and whether there is one; if not, it is the first candidate, which an error can tell.
    """
    given = [name for name in candidates if name]
    ends = ["/".join(name.split("/")[start:]) for name in given for start in range(1, name.count("/") + 1)]
    for name in [*given, *ends]:
        if name in images:
            return name, True
    return given[0] if given else "", False


# --- keys and texts --------------------------------------------------------------------------------------------------


def own_keys(values: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """What a file says of a picture or region beside what its format knows, without what is empty."""
    own = {key: value for key, value in values.items() if key not in known and value not in (None, "", [], {})}
    try:
        as_id(own.get("id"))
    except DataError:
        del own["id"]
    return own


def one_text(answers: Mapping[str, str]) -> str:
    """The answers about a region as the text of a format that has one: each under its question if there are several."""
    if len(answers) == 1:
        return next(iter(answers.values()))
    return "\n".join(f"{question}: {answer}" for question, answer in answers.items())


# --- new files -------------------------------------------------------------------------------------------------------


@contextmanager
def new_file(original: Path | None, target: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its name when all of it is on disk.

    Raises:
        DataError: If it would take the place of the original, or lie in it, which would be another input then.
    """
    if original is not None and _is_in(target.resolve(), original.resolve()):
        raise DataError(str(target), f"texts would be written into the original, {original}. Give another place.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, target)


def _is_in(place: Path, original: Path) -> bool:
    return place == original or (original.is_dir() and original in place.parents)
