"""Ferret (arXiv 2310.07704): a region of any form as a feature, beside its box in the text.

The interface is that of ferret/eval/model_lvis.py and ferret/serve/model_worker.py in github.com/apple/ml-ferret: the
picture is squashed to 336 x 336, `<region_fea>` in the prompt stands for the region, and `region_masks` of the model's
forward has its mask as (W, H), x before y.
"""

import os
from typing import Any

import numpy as np

from .shared import LlavaChat, bound, imported, refers

_SOURCE = ("ferret", "github.com/apple/ml-ferret", "git clone it, then pip install -e . in the clone")
_TOKEN, _SIDE = "<region_fea>", 336


class Ferret:
    """See `RegionModel`. `model` and `image_processor` as Ferret's `load_pretrained_model` returns them."""

    takes_mask = True

    def __init__(self, model: Any, image_processor: Any, chat: LlavaChat, max_new_tokens: int) -> None:
        self._model, self._image_processor, self._chat = model, image_processor, chat
        self._options = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens, "use_cache": True}
        self.settings = {"describer": "ferret", "decoding": self._options}

    def answer(self, image: Any, mask: np.ndarray, prompt: str) -> str:
        import torch

        model = self._model
        regions = None
        if refers(prompt, mask, _TOKEN):
            regions = [[torch.from_numpy(np.ascontiguousarray(mask.T)).half().to(model.device)]]
        pixels = self._image_processor.preprocess(
            image, return_tensors="pt", do_resize=True, do_center_crop=False, size=[_SIDE, _SIDE]
        )["pixel_values"]
        ids = self._chat.input_ids(f"<image>\n{prompt}", model.config.mm_use_im_start_end).to(model.device)
        with bound(model, region_masks=regions), torch.inference_mode():
            made = model.generate(ids, images=pixels.half().to(model.device), **self._options)
        return self._chat.answer(made[:, ids.shape[1] :])


def load(model: str, *, model_base: str | None = None, max_new_tokens: int = 128) -> Ferret:
    """Ferret from a folder whose name has `ferret` in it, as its loader wants."""
    builder = imported("ferret.model.builder", *_SOURCE)
    conversation, mm_utils, constants = (
        imported(f"ferret.{module}", *_SOURCE) for module in ("conversation", "mm_utils", "constants")
    )
    path = os.path.expanduser(model)
    name = mm_utils.get_model_name_from_path(path)
    if "ferret" not in name.lower():
        raise ValueError(f"The folder is called {name}; Ferret's loader takes one with ferret in its name. Rename it.")
    tokenizer, loaded, image_processor, _ = builder.load_pretrained_model(path, model_base, name)
    chat = LlavaChat(conversation, mm_utils, constants, tokenizer, "ferret_v1")
    return Ferret(loaded.eval(), image_processor, chat, max_new_tokens)
