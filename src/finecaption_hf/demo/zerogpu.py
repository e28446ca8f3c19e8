"""What the app needs on ZeroGPU, where a function that takes a GPU runs in a process of its own."""

import html
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import gradio as gr

# Seconds of a GPU to ask for: with more one waits longer, fewer may not do. The most is what a visitor has for a day.
_START, _PER_ANSWER, _MOST = 30, 2, 120


def on_zero_gpu(gpu: Callable[..., Any]) -> Callable[[Any], Any]:
    """`on_gpu` of `build_demo`, for generators.

    From that process errors other than gradio's own come back as the name of their class; here what users can mend
    keeps its message. The time that a GPU is asked for grows with the number of answers.

    Args:
        gpu: `spaces.GPU`, which looks whether what it decorates is a generator.
    """

    def decorate(task: Callable[..., Iterator[Any]]) -> Any:
        @wraps(task)
        def generate(*asked: Any) -> Iterator[Any]:
            try:
                yield from task(*asked)
            except ValueError as error:
                raise gr.Error(html.escape(str(error)), print_exception=False) from error

        return gpu(duration=_seconds)(generate)

    return decorate


def _seconds(asked: Any) -> int:
    """For an `AskedPicture`."""
    return min(_MOST, _START + _PER_ANSWER * len(asked.missing))
