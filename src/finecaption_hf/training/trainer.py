"""A `Trainer` that is open about what it resumes."""

from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from .callback import StageCallback


class StageTrainer(Trainer):
    """A `Trainer` whose `StageCallback` learns at once what is resumed.

    The stock one tells callbacks when model and optimizer are loaded: by then the checkpoint of another stage has ended
    in an error about the size of the optimizer, and adapters can only be looked for in the output folder.

    Raises:
        ResumeError: In `train`, if the checkpoint is torn or of another stage.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, StageCallback):
                callback.resumes(Path(str(folder)) if folder else None)
        return super().train(resume_from_checkpoint, *args, **kwargs)
