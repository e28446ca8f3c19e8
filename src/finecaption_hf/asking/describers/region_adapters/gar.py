"""Grasp Any Region (arXiv 2510.18876): a mask beside the picture, and features of its box in the text.

The interface is that of evaluation/eval_dataset.py and demo/gar_with_mask.py in
github.com/Haochen-Wang409/Grasp-Any-Region, over the code that lies beside the weights.
"""

from typing import Any

import numpy as np

from .shared import box_of, check_trusted

_NUMBER = 1  # of the prompt that its own scripts use for a single region
_FIRST_ADDED = 128256  # token id from which its own tokens count; the picture of prompts has their numbers
_FEATURES = 256  # places in the text for what is seen in the region's box


class Gar:
    """See `RegionModel`.

    Args:
        model, processor: of the published checkpoint.
        max_new_tokens: the longest answer.
        settings: more for reports.
    """

    takes_mask = True

    def __init__(self, model: Any, processor: Any, max_new_tokens: int, settings: dict[str, Any]) -> None:
        self._model, self._processor = model, processor
        self._options = {"do_sample": False, "max_new_tokens": max_new_tokens}
        tokens = [f"<Prompt{number}>" for number in range(model.config.prompt_numbers)] + ["<NO_Prompt>"]
        ids = [processor.tokenizer.convert_tokens_to_ids(token) for token in tokens]
        self._inside, self._outside = ids[_NUMBER] - _FIRST_ADDED, ids[-1] - _FIRST_ADDED
        self.settings = {"describer": "gar", "decoding": self._options, **settings}

    def answer(self, image: Any, mask: np.ndarray, prompt: str) -> str:
        import torch
        from PIL import Image
        from transformers import GenerationConfig

        name, place = f"<Prompt{_NUMBER}>", f"<|reserved_special_token_{_NUMBER + 2}|>"
        text = f"There are some objects I am curious about: {name};\n{name}: {place * _FEATURES}{prompt}"
        content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
        tokenizer, model = self._processor.tokenizer, self._model
        inputs = self._processor(
            text=[
                self._processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
                )
            ],
            images=[image],
            visual_prompts=[Image.fromarray(np.where(mask, self._inside, self._outside).astype(np.int32))],
            return_tensors="pt",
        )
        left, top, right, bottom = box_of(mask)  # its boxes end with the last pixel
        shares = (left / image.width, top / image.height, (right - 1) / image.width, (bottom - 1) / image.height)
        with torch.inference_mode():
            made = model.generate(
                input_ids=inputs["input_ids"].to(model.device),
                attention_mask=inputs["attention_mask"].to(model.device, model.dtype),
                pixel_values=inputs["pixel_values"].to(model.device, model.dtype).flatten(0, 1),
                global_mask_values=inputs["mask_values"].to(model.device, model.dtype).squeeze(),
                bboxes=[{str(tokenizer.convert_tokens_to_ids(place)): shares}],
                aspect_ratios=inputs["aspect_ratio"].unsqueeze(0).to(model.device),
                generation_config=GenerationConfig(
                    **self._options, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
                ),
                return_dict=True,
            )
        answer: str = tokenizer.decode(made.sequences[0], skip_special_tokens=True)
        return answer.strip()


def load(
    model: str = "Haochen-Wang409/GAR-8B",
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "bfloat16",
    max_new_tokens: int = 128,
) -> Gar:
    """The published model, whose code lies beside its weights."""
    check_trusted(model, trust_remote_code)
    import torch
    from transformers import AutoModel, AutoProcessor

    source: dict[str, Any] = {"trust_remote_code": True, "revision": revision}
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = AutoModel.from_pretrained(model, torch_dtype=getattr(torch, dtype), **source).to(device).eval()
    processor = AutoProcessor.from_pretrained(model, **source)
    return Gar(loaded, processor, max_new_tokens, {"checkpoint": model, "revision": revision, "dtype": dtype})
