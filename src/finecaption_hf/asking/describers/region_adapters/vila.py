"""VILA-1.5 (arXiv 2312.07533): boxes in the text.

The interface is `llava.load` and `generate_content` in github.com/NVlabs/VILA. Boxes are those of LLaVA-1.5's data,
which count from the corner of the picture padded to a square (llava/eval/refcoco.py), though it sees it resized.
"""

from typing import Any

import numpy as np

from .shared import imported

_SOURCE = ("vila", "github.com/NVlabs/VILA", "git clone it, then run ./environment_setup.sh in the clone")


class Vila:
    """See `RegionModel`. `model` as `llava.load` returns it."""

    takes_mask = False

    def __init__(self, model: Any, max_new_tokens: int) -> None:
        self._model = model
        self._options = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens}
        self.settings = {"describer": "vila", "decoding": self._options}

    def answer(self, image: Any, mask: np.ndarray | None, prompt: str) -> str:
        config = self._model.default_generation_config
        config.update(**self._options)
        answer: str = self._model.generate_content([image, prompt], generation_config=config)
        return answer


def load(model: str, *, model_base: str | None = None, max_new_tokens: int = 128) -> Vila:
    """VILA from a folder or Hub id."""
    llava = imported("llava", *_SOURCE)
    if not hasattr(llava, "load"):
        raise ImportError(f"The package llava that is installed is not VILA's: it has no load. Install {_SOURCE[1]}.")
    return Vila(llava.load(model, model_base=model_base), max_new_tokens)
