"""LLaVA-HR (arXiv 2403.03003): boxes in the text.

The interface is that of llava_hr/eval/model_vqa_loader.py in github.com/luogen1996/LLaVA-HR. It was trained with
LLaVA-1.5's data, whose boxes count from the corner of the picture padded to a square, as its code pads it.
"""

import inspect
import os
from typing import Any

import numpy as np

from .shared import LlavaChat, imported

_SOURCE = ("llava_hr", "github.com/luogen1996/LLaVA-HR", "git clone it, then pip install -e . in the clone")


class LlavaHR:
    """See `RegionModel`."""

    takes_mask = False

    def __init__(
        self, model: Any, image_processor: Any, process_images: Any, chat: LlavaChat, max_new_tokens: int
    ) -> None:
        self._model, self._image_processor, self._process_images = model, image_processor, process_images
        self._chat = chat
        self._options = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens, "use_cache": True}
        # Its newer code takes the sizes of pictures that are seen in tiles.
        self._tells_sizes = "image_sizes" in inspect.signature(model.forward).parameters
        self.settings = {"describer": "llava_hr", "decoding": self._options}

    def answer(self, image: Any, mask: np.ndarray | None, prompt: str) -> str:
        import torch

        model = self._model
        pixels = self._process_images([image], self._image_processor, model.config)
        ids = self._chat.input_ids(f"<image>\n{prompt}", model.config.mm_use_im_start_end).to(model.device)
        sizes = {"image_sizes": [image.size]} if self._tells_sizes else {}
        with torch.inference_mode():
            made = model.generate(ids, images=pixels.half().to(model.device), **sizes, **self._options)
        return self._chat.answer(made[:, ids.shape[1] :])


def load(model: str, *, model_base: str | None = None, max_new_tokens: int = 128) -> LlavaHR:
    """LLaVA-HR from a folder or Hub id with `llava` in its name, as its loader wants."""
    builder = imported("llava_hr.model.builder", *_SOURCE)
    conversation, mm_utils, constants = (
        imported(f"llava_hr.{module}", *_SOURCE) for module in ("conversation", "mm_utils", "constants")
    )
    path = os.path.expanduser(model)
    name = mm_utils.get_model_name_from_path(path)
    if "llava" not in name.lower():
        raise ValueError(f"The model is called {name}; its loader takes one with llava in its name. Rename its folder.")
    tokenizer, loaded, image_processor, _ = builder.load_pretrained_model(path, model_base, name)
    chat = LlavaChat(conversation, mm_utils, constants, tokenizer, "llava_v1")
    return LlavaHR(loaded.eval(), image_processor, mm_utils.process_images, chat, max_new_tokens)
