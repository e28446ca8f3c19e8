"""How answers stand in annotations of COCO's family."""

from collections.abc import Mapping
from typing import Any

from ...prompts_finecaption import normalise_name
from .files import one_text

_CAPTIONS = ("region", "dense")


def texts_of(answers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """What stands under `caption` and under `attributes`.

    One answer is the caption. Of several, all are attributes, and the one to the question `region` or `dense` is the
    caption; without either of them it has a line `name: text` for each.
    """
    if len(answers) == 1:
        return one_text(answers), {}
    caption = next((text for name, text in answers.items() if normalise_name(name) in _CAPTIONS), None)
    return one_text(answers) if caption is None else caption, dict(answers)


def with_texts(annotation: dict[str, Any], answers: Mapping[str, str]) -> dict[str, Any]:
    """An annotation with answers under `caption` and, where there are several, beside its own `attributes`."""
    caption, attributes = texts_of(answers)
    own = annotation.get("attributes")
    if attributes and (own is None or isinstance(own, dict)):
        return {**annotation, "caption": caption, "attributes": {**(own or {}), **attributes}}
    return {**annotation, "caption": caption}
