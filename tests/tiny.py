"""A random FineCaption small enough for every test: all parts of the architecture, 84/256 px, an 8x8 grid."""

import copy
from typing import Any

import torch
from transformers import TrainingArguments

from finecaption_hf.configuration_finecaption import FineCaptionConfig
from finecaption_hf.modeling_finecaption import FineCaptionForConditionalGeneration

IMAGE_TOKEN_ID = 99
VOCAB_SIZE = 100

PARTS: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 84,
        "patch_size": 14,
    },
    "convnext_config": {
        "architecture": "convnext_atto",
        "model_args": {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32]},
        "hidden_size": 32,
        "layer_scale_init_value": 0.5,
    },
    "sam_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "global_attn_indexes": [1],
        "window_size": 7,
        "image_size": 256,
        "patch_size": 16,
        "output_channels": 16,
        "initializer_range": 0.1,
    },
    "text_config": {
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "high_res_image_size": 256,
    "grid_size": 8,
    "image_token_id": IMAGE_TOKEN_ID,
    "initializer_range": 0.2,
}


def tiny_config(**changes: Any) -> FineCaptionConfig:
    """The tiny configuration; a dict given for a part is merged into it."""
    parts = copy.deepcopy(PARTS)
    for name, value in changes.items():
        parts[name] = {**parts.get(name, {}), **value} if isinstance(value, dict) else value
    return FineCaptionConfig(**parts)


def tiny_model(seed: int = 0, *, alpha: bool = True, **changes: Any) -> FineCaptionForConditionalGeneration:
    """A random model in evaluation mode; with `alpha`, its alpha convolution is not zero, so the mask matters."""
    torch.manual_seed(seed)
    model = FineCaptionForConditionalGeneration(tiny_config(**changes)).eval()
    if alpha and model.config.use_mask:
        torch.nn.init.normal_(model.model.vision_tower.embeddings.alpha_embedding.weight, std=0.1)
    return model


def random_pixels(num_images: int, region_images: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random images and half-plane region masks; `region_images[b]` is the image of region b."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(len(region_images), 1, 84, 84)
    for index in range(len(region_images)):
        low, high = sorted(torch.randperm(84, generator=generator)[:2].tolist())
        masks[index, :, low : high + 1, : 20 + 9 * index] = 1
    return {
        "pixel_values": torch.randn(num_images, 3, 84, 84, generator=generator),
        "high_res_pixel_values": torch.randn(num_images, 3, 256, 256, generator=generator),
        "mask_values": (masks - 0.5) / 0.26,
        "image_indices": torch.tensor(region_images),
    }


def random_prompts(num_regions: int, length: int = 6, seed: int = 0, image_tokens: int = 64) -> torch.Tensor:
    """`(S, N + length)` token ids: a region's image tokens, then random text."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(3, IMAGE_TOKEN_ID, (num_regions, length), generator=generator)
    return torch.cat([torch.full((num_regions, image_tokens), IMAGE_TOKEN_ID), text], dim=1)


def checkpoint_activations(model: Any, *args: Any, enable: bool = True) -> None:
    """By the name that the installed release has: transformers 5.23 deprecates the one of 5.19."""
    verb = "enable" if enable else "disable"
    names = (f"activation_checkpointing_{verb}", f"gradient_checkpointing_{verb}")
    getattr(model, next(name for name in names if hasattr(model, name)))(*args)


def checkpointing_option(value: bool = True) -> dict[str, bool]:
    """The option of `TrainingArguments` by the name that the installed release has."""
    names = TrainingArguments.__dataclass_fields__
    return {"activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing": value}
