"""Small random parts in the file formats in which the real ones are published."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from tiny import PARTS
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    PreTrainedTokenizerFast,
    SamConfig,
    SamModel,
)

VISION = {**PARTS["vision_config"], "projection_dim": 16}
SAM = {**PARTS["sam_config"], "mlp_dim": 64}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
CONVNEXT = (PARTS["convnext_config"]["architecture"], PARTS["convnext_config"]["model_args"])

# In the manner of each family: what they do with content, system messages, white space and headers.
TEMPLATES = {
    "llama3": """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}""",
    "qwen3": """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == "user" and message.content is string %}
        {%- set ns.last_query_index = messages|length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role in ('user', 'assistant') or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}""",
    "mistral": """\
{{ bos_token }}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}\
{% endif %}\
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}\
{% endif %}{% endfor %}""",
    "smollm2": """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "llava": """\
{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}\
{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}""",
    "llava_next": """\
{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}\
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}\
{{ '[/INST]' }}{% else %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}{% endif %}{% endfor %}""",
    "llava_onevision": """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] }}\
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ ' <image>' }}{% endfor %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
{{ '\\n' + content['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
}
_WORDS = ("what color is this region describe the marked in one sentence red blue QUESTION ANSWER AGAIN hello").split()  # noqa: SIM905


def randomise(model: nn.Module, seed: int) -> Any:
    """Make every tensor matter: biases, norms and layer scales, too, away from where they start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def make_tokenizer(template: str | None = TEMPLATES["llama3"], image_token: bool = False) -> PreTrainedTokenizerFast:
    words = ["<unk>", "<s>", "</s>", *_WORDS, "?", ".", ":"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    if image_token:
        made.add_tokens(["<image>", "<pad>"], special_tokens=True)
    made.chat_template = template
    return made


def clip(folder: Path) -> Path:
    """`CLIPModel` with its text side; 28 positions of text, 100 tokens."""
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
    made = randomise(CLIPModel(CLIPConfig(vision_config=VISION, text_config=text, projection_dim=16)), seed=1)
    made.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A CLIP\n")
    return folder


def alpha_clip(
    file: Path, prefix: str = "module.", seed: int = 2, alpha: float = 0.1, width: int = 32, legacy: bool = False
) -> Path:
    """Names and shapes of Alpha-CLIP's visual tower, as its training code saves it; `legacy`: as old releases did."""
    generator = torch.Generator().manual_seed(seed)
    inner, cells = 2 * width, 36

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.15

    tensors = {
        "class_embedding": draw(width),
        "positional_embedding": draw(cells + 1, width),
        "proj": draw(width, 16),
        "conv1.weight": draw(width, 3, 14, 14),
        "conv1_alpha.weight": draw(width, 1, 14, 14) * alpha / 0.15,
    }
    for norm in ("ln_pre", "ln_post", *(f"transformer.resblocks.{i}.ln_{k}" for i in range(3) for k in (1, 2))):
        tensors |= {f"{norm}.weight": 1 + draw(width), f"{norm}.bias": draw(width)}
    for i in range(3):
        for name, (rows, columns) in {
            "attn.in_proj": (3 * width, width),
            "attn.out_proj": (width, width),
            "mlp.c_fc": (inner, width),
            "mlp.c_proj": (width, inner),
        }.items():
            block = f"transformer.resblocks.{i}.{name}"
            tensors |= {f"{block}.weight": draw(rows, columns), f"{block}.bias": draw(rows)}
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    torch.save(named, file, _use_new_zipfile_serialization=not legacy)
    return file


def convnext(folder: Path) -> Path:
    """A folder as timm's repositories on the Hub have it."""
    folder.mkdir(parents=True)
    architecture, model_args = CONVNEXT
    state = randomise(timm.create_model(architecture, num_classes=7, **model_args), seed=3).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    config = {
        "architecture": architecture,
        "num_classes": 7,
        "model_args": model_args,
        "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


def sam(folder: Path) -> Path:
    model = randomise(SamModel(SamConfig(vision_config=SAM)), seed=4)
    model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: some-licence\n---\n")
    return folder


def sam_original(folder: Path, file: Path) -> Path:
    """The same weights under the names that SAM's authors gave them."""
    state = SamModel.from_pretrained(folder).state_dict()
    neck = {"conv1": "0", "layer_norm1": "1", "conv2": "2", "layer_norm2": "3"}
    renamed = {"prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": torch.zeros(2, 8)}
    for name, tensor in state.items():
        if not name.startswith("vision_encoder."):
            if name.startswith("mask_decoder."):
                renamed[name] = tensor
            continue
        name = name.removeprefix("vision_encoder.").replace("patch_embed.projection", "patch_embed.proj")
        name = name.replace("layers.", "blocks.").replace("layer_norm1", "norm1").replace("layer_norm2", "norm2")
        if name.startswith("neck."):
            _, module, rest = name.replace("norm1", "layer_norm1").replace("norm2", "layer_norm2").split(".")
            name = f"neck.{neck[module]}.{rest}"
        renamed[f"image_encoder.{name}"] = tensor
    torch.save(renamed, file)
    return file


def language_model(
    folder: Path, family: str = "llama", tied: bool = False, extra_rows: int = 0, template: str | None = "", **save: Any
) -> Path:
    """A causal language model with tokenizer; `extra_rows` embeddings beyond the tokenizer's."""
    tokenizer = make_tokenizer(TEMPLATES["llama3"] if template == "" else template)
    values = {**TEXT, "vocab_size": len(tokenizer) + extra_rows, "tie_word_embeddings": tied}
    model = randomise(AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values)), seed=5)
    model.save_pretrained(folder, **save)
    tokenizer.save_pretrained(folder)
    return folder


def llava(folder: Path) -> Path:
    """With its template where processors of that time kept it."""
    tokenizer = make_tokenizer(TEMPLATES["llava"], image_token=True)
    _llava(folder, LlavaForConditionalGeneration, tokenizer, image_seq_length=36)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": tokenizer.chat_template}))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder


TILED = {
    "llava_next": (LlavaNextForConditionalGeneration, LlavaNextImageProcessor, "mistral", -2),
    "llava_onevision": (LlavaOnevisionForConditionalGeneration, LlavaOnevisionImageProcessor, "qwen2", -1),
}
"""LLaVAs that cut pictures into tiles: their classes, the language model, the layer of the features."""


def llava_with_tiles(folder: Path, family: str, tower: str = "clip_vision_model", extra_rows: int = 6) -> Path:
    """One of `TILED`, as `_llava` makes it, with its image processor."""
    model_class, image_processor_class, text, layer = TILED[family]
    pinpoints = [[84, 168], [168, 84], [168, 168]]
    tokenizer = make_tokenizer(TEMPLATES[family], image_token=True)
    fields = {"vision_feature_layer": layer, "vision_feature_select_strategy": "default"}
    _llava(folder, model_class, tokenizer, text, tower, extra_rows, image_grid_pinpoints=pinpoints, **fields)
    sizes = {"size": {"height": 84, "width": 84}}
    if family == "llava_next":
        sizes = {"size": {"shortest_edge": 84}, "crop_size": {"height": 84, "width": 84}}
    image_processor_class(**sizes, image_grid_pinpoints=pinpoints).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _llava(
    folder: Path,
    model_class: Any,
    tokenizer: Any,
    text: str = "llama",
    tower: str = "clip_vision_model",
    extra_rows: int = 6,  # LLaVA's vocabulary is padded
    **fields: Any,
) -> None:
    config = model_class.config_class(
        vision_config={**VISION, "model_type": tower},
        text_config={**TEXT, "model_type": text, "vocab_size": len(tokenizer) + extra_rows},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        **fields,
    )
    randomise(model_class(config), seed=6).save_pretrained(folder)


def changed(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy of a part, a folder of one safetensors file or a pickle; `change` alters its tensors or returns others."""
    if source.is_file():
        state = torch.load(source, weights_only=True)
        torch.save(change(state) or state, target)
        return target
    shutil.copytree(source, target)
    state = load_file(source / "model.safetensors")
    save_file(change(state) or state, target / "model.safetensors", metadata={"format": "pt"})
    return target


def one_of_each(folder: Path) -> Path:
    """Every part, in files whose names are the tests' own; returns the folder."""
    clip(folder / "clip")
    alpha_clip(folder / "alpha.pth")
    convnext(folder / "convnext")
    sam(folder / "sam")
    sam_original(folder / "sam", folder / "sam.pth")
    language_model(folder / "llm")
    llava(folder / "llava")
    return folder


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    """All parts as options of `assemble`; a part given as `None` is left away."""
    return {**{name: str(folder / name) for name in ("clip", "convnext", "sam", "llm")}, **changes}


def small(folder: Path, **changes: Any) -> dict[str, Any]:
    """A one-tower model."""
    return options(folder, convnext=None, sam=None, without=["convnext", "sam"], **changes)
