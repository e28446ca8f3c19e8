"""Waiting with a limit: for callables in threads, which raise here what they died of there, and for processes."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

# Seconds; far more than anything takes that is waited for.
LIMIT_S = 120


def start(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Call `work` in a thread; `.result(timeout=..)` is what it returns, or raises what it died of.

    Not a pool: its threads are waited for without limit when Python ends.
    """
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def at_once(work: Callable[[int], Any], count: int) -> list[Any]:
    """`work(0)`, `work(1)`, .. in `count` threads at the same time."""
    return [future.result(timeout=LIMIT_S) for future in [start(work, number) for number in range(count)]]


def exit_code(process: Any, limit_s: float = LIMIT_S) -> int:
    """Of a `multiprocessing.Process`, which ends by itself or is killed after `limit_s` seconds; then this fails."""
    process.join(limit_s)
    if process.is_alive():
        process.kill()
        process.join(10)
        raise AssertionError(f"{process.name} did not end within {limit_s} s")
    code: int = process.exitcode
    return code
