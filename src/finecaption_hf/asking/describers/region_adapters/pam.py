"""Perceive Anything (arXiv 2506.05302): a box for SAM 2, whose features the language model reads.

The interface is that of notebooks/video_infer_example.ipynb in github.com/Perceive-Anything/PAM. Of its notebooks that
one says how `generate` is called, so a picture is a video of one frame here.
"""

import os
import tempfile
from typing import Any

import numpy as np

from .shared import LlavaChat, box_of, imported

_SOURCE = (
    "pam",
    "github.com/Perceive-Anything/PAM",
    'git clone it, then pip install -e ".[train]" in the clone and pip install -e . in its folder sam2',
)


class Pam:
    """See `RegionModel`; of a mask only its bounding box is used, from which SAM 2 makes a mask again."""

    takes_mask = True

    def __init__(self, model: Any, chat: LlavaChat, max_new_tokens: int) -> None:
        self._model, self._chat = model, chat
        self._options = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens, "use_cache": True}
        self.settings = {"describer": "pam", "decoding": self._options}

    def answer(self, image: Any, mask: np.ndarray, prompt: str) -> str:
        import torch

        ids = self._chat.input_ids(f"<image>\n{prompt}").to(self._model.device)
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            frame = os.path.join(folder, "00000.jpg")  # it reads frames from files
            image.save(frame, quality=100, subsampling=0)
            made, _, _ = self._model.generate(
                ids,
                images=[[frame]],
                visual_prompts=[list(box_of(mask))],
                vp_labels=[None],
                types=["video"],
                **self._options,
            )
        return self._chat.answer(made)


def load(model: str, *, device: str = "cuda", dtype: str = "bfloat16", max_new_tokens: int = 128) -> Pam:
    """PAM from a folder or Hub id, such as Perceive-Anything/PAM-3B."""
    builder = imported("llava.model.builder", *_SOURCE)
    conversation, mm_utils, constants = (
        imported(f"llava.{module}", *_SOURCE) for module in ("conversation", "mm_utils", "constants")
    )
    path = os.path.expanduser(model)
    tokenizer, loaded, _, _ = builder.load_pretrained_model(
        model_path=path,
        model_base=None,
        model_name="qwen",  # which decides the class, where others go by the folder's name
        multimodal=True,
        torch_dtype=dtype,
        device_map=device,
    )
    chat = LlavaChat(conversation, mm_utils, constants, tokenizer, "qwen_2")
    return Pam(loaded.to(device).eval(), chat, max_new_tokens)
