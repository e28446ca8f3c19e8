"""Placeholders and entity references in the texts of datasets."""

import re

_ENTITY = re.compile(r"\(\s*entity[_ ]?(?:id)?[_ ]?\d+(?:\s*,\s*entity[_ ]?(?:id)?[_ ]?\d+)*\s*\)", re.IGNORECASE)
_IMAGE = re.compile(r"<image>(?:\s*\n)?|\n?<image>\s*$", re.IGNORECASE)
# <region>, <region1>, <mask>, <mask><pos>, and the bare "region1" of Osprey's conversations.
_REGION = re.compile(r"<(?:region|mask)s?\s*(\d*)>(?:<pos>)?|\bregion(\d+)\b", re.IGNORECASE)
_INTRODUCTION = re.compile(r"^\s*<[^<>]*>\s*:\s*")

MARKED = "the marked region"
"""What a placeholder of the region that is asked about becomes."""


def without_entities(text: str) -> str:
    """Take references such as "(entity_id_3)" out of a text, and the white space that they leave behind."""
    if "ntity" not in text.lower():
        return text
    parts = _ENTITY.split(text)
    if len(parts) == 1:
        return text
    result = parts[0]
    for part in parts[1:]:
        left, right = result.rstrip(" "), part.lstrip(" ")
        glue = "" if not left or not right or right[0] in ".,;:!?)]}'\"’”\n" or left[-1] in "([{\n" else " "
        result = left + glue + right
    return result.strip()


def without_image(text: str) -> str:
    """Take LLaVA's placeholder of the image out of a question."""
    return _IMAGE.sub("", text).strip()


def mentioned_regions(text: str) -> list[int | None]:
    """The regions that a text mentions by number (from 1), in order; `None` for a placeholder without a number."""
    numbers = [bracketed or bare for bracketed, bare in _REGION.findall(text)]
    return [None if not number else int(number[:9]) for number in numbers]


def with_marked_region(text: str) -> str:
    """Put words in the place of all mentions of a region."""

    def words(match: "re.Match[str]") -> str:
        before = text[: match.start()].rstrip()
        return MARKED.capitalize() if not before or before[-1] in ".!?" else MARKED

    return _REGION.sub(words, text)


def without_introduction(text: str) -> str:
    """ "<region1>: a cup" -> "a cup"."""
    return _INTRODUCTION.sub("", text)
