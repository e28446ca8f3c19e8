"""What work was begun with, and the seal that says that a folder is whole."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .writing import ResumeError, write_json

SEAL = "stage.json"
"""Written last into a folder: what it is, and the size of each of its files."""

_MAX_CHANGES = 4
_MAX_CHARACTERS = 80


def read_manifest(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        OSError: If there is none.
        ResumeError: If it is damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        raise ResumeError(f"{path} is damaged: {error}. Mend it, or give another --output.") from error
    return values


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is asked for now and was not then, a phrase for each value that differs.

    Args:
        then: as it was read.
        now: of the same form, as far as it is known; what only `then` has does not count.
    """
    # As JSON has them: a tuple comes back as a list.
    wanted = json.loads(json.dumps(dict(now)))
    return list(_changes("", {name: then.get(name) for name in wanted}, wanted))


def check_same(
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    place: object,
    remedy: str = "Give the same as then, or another --output.",
) -> None:
    """Refuse to go on with other work.

    Raises:
        ResumeError: If there are `differences`.
    """
    changes = differences(then, now)
    if changes:
        more = f"; and {len(changes) - _MAX_CHANGES} more" if len(changes) > _MAX_CHANGES else ""
        listed = "; ".join(changes[:_MAX_CHANGES])
        raise ResumeError(f"{place} was begun by another command. {listed}{more}. {remedy}")


def _changes(name: str, then: Any, now: Any) -> Iterator[str]:
    before, after = _parts(then), _parts(now)
    if before is not None and after is not None:
        for key in dict.fromkeys((*before, *after)):
            yield from _changes(f"{name}: {key}" if name else key, before.get(key), after.get(key))
    elif then != now:
        yield f"{name} was {_shown(then)}, now it is {_shown(now)}"


def _parts(value: Any) -> dict[str, Any] | None:
    """Those of an object by name, of a list of objects by number, from 1."""
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        return {str(number): part for number, part in enumerate(value, start=1)}
    return value if isinstance(value, dict) else None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > _MAX_CHARACTERS:  # paths often differ at their end only
        text = f"{text[: _MAX_CHARACTERS // 2 - 2]}...{text[1 - _MAX_CHARACTERS // 2 :]}"
    return "nothing" if value is None else text


def seal(folder: Path, values: Mapping[str, Any]) -> None:
    """Declare a folder whole, with all the files that it holds now. The seal appears at once or not at all."""
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (SEAL, f"{SEAL}.partial")
    }
    write_json(folder / SEAL, {**values, "files": sizes})


def read_seal(folder: Path) -> dict[str, Any]:
    """What the seal of a whole folder says.

    Raises:
        ResumeError: If there is none, or a file is missing or has another size.
    """
    path = folder / SEAL
    if not path.is_file():
        raise ResumeError(f"{folder} has no {SEAL}: it was not written to its end, or by something else.")
    sealed = read_manifest(path)
    for name, size in sealed["files"].items():
        file = folder / name
        there = file.stat().st_size if file.is_file() else None
        if there != size:
            state = "is missing" if there is None else f"has {there} bytes instead of {size}"
            raise ResumeError(f"{folder} is torn: {name} {state}.")
    return sealed
