"""Runs a `RegionModel` in the Python environment of the model's code, for `separate.py`, which starts this file.

Standard input has a line of JSON for each question, the first one says what to load; standard output has a line for
each answer. Pictures and masks travel as PNG in base64. Nothing of this package is imported but this folder.
"""

import base64
import importlib
import inspect
import io
import json
import os
import sys
from typing import Any

import numpy as np
from PIL import Image


def picture(text: str) -> Image.Image:
    """A picture out of a line."""
    return Image.open(io.BytesIO(base64.b64decode(text)))


def load(code: str, model: str | None, arguments: dict[str, Any]) -> Any:
    """What `module:function` makes of a model's name and arguments.

    Raises:
        ValueError: If an argument has no effect.
    """
    module, _, function = code.partition(":")
    if module.startswith("region_adapters."):
        # For this import only: the other modules beside this folder must not stand in the way of the model's own.
        sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        make = getattr(importlib.import_module(module), function)
        sys.path.pop(0)
    else:
        make = getattr(importlib.import_module(module), function)
    taken = inspect.signature(make).parameters.values()
    known = {parameter.name for parameter in taken}
    useless = [name for name in arguments if name not in known]
    if useless and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        raise ValueError(f"{', '.join(useless)}: no effect, since it is not taken. Leave it out.")
    return make(*([] if model is None else [model]), **arguments)


def main() -> None:
    """Load, then answer line by line until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the model's code prints goes with its complaints
    sys.path.pop(0)  # this folder, whose files have the names of the models' packages
    loaded: Any = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if loaded is None:
                loaded = load(asked["code"], asked["model"], asked["arguments"])
                told = {"takes_mask": loaded.takes_mask, "settings": dict(loaded.settings)}
            else:
                mask = None if asked["mask"] is None else np.asarray(picture(asked["mask"])) > 0
                told = {"text": loaded.answer(picture(asked["image"]), mask, asked["prompt"])}
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(told, default=str) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
