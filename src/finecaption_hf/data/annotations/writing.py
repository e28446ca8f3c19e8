"""How answers stand in files of JSON, and files that appear only when they are complete."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ...prompts_finecaption import normalise_name
from ..errors import DataError

_CAPTIONS = ("region", "dense")


def texts_of(answers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """What stands under `caption` and under `attributes`.

    One answer is the caption. Of several, all are attributes, and the one to the question `region` or `dense` is the
    caption; without either of them it has a line `name: text` for each.
    """
    if len(answers) == 1:
        return next(iter(answers.values())), {}
    caption = next((text for name, text in answers.items() if normalise_name(name) in _CAPTIONS), None)
    lines = "\n".join(f"{name}: {text}" for name, text in answers.items())
    return lines if caption is None else caption, dict(answers)


def with_texts(annotation: dict[str, Any], answers: Mapping[str, str]) -> dict[str, Any]:
    """An annotation with answers under `caption` and, where there are several, beside its own `attributes`."""
    caption, attributes = texts_of(answers)
    own = annotation.get("attributes")
    if attributes and (own is None or isinstance(own, dict)):
        return {**annotation, "caption": caption, "attributes": {**(own or {}), **attributes}}
    return {**annotation, "caption": caption}


def check_target(original: Path, target: Path) -> None:
    """Refuse to write into what was read.

    Raises:
        DataError: If the target is the original, or lies in its folder.
    """
    place, kept = target.resolve(), original.resolve()
    if place == kept or (original.is_dir() and kept in place.parents):
        raise DataError(str(target), f"texts would be written into the original, {original}. Give another place.")


@contextmanager
def replacing(original: Path | None, target: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `target` when all of it is there, and is gone where that fails.

    Raises:
        DataError: If the target is the original.
    """
    if original is not None:
        check_target(original, target)
    partial = target.with_name(f"{target.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
