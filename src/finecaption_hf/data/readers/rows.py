"""Rows of a `datasets.Dataset` -> examples."""

import hashlib
import json
import os
import tempfile
import threading
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ...prompts_finecaption import no_such
from ..columns import STAND_IN, Columns, declared_formats, is_picture, picture_columns, without_none_below
from ..examples import Branch, DataError, Example, Region, as_id, as_object, as_text
from . import described
from .annotated import annotated, is_record, recorded
from .detection import is_saved_dataset
from .keys import Keys


def load(source: Any) -> Any:
    """A dataset from memory, or from where `save_to_disk` wrote it; also one that streams.

    Raises:
        DataError: If it is none, or has several splits.
    """
    import datasets

    where = os.fspath(source) if isinstance(source, (str, os.PathLike)) else type(source).__name__
    if isinstance(source, (str, os.PathLike)):
        try:
            source = datasets.load_from_disk(os.fspath(source))
        except Exception as error:  # the library raises many kinds for a damaged folder
            raise DataError(where, f"the saved dataset cannot be loaded ({error}).") from error
    if isinstance(source, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        if len(source) != 1:
            raise DataError(where, f"there are the splits {', '.join(source)}. Give one of them.")
        (source,) = source.values()
    if not is_stream(source) and not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        raise DataError(where, "a datasets.Dataset is needed, which has a length and rows by number.")
    return source


def is_stream(dataset: Any) -> bool:
    """Whether a dataset has no length and no rows by number: `datasets.IterableDataset`."""
    import datasets

    return isinstance(dataset, datasets.IterableDataset)


def open_split(source: Any, split: str | None) -> tuple[Any, str]:
    """A dataset and its name: from memory, from where it was saved, or with `split` from the Hub.

    Raises:
        DataError: If it cannot be loaded, there is no such split, or there are several.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            str(source), "it is read with the library datasets. Install it: pip install datasets"
        ) from error
    name = type(source).__name__
    if isinstance(source, (str, os.PathLike)):
        name = Path(source).name
        try:
            if is_saved_dataset(Path(source)):
                source = datasets.load_from_disk(os.fspath(source))
            else:
                source = datasets.load_dataset(os.fspath(source), split=split)
        except Exception as error:  # the library raises many kinds, for what is damaged and what is not there
            raise DataError(str(source), f"the dataset cannot be loaded ({error}).") from error
    if isinstance(source, (datasets.DatasetDict, datasets.IterableDatasetDict)) and split is not None:
        if split not in source:
            raise DataError(name, no_such("split", split, source))
        source, name = source[split], f"{name}/{split}"
    return load(source), name


def undecoded(feature: Any) -> Any:
    """A type of `datasets` in which pictures stay the bytes that they are."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(mode=feature.mode, decode=False)
    if isinstance(feature, Mapping):
        return {key: undecoded(own) for key, own in feature.items()}
    if isinstance(feature, list):
        return [undecoded(own) for own in feature]
    inner = getattr(feature, "feature", None)
    if inner is None:
        return feature
    made = copy(feature)
    made.feature = undecoded(inner)
    return made


class DatasetRows:
    """Rows of a `datasets.Dataset` by number, in the package's own form, pictures undecoded."""

    def __init__(self, dataset: Any, name: str, box_format: str | None = None) -> None:
        import datasets

        self.name = name
        features = dataset.features
        for each, feature in features.items():
            if (plain := undecoded(feature)) != feature:
                dataset = dataset.cast_column(each, plain)
        self.dataset = dataset
        self.columns = Columns(features, box_format, dict(declared_formats(dataset.data.schema)))
        self.pictures, self.lists = picture_columns(features, lambda feature: isinstance(feature, datasets.Image))

    def scan(self) -> Iterator[tuple[str, Any]]:
        """Without the pictures, which would all have to be read: each row that holds one is an image of its own."""
        rest = self.dataset.remove_columns([*self.pictures, *self.lists])
        numbers = [self._numbers(each) for each in (*self.pictures, *self.lists)]
        for index in range(len(self.dataset)):
            found = [next(each) for each in numbers]
            there: dict[str, Any] = {each: STAND_IN if number else None for each, number in zip(self.pictures, found)}
            lists = zip(self.lists, found[len(self.pictures) :])
            there |= {each: None if number is None else [STAND_IN] * number for each, number in lists}
            yield self._row(index, rest[index] if rest.column_names else {}, there)

    def _numbers(self, column: str) -> Iterator[int | None]:
        """How many pictures each row has in a column; `None` in a column of lists for no list."""
        for batch in self.dataset.select_columns([column]).with_format("arrow").iter(batch_size=1000):
            for values in batch.column(0).chunks:
                if column in self.lists:
                    yield from values.value_lengths().to_pylist()
                else:
                    yield from (0 if is_absent else 1 for is_absent in values.is_null().to_pylist())

    def read(self, index: int) -> tuple[str, Any]:
        row = self.dataset[index]
        return self._row(index, row, {each: row.pop(each) for each in (*self.pictures, *self.lists)})

    def _row(self, index: int, row: dict[str, Any], pictures: dict[str, Any]) -> tuple[str, Any]:
        where = f"{self.name}[{index}]"
        whole = {**without_none_below(row), **pictures}
        if row.get("error") is not None:  # a record of a failed region: its mask may be unknown, and is not the picture
            whole = {key: value for key, value in whole.items() if value is not None}
        try:
            return where, self.columns.row(whole)
        except DataError as error:
            return where, error.at(where)


class StreamRows:
    """Rows of a `datasets.IterableDataset`, in the package's own form.

    It has no length and no rows by number, so it is gone through twice: once when it is made, to know how many regions
    there are (their annotations are kept in a temporary file, pictures are not), and once for the pictures, as rows are
    asked for. Rows are asked for in about their order; `WINDOW` of them are kept, and for one before them the stream
    begins anew. So it has to give the same rows each time: one that is shuffled needs a seed. What is to go on after an
    interruption, or is used more than once, is better saved: `Dataset.from_generator(lambda: (yield from stream))` or
    `to_parquet`; of an endless one, `stream.take(1000)`.
    """

    WINDOW = 256

    def __init__(self, dataset: Any, name: str, box_format: str | None = None) -> None:
        self.name = name
        if dataset.features is not None and hasattr(dataset, "decode"):
            dataset = dataset.decode(False)
        self.dataset = dataset
        self.columns = Columns(dataset.features, box_format)
        self._digests = array("Q")
        self._spool = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  (as long as this lives)
        self._lock = threading.Lock()
        self._rows: Iterator[Any] = iter(())
        self._next = 0
        self._window: dict[int, Any] = {}
        whole = hashlib.sha256()
        for row in dataset:
            line = _light(row)
            digest = hashlib.sha256(line.encode()).digest()[:8]
            whole.update(digest)
            self._digests.append(int.from_bytes(digest, "big"))
            self._spool.write(line + "\n")
        self.fingerprint = whole.hexdigest()

    def scan(self) -> Iterator[tuple[str, Any]]:
        """Without the pictures."""
        self._spool.seek(0)
        for index, line in enumerate(self._spool):
            yield self._row(index, json.loads(line))

    def read(self, index: int) -> tuple[str, Any]:
        with self._lock:
            if index < self._next and index not in self._window:
                self._next, self._window = 0, {}
            if self._next == 0:
                self._rows = iter(self.dataset)
            while self._next <= index:
                row = next(self._rows, None)
                digest = None if row is None else hashlib.sha256(_light(row).encode()).digest()[:8]
                if digest is None or int.from_bytes(digest, "big") != self._digests[self._next]:
                    raise DataError(
                        f"{self.name}[{self._next}]",
                        "the stream gives another row than at first. Shuffle it with a fixed seed, or save it "
                        "(to_parquet), and give the file.",
                    )
                self._window[self._next] = row
                self._window.pop(self._next - self.WINDOW, None)
                self._next += 1
            row = self._window[index]
        return self._row(index, row)

    def _row(self, index: int, row: dict[str, Any]) -> tuple[str, Any]:
        where = f"{self.name}[{index}]"
        try:
            return where, self.columns.row(without_none_below(row))
        except DataError as error:
            return where, error.at(where)


def _light(row: Any) -> str:
    """A row as JSON; pictures, arrays and bytes leave only their place."""

    def light(value: Any) -> Any:
        if isinstance(value, Mapping):
            return STAND_IN if is_picture(value) else {str(key): light(own) for key, own in value.items()}
        if isinstance(value, (list, tuple)):
            return [light(own) for own in value]
        return value if value is None or isinstance(value, (str, int, float)) else STAND_IN

    return json.dumps(light(row))


def row_example(row: Any, where: str, keys: Keys, left_out: Counter[str], columns: Columns) -> Example:
    """A row with the columns of the package's JSONL, or of Osprey, LLaVA or a question and its answer.

    Arrow fills what an object does not have with None, so None counts as absent below columns. Columns with other
    names than `keys` has are found by `columns`.
    """
    row = without_none_below(as_object(row, "row"))
    if is_record(row):
        image = _image(row.get("image"))
        return replace(recorded({**row, "image": "image"}, where, left_out), image=image)
    if keys.get(row, "regions") is None and keys.get(row, "mask") is None:
        row = columns.row(row)
    image = _image(keys.get(row, "image"))
    if image is None:
        raise DataError("image", f"there is no image. Needed is a column {' or '.join(map(repr, keys.image))}.")
    regions = row.get("regions")
    if isinstance(regions, list) and any(isinstance(region, dict) and "branches" in region for region in regions):
        found = Example.from_json({**row, "image": "image"}, where)
        return Example(image, found.regions, as_id(row.get("id")), where)
    if isinstance(regions, list) and all(isinstance(region, dict) for region in regions):
        texts = [region.get(key) for region in regions for key in ("caption", "answers")]
        if texts.count(None) < len(texts) or all(keys.get(row, field) is None for field in _TEXTS):
            entries = [{**region, "mask": keys.region(region)} for region in regions]
            whole = _about_all(row)
            found = annotated({"image": "image", "regions": entries}, where, left_out, whole)
            return Example(image, found.regions, as_id(row.get("id")), where)
    rest = {**row, keys.image[0]: "image"}
    if keys.get(row, "regions") is None and keys.region(rest) is None:
        found = _whole_image(rest, where, keys, left_out)
    else:
        found = described.osprey(rest, where, keys, left_out)
    return Example(image, found.regions, found.id, where)


_TEXTS = ("descriptions", "caption", "dense_caption", "conversations", "answer")


def _about_all(row: dict[str, Any]) -> tuple[Region, ...]:
    text = row.get("global_caption")
    return () if text is None else (Region(None, (Branch(as_text(text, "global_caption"), "global"),), "global"),)


def _whole_image(row: dict[str, Any], where: str, keys: Keys, left_out: Counter[str]) -> Example:
    if keys.get(row, "conversations") is not None:
        return described.llava(row, where, keys, left_out)
    for field in ("answer", "caption", "global_caption", "dense_caption"):
        if (text := keys.get(row, field)) is not None:
            question = keys.get(row, "question") if field == "answer" else None
            branch = Branch(as_text(text, field), None if question else "global", question)
            return Example("image", (Region(None, (branch,)),), as_id(keys.get(row, "id")), where)
    raise DataError("row", "there is neither a mask nor a text. Give the names of columns by a mapping.")


def _image(value: Any) -> Any:
    """A path, or a picture in memory; the undecoded form of the library's Image feature is decoded."""
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
        if data is None:
            return path
        try:
            return Image.open(BytesIO(data))
        except Exception as error:  # decoders of damaged files raise nearly anything
            raise DataError("image", f"it cannot be decoded ({error}).") from error
    if value is None or isinstance(value, (str, Image.Image)):
        return value
    raise DataError("image", f"{type(value).__name__} arrived; a picture or a path is needed.")
