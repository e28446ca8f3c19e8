"""What is asked and answered: requests, answers, where branches stand while they are decoded, and their next tokens.

Dimension letters: R regions, n branches of a region, V vocabulary.
"""

from .configuration_finecaption import MIN_TRANSFORMERS  # noqa: F401  (an unsupported release ends in that file)

# isort: split
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessor, StoppingCriteria

from .branch_attention_finecaption import BranchCache


@dataclass(frozen=True)
class BranchRequest:
    """A question about a region, and how it is to be answered.

    Args:
        question: a name that the processor knows, or a question in own words.
        max_new_tokens: the longest answer; `None` means `BranchEngine.max_new_tokens`.
        temperature: 0 takes the likeliest token; above 0 tokens are drawn from the distribution at this temperature.
        top_p: draw from the likeliest tokens that together have this probability.
        repetition_penalty: above 1, tokens of the prompt and of the answer so far become less likely (as in
            `transformers`); `None` means what the generation configuration says, else none.
        stop_strings: the answer ends before the first of these.
        seed: of the draws; a branch draws the same tokens whatever else is answered with it.
        name: the task or attribute that the question stands for, where it has a name.

    Raises:
        ValueError: If a value makes no sense.
    """

    question: str
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float | None = None
    stop_strings: tuple[str, ...] = ()
    seed: int = 0
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.question, str) or not self.question.strip():
            raise ValueError(f"{self.question!r} is no question. Give a name, such as 'color', or your own words.")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}. Ask for at least one token.")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}. Give 0 (the likeliest token) or a positive number.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}. Give a probability above 0, at most 1.")
        if self.repetition_penalty is not None and not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}. Give a positive number; 1 is none.")
        stops = (self.stop_strings,) if isinstance(self.stop_strings, str) else tuple(self.stop_strings)
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise ValueError(f"stop_strings are {self.stop_strings!r}. Give texts that are not empty.")
        object.__setattr__(self, "stop_strings", stops)


@dataclass(frozen=True)
class BranchAnswer:
    """The answer of a branch, whole or so far.

    Args:
        text: without special tokens, and without white space around it.
        token_ids: as they were generated, with the token that ends the answer.
        log_probs: where asked for, the natural logarithm of each token's probability in the model's own distribution
            (before temperature, top_p and penalty).
        finish_reason: `"end"`, `"stop_string"`, `"length"` or `"error"`; `None` while the answer goes on.
        error: why there is no answer.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] | None = None
    finish_reason: str | None = None
    error: str | None = None


class BranchUpdate(NamedTuple):
    """Where an answer belongs, and the answer: `region` counts the regions, `branch` the requests of that region."""

    region: int
    branch: int
    answer: BranchAnswer


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
        before = torch.tensor(sorted(set(prefix_ids)), device=logits.device)
        for number in penalised:
            branch = branches[number]
            seen = torch.tensor([*branch.question_ids, *branch.token_ids], device=logits.device)
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


__all__ = [
    "Branch",
    "BranchAnswer",
    "BranchRequest",
    "BranchUpdate",
    "ChooseInGenerate",
    "Columns",
    "StopInGenerate",
    "choose_tokens",
]
