"""Checkpoints on the Hub: a model card from what a checkpoint knows, and all of it in one commit.

>>> from finecaption_hf.hub import push
>>> push(model, processor, "me/finecaption-tiny", private=True)
"""

from .card import model_card
from .errors import HubError
from .figures import read_report
from .provenance import Provenance, read_provenance
from .pushing import push, push_folder
from .renewing import Renewed, renew
from .repository import Pushed
from .spaces import push_space, write_space

__all__ = [
    "HubError",
    "Provenance",
    "Pushed",
    "Renewed",
    "model_card",
    "push",
    "push_folder",
    "push_space",
    "read_provenance",
    "read_report",
    "renew",
    "write_space",
]
