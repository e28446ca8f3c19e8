"""LLaVA and its successors as one-tower FineCaptions: which of them can be one, and how pictures become square."""

from typing import Any, NamedTuple

from transformers import AutoConfig

from .configs import image_processor_values, model_values
from .errors import AssemblyError
from .sources import Source

NEWLINE = "<image_newline>"
"""The token whose embedding is a LLaVA-NeXT's newline, which stands behind the image tokens."""


class Family(NamedTuple):
    """What an option takes: its `model_type`, and whether it cuts pictures into tiles beside a view of the whole."""

    model_type: str
    has_tiles: bool


FAMILIES = {
    "from_llava": Family("llava", has_tiles=False),
    "from_llava_next": Family("llava_next", has_tiles=True),
    "from_llava_onevision": Family("llava_onevision", has_tiles=True),
}
"""Option -> family."""


def llava_fields(option: str, source: Source) -> dict[str, Any]:
    """Fields of `FineCaptionConfig` that make a one-tower model of a LLaVA.

    Raises:
        AssemblyError: If it is of another family, or sees in a way that a FineCaption does not.
    """
    where, kind = _where(option, source), source.config.get("model_type")
    if kind != FAMILIES[option].model_type:
        others = [other for other, family in FAMILIES.items() if family.model_type == kind]
        remedy = f" Give it as --{others[0].replace('_', '-')}." if others else ""
        raise AssemblyError(f"{where} is a model of type {kind!r}, not {FAMILIES[option].model_type!r}.{remedy}")
    config = AutoConfig.for_model(kind, **model_values(source.config))
    if config.vision_config.model_type != "clip_vision_model":
        raise AssemblyError(
            f"{where} sees with {config.vision_config.model_type}, not with CLIP. The mask enters a CLIP, which has a "
            "class token and a norm before its layers, and Alpha-CLIP is published for CLIP alone. To ask this model "
            f"as it is, with regions marked in the picture or the text: --model {source.name} --referral .."
        )
    if config.vision_feature_select_strategy != "default" or not isinstance(config.vision_feature_layer, int):
        raise AssemblyError(
            f"{where} uses the features {config.vision_feature_select_strategy!r} of layer "
            f"{config.vision_feature_layer}; needed are those of the patches ('default') of one layer."
        )
    return {
        "vision_config": config.vision_config,
        "text_config": config.text_config,
        "vision_feature_layer": config.vision_feature_layer,
        "adapter_hidden_act": config.projector_hidden_act,
        "adapter_bias": config.multimodal_projector_bias,
        "image_token_id": config.image_token_id,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_convnext": False,
        "use_sam": False,
    }


def llava_geometry(option: str, source: Source, side: int) -> tuple[dict[str, Any], list[str]]:
    """How a LLaVA's pictures become square: arguments of `FineCaptionImageProcessor`, and notes on what differs.

    Args:
        option (`str`): of `FAMILIES`.
        source (`Source`): of the LLaVA.
        side (`int`): pixels of its vision tower's input.
    """
    where, values = _where(option, source), image_processor_values(source)
    fields = {"resample": values["resample"]} if isinstance(values.get("resample"), int) else {}
    size, crop = values.get("size"), values.get("crop_size")
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size
    cropped = crop.get("height") if isinstance(crop, dict) else crop
    if FAMILIES[option].has_tiles:
        return {**fields, "do_pad": False}, [
            f"{where} cuts pictures into tiles; here it sees its view of the whole picture, squashed to {side} px, and "
            f"no tile. Its logits are the original's for that view. To ask the original with its tiles: --model "
            f"{source.name} --referral .."
        ]
    if values.get("do_pad"):
        return fields, [
            f"{where} pads pictures before it resizes them, FineCaption after: apart from square ones they differ by "
            "less than a pixel, so logits are near the original's, not equal."
        ]
    if values.get("do_center_crop") and (shortest, cropped) == (side, side):
        return {**fields, "do_center_crop": True}, []
    if values and not values.get("do_center_crop") and isinstance(size, dict) and size.get("height") == side:
        return {**fields, "do_pad": False}, []
    return fields, [
        f"{where} does not say how its pictures become {side} px squares in a way that is known here; they are padded. "
        "Set do_center_crop or do_pad in processor_config.json if it was trained otherwise."
    ]


def _where(option: str, source: Source) -> str:
    return f"--{option.replace('_', '-')} {source.name}"
