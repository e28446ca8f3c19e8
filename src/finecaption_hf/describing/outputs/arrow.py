"""Parquet files and folders of the library `datasets`: records as they are, in columns that have one type each."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .base import FIRST, Output, Record, Records, well_formed

MAX_FIELDS = 256
"""Of a column that is an object, and of columns with keys of one's own; with more, it is JSON as text."""

_OWN = "own"
_LAST = ("mask", "mask_file", "box_xyxy", "area", "answers", "log_probs", "error", "errors")
_KNOWN = {"image", "region_index", *_LAST}

# The type of a column: None as long as nothing was there, a name of `datasets.Value`, [of entries], {of fields}.
_Type = None | str | list[Any] | dict[str, Any]


class _Mixed(Exception):
    """Values that have no type in common."""


class _Arrow(Output):
    """A row for each record. Pictures are named, as in the records, not copied.

    A key whose values have no common type, or are objects with very many keys, is a column of JSON texts. The reference
    of a region that failed stays only if it is RLE, as all others are.
    """

    def write(self, records: Records, target: Path) -> None:
        """See `Output`."""
        import datasets

        with _without_bars(datasets), tempfile.TemporaryDirectory(dir=target.parent) as cache:
            columns = Columns(records)
            dataset = datasets.Dataset.from_generator(
                _rows,
                features=datasets.Features({name: _feature(datasets, type) for name, type in columns.types.items()}),
                gen_kwargs={"records": records, "columns": columns},
                cache_dir=cache,
            )
            self._save(dataset, target)

    def _save(self, dataset: Any, target: Path) -> None:
        raise NotImplementedError


class Parquet(_Arrow):
    """One file; see `_Arrow`."""

    name = "parquet"
    suffixes = (".parquet",)

    def _save(self, dataset: Any, target: Path) -> None:
        dataset.to_parquet(str(target))


class SavedDataset(_Arrow):
    """A folder for `datasets.load_from_disk`; see `_Arrow`."""

    name = "datasets"
    is_folder = True

    def _save(self, dataset: Any, target: Path) -> None:
        dataset.save_to_disk(str(target))


class Columns:
    """The columns of a table, by one look at all records.

    Attributes:
        types: of each column, by name; "json" is text that holds JSON.
    """

    def __init__(self, records: Records) -> None:
        self._own_apart = False
        found: dict[str, _Type] = {}
        for record in records():
            for name, value in self._of(record).items():
                if found.get(name) == "json":
                    continue
                try:
                    found[name] = _merge(found.get(name), _type(value))
                except _Mixed:
                    found[name] = "json"
            if not self._own_apart and len(found.keys() - _KNOWN) > MAX_FIELDS:
                self._own_apart = True
                found = {name: type for name, type in found.items() if name in _KNOWN} | {_OWN: "json"}
        middle = (name for name in found if name not in (*FIRST, *_LAST))
        names = [name for name in (*FIRST, *middle, *_LAST) if name in found]
        self.types = {name: "json" if _has_empty(found[name]) else found[name] for name in names}

    def row(self, record: Record) -> Record:
        """A record, with all columns."""
        values = self._of(record)
        return {name: _value(values.get(name), type) for name, type in self.types.items()}

    def _of(self, record: Record) -> Record:
        known = {name: value for name, value in record.items() if name in _KNOWN}
        own = {name: value for name, value in record.items() if name not in _KNOWN}
        if "error" in record and not _is_rle(record.get("mask")):
            known.pop("mask", None)
        return {**known, **({_OWN: own} if self._own_apart else own)}


def _is_rle(mask: Any) -> bool:
    try:
        return _type(mask) == {"size": ["int64"], "counts": "string"}
    except _Mixed:
        return False


def _type(value: Any) -> _Type:
    if value is None:
        return None
    if isinstance(value, list):
        entries: _Type = None
        for entry in value:
            entries = _merge(entries, _type(entry))
        return [entries]
    if isinstance(value, dict):
        if len(value) > MAX_FIELDS:
            raise _Mixed
        return {name: _type(entry) for name, entry in value.items()}
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        raise _Mixed
    return {bool: "bool", int: "int64", float: "float64", str: "string"}[type(value)]


def _merge(one: _Type, other: _Type) -> _Type:
    if one is None or other is None or one == other:
        return other if one is None else one
    if isinstance(one, list) and isinstance(other, list):
        return [_merge(one[0], other[0])]
    if isinstance(one, dict) and isinstance(other, dict):
        merged = {
            name: _merge(one.get(name), other.get(name)) for name in (*one, *(key for key in other if key not in one))
        }
        if len(merged) > MAX_FIELDS:
            raise _Mixed
        return merged
    if {str(one), str(other)} == {"int64", "float64"}:
        return "float64"
    raise _Mixed


def _has_empty(type: _Type) -> bool:
    """Whether there is an object without a field, for which Parquet has no form."""
    if isinstance(type, dict):
        return not type or any(map(_has_empty, type.values()))
    return isinstance(type, list) and _has_empty(type[0])


def _feature(datasets: Any, type: _Type) -> Any:
    if isinstance(type, dict):
        return {name: _feature(datasets, field) for name, field in type.items()}
    if isinstance(type, list):
        return datasets.List(_feature(datasets, type[0]))
    return datasets.Value("string" if type in (None, "json") else type)


def _rows(records: Records, columns: Columns) -> Iterator[Record]:
    return map(columns.row, records())


def _value(value: Any, type: _Type) -> Any:
    if value is None:
        return None
    if type == "json":
        return well_formed(json.dumps(value, ensure_ascii=False))
    if isinstance(type, dict):
        return {name: _value(value.get(name), field) for name, field in type.items()}
    if isinstance(type, list):
        return [_value(entry, type[0]) for entry in value]
    return well_formed(value) if isinstance(value, str) else value


@contextmanager
def _without_bars(datasets: Any) -> Iterator[None]:
    """The library's bars stay away: the run has one of its own."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
