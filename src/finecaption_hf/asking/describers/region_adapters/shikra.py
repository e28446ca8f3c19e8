"""Shikra (arXiv 2306.15195): boxes in the text, as shares of the padded square with three decimals.

The interface is that of mllm/demo/server.py in github.com/shikras/shikra, whose settings for the model are below.
"""

from typing import Any

import numpy as np

from .shared import imported

_SOURCE = (
    "shikra",
    "github.com/shikras/shikra",
    "git clone it, pip install -r requirements.txt, and put the clone on its path (a .pth file in site-packages)",
)


class Shikra:
    """See `RegionModel`.

    Args:
        model, tokenizer: of `load_pretrained_shikra`.
        interactive: makes an empty conversation, as `prepare_interactive` does.
        expand2square: pads a picture to a square, as its training did.
        max_new_tokens: the longest answer.
    """

    takes_mask = False

    def __init__(self, model: Any, tokenizer: Any, interactive: Any, expand2square: Any, max_new_tokens: int) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._interactive, self._expand2square = interactive, expand2square
        self._options = {"do_sample": False, "max_new_tokens": max_new_tokens, "use_cache": True}
        self.settings = {"describer": "shikra", "decoding": self._options}

    def answer(self, image: Any, mask: np.ndarray | None, prompt: str) -> str:
        import torch

        turns = self._interactive()
        turns.set_image(self._expand2square(image))
        turns.append_message(role=turns.roles[0], message=prompt, boxes=[], boxes_seq=[])
        inputs = turns.to_model_input()
        inputs["images"] = inputs["images"].to(torch.float16)
        ids = {name: getattr(self._tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        with torch.inference_mode(), torch.autocast(dtype=torch.float16, device_type=inputs["images"].device.type):
            made = self._model.generate(**inputs, **ids, **self._options)
        new = made[:, inputs["input_ids"].shape[-1] :]
        answer: str = self._tokenizer.batch_decode(new, skip_special_tokens=True)[0]
        return answer.strip()


def load(model: str, *, vision_tower: str = "openai/clip-vit-large-patch14", max_new_tokens: int = 128) -> Shikra:
    """Shikra from a folder with its merged weights (its delta applied to LLaMA-7B); on CUDA, as its code wants."""
    build, builder, transform, boxes, mmengine = (
        imported(module, *_SOURCE)
        for module in (
            "mllm.models.builder.build_shikra",
            "mllm.dataset.builder",
            "mllm.dataset.utils.transform",
            "mllm.dataset.process_function",
            "mmengine",
        )
    )
    import torch

    model_args = mmengine.Config(_model_args(model, vision_tower))
    training_args = mmengine.Config({"bf16": False, "fp16": True, "device": "cuda", "fsdp": None})
    loaded, preprocessor = build.load_pretrained_shikra(model_args, training_args)
    loaded.to(dtype=torch.float16, device="cuda")
    loaded.model.vision_tower[0].to(dtype=torch.float16, device="cuda")
    preprocessor["target"] = {"boxes": boxes.PlainBoxFormatter()}

    def interactive() -> Any:
        return builder.prepare_interactive(model_args, preprocessor)

    return Shikra(loaded.eval(), preprocessor["text"], interactive, transform.expand2square, max_new_tokens)


def _model_args(model: str, vision_tower: str) -> dict[str, Any]:
    return {
        "type": "shikra",
        "version": "v1",
        "cache_dir": None,
        "model_name_or_path": model,
        "vision_tower": vision_tower,
        "pretrain_mm_mlp_adapter": None,
        "mm_vision_select_layer": -2,
        "model_max_length": 2048,
        "freeze_backbone": False,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "is_multimodal": True,
        "sep_image_conv_front": False,
        "image_token_len": 256,
        "mm_use_im_start_end": True,
        "target_processor": {"boxes": {"type": "PlainBoxFormatter"}},
        "process_func_args": {
            "conv": {"type": "ShikraConvProcess"},
            "target": {"type": "BoxFormatProcess"},
            "text": {"type": "ShikraTextProcess"},
            "image": {"type": "ShikraImageProcessor"},
        },
        "conv_args": {
            "conv_template": "vicuna_v1.1",
            "transforms": {"type": "Expand2square"},
            "tokenize_kwargs": {"truncation_size": None},
        },
        "gen_kwargs_set_pad_token_id": True,
        "gen_kwargs_set_bos_token_id": True,
        "gen_kwargs_set_eos_token_id": True,
    }
