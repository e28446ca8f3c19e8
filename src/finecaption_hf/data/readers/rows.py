"""Rows of a `datasets.Dataset` -> examples."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ..examples import Branch, DataError, Example, Region, as_id, as_list, as_object, as_text
from . import described
from .detection import is_saved_dataset
from .keys import Keys


def load(source: Any) -> Any:
    """A dataset from memory, or from where `save_to_disk` wrote it.

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
    if isinstance(source, datasets.DatasetDict):
        if len(source) != 1:
            raise DataError(where, f"there are the splits {', '.join(source)}. Give one of them.")
        (source,) = source.values()
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise DataError(where, "a datasets.Dataset is needed, which has a length and rows by number.")
    return source


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
    if isinstance(source, datasets.DatasetDict) and split is not None:
        if split not in source:
            raise DataError(name, f"there is no split {split!r}, only {', '.join(source)}.")
        source, name = source[split], f"{name}/{split}"
    return load(source), name


class DatasetRows:
    """Rows of a `datasets.Dataset` by number, pictures undecoded."""

    def __init__(self, dataset: Any, name: str) -> None:
        import datasets

        self.name = name
        pictures = [each for each, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
        for each in pictures:
            dataset = dataset.cast_column(each, datasets.Image(decode=False))
        self.dataset = dataset
        self.pictures = pictures

    def scan(self) -> Iterator[tuple[str, Any]]:
        """Without the pictures, which would all have to be read: each row that holds one is an image of its own."""
        rest = self.dataset.remove_columns(self.pictures)
        stand_in = {"bytes": None, "path": None}
        absent = [self._absent(each) for each in self.pictures]
        for index in range(len(self.dataset)):
            there = {each: None if next(missing) else stand_in for each, missing in zip(self.pictures, absent)}
            yield self._row(index, rest[index] if rest.column_names else {}, there)

    def _absent(self, column: str) -> Iterator[bool]:
        for batch in self.dataset.select_columns([column]).with_format("arrow").iter(batch_size=1000):
            yield from batch.column(0).is_null().to_pylist()

    def read(self, index: int) -> tuple[str, Any]:
        row = self.dataset[index]
        return self._row(index, row, {each: row.pop(each) for each in self.pictures})

    def _row(self, index: int, row: dict[str, Any], pictures: dict[str, Any]) -> tuple[str, Any]:
        return f"{self.name}[{index}]", {**_without_none_below(row), **pictures}


def row_example(row: Any, where: str, keys: Keys, left_out: Counter[str]) -> Example:
    """A row with the columns of the package's JSONL, or of Osprey, LLaVA or a question and its answer.

    Arrow fills what an object does not have with None, so None counts as absent below columns.
    """
    row = _without_none_below(as_object(row, "row"))
    image = _image(keys.get(row, "image"))
    if image is None:
        raise DataError("image", f"there is no image. Needed is a column {' or '.join(map(repr, keys.image))}.")
    regions = row.get("regions")
    if isinstance(regions, list) and any(isinstance(region, dict) and "branches" in region for region in regions):
        found = Example.from_json({**row, "image": "image"}, where)
        return Example(image, found.regions, as_id(row.get("id")), where)
    rest = {**row, keys.image[0]: "image"}
    if keys.get(row, "regions") is None and keys.region(rest) is None:
        found = _whole_image(rest, where, keys, left_out)
    else:
        found = described.osprey(rest, where, keys, left_out)
    return Example(image, found.regions, found.id, where)


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


def _without_none_below(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose objects are without what Arrow filled in for keys that they do not have; columns keep their None."""
    return {key: _without_none(value) for key, value in row.items()}


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    return [_without_none(entry) for entry in as_list(value, "list")] if isinstance(value, list) else value
