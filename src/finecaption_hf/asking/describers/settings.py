"""Options that stand in YAML, checked against the signatures of what takes them."""

import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, get_args, get_origin

from ...prompts_finecaption import no_such
from ..errors import DescriberError

_WORDS: dict[Any, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Mapping: "a mapping",
}


def options_of(*functions: Callable[..., Any], without: tuple[str, ...] = ()) -> dict[str, tuple[type, ...]]:
    """The arguments of functions, each with the kinds of value that may stand in YAML for it; none means any."""
    options: dict[str, tuple[type, ...]] = {}
    for function in functions:
        for name, parameter in inspect.signature(function).parameters.items():
            if name not in without and parameter.kind is not parameter.VAR_KEYWORD:
                annotation = parameter.annotation
                kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
                plain = (get_origin(kind) or kind for kind in kinds)
                options[name] = tuple(kind for kind in plain if kind in (*_WORDS, type(None)))
    return options


def check_options(given: Mapping[Any, Any], known: Mapping[str, tuple[type, ...]], owner: str) -> None:
    """Refuse what cannot be meant.

    Args:
        given: by their names.
        known: as `options_of` gives them.
        owner: what has the options, for the error.

    Raises:
        DescriberError: If there is no option of a name, or a value is of another kind.
    """
    for name, value in given.items():
        if name not in known:
            raise DescriberError(f"{owner}: {no_such('option', name, known)}")
        kinds = known[name]
        fits = isinstance(value, kinds) or (isinstance(value, int) and float in kinds)
        if kinds and (not fits or (isinstance(value, bool) and bool not in kinds)):
            wanted = next(_WORDS[kind] for kind in kinds if kind in _WORDS)
            quotes = " Put it in quotes." if str in kinds and isinstance(value, (int, float)) else ""
            raise DescriberError(f"{name} of {owner} is {value!r}; {wanted} is needed.{quotes}")
