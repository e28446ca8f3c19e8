"""Which tensor of a part goes where: one map per file format, with every tensor that is left out and why.

A map takes a name in the file and returns where it goes (`Use`), or the reason for leaving it out (`str`), or `None`
for a name that it does not know; what it sends to a tensor that the model does not have counts as unknown, too.
docs/assembly.md lists the same.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

VISION, CONVNEXT, SAM = "model.vision_tower.", "model.convnext_tower.encoder.", "model.sam_tower.vision_encoder."
ADAPTER, LANGUAGE, HEAD = "model.adapter.", "model.language_model.", "lm_head.weight"
EMBEDDINGS = LANGUAGE + "embed_tokens.weight"
ALPHA = VISION + "embeddings.alpha_embedding.weight"

TEXT_TOWER = "CLIP's text side: FineCaption reads text with its language model"
LAST_NORM = "CLIP's last norm and projection: features are taken from a layer before them"
LATER_LAYER = "a layer behind the one whose features are used"
BUFFER = "a buffer that the model computes itself"
NO_MASK = "the mask input, which this checkpoint is built without"
CLASSIFIER = "the classifier or projection: features are taken before it"
PROMPTS = "SAM's prompt encoder and mask decoder: only its image encoder is used"
NECK = "SAM's neck: sam_feature_layer takes features from a block"
TIED = "the output layer, which repeats the embeddings (checked) and stays tied to them"
OTHER_PARTS = "the towers and adapter of a multimodal checkpoint, of which only the language model is used"
REPLACED = "CLIP's own weights, replaced by Alpha-CLIP's"


class Use(NamedTuple):
    """A tensor of the model, and which of so many equal pieces along the first axis it is (all of it: `(0, 1)`); with
    `row`, a single row of it, which another tensor of the part gives."""

    target: str
    piece: int = 0
    pieces: int = 1
    row: int | None = None


KeyMap = Callable[[str], list[Use] | str | None]


def clip_map(num_layers: int) -> KeyMap:
    """`CLIPModel` or `CLIPVisionModel` as the Hub has it, with or without `vision_model.` before the names."""
    text = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")

    def route(key: str) -> list[Use] | str | None:
        if key.startswith(text):
            return LAST_NORM if key.startswith("visual_projection.") else TEXT_TOWER
        key = key.removeprefix("vision_model.")
        if key == "embeddings.position_ids":
            return BUFFER
        if key.startswith("post_layernorm."):
            return LAST_NORM
        if _number(key, r"encoder\.layers\.(\d+)\.") >= num_layers:
            return LATER_LAYER
        return None if key.startswith("embeddings.alpha_embedding.") else [Use(VISION + key)]

    return route


_ALPHA_TOP = {
    "conv1.weight": "embeddings.patch_embedding.weight",
    "conv1_alpha.weight": "embeddings.alpha_embedding.weight",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
}
_ALPHA_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_ALPHA_TEXT = (
    "transformer.",
    "token_embedding.",
    "ln_final.",
    "text_projection",
    "positional_embedding",
    "logit_scale",
)


def alpha_clip_name(key: str) -> str:
    """A name in an Alpha-CLIP file without what data-parallel training puts before it."""
    while key.startswith("module."):
        key = key.removeprefix("module.")
    return key.replace("visual.module.", "visual.", 1)


def alpha_clip_map(keys: list[str], num_layers: int, use_mask: bool) -> KeyMap:
    """Alpha-CLIP's visual tower, alone or as `visual.` of the whole model; q, k and v are one joint matrix there."""
    is_whole = any(alpha_clip_name(key).startswith("visual.") for key in keys)

    def route(key: str) -> list[Use] | str | None:
        key = alpha_clip_name(key)
        if is_whole:
            if not key.startswith("visual."):
                return TEXT_TOWER if key.startswith(_ALPHA_TEXT) else None
            key = key.removeprefix("visual.")
        if key in ("proj", "ln_post.weight", "ln_post.bias"):
            return LAST_NORM
        if key == "conv1_alpha.weight" and not use_mask:
            return NO_MASK
        if key in _ALPHA_TOP:
            return [Use(VISION + _ALPHA_TOP[key])]
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", key)
        if match is None:
            return None
        if int(match[1]) >= num_layers:
            return LATER_LAYER
        block = f"{VISION}encoder.layers.{match[1]}."
        if match[2] == "attn.in_proj":
            return [Use(f"{block}self_attn.{name}_proj.{match[3]}", i, 3) for i, name in enumerate("qkv")]
        return [Use(f"{block}{_ALPHA_BLOCK[match[2]]}.{match[3]}")] if match[2] in _ALPHA_BLOCK else None

    return route


_OPEN_CLIP_TEXT = (*_ALPHA_TEXT, "attn_mask", "text.")


def convnext_map(keys: list[str], num_stages: int) -> KeyMap:
    """A timm ConvNeXt, alone or as the image side of an OpenCLIP model (`visual.trunk.`)."""
    is_open_clip = any(key.startswith("visual.trunk.") for key in keys)

    def route(key: str) -> list[Use] | str | None:
        if is_open_clip:
            if not key.startswith("visual."):
                return TEXT_TOWER if key.startswith(_OPEN_CLIP_TEXT) else None
            if key.startswith("visual.head."):
                return CLASSIFIER
            key = key.removeprefix("visual.trunk.")
        if key.startswith("head."):
            return CLASSIFIER
        if _number(key, r"stages\.(\d+)\.") >= num_stages:
            return LATER_LAYER
        return [Use(CONVNEXT + key)]

    return route


_SAM_TOP = {
    "patch_embed.proj": "patch_embed.projection",
    "neck.0": "neck.conv1",
    "neck.1": "neck.layer_norm1",
    "neck.2": "neck.conv2",
    "neck.3": "neck.layer_norm2",
}
_SAM_BLOCK = {"norm1": "layer_norm1", "norm2": "layer_norm2"}
_SAM_REST = ("prompt_encoder.", "mask_decoder.", "shared_image_embedding.")


def sam_map(num_layers: int, use_neck: bool) -> KeyMap:
    """SAM as the Hub has it (`vision_encoder.`) or as its authors published it (`image_encoder.`)."""

    def route(key: str) -> list[Use] | str | None:
        if key.startswith(_SAM_REST):
            return PROMPTS
        if key in ("pixel_mean", "pixel_std"):
            return BUFFER
        if key.startswith("image_encoder."):
            key = _sam_name(key.removeprefix("image_encoder."))
        elif key.startswith("vision_encoder."):
            key = key.removeprefix("vision_encoder.")
        else:
            return None
        if key.startswith("neck.") and not use_neck:
            return NECK
        return LATER_LAYER if _number(key, r"layers\.(\d+)\.") >= num_layers else [Use(SAM + key)]

    return route


def _sam_name(key: str) -> str:
    """The Hub's name of a tensor of the original image encoder."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
    if match:
        first, dot, rest = match[2].partition(".")
        return f"layers.{match[1]}.{_SAM_BLOCK.get(first, first)}{dot}{rest}"
    stem, _, last = key.rpartition(".")
    return f"{_SAM_TOP[stem]}.{last}" if stem in _SAM_TOP else key


def language_map(base: str, head: str, tied: bool, rest: bool = False) -> KeyMap:
    """A causal language model: `base.` before the names of its body, `head` the name of its output layer.

    With `rest`, what else the files hold is left out: the language model is that of a multimodal checkpoint.
    """

    def route(key: str) -> list[Use] | str | None:
        if key.endswith("rotary_emb.inv_freq"):
            return BUFFER
        if key == head:
            return TIED if tied else [Use(HEAD)]
        if key.startswith(f"{base}."):
            return [Use(LANGUAGE + key.removeprefix(f"{base}."))]
        return OTHER_PARTS if rest else None

    return route


def llava_map(num_layers: int, tied: bool, replaced: bool, newline: int | None) -> KeyMap:
    """LLaVA as the Hub has it, with the names of before and after `model.` came to stand in front.

    `newline` is the token of LLaVA-NeXT's newline, whose embedding is a tensor of its own there.
    """
    vision, language = clip_map(num_layers), language_map("model", "lm_head.weight", tied)

    def route(key: str) -> list[Use] | str | None:
        match = re.fullmatch(r"(?:language_model\.)?(lm_head\.weight)", key)
        if match:
            return language(match[1])
        if newline is not None and key.removeprefix("model.") == "image_newline":
            return [Use(EMBEDDINGS, row=newline)]
        match = re.fullmatch(r"(?:model\.)?(vision_tower|multi_modal_projector|language_model)\.(.+)", key)
        if match is None:
            return None
        part, name = match.groups()
        if part == "multi_modal_projector":
            return [Use(ADAPTER + name)]
        if part == "language_model":
            return language("model." + name.removeprefix("model."))
        if name.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_scale")):
            return None
        found = vision(name)
        return REPLACED if replaced and isinstance(found, list) else found

    return route


def _number(key: str, pattern: str) -> int:
    match = re.match(pattern, key)
    return int(match[1]) if match else -1
