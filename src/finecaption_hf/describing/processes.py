"""Several processes at one dataset, as `accelerate launch` and `torchrun` start them, on CPUs or GPUs.

They exchange a few words over gloo and nothing on the accelerators. gloo notices at once when another process is gone,
and lets a process wait for the others as long as it takes, which NCCL's barriers do not.
"""

import os
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from ..prompts_finecaption import FineCaptionError

_Value = TypeVar("_Value")

# To find each other, and to wait for those that have more to do.
_START, _WORK = timedelta(minutes=10), timedelta(days=30)


class ProcessLostError(FineCaptionError, RuntimeError):
    """Another of the processes is gone, or told of an error."""


class Processes:
    """This process among those that were started together.

    Attributes:
        rank (`int`): its number; 0 is the main one, which speaks for all.
        count (`int`): how many there are.
    """

    def __init__(self, rank: int = 0, count: int = 1, group: Any = None) -> None:
        self.rank = rank
        self.count = count
        self._group = group

    @classmethod
    def launched(cls, environment: Mapping[str, str] = os.environ) -> "Processes":
        """The processes of a launcher, told by the environment; or this one alone."""
        if int(environment.get("WORLD_SIZE", "1")) < 2:
            return cls()
        import torch.distributed as distributed

        if not distributed.is_initialized():
            distributed.init_process_group("gloo", timeout=_START)
        group = distributed.new_group(backend="gloo", timeout=_WORK)
        return cls(distributed.get_rank(), distributed.get_world_size(), group)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def first(self, work: Callable[[], _Value]) -> _Value:
        """What `work` gives in the main process, which alone does it, for all.

        Raises:
            ProcessLostError: If it failed, in all other processes; in the main one the error itself.
        """
        if self.count == 1:
            return work()
        box: list[Any] = [None]
        failure: Exception | None = None
        if self.is_main:
            try:
                box = [(True, work())]
            except Exception as error:
                failure, box = error, [(False, str(error))]
        self._with_others(lambda distributed: distributed.broadcast_object_list(box, src=0, group=self._group))
        if failure is not None:
            raise failure
        worked, value = box[0]
        if not worked:
            raise ProcessLostError(value)
        return value

    def gather(self, value: Any, while_waiting: Callable[[], None]) -> list[Any]:
        """The values of all processes, by rank. Waits for all of them.

        Args:
            value: of this process.
            while_waiting: is called every second.

        Raises:
            ProcessLostError: If one of them is gone.
        """
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        failures: list[BaseException] = []

        def wait() -> None:
            try:
                self._with_others(lambda distributed: distributed.all_gather_object(values, value, group=self._group))
            except BaseException as error:
                failures.append(error)

        # A daemon: what interrupts this process must not wait for the others.
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        while waiting.is_alive():
            waiting.join(1)
            while_waiting()
        if failures:
            raise failures[0]
        return values

    def _with_others(self, exchange: Callable[[Any], None]) -> None:
        import torch.distributed as distributed

        try:
            exchange(distributed)
        except RuntimeError as error:
            raise ProcessLostError("Another of the processes ended early; it says why in its own output.") from error
