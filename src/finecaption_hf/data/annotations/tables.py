"""Parquet: tables with a picture per row, as `to_parquet` of `datasets` and others write them."""

import hashlib
import os
import re
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..columns import IMAGE_COLUMNS, PICTURE_COLUMNS, STAND_IN, Columns, declared_formats, without_none_below
from ..errors import DataError
from .base import AnnotationFile, ReadOptions, Seen
from .patterns import matching

# Rows of a batch while a file is gone through without its pictures.
_BATCH = 1000
_LARGE_GROUP = 2**30
_SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}|(train|test|validation|valid|val|dev)")


class Parquet(AnnotationFile):
    """A .parquet file, a folder or a pattern of them. Columns are named as those of a `datasets` split.

    Pictures are columns of the type Image of `datasets`, structs of bytes and path, or bytes. Files are gone through
    once without them. Then row groups are read as their rows are asked for, and the last two of them are held. Texts
    cannot be put back; `describe` writes parquet files of its own.
    """

    format = "parquet"
    title = "parquet"
    has_own_rows = True
    takes_patterns = True

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        self._paths = matching(path, ".parquet")
        splits = sorted({name for each in self._paths if (name := _split_of(each)) is not None})
        if len(splits) > 1:
            raise DataError(str(path), f"there are the splits {', '.join(splits)}. Give one (--split), or its files.")
        # Of each row group: its file, its number there, and the number of its first row among all rows.
        self._groups: list[tuple[int, int]] = []
        self._starts = array("q")
        self._columns: list[Columns] = []
        self._lock = os.getpid(), threading.Lock()
        self._held: list[tuple[int, Any]] = []

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        if seen.is_folder:
            return any(name.lower().endswith(".parquet") for name in seen.names)
        return seen.head.startswith(b"PAR1")

    def files(self) -> Iterator[Path]:
        yield from self._paths

    def where_images_lie(self) -> Path:
        return self._paths[0].parent

    def fingerprint(self) -> str:
        """Of the footers, which have types, sizes and extremes of all columns; pictures are not read."""
        digest = hashlib.sha256(self.format.encode())
        for path in self._paths:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - 8, 0))
                length = int.from_bytes(file.read(4), "little")
                file.seek(max(size - 8 - length, 0))
                digest.update(f"{path.name} {size}".encode() + file.read(length))
        return digest.hexdigest()

    def scan(self) -> Iterator[tuple[str, Any]]:
        self._groups, self._starts, self._columns, self.notes = [], array("q"), [], []
        number = largest = 0
        for place, path in enumerate(self._paths):
            with _errors(path), _opened(path) as file:
                self._columns.append(_columns_of(file.schema_arrow, self.options.box_format))
                leaves, light, pictures = _without_pictures(file)
                for group in range(file.num_row_groups):
                    self._groups.append((place, group))
                    self._starts.append(number)
                    about = file.metadata.row_group(group)
                    largest = max(largest, about.total_byte_size)
                    rows = _rows_of(file, group, leaves) if leaves else iter([{}] * about.num_rows)
                    for row in rows:
                        there = {key: _stand_in(own) if key in light else own for key, own in row.items()}
                        yield self._row(number, place, {**there, **pictures})
                        number += 1
        if largest > _LARGE_GROUP:
            self.notes.append(
                f"Its row groups have up to {largest / 2**30:.1f} GiB, two of which are held in memory. Smaller ones: "
                "to_parquet(batch_size=100) of datasets, row_group_size=100 of others."
            )

    def read(self, index: int) -> tuple[str, Any]:
        number = bisect_right(self._starts, index) - 1
        table = self._group(number)
        row = table.slice(index - self._starts[number], 1).to_pylist()[0]
        return self._row(index, self._groups[number][0], row)

    def _row(self, index: int, place: int, row: dict[str, Any]) -> tuple[str, Any]:
        where = f"{self.name}[{index}]"
        try:
            pictures = {key: _picture(own) for key, own in row.items() if key in PICTURE_COLUMNS}
            return where, self._columns[place].row(without_none_below({**row, **pictures}))
        except DataError as error:
            return where, error.at(where)

    def _group(self, number: int) -> Any:
        """A row group, which is read once for the rows that are asked for around the same time."""
        owner, lock = self._lock
        if owner != os.getpid():  # forked, perhaps while another thread held it
            self._lock = os.getpid(), (lock := threading.Lock())
        with lock:
            for held, table in self._held:
                if held == number:
                    return table
            place, group = self._groups[number]
            with _errors(self._paths[place]), _opened(self._paths[place]) as file:
                table = file.read_row_group(group, use_threads=False)
            self._held = [*self._held[-1:], (number, table)]
            return table


def _split_of(path: Path) -> str | None:
    for name in (path.stem, path.parent.name):
        if found := _SPLIT.fullmatch(name):
            return found[1] or found[2]
    return None


def _opened(path: Path) -> Any:
    from pyarrow import parquet  # type: ignore[import-untyped]

    return parquet.ParquetFile(path)


class _errors:
    """Turns what the library raises for damaged files into a `DataError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, DataError):
            raise DataError(str(self.path), f"this parquet file cannot be read ({str(error)[:200]}).") from error


def _columns_of(schema: Any, box_format: str | None) -> Columns:
    import datasets

    try:
        features = datasets.Features.from_arrow_schema(schema)
    except Exception:  # types that datasets does not know: the values tell
        features = None
    return Columns(features, box_format, dict(declared_formats(schema)))


def _without_pictures(file: Any) -> tuple[list[str], set[str], dict[str, Any]]:
    """The leaves to read of all columns but for the bytes of pictures; the columns whose pictures lack them then; and
    stand-ins for pictures that are bytes alone.
    """
    leaves = [file.schema.column(number).path for number in range(len(file.schema))]
    known = set(leaves)
    heavy = {leaf for leaf in leaves if leaf.endswith(".bytes") and f"{leaf[:-6]}.path" in known}
    binary = {field.name for field in file.schema_arrow if str(field.type) in ("binary", "large_binary")}
    pictures = {name: STAND_IN for name in IMAGE_COLUMNS if name in binary}
    kept = [leaf for leaf in leaves if leaf not in heavy and leaf not in pictures]
    return kept, {leaf.partition(".")[0] for leaf in heavy}, pictures


def _rows_of(file: Any, group: int, leaves: list[str]) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(_BATCH, row_groups=[group], columns=leaves, use_threads=False):
        yield from batch.to_pylist()


def _stand_in(value: Any) -> Any:
    """A value in which pictures have no bytes because these were not read."""
    if isinstance(value, list):
        return [_stand_in(each) for each in value]
    if isinstance(value, dict):
        is_light = value.keys() == {"path"}
        return {**STAND_IN, **value} if is_light else {key: _stand_in(own) for key, own in value.items()}
    return value


def _picture(value: Any) -> Any:
    """What a column of pictures holds, in the form of `datasets`."""
    if isinstance(value, list):
        return [_picture(each) for each in value]
    return {"bytes": value, "path": None} if isinstance(value, bytes) else value
