"""A `Trainer` that is open about what it resumes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from .callback import StageCallback
from .stages import StageError
from .streaming import ExampleStream


class StageTrainer(Trainer):
    """A `Trainer` whose `StageCallback` learns at once what is resumed, and that takes a quantised model for a stage
    with adapters.

    The stock one refuses a quantised model before the stage can put its adapters in. It tells callbacks of a resumed
    checkpoint when model and optimizer are loaded: by then the checkpoint of another stage has ended in an error about
    the size of the optimizer, and adapters can only be looked for in the output folder.

    Args:
        model, args, callbacks, ..: as for `Trainer`.

    Raises:
        StageError: If the model is quantised and the stage has no adapters.
        ResumeError: In `train`, if the checkpoint is torn or of another stage.
    """

    def __init__(self, model: Any = None, *args: Any, callbacks: Sequence[Any] | None = None, **kwargs: Any) -> None:
        stages = [callback.stage for callback in callbacks or () if isinstance(callback, StageCallback)]
        quantised = bool(stages) and getattr(model, "is_quantized", False)
        if quantised and not any(stage.peft is not None for stage in stages):
            raise StageError(f"Stage {stages[0].name!r} trains quantised parameters. Train adapters (peft) instead.")
        if quantised:
            # What Trainer looks at; the callback attaches the adapters at the end of the same constructor. Afterwards
            # it would have checkpoints written as the library's adapter folders.
            model._hf_peft_config_loaded = True
        try:
            super().__init__(model, *args, callbacks=None if callbacks is None else list(callbacks), **kwargs)
        finally:
            if quantised:
                del model._hf_peft_config_loaded

    def get_train_dataloader(self) -> DataLoader:
        """As `Trainer`'s."""
        loader = super().get_train_dataloader()
        if isinstance(self.train_dataset, ExampleStream):
            # It would take its seed from the random numbers of training, which are those of the checkpoint by then.
            loader.base_dataloader.generator = torch.Generator()
        return loader

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, StageCallback):
                callback.resumes(Path(str(folder)) if folder else None)
        return super().train(resume_from_checkpoint, *args, **kwargs)
