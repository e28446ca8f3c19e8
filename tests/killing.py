"""SIGKILL at a chosen step of what a process does on disk."""

import os
import shutil
import signal
from collections.abc import Callable
from typing import Any

from finecaption_hf.resuming import EntryFile


def kill_after(steps: int) -> None:
    """End this process, as SIGKILL does, at a step of what is done on disk: before it, in its midst, or after it."""
    left = [steps]

    def step() -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    def with_steps(function: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **kwargs: Any) -> Any:
            step()
            result = function(*args, **kwargs)
            step()
            return result

        return stepping

    def write(self: Any, line: bytes) -> None:
        os.write(self._handle, line[: len(line) // 2])
        step()
        os.write(self._handle, line[len(line) // 2 :])

    EntryFile._write = with_steps(write)  # type: ignore[method-assign]
    for owner, name in ((os, "replace"), (os, "fsync"), (os, "truncate"), (os, "unlink"), (shutil, "rmtree")):
        setattr(owner, name, with_steps(getattr(owner, name)))
