"""Rows of a `datasets.Dataset` -> records."""

import os
from collections import Counter
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from PIL import Image

from ..records import Branch, DataError, Record, Region, as_id, as_list, as_object, as_text
from . import described
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


def row_record(row: Any, where: str, keys: Keys, left_out: Counter[str]) -> Record:
    """A row with the columns of the package's JSONL, or of Osprey, LLaVA or a question and its answer.

    Arrow fills what a row does not have with None, so None counts as absent throughout.
    """
    row = without_none(as_object(row, "row"))
    image = _image(keys.get(row, "image"))
    if image is None:
        raise DataError("image", f"there is no image. Needed is a column {' or '.join(map(repr, keys.image))}.")
    regions = row.get("regions")
    if isinstance(regions, list) and any(isinstance(region, dict) and "branches" in region for region in regions):
        found = Record.from_json({**row, "image": "image"}, where)
        return Record(image, found.regions, as_id(row.get("id")), where)
    rest = {**row, keys.image[0]: "image"}
    if keys.get(row, "regions") is None and keys.get(row, "mask") is None:
        found = _whole_image(rest, where, keys, left_out)
    else:
        found = described.osprey(rest, where, keys, left_out)
    return Record(image, found.regions, found.id, where)


def _whole_image(row: dict[str, Any], where: str, keys: Keys, left_out: Counter[str]) -> Record:
    if keys.get(row, "conversations") is not None:
        return described.llava(row, where, keys, left_out)
    for field in ("answer", "caption", "global_caption", "dense_caption"):
        if (text := keys.get(row, field)) is not None:
            question = keys.get(row, "question") if field == "answer" else None
            branch = Branch(as_text(text, field), None if question else "global", question)
            return Record("image", (Region(None, (branch,)),), as_id(keys.get(row, "id")), where)
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


def without_none(value: Any) -> Any:
    """A row without what Arrow filled in for keys that it does not have."""
    if isinstance(value, dict):
        return {key: without_none(entry) for key, entry in value.items() if entry is not None}
    return [without_none(entry) for entry in as_list(value, "list")] if isinstance(value, list) else value
