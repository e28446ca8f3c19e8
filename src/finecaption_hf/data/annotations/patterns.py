"""Several files as one input: a folder of them, or a pattern: `shard-{000000..000009}.tar`, `data/*.parquet`."""

import glob
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError

_MAX_FILES = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")


def is_pattern(path: Path) -> bool:
    """Whether this names no file itself, but may name several."""
    return bool(re.search(r"[*?\[{]", str(path))) and not path.exists()


def matching(path: Path, suffix: str) -> list[Path]:
    """The files of an input: itself, those below a folder with a suffix, or those of a pattern; in a natural order.

    Raises:
        DataError: If there is none, or one that the braces of a pattern name is missing.
    """
    if path.is_dir():
        below = (each for each in path.rglob(f"*{suffix}") if not any(part.startswith(".") for part in each.parts))
        found = sorted((each for each in below if each.is_file()), key=_natural)
    elif is_pattern(path):
        found = list(itertools.islice(_expanded(path), _MAX_FILES))
    else:
        found = [path]
    if not found:
        raise DataError(str(path), f"no {suffix} file is there.")
    return found


def _expanded(path: Path) -> Iterator[Path]:
    for text in _without_braces(str(path)):
        if re.search(r"[*?\[]", text):
            yield from sorted(map(Path, glob.glob(text)), key=_natural)
        elif Path(text).is_file():
            yield Path(text)
        else:
            raise DataError(text, f"there is no such file, which {path.name} names.")


def _without_braces(text: str) -> Iterator[str]:
    """The texts that a shell makes of `{a,b}` and `{00..09}`."""
    found = _BRACES.search(text)
    if found is None:
        yield text
        return
    first, _, last = found[1].partition("..")
    if first.isdecimal() and last.isdecimal():
        width = len(first) if first.startswith("0") else 0
        parts: Iterator[str] = (f"{number:0{width}}" for number in range(int(first), int(last) + 1))
    else:
        parts = iter(found[1].split(","))
    for part in parts:
        yield from _without_braces(text[: found.start()] + part + text[found.end() :])


def _natural(path: Path) -> list[tuple[int, str, int]]:
    """Sorts shard-2 before shard-10."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, "", int(part)) if part.isdecimal() else (0, part, 0) for part in parts]
