"""What records become at the end: tables, data sets, pages, and texts in a copy of the file that regions came from.

JSON Lines need nothing of this: they are the records.
"""

import os
from pathlib import Path

from ...data import annotations
from ...data.regions import RegionInputs
from ...prompts_finecaption import no_such
from .arrow import Parquet, SavedDataset
from .back import Coco, SameKind
from .base import Output, Record, Records
from .page import Html
from .table import Csv

JSONL, SAME = "jsonl", "same"
_JSONL_SUFFIXES = (".jsonl", ".ndjson", "")
_OUTPUTS: tuple[type[Output], ...] = (Csv, Parquet, SavedDataset, Coco, Html)


def name_output(output: Path, given: str | None) -> str:
    """The form of an output: the one that was given, or that of its suffix.

    Raises:
        ValueError: If there is no such form, or the suffix tells none.
    """
    names = (JSONL, *(each.name for each in _OUTPUTS), SAME)
    if given is not None:
        if given not in {*names, *(each.format for each in annotations.ANNOTATION_FORMATS)}:
            raise ValueError(no_such("output format", given, names))
        return given
    suffix = output.suffix.lower()
    if suffix in _JSONL_SUFFIXES:
        return JSONL
    for each in _OUTPUTS:
        if suffix in each.suffixes:
            return each.name
    raise ValueError(f"{output.name}: its suffix tells no format. Give --output-format: {', '.join(names)}.")


def is_folder(name: str) -> bool | None:
    """Whether an output of this form is a folder; `None` if the input decides."""
    if name == JSONL:
        return False
    return next((each.is_folder for each in _OUTPUTS if each.name == name), None)


def choose_output(output: Path, given: str | None, inputs: RegionInputs) -> Output | None:
    """What makes an output; `None` for JSON Lines.

    Args:
        output: file or folder to make.
        given: name of the form; `None` means that the suffix tells it.
        inputs: what is described.

    Raises:
        ValueError: If the form is unknown or cannot be made of this input, or the suffix may mean several.
    """
    name, opened = name_output(output, given), inputs.annotations
    _leave_input_alone(output, name, inputs)
    made = next((each for each in _OUTPUTS if each.name == name), None)
    if name == JSONL:
        return None
    if name == SAME or opened is None:
        return SameKind(inputs) if made is None else made(inputs)
    if name == opened.format and (opened.takes_texts or made is None):
        return SameKind(inputs)
    if given is None and made is Coco and opened.takes_texts:
        raise ValueError(
            f"{output.name} may be made of COCO (--output-format coco) or, as the input, of {opened.title} "
            "(--output-format same). Give the one that is meant."
        )
    if made is None:
        raise ValueError(
            f"{inputs.name} was read as {inputs.title}; texts are put back into the same kind of file only "
            f"(--output-format same), not into {name}."
        )
    return made(inputs)


def _leave_input_alone(output: Path, name: str, inputs: RegionInputs) -> None:
    made = Path(os.path.realpath(output))
    if inputs.path is None or not inputs.path.exists():
        return
    source = Path(os.path.realpath(inputs.path))
    if made == source or made in source.parents:
        raise ValueError(f"{output} is, or holds, the input, which stays as it is. Give another name.")
    # What no format of annotations takes for a part of a folder may lie in it.
    if source in made.parents and name not in (JSONL, Csv.name, Parquet.name):
        raise ValueError(f"{output} lies in the input {source.name}, and would be a part of it. Give another place.")


__all__ = ["Output", "Record", "Records", "choose_output", "is_folder", "name_output"]
