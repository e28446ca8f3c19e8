"""Rows with regions that may have texts -> examples: of files of annotation tools, and what `describe` wrote."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ...prompts_finecaption import ATTRIBUTES, TASKS, find_question, is_global
from ..columns import is_picture
from ..examples import Branch, DataError, Example, Region, as_id, as_object, as_text, keys_of, region_of

WITHOUT_CAPTION = "regions without a caption"


class NotDescribedError(DataError):
    """There may be regions, but no texts about any of them, or none whose format is known."""


def branches_of(entry: Mapping[str, Any]) -> list[Branch]:
    """The texts about a region: its `answers` by question, and its `caption`, which answers `region`.

    Blank ones are none. A question that is no known name, and has more than three words or a question mark, is one in
    own words.

    Raises:
        DataError: If one is no text.
    """
    answers = entry.get("answers")
    texts = dict(as_object(answers, "answers")) if answers is not None else {}
    if not any(isinstance(name, str) and name.lower() == "region" for name in texts):
        texts = {"region": entry.get("caption"), **texts}
    found = []
    for name, text in texts.items():
        if text is None or (isinstance(text, str) and not text.strip()):
            continue
        is_known = find_question(name, {**TASKS, **ATTRIBUTES}) is not None
        is_question = not is_known and (name.rstrip().endswith("?") or len(name.split()) > 3)
        found.append(Branch(as_text(text, name), None if is_question else name, name if is_question else None))
    return found


def annotated(row: Any, where: str, left_out: Counter[str], more: tuple[Region, ...] = ()) -> Example:
    """A row of an `AnnotationFile`, with `more` regions; those without a text are counted in `left_out`.

    Raises:
        NotDescribedError: If there is no text at all.
        DataError: If it, or a region with a text, cannot be used.
    """
    if isinstance(row, DataError):
        raise row
    regions = list(more)
    for number, entry in enumerate(row["regions"]):
        if not (branches := branches_of(entry)):
            left_out[WITHOUT_CAPTION] += 1
            continue
        if isinstance(mask := entry["mask"], DataError):
            raise mask.at(f"regions[{number}]")
        regions.append(Region(mask, tuple(branches), as_id(entry.get("id"))))
    if not regions:
        raise NotDescribedError(where, "no region of it has a caption.")
    return Example(row.get("picture", row["image"]), tuple(regions), as_id(row.get("id")), where)


def is_record(row: Any) -> bool:
    """Whether `describe` wrote this line, or the pipeline."""
    return isinstance(row, dict) and isinstance(row.get("region_index"), int) and ("answers" in row or "error" in row)


def recorded(row: dict[str, Any], where: str, left_out: Counter[str]) -> Example:
    """The record of a region. What was said of the whole picture stands in all records of it, and counts once.

    Raises:
        NotDescribedError: If nothing was said about the region.
        DataError: If the record cannot be used.
    """
    if row.get("answers") is None:
        left_out["regions that could not be described"] += 1
        raise NotDescribedError(where, "its region could not be described.")
    branches = branches_of({"answers": row["answers"]})
    own = tuple(branch for branch in branches if not is_global(branch.name or ""))
    whole = tuple(branch for branch in branches if is_global(branch.name or ""))
    regions = []
    if own:
        box = {} if "mask" in row or row.get("mask_file") is not None else {"box_xyxy": row.get("box_xyxy")}
        given = {key: row.get(key) for key in ("mask", "mask_file")} | box
        regions.append(Region(region_of(given)[1], own, as_id(row.get("id"))))
    if whole and row["region_index"] == 0:
        regions.append(Region(None, whole, "global"))
    if not regions:
        left_out[WITHOUT_CAPTION] += 1
        raise NotDescribedError(where, "nothing was said about its region.")
    image = row.get("image")
    if image is None or is_picture(image):
        raise DataError("image", f"it is missing; there are {keys_of(row)}.")
    return Example(image, tuple(regions), as_id(row.get("image_id")), where)
