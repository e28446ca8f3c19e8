"""Checkpoints on the Hub: a model card from what a checkpoint knows, and all of it in one commit.

>>> from finecaption_hf.hub import push
>>> push("runs/tiny/3-everything/final", "me/finecaption-tiny", private=True)

The code lies in Hub files, so that `push_to_hub` of a model loaded without this package does the same.
"""

from ..card_finecaption import HubError, Provenance, check_card, model_card, read_provenance, read_report
from ..hub_finecaption import Pushed, push, push_model
from .renew import Renewed, renew

__all__ = [
    "HubError",
    "Provenance",
    "Pushed",
    "Renewed",
    "check_card",
    "model_card",
    "push",
    "push_model",
    "read_provenance",
    "read_report",
    "renew",
]
