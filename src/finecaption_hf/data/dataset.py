"""Examples by number, for training: constant memory but for a few bytes per item, and safe in DataLoader workers."""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from .examples import DataError, Example
from .images import ImageStore
from .json_stream import LinesByNumber, is_packed
from .readers import FORMATS, ExampleReader, Place, load_rows, read_examples

# Part of the name of every cached file: changes when the readers give other examples for the same source.
_CACHE_VERSION = 2


class _FileRows:
    """The rows of a JSONL file, of which only the places are kept."""

    def __init__(self, path: Path, places: Iterator[Place], reader: ExampleReader, has_where: bool) -> None:
        self.lines = LinesByNumber(path)
        self.reader = reader
        self.has_where = has_where
        for place in places:
            self.lines.add(*place)

    def read(self, index: int, store: ImageStore | None) -> Example:
        number, row = self.lines.read(index)
        where = f"{self.lines.path}:{number}"
        if isinstance(row, DataError):
            raise DataError(where, f"{row.reason} Did the file change?")
        if self.has_where and isinstance(row, dict):
            where = row.get("where", where)
        return self.reader.parse(row, where)


class _DatasetRows:
    """The rows of a `datasets.Dataset`."""

    def __init__(self, reader: ExampleReader, places: Iterator[Place]) -> None:
        self.reader = reader
        self.dataset = load_rows(reader.source)
        if not hasattr(self.dataset, "__len__"):
            raise DataError(
                reader.name,
                "it streams, but rows are drawn by number here. Train on it as a stream (stream: true beside its "
                "path), or save it, with to_parquet, and give that; of an endless one, stream.take(1000).",
            )
        self.indices = array("q", (row for row, _, _ in places))

    def read(self, index: int, store: ImageStore | None) -> Example:
        row = self.indices[index]
        return self.reader.parse(self.dataset[row], f"{self.reader.name}[{row}]")


class _AnnotationRows:
    """The rows of a file of an annotation tool, by number; read where they lie."""

    def __init__(self, reader: ExampleReader, places: Iterator[Place]) -> None:
        self.reader = reader
        self.indices = array("q", (row for row, _, _ in places))
        assert reader.annotations is not None  # opened to find the places
        self.annotations = reader.annotations

    def read(self, index: int, store: ImageStore | None) -> Example:
        where, row = self.annotations.read(self.indices[index])
        return self.reader.parse(row, where)


class ExampleDataset:
    """Examples by number, in the order of their file. `open_dataset` makes them.

    Attributes:
        images (`ImageStore`, *optional*): where the pictures lie.
        num_examples, num_rejected (`int`): what was read, and what was not taken in with `on_error="skip"`.
        num_regions, num_whole_images (`int`): regions of the examples, and those of them without a mask.
        rejects_path (`Path`, *optional*): where the rejected ones are, if there are any.
        max_regions (`int`, *optional*): see `open_dataset`.
    """

    def __init__(
        self,
        rows: _FileRows | _DatasetRows | _AnnotationRows,
        num_regions: "array[int]",
        *,
        images: ImageStore | None,
        num_whole_images: int,
        num_rejected: int,
        rejects_path: Path | None,
        max_regions: int | None,
    ) -> None:
        self._rows = rows
        self.images = images
        self.num_examples = len(num_regions)
        self.num_regions = sum(num_regions)
        self.num_whole_images = num_whole_images
        self.num_rejected = num_rejected
        self.rejects_path = rejects_path
        self.max_regions = max_regions
        self._examples, self._starts = array("q"), array("q")
        if max_regions is not None:
            for index, number in enumerate(num_regions):
                for start in range(0, number, max_regions):
                    self._examples.append(index)
                    self._starts.append(start)

    def __len__(self) -> int:
        return self.num_examples if self.max_regions is None else len(self._examples)

    def __getitem__(self, index: int) -> Example:
        """Item `index`, a whole example or `max_regions` of its regions.

        Raises:
            IndexError: If there is no such item.
            DataError: If the file changed since it was opened.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"There is no item {index} among {len(self)}.")
        index %= len(self)
        if self.max_regions is None:
            return self._rows.read(index, self.images)
        example = self._rows.read(self._examples[index], self.images)
        start = self._starts[index]
        regions = example.regions[start : start + self.max_regions]
        return replace(example, regions=regions)

    def __iter__(self) -> Iterator[Example]:
        """All items, in their order; again and again."""
        return (self[index] for index in range(len(self)))

    def load(self, example: Example) -> Image.Image:
        """The picture of an example, see `Example.load`."""
        return example.load()


def open_dataset(
    path: Any,
    format: str | None = None,
    *,
    images: str | os.PathLike[str] | ImageStore | None = None,
    on_error: str = "raise",
    rejects: str | os.PathLike[str] | None = None,
    mapping: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    keep_entity_references: bool = False,
    cache: str | os.PathLike[str] | None = None,
    max_regions: int | None = None,
    **reading: Any,
) -> ExampleDataset:
    """Open a dataset for access by number. All of it is read, and checked, once.

    The package's JSONL and `datasets.Dataset` are then read in place. Any other format, or a packed file, is written as
    package JSONL to `cache` first, and found there again as long as the source (path, size, time of change) and the
    settings stay the same; several processes may do that at once.

    Args:
        path, format, images, on_error, rejects, mapping, keep_entity_references, **reading: as for `read_examples`.
        cache: folder for files that were converted; `None` means `finecaption-hf/data` in the user's cache.
        max_regions: split an example with more regions over several items of the same image.

    Returns:
        `ExampleDataset`.

    Raises:
        DataError: If something cannot be used, see `ExampleReader`, or nothing is left.
    """
    if max_regions is not None and max_regions < 1:
        raise ValueError(f"max_regions is {max_regions}. Give at least 1, or None for whole examples.")
    reader = read_examples(
        path,
        format,
        images=images,
        on_error=on_error,
        rejects=rejects,
        mapping=mapping,
        keep_entity_references=keep_entity_references,
        **reading,
    )
    num_regions: array[int] = array("q")
    num_rejected, rejects_path = 0, reader.rejects_path
    rows: _FileRows | _DatasetRows | _AnnotationRows
    if reader.format == "datasets":
        rows = _DatasetRows(reader, _places(reader, num_regions))
        num_rejected = reader.num_rejected
    elif reader.format == "jsonl" and not is_packed(Path(reader.source)):
        rows = _FileRows(Path(reader.source), _places(reader, num_regions), reader, has_where=False)
        num_rejected = reader.num_rejected
    elif reader.format not in FORMATS:
        reader.reads_pictures = False
        rows = _AnnotationRows(reader, _places(reader, num_regions))
        num_rejected = reader.num_rejected
    else:
        folder = _converted(reader, cache)
        counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
        num_rejected = counts["num_rejected"]
        if num_rejected:
            if rejects is None:
                rejects_path = folder / "rejects.jsonl"
            else:
                shutil.copyfile(folder / "rejects.jsonl", rejects_path)
        for message in counts["warnings"]:
            warnings.warn(message.replace("{rejects}", str(rejects_path)), stacklevel=2)
        reader = read_examples(folder / "records.jsonl", "jsonl", images=reader.images, **reading)
        rows = _FileRows(folder / "records.jsonl", _places(reader, num_regions), reader, has_where=True)
    if not num_regions:
        raise DataError(reader.name, f"it holds no example that can be used ({num_rejected} were rejected).")
    return ExampleDataset(
        rows,
        num_regions,
        images=reader.images,
        num_whole_images=reader.num_whole_images,
        num_rejected=num_rejected,
        rejects_path=rejects_path if num_rejected else None,
        max_regions=max_regions,
    )


def _places(reader: ExampleReader, num_regions: "array[int]") -> Iterator[Place]:
    """Where the good lines or rows are; the numbers of their regions go to `num_regions`."""
    for number, place in reader.each(lambda example, place: (len(example.regions), place)):
        assert place is not None  # formats that have lines or rows
        num_regions.append(number)
        yield place


def _converted(reader: ExampleReader, cache: str | os.PathLike[str] | None) -> Path:
    """The folder with the package JSONL of a source, written if it is not there."""
    if cache is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finecaption-hf" / "data"
    source = Path(reader.source).resolve()
    folder = Path(cache) / f"{source.stem[:40]}-{_fingerprint(reader, source)}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    given = reader.rejects_path
    try:
        reader.rejects_path = work / "rejects.jsonl"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with (work / "records.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(reader.each(_line))
        counts = {
            "num_rejected": reader.num_rejected,
            "warnings": [str(each.message).replace(str(reader.rejects_path), "{rejects}") for each in caught],
        }
        (work / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
        try:
            work.rename(folder)  # all of it at once
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, with the same result
                raise
    finally:
        reader.rejects_path = given
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _line(example: Example, place: Place | None) -> str:
    try:
        return json.dumps({**example.to_json(), "where": example.where}, allow_nan=False) + "\n"
    except (ValueError, RecursionError) as error:
        raise DataError(example.where, f"a mask of it is no JSON ({error}).") from error


def _fingerprint(reader: ExampleReader, source: Path) -> str:
    settings = [_CACHE_VERSION, reader.format, reader.on_error, reader.keep_entity_references, repr(reader.keys)]
    digest = hashlib.sha256(json.dumps([str(source), *settings]).encode())
    for path in sorted(source.glob("*.json")) if source.is_dir() else [source]:
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
