"""Files that appear as a whole or not at all, and the errors of this room."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..prompts_finecaption import FineCaptionError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ResumeError(FineCaptionError, ValueError):
    """What is on disk does not go with what is asked for, is damaged, or is in use."""


class UnfinishedError(FineCaptionError, OSError):
    """The work cannot go on, as on a disk that is full. What was finished before is kept."""


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Turn an error of the system into `UnfinishedError`, which says where and what to do."""
    try:
        yield
    except UnfinishedError:
        raise
    except OSError as error:
        remedy = " Make room." if error.errno in _FULL else ""
        raise UnfinishedError(
            f"Nothing more can be written to {folder} ({error.strerror or error}).{remedy}"
        ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its name when all of it is on disk. Until then, what had the name keeps it.

    Raises:
        UnfinishedError: If it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    with writing_into(path.parent):
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as a whole. Half a surrogate pair, as in file names that are no UTF-8, becomes an escape."""
    with whole_file(path) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=2).encode("utf-8", "backslashreplace") + b"\n")
