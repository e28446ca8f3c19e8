"""Checkpoints of a stage: sealed when they are whole, and found again."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..resuming import ResumeError, check_same, read_seal, seal
from .stages import Stage


def seal_checkpoint(folder: Path, stage: Stage, learning_rate: float, step: int, num_processes: int) -> None:
    """Declare a checkpoint whole.

    `learning_rate` is the one that was trained with, which an option may have changed from the stage's.
    """
    about = {"stage": stage.to_dict(), "learning_rate": learning_rate, "global_step": step}
    seal(folder, {**about, "num_processes": num_processes})


def check_same_stage(written: dict[str, Any], stage: Stage, place: Path | str) -> None:
    """Refuse a checkpoint of another stage.

    Args:
        written: `Stage.to_dict` of the stage that wrote it.
        place: where it is, for the message.

    Raises:
        ResumeError: If the names differ, or what trains.
    """
    if written["name"] != stage.name:
        raise ResumeError(
            f"{place} is a checkpoint of stage {written['name']!r} and cannot be resumed in stage {stage.name!r}. "
            "Start a new stage from its weights: load the model with from_pretrained and train without resuming."
        )
    own = stage.to_dict()
    remedy = "Resume with the same stage, or start a new one with from_pretrained."
    check_same(written, {name: own[name] for name in ("trains", "peft")}, place, remedy)


def last_checkpoint(output: Path, stage: Stage, tell: Callable[[str], None], *, discard: bool) -> Path | None:
    """The newest whole checkpoint of a stage's folder.

    Args:
        output: the folder that holds `checkpoint-N`.
        stage: the stage that wrote them.
        tell: gets a line about every torn one.
        discard: delete torn ones; only one of several processes may.

    Raises:
        ResumeError: If the newest whole one belongs to another stage.
    """
    folders = [
        (int(match[1]), path) for path in output.iterdir() if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    newest = None
    for _, folder in sorted(folders, reverse=True):
        try:
            sealed = read_seal(folder)
        except ResumeError as error:
            tell(f"Skipping {folder.name}: {error}")
            # What another attempt left in it must not mix with what this one will write.
            if discard:
                shutil.rmtree(folder)
            continue
        if newest is None:
            check_same_stage(sealed["stage"], stage, folder)
            newest = folder
    return newest
