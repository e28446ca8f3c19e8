"""The models that a page offers: each is loaded when it is asked, and one at a time is in memory."""

import gc
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ..asking import Describer, load_describer
from ..prompts_finecaption import FineCaptionError
from .uploads import UploadError


@dataclass(frozen=True)
class Offered:
    """A model of the menu.

    Args:
        name: in the menu.
        model, options: as `load_describer` takes them.
    """

    name: str
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Describer:
        """What answers.

        Raises:
            UploadError: If it cannot be loaded.
        """
        try:
            return load_describer(self.model, **self.options)
        except (FineCaptionError, ImportError, OSError, ValueError) as error:
            raise UploadError(f"{self.name} cannot be loaded: {error}") from error


class Models:
    """Those that a page offers, the first of which is loaded.

    Args:
        offered: at least one, with different names.
        first (*optional*): the first of them, where it is loaded already.

    Raises:
        UploadError: If the first one cannot be loaded.
    """

    def __init__(self, offered: Sequence[Offered], first: Describer | None = None) -> None:
        self.offered = {each.name: each for each in offered}
        self._name, self._users, self._change = offered[0].name, 0, threading.Condition()
        self._describer: Describer | None = first or offered[0].load()

    @property
    def first(self) -> str:
        """The name of the one that answers where nobody chooses."""
        return next(iter(self.offered))

    @contextmanager
    def using(self, name: str) -> Iterator[Describer]:
        """A model of that name; while somebody uses it, whoever wants another one waits.

        Raises:
            UploadError: If it cannot be loaded.
        """
        if len(self.offered) == 1:  # without a lock, which a process that is forked meanwhile would keep
            assert self._describer is not None
            yield self._describer
            return
        with self._change:
            self._change.wait_for(lambda: name == self._name or not self._users)
            if name != self._name or self._describer is None:
                self._describer = None
                gc.collect()
                torch.cuda.empty_cache()
                self._describer, self._name = self.offered[name].load(), name
            self._users += 1
            describer = self._describer
        try:
            yield describer
        finally:
            del describer
            with self._change:
                self._users -= 1
                self._change.notify_all()
