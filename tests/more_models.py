"""Further image-text-to-text models of transformers, random and tiny: what else `AutoModelForImageTextToText` loads.

Bidirectional attention, sliding windows, tiles, positions of several axes, and an encoder that reads the question.
"""

from collections.abc import Callable
from typing import Any

import torch
from other_models import _TEXT, _VISION, _qwen, _template, byte_tokenizer, random_model, settled
from transformers import (
    CLIPImageProcessor,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PerceptionLMForConditionalGeneration,
    PerceptionLMImageProcessor,
    PerceptionLMProcessor,
    PerceptionLMVideoProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SiglipImageProcessor,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

_SIGLIP = {**_VISION, "model_type": "siglip_vision_model"}
_SQUARE = {"height": 28, "width": 28}


def qwen3_vl() -> tuple[Any, Any]:
    vision = {"intermediate_size": 48, "out_hidden_size": 32, "num_position_embeddings": 16}
    return _qwen(
        Qwen3VLForConditionalGeneration, Qwen3VLProcessor, text={"head_dim": 8}, deepstack_visual_indexes=[0], **vision
    )


def gemma3() -> tuple[Any, Any]:
    """Half of its layers see 16 tokens back, fewer than a prompt has."""
    tokenizer = byte_tokenizer(boi_token="<boi>", eoi_token="<eoi>", image_token="<image_soft>")
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size=_SQUARE), tokenizer, chat_template=_template("<boi>"), image_seq_length=4
    )
    text = {**_TEXT, "head_dim": 8, "vocab_size": len(tokenizer), "sliding_window": 16}
    config = Gemma3ForConditionalGeneration.config_class(
        text_config={**text, "layer_types": ["sliding_attention", "full_attention"]},
        vision_config={**_SIGLIP, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    return Gemma3ForConditionalGeneration(config), processor


def paligemma() -> tuple[Any, Any]:
    tokenizer = byte_tokenizer(image_token="<image>")
    image_processor = SiglipImageProcessor(size=_SQUARE)
    image_processor.image_seq_length = 4
    processor = PaliGemmaProcessor(image_processor, tokenizer)
    config = PaliGemmaForConditionalGeneration.config_class(
        text_config={**_TEXT, "model_type": "gemma", "head_dim": 8, "vocab_size": len(tokenizer)},
        vision_config={**_SIGLIP, "vision_use_head": False, "projection_dim": 32},
        image_token_index=tokenizer.image_token_id,
        projection_dim=32,
    )
    return PaliGemmaForConditionalGeneration(config), processor


def _idefics3(
    model_class: Any, processor_class: Any, image_processor_class: Any, *more: Any, **fields: Any
) -> tuple[Any, Any]:
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = byte_tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *places)
    tiles = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
    processor = processor_class(
        image_processor_class(**tiles), tokenizer, *more, image_seq_len=1, chat_template=_template("<image>")
    )
    config = model_class.config_class(
        text_config={**_TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config=_VISION,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return model_class(config), processor


def idefics3() -> tuple[Any, Any]:
    return _idefics3(Idefics3ForConditionalGeneration, Idefics3Processor, Idefics3ImageProcessor)


def smolvlm() -> tuple[Any, Any]:
    classes = (SmolVLMForConditionalGeneration, SmolVLMProcessor, SmolVLMImageProcessor)
    return _idefics3(*classes, SmolVLMVideoProcessor(max_image_size={"longest_edge": 28}))


def llava_onevision() -> tuple[Any, Any]:
    tokenizer = byte_tokenizer("<image>", "<video>")
    tiles = [[28, 56], [56, 28], [56, 56]]
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=_SQUARE, image_grid_pinpoints=tiles),
        tokenizer,
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=_template("<image>"),
    )
    config = LlavaOnevisionForConditionalGeneration.config_class(
        text_config={**_TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer)},
        vision_config={**_SIGLIP, "vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_select_strategy="full",
        image_grid_pinpoints=tiles,
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def perception_lm() -> tuple[Any, Any]:
    tokenizer = byte_tokenizer(image_token="<|image|>", video_token="<|video|>")
    processor = PerceptionLMProcessor(
        PerceptionLMVideoProcessor(size=_SQUARE),
        PerceptionLMImageProcessor(tile_size=28, max_num_tiles=4),
        tokenizer,
        patch_size=14,
        pooling_ratio=2,
        chat_template=_template("<|image|>"),
    )
    vision = {"architecture": "vit_pe_core_large_patch14_336", "do_pooling": True, "num_classes": 0}
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": [28, 28], "use_post_transformer_norm": False}
    sizes |= {"ref_feat_shape": [2, 2], "global_pool": ""}
    config = PerceptionLMForConditionalGeneration.config_class(
        text_config={**_TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config={**vision, "model_type": "timm_wrapper", "model_args": sizes},
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        projector_pooling_ratio=2,
        vision_use_cls_token=True,
    )
    return PerceptionLMForConditionalGeneration(config), processor


def florence2() -> tuple[Any, Any]:
    tokenizer = byte_tokenizer(image_token="<image>")
    image_processor = CLIPImageProcessor(size=_SQUARE, do_center_crop=False)
    image_processor.image_seq_length = 2
    processor = Florence2Processor(image_processor, tokenizer)
    text = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    text |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "init_std": 0.3, "vocab_size": len(tokenizer)}
    config = Florence2ForConditionalGeneration.config_class(
        text_config={**text, "model_type": "bart", "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [14, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [16, 32],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "window_size": 2,
            "projection_dim": 32,
        },
        image_token_id=tokenizer.image_token_id,
    )
    model = Florence2ForConditionalGeneration(config)
    model.generation_config.decoder_start_token_id = 2
    return model, processor


MORE: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen3_vl": qwen3_vl,
    "gemma3": gemma3,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "llava_onevision": llava_onevision,
    "paligemma": paligemma,
    "perception_lm": perception_lm,
    "florence2": florence2,
}


def any_model(family: str, seed: int = 0) -> tuple[Any, Any]:
    """As `random_model`, of any family."""
    if family not in MORE:
        return random_model(family, seed)
    torch.manual_seed(seed)
    return settled(*MORE[family](), seed)
