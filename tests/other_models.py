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
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    Kosmos2ForConditionalGeneration,
    Kosmos2Processor,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    MllamaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
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


def _llava(
    model_class: Any,
    processor_class: Any = LlavaProcessor,
    image_processor_class: Any = CLIPImageProcessor,
    chat: bool = True,
    **fields: Any,
) -> tuple[Any, Any]:
    """`fields`: those of the configuration that only this model has; its image processor may have them, too."""
    tokenizer = byte_tokenizer("<image>")
    own = fields if image_processor_class is LlavaNextImageProcessor else {}
    processor = processor_class(
        image_processor_class(**_SMALL, **own),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("<image>") if chat else None,
    )
    config = model_class.config_class(
        vision_config={**_VISION, "model_type": "clip_vision_model"},
        text_config={**_TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        **fields,
    )
    return model_class(config), processor


def llava() -> tuple[Any, Any]:
    return _llava(LlavaForConditionalGeneration)


def llava_without_template() -> tuple[Any, Any]:
    return _llava(LlavaForConditionalGeneration, chat=False)


def vipllava() -> tuple[Any, Any]:
    return _llava(VipLlavaForConditionalGeneration, vision_feature_layers=[-1, -2])


def llava_next() -> tuple[Any, Any]:
    classes = (LlavaNextForConditionalGeneration, LlavaNextProcessor, LlavaNextImageProcessor)
    return _llava(*classes, image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]])


def _qwen(model_class: Any, processor_class: Any, text: Any = None, **vision: Any) -> tuple[Any, Any]:
    tokenizer = byte_tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    processor = processor_class(
        Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 8 * 28 * 28}),
        tokenizer,
        Qwen2VLVideoProcessor(),
        chat_template=_template("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    tokens = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    tokens |= {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = model_class.config_class(
        text_config={**_TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope, **(text or {})},
        vision_config={"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 14, **vision},
        **{f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()},
    )
    return model_class(config), processor


def qwen2_vl() -> tuple[Any, Any]:
    return _qwen(Qwen2VLForConditionalGeneration, Qwen2VLProcessor, embed_dim=32, mlp_ratio=2)


def qwen2_5_vl() -> tuple[Any, Any]:
    sizes = {"intermediate_size": 48, "out_hidden_size": 32, "window_size": 28, "fullatt_block_indexes": [1]}
    return _qwen(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, **sizes)


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
    config = InternVLForConditionalGeneration.config_class(
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
    parts = {"vision_config": vision, "text_config": text, "image_token_index": image_token}
    return MllamaForConditionalGeneration(MllamaForConditionalGeneration.config_class(**parts)), processor


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
    parts = {"text_config": text, "vision_config": _VISION, "latent_query_num": 64}
    return Kosmos2ForConditionalGeneration(Kosmos2ForConditionalGeneration.config_class(**parts)), processor


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
    return settled(*FAMILIES[family](), seed)


def settled(model: Any, processor: Any, seed: int) -> tuple[Any, Any]:
    """The model in evaluation mode, with nothing in it that is zero, and without an end."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    # Random weights would otherwise end at the first token now and then.
    model.generation_config.eos_token_id = None
    return model.eval(), processor
