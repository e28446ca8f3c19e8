"""A `RegionModel` in a process of its own, with the Python environment of the model's code."""

import base64
import contextlib
import io
import json
import subprocess
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DescriberError

_END_S = 5
_WORKER = Path(__file__).parent / "region_adapters" / "worker.py"


class SeparateModel:
    """See `RegionModel`. The process ends with this object, or with the process that made it.

    Args:
        python: the interpreter of the environment, 3.10 or newer, with numpy and Pillow beside the model's code.
        code: `module:function` that loads the model there.
        model: its name.
        arguments: further ones of the function, as JSON.

    Raises:
        DescriberError: If there is no such interpreter, or the model cannot be loaded there.
    """

    takes_mask: bool
    settings: Mapping[str, Any]

    def __init__(self, python: str, code: str, model: str | None, arguments: Mapping[str, Any]) -> None:
        try:
            self._process = subprocess.Popen(
                [python, str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
            )
        except OSError as error:
            raise DescriberError(
                f"{python} cannot be started ({error.strerror}). Give the path of a Python."
            ) from error
        weakref.finalize(self, _end, self._process)
        try:
            told = self._told({"code": code, "model": model, "arguments": {**arguments}})
        except DescriberError as error:
            raise DescriberError(f"{model or code} cannot be loaded by {python}: {error}") from error
        self.takes_mask, self.settings = told["takes_mask"], told["settings"]

    def answer(self, image: Image.Image, mask: np.ndarray | None, prompt: str) -> str:
        """See `RegionModel`.

        Raises:
            DescriberError: If the model's code fails, or its process has ended.
        """
        region = None if mask is None else _png(Image.fromarray(mask.astype(np.uint8) * 255))
        answer: str = self._told({"image": _png(image), "mask": region, "prompt": prompt})["text"]
        return answer

    def _told(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: there is no line to read, either
            self._process.stdin.write(json.dumps(asked, default=str) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait(timeout=_END_S)  # its output has ended
            raise DescriberError(f"its process ended with code {code}; what it printed says why")
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise DescriberError(told["error"])
        return told


def _png(image: Image.Image) -> str:
    packed = io.BytesIO()
    image.save(packed, "png", compress_level=1)
    return base64.b64encode(packed.getvalue()).decode()


def _end(process: "subprocess.Popen[str]") -> None:
    """The process ends when its input does; one that is still at work is stopped."""
    with contextlib.suppress(OSError):
        process.stdin.close()  # type: ignore[union-attr]
    try:
        process.wait(timeout=_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=_END_S)
    process.stdout.close()  # type: ignore[union-attr]
