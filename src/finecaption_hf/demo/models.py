"""The models that a page offers: each is loaded when it is asked, and the last two stay in memory where they fit."""

import gc
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

from ..asking import Describer, load_describer
from ..prompts_finecaption import FineCaptionError
from .uploads import UploadError

_MOST = 2
"""In memory at once: as many as are asked side by side."""


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
        self._users: Counter[str] = Counter()
        self._change = threading.Condition()
        # The one that was asked last comes last.
        self._loaded = OrderedDict({offered[0].name: first or offered[0].load()})

    @property
    def first(self) -> str:
        """The name of the one that answers where nobody chooses."""
        return next(iter(self.offered))

    def is_loaded(self, name: str) -> bool:
        """Whether it would answer at once."""
        return name in self._loaded

    @contextmanager
    def using(self, name: str) -> Iterator[Describer]:
        """A model of that name. One that is used stays; whoever wants another one waits while there is no place.

        Raises:
            UploadError: If it cannot be loaded.
        """
        if len(self.offered) == 1:  # without a lock, which a process that is forked meanwhile would keep
            yield self._loaded[name]
            return
        with self._change:
            self._change.wait_for(lambda: name in self._loaded or self._make_room(_MOST - 1))
            if name not in self._loaded:
                try:
                    self._loaded[name] = self.offered[name].load()
                except torch.OutOfMemoryError:  # it is larger than the one beside it
                    self._change.wait_for(lambda: self._make_room(0))
                    self._loaded[name] = self.offered[name].load()
            self._loaded.move_to_end(name)
            self._users[name] += 1
            describer = self._loaded[name]
        try:
            yield describer
        finally:
            del describer
            with self._change:
                self._users[name] -= 1
                self._change.notify_all()

    def _make_room(self, others: int) -> bool:
        """Whether there is a place for one beside so many others, for which those go that nobody uses, longest ago
        first."""
        while len(self._loaded) > others or not all(map(_leaves_room, self._loaded.values())):
            idle = next((name for name in self._loaded if not self._users[name]), None)
            if idle is None:
                return False
            del self._loaded[idle]
            gc.collect()
            torch.cuda.empty_cache()
        return True


def _leaves_room(describer: Describer) -> bool:
    """Whether another model of its size fits beside it."""
    model = getattr(describer, "model", None)
    if not isinstance(model, torch.nn.Module):
        return True  # what it is asked with lies elsewhere
    device = next(model.parameters()).device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return sum(part.nbytes for part in model.parameters()) <= free
