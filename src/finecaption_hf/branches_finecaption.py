"""A prefix and its branches as tensors: masks, positions, keys and values, and the next tokens of each branch.

A branch attends to the prefix and, causally, to itself; positions restart after the prefix for every branch. So each
branch gets the logits of the sequence that holds it alone, and the prefix is computed once.

Dimension letters: S sequences, T tokens of a sequence; for decoding R regions, n branches of a region, P tokens of a
prefix, Q tokens of all questions about a region, L tokens that are new to the cache, H heads, G key/value heads, d
width of a head, V vocabulary.
"""

from .configuration_finecaption import MIN_TRANSFORMERS  # noqa: F401  (an unsupported release ends in that file)

# isort: split
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, Cache, DynamicCache, LogitsProcessor, StoppingCriteria
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import torch_compilable_check

from .prompts_finecaption import BranchRequest

PADDING_BRANCH = -1
# What a language model calls the argument that takes its cache: `past_key_values` up to transformers 5.23.
CACHE_ARGUMENT = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


def check_values(holds: torch.Tensor, message: str | Callable[[], str]) -> None:
    """`torch_compilable_check` of every entry; compiled code asserts it in its graph, which this does not break up."""
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        torch._assert_async(holds.all(), "Inputs do not fit each other. Without torch.compile, the error says which.")
    else:
        torch_compilable_check(holds, message)


def branch_attention_mask(branch_ids: torch.Tensor) -> torch.Tensor:
    """Which tokens attend to which: causally, to the prefix and to their own branch.

    Args:
        branch_ids (`torch.LongTensor` of shape `(S, T)`): 0 in the prefix, 1, 2, .. in its branches, -1 in padding.

    Returns:
        `torch.BoolTensor` of shape `(S, 1, T, T)`, True where the query (third axis) attends to the key (fourth).
        Padding attends to the prefix and to padding, so that no row is empty; nothing else attends to padding.
    """
    length = branch_ids.shape[1]
    query, key = branch_ids[:, :, None], branch_ids[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=branch_ids.device).tril()
    return (((query == key) | (key == 0)) & causal)[:, None]


def branch_block_mask(branch_ids: torch.Tensor) -> BlockMask:
    """The rule of `branch_attention_mask` for flex attention, which skips blocks that nothing attends to."""
    branch_ids = branch_ids.contiguous()

    def attends(sequence: Any, head: Any, query: Any, key: Any) -> Any:
        own = branch_ids[sequence, query] == branch_ids[sequence, key]
        return (query >= key) & (own | (branch_ids[sequence, key] == 0))

    num_sequences, length = branch_ids.shape
    return create_block_mask(attends, num_sequences, None, length, length, device=branch_ids.device)


def branch_position_ids(branch_ids: torch.Tensor) -> torch.Tensor:
    """Positions that count through the prefix and restart after it for every branch.

    Args:
        branch_ids (`torch.LongTensor` of shape `(S, T)`): as in `branch_attention_mask`, branches one after another.

    Returns:
        `torch.LongTensor` of shape `(S, T)`; padding has position 0.
    """
    steps = torch.arange(branch_ids.shape[1], device=branch_ids.device).expand_as(branch_ids)
    first = torch.ones_like(branch_ids, dtype=torch.bool)
    first[:, 1:] = branch_ids[:, 1:] != branch_ids[:, :-1]
    starts = torch.where(first, steps, 0).cummax(dim=1).values
    prefix_lengths = (branch_ids == 0).sum(dim=1, keepdim=True)
    positions = steps - starts + torch.where(branch_ids > 0, prefix_lengths, 0)
    return torch.where(branch_ids < 0, 0, positions)


def are_branch_ids(branch_ids: torch.Tensor) -> torch.Tensor:
    """Whether every sequence is a prefix, its branches in order, then padding: a bool of shape `()`."""
    before, after = branch_ids[:, :-1], branch_ids[:, 1:]
    follows = (after == PADDING_BRANCH) | ((before >= 0) & ((after == before) | (after == before + 1)))
    return follows.all() & (branch_ids[:, 0] == 0).all()


def packed_branch_inputs(language_model: Any, branch_ids: torch.Tensor, inputs_embeds: torch.Tensor) -> dict[str, Any]:
    """What the language model needs for packed branches, in the form that its attention implementation takes.

    Args:
        branch_ids (`torch.LongTensor` of shape `(S, T)`): 0 in the prefix, 1, 2, .. in its branches, -1 in padding.
        inputs_embeds (`torch.Tensor` of shape `(S, T, D)`): the sequences.

    Returns:
        `dict`: `attention_mask` and `position_ids`.

    Raises:
        ValueError: If branch_ids are none, or the language model cannot keep branches apart.
    """
    if branch_ids.shape != inputs_embeds.shape[:2]:
        raise ValueError(
            f"branch_ids have shape {tuple(branch_ids.shape)}, but the sequences and their tokens are "
            f"{tuple(inputs_embeds.shape[:2])}. Give one branch id per token."
        )
    branch_ids = branch_ids.to(inputs_embeds.device)
    check_values(
        are_branch_ids(branch_ids),
        "branch_ids must be 0 in the prefix, then 1, 2, .. in one branch after another, then -1 in padding on the "
        "right.",
    )
    obstacle = branch_obstacle(language_model)
    if obstacle is not None:
        raise ValueError(
            f"The language model ({language_model.config.model_type}) cannot keep branches apart: {obstacle}. "
            "Train it without branch_ids, one description per sequence."
        )
    position_ids = branch_position_ids(branch_ids)
    window = attention_window(language_model)
    if window is not None and branch_ids.shape[1] > window:
        check_values(
            position_ids.max() < window,
            f"A prefix with one of its branches is longer than the window of {window} tokens to which layers of "
            "the language model attend. Shorten it, or train without branch_ids.",
        )
    implementation = language_model.config._attn_implementation
    attention_mask: Any
    if implementation == "flex_attention":
        attention_mask = branch_block_mask(branch_ids)
    elif implementation in ("sdpa", "eager"):
        attention_mask = branch_attention_mask(branch_ids)
        if implementation == "eager":  # adds its mask to the scores
            lowest = torch.finfo(inputs_embeds.dtype).min
            attention_mask = torch.zeros_like(attention_mask, dtype=inputs_embeds.dtype).masked_fill(
                ~attention_mask, lowest
            )
    else:
        raise ValueError(
            f"The language model's attention implementation is {implementation!r}, which takes no mask that keeps "
            "branches apart. Choose sdpa, flex_attention or eager: from_pretrained(..., attn_implementation="
            '{"text_config": "sdpa"}).'
        )
    return {"attention_mask": attention_mask, "position_ids": position_ids}


# --- decoding -------------------------------------------------------------------------------------------------------


class _Unsupported(RuntimeError):
    """What a language model asks of attention that decoding in branches does not have."""


class BranchCache(Cache):
    """Keys and values of R prefixes, once each, of the questions about them, and of the answers to them.

    A layer's prompts are `(R, G, P + Q, d)`: a prefix, then the questions one after another. Answers are
    `(R, n, G, steps, d)`; they grow by some steps at a time.

    Args:
        prefixes (`list[Cache]`): one or several, which hold the prefixes of all regions in order.
        question_tokens (`int`): the most tokens that questions about a region will take.
    """

    steps_at_once = 4

    def __init__(self, prefixes: list[Cache], question_tokens: int) -> None:
        super().__init__(layers=[])
        self.prefix_length = prefixes[0].layers[0].keys.shape[2]
        self.prompts: list[list[torch.Tensor]] = []
        self.answers: list[list[torch.Tensor]] = []
        for index in range(len(prefixes[0].layers)):
            pair = []
            for name in ("keys", "values"):
                parts = [getattr(prefix.layers[index], name) for prefix in prefixes]
                length = self.prefix_length + question_tokens
                whole = parts[0].new_empty(
                    (sum(len(part) for part in parts), parts[0].shape[1], length, parts[0].shape[3])
                )
                # Where a region has fewer questions, its weights are 0, but 0 times what memory holds may be no number.
                whole[:, :, self.prefix_length :] = 0
                start = 0
                for part in parts:
                    whole[start : start + len(part), :, : self.prefix_length] = part
                    start += len(part)
                pair.append(whole)
            self.prompts.append(pair)
            # What was copied is let go, layer by layer.
            for prefix in prefixes:
                prefix.layers[index].keys = prefix.layers[index].values = None
        self.start_questions(slice(0, 0), torch.empty(0))
        self.question_mask: torch.Tensor = torch.empty(0)
        self.num_steps = 0

    def start_questions(self, rows: slice, mask: torch.Tensor) -> None:
        """The next tokens are the questions about some regions; they replace what came after the prefix.

        Args:
            rows: of the regions.
            mask (`torch.BoolTensor` of shape `(rows or 1, L, P + L)`): which prompts' tokens they attend to.
        """
        self.rows, self.mask, self.step = rows, mask, -1

    def start_answers(self, question_mask: torch.Tensor) -> None:
        """What follows are answers, one token of each branch at a time.

        Args:
            question_mask (`torch.BoolTensor` of shape `(R, n, Q)`): which tokens of questions belong to which branch.
        """
        self.rows, self.step, self.num_steps = slice(None), -1, 0
        self.question_mask = question_mask
        num_branches = question_mask.shape[1]
        self.answers = [
            [part.new_empty((part.shape[0], num_branches, part.shape[1], 0, part.shape[3])) for part in pair]
            for pair in self.prompts
        ]

    def next_step(self) -> None:
        self.step += 1
        self.num_steps = self.step + 1

    def select(self, rows: torch.Tensor | None, columns: torch.Tensor) -> None:
        """Keep some regions (all where `rows` is None), and of each of them some branches, `columns` `(R, n)`."""
        if rows is not None:
            self.prompts = [[part[rows.to(part.device)] for part in pair] for pair in self.prompts]
        self.answers = [[_pick(part, rows, columns) for part in pair] for pair in self.answers]
        self.question_mask = _pick(self.question_mask, rows, columns)

    @property
    def num_bytes(self) -> int:
        """Memory of all keys and values."""
        return sum(part.nbytes for pair in (*self.prompts, *self.answers) for part in pair)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store `(rows, G, L, d)`; gives back the prompts' keys and values up to their last question."""
        prompts = self.prompts[layer_idx]
        if self.step < 0:
            end = self.prefix_length + key_states.shape[2]
            for part, states in zip(prompts, (key_states, value_states)):
                part[self.rows, :, self.prefix_length : end] = states
        else:
            end = self.prefix_length + self.question_mask.shape[2]
            answers = self.answers[layer_idx]
            for number, states in enumerate((key_states, value_states)):
                if self.step == answers[number].shape[3]:
                    more = list(answers[number].shape)
                    more[3] = self.steps_at_once
                    answers[number] = torch.cat([answers[number], answers[number].new_empty(more)], dim=3)
                answers[number][:, :, :, self.step] = states.transpose(1, 2)
        return prompts[0][self.rows, :, :end], prompts[1][self.rows, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.prefix_length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # type: ignore[override]
        return self.prefix_length + query_length, 0


def _pick(tensor: torch.Tensor, rows: torch.Tensor | None, columns: torch.Tensor) -> torch.Tensor:
    """Of `(R, n, ..)` some rows, and of each of them some columns `(R', n')`."""
    if rows is None:
        rows = torch.arange(len(tensor))
    return tensor[rows.to(tensor.device)[:, None], columns.to(tensor.device)]


def branch_attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    branch_cache: BranchCache | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of questions, or of one token of each answer, to their prefix and to their own branch.

    Heads that share keys and values become queries of one head, and so do the branches of a region: keys and values
    are read once per region and never copied.

    Args:
        query (`torch.Tensor` of shape `(R, H, L, d)`): of L tokens of questions, or of L = n branches.
        key, value (`torch.Tensor` of shape `(R, G, P + Q, d)`): of the prompts; those of answers are in the cache.
        branch_cache (`BranchCache`): which tokens belong to which branch.

    Returns:
        `torch.Tensor` of shape `(R, L, H, d)`, and `None` for the weights.
    """
    if branch_cache is None:
        raise _Unsupported(
            "does not hand on to its attention what it gets (or is used in another thread while an engine decodes)"
        )
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise _Unsupported(f"uses {name} in its attention")
    num_rows, num_heads, length, width = query.shape
    num_shared = key.shape[1]
    groups = num_heads // num_shared
    scaling = width**-0.5 if scaling is None else scaling
    if branch_cache.step < 0:
        mask = branch_cache.mask.to(query.device)[:, None].repeat(1, 1, groups, 1)
        query = query.reshape(num_rows, num_shared, groups * length, width)
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    else:
        shape = (num_rows, num_shared, groups, length)
        own_keys, own_values = (
            part[:, :, :, : branch_cache.num_steps] for part in branch_cache.answers[module.layer_idx]
        )
        folded = (query * scaling).reshape(num_rows, num_shared, groups * length, width)
        to_prompt = (folded @ key.transpose(-1, -2)).view(*shape, -1)
        others = ~branch_cache.question_mask.to(query.device)
        to_prompt[..., branch_cache.prefix_length :].masked_fill_(others[:, None, None], float("-inf"))
        to_own = folded.view(*shape, width).permute(0, 3, 1, 2, 4) @ own_keys.transpose(-1, -2)
        scores = torch.cat([to_prompt, to_own.permute(0, 2, 3, 1, 4)], dim=-1)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
        on_prompt, on_own = weights.split([key.shape[2], branch_cache.num_steps], dim=-1)
        output = (on_prompt.reshape(num_rows, num_shared, groups * length, -1) @ value).view(*shape, -1)
        output = output + (on_own.permute(0, 3, 1, 2, 4) @ own_values).permute(0, 2, 3, 1, 4)
    output = output.reshape(num_rows, num_heads, length, -1)
    return output.transpose(1, 2).contiguous(), None


# The name holds this file's module: several checkpoints bring a copy of it.
BRANCH_ATTENTION = f"finecaption_branches_{__name__}"
AttentionInterface.register(BRANCH_ATTENTION, branch_attention_forward)
# Which attention a model uses is a setting that its threads share, so that engines take turns at language models.
LANGUAGE_MODEL_TURN = threading.RLock()


@contextmanager
def use_branch_attention(language_model: Any) -> Iterator[None]:
    """Decode with this file's attention, whatever the model uses otherwise."""
    config = language_model.config
    with LANGUAGE_MODEL_TURN:
        before = config._attn_implementation
        config._attn_implementation = BRANCH_ATTENTION
        try:
            yield
        finally:
            config._attn_implementation = before


# --- the next tokens ------------------------------------------------------------------------------------------------


@dataclass
class Branch:
    """A branch while it is answered."""

    region: int
    index: int
    request: BranchRequest
    question_ids: tuple[int, ...]
    max_new_tokens: int
    penalty: float
    log_probs: list[float] | None
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    reported: int = 0
    _draws: list[float] | None = None

    def draw(self) -> float:
        """A number from [0, 1) for the next token; the same for the same seed and place in the answer."""
        if self._draws is None:
            generator = torch.Generator().manual_seed(self.request.seed)
            self._draws = torch.rand(self.max_new_tokens, generator=generator, dtype=torch.float64).tolist()
        return self._draws[len(self.token_ids)]

    def restart(self) -> None:
        self.finish_reason = None
        self.token_ids = []
        self.log_probs = None if self.log_probs is None else []

    @property
    def num_tokens(self) -> int:
        """At most."""
        return len(self.question_ids) + self.max_new_tokens


class Columns:
    """Which branch stands where while they are decoded: R rows of n branches, `None` where a row has fewer."""

    def __init__(self, rows: list[list[Branch]]) -> None:
        width = max(len(row) for row in rows)
        self.rows: list[list[Branch | None]] = [[*row, *[None] * (width - len(row))] for row in rows]

    @property
    def places(self) -> list[tuple[int, int]]:
        """(row, column) of the branches that go on."""
        return [
            (row, column)
            for row, branches in enumerate(self.rows)
            for column, branch in enumerate(branches)
            if branch is not None and branch.finish_reason is None
        ]

    def at(self, places: list[tuple[int, int]]) -> list[Branch]:
        return [branch for row, column in places if (branch := self.rows[row][column]) is not None]

    def tensor(self, places: list[tuple[int, int]], values: list[int], device: torch.device) -> torch.Tensor:
        """`(R, n)` with values at some places, 0 elsewhere."""
        table = [[0] * len(row) for row in self.rows]
        for (row, column), value in zip(places, values, strict=True):
            table[row][column] = value
        return torch.tensor(table, device=device)

    def shrink(self, cache: BranchCache) -> None:
        """Leave out finished branches, and regions whose branches are all finished, once that saves enough."""
        alive = [
            [column for column, branch in enumerate(row) if branch is not None and branch.finish_reason is None]
            for row in self.rows
        ]
        kept = [row for row, columns in enumerate(alive) if columns]
        # A region's prefix is copied when others go, a branch's own tokens are few.
        all_rows = 2 * len(kept) > len(self.rows)
        chosen = list(range(len(self.rows))) if all_rows else kept
        width = max(len(alive[row]) for row in chosen)
        if all_rows and 4 * width > 3 * len(self.rows[0]):
            return
        columns = [[*alive[row], *[0] * (width - len(alive[row]))] for row in chosen]
        cache.select(None if all_rows else torch.tensor(chosen), torch.tensor(columns))
        self.rows = [
            [*(self.rows[row][column] for column in alive[row]), *[None] * (width - len(alive[row]))] for row in chosen
        ]


def choose_tokens(logits: torch.Tensor, branches: Sequence[Branch], prefix_ids: Sequence[int]) -> list[int]:
    """The next token of each branch, as its request says; notes log-probabilities where they are asked for.

    Args:
        logits (`torch.Tensor` of shape `(branches, V)`): of the next token.
        branches: in that order, with their tokens so far.
        prefix_ids: the tokens before their questions, which a repetition penalty counts as well.
    """
    logits = logits.float()
    own = logits
    penalised = [number for number, branch in enumerate(branches) if branch.penalty != 1]
    if penalised:
        own = logits.clone()
        before = torch.tensor(sorted(set(prefix_ids)), device=logits.device, dtype=torch.long)
        for number in penalised:
            branch = branches[number]
            seen = torch.tensor([*branch.question_ids, *branch.token_ids], device=logits.device, dtype=torch.long)
            seen = torch.cat([before, seen]).unique()
            scores = own[number, seen]
            own[number, seen] = torch.where(scores < 0, scores * branch.penalty, scores / branch.penalty)
    chosen = own.argmax(dim=-1)
    # Apart: in which order probabilities are summed must not depend on the other branches.
    for cut in (False, True):
        drawn = [
            number
            for number, branch in enumerate(branches)
            if branch.request.temperature > 0 and (branch.request.top_p < 1) == cut
        ]
        if drawn:
            chosen[drawn] = _draw(own[drawn], [branches[number] for number in drawn], cut)
    asked = [number for number, branch in enumerate(branches) if branch.log_probs is not None]
    if asked:
        found = logits[asked].log_softmax(dim=-1).gather(1, chosen[asked, None])[:, 0].tolist()
        for number, log_prob in zip(asked, found, strict=True):
            branch = branches[number]
            assert branch.log_probs is not None
            branch.log_probs.append(log_prob)
    tokens: list[int] = chosen.tolist()
    return tokens


def _draw(logits: torch.Tensor, branches: Sequence[Branch], cut: bool) -> torch.Tensor:
    """One token of each row `(branches, V)`, where a branch's own number falls in the summed probabilities.

    With `cut`, only the likeliest tokens take part that together have the probability `top_p`.
    """
    temperatures = torch.tensor([branch.request.temperature for branch in branches], device=logits.device)
    probabilities = (logits / temperatures[:, None]).softmax(dim=-1).double()
    order = None
    if cut:
        top_p = torch.tensor([branch.request.top_p for branch in branches], device=logits.device, dtype=torch.float64)
        probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p[:, None], 0)
    sums = probabilities.cumsum(dim=-1)
    draws = torch.tensor([branch.draw() for branch in branches], device=logits.device, dtype=torch.float64)
    # The first token whose sum is above the draw; one of probability 0 cannot be.
    places = torch.searchsorted(sums, draws[:, None] * sums[:, -1:], right=True)
    places = places.clamp(max=logits.shape[-1] - 1)
    return places[:, 0] if order is None else order.gather(1, places)[:, 0]


class ChooseInGenerate(LogitsProcessor):
    """Lets `generate` take the tokens that `advance` chooses for branches by their logits."""

    def __init__(self, advance: Callable[[torch.Tensor, Sequence[Branch]], list[int]], branches: Sequence[Branch]):
        self.advance = advance
        self.branches = branches

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        going = [number for number, branch in enumerate(self.branches) if branch.finish_reason is None]
        branches = [self.branches[number] for number in going]
        # A row that is finished gets whatever token.
        forced = torch.full_like(scores, float("-inf"))
        forced[:, 0] = 0
        for number, token in zip(going, self.advance(scores[going], branches), strict=True):
            forced[number, 0] = float("-inf")
            forced[number, token] = 0
        return forced


class StopInGenerate(StoppingCriteria):
    """Lets `generate` end each row with its branch."""

    def __init__(self, branches: Sequence[Branch]) -> None:
        self.branches = branches

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.Tensor:
        finished = [branch.finish_reason is not None for branch in self.branches]
        return torch.tensor(finished, device=input_ids.device)


# --- what a language model can do -----------------------------------------------------------------------------------


def branch_obstacle(language_model: Any) -> str | None:
    """Why a language model cannot keep branches apart, `None` where nothing is known against it."""
    if "position_ids" not in inspect.signature(language_model.forward).parameters:
        return "it takes no position_ids"
    layer_types = set(getattr(language_model.config, "layer_types", None) or ())
    if not layer_types <= {"full_attention", "sliding_attention", "chunked_attention"}:
        return f"it has layers of other kinds than attention ({', '.join(sorted(layer_types))})"
    return None


def attention_window(language_model: Any) -> int | None:
    """How many tokens may lie between a token and the first one that every layer sees, `None` where any number may.

    Positions, and masks that are given as a whole, stand for themselves below that; above, a branch in a sequence of
    its own would see less.
    """
    config = language_model.config
    if set(getattr(config, "layer_types", None) or ()) == {"full_attention"}:
        return None
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in windows if size), default=None)


class BranchSupport(NamedTuple):
    """Why a model cannot decode branches (`None`: it can), and how many bytes a token's keys and values take."""

    obstacle: str | None
    bytes_per_token: int


_SUPPORT: "WeakKeyDictionary[Any, BranchSupport]" = WeakKeyDictionary()


def branch_support(model: Any) -> BranchSupport:
    """Found out once per model."""
    language_model = model.model.language_model
    if language_model not in _SUPPORT:
        obstacle = branch_obstacle(language_model)
        if obstacle is not None:
            obstacle = f"cannot keep branches apart: {obstacle}"
        num_bytes = 0
        if obstacle is None:
            try:
                obstacle, num_bytes = _try_branches(model)
            except _Unsupported as error:
                obstacle = str(error)
            except torch.OutOfMemoryError:
                raise
            except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                obstacle = f"does not work with a cache of branches ({type(error).__name__}: {error})"
        _SUPPORT[language_model] = BranchSupport(obstacle, num_bytes or _guess_bytes_per_token(language_model))
    return _SUPPORT[language_model]


@torch.inference_mode()
def _try_branches(model: Any) -> tuple[str | None, int]:
    """Decode two short branches in both ways, and compare: says what is wrong, and the bytes that a token takes."""
    language_model = model.model.language_model
    prefix, questions, answers = [1, 2, 3, 4, 5], [[6, 7, 8], [9, 10]], [11, 12]
    vocabulary = model.get_input_embeddings().weight.shape[0]

    def ids(*rows: list[int]) -> torch.Tensor:
        return torch.tensor(rows, device=model.device) % vocabulary

    expected = [
        model(input_ids=ids([*prefix, *question, token])).logits[0, -2:] for question, token in zip(questions, answers)
    ]
    start = DynamicCache()
    model(input_ids=ids(prefix), use_cache=True, **{CACHE_ARGUMENT: start})
    num_bytes = sum(part.nbytes for layer in start.layers for part in (layer.keys, layer.values)) // len(prefix)
    cache = BranchCache([start], 5)
    owners = torch.tensor([[0] * 5 + [1] * 3 + [2] * 2], device=model.device)
    cache.start_questions(slice(None), branch_attention_mask(owners)[:, 0, 5:])
    given = {CACHE_ARGUMENT: cache, "use_cache": True, "branch_cache": cache}
    with use_branch_attention(language_model):
        positions = branch_position_ids(owners)[:, 5:]
        first = model(input_ids=ids([*questions[0], *questions[1]]), position_ids=positions, **given)
        cache.start_answers(torch.stack([owners[:, 5:] == 1, owners[:, 5:] == 2], dim=1))
        cache.next_step()
        positions = torch.tensor([[8, 7]], device=model.device)
        second = model(input_ids=ids(answers), position_ids=positions, **given)
    found = torch.stack([first.logits[0, [2, 4]], second.logits[0]], dim=1)
    wanted = torch.stack(expected)
    # A wrong mask or position changes them by about their own size, the order of sums by some last digits.
    difference = (found.float() - wanted.float()).abs().max() / wanted.float().abs().max()
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    if not difference <= tolerance:
        return "gives other results with branches than without", num_bytes
    return None, num_bytes


def _guess_bytes_per_token(language_model: Any) -> int:
    config = language_model.config
    return 2 * config.num_hidden_layers * config.hidden_size * language_model.dtype.itemsize


def length_limit(language_model: Any) -> int | None:
    """How long a sequence may be so that no window of attention, nor its length, changes what its tokens see."""
    rope = getattr(language_model.config, "rope_parameters", None) or {}
    limits = [attention_window(language_model)]
    if rope.get("rope_type") in ("dynamic", "longrope"):
        limits.append(rope.get("original_max_position_embeddings") or language_model.config.max_position_embeddings)
    return min((limit for limit in limits if limit is not None), default=None)


def context_length(language_model: Any) -> int | None:
    """How many positions a language model was made for; `None` where it does not say, or where they stretch."""
    stretches = (getattr(language_model.config, "rope_parameters", None) or {}).get("rope_type") == "dynamic"
    return None if stretches else getattr(language_model.config, "max_position_embeddings", None)
