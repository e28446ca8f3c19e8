"""The stage-aware callback of the stock `transformers.Trainer`."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..resuming import SEAL, ResumeError, read_seal
from .adapters import ADAPTER_FOLDER, add_adapters, has_adapters, load_adapters, save_adapters, save_merged
from .checkpoints import check_same_stage, check_weights, seal_checkpoint
from .stages import Stage, StageError

logger = logging.getLogger(__name__)

_PARTS = {"vision_tower", "convnext_tower", "sam_tower", "adapter", "language_model"}


@dataclass(frozen=True)
class TrainableRow:
    """Of one part of the model: how many tensors and values train, of how many."""

    part: str
    tensors: int
    all_tensors: int
    values: int
    all_values: int


def apply_stage(model: nn.Module, stage: Stage) -> list[TrainableRow]:
    """Let exactly the stage's parameters require a gradient, in place; an optimizer must not exist yet.

    Args:
        model (`FineCaptionForConditionalGeneration`): as `from_pretrained` gives it; a stage with `peft` puts its
            adapters into it.
        stage (`Stage`): what trains.

    Returns:
        `list[TrainableRow]`: what trains of each part of the model.

    Raises:
        StageError: If a pattern matches nothing, the number of parameters is not the declared one, or adapters of
            another stage are in the model.
    """
    if has_adapters(model):
        raise StageError("The model already holds adapters of a stage. Start a stage from from_pretrained.")
    parameters = dict(model.named_parameters())
    chosen = [parameters[name] for name in stage.select(parameters)]
    for parameter in chosen:
        if not parameter.is_floating_point():
            raise StageError(f"Stage {stage.name!r} trains quantised parameters. Train adapters (peft) instead.")
    model.requires_grad_(False)
    if stage.peft is not None:
        # Freezes all that is there and adds what trains.
        add_adapters(model, stage)
    for parameter in chosen:
        parameter.requires_grad_(True)
    if any("sam_tower" in name for name, parameter in model.named_parameters() if parameter.requires_grad):
        config: Any = model.config
        config.sam_pretrained = None  # what is trained is no longer the published encoder
    return trainable_table(model)


def trainable_table(model: nn.Module) -> list[TrainableRow]:
    """What trains of each part; parameters that are shared count once."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        path = name.split(".")
        row = counts.setdefault(path[1] if path[0] == "model" and path[1] in _PARTS else path[0], [0, 0, 0, 0])
        size = parameter.numel()
        row[1] += 1
        row[3] += size
        if parameter.requires_grad:
            row[0] += 1
            row[2] += size
    return [TrainableRow(part, *row) for part, row in counts.items()]


def format_table(rows: list[TrainableRow]) -> str:
    total = TrainableRow("total", *(sum(getattr(row, name) for row in rows) for name in _COLUMNS))
    return "\n".join(
        f"  {row.part:<16} {row.values:>16,} of {row.all_values:>16,} values in {row.tensors:>5,} of "
        f"{row.all_tensors:>5,} tensors"
        for row in [*rows, total]
    )


_COLUMNS = ("tensors", "all_tensors", "values", "all_values")


class StageCallback(TrainerCallback, ExportableState):
    """Makes a stock `Trainer` train one stage: `Trainer(..., callbacks=[StageCallback(STAGES[2])])`.

    It freezes and checks before the optimizer exists, logs what trains, seals every checkpoint with its stage
    (`stage.json`, written last), and refuses to resume a checkpoint of another stage: a `StageTrainer` before anything
    is loaded, a stock `Trainer` unless the optimizer, which it loads first, does not fit either. One `Trainer` trains
    one stage; the next starts from `from_pretrained`.

    Args:
        stage (`Stage`): what trains; also as the plain values of `Stage.to_dict`.

    Raises:
        StageError: In `Trainer(...)` where the stage does not fit the model or an optimizer already exists; in
            `Trainer.train` where the callback was added after construction, or something changed what trains.
        ResumeError: In `Trainer.train` where the checkpoint is of another stage, or not of a stage.
    """

    def __init__(self, stage: Stage | Mapping[str, Any]) -> None:
        self.stage = stage if isinstance(stage, Stage) else Stage.from_dict(stage)
        self.table: list[TrainableRow] = []
        self._names: set[str] | None = None
        self._weights: list[str] = []  # what a checkpoint holds: parameters before adapters and shards rename them
        self._resumed: Path | None = None
        self._use_cache: dict[str, Any] = {}  # of the configuration and of the language model's, before training

    def state(self) -> dict[str, Any]:
        """What the trainer writes into `trainer_state.json`."""
        return {"args": {"stage": self.stage.to_dict()}, "attributes": {}}

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        model = kwargs["model"]
        if kwargs.get("optimizer") is not None:
            raise StageError(
                f"Stage {self.stage.name!r} was attached too late: the optimizer that was given to Trainer(...) exists "
                "already and holds what is to be frozen. Leave optimizers out; Trainer makes one after the stage."
            )
        if args.remove_unused_columns:
            raise StageError(
                "Examples have no columns to remove: set remove_unused_columns=False in TrainingArguments."
            )
        if self.stage.peft is not None and args.load_best_model_at_end:
            raise StageError("load_best_model_at_end cannot take adapters out of merged weights. Leave it out.")
        self._weights = [name for name, _ in model.named_parameters()]
        self.table = apply_stage(model, self.stage)
        self._names = _trainable_names(model)
        logger.info("Stage %r trains:\n%s", self.stage.name, format_table(self.table))
        if args.save_total_limit == 1:
            # Until the newest checkpoint is whole, the one before it is what there is to continue from.
            logger.warning("save_total_limit=1 is raised to 2, so that a whole checkpoint exists at any moment.")
            args.save_total_limit = 2
        # The trainer turns caching of keys and values off at the top level only, after this, and for good.
        self._use_cache = {
            "": getattr(model.config, "use_cache", None),
            "text_config": getattr(model.config.text_config, "use_cache", None),
        }

    def resumes(self, folder: Path | None) -> None:
        """Take note of the checkpoint that the trainer is about to load; `None` if it starts anew.

        Raises:
            ResumeError: If it is torn, or of another stage.
        """
        if folder is not None and (folder / SEAL).is_file():
            check_same_stage(read_seal(folder)["stage"], self.stage, folder)
        self._resumed = folder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = kwargs["model"]
        if self._names is None:
            raise StageError(
                f"Stage {self.stage.name!r} was attached too late: the optimizer exists already. Give it to the "
                "constructor, Trainer(..., callbacks=[StageCallback(stage)]), not to add_callback."
            )
        changed = _trainable_names(model) ^ self._names
        if changed:
            raise StageError(
                f"What trains is not what stage {self.stage.name!r} declared: {', '.join(sorted(changed)[:5])} "
                f"({len(changed)} in all) changed since Trainer(...). Leave requires_grad alone, and use no model_init."
            )
        if state.global_step > 0:
            self._continue(args, state, model)
        model.config.text_config.use_cache = False

    def _continue(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        written = state.stateful_callbacks.get(type(self).__name__) if state.stateful_callbacks else None
        where = f"The checkpoint of step {state.global_step}"
        if not isinstance(written, dict):
            raise ResumeError(f"{where} was not written in a stage. Start a new stage from it with from_pretrained.")
        check_same_stage(written["args"]["stage"], self.stage, where)
        if self.stage.peft is not None:
            folder = self._resumed or _own_checkpoint(args, state)
            load_adapters(model, folder / ADAPTER_FOLDER)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed:
            torch.distributed.barrier()  # every process has written its part
        if args.should_save:
            self.complete(kwargs["model"], folder)
            seal_checkpoint(folder, self.stage, args.learning_rate, state.global_step, args.world_size)

    def complete(self, model: Any, folder: Path) -> None:
        """Make what `Trainer.save_model` wrote a folder that loads and generates like any other checkpoint.

        Raises:
            StageError: If it lacks weights.
        """
        if self.stage.peft is not None:
            save_merged(model, folder)
            save_adapters(model, self.stage, folder / ADAPTER_FOLDER)
        check_weights(folder, self._weights)
        path = folder / "config.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        # Training goes without the cache of keys and values; a checkpoint generates as the model did before.
        for part, saved in self._use_cache.items():
            where = values[part] if part else values
            where.pop("use_cache", None)
            if saved is not None:
                where["use_cache"] = saved
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        config = kwargs["model"].config
        for part, saved in self._use_cache.items():
            where = getattr(config, part) if part else config
            if saved is not None:
                where.use_cache = saved
            elif hasattr(where, "use_cache"):
                del where.use_cache


def _trainable_names(model: nn.Module) -> set[str]:
    """Also of a model whose parts FSDP has wrapped to recompute their activations."""
    names = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return {name.replace("_checkpoint_wrapped_module.", "") for name in names}


def _own_checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder that a stock `Trainer` resumes, if it is one that it wrote itself: it tells callbacks no other.

    Raises:
        ResumeError: If it is not.
    """
    folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    path = folder / TRAINER_STATE_NAME
    if not path.is_file() or TrainerState.load_from_json(str(path)).log_history != state.log_history:
        raise ResumeError(
            f"The checkpoint that is resumed is not {folder}, and Trainer does not tell where its adapters lie. Use "
            "finecaption_hf.training.StageTrainer, which does."
        )
    return folder
