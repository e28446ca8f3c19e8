"""Checkpoints on the Hub: a model card from what a checkpoint knows, and all of it in one commit.

>>> from finecaption_hf.hub import push
>>> push("runs/tiny/3-everything/final", "me/finecaption-tiny", private=True)
"""

from .card import Evaluation, check_card, model_card
from .errors import HubError
from .provenance import Provenance, read_provenance
from .push import Pushed, push, push_model

__all__ = [
    "Evaluation",
    "HubError",
    "Provenance",
    "Pushed",
    "check_card",
    "model_card",
    "push",
    "push_model",
    "read_provenance",
]
