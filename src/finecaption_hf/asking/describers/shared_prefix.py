"""Questions about one picture that share keys and values of what their prompts begin with.

The prompt of one question is computed once. Of the others, what it has in common with them is copied into the cache
from which `generate` goes on; what is new to the cache is as many tokens in each row, so that every row stands where a
batch that is padded on the left has it, and gets the positions and masks of such a batch.

Dimension letters: B rows, L tokens of a row with its padding, C of them in the cache.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import BatchFeature, DynamicCache, GenerationConfig

from ...branches_finecaption import CACHE_ARGUMENT

Inputs = dict[str, Any]
"""What a processor makes of one question or several: tensors `(B, L)` where they go by tokens."""


class PreparedOnce:
    """An image processor for one picture: it prepares that once, and gives the same to every further call."""

    def __init__(self, image_processor: Any) -> None:
        self._image_processor = image_processor
        self._made: Any = None

    def __call__(self, *pictures: Any, **options: Any) -> Any:
        if self._made is None:
            self._made = self._image_processor(*pictures, **options)
        return copy.copy(self._made)  # processors take entries out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._image_processor, name)


def join(prompts: Sequence[Inputs], pad_token_id: int, side: str) -> Inputs | None:
    """Prompts as one batch, padded on a side; `None` where their pictures are of different forms."""
    by_token, others = _by_token(prompts[0]), prompts[0].keys() - _by_token(prompts[0])
    if any(
        prompt.keys() != prompts[0].keys()
        or _by_token(prompt) != by_token
        or any(prompt[name].shape[1:] != prompts[0][name].shape[1:] for name in others)
        for prompt in prompts
    ):
        return None
    return {**_pad(prompts, pad_token_id, side), **{name: torch.cat([it[name] for it in prompts]) for name in others}}


class Prefix:
    """Keys and values of a prompt, for all that begin like it.

    Args:
        model: any that generates from `input_ids`.
        prompt: of one question.
        generation: the model's configuration of it.

    Raises:
        ValueError: If its cache is none of keys and values alone.
    """

    def __init__(self, model: Any, prompt: Inputs, generation: GenerationConfig) -> None:
        config = model.config
        token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
        self.ids = prompt["input_ids"][0]
        places = (self.ids == token).nonzero() if token is not None else self.ids.new_empty(0)
        self.image_end = int(places[-1]) + 1 if len(places) else len(self.ids)  # nothing is shared without a picture
        self.others = {name: prompt[name] for name in prompt.keys() - _by_token(prompt)}
        cache = DynamicCache()
        inputs = on_device(model, {**prompt, CACHE_ARGUMENT: cache})
        model.generate(**inputs, generation_config=changed(generation, max_new_tokens=1))
        self.layers: list[tuple[Any, Any]] = [
            (getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers
        ]
        if not all(keys is not None and keys.shape[2] == len(self.ids) for keys, _ in self.layers):
            raise ValueError("Not every layer keeps keys and values of every token.")

    def common(self, prompt: Inputs) -> int:
        """How many tokens a prompt has in common with this one, at least one less than it has; 0 where that does not
        hold all of the picture, or where more than the text differs."""
        ids, others = prompt["input_ids"][0], prompt.keys() - _by_token(prompt)
        length = min(len(ids) - 1, len(self.ids))
        differs = (ids[:length] != self.ids[:length]).nonzero()
        length = int(differs[0]) if len(differs) else length
        same = others == self.others.keys() and all(torch.equal(prompt[it], self.others[it]) for it in others)
        return length if same and length >= self.image_end else 0


class Row:
    """A prompt behind a prefix.

    Attributes:
        length: its tokens.
        fewest, most: tokens that can be new to the cache: the prefix has the others, and all of the picture's.
        shares: whether the prefix has those.
    """

    def __init__(self, prefix: Prefix, prompt: Inputs) -> None:
        self.prefix, self.prompt = prefix, prompt
        self.length = prompt["input_ids"].shape[1]
        self.fewest = self.length - prefix.common(prompt)
        self.most = self.length - prefix.image_end
        self.shares = self.fewest <= self.most


def group(rows: Sequence[Row]) -> Iterator[list[int]]:
    """Numbers of rows that can have as many new tokens each, and therefore go together; those that share nothing are
    in no group."""
    sharing = (number for number, row in enumerate(rows) if row.shares)
    order = sorted(sharing, key=lambda number: rows[number].fewest)
    together: list[int] = []
    for number in order:
        if together and rows[number].fewest > min(rows[it].most for it in together):
            yield together
            together = []
        together.append(number)
    if together:
        yield together


def go_on(model: Any, rows: Sequence[Row], pad_token_id: int) -> Inputs:
    """What `generate` takes to answer a group of rows: whole prompts (B, L), and a cache that has C tokens of each."""
    width, num_new = max(row.length for row in rows), max(row.fewest for row in rows)
    cache = DynamicCache()
    for number, layer in enumerate(rows[0].prefix.layers):
        pair = []
        for part, like in enumerate(layer):
            whole = like.new_zeros((len(rows), like.shape[1], width - num_new, like.shape[3]))
            for index, row in enumerate(rows):
                start, length = width - row.length, row.length - num_new
                whole[index, :, start:] = row.prefix.layers[number][part][0, :, :length]
            pair.append(whole)
        cache.update(*pair, number)
    inputs: dict[str, Any] = on_device(model, _pad([row.prompt for row in rows], pad_token_id, "left"))
    if hasattr(model.base_model, "get_rope_index"):
        # Positions of three axes; `generate` itself would take how far they run ahead from its last call.
        grids = torch.cat([row.prompt["image_grid_thw"] for row in rows]).to(model.device)
        along = inputs["attention_mask"].cumsum(dim=-1) - 1
        along = along.masked_fill(inputs["attention_mask"] == 0, 0)
        by_axis = model.base_model.get_rope_index(**inputs, image_grid_thw=grids)[0]
        inputs["position_ids"] = torch.cat([along[None], by_axis])
    return {**inputs, CACHE_ARGUMENT: cache}


@torch.inference_mode()
def same_logits(model: Any, alone: Inputs, together: Inputs, row: int, generation: GenerationConfig) -> bool:
    """Whether a prompt gets the logits that it has alone in a row of a batch as well, up to how sums are rounded: those
    of the first token, and of the second where the first are equal."""
    config = changed(generation, max_new_tokens=2, output_logits=True, return_dict_in_generate=True)
    expected = torch.stack(model.generate(**alone, generation_config=config).logits)[:, 0].float()
    found = torch.stack(model.generate(**together, generation_config=config).logits)[:, row].float()
    steps = min(len(expected), len(found)) if expected[0].argmax() == found[0].argmax() else 1
    difference = (found[:steps] - expected[:steps]).abs().max() / expected.abs().max()
    # A wrong mask or position changes them by about their own size.
    return bool(difference <= (1e-3 if model.dtype == torch.float32 else 0.1))


def on_device(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors where the model is; those that are no whole numbers in its dtype."""
    return dict(BatchFeature(dict(inputs)).to(model.device, model.dtype))


def changed(generation: GenerationConfig, **options: Any) -> GenerationConfig:
    """A copy with some options changed."""
    config = copy.copy(generation)
    config.update(**options)
    return config


def _by_token(prompt: Inputs) -> set[str]:
    """Names of what goes by tokens."""
    return {name for name, value in prompt.items() if value.shape == prompt["input_ids"].shape}


def _pad(prompts: Sequence[Inputs], pad_token_id: int, side: str) -> Inputs:
    width = max(prompt["input_ids"].shape[1] for prompt in prompts)
    padded: Inputs = {}
    for name in sorted(_by_token(prompts[0])):
        missing = [width - prompt[name].shape[1] for prompt in prompts]
        fill = pad_token_id if name == "input_ids" else 0
        sides = [(number, 0) if side == "left" else (0, number) for number in missing]
        padded[name] = torch.cat([pad(it[name], ends, value=fill) for it, ends in zip(prompts, sides, strict=True)])
    return padded
