"""What lies below a folder."""

import os
from collections.abc import Iterator
from pathlib import Path


def folders_below(folder: str | Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """A folder and all folders in it: place, names of its folders, names of its files, as `os.walk` gives them.

    Folders come sorted, hidden ones are left out. Links are followed, except to a folder that they lie in.
    """
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _is_circle(place, name))
        yield place, folders, files


def _is_circle(place: str, name: str) -> bool:
    path = os.path.join(place, name)
    return os.path.islink(path) and Path(os.path.realpath(place)).is_relative_to(os.path.realpath(path))
