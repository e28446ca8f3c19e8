"""OMG-LLaVA (arXiv 2406.19389): a mask as a feature.

The interface is that of omg_llava/tools/region_cap_mask_omg_seg_llava.py in github.com/lxtGH/OMG-Seg: picture and mask
are padded to a square, `<mark>` in the prompt stands for the region, and its mask goes to `forward_region_sam` at
1024 x 1024.
"""

import os
from typing import Any

import numpy as np

from .shared import imported, refers

_SOURCE = (
    "omg_llava",
    "github.com/lxtGH/OMG-Seg (omg_llava)",
    "follow its omg_llava/INSTALL.md, and start in that folder, where its settings look for ./pretrained",
)
_TOKEN, _SIDE = "<mark>", 1024
_CONFIG = "configs/finetune/omg_llava_7b_finetune_8gpus.py"


class OmgLlava:
    """See `RegionModel`.

    Args:
        model: `OMG_LLaVA`, with `llm`, `tokenizer`, `visual_encoder`, `projector` and `mark_token_idx`.
        image_processor: of its settings.
        code: its functions `prepare_inputs` (prepare_inputs_labels_for_multimodal_with_visual_prompts),
            `expand2square`, `expand2square_mask`, its `template` (of a prompt), its `image_token` and
            `image_token_index`, and its `stopping_criteria`.
        max_new_tokens: the longest answer.
    """

    takes_mask = True

    def __init__(self, model: Any, image_processor: Any, code: dict[str, Any], max_new_tokens: int) -> None:
        self._model, self._image_processor, self._code = model, image_processor, code
        self._options = {"do_sample": False, "max_new_tokens": max_new_tokens}
        self.settings = {"describer": "omg_llava", "decoding": self._options}

    def answer(self, image: Any, mask: np.ndarray, prompt: str) -> str:
        import torch
        from transformers import GenerationConfig

        model, code, tokenizer = self._model, self._code, self._model.tokenizer
        referred = refers(prompt, mask, _TOKEN)
        mean = tuple(int(share * 255) for share in self._image_processor.image_mean)
        square = code["expand2square"](image, mean)
        pixels = self._image_processor.preprocess(square, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            device, dtype = model.visual_encoder.device, model.visual_encoder.dtype
            visual = model.projector(model.visual_encoder(pixels.to(device, dtype), output_hidden_states=True))
            ids = self._input_ids(prompt).to(device)
            marks = self._mark(mask, device) if referred else []
            inputs = code["prepare_inputs"](
                llm=model.llm,
                input_ids=ids,
                pixel_values=visual,
                mark_id=model.mark_token_idx,
                mark_feats=marks,
                region_id=-9999,  # a kind of region that is not used, as in its own script
            )
            pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            made = model.llm.generate(
                **inputs,
                generation_config=GenerationConfig(
                    **self._options, eos_token_id=tokenizer.eos_token_id, pad_token_id=pad
                ),
                bos_token_id=tokenizer.bos_token_id,
                stopping_criteria=code["stopping_criteria"],
            )
        answer: str = tokenizer.decode(made[0], skip_special_tokens=True)
        return answer.replace("[SEG]", "").strip()

    def _input_ids(self, prompt: str) -> Any:
        import torch

        image = self._code["image_token"]
        text = self._code["template"]["INSTRUCTION"].format(input=f"{image}\n{prompt}", round=1, bot_name="BOT")
        before, after = text.split(image)
        encode = self._model.tokenizer.encode
        ids = [*encode(before), self._code["image_token_index"], *encode(after, add_special_tokens=False)]
        return torch.tensor([ids])

    def _mark(self, mask: np.ndarray, device: Any) -> Any:
        """The feature of a region, (1, D)."""
        import torch

        padded = torch.from_numpy(self._code["expand2square_mask"](mask.astype(np.uint8)[None]))
        region = torch.nn.functional.interpolate(padded[None], size=(_SIDE, _SIDE), mode="nearest")[0].to(device)
        of_picture = torch.zeros(1, dtype=torch.long, device=device)
        projector = self._model.projector.model
        feature = self._model.visual_encoder.forward_region_sam(region, of_picture)[:, 0]
        return projector.model(projector.query_proj(feature.to(projector.query_proj.weight.dtype)))


def load(model: str, *, config: str | None = None, device: str = "cuda", max_new_tokens: int = 128) -> OmgLlava:
    """OMG-LLaVA from a file of weights (.pth), with settings from a file of its repository."""
    package, data, utils, registry, loading, tools, xtuner, mmengine = (
        imported(module, *_SOURCE)
        for module in (
            "omg_llava",
            "omg_llava.dataset.utils",
            "omg_llava.model.utils",
            "xtuner.registry",
            "xtuner.model.utils",
            "xtuner.tools.utils",
            "xtuner.utils",
            "mmengine.config",
        )
    )
    settings = mmengine.Config.fromfile(config or os.path.join(next(iter(package.__path__)), _CONFIG))
    settings.model.pretrained_pth = None
    loaded = registry.BUILDER.build(settings.model)
    left = loaded.load_state_dict(loading.guess_load_checkpoint(os.path.expanduser(model)), strict=False)
    if left.unexpected_keys:  # what is missing is in the parts that the settings load
        raise ValueError(f"{model} has {left.unexpected_keys[0]}, which the model of {config or _CONFIG} lacks.")
    options = dict(settings.image_processor)
    image_processor = options.pop("type")(**options)
    template = xtuner.PROMPT_TEMPLATE["internlm2_chat"]
    code = {
        "prepare_inputs": utils.prepare_inputs_labels_for_multimodal_with_visual_prompts,
        "expand2square": data.expand2square,
        "expand2square_mask": data.expand2square_mask,
        "template": template,
        "image_token": xtuner.DEFAULT_IMAGE_TOKEN,
        "image_token_index": xtuner.IMAGE_TOKEN_INDEX,
        "stopping_criteria": tools.get_stop_criteria(
            tokenizer=loaded.tokenizer, stop_words=template.get("STOP_WORDS", [])
        ),
    }
    return OmgLlava(loaded.to(device).eval(), image_processor, code, max_new_tokens)
