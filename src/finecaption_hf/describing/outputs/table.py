"""CSV: a row for each region, the answers in columns of their own."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .base import FIRST, Output, Record, Records, well_formed

MAX_COLUMNS = 256
"""With more questions, or keys of one's own, they share a column, as JSON."""

_PLACE, _LAST = ("x0", "y0", "x1", "y1", "area"), "error"
# A mask is too long for the cell of a spreadsheet; the records beside the table have it.
_ELSEWHERE = {*FIRST, "mask", "mask_file", "box_xyxy", "area", "answers", "log_probs", "error", "errors"}
# With these a spreadsheet takes a text for a formula (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class Csv(Output):
    """UTF-8 with a byte order mark, by which spreadsheets tell it, and otherwise as RFC 4180 has it.

    Texts that a spreadsheet would take for a formula begin with an apostrophe. Lists and objects are JSON.
    """

    name = "csv"
    suffixes = (".csv",)

    def write(self, records: Records, target: Path) -> None:
        """See `Output`."""
        seen: set[str] = set()
        own: dict[str, None] = {}
        questions: dict[str, None] = {}
        has_log_probs = False
        for record in records():
            seen.update(key for key in FIRST if key in record)
            seen.update(_PLACE if "box_xyxy" in record else ())
            seen.update((_LAST,) if "error" in record or "errors" in record else ())
            _collect(own, (key for key in record if key not in _ELSEWHERE))
            _collect(questions, (*record.get("answers", ()), *record.get("errors", ())))
            has_log_probs = has_log_probs or "log_probs" in record
        one_own, one_answer = len(own) > MAX_COLUMNS, len(questions) > MAX_COLUMNS
        taken = {*FIRST, *_PLACE, _LAST, "log_probs"}
        head = [
            *(key for key in FIRST if key in seen),
            *(["own"] if one_own else _unlike(taken, own, "input")),
            *(key for key in _PLACE if key in seen),
            *(["answers"] if one_answer else _unlike(taken, questions, "answer")),
            *(["log_probs"] if has_log_probs else []),
            *([_LAST] if _LAST in seen else []),
        ]
        with open(target, "w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file, lineterminator="\r\n")
            writer.writerow(map(_cell, head))
            for record in records():
                answers = record.get("answers", {})
                mine = {key: record[key] for key in record if key not in _ELSEWHERE}
                box = dict(zip(_PLACE, (*record.get("box_xyxy", ()), record.get("area"))))
                row = [
                    *(record.get(key) for key in FIRST if key in seen),
                    *([mine] if one_own else map(mine.get, own)),
                    *(box.get(key) for key in _PLACE if key in seen),
                    *([answers] if one_answer else map(answers.get, questions)),
                    *([record.get("log_probs")] if has_log_probs else []),
                    *([_reasons(record)] if _LAST in seen else []),
                ]
                writer.writerow(map(_cell, row))


def _collect(names: dict[str, None], more: Iterable[str]) -> None:
    """Note names in the order in which they come, and one more than there may be."""
    for name in more:
        if len(names) > MAX_COLUMNS:
            return
        names.setdefault(name)


def _unlike(taken: set[str], names: Iterable[str], kind: str) -> list[str]:
    """Names of columns; of one that is taken, with what it is before it."""
    columns = []
    for name in names:
        while name in taken:
            name = f"{kind}: {name}"
        taken.add(name)
        columns.append(name)
    return columns


def _reasons(record: Record) -> str | None:
    if "error" in record:
        return f"{record['error']['type']}: {record['error']['message']}"
    return "\n".join(f"{name}: {why['message']}" for name, why in record.get("errors", {}).items()) or None


def _cell(value: Any) -> Any:
    if isinstance(value, bool | dict | list):
        value = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        return value
    value = well_formed(value)
    return f"'{value}" if value.startswith(_FORMULA) else value
