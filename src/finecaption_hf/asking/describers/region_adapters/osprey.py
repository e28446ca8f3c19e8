"""Osprey (arXiv 2312.10032): a mask as a feature.

The interface is that of demo/osprey_inference.py and osprey/eval in github.com/CircleRadon/Osprey: the picture is
squashed to 512 x 512, `<mask><pos>` in the prompt stands for the region, and `masks` of the model's forward has it at
the size of the picture that was given. Without a region the prompt has the picture only, as in its pope_eval.py.
"""

import os
from typing import Any

import numpy as np

from .shared import LlavaChat, bound, imported, refers

_SOURCE = ("osprey", "github.com/CircleRadon/Osprey", "git clone it, then pip install -e . in the clone")
_TOKEN, _SIDE = "<mask><pos>", 512


class Osprey:
    """See `RegionModel`."""

    takes_mask = True

    def __init__(self, model: Any, image_processor: Any, chat: LlavaChat, max_new_tokens: int) -> None:
        self._model, self._image_processor, self._chat = model, image_processor, chat
        self._options = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens, "use_cache": True}
        self.settings = {"describer": "osprey", "decoding": self._options}

    def answer(self, image: Any, mask: np.ndarray, prompt: str) -> str:
        import torch

        model = self._model
        inputs: dict[str, Any] = {"img_metas": [None]}
        if refers(prompt, mask, _TOKEN):
            inputs["masks"] = [torch.from_numpy(mask).unsqueeze(0).half().to(model.device)]
            prompt = f"This provides an overview of the picture.\n{prompt}"
        pixels = self._image_processor.preprocess(image, do_center_crop=False, return_tensors="pt")["pixel_values"]
        pixels = torch.nn.functional.interpolate(pixels, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
        ids = self._chat.input_ids(f"<image>\n{prompt}").to(model.device)
        with bound(model, **inputs), torch.inference_mode():
            made = model.generate(ids, images=pixels.half().to(model.device), **self._options)
        return self._chat.answer(made[:, ids.shape[1] :])


def load(model: str, *, device: str = "cuda", max_new_tokens: int = 128) -> Osprey:
    """Osprey from a folder or Hub id."""
    language = imported("osprey.model.language_model.osprey_llama", *_SOURCE)
    conversation, mm_utils, constants = (
        imported(f"osprey.{module}", *_SOURCE) for module in ("conversation", "mm_utils", "constants")
    )
    import torch
    from transformers import AutoTokenizer, CLIPImageProcessor

    path = os.path.expanduser(model)
    tokenizer = AutoTokenizer.from_pretrained(path, model_max_length=2048, padding_side="right", use_fast=True)
    loaded = language.OspreyLlamaForCausalLM.from_pretrained(path, torch_dtype=torch.bfloat16).to(device)
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.add_tokens(["<mask>", "<pos>"], special_tokens=True)
    for module in loaded.modules():  # where its code looks for the ids of the two tokens
        module.tokenizer = tokenizer
    tower = loaded.get_vision_tower()
    if not tower.is_loaded:
        tower.load_model()
    tower.to(dtype=torch.float16, device=device)
    image_processor = CLIPImageProcessor(size={"shortest_edge": _SIDE}, crop_size={"height": _SIDE, "width": _SIDE})
    chat = LlavaChat(conversation, mm_utils, constants, tokenizer, "osprey_v1")
    return Osprey(loaded.eval(), image_processor, chat, max_new_tokens)
