"""GLaMM (arXiv 2311.03356): a box as a feature.

The interface is that of eval/region_captioning/infer.py in github.com/mbzuai-oryx/groundingLMM: `<bbox>` in the prompt
stands for the region, and `evaluate` takes its box as shares of width and height.
"""

import re
from typing import Any

import numpy as np

from .shared import LlavaChat, box_of, imported, refers

_SOURCE = (
    "glamm",
    "github.com/mbzuai-oryx/groundingLMM",
    "git clone it, pip install -r requirements.txt, and put the clone on its path (a .pth file in site-packages)",
)
_TOKEN, _SIDE = "<bbox>", 1024


class Glamm:
    """See `RegionModel`; of a mask only its bounding box is used.

    Args:
        model: `GLaMMForCausalLM`.
        tokenizer: of the model.
        image_processor: of CLIP, for the whole picture.
        longest_side: `ResizeLongestSide(1024)`, for the grounding encoder.
        chat: with its conversation.
        max_new_tokens: the longest answer.
    """

    takes_mask = True

    def __init__(
        self, model: Any, tokenizer: Any, image_processor: Any, longest_side: Any, chat: LlavaChat, max_new_tokens: int
    ) -> None:
        self._model, self._tokenizer, self._chat = model, tokenizer, chat
        self._image_processor, self._longest_side = image_processor, longest_side
        self._max_new_tokens = max_new_tokens
        self.settings = {"describer": "glamm", "decoding": {"num_beams": 1, "max_new_tokens": max_new_tokens}}

    def answer(self, image: Any, mask: np.ndarray, prompt: str) -> str:
        import torch

        kind = {"dtype": torch.bfloat16, "device": self._model.device}
        boxes = None
        if refers(prompt, mask, _TOKEN):
            left, top, right, bottom = box_of(mask)
            shares = (left / image.width, top / image.height, right / image.width, bottom / image.height)
            boxes = [torch.tensor([shares], dtype=torch.float64).to(**kind)]
        pixels = np.asarray(image)
        whole = self._image_processor.preprocess(pixels, return_tensors="pt")["pixel_values"].to(**kind)
        resized = self._longest_side.apply_image(pixels)
        ids = self._chat.input_ids(f"The <image> provides an overview of the picture.\n{prompt}", framed=True)
        made, _ = self._model.evaluate(
            whole,
            _grounding_input(resized).to(**kind),
            ids.to(kind["device"]),
            [resized.shape[:2]],
            [pixels.shape[:2]],
            max_tokens_new=self._max_new_tokens,
            bboxes=boxes,
        )
        # It gives the prompt back, with the picture's place, which is no token.
        text: str = self._tokenizer.decode(made[0][made[0] >= 0], skip_special_tokens=False)
        text = text.split("ASSISTANT:")[-1].replace("[SEG]", "")
        return " ".join(re.sub(r"<.*?>", "", text).split())


def _grounding_input(pixels: np.ndarray) -> Any:
    """(1, 3, 1024, 1024): normalised as SAM's input, with zeros at the right and at the bottom."""
    import torch

    values = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float()
    mean, deviation = (torch.tensor(of).view(3, 1, 1) for of in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    values = (values - mean) / deviation
    missing = (0, _SIDE - values.shape[2], 0, _SIDE - values.shape[1])
    return torch.nn.functional.pad(values, missing).unsqueeze(0)


def load(model: str, *, max_new_tokens: int = 128) -> Glamm:
    """GLaMM from a folder or Hub id, such as MBZUAI/GLaMM-FullScope; on CUDA, as its code wants."""
    glamm, conversation, mm_utils, transforms, constants = (
        imported(module, *_SOURCE)
        for module in (
            "model.GLaMM",
            "model.llava.conversation",
            "model.llava.mm_utils",
            "model.SAM.utils.transforms",
            "tools.utils",
        )
    )
    import torch
    from transformers import AutoTokenizer, CLIPImageProcessor

    tokenizer = AutoTokenizer.from_pretrained(model, model_max_length=1536, padding_side="right", use_fast=False)
    tokenizer.pad_token = tokenizer.unk_token
    tokens = {"bbox": "<bbox>", "seg": "[SEG]", "bop": "<p>", "eop": "</p>"}
    indices = {
        f"{name}_token_idx": tokenizer(token, add_special_tokens=False).input_ids[0] for name, token in tokens.items()
    }
    loaded = glamm.GLaMMForCausalLM.from_pretrained(
        model, torch_dtype=torch.bfloat16, low_cpu_mem_usage=True, **indices
    )
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        setattr(loaded.config, name, getattr(tokenizer, name))
    inner = loaded.get_model()
    inner.initialize_vision_modules(inner.config)
    loaded = loaded.bfloat16().cuda().eval()
    inner.get_vision_tower().to(dtype=torch.bfloat16, device="cuda")
    image_processor = CLIPImageProcessor.from_pretrained(loaded.config.vision_tower)
    chat = LlavaChat(conversation, mm_utils, constants, tokenizer, "llava_v1")
    return Glamm(loaded, tokenizer, image_processor, transforms.ResizeLongestSide(_SIDE), chat, max_new_tokens)
