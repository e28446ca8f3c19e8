"""`transformers.TrainingArguments` from texts, recipes and stages."""

import os
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn

import torch
from transformers import HfArgumentParser, TrainingArguments

from ..prompts_finecaption import nearest
from .stages import Stage, StageError

_OWN = {"output_dir": "--output", "resume_from_checkpoint": "--resume"}
_ALIASES = ("gradient_checkpointing", "activation_checkpointing")


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """As argparse calls it: `argument --a_b/--a-b: invalid int value: 'x'`, or what else it has to say."""
        found = re.fullmatch(r"argument (?:\S*/)?(\S+): invalid (int|float) value: (.*)", message)
        if found:
            needed = {"int": "a whole number", "float": "a number"}[found[2]]
            raise StageError(f"{found[1]}: {found[3]} arrived, {needed} is needed.")
        raise StageError(f"{message.removeprefix('argument ').rstrip('.')}.")


def parse_options(texts: Sequence[str], others: Sequence[str] = ()) -> dict[str, Any]:
    """Options of `TrainingArguments` as they stand on a command line, with dashes or underscores; only those given.

    Args:
        texts: the command line.
        others: options beside those, such as `--eval-data`, which a misspelt one may mean.

    Raises:
        StageError: If there is no such option, or its value is of the wrong kind.
    """
    parser = _Parser(TrainingArguments, add_help=False, allow_abbrev=False)
    names = [item.name for item in fields(TrainingArguments) if item.init]
    # What the namespace has already gets no default.
    given, unknown = parser.parse_known_args(list(texts), Namespace(**dict.fromkeys(names, _NOT_GIVEN)))
    if unknown:
        known = [f"--{option}" for name in names for option in (name, name.replace("_", "-"))]
        near = nearest(unknown[0].split("=")[0], [*others, *known])
        hint = f" Did you mean {near}?" if near else ""
        raise StageError(
            f"There is no option {unknown[0]}.{hint} All options of transformers.TrainingArguments can be given."
        )
    values = {name: value for name, value in vars(given).items() if value is not _NOT_GIVEN}
    for name, own in _OWN.items():
        if name in values:
            raise StageError(f"Give {own} instead of --{name}.")
    return values


_NOT_GIVEN = object()


def build_arguments(
    stage: Stage, output: str, common: Mapping[str, Any], given: Mapping[str, Any], has_eval_data: bool
) -> TrainingArguments:
    """The arguments with which a stage trains.

    Args:
        stage: its learning rate, batch size and `training`.
        output: folder of the checkpoints.
        common: those of all stages of a recipe.
        given: those of the command line; they win.
        has_eval_data: whether there is something to evaluate on.

    Raises:
        StageError: If an argument is unknown, or the batch sizes do not fit together.
    """
    known = {item.name for item in fields(TrainingArguments) if item.init}
    values = {**stage.training_arguments(common), **given}
    unknown = sorted(values.keys() - known)
    if unknown:
        near = nearest(unknown[0], known)
        hint = f" Did you mean {near!r}?" if near else ""
        raise StageError(f"transformers.TrainingArguments has no {', '.join(unknown)}.{hint}")
    if values.get("remove_unused_columns"):
        raise StageError("Examples have no columns to remove: leave remove_unused_columns out.")
    if values.get("push_to_hub"):
        # The trainer's own upload would take run.json with it, which names folders of this machine.
        raise StageError("push_to_hub uploads what does not belong on the Hub. Leave it out; use finecaption push.")
    for name in ("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm"):
        if isinstance(values.get(name), str):  # YAML reads 1e-3, without a dot, as text
            values[name] = float(values[name])
    if not any(name in values for name in _ALIASES) and stage.activation_checkpointing:
        values["activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"] = True
    values.update(_batch_sizes(stage, values))
    # Without it, the library asks for a GPU when bf16 is on.
    values.setdefault("use_cpu", not torch.accelerator.is_available())
    values.setdefault("report_to", "none")
    values.setdefault("logging_steps", 10)
    values.setdefault("dataloader_pin_memory", torch.cuda.is_available())  # it warns where there is nothing to pin for
    values.setdefault("eval_strategy", values.get("save_strategy", "steps") if has_eval_data else "no")
    if values["eval_strategy"] == "steps" and values.get("save_strategy", "steps") == "steps":
        values.setdefault("eval_steps", values.get("save_steps", 500))
    if not has_eval_data and values["eval_strategy"] != "no":
        raise StageError("There is no evaluation without data for it. Give --eval-data or --eval-share.")
    try:
        return TrainingArguments(**{**values, "output_dir": output, "remove_unused_columns": False})
    except (ValueError, TypeError) as error:
        raise StageError(f"transformers.TrainingArguments: {error}") from error


def num_processes() -> int:
    """How many processes torchrun or accelerate launch started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _batch_sizes(stage: Stage, values: Mapping[str, Any]) -> dict[str, int]:
    """Items per process and steps of accumulation that make up the stage's global batch."""
    world = num_processes()
    total = stage.global_batch_size
    if total % world:
        raise StageError(f"global_batch_size {total} cannot be shared by {world} processes; make it a multiple.")
    of_process = total // world
    accumulation = values.get("gradient_accumulation_steps")
    per_device = values.get("per_device_train_batch_size")
    if accumulation is not None:
        if per_device is None:
            per_device = max(1, of_process // accumulation)
    elif per_device is None:
        per_device = max(size for size in range(1, min(8, of_process) + 1) if of_process % size == 0)
    if accumulation is None:
        if of_process % per_device:
            raise StageError(
                f"per_device_train_batch_size {per_device} times {world} processes does not divide the stage's "
                f"global_batch_size {total}. Change one of them, or give gradient_accumulation_steps, which wins."
            )
        accumulation = of_process // per_device
    return {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation}
