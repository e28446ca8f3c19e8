"""Files that grow line by line, in one process at a time, and never hold a part of a line for long."""

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # a system without it: two runs on the same file are not told apart there
    fcntl = None  # type: ignore[assignment]


class FileInUseError(ValueError):
    """Another process appends to the file."""


class AppendedFile:
    """A file that one process appends to, as long as it lives: the system lets go of the lock with the process.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle = handle

    @classmethod
    def locked(cls, path: Path) -> "AppendedFile":
        """Open and lock a file; it and its folder are made if they are not there.

        Raises:
            FileInUseError: If another process holds it.
        """
        while True:
            path.parent.mkdir(exist_ok=True)
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            except FileNotFoundError:  # whoever held it took the folder away just now
                continue
            try:
                if fcntl is None:
                    return cls(path, handle)
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if (part := cls(path, handle)).is_there():
                    return part
            except BlockingIOError as error:
                os.close(handle)
                raise FileInUseError(f"Another run holds {path}. Wait for its end, or give another name.") from error
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)

    def is_there(self) -> bool:
        """Whether the file that is held is still the one of that name."""
        try:
            return os.path.samestat(os.fstat(self._handle), os.stat(self.path))
        except FileNotFoundError:
            return False

    def write(self, line: bytes) -> None:
        """Append all of a line, or nothing."""
        start = os.fstat(self._handle).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        except BaseException:
            os.ftruncate(self._handle, start)
            raise

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it appears as a whole, or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)
