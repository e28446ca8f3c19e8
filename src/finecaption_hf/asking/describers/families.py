"""How each family of models is asked where nobody says it: by which referral, in which words."""

from dataclasses import dataclass, field

from .referral import Referral
from .templates import PromptTemplates


@dataclass(frozen=True)
class Family:
    """What suits a family of models.

    Attributes:
        referral: the one that it was trained with or, failing that, one that needs no training.
        prompts: around each question.
    """

    referral: Referral
    prompts: PromptTemplates = field(default_factory=PromptTemplates)


OTHERS = Family(Referral("contour_drawn"))
"""A line around the mask tells most about a region to a model that has learnt no convention of its own."""

_BOX = Family(Referral("box_text"))

FAMILIES: dict[str, Family] = {
    "internvl": _BOX,
    "kosmos-2": Family(
        Referral("box_text", sentence="The marked region is{box}."),
        PromptTemplates("<grounding> {referral} Question: {question} Answer:"),
    ),
    "llava": _BOX,
    "qwen2_vl": _BOX,
    "qwen2_5_vl": _BOX,
    "qwen3_vl": _BOX,
    "qwen3_vl_moe": _BOX,
    "vipllava": Family(Referral("contour_drawn", color="red")),
}
"""`config.model_type` -> what suits it: boxes in the text for those whose training had them, see `BOX_FORMATS`."""


def family_of(model_type: str | None) -> Family:
    """The family of a model's type, `OTHERS` where it has none of its own."""
    return FAMILIES.get(model_type or "", OTHERS)
