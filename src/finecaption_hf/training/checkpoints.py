"""Whole and torn checkpoints: a record, written last, says which files belong to a checkpoint and how long they are."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .stages import Stage, StageError

RECORD = "stage.json"
"""Name of the record: stage, learning rate, step, number of processes, size of each file."""


def write_record(folder: Path, stage: Stage, learning_rate: float, step: int, num_processes: int) -> None:
    """Declare a checkpoint whole; the record appears at once or not at all.

    `learning_rate` is the one that was trained with, which an option may have changed from the stage's.
    """
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (RECORD, RECORD + ".partial")
    }
    record = {
        "stage": stage.to_dict(),
        "learning_rate": learning_rate,
        "global_step": step,
        "num_processes": num_processes,
        "files": files,
    }
    write_atomically(folder / RECORD, json.dumps(record, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a whole checkpoint.

    Raises:
        StageError: If the folder has none, or a file is missing or has another size.
    """
    path = folder / RECORD
    if not path.is_file():
        raise StageError(f"{folder} has no {RECORD}: it was not written to its end, or without StageCallback.")
    record = json.loads(path.read_text(encoding="utf-8"))
    for name, size in record["files"].items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise StageError(f"{folder} is torn: {name} {state}.")
    return record


def check_same_stage(record: dict[str, Any], stage: Stage, folder: Path | str) -> None:
    """Refuse a checkpoint of another stage.

    Raises:
        StageError: If the names differ, or what trains.
    """
    written = record["stage"]
    if written["name"] != stage.name:
        raise StageError(
            f"{folder} is a checkpoint of stage {written['name']!r} and cannot be resumed in stage {stage.name!r}. "
            "Start a new stage from its weights: load the model with from_pretrained and train without resuming."
        )
    own = stage.to_dict()
    for name in ("trains", "peft"):
        if written[name] != own[name]:
            raise StageError(
                f"{folder} was written by stage {stage.name!r} with {name} {written[name]}, which is now {own[name]}. "
                "Resume with the same stage, or start a new one with from_pretrained."
            )


def last_checkpoint(output: Path, stage: Stage, tell: Callable[[str], None], *, discard: bool) -> Path | None:
    """The newest whole checkpoint of a stage's folder.

    Args:
        output: the folder that holds `checkpoint-N`.
        stage: the stage that wrote them.
        tell: gets a line about every torn one.
        discard: delete torn ones; only one of several processes may.

    Raises:
        StageError: If the newest whole one belongs to another stage.
    """
    found = [
        (int(match[1]), path) for path in output.iterdir() if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    newest = None
    for _, folder in sorted(found, reverse=True):
        try:
            record = read_record(folder)
        except StageError as error:
            tell(f"Skipping {folder.name}: {error}")
            # What another attempt left in it must not mix with what this one will write.
            if discard:
                shutil.rmtree(folder)
            continue
        if newest is None:
            check_same_stage(record, stage, folder)
            newest = folder
    return newest
