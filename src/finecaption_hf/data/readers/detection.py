"""Which format a file has, told by its first elements."""

import os
from pathlib import Path
from typing import Any, Literal

from ...masks_finecaption import REGION_KEYS
from ..annotations import recognise
from ..annotations.coco import CocoInstances
from ..examples import DataError, keys_of
from ..json_stream import JsonStream, is_packed, json_lines, open_json
from .keys import COMPOSITIONCAP, OSPREY, Keys

Format = Literal["compositioncap", "refcoco", "grand", "llava", "osprey", "jsonl", "datasets"]

_LINES = 20
_MAX_LINE_BYTES = 2**20
_ASK = "Give format=... (--format)."


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of a `datasets.Dataset` or `DatasetDict`."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def has_elements(path: str | os.PathLike[str], keys: Keys) -> bool:
    """Whether the object that a file starts with is one element of JSONL, rather than an object of all elements."""
    with open_json(path) as file:
        stream = JsonStream(file, os.fspath(path))
        for key in stream.names():
            if key in (*keys.image, *keys.regions):
                return True
            if _has(stream.value(), keys.regions):
                return False
    return True


def has_image_captions(path: Path) -> bool:
    """Whether the first of a COCO file's `images` has a caption of its own, as files of RefCOCO have."""
    with open_json(path) as file:
        stream = JsonStream(file, str(path))
        for key in stream.names():
            if key == "images" and stream.peek() == "[":
                return _has(next(iter(stream.elements()), None), ("caption",))
            stream.skip()
    return False


def detect_format(path: Path) -> Format:
    """The format of a file or folder.

    Raises:
        DataError: If it is none of those that are known.
    """
    if path.is_dir():
        if is_saved_dataset(path):
            return "datasets"
        if next(path.glob("*.json"), None) is not None:
            return "grand"
        raise DataError(str(path), "this folder holds neither GranD's .json files nor a saved dataset. Name a file.")
    with open_json(path) as file:
        stream = JsonStream(file, str(path))
        try:
            mark = stream.peek()
        except DataError as error:
            raise DataError(str(path), f"this is no JSON: {error.reason}") from error
        if mark == "[":
            first = next(iter(stream.elements()), None)
            if first is None:
                raise DataError(str(path), f"the list is empty, so its format cannot be told. {_ASK}")
            return _of_element(first, path)
        if mark != "{":
            raise DataError(str(path), f"this is no JSON: it starts with neither [ nor {{. {_ASK}")
        # An object may be the first line of JSONL, or the whole file.
        try:
            return _of_object(stream, path)
        except DataError:
            for number, _, _, value in json_lines(path, max_bytes=_MAX_LINE_BYTES):
                if isinstance(value, dict) and _element_format(value) is not None:
                    return _of_element(value, path)
                if number >= _LINES:
                    break
            raise


def _of_object(stream: JsonStream, path: Path) -> Format:
    element: dict[str, Any] = {}
    try:
        for key in stream.names():
            if key in ("images", "annotations") and stream.peek() == "[":
                if isinstance(next(iter(stream.elements()), None), dict):
                    # Relatives of COCO have lists of these names, too.
                    known = [] if is_packed(path) else recognise(path)
                    if others := [each.title for each in known if each is not CocoInstances]:
                        raise DataError(
                            str(path), f"this is {others[0]}: regions without texts. They can be described."
                        )
                    return "refcoco"
                break
            value = element[key] = stream.value()
            if isinstance(value, dict) and isinstance(value.get("objects"), list):
                return "grand"
            if isinstance(value, list) and value and _has(value[0], ("labels",)) and _has(value[0], ("bbox",)):
                return "grand"
            if _has(value, COMPOSITIONCAP.regions):
                return "compositioncap"
        else:
            return _of_element(element, path)
    except DataError as error:
        raise DataError(str(path), error.reason) from error
    raise DataError(str(path), f"its format cannot be told. {_ASK}")


def _of_element(value: Any, path: Path) -> Format:
    found = _element_format(value)
    if found is None:
        keys = keys_of(value) if isinstance(value, dict) else "no objects"
        raise DataError(str(path), f"its format cannot be told: in the first element there are {keys}. {_ASK}")
    return found


def _element_format(value: Any) -> Format | None:
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("region_index"), int) and _has(value, ("answers", "error")):  # a record of `describe`
        return "jsonl"
    regions = value.get("regions")
    if isinstance(regions, list) and any(isinstance(region, dict) and "branches" in region for region in regions):
        return "jsonl"
    masked = _has(value, (*REGION_KEYS, *OSPREY.regions))
    if masked and _has(value, OSPREY.image) and _has(value, ("conversations", "description", "caption", "answer")):
        return "osprey"
    if _has(value, COMPOSITIONCAP.image) and _has(value, COMPOSITIONCAP.regions):
        return "compositioncap"
    if _has(value, ("conversations",)) and not masked:
        return "llava"
    return None


def _has(value: Any, names: tuple[str, ...]) -> bool:
    return isinstance(value, dict) and any(value.get(name) is not None for name in names)
