"""Attention heads of a width that an engine lacks: enlarged with zeros, so that what a model says stays the same."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch

_ROTARY = ("default", "linear", "llama3")
"""Ways of rotary embedding that scale each frequency by itself, so that more of them leave the first as they are."""
_PADDED = ("llama", "mistral")
_GIVEN = "unpadded_head_dim"


def head_size(text: Any) -> int:
    """The width of a language model's heads."""
    given = getattr(text, "head_dim", None)
    return int(given or text.hidden_size // text.num_attention_heads)


def pad_heads(text: Any, sizes: Collection[int]) -> None:
    """Enlarge the heads in a language model's configuration. `padded` then makes the weights fit.

    Args:
        text: the configuration, which is changed.
        sizes: that there are; the next larger one is taken.

    Raises:
        ValueError: If that cannot be done exactly.
    """
    size = head_size(text)
    wanted = min((it for it in sizes if it >= size), default=None)
    rotary = dict(getattr(text, "rope_parameters", None) or {})
    kind = rotary.get("rope_type", "default")
    whole = rotary.get("partial_rotary_factor", 1.0) == 1.0
    if wanted is None or text.model_type not in _PADDED or kind not in _ROTARY or not whole:
        raise ValueError(
            f"The language model ({text.model_type}, rotary embedding {kind!r}) has heads of {size}, which vLLM's "
            f"attention does not take. It takes {', '.join(map(str, sorted(sizes)))}; others are enlarged for "
            f"{' and '.join(_PADDED)} only. Ask this checkpoint by finecaption describe."
        )
    # theta' ** (-2i / wanted) is theta ** (-2i / size): the first frequencies stay.
    text.rope_parameters = {**rotary, "rope_theta": float(rotary["rope_theta"] ** (wanted / size))}
    setattr(text, _GIVEN, size)
    text.head_dim = wanted


def were_padded(text: Any) -> bool:
    """Whether `pad_heads` enlarged the heads of this configuration."""
    return hasattr(text, _GIVEN)


def padded(weights: Iterable[tuple[str, torch.Tensor]], text: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights of a checkpoint, with the language model's projections brought to the heads that `pad_heads` wants.

    Queries and keys get zeros behind each of the two halves that the rotary embedding turns against each other, values
    likewise. Queries grow by the root of the ratio, since attention divides by the root of the head size.
    """
    size = getattr(text, _GIVEN, None)
    if size is None:
        yield from weights
        return
    for name, weight in weights:
        projection = name.rpartition(".")[0].rpartition(".")[2] if "language_model." in name else ""
        if projection in ("q_proj", "k_proj", "v_proj"):
            weight = _grown(weight, 0, size, text.head_dim)
            if projection == "q_proj":
                weight = weight * (text.head_dim / size) ** 0.5
        elif projection == "o_proj" and weight.ndim == 2:
            weight = _grown(weight, 1, size, text.head_dim)
        yield name, weight


def _grown(weight: torch.Tensor, dim: int, size: int, wanted: int) -> torch.Tensor:
    heads = weight.unflatten(dim, (-1, 2, size // 2))  # the two halves of each head
    shape = list(heads.shape)
    shape[dim + 2] = wanted // 2
    grown = heads.new_zeros(shape)
    grown.narrow(dim + 2, 0, size // 2).copy_(heads)
    return grown.flatten(dim, dim + 2)
