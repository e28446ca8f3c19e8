"""Files of entries, one JSON line each, which grow in one process at a time and lose no whole line however it ends."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .writing import ResumeError, whole_file, writing_into

try:
    import fcntl
except ImportError:  # a system without it: two runs on the same file are not told apart there
    fcntl = None  # type: ignore[assignment]

_BLOCK = 2**16


def to_line(entry: Mapping[str, Any]) -> bytes:
    """A line of JSONL. Half a surrogate pair, as in file names that are no UTF-8, becomes an escape."""
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


class EntryFile:
    """A file that one process appends to, as long as it lives: the system lets go of the lock with the process.

    Args:
        path: of the file, which is made if it is not there, and its folder, too.

    Raises:
        ResumeError: If another process holds the file.
        OSError: If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = _locked(path)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write all of an entry, or nothing.

        Raises:
            UnfinishedError: If it cannot be written.
        """
        with writing_into(self.path.parent):
            start = os.fstat(self._handle).st_size
            try:
                self._write(to_line(entry))
            except BaseException:
                os.ftruncate(self._handle, start)
                raise

    def replace(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Put other entries in the place of all, at once.

        Raises:
            UnfinishedError: If they cannot be written; the file is as it was.
        """
        with whole_file(self.path) as file:
            file.writelines(map(to_line, entries))
        # The lock belongs to the file that is gone. Who opens the new one meanwhile finds whole entries of this run.
        self.close()
        self._handle = _locked(self.path)

    def is_there(self) -> bool:
        """Whether the file that is held is still the one of that name."""
        return _is_at(self._handle, self.path)

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._handle, rest) :]


def repair(path: Path, tell: Callable[[str], None], consequence: str) -> None:
    """Take away a last line that was not written to its end.

    Args:
        tell: gets a sentence about it, which ends with `consequence`: what becomes of the entry that is lost.
    """
    with open(path, "rb") as file:
        size = whole = file.seek(0, os.SEEK_END)
        while whole:
            start = max(0, whole - _BLOCK)
            file.seek(start)
            end = file.read(whole - start).rfind(b"\n") + 1
            whole = start + end
            if end:
                break
    if whole < size:
        tell(f"Repaired {path.name}: its last line was not written to the end ({size - whole} bytes); {consequence}.")
        os.truncate(path, whole)


def _locked(path: Path) -> int:
    while True:
        path.parent.mkdir(exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except FileNotFoundError:  # whoever held it took the folder away just now
            continue
        held = False
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = fcntl is None or _is_at(handle, path)
        except BlockingIOError as error:
            raise ResumeError(f"Another run is writing to {path}. Wait for its end, or give another output.") from error
        finally:
            if not held:
                os.close(handle)
        if held:
            return handle


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
