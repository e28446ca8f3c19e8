"""Training: stages as declarations, applied to the stock `transformers.Trainer`, and an entry point.

>>> from finecaption_hf.training import STAGES, StageCallback
>>> trainer = Trainer(model=model, args=args, train_dataset=dataset, callbacks=[StageCallback(STAGES[2])])

Importing this package is cheap; what needs torch is imported when one of its names is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .stages import STAGES, Stage, StageError, find_stage

if TYPE_CHECKING:
    from .callback import StageCallback, apply_stage
    from .dataset import WholeImageDataset
    from .runner import train
    from .streaming import ExampleStream
    from .trainer import StageTrainer

_LAZY = {
    "ExampleStream": "streaming",
    "StageCallback": "callback",
    "StageTrainer": "trainer",
    "WholeImageDataset": "dataset",
    "apply_stage": "callback",
    "train": "runner",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


__all__ = [
    "STAGES",
    "ExampleStream",
    "Stage",
    "StageCallback",
    "StageError",
    "StageTrainer",
    "WholeImageDataset",
    "apply_stage",
    "find_stage",
    "train",
]
