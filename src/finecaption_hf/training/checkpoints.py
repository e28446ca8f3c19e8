"""Checkpoints of a stage: sealed when they are whole, and found again."""

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..resuming import ResumeError, check_same, read_seal, seal
from .stages import Stage, StageError


def seal_checkpoint(folder: Path, stage: Stage, learning_rate: float, step: int, num_processes: int) -> None:
    """Declare a checkpoint whole.

    `learning_rate` is the one that was trained with, which an option may have changed from the stage's.
    """
    about = {"stage": stage.to_dict(), "learning_rate": learning_rate, "global_step": step}
    seal(folder, {**about, "num_processes": num_processes})


def check_weights(folder: Path, names: Iterable[str]) -> None:
    """Refuse to declare a checkpoint whole that lacks weights.

    Args:
        names: of the parameters that it must hold.

    Raises:
        StageError: If one is missing or empty.
    """
    saved = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            saved |= {name for name in file.keys() if 0 not in file.get_slice(name).get_shape()}  # noqa: SIM118
    wanted = sorted(names)
    missing = [name for name in wanted if name not in saved]
    if missing:
        raise StageError(
            f"{folder} lacks {len(missing)} of {len(wanted)} tensors, such as {missing[0]}, so it was not declared "
            "whole. Where processes hold parts of the weights, they have to be gathered: set "
            "stage3_gather_16bit_weights_on_model_save: true for DeepSpeed ZeRO-3, state_dict_type: FULL_STATE_DICT "
            "for FSDP."
        )


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
