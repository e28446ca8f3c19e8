"""Other image-text-to-text models of transformers, random and tiny, with processors made without any download.

Vocabularies are one token per byte, plus what each processor needs.
"""

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
    Kosmos2Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    MllamaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

TEMPLATE = """\
{%- for message in messages %}{{ message['role'] + ': ' }}{%- for part in message['content'] %}\
{% if part['type'] == 'image' %}{{ 'IMAGE' }}{% else %}{{ part['text'] }}{% endif %}{%- endfor %}\
{{ '\\n' }}{%- endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_SMALL = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}


def byte_tokenizer(*special: str, **named: str) -> PreTrainedTokenizerFast:
    """One token per byte, `<s>` before every text, and special tokens; `named` ones become attributes."""
    words = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<pad>",
        extra_special_tokens=named,
    )
    tokenizer.add_tokens([*special, *named.values()], special_tokens=True)
    return tokenizer


def _template(image: str) -> str:
    return TEMPLATE.replace("IMAGE", image)


def _llava(model_class: Any, config_class: Any, chat: bool = True) -> tuple[Any, Any]:
    tokenizer = byte_tokenizer("<image>")
    processor = LlavaProcessor(
        CLIPImageProcessor(**_SMALL),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("<image>") if chat else None,
    )
    layers = {"vision_feature_layers": [-1, -2]} if config_class is VipLlavaConfig else {}
    config = config_class(
        vision_config={**_VISION, "model_type": "clip_vision_model"},
        text_config={**_TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        **layers,
    )
    return model_class(config), processor


def llava() -> tuple[Any, Any]:
    return _llava(LlavaForConditionalGeneration, LlavaConfig)


def llava_without_template() -> tuple[Any, Any]:
    return _llava(LlavaForConditionalGeneration, LlavaConfig, chat=False)


def vipllava() -> tuple[Any, Any]:
    return _llava(VipLlavaForConditionalGeneration, VipLlavaConfig)


def llava_next() -> tuple[Any, Any]:
    tokenizer = byte_tokenizer("<image>")
    pinpoints = [[28, 56], [56, 28], [56, 56]]
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(image_grid_pinpoints=pinpoints, **_SMALL),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("<image>"),
    )
    config = LlavaNextConfig(
        vision_config={**_VISION, "model_type": "clip_vision_model"},
        text_config={**_TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        image_grid_pinpoints=pinpoints,
    )
    return LlavaNextForConditionalGeneration(config), processor


def _qwen_parts(processor_class: Any) -> tuple[Any, dict[str, Any]]:
    tokenizer = byte_tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    image_processor = Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 8 * 28 * 28})
    processor = processor_class(
        image_processor,
        tokenizer,
        Qwen2VLVideoProcessor(),
        chat_template=_template("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    ids = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in {
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        }.items()
    }
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = {**_TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope}
    return processor, {"text_config": text, **ids}


def qwen2_vl() -> tuple[Any, Any]:
    processor, parts = _qwen_parts(Qwen2VLProcessor)
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(vision_config=vision, **parts)), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    processor, parts = _qwen_parts(Qwen2_5_VLProcessor)
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 14,
        "window_size": 28,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(vision_config=vision, **parts)), processor


def internvl() -> tuple[Any, Any]:
    tokenizer = byte_tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size={"height": 28, "width": 28}, min_patches=1, max_patches=2),
        tokenizer,
        InternVLVideoProcessor(),
        image_seq_length=1,
        chat_template=_template("<IMG_CONTEXT>"),
    )
    config = InternVLConfig(
        vision_config={**_VISION, "image_size": [28, 28], "patch_size": [14, 14]},
        text_config={**_TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=1,
        downsample_ratio=0.5,
    )
    return InternVLForConditionalGeneration(config), processor


def mllama() -> tuple[Any, Any]:
    tokenizer = byte_tokenizer("<|image|>", "<|python_tag|>")
    processor = MllamaProcessor(
        MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=2),
        tokenizer,
        chat_template="{{ bos_token }}" + _template("<|image|>"),
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "max_num_tiles": 2,
        "vision_output_dim": 64,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }
    # The image token has no row in the output, as in the published checkpoints.
    text = {**_TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1]}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    image_token = tokenizer.convert_tokens_to_ids("<|image|>")
    text["vocab_size"] = image_token
    return MllamaForConditionalGeneration(
        MllamaConfig(vision_config=vision, text_config=text, image_token_index=image_token)
    ), processor


def kosmos2() -> tuple[Any, Any]:
    # The processor puts 64 tokens in the place of a picture: those after the unknown one.
    tokenizer = byte_tokenizer("<unk>", *(f"<image_{number}>" for number in range(64)))
    tokenizer.unk_token = "<unk>"
    image_processor = CLIPImageProcessor(size={"height": 28, "width": 28}, do_center_crop=False)
    processor = Kosmos2Processor(image_processor, tokenizer)
    text = {
        "vocab_size": len(tokenizer),
        "embed_dim": 32,
        "layers": 2,
        "ffn_dim": 48,
        "attention_heads": 2,
        "max_position_embeddings": 512,
        "init_std": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = Kosmos2Config(text_config=text, vision_config=_VISION, latent_query_num=64)
    return Kosmos2ForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava,
    "llava_next": llava_next,
    "vipllava": vipllava,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "internvl": internvl,
    "mllama": mllama,
    "kosmos-2": kosmos2,
}


def random_model(family: str, seed: int = 0) -> tuple[Any, Any]:
    """A model in evaluation mode and its processor, by `model_type`."""
    torch.manual_seed(seed)
    model, processor = FAMILIES[family]()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    # Random weights would otherwise end at the first token now and then.
    model.generation_config.eos_token_id = None
    return model.eval(), processor
